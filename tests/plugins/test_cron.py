from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta, tzinfo
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

import source_contract
from eventrouter import App, Event, on
from eventrouter.clock import ManualClock, SystemClock
from eventrouter.errors import ConfigError
from eventrouter.operations import Operations
from eventrouter.plugins import Plugins
from eventrouter_cron import CronTrigger, at, cron, eventrouter_plugin, rate, sample
from eventrouter_cron.schedule import parse
from source_contract import Outside, SourceContract
from support import make_app, until

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)


def lines(cases: Path, name: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (cases / "cron" / f"{name}.jsonl").read_text().splitlines()]
    assert found
    return found


def test_what_amazon_takes_and_refuses(cases: Path) -> None:
    for case in lines(cases, "aws_validity"):
        try:
            parse(case["expr"])
            found = "valid"
        except ValueError:
            found = "invalid"
        assert found == case["expected"], case


def fires(expression: str, zone: str, after: datetime, count: int) -> list[datetime | None]:
    schedule, found = parse(expression, zone), []
    moment: datetime | None = after
    for _ in range(count):
        if moment is not None:
            moment = schedule.next(moment)
            found.append(moment)
    return found


def test_when_amazons_fire(cases: Path) -> None:
    for case in lines(cases, "aws_next"):
        start = datetime.fromisoformat(case["from"]) - timedelta(seconds=case["inclusive_of_from"])
        want = [datetime.fromisoformat(text) for text in case["next"]]
        assert fires(case["expr"], "UTC", start, len(want)) == want, case


def test_when_five_fields_fire(cases: Path) -> None:
    for case in lines(cases, "five_field_next"):
        start = datetime.fromisoformat(case["start"])
        zone = case["tz"] or "UTC"
        if found := re.search(r"zoneinfo/([\w/]+)", zone):  # how another library writes it
            zone = found[1]
        if zone == "UTC" and start.utcoffset() == timedelta(hours=5.5):
            zone = "Asia/Kolkata"  # the case has an offset where we have zones
        want = [datetime.fromisoformat(text) for text in case["next"]]
        if start.tzinfo is None:
            start, want = start.replace(tzinfo=UTC), [moment.replace(tzinfo=UTC) for moment in want]
        got = [moment and moment.astimezone(UTC) for moment in fires(case["expr"], zone, start, len(want))]
        assert got == [moment.astimezone(UTC) for moment in want], case


@pytest.mark.parametrize(
    ("expression", "after", "want"),
    [
        ("30 2 * * ? *", "2026-03-28T12:00:00+01:00", ["2026-03-30T02:30:00+02:00"]),  # the 29th has no 02:30
        ("30 2 * * ? *", "2026-10-24T12:00:00+02:00", ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"]),  # twice: once
        ("30 2 * * ? *", "2026-10-25T02:10:00+01:00", ["2026-10-26T02:30:00+01:00"]),
        ("0 * * * ? *", "2026-10-25T01:30:00+02:00", ["2026-10-25T02:00:00+02:00", "2026-10-25T03:00:00+01:00"]),
        ("0 10 LW * ? *", "2026-01-01T00:00:00+01:00", ["2026-01-30T10:00:00+01:00", "2026-02-27T10:00:00+01:00"]),
        ("0 10 15W * ? *", "2026-02-01T00:00:00+01:00", ["2026-02-16T10:00:00+01:00"]),  # the 15th is a Sunday
        ("0 10 1W * ? *", "2026-01-31T11:00:00+01:00", ["2026-02-02T10:00:00+01:00"]),  # not back into January
        ("0 10 ? * L *", "2026-01-01T00:00:00+01:00", ["2026-01-03T10:00:00+01:00"]),
        ("0 10 ? * FRIL *", "2026-01-01T00:00:00+01:00", ["2026-01-30T10:00:00+01:00"]),
        ("0 10 ? * 3#5 *", "2026-01-01T00:00:00+01:00", ["2026-03-31T10:00:00+02:00"]),
        ("0 22-1 ? * FRI-MON *", "2026-01-01T00:00:00+01:00", ["2026-01-02T00:00:00+01:00", "2026-01-02T01:00:00+01:00"]),
        ("0 0 29 2 ? *", "2026-01-01T00:00:00+01:00", ["2028-02-29T00:00:00+01:00"]),
        ("0 0 1 1 ? 2020", "2026-01-01T00:00:00+01:00", [None]),
    ],
)
def test_six_fields_in_berlin(expression: str, after: str, want: list[str | None]) -> None:
    got = fires(expression, "Europe/Berlin", datetime.fromisoformat(after), len(want))
    assert [moment and moment.isoformat() for moment in got] == want


@pytest.mark.parametrize("zone", [ZoneInfo("Europe/Berlin"), UTC])
@pytest.mark.parametrize(
    ("expression", "want"),
    [
        ("cron(50 2 * * ? *)", "2026-10-26T02:50:00+01:00"),
        ("50 2 * * *", "2026-10-26T02:50:00+01:00"),
        ("*/10 * * * *", "2026-10-25T02:50:00+01:00"),
        ("at(2026-10-25T02:50:00)", None),
    ],
)
def test_in_the_second_of_two_equal_hours_the_first_is_past(zone: tzinfo, expression: str, want: str | None) -> None:
    after = datetime(2026, 10, 25, 2, 45, tzinfo=ZoneInfo("Europe/Berlin"), fold=1).astimezone(zone)
    found = parse(expression, "Europe/Berlin").next(after)
    assert (found and found.isoformat()) == want


@given(
    st.sampled_from(
        ["* * * * ? *", "0/7 3 ? * MON-FRI *", "0 0 L * ? *", "30 1-3 * * ? *", "15 2 ? * 1#1 *", "*/20 * * * *", "30 2 * * *"]
    ),
    st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]),
    st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)),
)
def test_next_is_always_later_and_skips_nothing(expression: str, zone: str, after: datetime) -> None:
    schedule, start = parse(expression, zone), after.replace(tzinfo=UTC)
    tick = schedule.next(start)
    assert tick is not None
    assert tick > start
    assert schedule.next(tick - timedelta(seconds=1)) == tick
    between = schedule.next(start + (tick - start) / 2)
    assert between == tick


@pytest.mark.parametrize(
    ("expression", "zone", "fault"),
    [
        ("61 * * * *", "UTC", "five fields are minute hour day month weekday"),
        ("* * *", "UTC", "write cron with 5 fields, or AWS's 6"),
        ("0 25 * * ? *", "UTC", "hour '25': '25' must be 0 to 23"),
        ("0 1 * FEBR ? *", "UTC", "month 'FEBR': 'FEBR' must be 1 to 12 or JAN to DEC"),
        ("0 1 1 * MON *", "UTC", "exactly one of day of month and day of week must be '?'"),
        ("0/0 1 1 * ? *", "UTC", "'0/0' is no value, range or step"),
        ("rate(1 hours)", "UTC", "write rate(1 hour)"),
        ("rate(5 weeks)", "UTC", "minute(s), hour(s) or day(s)"),
        ("at(tomorrow)", "UTC", "at(2026-12-01T08:00:00)"),
        ("at(2026-1-1T8:0:0)", "UTC", "at(2026-12-01T08:00:00)"),
        ("at(2026-03-29T02:30:00)", "Europe/Berlin", "the clocks of Europe/Berlin skip this time"),
        ("0 7 * * *", "Berlin", "timezone 'Berlin': no such zone"),
        ("0 7 * * *", "../etc/passwd", "no such zone"),
    ],
)
def test_what_is_no_schedule(expression: str, zone: str, fault: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - its text is checked
        parse(expression, zone)
    assert fault in str(caught.value)


@pytest.mark.parametrize(
    ("expression", "fault"),
    [("0 0 31 4 ? *", "'0 0 31 4 ? *' never fires: there is no such day"), ("0 0 30 2 *", "'0 0 30 2 *': Bad day-of-month")],
)
def test_a_cron_that_cannot_fire_is_refused_at_load(expression: str, fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        cron(expression)
    assert fault in str(caught.value)


def test_what_list_shows() -> None:
    assert str(cron("0 7 * * MON-FRI", timezone="Europe/Berlin")) == "cron 0 7 * * MON-FRI Europe/Berlin"
    assert str(rate("5 minutes")) == "rate(5 minutes)"
    assert str(at("2026-12-01T08:00:00")) == "at(2026-12-01T08:00:00)"
    with pytest.raises(ConfigError, match="catch_up='some'"):
        rate("5 minutes", catch_up="some")  # type: ignore[arg-type]


class RealClock(SystemClock):
    """Runs as the machine's does, from a time of its own, and can be moved forward besides."""

    def __init__(self) -> None:
        self._ahead = NEW_YEAR.timestamp() - self.monotonic()

    def time(self) -> float:  # type: ignore[override]
        return self.monotonic() + self._ahead

    def reach(self, moment: float) -> None:
        self._ahead += max(0.0, moment - self.time())

    async def sleep(self, delay: float) -> None:
        end = self.time() + delay
        while self.time() < end:
            await asyncio.sleep(0.005)


class Minutes(Outside):
    """Event number n is the tick of minute n, put by letting that minute come."""

    source = "cron"
    keeps = True
    rejects = False
    payload = dict

    def __init__(self) -> None:
        self.clock = RealClock()

    def plugins(self) -> Plugins:
        return Plugins([eventrouter_plugin()])

    def trigger(self) -> CronTrigger:
        return rate("1 minute", catch_up="all")

    def number(self, payload: Any) -> int:
        return (datetime.fromisoformat(payload["time"]) - NEW_YEAR) // timedelta(minutes=1)

    async def put(self, app: App, n: int, body: bytes | None = None) -> bool:
        self.clock.reach(NEW_YEAR.timestamp() + n * 60)
        return True


class TestTheClockIsASource(SourceContract):
    @pytest.fixture
    def outside(self, monkeypatch: pytest.MonkeyPatch) -> Minutes:
        made = Minutes()
        monkeypatch.setattr(source_contract, "make_app", partial(make_app, clock=made.clock))
        return made


class Ticks:
    """A handler that notes down the times of its ticks."""

    def __init__(self, *triggers: Any) -> None:
        self.times: list[str] = []

        @on(*triggers)
        async def ticks(event: Event) -> None:
            self.times.append(event.json()["time"][11:16])

        self.handler = ticks


@asynccontextmanager
async def running(folder: Path, clock: ManualClock, *handlers: Callable[..., Any]) -> AsyncIterator[App]:
    async with make_app(folder, *handlers, clock=clock, plugins=Plugins([eventrouter_plugin()])) as app:
        await until(lambda: app.supervisor and app.supervisor.ready.is_set())
        yield app


async def pass_time(app: App, clock: ManualClock, minutes: int) -> None:
    """A minute at a time, with what is due done at each."""
    for _ in range(minutes):
        clock.advance(60)
        await app.journal.flush()
        for _ in range(3):
            await app.journal.flush()
    await until(lambda: all(not lane.active and not lane.count for lane in app.engine.lanes.values()))


async def test_each_tick_runs_once(tmp_path: Path) -> None:
    clock, quarter, third = (
        ManualClock(NEW_YEAR.timestamp() + 1),
        Ticks(rate("15 minutes")),
        Ticks(cron("*/20 * * * *"), at("2026-01-01T00:50:00")),
    )
    third.handler.__name__ = "third"
    async with running(tmp_path, clock, quarter.handler, third.handler) as app:
        assert app.sources["cron"].lines() == ["cron next at 2026-01-01T00:15:00+00:00: ticks"]
        await pass_time(app, clock, 61)
    assert quarter.times == ["00:15", "00:30", "00:45", "01:00"]
    assert third.times == ["00:20", "00:40", "00:50", "01:00"]


async def test_the_event(tmp_path: Path) -> None:
    got: list[Any] = []

    @on(cron("0 * * * *"))
    def handler(event, context):  # type: ignore[no-untyped-def]
        got.append(event)

    @on(cron("0 * * * *"))
    async def bare() -> None:
        got.append("bare")

    clock = ManualClock(NEW_YEAR.timestamp() - 5)
    async with running(tmp_path, clock, handler, bare):
        clock.advance(10)
        await until(lambda: len(got) == 2)
    (event,) = (it for it in got if it != "bare")
    assert str(UUID(event.pop("id"))) == sample("0 * * * *", function="handler", after="2025-12-31T23:59:55")["id"]
    assert event == {
        "version": "0", "detail-type": "Scheduled Event", "source": "aws.events", "account": "000000000000", "region": "local",
        "time": "2026-01-01T00:00:00Z", "resources": ["arn:aws:events:local:000000000000:rule/handler"], "detail": {},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("catch_up", "times"),
    [
        ("none", ["00:10", "01:10"]),
        ("last", ["00:10", "01:00", "01:10"]),
        ("all", ["00:10", "00:20", "00:30", "00:40", "00:50", "01:00", "01:10"]),
    ],
)
async def test_what_was_missed_while_down(tmp_path: Path, catch_up: Any, times: list[str]) -> None:
    clock, ticks = ManualClock(NEW_YEAR.timestamp() + 1), Ticks(rate("10 minutes", catch_up=catch_up))
    async with running(tmp_path, clock, ticks.handler) as app:
        await pass_time(app, clock, 11)
    clock.advance(54 * 60)
    for minutes in (0, 10):
        async with running(tmp_path, clock, ticks.handler) as app:
            await pass_time(app, clock, minutes)
            await until(lambda: len(ticks.times) >= len(times) - (minutes == 0))  # noqa: B023 - called at once
    assert ticks.times == times


async def test_no_more_than_a_thousand_are_caught_up_with(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock, ticks = ManualClock(NEW_YEAR.timestamp()), Ticks(rate("1 minute", catch_up="all"))
    async with running(tmp_path, clock, ticks.handler):
        pass
    clock.advance(1500 * 60)
    async with running(tmp_path, clock, ticks.handler):
        await until(lambda: len(ticks.times) == 1000)
    assert "500 missed ticks of rate(1 minute) are left out, the newest 1000 run" in caplog.text
    assert ticks.times[-1] == "01:00"


async def test_a_tick_whose_memory_was_lost_runs_once(tmp_path: Path) -> None:
    """As after a crash between the tick and the note that it was reached."""
    clock, ticks = ManualClock(NEW_YEAR.timestamp()), Ticks(rate("10 minutes"))
    async with running(tmp_path, clock, ticks.handler) as app:
        before = await app.sources["cron"].router.get("ticks rate(10 minutes)")
        await pass_time(app, clock, 11)
        await app.sources["cron"].router.put("ticks rate(10 minutes)", before)
    async with running(tmp_path, clock, ticks.handler) as app:
        assert app.engine.intake.repeats == 1
    assert ticks.times == ["00:10"]


async def test_a_clock_that_is_set_back_repeats_nothing(tmp_path: Path) -> None:
    clock, ticks = ManualClock(NEW_YEAR.timestamp()), Ticks(rate("10 minutes"))
    async with running(tmp_path, clock, ticks.handler) as app:
        await pass_time(app, clock, 11)
    async with running(tmp_path, ManualClock(NEW_YEAR.timestamp() + 300), ticks.handler) as app:
        clock = app.clock  # type: ignore[assignment]
        await pass_time(app, clock, 16)
    assert ticks.times == ["00:10", "00:20"]


async def test_a_past_moment_is_said_not_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock, ticks = ManualClock(NEW_YEAR.timestamp()), Ticks(at("2025-12-24T18:00:00"))
    async with running(tmp_path, clock, ticks.handler):
        pass
    assert not ticks.times
    assert "ticks: at(2025-12-24T18:00:00) will not fire: this time is past" in caplog.text


async def test_years_that_are_past(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="will never fire again: all its years are past"):
        async with running(tmp_path, ManualClock(NEW_YEAR.timestamp()), Ticks(cron("0 0 1 1 ? 2020")).handler):
            pass


AMAZONS = """
import json


def handler(event, context):
    assert event["detail-type"] == "Scheduled Event" and event["source"] == "aws.events"
    rule = event["resources"][0].split("/")[-1]
    left = context.get_remaining_time_in_millis()
    with open("fired.json", "w") as out:
        json.dump({"rule": rule, "time": event["time"], "function": context.function_name, "left": left}, out)
    return {"ok": True}
"""


async def test_a_function_written_for_lambda_runs_unmodified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code: dict[str, Any] = {"__name__": "lambda_function"}
    exec(compile(AMAZONS, "lambda_function.py", "exec"), code)
    clock = ManualClock(NEW_YEAR.timestamp() - 5)
    async with running(tmp_path, clock, on(rate("1 hour"), name="hourly")(code["handler"])) as app:
        clock.advance(10)
        await until(lambda: app.engine.lanes["hourly"].succeeded == 1)
    fired = json.loads((tmp_path / "fired.json").read_text())
    assert fired.pop("left") > 0
    assert fired == {"rule": "hourly", "time": "2026-01-01T00:00:00Z", "function": "hourly"}


def test_the_sample() -> None:
    event = sample("30 2 * * ? *", timezone="Europe/Berlin", function="nightly", after="2026-03-28T12:00:00")
    assert UUID(event.pop("id")).version == 5
    assert event == {
        "version": "0", "detail-type": "Scheduled Event", "source": "aws.events", "account": "000000000000", "region": "local",
        "time": "2026-03-30T00:30:00Z", "resources": ["arn:aws:events:local:000000000000:rule/nightly"], "detail": {},
    }  # fmt: skip
    assert sample()["time"] == "2026-01-01T00:05:00Z"
    for after, fault in (("2026-01-02T00:00:00", "has no tick after"), ("soon", "write a time in UTC")):
        with pytest.raises(ConfigError, match=fault):
            sample("at(2026-01-01T00:00:00)", after=after)


def test_a_table_of_the_config_makes_the_same_triggers(tmp_path: Path) -> None:
    @on()
    async def handler() -> None: ...

    toml = """[functions.handler]
on = [
    { cron = "0 7 * * MON-FRI", timezone = "Europe/Berlin" },
    { rate = "5 minutes", catch_up = "none" },
    { at = "2026-12-01T08:00:00", timezone = "Asia/Tokyo" },
]"""
    app = make_app(tmp_path, handler, toml=toml, plugins=Plugins([eventrouter_plugin()]))
    made = [trigger for trigger in app.functions["handler"].triggers if isinstance(trigger, CronTrigger)]
    assert [(str(trigger), trigger.catch_up) for trigger in made] == [
        ("cron 0 7 * * MON-FRI Europe/Berlin", "last"),
        ("rate(5 minutes)", "none"),
        ("at(2026-12-01T08:00:00) Asia/Tokyo", "last"),
    ]


async def test_a_schedule_can_be_fired_by_hand_beside_its_ticks(tmp_path: Path) -> None:
    clock = ManualClock()
    got: list[Any] = []

    @on(cron("0 7 * * *"))
    def report(event, context):  # type: ignore[no-untyped-def]
        got.append(event)

    async with make_app(tmp_path, report, clock=clock, plugins=Plugins([eventrouter_plugin()])) as app:
        operations = Operations(app)
        answers = [await operations.send("cron", ["report"], {}, str(tmp_path)) for _ in range(2)]
        await until(lambda: len(got) == 2)
        with pytest.raises(ConfigError, match="no function named 'repot' has a schedule; did you mean 'report'?"):
            await operations.send("cron", ["repot"], {}, str(tmp_path))
    assert [answer["function"] for answer in answers] == ["report", "report"]
    assert answers[0]["id"] != answers[1]["id"]
    assert {event["detail-type"] for event in got} == {"Scheduled Event"}
