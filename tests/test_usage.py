"""What usage costs: free tiers, prices, groups, and how it is printed."""

from __future__ import annotations

import csv
import io
import json
from datetime import date
from pathlib import Path

import pytest

from eventrouter import on
from eventrouter.clock import ManualClock
from eventrouter.config import MeteringConfig
from eventrouter.errors import ConfigError
from eventrouter.journal.protocol import Ledger, Usage
from eventrouter.operations import Operations
from eventrouter.usage import months_around, number_of, report
from served import Place
from support import local, running

MILLION = 1_000_000
DAY = number_of(date(2026, 1, 31))
SINCE, UNTIL = date(2026, 1, 1), date(2026, 2, 28)


def used(day: int, name: str, count: int, tags: str = "{}", memory: int = 1024) -> Usage:
    return Usage(day, name, tags, count, 0, 0, count * 100, count * 100 * memory)


def test_the_free_tier_is_a_months_and_shared_by_use() -> None:
    # Lambda's own example: 3 million requests of 120 ms at 1536 MB, with steps of 100 ms: 200 ms
    of = [Usage(DAY, "f", "{}", 3 * MILLION, 0, 0, 3 * MILLION * 200, 3 * MILLION * 200 * 1536)]
    total = report(of, MeteringConfig(), ["function"], SINCE, UNTIL, {}).total
    assert total.gb_seconds == 900_000
    assert total.cost == pytest.approx(2 * 0.20 + 500_000 * 0.0000166667, abs=1e-5)
    both = report([used(DAY, "a", 3 * MILLION), used(DAY, "b", MILLION)], MeteringConfig(), ["function"], SINCE, UNTIL, {})
    assert [row.cost for row in both.rows] == [pytest.approx(0.45), pytest.approx(0.15)]  # 3 of 4 million are beyond it
    apart = [used(DAY, "a", MILLION), used(DAY + 1, "a", MILLION)]  # the next month
    assert report(apart, MeteringConfig(), ["month"], SINCE, UNTIL, {}).total.cost == 0
    assert report(apart, MeteringConfig(free_requests=0), ["day"], SINCE, UNTIL, {}).total.cost == pytest.approx(0.4)


def test_what_lies_outside_counts_for_the_tier_and_is_not_shown() -> None:
    of = [used(DAY - 1, "a", 3 * MILLION), used(DAY, "a", MILLION)]
    shown = report(of, MeteringConfig(), ["day"], date(2026, 1, 31), date(2026, 1, 31), {})
    assert [(row.group, row.invocations, row.cost) for row in shown.rows] == [(["2026-01-31"], MILLION, pytest.approx(0.15))]
    assert months_around(date(2026, 1, 31), date(2026, 2, 1)) == (number_of(date(2026, 1, 1)), number_of(date(2026, 3, 1)))


def test_tags_are_case_sensitive_and_as_they_were_then() -> None:
    of = [used(DAY, "a", 1, '{"team":"red"}'), used(DAY, "a", 2, '{"team":"Red"}'), used(DAY, "b", 4, '{"Team":"red"}'), used(DAY, "c", 8)]

    def groups(*by: str, **tags: str) -> dict[tuple[str, ...], int]:
        return {tuple(row.group): row.invocations for row in report(of, MeteringConfig(), by, SINCE, UNTIL, tags).rows}

    assert groups("tag:team") == {("",): 12, ("Red",): 2, ("red",): 1}
    assert groups("tag:team", "function") == {("", "b"): 4, ("", "c"): 8, ("Red", "a"): 2, ("red", "a"): 1}
    assert groups("function", team="red") == {("a",): 1}
    for wrong in ("team", "tag:", "hour"):
        with pytest.raises(ConfigError, match="function, day, month or tag:NAME"):
            groups(wrong)


async def test_days_are_utcs_and_this_month_is_shown(tmp_path: Path) -> None:
    @on(local("a"))
    async def handler() -> None: ...

    clock = ManualClock(1_769_903_999.0)  # a second before February
    async with running(tmp_path, handler, clock=clock) as app:
        first = int(clock.time() // 86_400)
        await app.journal.books.enter(Ledger((used(first, "handler", 5), used(first + 1, "handler", 7))))
        await app.journal.books.enter(Ledger((used(first, "handler", 1),)))
        ask = Operations(app).usage
        shown = await ask(["day"], None, None, {})
        assert [(row["group"], row["invocations"]) for row in shown["rows"]] == [(["2026-01-31"], 6)]
        clock.advance(1)
        shown = await ask(["function"], None, None, {})
        assert (shown["since"], shown["until"], shown["total"]["invocations"]) == ("2026-02-01", "2026-02-01", 7)
        assert (await ask(["month"], "2026-01-31", None, {}))["total"]["invocations"] == 13
        with pytest.raises(ConfigError, match="write it as 2026-01-31"):
            await ask(["day"], "yesterday", None, {})


def test_table_json_and_csv(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("from eventrouter import on\n@on(tags={'team': 'red'})\nasync def good() -> int: return 1\n")
    with Place(tmp_path) as place:
        for _ in range(2):
            place.run("invoke", "good")
        assert "Billed Duration: 250 ms" in _with_step(place, 250)
        table = place.run("usage").splitlines()
        assert table[0].split()[:4] == ["FUNCTION", "INVOCATIONS", "ERRORS", "THROTTLES"]
        assert [line.split()[:2] for line in table[1:3]] == [["good", "3"], ["total", "3"]]
        found = json.loads(place.run("usage", "--json", "--by", "function", "--by", "tag:team"))
        assert found["rows"][0]["group"] == ["good", "red"]
        assert found["rows"][0]["billed_seconds"] == 0.45
        (row,) = csv.DictReader(io.StringIO(place.run("usage", "--csv", "--by", "tag:team")))
        assert (row["tag:team"], row["invocations"], row["currency"]) == ("red", "3", "USD")
        assert place.run("usage", "--json", "--tag", "team=Red").count('"group"') == 1
        assert "function, day, month or tag:NAME" in place.run("usage", "--by", "x", code=2)


def _with_step(place: Place, step: int) -> str:
    file = place.folder / "eventrouter.toml"
    file.write_text(f"[metering]\nstep = {step}\n")
    told = place.run("invoke", "good")
    file.unlink()
    return told
