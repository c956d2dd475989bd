"""Time, injected. The only module that reads the wall clock."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time as system_time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    def cancel(self) -> None: ...


class Clock(Protocol):
    """What the router knows of time; tests move a `ManualClock` instead of sleeping."""

    def time(self) -> float:
        """Seconds since 1970-01-01 UTC."""

    def monotonic(self) -> float:
        """Seconds from some fixed point; never jumps."""

    def call_later(self, delay: float, callback: Callable[[], object]) -> Timer:
        """Run `callback` on the event loop `delay` seconds from now, once."""

    async def sleep(self, delay: float) -> None: ...


class SystemClock:
    """The machine's clock and the running event loop's timers."""

    time = staticmethod(system_time.time)
    monotonic = staticmethod(system_time.monotonic)

    def call_later(self, delay: float, callback: Callable[[], object]) -> Timer:
        return asyncio.get_running_loop().call_later(max(0.0, delay), callback)

    async def sleep(self, delay: float) -> None:
        await asyncio.sleep(delay)


class ManualClock:
    """A clock that stands still until `advance` moves it; due timers run then, in order."""

    def __init__(self, start: float = 1_767_225_600.0) -> None:
        self._now = start
        self._set = 0.0  # by how much the wall clock was set
        self._timers: list[tuple[float, int, Callable[[], object] | None, _ManualTimer]] = []
        self._order = itertools.count()

    def time(self) -> float:
        return self._now + self._set

    def monotonic(self) -> float:
        return self._now

    def set(self, seconds: float) -> None:
        """Set the wall clock forward, or back; no time passes by that."""
        self._set += seconds

    def call_later(self, delay: float, callback: Callable[[], object]) -> Timer:
        timer = _ManualTimer()
        heapq.heappush(self._timers, (self._now + max(0.0, delay), next(self._order), callback, timer))
        return timer

    async def sleep(self, delay: float) -> None:
        due = asyncio.Event()
        timer = self.call_later(delay, due.set)
        try:
            await due.wait()
        finally:
            timer.cancel()

    def advance(self, seconds: float) -> None:
        """Move time on; every timer that comes due runs at its own moment."""
        end = self._now + seconds
        while self._timers and self._timers[0][0] <= end:
            at, _, callback, timer = heapq.heappop(self._timers)
            self._now = max(self._now, at)
            if callback is not None and not timer.cancelled:
                callback()
        self._now = end


class _ManualTimer:
    cancelled = False

    def cancel(self) -> None:
        self.cancelled = True
