"""The journal's one thread: takes all operations that gathered, writes them in one transaction, tells the loop once.

It alone decides what is handed out, because only here is it known what the file holds: a function that has credit and no
backlog gets its new events straight from memory after the commit; otherwise they wait in the file until there is credit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Final, Generic, Literal, NamedTuple, TypeVar

from eventrouter.clock import Clock
from eventrouter.errors import JournalError
from eventrouter.journal import segments
from eventrouter.journal.accepts import Accept
from eventrouter.journal.backlog import Backlog, State
from eventrouter.journal.database import CLOCK_STEP, START, Batch, Database
from eventrouter.journal.protocol import Claim, Ledger, Note
from eventrouter.journal.schema import PARKED, RUNNING, WAITING
from eventrouter.journal.segments import Packed, Segment

T = TypeVar("T")

_FULL: Final = 1024  # rows: a longer commit would make the loop wait for work, and then it for the loop's
_MEMORY: Final = 64 * 1024 * 1024  # bytes of events handed out, all functions together
_SHARE: Final = 256 * 1024  # ... and the least of one function
_LINGER: Final = 0.005  # seconds that completions wait for something that is awaited, to be written with it
_BEHIND: Final = 16_384  # events: what comes for a function that has more before it is not kept in memory until it is written
_LOOK: Final = 1.0  # seconds between looks at the disk's free space


class Completed:
    """Completions without anything besides, but what is written down of them. parts: of each segment the numbers, and of rows.

    Of claims nothing is kept, so that who ran them can free them while they are in its processor's caches.
    """

    __slots__ = ("count", "ledger", "parts")

    def __init__(self, parts: list[tuple[Segment | None, list[int]]], count: int, ledger: Ledger | None) -> None:
        self.parts = parts
        self.count = count
        self.ledger = ledger


class Settlement(NamedTuple):
    """One row of one of a Batch's lists. claim: whose it is; packed: its event, if it leaves a segment.

    copies, notes, ledger: written with it.
    """

    into: Literal["done", "retries", "released", "parked", "letters"]
    row: Any
    claim: Claim
    packed: bytes | None = None
    copies: Accept | None = None
    notes: Sequence[Note] = ()
    ledger: Ledger | None = None


class Want(NamedTuple):
    function: str
    credit: int


class Due(NamedTuple):
    """A timer's word that rows are due."""

    function: str
    at: float


class Call(Generic[T]):
    """Anything else, inside the transaction. wakes: rows of any function may have become due by it."""

    __slots__ = ("error", "future", "result", "wakes", "work")

    result: T

    def __init__(self, future: asyncio.Future[T], work: Callable[[Database], T], *, wakes: bool = False) -> None:
        self.future = future
        self.work = work
        self.wakes = wakes
        self.error: Exception | None = None

    def answer(self) -> None:
        """On the loop, after the commit."""
        if self.future.done():
            return
        if self.error is None:
            self.future.set_result(self.result)
        else:
            self.future.set_exception(self.error)


class Close(NamedTuple):
    """The last operation."""

    future: asyncio.Future[None]


Operation = Completed | Accept | Settlement | Want | Due | Call[Any] | Close


class Commit:
    """One transaction, for the loop to hear of.

    claims: handed out by it. timers: (function, when) its next row is due. pressure: why nothing more is to be accepted.
    step: seconds by which the clock was found to have been set.
    error: nothing of it was written, nothing handed out; settlements and credit stand and are tried with the next one.
    awaited: there is more in it than completions and credit.
    """

    __slots__ = ("accepts", "awaited", "calls", "claims", "close", "error", "pressure", "settled", "step", "timers")

    def __init__(self) -> None:
        self.accepts: list[Accept] = []
        self.settled: list[Completed | Settlement] = []
        self.calls: list[Call[Any]] = []
        self.close: Close | None = None
        self.claims: list[Claim | Packed] = []
        self.timers: list[tuple[str, float]] = []
        self.pressure = ""
        self.step = 0.0
        self.error: JournalError | None = None
        self.awaited = False


class Limits(NamedTuple):
    """When to accept no more. rows, size: of what waits, in events and bytes of the file. free: bytes on the disk; 0: no limit."""

    rows: int = 0
    size: int = 0
    free: int = 0


Opened = asyncio.Future[int]


class Writer(Thread):
    """running: what a dead predecessor ran. freed: bytes of claims that were settled, by function; the loop counts, this thread reads.

    opened: resolves to what `Database.open` returns. heard: run on the loop after every transaction.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        limits: Limits,
        running: Sequence[int],
        freed: dict[str, int],
        opened: Opened,
        heard: Callable[[Commit], None],
    ) -> None:
        super().__init__(name="eventrouter-journal", daemon=True)
        self._database = database
        self._clock = clock
        self._limits = limits
        self._running = running
        self._freed = freed
        self._opened = opened
        self._loop = opened.get_loop()
        self._heard = heard
        # One queue, implemented in C, is the whole meeting place of the two threads: no lock, no lost wake-up.
        self._queue: SimpleQueue[Operation] = SimpleQueue()
        self.put = self._queue.put
        self._lanes: dict[str, Backlog] = {}
        self._hungry: dict[Backlog, None] = {}  # those with credit that may have a backlog
        self.behind: set[str] = set()  # functions with a long backlog; the loop looks
        self._sated: dict[Backlog, None] = {}  # ... but so many bytes in memory that they must wait
        self._before: dict[Backlog, State] = {}  # as they were before this transaction
        self._offset = self._monotonic = 0.0  # of the wall clock from the monotonic one, and that at this commit
        self._left = 0
        self._looked = float("-inf")
        self._pressure = ""

    def run(self) -> None:
        try:
            now = self._clock.time()
            self._offset = now - self._clock.monotonic()
            recovered = self._database.open(now, self._running)
            for function, count in segments.waiting(self._database).items():
                self._lane(function).behind = count
        except Exception as error:
            self._tell(self._opened_or_not, None, error)
            return
        if self._tell(self._opened_or_not, recovered, None):
            self._write_until_closed()
        else:
            self._database.close()

    def _tell(self, callback: Callable[..., None], *arguments: Any) -> bool:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:  # the loop ended without close(): the next opening recovers
            return False
        return True

    def _opened_or_not(self, recovered: Any, error: Exception | None) -> None:
        if self._opened.done():
            return
        if recovered is not None:
            self._opened.set_result(recovered)
        elif error is not None:
            self._opened.set_exception(error)

    def _write_until_closed(self) -> None:
        kept: list[Completed | Settlement] = []
        failed = closed = False
        while not closed:
            commit = self._gather(kept, wait=failed or not self._hungry)
            offset = self._offset
            try:
                self._database.begin()
                if failed:
                    self._database.probe()
                self._write(commit)
                self._database.commit()
            except Exception as error:
                commit.error = self._database.undo(error)
                commit.error.__cause__ = error
                self._offset = offset
                self._undo(commit)
            failed = commit.error is not None
            kept = commit.settled if failed else []
            self._before.clear()
            commit.pressure = self._pressure
            if commit.close is not None:
                self._database.close()
                closed = True
            if not self._tell(self._heard, commit) and not closed:
                self._database.close()
                closed = True
            del commit  # what it holds is freed by the loop, which has it in its processor's caches

    def _gather(self, kept: list[Completed | Settlement], *, wait: bool) -> Commit:
        commit = Commit()
        settled = commit.settled
        settled += kept
        get, monotonic, room = self._queue.get, self._clock.monotonic, _FULL
        ready, until = max(self._queue.qsize(), int(wait)), 0.0
        while room > 0:
            if ready:
                ready -= 1
                operation = get()
            elif commit.awaited or self._hungry or not settled:
                break
            else:  # completions alone: nobody waits for them, and each commit that they have for themselves is one more to wait for
                until = until or monotonic() + _LINGER
                try:
                    operation = get(timeout=max(0.0, until - monotonic()))
                except Empty:
                    break
                ready = self._queue.qsize()
            room -= 1
            if isinstance(operation, Completed):
                settled.append(operation)
                room -= operation.count - 1
            elif isinstance(operation, Want):
                lane = self._lane(operation.function)
                lane.credit += operation.credit
                if lane.waits:
                    self._hungry[lane] = None
            else:
                commit.awaited = True
                room -= self._gather_other(operation, commit)
        return commit

    def _gather_other(self, operation: Accept | Settlement | Due | Call[Any] | Close, commit: Commit) -> int:
        """The rows that it has besides the first."""
        if isinstance(operation, Accept):
            commit.accepts.append(operation)
            return len(operation.answer) - 1
        if isinstance(operation, Settlement):
            commit.settled.append(operation)
            if operation.into == "released":
                self._go_back(self._lane(operation.claim.function))
            elif operation.into == "retries":
                lane, (_, due, _, seq) = self._lane(operation.claim.function), operation.row
                if (due, seq) <= lane.after:  # as at once it may be
                    self._go_back(lane)
        elif isinstance(operation, Due):
            lane = self._lane(operation.function)
            lane.reached = max(lane.reached, operation.at)
            self._wake(lane)
        elif isinstance(operation, Call):
            commit.calls.append(operation)
        else:
            commit.close = operation
        return 0

    def _write(self, commit: Commit) -> None:
        now = self._time(commit)
        copies: list[Accept] = []
        if commit.settled:
            batch, copies, ledgers = self._batch(commit, now)
            for function in self._database.settle(batch, now):
                self._go_back(self._lane(function))
            if ledgers:
                self._database.books.write(ledgers)
        if self._sated:
            self._digest()
        if self._hungry and commit.close is None:
            self._refill(commit, now)
        if commit.accepts or copies:
            self._accept([*copies, *commit.accepts], commit, now)
        if self._database.archive.on:
            self._archive([*copies, *commit.accepts], now)
        for call in commit.calls:
            try:
                call.result = call.work(self._database)
            except (TypeError, ValueError) as error:  # its own arguments; the others' work goes on
                call.error = error
            if call.wakes:
                self._wake_all()
        self._feel()

    def _batch(self, commit: Commit, now: float) -> tuple[Batch, list[Accept], list[Ledger]]:
        batch = Batch()
        copies: list[Accept] = []
        ledgers: list[Ledger] = []
        for operation in commit.settled:
            if isinstance(operation, Settlement):
                self._add(operation, batch, now)
                if operation.copies is not None:
                    copies.append(operation.copies)
                if operation.ledger is not None:
                    ledgers.append(operation.ledger)
                continue
            if operation.ledger is not None:
                ledgers.append(operation.ledger)
            for segment, seqs in operation.parts:
                if segment is None:
                    batch.done += seqs
                    continue
                batch.touched[segment] = None
                batch.ended += len(seqs)
                done, first = segment.done, segment.seq
                for seq in seqs:
                    done[seq - first] = 1
        return batch, copies, ledgers

    def _add(self, operation: Settlement, batch: Batch, now: float) -> None:
        claim = operation.claim
        segment: Segment | None = claim.segment
        if segment is not None:
            batch.touched[segment] = None
            segment.done[claim.seq - segment.seq] = 1
        if segment is not None and operation.into == "done":
            batch.ended += 1
        else:
            if segment is not None:
                at = claim.born + self._offset
                batch.moved += (claim.seq, RUNNING, claim.function, at, operation.packed, None)
            getattr(batch, operation.into).append(operation.row)
        if claim.key is not None:
            batch.keys[claim.function, claim.key] = None
        batch.notes += [(note.key, note.value, None if note.ttl is None else now + note.ttl) for note in operation.notes]

    def _refill(self, commit: Commit, now: float) -> None:
        for lane in list(self._hungry):
            room = self._room(lane)
            if lane.credit > 0 and room > 0:
                self._remember(lane)
                found, due = lane.take(self._database, now, -self._offset, room)
                commit.claims += found
                if lane.behind <= _BEHIND:
                    self.behind.discard(lane.function)
                if due is not None:
                    commit.timers.append((lane.function, due))
            elif lane.credit > 0:
                self._sated[lane] = None
                del self._hungry[lane]
                continue
            if lane.credit <= 0 or not lane.waits:
                del self._hungry[lane]

    def _accept(self, accepts: list[Accept], commit: Commit, now: float) -> None:
        repeats = self._repeats(accepts, now)
        ends: dict[tuple[str, str], tuple[int, int]] = {}
        rows: list[Any] = []
        delayed: list[tuple[float, int]] = []
        whole: list[tuple[Segment, float]] = []
        for accept in accepts:
            at = accept.born + self._offset
            for seq in repeats.intersection(range(accept.first, accept.first + len(accept.answer))) if repeats else ():
                accept.answer[seq - accept.first] = False
            for segment, claims, packed in accept.parts:
                if segment is not None:
                    self._accept_segment(segment, claims, at, whole, repeats, commit)
                elif claims[0].seq not in repeats:
                    self._accept_single(claims[0], packed, at, rows, ends, delayed, commit)
        if rows:
            self._database.insert(rows)
        if whole:
            segments.insert(self._database, whole)
        if delayed:
            self._database.delay(delayed)

    def _accept_segment(
        self,
        segment: Segment,
        claims: list[Claim],
        at: float,
        whole: list[tuple[Segment, float]],
        repeats: set[int],
        commit: Commit,
    ) -> None:
        if repeats:
            for claim in claims:
                if claim.seq in repeats:
                    segment.done[claim.seq - segment.seq] = 1
            claims = [claim for claim in claims if claim.seq not in repeats]
            if 0 not in segment.done:
                return
        lane = self._lane(segment.function)
        direct = bool(claims) and not lane.waits and lane.credit >= len(claims) and self._room(lane) > 0
        self._remember(lane)
        if direct:
            lane.passed = segment.seq
            lane.credit -= len(claims)
            lane.held += segment.size
            commit.claims += claims
        else:
            lane.behind += segment.done.count(0)
            if lane.behind > _BEHIND:
                self.behind.add(lane.function)
            if not lane.waits or (lane.credit > 0 and lane not in self._hungry):
                self._wake(lane)
        if whole and (whole[-1][0].seq in self._database.segments) is direct and whole[-1][0].joined(segment, claims):
            return
        if direct:
            self._database.segments[segment.seq] = segment
        whole.append((segment, at))

    def _accept_single(
        self,
        claim: Claim,
        packed: bytes,
        at: float,
        rows: list[Any],
        ends: dict[tuple[str, str], tuple[int, int]],
        delayed: list[tuple[float, int]],
        commit: Commit,
    ) -> None:
        function, key, seq = claim.function, claim.key, claim.seq
        lane = self._lanes.get(function) or self._lane(function)
        direct = not lane.waits and lane.credit > 0 and not claim.delay and self._room(lane) > 0
        state = RUNNING if direct else WAITING
        if key is not None:
            place = function, key
            before = ends.get(place) or self._database.follows(function, key)
            if before is not None and (state, *before) != (RUNNING, RUNNING, RUNNING):
                state = PARKED
            ends[place] = (state if before is None else before[0], state)
        rows += (seq, state, function, at, packed, key)
        if state == RUNNING:
            self._remember(lane)
            lane.credit -= 1
            lane.held += claim.size
            commit.claims.append(claim)
        elif claim.delay:
            delayed.append((at + claim.delay, seq))
            commit.timers.append((function, at + claim.delay))
        elif state == WAITING:
            if at <= lane.after[0] and (at, seq) <= lane.after:  # something due later has been handed out before it came
                lane.after = START
            if not lane.waits or (lane.credit > 0 and lane not in self._hungry):
                self._wake(lane)

    def _archive(self, accepts: list[Accept], now: float) -> None:
        rows = [
            (claim.seq, accept.born + self._offset, claim.function, packed)
            for accept in accepts
            for segment, claims, packed in accept.parts
            if segment is None  # there are no others as long as events are archived
            for claim in claims
            if accept.answer[claim.seq - accept.first] and "replay" not in claim.event.attributes
        ]
        self._database.archive.add(rows)
        self._database.archive.trim(sum(len(accept.answer) for accept in accepts), now)

    def _room(self, lane: Backlog) -> int:
        """Bytes that it may still be handed."""
        return max(_SHARE, _MEMORY // len(self._lanes)) - lane.held + self._freed.get(lane.function, 0)

    def _digest(self) -> None:
        for lane in [lane for lane in self._sated if self._room(lane) > 0]:
            del self._sated[lane]
            self._hungry[lane] = None

    def _feel(self) -> None:
        """See whether there is room for more, by what was configured and on the disk."""
        limits, database = self._limits, self._database
        if limits.free and self._monotonic - self._looked >= _LOOK:
            self._looked = self._monotonic
            self._left = database.disk_free()
        if limits.rows and database.live >= limits.rows:
            self._pressure = f"the backlog is full: {database.live} events wait; [journal] max_backlog is {limits.rows}"
        elif limits.size and (used := database.size()) >= limits.size:
            self._pressure = f"the backlog is full: the journal has {used >> 20} MB; [journal] max_backlog is {limits.size >> 20} MB"
        elif self._left < limits.free:
            self._pressure = (
                f"the disk is nearly full: {self._left >> 20} MB are left, [journal] min_free is {limits.free >> 20} MB; "
                "free some space, it goes on by itself"
            )
        else:
            self._pressure = ""

    def _repeats(self, accepts: list[Accept], now: float) -> set[int]:
        dedupe = self._database.dedupe
        keys: list[Any] = []
        noted: list[tuple[int, Note]] = []
        for accept in accepts:
            at = accept.born + self._offset
            for claim in accept.natural:
                if claim.event.dedupe and dedupe:
                    keys += (claim.event.source, claim.event.id, claim.function, claim.seq, at)
                if claim.note is not None:
                    noted.append((claim.seq, claim.note))
        if not keys and not noted:
            return set()
        repeats = self._database.repeats(keys, now) if keys else set()
        for seq, note in noted:
            if not self._database.put(note.key, note.value, None, None if note.ttl is None else now + note.ttl, now):
                repeats.add(seq)
        return repeats

    def _remember(self, lane: Backlog) -> None:
        if lane not in self._before:
            self._before[lane] = lane.state()

    def _undo(self, commit: Commit) -> None:
        self._database.taken.difference_update([claim.seq for claim in commit.claims if isinstance(claim, Claim)])
        for lane, state in self._before.items():
            segments.forget(self._database, lane.function, past=state[2])
            lane.restore(state)
            self._go_back(lane)

    def _lane(self, function: str) -> Backlog:
        lane = self._lanes.get(function)
        if lane is None:
            lane = self._lanes[function] = Backlog(function)
        return lane

    def _wake(self, lane: Backlog) -> None:
        lane.waits = True
        if lane.credit > 0:
            self._hungry[lane] = None

    def _go_back(self, lane: Backlog) -> None:
        """Rows may wait in places that were passed."""
        lane.after = START
        self._wake(lane)

    def _wake_all(self) -> None:
        for lane in self._lanes.values():
            self._go_back(lane)

    def _time(self, commit: Commit) -> float:
        """The clock's time; when it was set, first what waits is set with it, or it would be too old, or wait too long.

        By less than that the two clocks always differ, as they are not read at once: to follow it would put what comes
        later before what came sooner. So this goes on evenly, and never back.
        """
        self._monotonic = self._clock.monotonic()
        step = self._clock.time() - self._monotonic - self._offset
        if abs(step) > CLOCK_STEP:
            self._database.shift(step)
            commit.step = step
            for lane in self._lanes.values():
                lane.reached = 0.0
            self._wake_all()
            self._offset += step
        return self._monotonic + self._offset
