"""One attempt: arguments, handler, deadline, and what became of it."""

from __future__ import annotations

import asyncio
import inspect
import traceback
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from math import inf
from typing import Any

from eventrouter.batches import Malformed, PartialFailure, failed_items
from eventrouter.binding import BatchBinder, Binder, Dependencies
from eventrouter.clock import Clock
from eventrouter.errors import InvalidPayload, Reject, Retry
from eventrouter.functions import Function
from eventrouter.journal.protocol import Claim
from eventrouter.lanes import Lane
from eventrouter.model import Context, Event, Failed, Interrupted, Outcome, Succeeded, TimedOut
from eventrouter.runtimes.deadline import LeftRunning, Overrun, Slot, Sweeper, run
from eventrouter.runtimes.thread import ThreadRuntime


class Bound:
    """A batch whose events have been read: a binder that has its arguments."""

    __slots__ = ("_binder", "_rows", "depends", "needs_context")

    def __init__(self, binder: BatchBinder, rows: Sequence[Sequence[Any]]) -> None:
        self._binder = binder
        self._rows = rows
        self.depends = binder.depends
        self.needs_context = binder.needs_context

    def bind(self, event: Event, captures: Mapping[str, str], context: Context | None) -> tuple[Sequence[Any], dict[str, Any]]:
        return self._binder.all(self._rows, context)


class Attempts:
    """Runs handlers, each attempt under its function's time-out."""

    def __init__(self, clock: Clock) -> None:
        self.dependencies = Dependencies()
        self.sweeper = Sweeper(clock)
        self._clock = clock
        self._threads = ThreadRuntime()

    async def close(self) -> None:
        try:
            await self.dependencies.close()
        finally:
            self._threads.close()

    async def run(
        self, lane: Lane, binder: Binder | Bound, event: Event, captures: Mapping[str, str], of: Claim | str, attempt: int, slot: Slot
    ) -> Outcome:
        """Run the handler once. of: whose attempt it is, or the invocation's id."""
        function, limit = lane.function, lane.policy.timeout
        event.attempt = attempt
        deadline = self.sweeper.arm(slot, limit)
        try:
            context = None
            if binder.needs_context or binder.depends:
                id = of if isinstance(of, str) else of.id
                context = Context(function.name, id, deadline, self._clock.monotonic, function.policy.env, attempt)
            args, kwargs = binder.bind(event, captures, context)
            call: Coroutine[Any, Any, Any]
            if context is not None and binder.depends:
                call = self._call_with_dependencies(function, args, kwargs, event, context)
            elif function.is_async:
                call = function.handler(*args, **kwargs)
            else:
                call = self._call(function, args, kwargs)
            result = await run(call, slot, lane.suspended)
            if slot.expired:
                return TimedOut(limit)
            return Succeeded(result)
        except LeftRunning:
            return Interrupted() if slot.interrupted else TimedOut(limit, ended=slot.request)
        except (asyncio.CancelledError, Overrun) as error:
            if slot.interrupted:
                return Interrupted()
            if slot.expired:
                return TimedOut(limit)
            if slot.task.cancelling() or isinstance(error, Overrun):
                raise  # the caller of a request went away, or is itself a function that is over its limit
            return Failed("CancelledError", "the handler raised CancelledError though nobody cancelled it")
        except (Exception, SystemExit) as error:
            if slot.overran:
                return TimedOut(limit)
            # Of a batch, the events that it doesn't name have succeeded.
            return Succeeded(error) if isinstance(error, PartialFailure) and isinstance(binder, Bound) else failure(error)
        finally:
            slot.deadline = inf
            slot.overran = False
            if slot.expiries or slot.interrupted:
                for _ in range(slot.expiries + slot.interrupted):
                    slot.task.uncancel()
                slot.expiries = 0

    async def _call(self, function: Function, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if function.is_async:
            return await function.handler(*args, **kwargs)
        if function.isolation == "inline":
            return function.handler(*args, **kwargs)
        return await self._threads.run(function.handler, args, kwargs)

    async def _call_with_dependencies(
        self, function: Function, args: Sequence[Any], kwargs: dict[str, Any], event: Event, context: Context
    ) -> Any:
        wanted = function.binders[None].depends
        async with AsyncExitStack() as stack:
            return await self._call(function, args, {**kwargs, **await self.dependencies.resolve(wanted, stack, event, context)})


def read_batch(
    binder: BatchBinder, events: Sequence[Event], captures: Sequence[Mapping[str, str]]
) -> tuple[dict[int, Sequence[Any]], dict[int, Outcome]]:
    """By position, what the events are as arguments, and what is wrong with the others."""
    rows: dict[int, Sequence[Any]] = {}
    faults: dict[int, Outcome] = {}
    for place, (event, captured) in enumerate(zip(events, captures, strict=True)):
        try:
            rows[place] = binder.one(event, captured)
        except Exception as error:  # its own, or of what a plugin makes of it
            faults[place] = failure(error)
    return rows, faults


def outcomes_of(outcome: Outcome, ids: Sequence[str]) -> list[Outcome]:
    """What a batch's outcome means for each of its events. ids: theirs."""
    if not isinstance(outcome, Succeeded):
        return [outcome] * len(ids)
    try:
        failed = failed_items(outcome.result, ids)
    except Malformed as error:
        return [Failed("MalformedPartialFailure", f"the whole batch counts as failed: {error}")] * len(ids)
    why = str(outcome.result) if isinstance(outcome.result, PartialFailure) else "the handler named it in batchItemFailures"
    bad = Failed("PartialFailure", why)
    return [bad if place in failed else outcome for place in range(len(ids))]


def describe(outcome: Outcome) -> str:
    """One line for logs: `ValueError: no such device`."""
    if isinstance(outcome, Failed):
        return f"{outcome.error_type}: {outcome.error_message}" if outcome.error_message else outcome.error_type
    if isinstance(outcome, TimedOut):
        return f"timed out after {outcome.seconds:g} s" + ("" if outcome.ended else " and refused to end")
    return "interrupted" if isinstance(outcome, Interrupted) else "succeeded"


def failure(error: BaseException) -> Failed:
    """What a handler raised, as Lambda tells it: type, message, and the trace without the router's own frames."""
    if isinstance(error, Retry):
        return Failed("Retry", str(error), retry_after=error.after)
    if isinstance(error, InvalidPayload):
        return Failed("InvalidPayload", str(error), final=True)
    if isinstance(error, Reject):
        return Failed("Reject", str(error), final=True)
    trace = [
        line for frame in traceback.extract_tb(error.__traceback__) if not _ours(frame.filename) for line in traceback.format_list([frame])
    ]
    return Failed(type(error).__name__, str(error), trace)


_HERE = inspect.getfile(Attempts).rsplit("/", 1)[0] + "/"


def _ours(filename: str) -> bool:
    return filename.startswith(_HERE)
