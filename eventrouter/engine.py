"""The engine: hands out work within the limits, runs attempts, drains. What becomes of an invocation is decided in `settlement`."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from itertools import groupby
from math import inf
from operator import attrgetter
from typing import Any

from eventrouter.accounts import Accounts, joined
from eventrouter.attempts import Attempts, Bound, Stop, describe, outcomes_of, read_batch
from eventrouter.byhand import ByHand
from eventrouter.clock import Clock
from eventrouter.crashpoints import crash_point
from eventrouter.errors import AccessDenied, JournalError, Throttled
from eventrouter.functions import Function, Idempotent
from eventrouter.idempotency import Results
from eventrouter.intake import Intake
from eventrouter.journal.protocol import Claim, Journal, Ledger, Note
from eventrouter.lanes import Found, Lane
from eventrouter.limits import Account, Rate
from eventrouter.lineage import cause, extend, inherit, set_cause, tell
from eventrouter.model import (
    NOTHING,
    Decision,
    Done,
    Event,
    Failed,
    Interrupted,
    Outcome,
    Release,
    RetryAt,
    Stream,
    Succeeded,
    TimedOut,
    Trigger,
)  # fmt: skip
from eventrouter.notices import Notices
from eventrouter.runtimes.deadline import Slot
from eventrouter.runtimes.process import ProcessRuntime
from eventrouter.runtimes.watchdog import Watchdog
from eventrouter.settlement import Settlement
from eventrouter.sources import Binding
from eventrouter.throttling import Throttling
from eventrouter.workers import Workers

log = logging.getLogger("eventrouter")
_WINDOW = 16_384  # claims in memory, all functions together ...
_LANE = 8192  # ... and of one: more have left the processor's caches by the time they run
# seconds until a thread that wants the interpreter gets it; with Python's 5 ms the journal's waits until the loop has no more to do
_SWITCH = 0.0001
_YOUNG = 50_000  # objects; at Python's 700 the collector looks through all that waits in memory again and again: a sixth of the time
_TURN = 64  # events a worker may run before the loop gets its turn ...
_QUICK = 256  # ... and of those that succeed at once, if all is quick
_FUNCTION = attrgetter("function")
_DONE = Done()
_RELEASE = Release()


class Engine:
    """Delivers events to functions; one per App. All calls are made on one event loop.

    lanes: of functions, by name. intake: what comes in, and how much of it was wanted. What becomes of it: `Settlement`.
    notices: who is told what goes wrong. accounts: what is written down of attempts.
    """

    def __init__(
        self,
        functions: Mapping[str, Function],
        journal: Journal,
        clock: Clock,
        concurrency: int = 1000,
        processes: ProcessRuntime | None = None,
        accounts: Accounts | None = None,
    ) -> None:
        self.journal = journal
        self.accounts = accounts or Accounts(functions, journal, clock)
        self._clock = clock
        self._attempts = Attempts(clock, processes, self.accounts.billed)
        self.dependencies = self._attempts.dependencies
        self._sweeper = self._attempts.sweeper
        self._watchdog = Watchdog(clock.monotonic)
        self._results = Results(journal)
        self.workers = Workers(self._work)
        self._pump_task: asyncio.Task[None] | None = None
        self._left: dict[asyncio.Task[None], set[str]] = {}  # what runs on though it was left, and the keys that it holds
        self._before = gc.get_threshold(), sys.getswitchinterval()
        self._stopping = False
        self._spare: list[Slot] = []
        self._idle = asyncio.Event()
        reserved = {name: f.policy.concurrency for name, f in functions.items() if f.policy.concurrency is not None}
        account = Account(concurrency, reserved, len(functions))
        window = max(8, min(_LANE, _WINDOW // max(1, len(functions))))
        rates = {name: Rate(*f.rate) for name, f in functions.items() if f.rate is not None}
        self.lanes = {name: Lane(name, f, f.policy, account.pool(name), window, rate=rates.get(name)) for name, f in functions.items()}
        for lane in self.lanes.values():
            lane.suspended = partial(self._start_worker, lane)
        self.intake = Intake(self.lanes, journal, clock, self._queue_opened)
        self.deliver, self.deliver_to, self.accept_for = self.intake.deliver, self.intake.deliver_to, self.intake.accept_for
        self.forward, self.wants, self.lineage = self.intake.forward, self.intake.wants, self.intake.lineage
        self.standings = self.intake.standings
        self.notices = Notices()
        self._settlement = Settlement(journal, clock, self.intake, self.notices, self.accounts)
        self.throttling = Throttling(journal, self.intake, self._settlement, account, self._start_worker, self._credit)
        self.by_hand = ByHand(journal, clock, self.intake, self._settlement, self.adopt_orphans)
        self.receive, self.move, self.expire = self.by_hand.receive, self.by_hand.move, self.by_hand.expire

    def _queue_opened(self, lane: Lane) -> None:
        lane.suspended = partial(self._start_worker, lane)
        if self._pump_task is not None:
            self.throttling.opened(lane)

    def watch(self) -> None:
        """See to handlers that block the loop; for an engine that only answers requests."""
        self._watchdog.start()

    async def start(self) -> None:
        """Begin to work off what the journal holds."""
        self.watch()
        self.workers.begin()
        self._before = (young, *old), switch = gc.get_threshold(), sys.getswitchinterval()
        gc.set_threshold(max(_YOUNG, young), *old)
        sys.setswitchinterval(min(_SWITCH, switch))
        for name, lane in self.lanes.items():
            self.journal.want(name, lane.window)
        self._pump_task = asyncio.create_task(self._pump(), name="engine")
        for queue in self.intake.queues.values():  # those that @on_start functions sent to
            if queue is not None:
                self._queue_opened(queue)
        await self.adopt_orphans()

    async def adopt_orphans(self) -> None:
        """Ask for the work of queues, and of functions that this app does not have, so that that ends as dead letters, not never."""
        for name, counts in (await self.journal.depth()).items():
            source, colon, subject = name.partition(":")
            if source in self.intake.queueing:
                self.intake.queue(source, subject)
            elif not colon and name not in self.lanes and counts.get("waiting"):
                self.journal.want(name, counts["waiting"])

    async def stop(self, drain: float) -> None:
        """Start nothing more, let what runs go on for up to `drain` seconds, put the rest back uncharged."""
        self._stopping = True
        if self._pump_task is not None:
            self._pump_task.cancel()
            await asyncio.wait((self._pump_task,))
        for lane in (*self.lanes.values(), *filter(None, self.intake.queues.values())):
            lane.clear()  # the journal gives unsettled claims back when it closes
        if self._sweeper.slots and drain > 0:
            timer = self._clock.call_later(drain, self._idle.set)
            self._idle.clear()
            await self._idle.wait()
            timer.cancel()
        for slot in self._sweeper.slots:
            slot.interrupt()
        for task in self._left:
            task.cancel()
        await self.workers.stop()
        while self._spare:
            self._spare.pop().close()
        try:
            await self._attempts.close()
        finally:
            self._watchdog.stop()
            thresholds, switch = self._before
            gc.set_threshold(*thresholds)
            sys.setswitchinterval(switch)

    # Requests

    def request(
        self, binding: Binding, event: Event, captures: Mapping[str, str] = NOTHING, stream: Stream | None = None
    ) -> Awaitable[Outcome]:
        """Run the function now, in the caller's task. Raises Throttled, AccessDenied."""
        lane = self.lanes[binding.function.name]
        if lane.gate is not None and not self.intake.may_start(lane, binding.trigger, event):
            raise AccessDenied(f"{lane.name}: its function policy does not let {binding.trigger.principal} start it")
        return self.invoke(lane, binding.trigger, event, captures, stream=stream)

    async def invoke(
        self,
        lane: Lane,
        trigger: Trigger | None,
        event: Event,
        captures: Mapping[str, str],
        id: str = "",
        stream: Stream | None = None,
    ) -> Outcome:
        """As `request`, for any lane. id: of the invocation; the event's when empty."""
        if self._stopping:
            return Interrupted()
        outer = cause.get()
        if outer is not None and (lineage := self.intake.lineage()) is not None:
            inherit(event, lineage)
            if self._settlement.loops(lane, event):
                log.error("%s: %s", lane.name, why := tell(event, lane.name), extra={"action": "request.loop", "function": lane.name})
                return Failed("RecursiveInvocationException", why, final=True)
        id, function, policy = id or event.id, lane.function, lane.policy
        self._settlement.admit(lane, event, captures, id)
        task = asyncio.current_task()
        assert task is not None
        slot = self._slot(task, function.name, request=True)
        lane.active += 1
        if event.time is None:
            event.time = self._clock.time()
        set_cause((function.name, event))
        ledger: Ledger | None = None
        outcome: Outcome | None = None
        try:
            if policy.batch is not None:
                (outcome,), ledger = await self._attempt_batch(lane, trigger, [(event, captures)], id, slot)
            elif policy.idempotent is None:
                binder, now = function.binders[trigger], self._clock.monotonic()
                outcome = self._attempts.begin(lane, binder, event, captures, id, 1, slot, now, stream)
                if outcome is None:
                    outcome = await self._attempts.finish(lane, binder, slot)
            else:
                outcome, note = await self._attempt_once(lane, policy.idempotent, (trigger, captures), event, id, 1, slot)
                if note is not None:
                    await self._keep(lane, note)
        except Throttled:  # it waited for an environment in vain
            self._settlement.count_throttle(lane, event, id)
            raise
        finally:
            slot.deadline = inf
            set_cause(outer)  # the task is the caller's
            if self._release(lane, slot, ended=outcome is not None):
                self._spare.append(slot)
        self._settlement.count(lane, outcome)
        self.accounts.requested(function.name, event, id, slot, outcome, ledger)
        if type(outcome) is not Succeeded and not (isinstance(outcome, Failed) and outcome.final):
            extra = {"action": "request.failed", "function": function.name}
            log.warning("%s: request %s: %s", function.name, id, describe(outcome), extra=extra)
        return outcome

    def has(self, name: str) -> bool:
        return name in self.lanes

    async def call(self, name: str, event: Event) -> Outcome:
        return await self.invoke(self.lanes[name], None, event, NOTHING)

    async def _keep(self, lane: Lane, note: Note) -> None:
        try:
            await self.journal.put(note.key, note.value, ttl=note.ttl)
        except JournalError as error:  # the work is done; that a repeat will do it again is no reason to deny it
            log.error("%s: its result is not kept: %s", lane.name, error, extra={"action": "idempotent.lost", "function": lane.name})

    # Work

    async def _pump(self) -> None:
        """Sort claims into lanes as the journal hands them out."""
        while True:
            for name, group in groupby(await self.journal.claims(), _FUNCTION):
                lane = self.lanes.get(name) or self.intake.queues.get(name)
                claims = list(group)
                if lane is None:
                    for claim in claims:
                        self._settlement.give_up(None, claim, "NoSuchFunction", f"this app has no function named {name!r}")
                elif lane.shut:
                    for claim in claims:
                        self.throttling.turn_away(lane, claim)
                else:
                    if claims[0].hint is None or claims[-1].hint is None:
                        self.intake.recall(lane, claims)
                    lane.push(claims)
                    if not lane.starting and not lane.waiting:
                        self._start_worker(lane)

    def _start_worker(self, lane: Lane) -> bool:
        """One more worker for this lane, unless one is on its way, nothing is ready, or the limit is reached."""
        if lane.starting or self._stopping or lane.shut:
            return False
        if lane.paused:
            self._watch_age(lane)
            return False
        if not lane.ready:
            # Not for those behind a key that runs: without a window that would be a timer due at once, again and again.
            if lane.queue and lane.ripening is None and lane.policy.batch is not None:
                lane.ripening = self._clock.call_later(lane.policy.batch.window, partial(self._ripen, lane))
            return False
        if not lane.pool.take(lane.active):
            if not lane.waiting:
                lane.waiting = True
                lane.pool.wait(partial(self._slot_came_free, lane))
                self._watch_age(lane)
            return False
        lane.starting = True
        lane.active += 1
        self.workers.start(lane)
        return True

    def _ripen(self, lane: Lane) -> None:
        lane.ripening = None
        lane.ripe = True
        self._start_worker(lane)

    def _slot_came_free(self, lane: Lane) -> bool:
        lane.waiting = False
        return self._start_worker(lane)

    async def _work(self, lane: Lane | None) -> None:
        """Run claims of a lane, and then of the next that has some."""
        task = asyncio.current_task()
        assert task is not None
        while lane is not None:
            lane = await self._work_for(lane, task)

    async def _work_for(self, lane: Lane, task: asyncio.Task[None]) -> Lane | None:
        """Run its claims; rest while there are none. Which lane is the next."""
        slot = self._slot(task, lane.function.name, request=False)
        mark, done = self.journal.marker(), list[Claim]()  # those done are told to the journal together, before anything is waited for
        sprint = self._attempts.sprinter(lane, slot, mark, done)
        following: Lane | None = lane
        while following is lane:
            lane.starting = ended = False
            try:
                if lane.policy.batch is not None:
                    await self._work_batches(lane, lane.policy.batch.size, slot)
                else:
                    await self._work_one_by_one(lane, slot, sprint, mark, done)
                ended = True
            finally:
                spare = self._release(lane, slot, ended=ended)
            following = await self.workers.rest(lane) if spare and not self._stopping else None
            if following is lane:
                slot.reuse(task, lane.function.name, request=False)
                self._sweeper.slots.add(slot)
        if spare:
            self._spare.append(slot)
        return following

    def _slot(self, task: asyncio.Task[Any], function: str, *, request: bool) -> Slot:
        if self._spare:
            slot = self._spare.pop()
            slot.reuse(task, function, request=request)
        else:
            slot = Slot(task, function, request)
        self._sweeper.slots.add(slot)
        return slot

    def _may_go_on(self, lane: Lane, slot: Slot, turn: int) -> bool:
        """A slot is handed on after each attempt when other functions wait for one, or the pool has become smaller."""
        if slot.keeper is not None or self._stopping or lane.paused or lane.gated or lane.pool.free < 0:
            return False
        others = lane.pool.waiting
        return not (others and turn and len(others) > lane.waiting)

    async def _work_batches(self, lane: Lane, size: int, slot: Slot) -> None:
        turn = 0
        while lane.ready and self._may_go_on(lane, slot, turn):
            await self._run_batch(lane, size, slot)
            turn += 1
            if turn % _TURN == 0:
                await asyncio.sleep(0)

    async def _work_one_by_one(
        self, lane: Lane, slot: Slot, sprint: Callable[[int], Stop | None], mark: Callable[[Claim | None], None], done: list[Claim]
    ) -> None:
        queue, others = lane.queue, 0
        try:
            while queue and self._may_go_on(lane, slot, others + len(done)):
                # A slot that somebody else waits for is handed on after one.
                alone = len(lane.pool.waiting) <= lane.waiting
                stop = sprint(_QUICK) if alone else (queue.popleft(), None, None)
                if stop is not None:
                    others += len(done) + 1
                    lane.taken += 1
                    await self._see_to(lane, stop, slot, mark, done)
                if slot.keeper is None and (stop is None or not queue or others >= _TURN):
                    others = 0
                    slot.deadline = inf
                    self._finish(lane, done)
                    # Handlers that never wait would starve everything else. And the next may be on their way: a worker is dear.
                    lingers = not queue and not lane.starting
                    lane.starting = lane.starting or lingers
                    try:
                        await asyncio.sleep(0)
                    finally:
                        lane.starting = lane.starting and not lingers
        finally:
            slot.deadline = inf
            self._finish(lane, done)
            mark(None)

    async def _see_to(self, lane: Lane, stop: Stop, slot: Slot, mark: Callable[[Claim], None], done: list[Claim]) -> None:
        """What did not go the usual way."""
        claim, found, outcome = stop
        self._finish(lane, done, slot.began)  # up to when this one began, if it has
        note: Note | None = None
        decision: Decision = _DONE
        if found is None and (found := self._settlement.ready(lane, claim)) is not None:
            if lane.rate is not None and self._settlement.put_off(lane, claim, found):
                found, decision = None, _RELEASE
            else:
                mark(claim)
                set_cause(claim)
                crash_point("attempt.before")
                outcome = self._start(lane, claim, found, slot)
        if found is not None:
            if outcome is None:
                outcome, note = await self._go_on(lane, claim, found, slot)
            crash_point("attempt.after")
            ledger = self.accounts.ended(lane.function.name, claim.event, claim.seq, slot, outcome)
            decision = self._settlement.settle(lane, claim, found[0], outcome, note, ledger)
        if claim.key is not None:
            self._end_key(lane, claim.key, slot, back=isinstance(decision, RetryAt | Release))

    def _start(self, lane: Lane, claim: Claim, found: Found, slot: Slot) -> Outcome | None:
        """Begin an attempt; None: `_go_on` with it."""
        if lane.policy.idempotent is not None:  # a result may have to be waited for, and the attempt begins after that
            return None
        binder, now = lane.function.binders[found[0]], self._clock.monotonic()
        return self._attempts.begin(lane, binder, claim.event, found[1], claim, claim.attempts + 1, slot, now)

    async def _go_on(self, lane: Lane, claim: Claim, found: Found, slot: Slot) -> tuple[Outcome, Note | None]:
        """With an attempt that could not be made in one step."""
        if lane.policy.idempotent is not None:
            return await self._attempt_once(lane, lane.policy.idempotent, found, claim.event, claim.id, claim.attempts + 1, slot)
        return await self._attempts.finish(lane, lane.function.binders[found[0]], slot), None

    def _finish(self, lane: Lane, done: list[Claim], ended: float = 0.0) -> None:
        """ended: when the last did; 0: now."""
        lane.taken += len(done)
        self._give_credit(lane)
        if done:
            self._settlement.finish(lane, done.copy(), ended or self._clock.monotonic())
            done.clear()

    async def _attempt_once(
        self, lane: Lane, once: Idempotent, found: Found, event: Event, id: str, attempt: int, slot: Slot
    ) -> tuple[Outcome, Note | None]:
        trigger, captures = found
        key = lane.function.idempotency_key(event)

        async def run() -> Outcome:
            if self._stopping:  # it had to wait for another's attempt
                return Interrupted()
            return await self._attempts.run(lane, lane.function.binders[trigger], event, captures, id, attempt, slot)

        if key is not None:
            return await self._results.once(lane.function.name, key, once.ttl, run)
        log.warning(
            "%s: %s has nothing at %s, so a repeat of it can't be told", lane.name, id, once.path,
            extra={"action": "idempotent.missing", "function": lane.name, "invocation": id},
        )  # fmt: skip
        return await run(), None

    async def _run_batch(self, lane: Lane, size: int, slot: Slot) -> None:
        """Take a batch off the lane and run it, the events of each trigger by themselves."""
        lane.ripe = False
        if lane.ripening is not None:  # it was of these; what comes next has a window of its own
            lane.ripening.cancel()
            lane.ripening = None
        groups: dict[Trigger | None, list[tuple[Claim, Mapping[str, str]]]] = {}
        keys: set[str] = set()
        back: set[str] = set()
        triggers: dict[str, Trigger | None] = {}
        later: dict[str, list[Claim]] = {}  # what comes by another trigger than the one of its key before it, and those behind
        for claim in lane.pop_batch(size):
            if claim.key in later:
                later[claim.key].append(claim)
                continue
            if claim.key in back:
                self.journal.settle(claim, _RELEASE)
                self._credit(lane)
                continue
            found = self._settlement.ready(lane, claim)
            if found is not None and lane.rate is not None and self._settlement.put_off(lane, claim, found):
                found = None
                if claim.key is not None:
                    back.add(claim.key)
            if found is not None and claim.key is not None and triggers.setdefault(claim.key, found[0]) is not found[0]:
                later[claim.key] = [claim]
                continue
            self._credit(lane)
            if claim.key is not None:
                keys.add(claim.key)
            if found is not None:
                groups.setdefault(found[0], []).append((claim, found[1]))
        for key, claims in later.items():
            lane.put_back(key, claims)
        for trigger, group in groups.items():
            for claim, _ in group:
                self.journal.started(claim)
                claim.event.attempt = claim.attempts + 1
            crash_point("attempt.before")
            events = [(claim.event, captures) for claim, captures in group]
            set_cause((lane.function.name, extend(lane.function.name, (claim.event for claim, _ in group if not claim.redriven))))
            outcomes, ledger = await self._attempt_batch(lane, trigger, events, group[0][0], slot)
            crash_point("attempt.after")
            back |= self._settlement.settle_batch(lane, trigger, group, outcomes, ledger)
        for key in keys:
            self._end_key(lane, key, slot, back=key in back)

    async def _attempt_batch(
        self, lane: Lane, trigger: Trigger | None, events: Sequence[tuple[Event, Mapping[str, str]]], of: Claim | str, slot: Slot
    ) -> tuple[list[Outcome], Ledger | None]:
        """The outcome of each event; a failing batch is halved, if that is its policy, and no half costs an attempt.

        of: the first one's claim, or the id of a request. The ledger is of all attempts that were made.
        """
        id, number = (of, of) if isinstance(of, str) else (of.id, of.seq)
        ledger: Ledger | None = None
        binder = lane.function.binders[trigger]
        rows, outcomes = read_batch(binder, [event for event, _ in events], [captures for _, captures in events])
        parts = [list(rows)] if rows else []
        while parts:
            part = parts.pop()
            if self._stopping or slot.keeper is not None:
                outcome: Outcome = Interrupted()
            else:
                bound = Bound(binder, [rows[place] for place in part], [events[place] for place in part])
                first = events[part[0]][0]
                outcome = await self._attempts.run(lane, bound, first, NOTHING, id, first.attempt, slot)
                ledger = joined(ledger, self.accounts.ended(lane.function.name, first, number, slot, outcome, len(part)))
            bisect = lane.policy.batch is not None and lane.policy.batch.bisect and len(part) > 1
            if bisect and ((isinstance(outcome, Failed) and not outcome.final) or (isinstance(outcome, TimedOut) and outcome.ended)):
                middle = len(part) // 2
                parts += (part[middle:], part[:middle])
                log.warning("%s: a batch of %d failed and is halved: %s", lane.name, len(part), describe(outcome),
                            extra={"action": "batch.bisect", "function": lane.name})  # fmt: skip
                continue
            outcomes |= zip(part, outcomes_of(outcome, [events[place][0].id for place in part]), strict=True)
        return [outcomes[place] for place in range(len(events))], ledger

    def _credit(self, lane: Lane) -> None:
        lane.taken += 1
        self._give_credit(lane)

    def _give_credit(self, lane: Lane) -> None:
        if lane.taken * 8 >= lane.window:
            self.journal.want(lane.name, lane.taken)
            lane.taken = 0

    def _release(self, lane: Lane, slot: Slot, *, ended: bool) -> bool:
        """A worker rests or ends, or a request does: its concurrency is free, at once or when what it left running has ended.

        ended: so it was meant to be; nothing is left in the slot. Whether that may be used again.
        """
        self._sweeper.slots.discard(slot)
        spare = ended and slot.keeper is None and slot.spare()
        if slot.keeper is None:
            if not spare:
                slot.close()
            self._free(lane)
        else:
            self._left.setdefault(slot.keeper, set())
            slot.keeper.add_done_callback(partial(self._left_ended, lane))
        if self._stopping and not self._sweeper.slots:
            self._idle.set()
        return spare

    def _left_ended(self, lane: Lane, keeper: asyncio.Task[None]) -> None:
        for key in self._left.pop(keeper):
            lane.pass_on(key)
        self._free(lane)

    def _free(self, lane: Lane) -> None:
        lane.active -= 1
        lane.pool.give()
        if lane.queue and not lane.waiting:
            self._start_worker(lane)

    def _watch_age(self, lane: Lane) -> None:
        """While there is no slot for it, see that what gets too old ends nevertheless."""
        if lane.queue and lane.expiry is None:
            rest = lane.queue[0].born + lane.policy.max_age - self._clock.monotonic()
            lane.expiry = self._clock.call_later(max(1.0, rest), partial(self._expire, lane))

    def _expire(self, lane: Lane) -> None:
        lane.expiry = None
        while lane.queue and self._clock.monotonic() - lane.queue[0].born > lane.policy.max_age:
            claim = lane.queue.popleft()
            self._credit(lane)
            self._settlement.give_up_for_age(lane, claim)
            if claim.key is not None:
                lane.pass_on(claim.key)
        if (lane.waiting or lane.paused) and not self._stopping:
            self._watch_age(lane)

    def _end_key(self, lane: Lane, key: str, slot: Slot, *, back: bool) -> None:
        """What ran under the key has been settled: the next of it may run, unless it has to wait behind what went back."""
        if back:
            for follower in lane.take_back(key):
                self.journal.settle(follower, _RELEASE)
                self._credit(lane)
        elif slot.keeper is not None:
            self._left.setdefault(slot.keeper, set()).add(key)
        else:
            lane.pass_on(key)
