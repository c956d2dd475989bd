"""What attempts are metered as, and that the records of them in the audit log come to the same."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import apsw
import pytest

from eventrouter import App, Batch, Event, Idempotent, PartialFailure, on
from eventrouter.audit import Query
from eventrouter.clock import ManualClock
from eventrouter.errors import Throttled
from eventrouter.journal.database import Database
from eventrouter.journal.protocol import Usage
from eventrouter.retry import fixed
from support import event, local, put, running, until

AUDITED = "[audit]\ninvocations = true\n"


async def used(app: App) -> dict[str, Usage]:
    """By function."""
    app.engine.accounts.flush()
    await app.journal.flush()
    return {use.function: use for use in await app.journal.books.used(0, 1 << 40)}


def recomputed(records: Sequence[Mapping[str, Any]], step: int = 100) -> dict[str, tuple[int, int, int, int, int]]:
    """Usage by function, from nothing but what the audit log says: invocations, errors, throttles, billed ms, MB·ms."""
    sums: dict[str, Counter[str]] = {}
    for record in records:
        if record["eventName"] != "Invoke" or record["managementEvent"] or record.get("errorCode") == "Interrupted":
            continue
        more = record["additionalEventData"]
        mine = sums.setdefault(record["requestParameters"]["functionName"], Counter())
        if record.get("errorCode") == "TooManyRequestsException":
            mine["throttles"] += 1
            continue
        billed = max(1, -(-more["durationMicroseconds"] // (1000 * step))) * step
        mine.update(invocations=1, errors=int("errorCode" in record), billed=billed, memory=billed * more["memoryMB"])
    names = ("invocations", "errors", "throttles", "billed", "memory")
    return {name: tuple(mine[figure] for figure in names) for name, mine in sums.items()}  # type: ignore[misc]


def figures(usage: Mapping[str, Usage]) -> dict[str, tuple[int, int, int, int, int]]:
    return {name: (use.invocations, use.errors, use.throttles, use.billed, use.memory) for name, use in usage.items()}


async def agree(app: App) -> dict[str, Usage]:
    """The usage, once it has been held against the audit log."""
    usage = await used(app)
    records = await app.trail.query(Query(limit=0))
    assert recomputed(records) == figures(usage)
    return usage


@pytest.mark.parametrize("toml", ["", AUDITED], ids=["metered", "audited"])
@pytest.mark.parametrize(("step", "billed"), [(100, 100 + 300 + 100 + 200), (1, 50 + 250 + 0 + 101 + 1), (1000, 4000)])
async def test_each_of_those_that_run_in_one_go_is_billed_for_itself(tmp_path: Path, toml: str, step: int, billed: int) -> None:
    clock = ManualClock()
    times = [0.05, 0.25, 0.0, 0.101]

    @on(local("a"))
    async def handler(number: int) -> None:
        clock.advance(times[number])

    async with running(tmp_path, handler, clock=clock, toml=f"{toml}[metering]\nstep = {step}\n") as app:
        await app.sources["local"].router.deliver([event("a", number) for number in range(4)])
        await until(lambda: app.engine.lanes["handler"].succeeded == 4)
        use = (await used(app))["handler"]
        assert (use.invocations, use.errors) == (4, 0)
        # what is not the handler's, up to its settlement, may be counted to the last; the clock stands still then
        assert abs(use.billed - billed) <= 4 * (step == 1)
        assert use.memory == use.billed * 128


async def test_an_attempt_that_fails_or_is_too_slow_is_an_invocation_and_an_error(tmp_path: Path) -> None:
    clock = ManualClock()
    tries = 0

    @on(local("a"), retries=1, backoff=fixed(0), timeout=3)
    async def handler() -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            clock.advance(0.15)
            raise ValueError("this time")
        await asyncio.Event().wait()

    async with running(tmp_path, handler, clock=clock, toml=AUDITED) as app:
        await put(app, "a")
        await until(lambda: tries == 2 and app.engine._sweeper.slots)
        clock.advance(3.05)
        await until(lambda: app.engine.lanes["handler"].dead == 1)
        use = (await agree(app))["handler"]
        assert (use.invocations, use.errors, use.throttles) == (2, 2, 0)
        assert use.billed == 200 + 3100


async def test_a_batch_is_one_invocation_and_each_half_of_one_that_fails_is_another(tmp_path: Path) -> None:
    @on(local("a"), batch=Batch(4, bisect=True), retries=0)
    async def handler(numbers: list[int]) -> None:
        if 3 in numbers:
            raise ValueError("three")

    @on(local("b"), batch=Batch(10), retries=0)
    async def partly(numbers: list[int]) -> None:
        raise PartialFailure([1])

    async with running(tmp_path, handler, partly, toml=AUDITED) as app:
        await app.sources["local"].router.deliver([event("a", number) for number in range(4)])
        await app.sources["local"].router.deliver([event("b", number) for number in range(3)])
        await until(lambda: app.engine.lanes["handler"].dead == 1 and app.engine.lanes["partly"].succeeded)
        usage = await agree(app)
        assert (usage["handler"].invocations, usage["handler"].errors) == (5, 3)  # 4, 2 + 2, 1 + 1
        assert usage["partly"].invocations == 1


async def test_a_request_is_written_within_the_second_and_one_that_is_turned_away_is_a_throttle(tmp_path: Path) -> None:
    clock = ManualClock()
    go = asyncio.Event()

    @on(concurrency=1, tags={"team": "Red"})
    async def handler() -> str:
        await go.wait()
        return "ok"

    async with running(tmp_path, handler, clock=clock, toml=AUDITED) as app:
        first = asyncio.create_task(app.run_now("handler", Event("invoke", "lambda.invoke", "handler", b"{}"), {}))
        await until(lambda: app.engine.lanes["handler"].active)
        with pytest.raises(Throttled):
            await app.run_now("handler", Event("invoke", "lambda.invoke", "handler", b"{}"), {})
        go.set()
        await first
        assert not await app.journal.books.used(0, 1 << 40)
        clock.advance(1.0)
        await app.journal.flush()
        (use,) = await app.journal.books.used(0, 1 << 40)
        assert use == Usage(int(clock.time() // 86_400), "handler", '{"team":"Red"}', 1, 0, 1, 100, 12_800, 0)
        await agree(app)


async def test_a_repeat_that_gets_the_first_ones_result_costs_nothing(tmp_path: Path) -> None:
    @on(local("a"), idempotent=Idempotent("$.id"))
    async def handler(payload: dict[str, int]) -> str:
        return "done"

    async with running(tmp_path, handler, toml=AUDITED) as app:
        for _ in range(3):
            await put(app, "a", {"id": 1})
            await app.journal.flush()
        await until(lambda: app.engine.lanes["handler"].succeeded == 3)
        assert (await agree(app))["handler"].invocations == 1


async def test_what_the_router_broke_off_is_recorded_but_not_metered(tmp_path: Path) -> None:
    @on(local("a"))
    async def handler() -> None:
        await asyncio.Event().wait()

    app: App
    async with running(tmp_path, handler, toml=f"{AUDITED}[app]\ndrain = 0\n") as app:
        await put(app, "a")
        await until(lambda: app.engine.lanes["handler"].active)
    async with running(tmp_path, handler, toml=f"{AUDITED}[app]\ndrain = 0\n") as app:
        records = await app.trail.query(Query(function="handler"))
        assert [record["errorCode"] for record in records if record["eventCategory"] == "Data"][:1] == ["Interrupted"]
        assert await used(app) == {}


@pytest.mark.parametrize("toml", ["", AUDITED], ids=["metered", "audited"])
async def test_a_commit_that_fails_writes_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toml: str) -> None:
    done = 0

    @on(local("a"))
    async def handler() -> None:
        nonlocal done
        done += 1
        if done == 1:
            monkeypatch.setattr(Database, "commit", full)

    real, failures = Database.commit, 0

    def full(database: Database) -> None:
        nonlocal failures
        failures += 1
        if failures == 2:
            monkeypatch.setattr(Database, "commit", real)
        raise apsw.FullError("database or disk is full")

    async with running(tmp_path, handler, toml=toml) as app:
        await app.sources["local"].router.deliver([event("a", number) for number in range(100)])
        await until(lambda: done == 100 and failures == 2 and not app.journal.fault)
        use = (await used(app))["handler"]
        assert (use.invocations, use.billed) == (100, 10_000)
        assert (await app.trail.verify()).fault is None


async def test_nothing_is_metered_where_that_is_switched_off_and_idle_costs_nothing(tmp_path: Path) -> None:
    @on(local("a"))
    async def handler() -> None: ...

    @on(local("b"))
    async def idle() -> None: ...

    async with running(tmp_path, handler, idle) as app:
        await put(app, "a")
        await until(lambda: app.engine.lanes["handler"].succeeded)
        assert list(await used(app)) == ["handler"]
    async with running(tmp_path, handler, idle, toml="[metering]\nenabled = false\n") as app:
        await put(app, "a")
        await until(lambda: app.engine.lanes["handler"].succeeded)
        assert (await used(app))["handler"].invocations == 1


async def test_no_request_runs_unrecorded_when_the_journal_takes_no_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @on()
    async def handler() -> None: ...

    async with running(tmp_path, handler, toml=AUDITED) as app:
        await app.run_now("handler", Event("invoke", "lambda.invoke", "handler", b"{}"), {})
        monkeypatch.setattr("eventrouter.accounts._MOST", 10)
        with pytest.raises(Throttled, match="no request may run without its record"):
            await app.run_now("handler", Event("invoke", "lambda.invoke", "handler", b"{}"), {})
        app.engine.accounts.flush()
        await app.run_now("handler", Event("invoke", "lambda.invoke", "handler", b"{}"), {})
