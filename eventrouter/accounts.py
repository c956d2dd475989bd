"""What is written down of attempts: what each has cost, and, if it is wished, a record of it for the audit log."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from msgspec.structs import astuple

from eventrouter.clock import Clock, Timer
from eventrouter.errors import JournalError
from eventrouter.functions import Function
from eventrouter.journal.protocol import Claim, Journal, Ledger, Usage
from eventrouter.logs import STEP
from eventrouter.model import Event, Failed, Interrupted, Outcome, Succeeded, TimedOut
from eventrouter.runtimes.deadline import Slot

log = logging.getLogger("eventrouter")
_EVERY: Final = 1.0  # seconds between writes of what requests have used
_DAY: Final = 86_400
_LEAST: Final = 1e-6  # seconds
_MOST: Final = 16 << 20  # bytes of records that wait for the journal

# A record of the audit log is a JSON array. Of an attempt it says: "i" (an event's) or "r" (a request's), when it began (milliseconds since
# 1970), how long it took (microseconds), whose it was, with how much memory (MB), its error ("": none), where from, the event's id, the
# invocation's (its claim's number, or a text), which attempt it was, of how many events.
# A run of them, one after the other and without error, is one record: "s", how many, whose, with how much memory, the wall clock less the
# monotonic one (seconds), when the last ended, and for each when it began (monotonic seconds), where from, the event's id, the claim's
# number, the attempts before it.
_encode_lines = msgspec.json.Encoder().encode_lines


class _Of(NamedTuple):
    """What is the same for all attempts of a function."""

    name: str
    tags: str
    memory: int


class Accounts:
    """step: milliseconds that a duration is rounded up to, one at least; 0: nothing is metered. records: whether attempts are audited."""

    def __init__(self, functions: Mapping[str, Function], journal: Journal, clock: Clock, step: int = 0, *, records: bool = False) -> None:
        self._journal = journal
        self._clock = clock
        self._monotonic = clock.monotonic
        self._step = step
        self.billed = step or STEP  # what reports round to, metered or not
        self._short = step / 1000 - _LEAST  # seconds of what is billed as one step, however it is rounded
        self._records = records
        self._of = {name: _account(function) for name, function in functions.items()}
        # Of requests, since they were last written.
        self._sums: dict[tuple[int, str], list[int]] = {}
        self._usual = defaultdict[str, int](int)  # how many took one step, without error or cold start: of `_day`, which ends at `_until`
        self._day, self._until = 0, 0.0
        self._trail: list[bytes] = []
        self._waiting = 0  # bytes of them
        self._timer: Timer | None = None

    def succeeded(self, function: str, claims: Sequence[Claim], ended: float) -> Ledger | None:
        """Of attempts that ran one after the other, each until the next began, and the last until `ended` (monotonic seconds)."""
        if not self._step and not self._records:
            return None
        of, now, count = self._of[function], self._clock.time(), len(claims)
        short = ended - claims[0].began < self._short  # the usual case: each takes one step
        steps, trail = count, b""
        if not short:
            ends = [claim.began for claim in claims[1:]]
            ends.append(ended)
            steps = sum(self._steps(int((end - claim.began) * 1e6)) for claim, end in zip(claims, ends, strict=True))
        if self._records:
            each = [(claim.began, (event := claim.event).source, event.id, claim.seq, claim.attempts) for claim in claims]
            trail = _encode_lines([("s", count, of.name, of.memory, now - ended, ended, each)])
        return Ledger((self._usage(of, now, count, 0, steps),) if self._step else (), trail)

    def ended(self, function: str, event: Event, id: int | str, slot: Slot, outcome: Outcome, count: int = 1) -> Ledger | None:
        """Of the attempt that has just ended in the slot, if there was one: a repeat that got the first's result made none.

        id: its claim's number, or a request's id. count: how many events it was for.
        """
        began, init = slot.began, slot.init
        slot.began = slot.init = 0.0
        if not began or not (self._step or self._records):
            return None
        ended, now = self._monotonic(), self._clock.time()
        of, took = self._of[function], int((ended - began) * 1e6)
        usage: tuple[Usage, ...] = ()
        if self._step and type(outcome) is not Interrupted:  # the router's doing
            failed = type(outcome) is not Succeeded
            usage = (self._usage(of, now, 1, int(failed), self._steps(took), int(init * 1000)),)
        trail = b""
        if self._records:
            trail = self._record(of, event, id, now - (ended - began), took, _error(outcome), count)
        return Ledger(usage, trail) if usage or trail else None

    def requested(self, function: str, event: Event, id: str, slot: Slot, outcome: Outcome, ledger: Ledger | None = None) -> None:
        """As `ended`, of a request, to be written within the second. ledger: what there is of it already."""
        if ledger is not None:
            self.keep(ledger)
            return
        began, init = slot.began, slot.init
        slot.began = slot.init = 0.0
        if not began or not (self._step or self._records):
            return
        ended = self._monotonic()
        lasted = ended - began
        if lasted < self._short and type(outcome) is Succeeded and not init and ended < self._until:
            self._usual[function] += 1
        elif self._step and type(outcome) is not Interrupted:
            sums = self._sums_of(int(self._clock.time() // _DAY), function)
            billed = self._steps(int(lasted * 1e6)) * self._step
            sums[0] += 1
            sums[1] += type(outcome) is not Succeeded
            sums[3] += billed
            sums[4] += billed * self._of[function].memory
            sums[5] += int(init * 1000)
        if self._records:
            at = self._clock.time() - lasted
            self._note(self._record(self._of[function], event, id, at, int(lasted * 1e6), _error(outcome), 1))
        if self._timer is None:
            self._later()

    def throttled(self, function: str, event: Event, id: str) -> None:
        """A request was turned away."""
        if not self._step and not self._records:
            return
        now = self._clock.time()
        if self._step:
            self._sums_of(int(now // _DAY), function)[2] += 1
        if self._records:
            self._note(self._record(self._of[function], event, id, now, 0, "TooManyRequestsException", 1))
        self._later()

    def keep(self, ledger: Ledger) -> None:
        """Of what has no settlement to go with: to be written within the second."""
        for use in ledger.usage:
            sums = self._sums_of(use.day, use.function)
            for place, amount in enumerate(astuple(use)[3:]):
                sums[place] += amount
        self._note(ledger.trail)
        self._later()

    def _sums_of(self, day: int, function: str) -> list[int]:
        found = self._sums.get((day, function))
        if found is None:
            found = self._sums[day, function] = [0] * 6
        return found

    def _note(self, trail: bytes) -> None:
        if trail:
            self._trail.append(trail)
            self._waiting += len(trail)

    @property
    def full(self) -> bool:
        """The journal does not take what is to be recorded of requests: no more of them may run unrecorded."""
        return self._waiting > _MOST

    def flush(self) -> None:
        """Have the journal write what was kept."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._until = 0.0
        for name, count in self._usual.items():
            sums = self._sums_of(self._day, name)
            billed = count * self._step
            sums[0] += count
            sums[3] += billed
            sums[4] += billed * self._of[name].memory
        self._usual.clear()
        if not self._sums and not self._trail:
            return
        usage = tuple(Usage(day, name, self._of[name].tags, *sums) for (day, name), sums in self._sums.items())
        ledger = Ledger(usage, b"".join(self._trail))
        self._sums, self._trail, self._waiting = {}, [], 0
        self._journal.books.enter(ledger).add_done_callback(lambda written: self._written(ledger, written))

    def _written(self, ledger: Ledger, written: Any) -> None:
        error = None if written.cancelled() else written.exception()
        if isinstance(error, JournalError):  # it has told of it, and tries again every second
            self._trail.insert(0, ledger.trail)
            self._waiting += len(ledger.trail)
            self.keep(Ledger(ledger.usage))

    def _later(self) -> None:
        if self._timer is None:
            self._timer = self._clock.call_later(_EVERY, self._due)
            day, into = divmod(self._clock.time(), _DAY)
            self._day, self._until = int(day), self._monotonic() + _DAY - into

    def _due(self) -> None:
        self._timer = None
        self.flush()

    def _steps(self, took: int) -> int:
        return max(1, -(-took // (self._step * 1000))) if self._step else 0

    def _usage(self, of: _Of, now: float, count: int, errors: int, steps: int, init: int = 0) -> Usage:
        billed = steps * self._step
        return Usage(int(now // _DAY), of.name, of.tags, count, errors, 0, billed, billed * of.memory, init)

    @staticmethod
    def _record(of: _Of, event: Event, id: int | str, at: float, took: int, error: str, count: int) -> bytes:
        kind = "i" if isinstance(id, int) else "r"
        error = error.encode(errors="replace").decode()
        source, event_id = (text.encode(errors="replace").decode() for text in (event.source, event.id))
        return _encode_lines([(kind, int(at * 1000), took, of.name, of.memory, error, source, event_id, id, event.attempt, count)])


def _account(function: Function) -> _Of:
    policy = function.policy
    return _Of(function.name, msgspec.json.encode(policy.tags, order="sorted").decode(), function.memory)


def joined(one: Ledger | None, other: Ledger | None) -> Ledger | None:
    if one is None or other is None:
        return one or other
    return Ledger((*one.usage, *other.usage), one.trail + other.trail)


def _error(outcome: Outcome) -> str:
    if isinstance(outcome, Failed):
        return outcome.error_type
    if isinstance(outcome, TimedOut):
        return "Sandbox.Timedout"
    return "Interrupted" if isinstance(outcome, Interrupted) else ""
