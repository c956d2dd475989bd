"""Runs one attempt of a handler under a deadline, on the event loop, with a contextvars context of its own."""

from __future__ import annotations

import asyncio
import contextvars
import types
from collections.abc import Callable, Coroutine, Generator
from math import inf
from typing import Any, Final, cast

from eventrouter.clock import Clock, Timer

GRACE = 1.0  # seconds between two cancellations of a handler that goes on
PATIENCE = 3  # cancellations, then it is abandoned


class Slot:
    """Where a deadline stands while a task runs a handler.

    function: whose handler it is. request: somebody waits for the answer, so a handler that goes on after
    its deadline is left at once.
    expiries: how often the deadline passed. interrupted: the router wants it to end.
    overran: `Overrun` was raised in it. steps: how many steps of handlers were made.
    keeper: what still runs of a handler that was left; its concurrency is free when that is done.
    """

    __slots__ = ("deadline", "expiries", "function", "interrupted", "keeper", "overran", "request", "steps", "task")

    def __init__(self, task: asyncio.Task[Any], function: str, request: bool) -> None:
        self.task = task
        self.function = function
        self.request = request
        self.deadline = inf
        self.expiries = 0
        self.interrupted = False
        self.overran = False
        self.steps = 0
        self.keeper: asyncio.Task[None] | None = None

    def interrupt(self) -> None:
        if self.deadline != inf and not self.interrupted:
            self.interrupted = True
            self.task.cancel()

    @property
    def expired(self) -> bool:
        return self.overran or self.expiries > 0

    @property
    def leave(self) -> bool:
        return self.interrupted or (self.expiries > 0 and self.request) or self.expiries >= PATIENCE


class Sweeper:
    """Cancels the tasks whose slot's deadline has passed: one timer for all, never one per event."""

    def __init__(self, clock: Clock) -> None:
        self.slots: set[Slot] = set()
        self._monotonic = clock.monotonic
        self._clock = clock
        self._next = inf
        self._timer: Timer | None = None

    def arm(self, slot: Slot, seconds: float) -> float:
        """Start the slot's clock; returns the deadline, in the clock's monotonic seconds."""
        deadline = slot.deadline = self._monotonic() + seconds
        if deadline < self._next:
            self._schedule(deadline)
        return deadline

    def _schedule(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next = at
        self._timer = self._clock.call_later(at - self._monotonic(), self._sweep)

    def _sweep(self) -> None:
        now = self._monotonic()
        self._next, self._timer = inf, None
        for slot in self.slots:
            if slot.deadline <= now:
                slot.expiries += 1
                slot.deadline = now + GRACE
                slot.task.cancel()
        earliest = min((slot.deadline for slot in self.slots), default=inf)
        if earliest != inf:
            self._schedule(earliest)


class Overrun(BaseException):  # else a handler's `except Exception` would swallow it
    """Raised in a handler whose one step went on past its deadline, by the watchdog; its slot has `overran` set."""


class LeftRunning(Exception):  # not an error of anybody's
    """The handler did not end; `Slot.keeper` runs what is left of it."""


@types.coroutine
def run(coroutine: Coroutine[Any, Any, Any], slot: Slot, suspended: Callable[[], object]) -> Generator[Any, Any, Any]:
    """Await `coroutine` in a context of its own; `suspended` is called if it has to wait for anything.

    Raises what it raises; LeftRunning when it goes on although its slot wants to leave.
    """
    # Stepped by hand: a task per event would cost ten times as much, and only so can a handler that
    # swallows its cancellation be seen to go on, and be parted from the task it runs in.
    context = contextvars.copy_context()
    slot.steps += 1
    try:
        waits_for = context.run(coroutine.send, None)
    except StopIteration as stop:
        return stop.value
    suspended()
    return (yield from _steps(coroutine, context, waits_for, slot))


@types.coroutine
def _steps(
    coroutine: Coroutine[Any, Any, Any], context: contextvars.Context, waits_for: Any, slot: Slot, left: bool = False
) -> Generator[Any, Any, Any]:
    while True:
        try:
            try:
                value = yield waits_for
            except BaseException as error:  # handed on to the handler, whatever it is
                slot.steps += 1
                waits_for = context.run(coroutine.throw, error)
                if slot.leave and not left:
                    keep = _keep(coroutine, context, waits_for, slot.function)
                    slot.keeper = asyncio.get_running_loop().create_task(keep, name="left running")
                    raise LeftRunning from None
            else:
                slot.steps += 1
                waits_for = context.run(coroutine.send, value)
        except StopIteration as stop:
            return stop.value


async def _keep(coroutine: Coroutine[Any, Any, Any], context: contextvars.Context, waits_for: Any, function: str) -> None:
    task = asyncio.current_task()
    assert task is not None
    slot = Slot(task, function, request=False)
    slot.deadline = 0.0  # long past: should it block the loop, the watchdog need not wait
    try:
        await _steps(coroutine, context, waits_for, slot, left=True)
    except (Exception, SystemExit, asyncio.CancelledError, Overrun):  # its outcome was settled when it was left
        pass


# Code whose frames hold a `slot` and have what they step on top of them, for whoever reads the stack.
STEPPERS: Final = tuple(cast(types.FunctionType, stepper).__code__ for stepper in (run, _steps))
