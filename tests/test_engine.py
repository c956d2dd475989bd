import asyncio
import gc
import logging
import sys
import threading
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest

from eventrouter import (
    App,
    Batch,
    Context,
    Depends,
    Event,
    Failed,
    Outcome,
    Reject,
    Retry,
    Succeeded,
    TimedOut,
    fixed,
    invoke,
    on,
    on_start,
    on_stop,
)
from eventrouter.clock import ManualClock
from eventrouter.errors import ConfigError, Throttled
from eventrouter.invoking import InvokeError
from eventrouter.journal.protocol import Letter, LetterQuery
from support import LocalSource, LocalTrigger, advance, event, local, put, running, until

MEMORY = "[journal]\nurl = 'memory'\n"
AT_ONCE = "[app]\ndrain = 0\n"  # a failing test with a clock that stands still must not wait for its handlers


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@asynccontextmanager
async def memory(folder: Path, *functions: Any, clock: ManualClock | None = None, toml: str = AT_ONCE) -> AsyncIterator[App]:
    async with running(folder, *functions, clock=clock, toml=MEMORY + toml) as app:
        yield app


async def letters(app: App) -> list[Letter]:
    await app.journal.flush()
    return await app.journal.dead(LetterQuery())


async def depth(app: App, name: str) -> dict[str, int]:
    await app.journal.flush()
    return {state: count for state, count in (await app.journal.depth()).get(name, {}).items() if count}


async def test_an_event_reaches_every_function_that_wants_it_once(tmp_path: Path) -> None:
    got: list[Any] = []

    @on(local("a/{x}"), local("a/{y}"))
    async def twice_marked(payload: Any, x: str = "", y: str = "") -> None:
        got.append(("twice_marked", payload, x + y))

    @on(local("a/1"))
    async def exact(payload: Any) -> None:
        got.append(("exact", payload))

    async with memory(tmp_path, twice_marked, exact) as app:
        assert await put(app, "a/1", {"n": 1}) == 2
        await until(lambda: len(got) == 2)
        assert sorted(got) == [("exact", {"n": 1}), ("twice_marked", {"n": 1}, "1")]
        assert await put(app, "nobody", 1) == 0
        assert app.engine.intake.unmatched == 1
        assert await depth(app, "exact") == {}
        assert (app.engine.lanes["exact"].accepted, app.engine.lanes["exact"].succeeded) == (1, 1)


async def test_a_repeat_of_source_and_id_runs_once(tmp_path: Path) -> None:
    got: list[Any] = []

    @on(local("a"))
    async def handler(payload: Any) -> None:
        got.append(payload)

    async with memory(tmp_path, handler) as app:
        assert [await put(app, "a", n, id="same") for n in range(3)] == [1, 0, 0]
        assert [await put(app, "a", n) for n in (7, 7)] == [1, 1]
        await until(lambda: len(got) == 3)
        assert (got, app.engine.intake.repeats) == ([0, 7, 7], 2)


async def test_failures_are_retried_by_policy_then_dead_then_redriven(tmp_path: Path, clock: ManualClock) -> None:
    attempts: list[int] = []
    broken = True

    @on(local("a"), retries=2, backoff=fixed(10))
    async def handler(payload: int, ctx: Context) -> None:
        attempts.append(ctx.attempt)
        if broken:
            raise ValueError(f"bad {payload}")

    async with memory(tmp_path, handler, clock=clock) as app:
        await put(app, "a", 5)
        await until(lambda: attempts == [1])
        for want in ([1, 2], [1, 2, 3]):
            await app.journal.flush()
            clock.advance(9.9)
            await app.journal.flush()
            assert attempts == want[:-1]
            await advance(clock, 0.2, lambda want=want: attempts == want)
        (letter,) = await letters(app)
        assert (letter.function, letter.reason, letter.attempts) == ("handler", "RetriesExhausted", 3)
        assert (letter.error_type, letter.error_message) == ("ValueError", "bad 5")
        assert (letter.event.subject, letter.event.json()) == ("a", 5)
        broken = False
        assert await app.engine.by_hand.redrive([letter.id]) == 1
        await until(lambda: attempts == [1, 2, 3, 1])
        assert await letters(app) == []
        assert await depth(app, "handler") == {}


async def test_dying_again_makes_a_new_letter(tmp_path: Path) -> None:
    @on(local("a"), retries=0)
    async def handler(payload: Any) -> None:
        raise ValueError

    async with memory(tmp_path, handler) as app:
        await put(app, "a")
        await until(lambda: app.engine.lanes["handler"].dead == 1)
        (first,) = await letters(app)
        await app.engine.by_hand.redrive([first.id])
        await until(lambda: app.engine.lanes["handler"].dead == 2)
        (second,) = await letters(app)
        assert second.id != first.id


async def test_what_a_handler_raises_decides(tmp_path: Path, clock: ManualClock) -> None:
    runs: list[str] = []

    @on(local("reject"))
    async def rejects(payload: Any) -> None:
        runs.append("reject")
        raise Reject("no such device")

    @on(local("retry"), retries=1)
    async def retries(payload: Any) -> None:
        runs.append("retry")
        raise Retry(after=500)

    @on(local("exit"), retries=0)
    async def exits(payload: Any) -> None:
        sys.exit("bye")

    @on(local("thread"), retries=0)
    def exits_in_thread(payload: Any) -> None:
        sys.exit("bye")

    @on(local("stop"), retries=0)
    def stops(payload: Any) -> None:
        raise StopIteration

    @on(local("cancelled"), retries=0)
    async def cancels(payload: Any) -> None:
        raise asyncio.CancelledError

    async with memory(tmp_path, rejects, retries, exits, exits_in_thread, stops, cancels, clock=clock) as app:
        for subject in ("reject", "retry", "exit", "thread", "stop", "cancelled"):
            await put(app, subject)
        await until(lambda: sum(lane.failed for lane in app.engine.lanes.values()) == 6)
        await app.journal.flush()
        await advance(clock, 500, lambda: runs.count("retry") == 2)
        await until(lambda: sum(lane.dead for lane in app.engine.lanes.values()) == 6)
        found = {letter.function: (letter.reason, letter.error_type) for letter in await letters(app)}
        assert found == {
            "rejects": ("Rejected", "Reject"),
            "retries": ("RetriesExhausted", "Retry"),
            "exits": ("RetriesExhausted", "SystemExit"),
            "exits_in_thread": ("RetriesExhausted", "SystemExit"),
            "stops": ("RetriesExhausted", "RuntimeError"),
            "cancels": ("RetriesExhausted", "CancelledError"),
        }


async def test_a_payload_that_does_not_validate_is_dead_at_once(tmp_path: Path) -> None:
    class Reading(msgspec.Struct):
        celsius: float

    ran = []

    @on(local("a"))
    async def handler(reading: Reading) -> None:
        ran.append(reading)

    async with memory(tmp_path, handler) as app:
        await put(app, "a", {"celsius": "warm"})
        await until(lambda: app.engine.lanes["handler"].dead)
        (letter,) = await letters(app)
        assert (letter.reason, letter.error_message, letter.attempts) == ("InvalidPayload", "$.celsius: expected float, got str", 1)
        assert not ran


async def test_a_time_out_cancels_the_handler_and_its_clock_starts_with_it(tmp_path: Path, clock: ManualClock) -> None:
    started: list[int] = []
    release = asyncio.Event()

    @on(local("a"), timeout=5, retries=0, concurrency=1)
    async def handler(payload: int) -> None:
        started.append(payload)
        await release.wait()

    async with memory(tmp_path, handler, clock=clock) as app:
        lane = app.engine.lanes["handler"]
        await put(app, "a", 1)
        await put(app, "a", 2)  # queues behind the first for all of its five seconds
        await until(lambda: started == [1])
        clock.advance(4.9)
        await asyncio.sleep(0)
        assert lane.timed_out == 0
        await advance(clock, 0.2, lambda: started == [1, 2])
        assert lane.timed_out == 1
        clock.advance(4.9)
        release.set()
        await until(lambda: lane.succeeded == 1)
        (letter,) = await letters(app)
        assert (letter.error_type, letter.error_message) == ("Sandbox.Timedout", "Task timed out after 5.00 seconds")


async def test_a_handler_that_refuses_to_end_is_unstoppable_and_keeps_its_slot(tmp_path: Path, clock: ManualClock) -> None:
    swallowed: list[int] = []
    release = asyncio.Event()

    @on(local("a"), timeout=5, retries=5, concurrency=1)
    async def handler(payload: int) -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                swallowed.append(payload)

    async with memory(tmp_path, handler, clock=clock) as app:
        lane = app.engine.lanes["handler"]
        await put(app, "a", 1)
        await until(lambda: lane.active == 1 and not lane.count)
        await advance(clock, 5, lambda: len(swallowed) == 1)
        assert lane.timed_out == 0, "no decision while it still runs"
        await advance(clock, 1, lambda: len(swallowed) == 2)
        await advance(clock, 1, lambda: lane.dead == 1)
        (letter,) = await letters(app)
        assert (letter.reason, letter.attempts) == ("Unstoppable", 1)
        await put(app, "a", 2)
        await app.journal.flush()
        await until(lambda: lane.count)
        assert lane.active == 1, "the second waits for the first's slot"
        release.set()
        await until(lambda: lane.succeeded == 1)


async def test_cleaning_up_after_a_time_out_is_let_finish(tmp_path: Path, clock: ManualClock) -> None:
    cleaned: list[str] = []
    started, gate = asyncio.Event(), asyncio.Event()

    @on(local("a"), timeout=5, retries=0)
    async def handler(payload: Any) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            await gate.wait()
            cleaned.append("yes")

    async with memory(tmp_path, handler, clock=clock) as app:
        await put(app, "a")
        await started.wait()
        clock.advance(5)
        await asyncio.sleep(0.01)
        gate.set()
        await until(lambda: app.engine.lanes["handler"].dead == 1)
        assert cleaned == ["yes"]
        assert (await letters(app))[0].reason == "RetriesExhausted"


async def test_a_thread_past_its_time_out_keeps_its_slot_and_is_reported(tmp_path: Path, clock: ManualClock) -> None:
    release = threading.Event()
    began = threading.Event()

    @on(local("a"), timeout=5, retries=5, concurrency=1)
    def handler(payload: int) -> None:
        began.set()
        release.wait(30)

    async with memory(tmp_path, handler, clock=clock) as app:
        lane = app.engine.lanes["handler"]
        await put(app, "a", 1)
        await until(began.is_set)
        for _ in range(3):
            clock.advance(5)
            await asyncio.sleep(0.01)
        await until(lambda: lane.dead == 1)
        assert (await letters(app))[0].reason == "Unstoppable"
        assert lane.active == 1
        release.set()
        await until(lambda: lane.active == 0)


async def test_a_thread_that_ends_soon_after_its_time_out_is_retried(tmp_path: Path, clock: ManualClock) -> None:
    release, runs = threading.Event(), []

    @on(local("a"), timeout=5, retries=1, backoff=fixed(1))
    def handler(payload: int) -> None:
        runs.append(payload)
        release.wait(30)

    async with memory(tmp_path, handler, clock=clock) as app:
        await put(app, "a", 1)
        await until(lambda: runs)
        clock.advance(5)
        await asyncio.sleep(0.01)
        release.set()
        await until(lambda: app.engine.lanes["handler"].timed_out == 1)
        await app.journal.flush()
        await advance(clock, 2, lambda: len(runs) == 2)
        await until(lambda: app.engine.lanes["handler"].succeeded == 1)


async def test_a_request_gets_its_answer_at_the_deadline_whatever_the_handler_does(tmp_path: Path, clock: ManualClock) -> None:
    release = asyncio.Event()

    @on(local("a", mode="request"), timeout=5, concurrency=1)
    async def stubborn(payload: Any) -> str:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        return "late"

    async with memory(tmp_path, stubborn, clock=clock) as app:
        router = app.sources["local"].router
        asked = asyncio.create_task(router.request(router.bindings[0], event("a")))  # type: ignore[arg-type]
        lane = app.engine.lanes["stubborn"]
        await until(lambda: lane.active == 1 and asked.done() is False)
        clock.advance(5)
        assert await asked == TimedOut(5)
        with pytest.raises(Throttled, match="all 1 slots"):
            await router.request(router.bindings[0], event("a"))
        assert lane.throttled == 1
        release.set()
        await until(lambda: lane.active == 0)
        assert await router.request(router.bindings[0], event("a")) == Succeeded("late")


async def test_requests_have_nothing_of_those_before_them(tmp_path: Path, clock: ManualClock) -> None:
    class Result:
        pass

    seen: ContextVar[str] = ContextVar("seen", default="")
    results: weakref.WeakSet[Result] = weakref.WeakSet()

    @on(local("a", mode="request"), timeout=5)
    async def handler(payload: Any) -> tuple[str, Result]:
        before, result = seen.get(), Result()
        seen.set(payload)
        results.add(result)
        await asyncio.sleep(0)
        if payload == "fails":
            raise ValueError(payload)
        if payload == "waits":
            await asyncio.Event().wait()
        return before, result

    async with memory(tmp_path, handler, clock=clock) as app:
        router, lane = app.sources["local"].router, app.engine.lanes["handler"]

        def ask(payload: str) -> asyncio.Task[Outcome]:
            return asyncio.create_task(router.request(router.bindings[0], event("a", payload)))  # type: ignore[arg-type]

        for _ in range(2):
            for outcome in await asyncio.gather(*(ask("works") for _ in range(3))):
                assert isinstance(outcome, Succeeded)
                assert outcome.result[0] == ""
            assert isinstance(await ask("fails"), Failed)
            late, left = ask("waits"), ask("waits")
            await until(lambda: lane.active == 2)
            await asyncio.sleep(0.01)
            left.cancel()
            with pytest.raises(asyncio.CancelledError):
                await left
            clock.advance(5)
            assert await late == TimedOut(5)
            assert lane.active == 0
        del outcome, late, left
        gc.collect()
        assert not results


async def test_request_outcomes_are_never_journalled(tmp_path: Path) -> None:
    @on(local("a", mode="request"))
    async def handler(payload: int) -> int:
        return 10 // payload

    async with memory(tmp_path, handler) as app:
        router = app.sources["local"].router
        assert await router.request(router.bindings[0], event("a", 5)) == Succeeded(2)
        failed = await router.request(router.bindings[0], event("a", 0))
        assert isinstance(failed, Failed)
        assert failed.error_type == "ZeroDivisionError"
        assert [line for line in failed.trace if "10 // payload" in line]
        assert not [line for line in failed.trace if "/eventrouter/" in line]
        invalid = await router.request(router.bindings[0], event("a", "x"))
        assert invalid == Failed("InvalidPayload", "$: expected int, got str", final=True)
        assert await app.journal.depth() == {}


async def test_reserved_concurrency_caps_and_the_rest_share(tmp_path: Path) -> None:
    running_now, peak = {"a": 0, "b": 0}, {"a": 0, "b": 0}
    gate = asyncio.Event()

    async def run(name: str) -> None:
        running_now[name] += 1
        peak[name] = max(peak[name], running_now[name])
        await gate.wait()
        running_now[name] -= 1

    @on(local("a"), concurrency=2)
    async def capped(payload: int) -> None:
        await run("a")

    @on(local("b"))
    async def shared(payload: int) -> None:
        await run("b")

    async with memory(tmp_path, capped, shared, toml=AT_ONCE + "concurrency = 105\n") as app:
        for n in range(5):
            await put(app, "a", n)
        for n in range(110):
            await put(app, "b", n)
        await until(lambda: running_now == {"a": 2, "b": 103})
        gate.set()
        await until(lambda: app.engine.lanes["shared"].succeeded == 110 and app.engine.lanes["capped"].succeeded == 5)
        assert peak == {"a": 2, "b": 103}
        await until(lambda: not any(lane.active for lane in app.engine.lanes.values()))


async def test_a_backlogged_function_does_not_starve_the_one_that_shares_its_pool(tmp_path: Path) -> None:
    order: list[str] = []

    @on(local("busy"))
    async def busy(payload: int) -> None:
        await asyncio.sleep(0)
        order.append("busy")

    @on(local("calm"))
    async def calm(payload: int) -> None:
        order.append("calm")

    async with memory(tmp_path, busy, calm, toml=AT_ONCE + "concurrency = 1\n") as app:
        source = app.sources["local"]
        assert isinstance(source, LocalSource)
        await source.router.deliver([event("busy", n) for n in range(500)] + [event("calm", 0)])
        await until(lambda: len(order) == 501)
        assert order.index("calm") < 250


async def test_reserved_concurrency_zero_closes_a_function(tmp_path: Path) -> None:
    @on(local("a"), concurrency=0)
    async def closed(payload: int) -> None: ...

    async with memory(tmp_path, closed) as app:
        await put(app, "a", 1)
        await until(lambda: app.engine.lanes["closed"].dead == 1)
        (letter,) = await letters(app)
        assert (letter.reason, letter.attempts) == ("ConcurrencyZero", 0)
        with pytest.raises(Throttled):
            await app.run_now("closed", event("a"), {})


async def test_each_attempt_has_its_own_context_variables(tmp_path: Path) -> None:
    var: ContextVar[int] = ContextVar("var", default=0)
    seen: list[int] = []

    @on(local("a"))
    async def handler(payload: int) -> None:
        seen.append(var.get())
        var.set(payload)
        await asyncio.sleep(0)
        seen.append(var.get())

    async with memory(tmp_path, handler, toml=AT_ONCE + "concurrency = 1\n") as app:
        for n in (1, 2):
            await put(app, "a", n)
        await until(lambda: len(seen) == 4)
        assert seen == [0, 1, 0, 2]


@pytest.mark.parametrize(("takes", "at_once"), [(0, 256), (0.0004, 4), (0.01, 2)])
async def test_handlers_that_never_wait_leave_the_loop_its_turns(tmp_path: Path, clock: ManualClock, takes: float, at_once: int) -> None:
    """After the first that begins a millisecond later, or 256 that take next to nothing."""
    done = 0

    @on(local("a"))
    async def handler(payload: int) -> None:
        nonlocal done
        done += 1
        clock.advance(takes)

    async with memory(tmp_path, handler, clock=clock) as app:
        source = app.sources["local"]
        assert isinstance(source, LocalSource)
        await source.router.deliver([event("a", n) for n in range(1000)])
        turns = []
        while done < 1000:
            before = done
            await asyncio.sleep(0)
            turns.append(done - before)
        assert max(turns) == at_once


async def test_what_waited_too_long_is_not_tried(tmp_path: Path, clock: ManualClock) -> None:
    runs: list[int] = []

    @on(local("a"), max_age=60, concurrency=1, timeout=100)
    async def handler(payload: int) -> None:
        runs.append(payload)
        await clock.sleep(61)

    async with memory(tmp_path, handler, clock=clock) as app:
        await put(app, "a", 1)
        await put(app, "a", 2)
        await until(lambda: runs == [1])
        await advance(clock, 61, lambda: app.engine.lanes["handler"].dead == 1)
        (letter,) = await letters(app)
        assert (letter.reason, letter.attempts, letter.event.json()) == ("EventAgeExceeded", 0, 2)
        assert runs == [1]


async def test_shutdown_puts_running_work_back_uncharged(tmp_path: Path) -> None:
    attempts: list[int] = []
    gate = asyncio.Event()

    @on(local("a"), retries=0, timeout=60)
    async def handler(payload: int, ctx: Context) -> None:
        attempts.append(ctx.attempt)
        await gate.wait()

    async with running(tmp_path, handler, toml=AT_ONCE) as app:
        for n in range(3):
            await put(app, "a", n)
        await until(lambda: len(attempts) == 3)
    gate.set()
    async with running(tmp_path, handler) as app:
        await until(lambda: app.engine.lanes["handler"].succeeded == 3)
        assert attempts == [1] * 6
        assert await letters(app) == []


async def test_shutdown_lets_running_handlers_finish(tmp_path: Path, clock: ManualClock) -> None:
    gate, started, ended = asyncio.Event(), asyncio.Event(), []

    @on(local("a"), timeout=60)
    async def handler(payload: int) -> None:
        started.set()
        await gate.wait()
        ended.append(payload)

    async with memory(tmp_path, handler, clock=clock, toml="") as app:
        await put(app, "a", 1)
        await started.wait()
        stopping = asyncio.create_task(app.stop())
        await asyncio.sleep(0.01)
        assert not stopping.done()
        gate.set()
        await stopping
        assert ended == [1]


async def test_an_interrupted_handler_that_finishes_anyway_is_done(tmp_path: Path) -> None:
    started = asyncio.Event()

    @on(local("a"), timeout=60)
    async def handler(payload: int) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return

    async with running(tmp_path, handler, toml=AT_ONCE) as app:
        await put(app, "a", 1)
        await started.wait()
    async with running(tmp_path, handler) as app:
        assert await app.journal.depth() == {}


async def test_work_of_a_function_that_has_gone_ends_as_a_dead_letter(tmp_path: Path) -> None:
    @on(local("a"), timeout=60)
    async def gone(payload: int) -> None:
        await asyncio.Event().wait()

    @on(local("b"))
    async def other(payload: int) -> None: ...

    async with running(tmp_path, gone, toml=AT_ONCE) as app:
        await put(app, "a", 1)
    async with running(tmp_path, other) as app:
        while not (found := await letters(app)):
            await asyncio.sleep(0.005)
        assert (found[0].function, found[0].reason, found[0].error_message) == (
            "gone", "NoSuchFunction", "this app has no function named 'gone'",
        )  # fmt: skip
        assert await app.engine.by_hand.redrive([found[0].id]) == 1
        while not (again := await letters(app)):
            await asyncio.sleep(0.005)
        assert again[0].id != found[0].id


async def test_work_whose_trigger_has_gone_ends_as_a_dead_letter(tmp_path: Path) -> None:
    @on(local("a"), name="f", timeout=60)
    async def before(payload: int) -> None:
        await asyncio.Event().wait()

    @on(local("b"), name="f")
    async def after(payload: int) -> None: ...

    async with running(tmp_path, before, toml=AT_ONCE) as app:
        await put(app, "a", 1)
    async with running(tmp_path, after) as app:
        await until(lambda: app.engine.lanes["f"].dead == 1)
        assert (await letters(app))[0].reason == "NoSuchTrigger"


async def test_captures_are_found_again_after_a_restart(tmp_path: Path) -> None:
    hold, got = True, []

    @on(local("a/{x}"), timeout=60)
    async def handler(payload: int, x: int) -> None:
        if hold:
            await asyncio.Event().wait()
        got.append((payload, x))

    async with running(tmp_path, handler, toml=AT_ONCE) as app:
        await put(app, "a/7", 1)
    hold = False
    async with running(tmp_path, handler):
        await until(lambda: got == [(1, 7)])


async def test_what_is_known_of_a_subject_holds_for_what_comes_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each event of a backlog would be matched anew, one by one. One that can't be ends by itself."""
    go, seen, count, broken = asyncio.Event(), 0, 10_000, False

    class Picky(LocalTrigger):
        def accepts(self, event: Event) -> bool:
            if broken and event.data == b"9876":
                raise ValueError("an odd one")
            return True

    @on(Picky("a/{x}"), concurrency=1, timeout=60)
    async def handler(payload: int, x: int) -> None:
        nonlocal seen
        await go.wait()
        seen += x

    async with memory(tmp_path, handler, toml=AT_ONCE) as app:
        slowly, ready = 0, app.engine._settlement.ready

        def counted(*arguments: Any) -> Any:
            nonlocal slowly
            slowly += 1
            return ready(*arguments)

        monkeypatch.setattr(app.engine._settlement, "ready", counted)
        await app.engine.deliver([event("a/1", number) for number in range(count)])
        assert app.engine.lanes["handler"].window < count
        broken = True
        go.set()
        await until(lambda: seen == count - 1)
        (letter,) = await app.journal.dead(LetterQuery())
        assert (letter.reason, letter.event.data) == ("Unreadable", b"9876")
        assert slowly < 100


async def test_life_cycle_and_dependencies(tmp_path: Path) -> None:
    steps: list[str] = []

    @on_start
    async def begin() -> None:
        steps.append("start")

    @on_start
    def begin_too() -> None:
        steps.append("start too")

    @on_stop
    def end() -> None:
        steps.append("stop")

    @on_stop
    async def end_too() -> None:
        steps.append("stop too")

    async def pool() -> AsyncIterator[str]:
        steps.append("pool")
        yield "pool"
        steps.append("pool closed")

    @on(local("a"))
    async def handler(payload: int, pool: Annotated[str, Depends(pool, scope="process")]) -> None:
        steps.append(f"run with {pool}")

    @on(local("a"))
    def threaded(payload: int, pool: Annotated[str, Depends(pool, scope="process")]) -> None:
        steps.append(f"run with {pool}")

    async with memory(tmp_path, begin, begin_too, handler, threaded, end, end_too) as app:
        await put(app, "a", 1)
        await until(lambda: steps.count("run with pool") == 2)
    assert steps == ["start", "start too", "pool", "run with pool", "run with pool", "pool closed", "stop too", "stop"]


async def test_a_failing_on_start_stops_the_start_and_lets_go(tmp_path: Path) -> None:
    @on_start
    def begin() -> None:
        raise RuntimeError("no database")

    @on(local("a"))
    async def handler(payload: int) -> None: ...

    with pytest.raises(RuntimeError, match="no database"):
        async with running(tmp_path, begin, handler):
            pass
    async with running(tmp_path, handler):
        pass


async def test_functions_invoke_each_other(tmp_path: Path) -> None:
    got: list[Any] = []

    @on()
    async def double(n: int) -> int:
        return n * 2

    @on()
    async def fails(n: int) -> None:
        raise ValueError("no")

    @on(local("a"))
    async def caller(n: int) -> None:
        got.append(await invoke("double", n))
        with pytest.raises(InvokeError, match="fails: ValueError: no"):
            await invoke("fails", n)
        with pytest.raises(ConfigError, match="no function is named 'doubel'; did you mean 'double'"):
            await invoke("doubel", n)

    @on(local("a"))
    def sync_caller(n: int) -> None:
        got.append(invoke.sync("double", n))

    async with memory(tmp_path, double, fails, caller, sync_caller) as app:
        await put(app, "a", 4)
        await until(lambda: sum(lane.succeeded for lane in app.engine.lanes.values()) == 4)
        assert got == [8, 8]


async def test_what_goes_wrong_is_logged_with_its_remedy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    @on(local("a"), retries=0)
    async def handler(payload: int) -> None:
        raise ValueError("bad")

    with caplog.at_level(logging.INFO, "eventrouter"):
        async with memory(tmp_path, handler) as app:
            await put(app, "a", 1)
            await until(lambda: app.engine.lanes["handler"].dead == 1)
            (letter,) = await letters(app)
    (record,) = [r for r in caplog.records if getattr(r, "action", "") == "invocation.dead"]
    assert (
        record.getMessage() == f"handler: dead letter {letter.id} (RetriesExhausted): ValueError: bad; `eventrouter dlq show {letter.id}`"
    )


async def test_a_key_keeps_its_order_in_a_batch_of_two_triggers(tmp_path: Path) -> None:
    got: list[list[int]] = []

    @on(local("a/{key}"), local("b/{key}"), order_by="key", batch=Batch(5, window=1))
    async def handler(payload: list[Any]) -> None:
        got.append(payload)

    clock = ManualClock()
    async with memory(tmp_path, handler, clock=clock) as app:
        await app.sources["local"].router.deliver([event(f"{place}/k", n) for n, place in enumerate("aabab")])
        await until(lambda: got == [[0, 1]])  # a full batch needs no window, the rest of it does
        for so_far in ([2], [3], [4]):
            await until(lambda: app.engine.lanes["handler"].ripening)
            await advance(clock, 1, lambda so_far=so_far: got and got[-1] == so_far)
        await app.journal.flush()
        assert await app.journal.depth() == {}


async def test_what_waits_behind_a_batch_of_its_key_costs_no_timer(tmp_path: Path) -> None:
    got: list[int] = []
    gate = asyncio.Event()

    @on(local("{key}"), order_by="key", batch=Batch(2))
    async def handler(payload: list[int]) -> None:
        await gate.wait()
        got.extend(payload)

    async with memory(tmp_path, handler, clock=ManualClock()) as app:
        lane = app.engine.lanes["handler"]
        await app.sources["local"].router.deliver([event("k", n) for n in range(5)])
        await until(lambda: lane.count == 3)
        assert lane.ripening is None
        gate.set()
        await until(lambda: got == [0, 1, 2, 3, 4])


async def test_a_policy_that_was_lowered_grants_no_more_attempts(tmp_path: Path, clock: ManualClock) -> None:
    ran: list[int] = []

    def made(retries: int) -> Any:
        @on(local("a"), retries=retries, backoff=fixed(10))
        async def handler(payload: Any) -> None:
            ran.append(retries)
            raise ValueError

        return handler

    async with running(tmp_path, made(5), clock=clock, toml=AT_ONCE) as app:
        await put(app, "a")
        for count in (1, 2, 3):
            await until(lambda count=count: len(ran) == count)
            await app.journal.flush()
            clock.advance(10.1)
        await until(lambda: len(ran) == 4)
        await app.journal.flush()
    async with running(tmp_path, made(1), clock=clock, toml=AT_ONCE) as app:
        clock.advance(10.1)
        await until(lambda: app.engine.lanes["handler"].dead == 1)
        (letter,) = await letters(app)
        assert (letter.reason, letter.attempts) == ("RetriesExhausted", 4)
    assert ran == [5] * 4


async def test_the_interpreter_is_as_before_once_the_router_has_stopped(tmp_path: Path) -> None:
    @on(local("a"))
    async def handler(n: int) -> None: ...

    def settings() -> Any:
        return sys.getswitchinterval(), gc.get_threshold()

    before = settings()
    async with running(tmp_path, handler):
        assert settings() != before
    assert settings() == before
