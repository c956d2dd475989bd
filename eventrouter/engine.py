"""The engine: accepts events, hands out work within the limits, runs attempts, settles invocations.

`_settle` is the one place where an invocation ends, waits or goes back; start reading there.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from math import inf
from typing import Any

from eventrouter.binding import Dependencies
from eventrouter.clock import Clock
from eventrouter.crashpoints import crash_point
from eventrouter.errors import InvalidPayload, Reject, Retry, Throttled
from eventrouter.functions import Function
from eventrouter.journal.protocol import Claim, Entry, Journal, LetterQuery
from eventrouter.limits import Pool, share_out
from eventrouter.model import (
    NOTHING,
    Context,
    Dead,
    Decision,
    Done,
    Event,
    Failed,
    Interrupted,
    Outcome,
    RetryAt,
    Succeeded,
    TimedOut,
    Trigger,
)
from eventrouter.retry import decide
from eventrouter.routing import Index
from eventrouter.runtimes.deadline import LeftRunning, Overrun, Slot, Sweeper, run
from eventrouter.runtimes.thread import ThreadRuntime
from eventrouter.runtimes.watchdog import Watchdog
from eventrouter.sources import Binding

log = logging.getLogger("eventrouter")
_WINDOW = 16_384  # claims in memory, all functions together
_TURN = 64  # events a worker may run before the loop gets its turn


class Lane:
    """One function's share of the engine: its waiting claims, its slots, its counters.

    The counters count attempts (succeeded, failed, timed_out) and invocations (accepted, dead, throttled).
    """

    __slots__ = (
        "accepted",
        "active",
        "dead",
        "failed",
        "function",
        "pool",
        "queue",
        "starting",
        "succeeded",
        "suspended",
        "taken",
        "throttled",
        "timed_out",
        "waiting",
        "window",
    )

    def __init__(self, function: Function, pool: Pool, window: int) -> None:
        self.function = function
        self.pool = pool
        self.window = window
        self.queue: deque[Claim] = deque()
        self.taken = 0  # claims worked off since credit was last given
        self.active = 0
        self.starting = False
        self.waiting = False
        self.suspended: Callable[[], object] = lambda: None  # called when a handler begins to wait
        self.accepted = self.succeeded = self.failed = self.timed_out = self.dead = self.throttled = 0


class Engine:
    """Delivers events to functions; one per App. All calls are made on one event loop.

    unmatched: events that no trigger wanted. repeats: events that had been accepted before.
    journal_fault: why the last events could not be journalled; empty when they were.
    """

    def __init__(self, functions: Mapping[str, Function], journal: Journal, clock: Clock, concurrency: int = 1000) -> None:
        self.journal = journal
        self.unmatched = 0
        self.repeats = 0
        self.journal_fault = ""
        self.dependencies = Dependencies()
        self._clock = clock
        self._sweeper = Sweeper(clock)
        self._threads = ThreadRuntime()
        self._watchdog = Watchdog(clock.monotonic)
        self._indexes: dict[str, Index[tuple[str, Trigger]]] = {}
        self._workers: set[asyncio.Task[None]] = set()
        self._pump_task: asyncio.Task[None] | None = None
        self._left: set[asyncio.Task[None]] = set()
        self._orphans: set[str] = set()
        self._stopping = False
        self._idle = asyncio.Event()
        reserved = {name: f.policy.concurrency for name, f in functions.items() if f.policy.concurrency is not None}
        shared, own = share_out(concurrency, reserved)
        window = max(8, min(8192, _WINDOW // max(1, len(functions))))
        self.lanes = {name: Lane(f, own.get(name, shared), window) for name, f in functions.items()}
        for lane in self.lanes.values():
            lane.suspended = partial(self._start_worker, lane)
        for name, function in functions.items():
            for trigger in function.triggers:
                self._indexes.setdefault(trigger.source, Index()).add(trigger.path, (name, trigger))

    def watch(self) -> None:
        """See to handlers that block the loop; for an engine that only answers requests."""
        self._watchdog.start()

    async def start(self) -> None:
        """Begin to work off what the journal holds."""
        self.watch()
        for name, lane in self.lanes.items():
            self.journal.want(name, lane.window)
        self._pump_task = asyncio.create_task(self._pump(), name="engine")
        await self.adopt_orphans()

    async def adopt_orphans(self) -> None:
        """Ask for work of functions that this app does not have, so that it ends as dead letters, not never."""
        for name, counts in (await self.journal.depth()).items():
            if name not in self.lanes and counts.get("waiting"):
                self._orphans.add(name)
                self.journal.want(name, counts["waiting"])

    async def stop(self, drain: float) -> None:
        """Start nothing more, let what runs go on for up to `drain` seconds, put the rest back uncharged."""
        self._stopping = True
        if self._pump_task is not None:
            self._pump_task.cancel()
            await asyncio.wait((self._pump_task,))
        for lane in self.lanes.values():
            lane.queue.clear()  # the journal gives unsettled claims back when it closes
        if self._sweeper.slots and drain > 0:
            timer = self._clock.call_later(drain, self._idle.set)
            self._idle.clear()
            await self._idle.wait()
            timer.cancel()
        for slot in self._sweeper.slots:
            slot.interrupt()
        for task in self._left:
            task.cancel()
        if self._workers:
            await asyncio.wait(self._workers)
        try:
            await self.dependencies.close()
        finally:
            self._threads.close()
            self._watchdog.stop()

    # Intake

    def deliver(self, events: Sequence[Event]) -> asyncio.Future[int]:
        """Journal each event once for every function that wants it; see `Router.deliver`."""
        entries: list[Entry] = []
        now = self._clock.time()
        for event in events:
            if event.time is None:
                event.time = now
            before = len(entries)
            index = self._indexes.get(event.source)
            for name, trigger in index.find(event.subject) if index is not None else ():
                captures = trigger.matches(event)
                # Two triggers of one function that both match are still one event for it.
                if captures is not None and (len(entries) == before or all(e.function != name for e in entries[before:])):
                    entries.append(Entry(name, event, (trigger, captures)))
            if len(entries) == before:
                self.unmatched += 1
                log.debug("no function wants %r", event, extra={"action": "event.unmatched"})
        return self._accept(entries)

    def deliver_to(self, binding: Binding, event: Event) -> asyncio.Future[int]:
        return self.accept_for(binding.function.name, binding.trigger, event)

    def accept_for(
        self, name: str, trigger: Trigger | None, event: Event, captures: Mapping[str, str] | None = None
    ) -> asyncio.Future[int]:
        """Journal an event for one function. trigger: None for a direct invocation."""
        if event.time is None:
            event.time = self._clock.time()
        if captures is None and trigger is not None:
            captures = trigger.matches(event)
        return self._accept([Entry(name, event, (trigger, captures or NOTHING))])

    def _accept(self, entries: list[Entry]) -> asyncio.Future[int]:
        receipt: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if not entries:
            receipt.set_result(0)
            return receipt

        def accepted(written: asyncio.Future[list[bool]]) -> None:
            error = None if written.cancelled() else written.exception()
            if receipt.done():
                return
            if error is not None:
                self.journal_fault = str(error)
                receipt.set_exception(error)
                return
            self.journal_fault = ""
            crash_point("receipt.before")
            fresh = written.result()
            new = sum(fresh)
            self.repeats += len(fresh) - new
            for entry, is_new in zip(entries, fresh, strict=True):
                self.lanes[entry.function].accepted += is_new
            receipt.set_result(new)

        crash_point("accept.before")
        self.journal.accept(entries).add_done_callback(accepted)
        return receipt

    async def request(self, binding: Binding, event: Event, captures: Mapping[str, str] = NOTHING) -> Outcome:
        """Run the function now, in the caller's task. Raises Throttled."""
        return await self.invoke(self.lanes[binding.function.name], binding.trigger, event, captures)

    async def invoke(self, lane: Lane, trigger: Trigger | None, event: Event, captures: Mapping[str, str], id: str = "") -> Outcome:
        """As `request`, for any lane. id: of the invocation; the event's when empty."""
        if self._stopping:
            return Interrupted()
        if not lane.pool.take():
            lane.throttled += 1
            raise Throttled(f"{lane.function.name}: all {lane.pool.size} slots of its concurrency are in use")
        task = asyncio.current_task()
        assert task is not None
        slot = Slot(task, lane.function.name, request=True)
        self._sweeper.slots.add(slot)
        lane.active += 1
        id = id or event.id
        if event.time is None:
            event.time = self._clock.time()
        try:
            outcome = await self._attempt(lane, trigger, captures, event, id, 1, slot)
        finally:
            self._release(lane, slot)
        self._count(lane, outcome)
        if type(outcome) is not Succeeded and not (isinstance(outcome, Failed) and outcome.final):
            log.warning(
                "%s: request %s: %s",
                lane.function.name,
                id,
                describe(outcome),
                extra={"action": "request.failed", "function": lane.function.name},
            )
        return outcome

    # Work

    async def _pump(self) -> None:
        """Sort claims into lanes as the journal hands them out."""
        while True:
            for claim in await self.journal.claims():
                lane = self.lanes.get(claim.function)
                if lane is None:
                    self._give_up(claim, "NoSuchFunction", f"this app has no function named {claim.function!r}")
                elif lane.pool.size == 0:
                    self._give_up(claim, "ConcurrencyZero", "its reserved concurrency is 0")
                    self._credit(lane)
                else:
                    lane.queue.append(claim)
                    if not lane.starting and not lane.waiting:
                        self._start_worker(lane)

    def _start_worker(self, lane: Lane) -> None:
        """One more worker for this lane, unless one is on its way, nothing is queued, or the limit is reached."""
        if lane.starting or not lane.queue or self._stopping:
            return
        if not lane.pool.take():
            if not lane.waiting:
                lane.waiting = True
                lane.pool.wait(lambda: self._slot_came_free(lane))
            return
        lane.starting = True
        lane.active += 1
        task = asyncio.get_running_loop().create_task(self._work(lane), name=f"lane {lane.function.name}")
        self._workers.add(task)
        task.add_done_callback(self._workers.discard)

    def _slot_came_free(self, lane: Lane) -> None:
        lane.waiting = False
        if lane.queue:
            self._start_worker(lane)

    async def _work(self, lane: Lane) -> None:
        """Run claims of one lane until there are none."""
        task = asyncio.current_task()
        assert task is not None
        lane.starting = False
        slot = Slot(task, lane.function.name, request=False)
        self._sweeper.slots.add(slot)
        turn = 0
        try:
            # A slot is handed on after each attempt when other functions wait for one.
            while lane.queue and slot.keeper is None and not self._stopping and not (turn and lane.pool.contended):
                claim = lane.queue.popleft()
                self._credit(lane)
                found = self._ready(lane.function, claim)
                if found is not None:
                    self.journal.started(claim)
                    crash_point("attempt.before")
                    outcome = await self._attempt(lane, *found, claim.event, claim.id, claim.attempts + 1, slot)
                    crash_point("attempt.after")
                    self._settle(lane, claim, outcome)
                turn += 1
                if turn % _TURN == 0:
                    await asyncio.sleep(0)  # handlers that never wait would starve everything else
        finally:
            self._release(lane, slot)

    def _credit(self, lane: Lane) -> None:
        lane.taken += 1
        if lane.taken * 2 >= lane.window:
            self.journal.want(lane.function.name, lane.taken)
            lane.taken = 0

    def _release(self, lane: Lane, slot: Slot) -> None:
        """A worker or a request ends: its concurrency is free, at once or when what it left running has ended."""
        self._sweeper.slots.discard(slot)
        if slot.keeper is None:
            self._free(lane)
        else:
            self._left.add(slot.keeper)
            slot.keeper.add_done_callback(partial(self._left_ended, lane))
        if self._stopping and not self._sweeper.slots:
            self._idle.set()

    def _left_ended(self, lane: Lane, keeper: asyncio.Task[None]) -> None:
        self._left.discard(keeper)
        self._free(lane)

    def _free(self, lane: Lane) -> None:
        lane.active -= 1
        lane.pool.give()
        if lane.queue and not lane.waiting:
            self._start_worker(lane)

    def _ready(self, function: Function, claim: Claim) -> tuple[Trigger | None, Mapping[str, str]] | None:
        """What the claim is for; None when it can't even be tried and is settled."""
        age = self._clock.time() - claim.accepted
        if age > function.policy.max_age:
            self._give_up(claim, "EventAgeExceeded", f"it waited {age:.0f} s, max_age is {function.policy.max_age:g} s")
            return None
        found = claim.hint or self._rebind(function, claim.event)
        if found is None:
            self._give_up(
                claim, "NoSuchTrigger", f"no trigger of {claim.function} matches {claim.event.source} {claim.event.subject!r} any more"
            )
        return found

    def _rebind(self, function: Function, event: Event) -> tuple[Trigger | None, Mapping[str, str]] | None:
        if event.source == "invoke":
            return None, event.attributes.get("parameters", NOTHING)
        for trigger in function.triggers:
            if trigger.source == event.source:
                captures = trigger.matches(event)
                if captures is not None:
                    return trigger, captures
        return None

    async def _attempt(
        self, lane: Lane, trigger: Trigger | None, captures: Mapping[str, str], event: Event, id: str, attempt: int, slot: Slot
    ) -> Outcome:
        """Run the handler once, under its time-out."""
        function = lane.function
        binder = function.binders[trigger]
        deadline = self._sweeper.arm(slot, function.policy.timeout)
        try:
            context = None
            if binder.needs_context or binder.depends:
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
                return TimedOut(function.policy.timeout)
            return Succeeded(result)
        except LeftRunning:
            return Interrupted() if slot.interrupted else TimedOut(function.policy.timeout, ended=slot.request)
        except (asyncio.CancelledError, Overrun) as error:
            if slot.interrupted:
                return Interrupted()
            if slot.expired:
                return TimedOut(function.policy.timeout)
            if slot.task.cancelling() or isinstance(error, Overrun):
                raise  # the caller of a request went away, or is itself a function that is over its limit
            return Failed("CancelledError", "the handler raised CancelledError though nobody cancelled it")
        except InvalidPayload as error:
            return Failed("InvalidPayload", str(error), final=True)
        except (Exception, SystemExit) as error:
            return TimedOut(function.policy.timeout) if slot.overran else failure(error)
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

    # Settlement

    def _settle(self, lane: Lane, claim: Claim, outcome: Outcome) -> None:
        """What an attempt's outcome means for its invocation: the one place that decides it."""
        self._count(lane, outcome)
        if type(outcome) is Succeeded:  # the usual case needs no arithmetic
            crash_point("settle.before")
            self.journal.settle(claim, _DONE)
            crash_point("settle.after")
            return
        policy = lane.function.policy
        now = self._clock.time()
        decision = decide(
            outcome,
            retries=policy.retries,
            backoff=policy.backoff,
            max_age=policy.max_age,
            attempts=claim.attempts,
            accepted=claim.accepted,
            now=now,
            spread=(int(claim.id[-4:], 16) * 40503 & 0xFFFF) / 0x10000,  # neighbours spread apart
        )
        self._settle_as(claim, decision, describe(outcome), now)

    def _give_up(self, claim: Claim, reason: str, message: str) -> None:
        """Dead-letter a claim that was never tried."""
        self._settle_as(claim, Dead(reason, reason, message, claim.attempts), message, self._clock.time())

    def _settle_as(self, claim: Claim, decision: Decision, why: str, now: float) -> None:
        crash_point("settle.before")
        self.journal.settle(claim, decision)
        crash_point("settle.after")
        extra = {"function": claim.function, "invocation": claim.id, "event": claim.event.id}
        if isinstance(decision, Dead):
            lane = self.lanes.get(claim.function)
            if lane is not None:
                lane.dead += 1
            log.error(
                "%s: dead letter %s (%s): %s; `eventrouter dlq show %s`",
                claim.function, claim.id, decision.reason, why, claim.id,
                extra={"action": "invocation.dead", **extra},
            )  # fmt: skip
        elif isinstance(decision, RetryAt):
            log.warning(
                "%s: attempt %d of %s: %s; next in %.1f s",
                claim.function, decision.attempts, claim.id, why, decision.at - now,
                extra={"action": "invocation.retry", **extra},
            )  # fmt: skip
        else:
            log.info("%s: %s goes back uncharged: %s", claim.function, claim.id, why, extra={"action": "invocation.release", **extra})

    def _count(self, lane: Lane, outcome: Outcome) -> None:
        if type(outcome) is Succeeded:
            lane.succeeded += 1
        elif isinstance(outcome, TimedOut):
            lane.timed_out += 1
        elif isinstance(outcome, Failed):
            lane.failed += 1

    # Dead letters

    async def redrive(self, ids: Sequence[str]) -> int:
        """Send letters again, with today's code. How many there were."""
        count = await self.journal.redrive(ids)
        await self.adopt_orphans()
        return count

    async def letters(self, query: LetterQuery, each: Callable[[list[str]], Awaitable[int]]) -> int:
        """Apply `each` to the ids of all letters that match now, a page at a time."""
        total, after = 0, ""
        ids: list[str] = []
        while page := await self.journal.dead(query, after, 1000):
            after = page[-1].id
            ids.extend(letter.id for letter in page)
        for start in range(0, len(ids), 1000):
            total += await each(ids[start : start + 1000])
        return total


_DONE = Done()


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
    if isinstance(error, Reject):
        return Failed("Reject", str(error), final=True)
    trace = [
        line for frame in traceback.extract_tb(error.__traceback__) if not _ours(frame.filename) for line in traceback.format_list([frame])
    ]
    return Failed(type(error).__name__, str(error), trace)


_HERE = inspect.getfile(Lane).rsplit("/", 1)[0] + "/"


def _ours(filename: str) -> bool:
    return filename.startswith(_HERE)
