"""What becomes of an invocation: the one place where it ends, waits for another attempt, or goes back. Start reading here."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress

import msgspec

from eventrouter.accounts import Accounts
from eventrouter.attempts import describe
from eventrouter.clock import Clock
from eventrouter.contents import filter_out
from eventrouter.crashpoints import crash_point
from eventrouter.destinations import letter, record
from eventrouter.errors import Throttled
from eventrouter.idempotency import unserializable
from eventrouter.intake import Intake
from eventrouter.journal.protocol import Claim, Journal, Ledger, Note
from eventrouter.lanes import Found, Lane
from eventrouter.lineage import ATTRIBUTE, cause, exhausted, tell
from eventrouter.model import (
    Dead,
    Decision,
    Done,
    Event,
    Failed,
    Interrupted,
    Notice,
    Outcome,
    Release,
    RetryAt,
    Succeeded,
    TimedOut,
    Trigger,
)  # fmt: skip
from eventrouter.notices import Notices, inherit, of_notice
from eventrouter.retry import decide
from eventrouter.sources import Queue

log = logging.getLogger("eventrouter")
_DONE = Done()
_TELL_EVERY = 60.0  # seconds between notices that a function is throttled
_DEATHS = 10  # of the router, while it was running an event, in a row; then it's the event
_LATE = 0.05  # seconds after which it is too old for certain


class Settlement:
    """Turns outcomes into decisions, and has the journal keep them together with what follows from them."""

    def __init__(self, journal: Journal, clock: Clock, intake: Intake, notices: Notices, accounts: Accounts) -> None:
        self._journal = journal
        self._clock = clock
        self._intake = intake
        self._notices = notices
        self._accounts = accounts

    def settle(
        self,
        lane: Lane,
        claim: Claim,
        trigger: Trigger | None,
        outcome: Outcome,
        note: Note | None = None,
        ledger: Ledger | None = None,
    ) -> Decision:
        """What an attempt's outcome means for its invocation: the one place that decides it. ledger: what is written down with it."""
        policy = lane.policy
        if policy.on_success is not None and type(outcome) is Succeeded:
            outcome = _recordable(outcome)
        self.count(lane, outcome)
        if type(outcome) is Succeeded and note is None and policy.on_success is None:  # the usual case needs no arithmetic
            crash_point("settle.before")
            self._journal.settle(claim, _DONE, (), (), ledger)
            crash_point("settle.after")
            return _DONE
        decision = decide(
            outcome,
            retries=policy.retries,
            backoff=policy.backoff,
            max_age=policy.max_age,
            attempts=claim.attempts,
            age=self._clock.monotonic() - claim.born,
            now=self._clock.time(),
            spread=(int(claim.id[-4:], 16) * 40503 & 0xFFFF) / 0x10000,  # neighbours spread apart
        )
        self._settle_as(lane, claim, decision, describe(outcome), trigger, outcome, note, ledger)
        return decision

    def finish(self, lane: Lane, claims: list[Claim], ended: float) -> None:
        """As `settle`, for several that succeeded, have no key, and of which nothing follows. ended: when the last did, monotonic."""
        lane.succeeded += len(claims)
        ledger = self._accounts.succeeded(lane.function.name, claims, ended)
        crash_point("settle.before")
        self._journal.finish(claims, ledger)
        crash_point("settle.after")

    def settle_batch(
        self,
        lane: Lane,
        trigger: Trigger | None,
        group: Sequence[tuple[Claim, Mapping[str, str]]],
        outcomes: Sequence[Outcome],
        ledger: Ledger | None,
    ) -> set[str]:
        """Each event by itself; but what follows one of its key that goes back goes back, too, whatever became of it. Those keys."""
        back: set[str] = set()
        for (claim, _), outcome in zip(group, outcomes, strict=True):
            if claim.key in back and isinstance(outcome, Succeeded):
                outcome = Interrupted()  # noqa: PLW2901
            decision = self.settle(lane, claim, trigger, outcome, None, ledger)
            ledger = None  # the batch is one invocation
            if claim.key is not None and isinstance(decision, RetryAt | Release):
                back.add(claim.key)
        return back

    def admit(self, lane: Lane, event: Event, captures: Mapping[str, str], id: str) -> None:
        """Give a request a slot of the lane's pool. id: of the invocation. Raises Throttled."""
        if self._accounts.full:
            raise Throttled("the audit log can't be written at present, and no request may run without its record")
        name, why, wait = lane.function.name, "", 1.0
        if lane.paused:
            why = f"it is throttled; `eventrouter unthrottle {name}` lets it run again"
        elif not lane.pool.take(lane.active):
            why = f"all {lane.pool.size} slots of its concurrency are in use"
        elif lane.rate is not None:
            wait = lane.rate.take(lane.function.rate_key(event, captures), self._clock.monotonic())
            if wait > 0:
                lane.pool.give()
                why = f"it is over its rate of {lane.policy.rate}"
        if why:
            self.count_throttle(lane, event, id)
            raise Throttled(f"{name}: {why}", wait)

    def count_throttle(self, lane: Lane, event: Event, id: str) -> None:
        """A request was turned away."""
        lane.throttled += 1
        self._accounts.throttled(lane.function.name, event, id)
        now = self._clock.monotonic()
        if now - lane.told >= _TELL_EVERY:
            count, lane.untold, lane.told = lane.throttled - lane.untold, lane.throttled, now
            self._notices.tell(Notice("throttled", lane.function.name, {"throttles": count, "concurrency": lane.pool.size}))

    def ready(self, lane: Lane, claim: Claim) -> Found | None:
        """What the claim is for; None when it can't even be tried and is settled."""
        if self._clock.monotonic() - claim.born > lane.policy.max_age:
            self.give_up_for_age(lane, claim)
            return None
        if lane.filters and not self._wanted(lane, claim):
            return None
        found: Found | None = claim.hint
        if found is not None:
            return found
        if claim.deaths >= _DEATHS:
            self.give_up(lane, claim, "RouterCrashed", f"the router died {claim.deaths} times in a row while running it")
            return None
        if claim.attempts > lane.policy.retries:  # by hand, of a queue's message, or before the policy was changed
            self.give_up(lane, claim, "RetriesExhausted", f"it had its {claim.attempts} attempts before")
            return None
        event = claim.event
        if ATTRIBUTE in event.attributes and not claim.redriven and self.loops(lane, event):
            self.give_up(lane, claim, "RecursiveLoop", tell(event, lane.function.name))
            return None
        if event.source == "journal":
            self.give_up(lane, claim, "Unreadable", "its bytes in the journal are no event")
            return None
        try:
            found = self._intake.rebind(lane, event)
        except Exception as error:  # of a plugin's trigger; the event must end all the same
            self.give_up(lane, claim, "Unreadable", f"{type(error).__name__} while it was matched: {error}")
            return None
        if found is None:
            self.give_up(lane, claim, "NoSuchTrigger", f"no trigger of {claim.function} matches {event.source} {event.subject!r} any more")
        return found

    def _wanted(self, lane: Lane, claim: Claim) -> bool:
        """Whether a queue's message is one that its function wants; else it is deleted, as Lambda's event filtering does."""
        trigger, event = lane.trigger, claim.event
        if (
            event.source != "journal"
            and trigger is not None
            and (trigger.wants(event) is None or not lane.function.lets_in(trigger, event))
        ):
            filter_out(lane, event)
            self._journal.settle(claim, _DONE)
            return False
        return True

    @staticmethod
    def loops(lane: Lane, event: Event) -> bool:
        return lane.policy.recursive_loop == "terminate" and exhausted(event, lane.function.name)

    def give_up_for_age(self, lane: Lane, claim: Claim) -> None:
        age = self._clock.monotonic() - claim.born
        self.give_up(lane, claim, "EventAgeExceeded", f"it waited {age:.0f} s, max_age is {lane.policy.max_age:g} s")

    def put_off(self, lane: Lane, claim: Claim, found: Found) -> bool:
        """Whether the lane's rate has no turn for a claim; it goes back to the journal until it has one, uncharged."""
        assert lane.rate is not None
        now = self._clock.monotonic()
        patience = max(0.0, claim.born + lane.policy.max_age - now) + _LATE
        wait = lane.rate.book(lane.function.rate_key(claim.event, found[1]), now, patience)
        if wait > 0:
            lane.delayed += 1
            self._journal.settle(claim, RetryAt(self._clock.time() + wait, claim.attempts))
        return wait > 0

    def give_up(self, lane: Lane | None, claim: Claim, reason: str, message: str) -> None:
        """Dead-letter a claim that was never tried."""
        trigger = None
        if lane is not None:
            with suppress(Exception):  # of a plugin's trigger, which may be the very reason
                found = claim.hint or self._intake.rebind(lane, claim.event)
                trigger = found[0] if found is not None else None
        self._settle_as(lane, claim, Dead(reason, reason, message, claim.attempts), message, trigger)

    def bury_unread(self, claim: Claim, queue: Queue, lane: Lane | None) -> None:
        """Dead-letter a message of a queue that was received too often, or has stayed too long. lane: the queue's, if it has one."""
        reason, message = "RetriesExhausted", f"it was received {claim.attempts} times and never deleted"
        if claim.attempts < queue.receives:
            reason, message = "EventAgeExceeded", f"it was in the queue for {self._clock.monotonic() - claim.born:.0f} s, of {queue.keep:g}"
        dead = Dead(reason, reason, message, claim.attempts)
        if lane is not None:
            self._settle_as(lane, claim, dead, message, lane.trigger)
            return
        entries: list[Claim] = []
        if queue.dlq is not None:
            copy, lineage = letter(claim.event, None, claim.id, dead), claim.event.attributes.get(ATTRIBUTE)
            entries = self._intake.addressed(queue.dlq, copy, lineage)
        self._write(None, claim, dead, message, entries)

    def _settle_as(
        self,
        lane: Lane | None,
        claim: Claim,
        decision: Decision,
        why: str,
        trigger: Trigger | None,
        outcome: Outcome | None = None,
        note: Note | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        entries = self._follow_up(lane, claim, decision, trigger, outcome) if lane is not None else []
        self._write(lane, claim, decision, why, entries, () if note is None else (note,), ledger)

    def _write(
        self,
        lane: Lane | None,
        claim: Claim,
        decision: Decision,
        why: str,
        entries: Sequence[Claim],
        notes: Sequence[Note] = (),
        ledger: Ledger | None = None,
    ) -> None:
        crash_point("settle.before")
        self._journal.settle(claim, decision, entries, notes, ledger)
        crash_point("settle.after")
        extra = {"function": claim.function, "invocation": claim.id, "event": claim.event.id}
        if isinstance(decision, Dead):
            if lane is not None:
                lane.dead += 1
            log.error(
                "%s: dead letter %s (%s): %s; `eventrouter dlq show %s`",
                claim.function, claim.id, decision.reason, why, claim.id,
                extra={"action": "invocation.dead", **extra},
            )  # fmt: skip
            if not of_notice(claim.event):
                token = cause.set(claim)  # what comes of the notice has its lineage, so that an end can be put to it
                self._notices.tell(_notice(claim, decision))
                cause.reset(token)
        elif isinstance(decision, RetryAt):
            log.warning(
                "%s: attempt %d of %s: %s; next in %.1f s",
                claim.function, decision.attempts, claim.id, why, max(0.0, decision.at - self._clock.time()),
                extra={"action": "invocation.retry", **extra},
            )  # fmt: skip
        elif isinstance(decision, Release):
            log.info("%s: %s goes back uncharged: %s", claim.function, claim.id, why, extra={"action": "invocation.release", **extra})

    def _follow_up(self, lane: Lane, claim: Claim, decision: Decision, trigger: Trigger | None, outcome: Outcome | None) -> list[Claim]:
        """The copies and records that the end of an invocation sends elsewhere, to be written with it."""
        policy, messages = lane.policy, []
        if isinstance(decision, Dead):
            if policy.dlq is not None:
                messages.append((policy.dlq, letter(claim.event, trigger, claim.id, decision)))
            target, attempts = policy.on_failure, decision.attempts
        else:
            target, attempts = policy.on_success if isinstance(decision, Done) else None, claim.attempts + 1
        if target is not None:
            now = self._clock.time()
            messages.append((target, record(claim.event, trigger, claim.id, lane.function.name, decision, outcome, attempts, now)))
        entries: list[Claim] = []
        for address, message in messages:
            try:
                entries += self._intake.addressed(address, message, self._intake.lineage_after(claim))
            except Exception:  # a plugin's; the invocation must end all the same
                log.exception(
                    "%s: nothing of %s goes to %s", lane.name, claim.id, address,
                    extra={"action": "destination.failed", "function": lane.name, "invocation": claim.id},
                )  # fmt: skip
        for entry in entries:
            inherit(entry.event, claim.event)
        return entries

    @staticmethod
    def count(lane: Lane, outcome: Outcome) -> None:
        """An attempt of the lane's has ended so."""
        if type(outcome) is Succeeded:
            lane.succeeded += 1
        elif isinstance(outcome, TimedOut):
            lane.timed_out += 1
        elif isinstance(outcome, Failed):
            lane.failed += 1


def _recordable(outcome: Succeeded) -> Outcome:
    try:
        msgspec.json.encode(outcome.result)
    except (TypeError, ValueError, RecursionError) as error:
        return unserializable(error)
    return outcome


def _notice(claim: Claim, dead: Dead) -> Notice:
    event = claim.event
    about = {"id": event.id, "source": event.source, "type": event.type, "subject": event.subject}
    return Notice("dead", claim.function, {"id": claim.id, **msgspec.structs.asdict(dead), "event": about})
