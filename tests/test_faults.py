"""What handlers can do to a router, and that it goes on: real clocks, real files, short time-outs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eventrouter import App, Failed, Succeeded, TimedOut, fixed, invoke, on
from eventrouter.clock import SystemClock
from eventrouter.journal.protocol import Letter, LetterQuery
from eventrouter.operations import Operations
from served import Place, wait_for
from support import event, local, put, running, until

MEMORY = "[journal]\nurl = 'memory'\n"


async def letter(app: App, name: str) -> Letter:
    """The one dead letter of a function, when it has died."""
    await until(lambda: app.engine.lanes[name].dead == 1)
    await app.journal.flush()
    (found,) = await app.journal.dead(LetterQuery(name))
    return found


def blocked(caplog: pytest.LogCaptureFixture, name: str) -> list[logging.LogRecord]:
    return [r for r in caplog.records if getattr(r, "action", "") == "loop.blocked" and getattr(r, "function", "") == name]


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """None of a router's signal handlers outlives it."""
    yield
    assert signal.getsignal(signal.SIGURG) == signal.SIG_DFL


def spin() -> None:
    while True:
        pass


def doze() -> None:
    time.sleep(60)


def wait_for_a_lock() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


@pytest.mark.parametrize("block", [spin, doze, wait_for_a_lock])
async def test_a_handler_that_blocks_the_loop_is_named_and_ended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, block: Callable[[], None]
) -> None:
    others: list[int] = []

    @on(local("a"), timeout=0.3, retries=1, backoff=fixed(0))
    async def blocks(payload: Any) -> None:
        block()

    @on(local("b"))
    async def other(payload: int) -> None:
        others.append(payload)

    async with running(tmp_path, blocks, other, toml=MEMORY) as app:
        await put(app, "a")
        died = await letter(app, "blocks")
        assert (died.reason, died.attempts, died.error_type) == ("RetriesExhausted", 2, "Sandbox.Timedout")
        assert died.error_message == "Task timed out after 0.30 seconds"
        await put(app, "b", 7)
        await until(lambda: others == [7])
        assert app.engine.lanes["blocks"].active == 0
    told = blocked(caplog, "blocks")
    assert [record.levelno for record in told] == [logging.ERROR] * 2, "one word for each attempt"
    assert "blocks has blocked the event loop for" in told[0].message
    assert f"in {block.__name__}\n" in told[0].message
    assert "in blocks\n" in told[0].message
    assert "/eventrouter/" not in told[0].message


async def test_a_step_that_is_long_but_in_time_is_only_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    named = threading.Event()

    class Hears(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if getattr(record, "action", "") == "loop.blocked":
                named.set()

    @on(local("a"), timeout=60)
    async def slow(payload: Any) -> None:
        assert named.wait(30)

    hears = Hears()
    logging.getLogger("eventrouter").addHandler(hears)
    try:
        async with running(tmp_path, slow, toml=MEMORY) as app:
            await put(app, "a")
            await until(lambda: app.engine.lanes["slow"].succeeded == 1)
    finally:
        logging.getLogger("eventrouter").removeHandler(hears)
    (record,) = blocked(caplog, "slow")
    assert record.levelno == logging.WARNING
    assert "named.wait(30)" in record.message


async def test_what_swallows_its_interruption_gets_it_again(tmp_path: Path) -> None:
    swallowed: list[str] = []

    @on(local("a"), timeout=0.2, retries=0)
    async def stubborn(payload: Any) -> None:
        try:
            spin()
        except BaseException as error:
            swallowed.append(type(error).__name__)
        spin()

    @on(local("b"), timeout=0.2, retries=0)
    async def wraps(payload: Any) -> None:
        try:
            spin()
        except BaseException as error:
            raise ValueError("the library failed") from error

    @on(local("c"), timeout=0.2, retries=0)
    async def returns(payload: Any) -> str:
        with contextlib.suppress(BaseException):
            spin()
        return "too late"

    @on(local("d"), timeout=0.2, retries=0)
    async def cleans_up(payload: Any) -> None:
        try:
            spin()
        finally:
            await asyncio.sleep(0.01)
            swallowed.append("cleaned up")

    async with running(tmp_path, stubborn, wraps, returns, cleans_up, toml=MEMORY) as app:
        for subject, name in (("a", "stubborn"), ("b", "wraps"), ("c", "returns"), ("d", "cleans_up")):
            await put(app, subject)
            died = await letter(app, name)
            assert (died.reason, died.error_type) == ("RetriesExhausted", "Sandbox.Timedout"), name
    assert swallowed == ["Overrun", "cleaned up"]


async def test_a_later_step_and_a_def_on_the_loop_are_ended_too(tmp_path: Path) -> None:
    @on(local("a"), timeout=0.2, retries=0)
    async def later(payload: Any) -> None:
        await asyncio.sleep(0.01)
        spin()

    @on(local("b"), timeout=0.2, retries=0, isolation="inline")
    def on_the_loop(payload: Any) -> None:
        spin()

    @on(local("c"), timeout=0.2, retries=0)
    async def after_its_cancellation(payload: Any) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            spin()

    async with running(tmp_path, later, on_the_loop, after_its_cancellation, toml=MEMORY) as app:
        for subject, name in (("a", "later"), ("b", "on_the_loop"), ("c", "after_its_cancellation")):
            await put(app, subject)
            assert (await letter(app, name)).error_type == "Sandbox.Timedout"


async def test_what_was_left_running_can_not_block_the_loop_either(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    @on(local("a"), timeout=0.2, retries=5)
    async def zombie(payload: Any) -> None:
        for _ in range(3):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
        # No time-out of asyncio's: begun in the step in which the handler is left, it would be of the task that has left it.
        await asyncio.sleep(0.01)
        spin()

    async with running(tmp_path, zombie, toml=MEMORY) as app:
        await put(app, "a")
        assert (await letter(app, "zombie")).reason == "Unstoppable"
        await until(lambda: app.engine.lanes["zombie"].active == 0)
    assert blocked(caplog, "zombie")


async def test_a_request_that_blocks_is_a_time_out_and_one_that_invokes_a_blocker_too(tmp_path: Path) -> None:
    @on(local("a", mode="request"), timeout=0.2)
    async def blocks(payload: Any) -> None:
        spin()

    @on(timeout=60)
    async def patient(payload: Any) -> None:
        spin()

    @on(local("b", mode="request"), timeout=0.2)
    async def invokes(payload: Any) -> None:
        await invoke("patient")

    @on(local("c", mode="request"), timeout=3)
    async def fine(payload: Any) -> str:
        return "fine"

    async with running(tmp_path, blocks, patient, invokes, fine, toml=MEMORY) as app:
        router = app.sources["local"].router
        binding = {binding.function.name: binding for binding in router.bindings}
        assert await router.request(binding["blocks"], event("a")) == TimedOut(0.2)
        assert await router.request(binding["invokes"], event("b")) == TimedOut(0.2)
        assert await router.request(binding["fine"], event("c")) == Succeeded("fine")
        assert [lane.active for lane in app.engine.lanes.values()] == [0] * 4


async def test_the_routers_own_code_is_never_broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []

    @on(local("a"), timeout=0.2, retries=0)
    async def publishes(payload: Any) -> None:
        put(app, "slow")

    async with running(tmp_path, publishes, toml=MEMORY) as app:
        real, clock = app.engine.deliver, SystemClock()

        def slow(events: Any) -> Any:
            if events[0].subject == "slow":
                end = clock.monotonic() + 0.8
                while clock.monotonic() < end:
                    pass
                ended.append("whole")
            return real(events)

        # As if it were of the engine's file: it is by this that the router's code is known.
        slow.__code__ = slow.__code__.replace(co_filename=type(app.engine).start.__code__.co_filename)
        monkeypatch.setattr(app.engine, "deliver", slow)
        await put(app, "a")
        await until(lambda: ended)


def test_where_the_loop_is_not_on_the_main_thread_blockers_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    gate = threading.Event()

    @on(local("a"), timeout=0.2, retries=0)
    async def blocks(payload: Any) -> None:
        gate.wait(60)

    async def main() -> None:
        async with running(tmp_path, blocks, toml=MEMORY) as app:
            await put(app, "a")
            await until(lambda: app.engine.lanes["blocks"].succeeded == 1)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    try:
        wait_for(lambda: blocked(caplog, "blocks"))
    finally:
        gate.set()
        thread.join()
    assert blocked(caplog, "blocks")[0].levelno == logging.ERROR


async def test_recursion_without_end_is_a_failure(tmp_path: Path) -> None:
    def deeper(n: int) -> int:
        return deeper(n + 1) + 1

    @on(local("a"), retries=0)
    async def recurses(payload: Any) -> None:
        deeper(0)

    async with running(tmp_path, recurses, toml=MEMORY) as app:
        await put(app, "a")
        assert (await letter(app, "recurses")).error_type == "RecursionError"
        outcome = await app.run_now("recurses", event("a"), {})
        assert isinstance(outcome, Failed)
        assert len(outcome.trace) < 2000


async def test_a_handler_that_never_returns_is_ended_at_its_limit(tmp_path: Path) -> None:
    @on(local("a"), timeout=0.2, retries=0)
    async def forever(payload: Any) -> None:
        await asyncio.get_running_loop().create_future()

    async with running(tmp_path, forever, toml=MEMORY) as app:
        await put(app, "a")
        assert (await letter(app, "forever")).error_type == "Sandbox.Timedout"
        assert app.engine.lanes["forever"].active == 0


@pytest.mark.parametrize("chunk", [100, 100_000, 100_000_000])
async def test_a_handler_that_prints_a_lot_does_not_fill_the_memory(tmp_path: Path, chunk: int) -> None:
    @on(timeout=60)
    def prints(payload: Any) -> None:
        print("beginning")
        for _ in range(min(1000, 100_000_000 // chunk)):
            print("x" * chunk)
        print("end")

    async with running(tmp_path, prints, toml=MEMORY) as app:
        tracemalloc.start()
        try:
            answer = await Operations(app, echo=False).invoke("prints", "{}", {})
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 16_000_000 + chunk, "bytes, and the text that the handler itself made"
    logs = answer["logs"]
    assert logs.endswith("x\nend\n")
    if chunk > 100:
        assert len(logs) < 300_000
        total = len("beginning\nend\n") + (chunk + 1) * min(1000, 100_000_000 // chunk)
        assert logs.startswith(f"[the first {total - 262_144:,} characters were left out; these are the last 262,144]\n")
    else:
        assert logs.startswith("beginning\n")


LOOP: list[Any] = []
LOOP.append(LOOP)


@pytest.mark.parametrize("result", [object(), "\ud800", {(1, 2): 3}, LOOP], ids=["object", "surrogate", "key", "loop"])
async def test_a_result_that_json_cannot_say_is_a_marshal_error(tmp_path: Path, result: Any) -> None:
    @on()
    async def odd(payload: Any) -> Any:
        return result

    async with running(tmp_path, odd, toml=MEMORY) as app:
        answer = await Operations(app).invoke("odd", "{}", {})
    assert answer["status"] == "failed"
    assert answer["error"]["errorType"] == "Runtime.MarshalError"
    assert answer["error"]["errorMessage"].startswith("Unable to marshal response: ")


def test_invoke_tells_of_both(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "from eventrouter import on\n\n@on(timeout=60)\ndef prints(x):\n"
        '    for _ in range(1000):\n        print("x" * 100_000)\n    return object()\n'
    )
    (tmp_path / "eventrouter.toml").write_text("[http]\nport = 0\n")
    with Place(tmp_path) as place:
        for online in (False, True):
            if online:
                place.serve()
            done = place.result("invoke", "prints")
            assert done.returncode == 1
            assert json.loads(done.stdout)["errorType"] == "Runtime.MarshalError"
            assert "characters were left out" in done.stderr
            assert len(done.stderr) < 300_000
