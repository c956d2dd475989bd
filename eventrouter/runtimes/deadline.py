"""Runs one attempt of a handler under a deadline, on the event loop, with a contextvars context of its own."""

from __future__ import annotations

import asyncio
import contextvars
import types
from collections.abc import Callable, Generator
from math import inf
from typing import Any, Final, cast

from eventrouter.clock import Clock, Timer

GRACE = 1.0  # seconds between two cancellations of a handler that goes on
PATIENCE = 3  # cancellations, then it is abandoned


_NOTHING: Final = contextvars.Context()


class Slot:
    """Where a deadline stands while a task runs a handler.

    function: whose handler it is. request: somebody waits for the answer, so a handler that goes on after
    its deadline is left at once.
    expiries: how often the deadline passed. interrupted: the router wants it to end.
    overran: `Overrun` was raised in it. steps: how many steps of handlers were made.
    began: when the attempt did, in monotonic seconds, and 0 before. init: seconds that its environment took to start.
    keeper: what still runs of a handler that was left; its concurrency is free when that is done.
    step, throw: of its `stepper`. result, error: of what ended last. context, waits_for: of what has begun and waits.
    """

    __slots__ = (
        "began", "context",
        "deadline", "error", "expiries", "function", "init", "interrupted", "keeper", "overran", "request", "result", "step", "steps",
        "task", "throw", "waits_for",
    )  # fmt: skip

    def __init__(self, task: asyncio.Task[Any], function: str, request: bool) -> None:
        self.task = task
        self.function = function
        self.request = request
        self.deadline = inf
        self.began = self.init = 0.0
        self.expiries = 0
        self.interrupted = False
        self.overran = False
        self.steps = 0
        self.keeper: asyncio.Task[None] | None = None
        self.result: Any = None
        self.error: BaseException | None = None
        self.context: contextvars.Context
        self.waits_for: Any
        generator = stepper(self)
        generator.send(None)
        self.step: Callable[[Any], Any] = generator.send
        self.throw: Callable[[BaseException], Any] = generator.throw

    def reuse(self, task: asyncio.Task[Any], function: str, *, request: bool) -> None:
        """Making one costs as much as running a handler."""
        self.task, self.function, self.request = task, function, request
        self.began = self.init = 0.0

    def spare(self) -> bool:
        """It is at rest; whether it may be used again."""
        del self.task  # which has its result
        self.result = self.waits_for = None
        self.context = _NOTHING
        return not (self.overran or self.expiries or self.interrupted)

    def close(self) -> None:
        """It is used no more. It would be garbage that only the collector finds."""
        del self.step, self.throw

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
        self.next = inf  # when it looks again
        self._timer: Timer | None = None

    def schedule(self, at: float) -> None:
        """To be called for a deadline that is before `next`."""
        if self._timer is not None:
            self._timer.cancel()
        self.next = at
        self._timer = self._clock.call_later(at - self._monotonic(), self._sweep)

    def _sweep(self) -> None:
        now = self._monotonic()
        self.next, self._timer = inf, None
        for slot in self.slots:
            if slot.deadline <= now:
                slot.expiries += 1
                slot.deadline = now + GRACE
                slot.task.cancel()
        earliest = min((slot.deadline for slot in self.slots), default=inf)
        if earliest != inf:
            self.schedule(earliest)


class Overrun(BaseException):  # else a handler's `except Exception` would swallow it
    """Raised in a handler whose one step went on past its deadline, by the watchdog; its slot has `overran` set."""


class LeftRunning(Exception):  # not an error of anybody's
    """The handler did not end; `Slot.keeper` runs what is left of it."""


@types.coroutine
def stepper(slot: Slot) -> Generator[Any, Any, None]:
    """Runs the coroutines that it is sent, one after another; yields what they wait for, and `slot` when one has ended.

    What came of it is then the slot's `result` or `error`.
    """
    # Stepped by hand: a task per event would cost ten times as much, and only so can a handler that swallows its
    # cancellation be seen to go on, and be parted from the task it runs in. From a generator of our own, as a
    # coroutine's end costs its `send` a StopIteration, three times what `yield from` takes for it.
    while True:
        coroutine = yield slot
        slot.steps += 1
        try:
            slot.result = yield from coroutine
        except (Exception, SystemExit, asyncio.CancelledError, Overrun) as error:
            slot.error = error


@types.coroutine
def finish(slot: Slot) -> Generator[Any, Any, None]:
    """Go on with what the slot's `step` has begun, and what waits in its `context`, until it has ended.

    Raises LeftRunning when it goes on although its slot wants to leave.
    """
    run, step, throw = slot.context.run, slot.step, slot.throw
    waits_for = slot.waits_for
    while waits_for is not slot:
        try:
            value = yield waits_for
        except BaseException as error:  # handed on to the handler, whatever it is
            slot.steps += 1
            waits_for = run(throw, error)
            if slot.leave and waits_for is not slot and slot.keeper is None:
                slot.waits_for = waits_for
                slot.keeper = asyncio.get_running_loop().create_task(_keep(slot), name="left running")
                slot.keeper.add_done_callback(lambda task: slot.close())  # even if it never began
                raise LeftRunning from None
        else:
            slot.steps += 1
            waits_for = run(step, value)


async def _keep(slot: Slot) -> None:
    task = asyncio.current_task()
    assert task is not None
    slot.task = task
    slot.deadline = 0.0  # long past: should it block the loop, the watchdog need not wait
    await finish(slot)  # its outcome was settled when it was left


# Code whose frames hold a `slot` and have what they step on top of them, for whoever reads the stack.
STEPPERS: Final = tuple(cast(types.FunctionType, function).__code__ for function in (stepper, finish))
