"""One attempt: arguments, handler, deadline, and what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from contextvars import copy_context
from itertools import repeat
from math import inf
from typing import Any

from eventrouter.batches import Malformed, PartialFailure, failed_items
from eventrouter.binding import BatchBinder, Binder, Dependencies
from eventrouter.clock import Clock
from eventrouter.crashpoints import ARMED
from eventrouter.errors import Throttled
from eventrouter.functions import Function
from eventrouter.journal.protocol import Claim
from eventrouter.lanes import Callers, Found, Lane
from eventrouter.lineage import set_cause
from eventrouter.logs import STEP, Log, current, wanted
from eventrouter.model import Context, Event, Failed, Interrupted, Outcome, Stream, Succeeded, TimedOut
from eventrouter.runtimes.deadline import LeftRunning, Overrun, Slot, Sweeper, finish
from eventrouter.runtimes.environments import HasFailed, NoEnvironment
from eventrouter.runtimes.failures import failure
from eventrouter.runtimes.frames import Job
from eventrouter.runtimes.process import ProcessRuntime
from eventrouter.runtimes.programs import INIT
from eventrouter.runtimes.streams import collect, consume, is_streamed, streamed, with_chunks
from eventrouter.runtimes.thread import ThreadRuntime

# A claim, what it is for if an attempt at it has begun, and what came of that; no outcome: its handler waits for something.
Stop = tuple[Claim, Found | None, Outcome | None]
_SPRINT = 0.001  # seconds that handlers which never wait may have the loop for, one after another
SUCCEEDED = Succeeded()  # where nobody asks what the result was


class Bound:
    """A batch whose events have been read: a binder that has its arguments. of: what `events` and their captures were read by."""

    __slots__ = ("_rows", "depends", "events", "needs_context", "of")

    def __init__(self, binder: BatchBinder, rows: Sequence[Sequence[Any]], events: Sequence[tuple[Event, Mapping[str, str]]]) -> None:
        self.of = binder
        self._rows = rows
        self.events = events
        self.depends = binder.depends
        self.needs_context = binder.needs_context

    def bind(self, event: Event, captures: Mapping[str, str], context: Context | None) -> tuple[Sequence[Any], dict[str, Any]]:
        return self.of.all(self._rows, context)


class Attempts:
    """Runs handlers, each attempt under its function's time-out. step: of what is billed, milliseconds."""

    def __init__(self, clock: Clock, processes: ProcessRuntime | None = None, step: int = STEP) -> None:
        self.dependencies = Dependencies()
        self.sweeper = Sweeper(clock)
        self._monotonic = clock.monotonic
        self._threads = ThreadRuntime()
        self._processes = processes
        self._step = step

    async def close(self) -> None:
        try:
            await self.dependencies.close()
        finally:
            self._threads.close()

    def begin(
        self,
        lane: Lane,
        binder: Binder | Bound,
        event: Event,
        captures: Mapping[str, str],
        of: Claim | str,
        attempt: int,
        slot: Slot,
        now: float,
        stream: Stream | None = None,
    ) -> Outcome | None:
        """Start the handler; what became of it, or None: it waits for something, and `finish` goes on.

        of: whose attempt it is, or the invocation's id. now: monotonic seconds. stream: see `Router.request`.
        The slot's deadline is the caller's to end when it has succeeded.
        """
        function = lane.function
        event.attempt = attempt
        deadline = slot.deadline = now + lane.policy.timeout
        if deadline < self.sweeper.next:
            self.sweeper.schedule(deadline)
        try:
            call: Coroutine[Any, Any, Any]
            if function.isolation == "process":
                slot.began = 0.0
                call = self._isolated(lane, binder, event, captures, of if isinstance(of, str) else of.id, slot, stream)
            else:
                context = None
                if binder.needs_context or binder.depends:
                    id = of if isinstance(of, str) else of.id
                    context = Context(function.name, id, deadline, self._monotonic, function.env, attempt, function.decrypt)
                slot.began = now
                args, kwargs = binder.bind(event, captures, context)
                if lane.plain:
                    call = function.handler(*args, **kwargs)
                    if stream is not None:
                        call = streamed(stream, call)
                else:
                    call = self._call(function, args, kwargs, event, context, stream)
                    if function.logs and (log := self._log(function, of if isinstance(of, str) else of.id)) is not None:
                        call = _logged(log, call)
        except (Exception, SystemExit) as error:
            slot.error = error
            return self._ended(lane, binder, slot)
        # A context of its own for each attempt: what one sets is not to be seen by the next.
        scope = copy_context()
        waits_for = scope.run(slot.step, call)
        if waits_for is not slot:
            slot.context, slot.waits_for = scope, waits_for
            if not slot.request:
                lane.suspended()
            return None
        if slot.error is not None or slot.overran:
            return self._ended(lane, binder, slot)
        return SUCCEEDED if lane.forgets and not slot.request else Succeeded(slot.result)

    def sprinter(self, lane: Lane, slot: Slot, mark: Callable[[Claim | None], None], done: list[Claim]) -> Callable[[int], Stop | None]:
        """What does as `begin` does for claims of a lane's queue, with as little as most of them need.

        Until `done` has so many, or a millisecond has passed; those that succeeded at once are added to it.
        It stops before a claim that needs more, and after one that came to something else. mark: see `Journal.marker`.
        """
        function, timeout, max_age, queue = lane.function, lane.policy.timeout, lane.policy.max_age, lane.queue
        sweeper, step, monotonic, popleft, did = self.sweeper, slot.step, self._monotonic, lane.queue.popleft, done.append
        if (callers := lane.callers) is None:
            callers = lane.callers = _callers(lane)

        def sprint(count: int) -> Stop | None:
            if not callers:
                return popleft(), None, None
            now = monotonic()
            oldest = now - max_age  # what comes to be too old meanwhile has come to its turn
            enough = now + timeout + _SPRINT
            if now + timeout < sweeper.next:  # nor has any later one an earlier deadline
                sweeper.schedule(now + timeout)
            for _ in repeat(None, min(count - len(done), len(queue))):
                claim = popleft()
                found = claim.hint
                if found is None or claim.attempts or claim.key is not None or claim.born < oldest:
                    return claim, None, None
                trigger, captures = found
                mark(claim)
                set_cause(claim)
                claim.began = began = monotonic()
                deadline = slot.deadline = began + timeout
                try:
                    coroutine = callers[trigger](claim.event, captures)
                except (Exception, SystemExit):
                    return claim, None, None  # binding it in full says what is wrong with it
                scope = copy_context()
                waits_for = scope.run(step, coroutine)
                if waits_for is not slot:
                    slot.context, slot.waits_for, slot.began = scope, waits_for, began
                    lane.suspended()
                    return claim, found, None
                if slot.error is not None or slot.overran:
                    slot.began = began
                    return claim, found, self._ended(lane, function.binders[trigger], slot)
                did(claim)
                if deadline > enough:
                    break
            return None

        return sprint

    async def finish(self, lane: Lane, binder: Binder | Bound, slot: Slot) -> Outcome:
        """What becomes of the attempt that `begin` began."""
        try:
            await finish(slot)
        except LeftRunning:
            left = Interrupted() if slot.interrupted else TimedOut(lane.policy.timeout, ended=slot.request)
            _rest(slot)
            return left
        if slot.error is None and not slot.expired:
            slot.deadline = inf
            return Succeeded(slot.result)
        return self._ended(lane, binder, slot)

    async def run(
        self,
        lane: Lane,
        binder: Binder | Bound,
        event: Event,
        captures: Mapping[str, str],
        of: Claim | str,
        attempt: int,
        slot: Slot,
        stream: Stream | None = None,
    ) -> Outcome:
        """`begin` and `finish`."""
        try:
            outcome = self.begin(lane, binder, event, captures, of, attempt, slot, self._monotonic(), stream)
            return outcome if outcome is not None else await self.finish(lane, binder, slot)
        finally:
            slot.deadline = inf

    @staticmethod
    def _ended(lane: Lane, binder: Binder | Bound, slot: Slot) -> Outcome:
        """What it means that the handler has ended so. Raises what is meant for the task that it runs in."""
        error, slot.error = slot.error, None
        try:
            if error is None:
                return TimedOut(lane.policy.timeout) if slot.expired else Succeeded(slot.result)
            if isinstance(error, asyncio.CancelledError | Overrun):
                if slot.interrupted:
                    return Interrupted()
                if slot.expired and isinstance(error, NoEnvironment):
                    if slot.request:
                        raise Throttled(str(error))
                    return Interrupted()
                if slot.expired:
                    return TimedOut(lane.policy.timeout)
                if slot.task.cancelling() or isinstance(error, Overrun):
                    raise error  # the caller of a request went away, or is itself a function that is over its limit
                return Failed("CancelledError", "the handler raised CancelledError though nobody cancelled it")
            if slot.overran:
                return TimedOut(lane.policy.timeout)
            # Of a batch, the events that it doesn't name have succeeded.
            if isinstance(error, HasFailed):
                return error.outcome
            return Succeeded(error) if isinstance(error, PartialFailure) and isinstance(binder, Bound) else failure(error)
        finally:
            _rest(slot)
            del error  # its traceback holds this frame

    def _log(self, function: Function, id: str) -> Log | None:
        """Where it goes what the invocation prints, if not to standard output."""
        log = current.get()
        if log is not None and log.id == id:  # somebody waits for it
            return log
        return (
            Log(function.name, id, function.memory, self._monotonic, logged=True, step=self._step) if wanted() and function.logs else None
        )

    def _isolated(
        self,
        lane: Lane,
        binder: Binder | Bound,
        event: Event,
        captures: Mapping[str, str],
        id: str,
        slot: Slot,
        stream: Stream | None,
    ) -> Coroutine[Any, Any, Any]:
        """What runs it in an environment. The time-out counts from when it has one; an event may wait for that as long as for anything."""
        policy = lane.policy
        if not slot.request:
            slot.deadline = self._monotonic() + policy.max_age
        elif lane.function.foreign:
            slot.deadline += INIT  # other languages are not ready in a moment, and no time-out should have to be as long as that

        def started(init: float, now: float) -> None:
            slot.init = init
            slot.began = now
            deadline = slot.deadline = now + policy.timeout
            if deadline < self.sweeper.next:
                self.sweeper.schedule(deadline)

        if isinstance(binder, Bound):
            events = [(event.pack(), dict(captures), event.attempt) for event, captures in binder.events]
            job = Job(id, binder.of.number, events, policy.timeout, batch=True)
        else:
            job = Job(id, binder.number, [(event.pack(), dict(captures), event.attempt)], policy.timeout, batch=False)
        assert self._processes is not None
        return self._processes.run(lane.function.name, job, started, self._log(lane.function, id), stream)

    async def _call(
        self,
        function: Function,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        event: Event,
        context: Context | None,
        stream: Stream | None,
    ) -> Any:
        wanted = function.binders[None].depends
        if context is None or not wanted:
            return await self._call_with(function, args, kwargs, stream)
        async with AsyncExitStack() as stack:
            made = await self.dependencies.resolve(wanted, stack, event, context)
            return await self._call_with(function, args, {**kwargs, **made}, stream)

    async def _call_with(self, function: Function, args: Sequence[Any], kwargs: Mapping[str, Any], stream: Stream | None) -> Any:
        if function.streams:
            return await (stream or collect)(function.handler(*args, **kwargs))
        if function.is_async:
            result = await function.handler(*args, **kwargs)
        elif function.isolation == "inline":
            result = function.handler(*args, **kwargs)
        else:
            result = await self._threads.run(function.handler, args, kwargs)
            if stream is not None and is_streamed(result):
                return await stream(with_chunks(result, self._pulled))
        if stream is not None and is_streamed(result):  # here, where what the handler depends on is still open
            return await consume(stream, result)
        return result

    async def _pulled(self, chunks: Iterator[Any]) -> AsyncIterator[Any]:
        """The chunks of a `def` handler, made in threads as itself was run."""
        end = object()
        try:
            while (chunk := await self._threads.run(next, (chunks, end), {})) is not end:
                yield chunk
        finally:
            if isinstance(chunks, Generator):
                await self._threads.run(chunks.close, (), {})


async def _logged(log: Log, call: Coroutine[Any, Any, Any]) -> Any:
    current.set(log)
    log.begin()
    try:
        return await call
    finally:
        log.end()


def _callers(lane: Lane) -> Callers:
    """By trigger, what makes a handler's coroutine from an event, where that is all that an attempt needs."""
    if not (lane.plain and lane.forgets) or lane.filters or lane.rate is not None or ARMED:
        return {}
    binders = lane.function.binders
    if any(isinstance(binder, BatchBinder) or binder.needs_context for binder in binders.values()):
        return {}
    return {trigger: binder.caller(lane.function.handler) for trigger, binder in binders.items() if isinstance(binder, Binder)}


def _rest(slot: Slot) -> None:
    """An attempt is over: nothing is to be cancelled any more."""
    slot.deadline = inf
    slot.overran = False
    if slot.expiries or slot.interrupted:
        for _ in range(slot.expiries + slot.interrupted):
            slot.task.uncancel()
        slot.expiries = 0


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
