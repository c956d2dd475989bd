"""When the watchdog speaks; what it does to handlers is in test_faults.py."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from math import inf
from typing import Any

import pytest

from eventrouter.clock import ManualClock
from eventrouter.runtimes.deadline import Slot
from eventrouter.runtimes.watchdog import Watchdog


async def step(handler: Callable[[], None], deadline: float = inf) -> None:
    async def coroutine() -> None:
        handler()

    task = asyncio.current_task()
    assert task is not None
    slot = Slot(task, "handler", request=False)
    slot.deadline = deadline
    assert slot.step(coroutine()) is slot
    if slot.error is not None:
        raise slot.error


async def test_it_repeats_itself_at_growing_intervals(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    watchdog = Watchdog(clock.monotonic)
    told: list[tuple[float, str]] = []

    def handler() -> None:
        begin = clock.monotonic()
        for _ in range(100):
            watchdog._look(sys._getframe())
            told.extend((clock.monotonic() - begin, record.levelname) for record in caplog.records)
            caplog.clear()
            clock.advance(0.125)

    await step(handler, clock.monotonic() + 3)
    assert told == [(0.5, "WARNING"), (1, "WARNING"), (2, "WARNING"), (4, "ERROR"), (8, "ERROR")]


async def test_many_short_steps_are_no_long_one(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    watchdog = Watchdog(clock.monotonic)
    for _ in range(20):
        await step(lambda: watchdog._look(sys._getframe()))
        clock.advance(0.4)
        watchdog._look(sys._getframe())
    assert not caplog.records


@pytest.fixture
def theirs() -> Any:
    heard: list[int] = []
    before = signal.signal(signal.SIGURG, lambda number, frame: heard.append(number))
    yield heard
    signal.signal(signal.SIGURG, before)


async def test_another_user_of_the_signal_still_gets_it(theirs: list[int]) -> None:
    handler = signal.getsignal(signal.SIGURG)
    watchdog = Watchdog(ManualClock().monotonic)
    watchdog.start()
    watchdog.start()
    signal.raise_signal(signal.SIGURG)
    assert theirs == [signal.SIGURG]
    watchdog.stop()
    assert signal.getsignal(signal.SIGURG) is handler


async def test_a_signal_that_comes_too_late_does_nothing() -> None:
    clock = ManualClock()
    watchdog = Watchdog(clock.monotonic)
    task = asyncio.current_task()
    assert task is not None
    watchdog._target = (Slot(task, "handler", request=False), 1)
    await step(lambda: watchdog._struck(signal.SIGURG, sys._getframe()), clock.monotonic() - 1)
    assert watchdog._target is None
