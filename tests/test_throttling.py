"""Rates, the throttle button, and concurrency that is changed while the router runs."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from eventrouter import App, Batch, on
from eventrouter.clock import ManualClock
from eventrouter.errors import ConfigError, Throttled
from eventrouter.journal.protocol import LetterQuery
from eventrouter.model import Succeeded
from eventrouter.operations import Operations
from eventrouter_sqs import Queue, sqs
from served import Place, wait_for
from support import advance, event, local, make_app, put, running, until


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


async def at_rest(app: App) -> None:
    """Until all that was accepted has been looked at: what is due has run, and the rest is back in the journal."""
    await app.journal.flush()
    while any(lane.queue or lane.active for lane in app.engine.lanes.values()):
        await asyncio.sleep(0.001)
    await app.journal.flush()


# Rates


async def test_events_above_the_rate_wait_uncharged(tmp_path: Path, clock: ManualClock) -> None:
    got: list[int] = []

    @on(local("a"), rate="4/s", retries=0)
    async def handler(n: int) -> None:
        got.append(n)

    async with running(tmp_path, handler, clock=clock) as app:
        lane = app.engine.lanes["handler"]
        for n in range(12):
            await put(app, "a", n)
        await until(lambda: lane.delayed == 8)
        assert got == [0, 1, 2, 3]
        for count in range(5, 13):
            await advance(clock, 0.25, lambda count=count: len(got) >= count)  # type: ignore[misc]
            await at_rest(app)
            assert len(got) == count
        assert sorted(got) == list(range(12))
        assert lane.delayed == 8, "each was put off once"
        assert (lane.dead, lane.failed) == (0, 0)


async def test_each_value_has_a_rate_by_itself_and_holds_up_no_other(tmp_path: Path, clock: ManualClock) -> None:
    by_wildcard: Counter[str] = Counter()
    by_path: Counter[str | None] = Counter()

    @on(local("a/{device}"), rate="2/m", per="device")
    async def wildcard(n: int, device: str) -> None:
        by_wildcard[device] += 1

    @on(local("b"), rate="2/m", per="$.id")
    async def path(payload: dict[str, Any]) -> None:
        by_path[payload.get("id")] += 1

    async with running(tmp_path, wildcard, path, clock=clock) as app:
        app.engine.lanes["wildcard"].window = 8  # far fewer than those of one device that wait
        for n in range(300):
            await put(app, "a/busy", n)
        for device in ("x", "y", "z"):
            await put(app, f"a/{device}", 0)
        for payload in ({"id": "p"}, {"id": "p"}, {"id": "p"}, {}, {}, {}, {"id": "q"}):
            await put(app, "b", payload)
        await until(lambda: by_wildcard == {"busy": 2, "x": 1, "y": 1, "z": 1} and by_path == {"p": 2, None: 2, "q": 1})
        await at_rest(app)
        assert (await app.journal.depth())["wildcard"] == {"waiting": 298, "running": 0, "dead": 0}
        await advance(clock, 30, lambda: by_wildcard["busy"] == 3 and by_path == {"p": 3, None: 3, "q": 1})


@pytest.mark.parametrize("batch", [None, Batch(4)])
async def test_order_is_kept_through_the_rate(tmp_path: Path, clock: ManualClock, batch: Batch | None) -> None:
    got: dict[str, list[int]] = {"x": [], "y": []}
    options: Any = {} if batch is None else {"batch": batch}

    async def one(n: int, device: str) -> None:
        got[device].append(n)

    async def many(n: list[int], device: list[str]) -> None:
        for number, of in zip(n, device, strict=True):
            got[of].append(number)

    handler = on(local("a/{device}"), rate="2/s", per="device", order_by="device", name="f", **options)(one if batch is None else many)
    async with running(tmp_path, handler, clock=clock) as app:
        await asyncio.gather(*(put(app, f"a/{device}", n) for n in range(7) for device in ("x", "y")))
        for count in range(2, 8):
            await until(lambda count=count: [len(each) for each in got.values()] == [count, count])  # type: ignore[misc]
            await at_rest(app)
            assert got == {"x": list(range(count)), "y": list(range(count))}
            clock.advance(0.5)


async def test_what_would_wait_too_long_is_dead_when_it_is_too_old(tmp_path: Path, clock: ManualClock) -> None:
    got: list[int] = []

    @on(local("a"), rate="1/h", max_age=60)
    async def handler(n: int) -> None:
        got.append(n)

    async with running(tmp_path, handler, clock=clock) as app:
        lane = app.engine.lanes["handler"]
        for n in range(3):
            await put(app, "a", n)
        await until(lambda: lane.delayed == 2)
        await advance(clock, 59, lambda: True)
        await at_rest(app)
        assert lane.dead == 0
        await advance(clock, 2, lambda: lane.dead == 2)
        await app.journal.flush()
        assert {(letter.reason, letter.attempts) for letter in await app.journal.dead(LetterQuery())} == {("EventAgeExceeded", 0)}
        assert got == [0]


async def test_requests_above_the_rate_are_throttled(tmp_path: Path, clock: ManualClock) -> None:
    @on(local("a/{device}", mode="request"), rate="2/m", per="device", concurrency=1)
    async def handler(device: str) -> str:
        return device

    async with running(tmp_path, handler, clock=clock) as app:
        for _ in range(2):
            assert await app.run_now("handler", event("a/x"), {"device": "x"}) == Succeeded("x")
        with pytest.raises(Throttled, match="handler: it is over its rate of 2/m") as throttled:
            await app.run_now("handler", event("a/x"), {"device": "x"})
        assert throttled.value.after == 30
        assert await app.run_now("handler", event("a/y"), {"device": "y"}) == Succeeded("y")
        clock.advance(30)
        assert await app.run_now("handler", event("a/x"), {"device": "x"}) == Succeeded("x")
        assert app.engine.lanes["handler"].throttled == 1


async def test_a_queue_is_worked_off_at_the_rate(tmp_path: Path, clock: ManualClock) -> None:
    got: list[str] = []

    @on(sqs("jobs"), rate="2/s")
    async def handler(body: str) -> None:
        got.append(body)

    (tmp_path / "app.py").write_text("")
    app = _with_plugins(tmp_path, handler, clock)
    async with app:
        for n in range(4):
            await Queue("jobs").send(str(n))
        await until(lambda: len(got) == 2)
        await advance(clock, 0.5, lambda: len(got) == 3)
        await advance(clock, 0.5, lambda: len(got) == 4)


def _with_plugins(folder: Path, handler: Any, clock: ManualClock) -> App:
    from eventrouter.plugins import load_plugins

    return make_app(folder, handler, clock=clock, toml="[http]\nport = 0\n", plugins=load_plugins())


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"rate": "5"}, "rate='5': write a whole number a second"),
        ({"rate": "5/s", "per": "room"}, r"per='room' is no wildcard of its triggers; known: device; a JSON path begins with"),
        ({"rate": "5/s", "per": "$.a["}, "per: JSON path"),
        ({"per": "device"}, r"per= says for what each rate= is; give rate=, too"),
    ],
)
def test_rates_that_are_none(tmp_path: Path, options: Any, fault: str) -> None:
    @on(local("a/{device}"), **options)
    async def handler(device: str) -> None: ...

    with pytest.raises(ConfigError, match=fault):
        make_app(tmp_path, handler)


# The button


async def test_a_throttled_function_waits_and_refuses_and_goes_on(tmp_path: Path, clock: ManualClock) -> None:
    got: list[int] = []
    begun, gate = asyncio.Event(), asyncio.Event()

    @on(local("a"))
    async def handler(n: int) -> None:
        if n == 0:
            begun.set()
            await gate.wait()
        got.append(n)

    @on(local("a"))
    async def other(n: int) -> None: ...

    async with running(tmp_path, handler, other, clock=clock) as app:
        lane, operations = app.engine.lanes["handler"], Operations(app)
        await put(app, "a", 0)
        await begun.wait()
        answer = await operations.throttle("handler")
        assert (answer["name"], answer["policy"]["throttled"]) == ("handler", True)
        assert [f["policy"]["throttled"] for f in await operations.functions()] == [True, False]
        for n in range(1, 100):
            await put(app, "a", n)
        await until(lambda: app.engine.lanes["other"].succeeded == 100)
        gate.set()
        await until(lambda: not lane.active)
        assert got == [0], "what ran goes on"
        with pytest.raises(Throttled, match="handler: it is throttled; `eventrouter unthrottle handler` lets it run again"):
            await app.run_now("handler", event("a", 5), {})
        await operations.unthrottle("handler")
        await until(lambda: got == list(range(100)))
        with pytest.raises(ConfigError, match=r"did you mean 'handler'\?"):
            await operations.throttle("handle")


async def test_what_waits_too_long_for_a_throttled_function_is_dead(tmp_path: Path, clock: ManualClock) -> None:
    @on(local("a/{key}"), max_age=60, order_by="key")
    async def handler(n: int, key: str) -> None: ...

    async with running(tmp_path, handler, clock=clock) as app:
        lane = app.engine.lanes["handler"]
        lane.window = 8
        await Operations(app).throttle("handler")
        for n in range(50):
            await put(app, f"a/{n % 3}", n)
        await until(lambda: lane.count == 50)
        await advance(clock, 61, lambda: lane.dead == 50)
        await put(app, "a/1", 51)
        await Operations(app).unthrottle("handler")
        await until(lambda: lane.succeeded == 1)


async def test_it_is_so_after_a_restart(tmp_path: Path, clock: ManualClock) -> None:
    got: list[int] = []

    @on(local("a"))
    async def handler(n: int) -> None:
        got.append(n)

    @on(local("b"), concurrency=5)
    async def gone(n: int) -> None: ...

    async with running(tmp_path, handler, gone, clock=clock) as app:
        operations = Operations(app)
        await operations.throttle("handler")
        await operations.concurrency("handler", 7)
        await operations.concurrency("gone", 0)
        await put(app, "a", 1)
    for _ in range(2):
        async with running(tmp_path, handler, clock=clock) as app:
            (found,) = await Operations(app).functions()
            assert (found["policy"]["throttled"], found["policy"]["concurrency"]) == (True, 7)
            await put(app, "a", 2)
            assert app.engine.lanes["handler"].paused
            assert app.engine.lanes["handler"].pool.size == 7
            assert got == []
    async with running(tmp_path, handler, clock=clock) as app:
        await Operations(app).unthrottle("handler")
        await Operations(app).concurrency("handler", None)
        await until(lambda: sorted(got) == [1, 2, 2])
    async with running(tmp_path, handler, clock=clock) as app:
        assert await app.journal.keys("throttling/") == ["throttling/gone"]
        assert app.engine.lanes["handler"].pool.size == 1000


async def test_an_account_that_has_become_too_small_starts_all_the_same(
    tmp_path: Path, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    @on(local("a"))
    async def handler(n: int) -> None: ...

    async with running(tmp_path, handler, clock=clock) as app:
        await Operations(app).concurrency("handler", 500)
    with caplog.at_level(logging.ERROR, "eventrouter"):
        async with running(tmp_path, handler, clock=clock, toml="[app]\nconcurrency = 200\n") as app:
            assert app.engine.lanes["handler"].pool.size == 200
    assert "the concurrency that was set by hand is left out: reserved concurrency leaves -300 of 200" in caplog.text


# Concurrency


async def test_concurrency_changes_while_handlers_run(tmp_path: Path, clock: ManualClock) -> None:
    running_now = most = 0
    gate = asyncio.Semaphore(0)

    @on(local("a"))
    async def handler(n: int) -> None:
        nonlocal running_now, most
        running_now += 1
        most = max(most, running_now)
        await gate.acquire()
        running_now -= 1

    @on(local("b"))
    async def other(n: int) -> None: ...

    async with running(tmp_path, handler, other, clock=clock) as app:
        lanes, operations = app.engine.lanes, Operations(app)
        shared = lanes["other"].pool
        for n in range(100):
            await put(app, "a", n)
        await until(lambda: running_now == 100, 5)
        await operations.concurrency("handler", 10)
        assert (shared.free, shared.size, lanes["handler"].pool.free) == (990, 990, -90)
        for n in range(100):
            await put(app, "a", n)
        for _ in range(95):
            gate.release()
        await until(lambda: lanes["handler"].succeeded == 95)
        await until(lambda: running_now == 10)
        most = 0
        await operations.concurrency("handler", 20)
        await until(lambda: running_now == 20)
        with pytest.raises(ConfigError, match=r"leaves 99 of 1000 for other functions, 100 must stay: handler \(901\)"):
            await operations.concurrency("handler", 901)
        await operations.concurrency("handler", None)
        assert lanes["handler"].pool is shared
        assert shared.size == 1000
        await until(lambda: running_now == 105)
        for _ in range(105):
            gate.release()
        await until(lambda: lanes["handler"].succeeded == 200)
        await until(lambda: not lanes["handler"].active)
        assert (shared.free, lanes["handler"].dead) == (1000, 0)


async def test_a_function_that_is_closed_while_events_wait(tmp_path: Path, clock: ManualClock) -> None:
    gate = asyncio.Event()

    @on(local("a/{key}"), concurrency=1, order_by="key")
    async def handler(n: int, key: str) -> None:
        await gate.wait()

    async with running(tmp_path, handler, clock=clock) as app:
        lane, operations = app.engine.lanes["handler"], Operations(app)
        for n in range(30):
            await put(app, f"a/{n % 3}", n)
        await until(lambda: lane.active and lane.count == 29)
        await operations.concurrency("handler", 0)
        await until(lambda: lane.dead == 29)
        await put(app, "a/1", 30)
        await until(lambda: lane.dead == 30)
        with pytest.raises(Throttled):
            await app.run_now("handler", event("a/1"), {"key": "1"})
        gate.set()
        await until(lambda: lane.succeeded == 1)
        await app.journal.flush()
        assert {letter.reason for letter in await app.journal.dead(LetterQuery())} == {"ConcurrencyZero"}
        await operations.concurrency("handler", None)
        for n in range(30):
            await put(app, f"a/{n % 3}", n)
        await until(lambda: lane.succeeded == 31)
        assert lane.pool.free == 1


@pytest.mark.parametrize("how", ["throttle", "close"])
async def test_messages_stay_in_the_queue_of_a_function_that_takes_none(tmp_path: Path, clock: ManualClock, how: str) -> None:
    got: list[str] = []

    @on(sqs("jobs"))
    async def handler(body: str) -> None:
        got.append(body)

    app = _with_plugins(tmp_path, handler, clock)
    async with app:
        operations = Operations(app)
        await Queue("jobs").send("first")
        await until(lambda: got == ["first"])
        await (operations.throttle("handler") if how == "throttle" else operations.concurrency("handler", 0))
        for n in range(5):
            await Queue("jobs").send(str(n))
        received = await Queue("jobs").receive()
        while not received:
            received = await Queue("jobs").receive()
        assert await Queue("jobs").delete(received[0])
    async with (app := _with_plugins(tmp_path, handler, clock)):
        operations = Operations(app)
        await Queue("jobs").send("5")
        assert got == ["first"]
        await (operations.unthrottle("handler") if how == "throttle" else operations.concurrency("handler", None))
        await until(lambda: sorted(got) == [*sorted({"0", "1", "2", "3", "4", "5"} - {received[0].body}), "first"])
        assert await app.journal.dead(LetterQuery()) == []


APP = """
from eventrouter import on
from eventrouter_http import http

@on(http("POST /later", mode="event"))
async def later(n: int) -> None:
    print("got", n, flush=True)

@on(http("GET /now/{who}"), rate="1/h", per="who")
async def now(who: str) -> str:
    return who

@on(http("GET /free"))
async def free() -> str:
    return "free"
"""


def test_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "eventrouter.toml").write_text("[http]\nport = 0\n")
    with Place(tmp_path) as place:
        assert place.run("throttle", "later") == "later: throttled\n", "without a router, too"
        assert "throttled" in place.run("list")
        assert {f["name"]: f["policy"]["throttled"] for f in json.loads(place.run("list", "--json"))} == {
            "later": True,
            "now": False,
            "free": False,
        }
        place.serve()
        assert "202" in place.curl("/later", "-i", "-d", "1")
        assert place.run("throttle", "free") == "free: throttled\n"
        refused = place.curl("/free", "-i")
        assert "429" in refused
        assert "Retry-After: 1" in refused
        assert place.run("unthrottle", "free") == "free: no limits of its own\n"
        assert place.curl("/free") == "free"
        assert place.curl("/now/a") == "a"
        refused = place.curl("/now/a", "-i")
        assert "over its rate of 1/h" in refused
        assert 3590 <= int(refused.partition("Retry-After: ")[2].split()[0]) <= 3600
        assert place.curl("/now/b") == "b"
        assert place.run("concurrency", "free", "3") == "free: concurrency 3\n"
        assert place.run("concurrency", "free", "0") == "free: closed\n"
        assert "429" in place.curl("/free", "-i")
        assert "leaves 0 of 1000" in place.run("concurrency", "free", "1000", code=2)
        assert "give N, or --reset" in place.run("concurrency", "free", code=2)
        assert "did you mean 'free'?" in place.run("throttle", "fre", code=2)
        assert "throttled" in place.run("show", "later")
        place.stop()
        place.serve()
        assert "429" in place.curl("/free", "-i")
        assert place.run("concurrency", "free", "--reset") == "free: no limits of its own\n"
        assert place.curl("/free") == "free"
        assert "got 1" not in place.output
        assert json.loads(place.run("unthrottle", "later", "--json"))["policy"]["throttled"] is False
        wait_for(lambda: "got 1" in place.output)


async def test_a_rate_and_a_failure_are_counted_apart(tmp_path: Path, clock: ManualClock) -> None:
    """A retry has to wait for its turn, too, and the wait is none of its attempts."""

    @on(local("a"), rate="1/h", retries=1, max_age=86400)
    async def handler(n: int) -> None:
        raise ValueError(n)

    async with running(tmp_path, handler, clock=clock) as app:
        lane = app.engine.lanes["handler"]
        await put(app, "a", 1)
        await until(lambda: lane.failed == 1)
        await advance(clock, 30, lambda: lane.delayed == 1)
        await at_rest(app)
        assert lane.dead == 0
        for _ in range(10):
            clock.advance(900)
            await at_rest(app)
        await until(lambda: lane.dead == 1)
        await app.journal.flush()
        (letter,) = await app.journal.dead(LetterQuery())
        assert (letter.attempts, letter.reason) == (2, "RetriesExhausted")
