"""The journal's one thread: takes all operations that gathered, writes them in one transaction, tells the loop once.

It alone decides what is handed out, because only here is it known what the file holds: a function that has credit and no
backlog gets its new events straight from memory after the commit; otherwise they wait in the file until there is credit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import Any, Final, Generic, Literal, NamedTuple, TypeVar

from eventrouter.clock import Clock
from eventrouter.errors import JournalError
from eventrouter.journal.database import CLOCK_STEP, RUNNING, WAITING, Batch, Database, RowClaim
from eventrouter.journal.protocol import Entry

T = TypeVar("T")

_FIRST_REFILL: Final = 64  # rows: few, so that the first work of a long backlog starts at once
_REFILL: Final = 1024
_FULL: Final = 1024  # rows: a longer commit would make the loop wait for work, and then it for the loop's


class Accept:
    """New events. packed: one each; first: the sequence number of the first; at: when. answer: after the commit."""

    __slots__ = ("answer", "at", "entries", "first", "future", "packed")

    def __init__(self, future: asyncio.Future[list[bool]], entries: Sequence[Entry], packed: list[bytes], first: int, at: float) -> None:
        self.future = future
        self.entries = entries
        self.packed = packed
        self.first = first
        self.at = at
        self.answer = [True] * len(entries)


class Settlement(NamedTuple):
    """One row of one of a Batch's lists. function: whose it is, if the row waits again and is due now."""

    into: Literal["retries", "released", "letters"]
    row: Any
    function: str = ""


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


class Close(NamedTuple):
    """The last operation."""

    future: asyncio.Future[None]


# A completion is the most frequent operation and no object at all: the bare sequence number.
Operation = int | Accept | Settlement | Want | Due | Call[Any] | Close


class Commit:
    """One transaction, for the loop to hear of.

    claims: handed out by it. timers: (function, when) its next row is due.
    error: nothing of it was written, nothing handed out; settlements and credit stand and are tried with the next one.
    """

    __slots__ = ("accepts", "calls", "claims", "close", "error", "settled", "timers")

    def __init__(self) -> None:
        self.accepts: list[Accept] = []
        self.settled: list[int | Settlement] = []
        self.calls: list[Call[Any]] = []
        self.close: Close | None = None
        self.claims: list[RowClaim] = []
        self.timers: list[tuple[str, float]] = []
        self.error: JournalError | None = None


class _Lane:
    """One function. credit: claims it may still get. backlog: due rows may be in the file, and nothing may overtake them;
    until it is known otherwise it is assumed. reached: the latest due time that a timer announced.
    """

    __slots__ = ("backlog", "credit", "function", "reached", "size")

    def __init__(self, function: str) -> None:
        self.function = function
        self.credit = 0
        self.backlog = True
        self.reached = 0.0
        self.size = _FIRST_REFILL


Opened = asyncio.Future[tuple[int, list[tuple[str, str]]]]


class Writer(Thread):
    """opened: resolves to what `Database.open` returns. heard: run on the loop after every transaction."""

    def __init__(self, database: Database, clock: Clock, running: Sequence[int], opened: Opened, heard: Callable[[Commit], None]) -> None:
        super().__init__(name="eventrouter-journal", daemon=True)
        self._database = database
        self._clock = clock
        self._running = running
        self._opened = opened
        self._loop = opened.get_loop()
        self._heard = heard
        # One queue, implemented in C, is the whole meeting place of the two threads: no lock, no lost wake-up.
        self._queue: SimpleQueue[Operation] = SimpleQueue()
        self.put = self._queue.put
        self._lanes: dict[str, _Lane] = {}
        self._hungry: dict[_Lane, None] = {}  # those with credit that may have a backlog
        self._credit: dict[_Lane, int] = {}  # as it was before this transaction
        self._now = 0.0

    def run(self) -> None:
        try:
            self._now = self._clock.time()
            recovered = self._database.open(self._now, self._running)
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
        kept: list[int | Settlement] = []
        failed = closed = False
        while not closed:
            commit = self._gather(kept, wait=failed or not self._hungry)
            try:
                with self._database.transaction():
                    self._write(commit)
            except JournalError as error:
                commit.error = error
                self._undo()
            failed = commit.error is not None
            kept = commit.settled if failed else []
            self._credit.clear()
            if commit.close is not None:
                self._database.close()
                closed = True
            if not self._tell(self._heard, commit) and not closed:
                self._database.close()
                closed = True

    def _gather(self, kept: list[int | Settlement], *, wait: bool) -> Commit:
        commit = Commit()
        settled = commit.settled
        settled += kept
        get = self._queue.get
        room = _FULL
        for _ in range(max(self._queue.qsize(), int(wait))):
            operation = get()
            room -= 1
            if isinstance(operation, int):
                settled.append(operation)
            elif isinstance(operation, Accept):
                commit.accepts.append(operation)
                room -= len(operation.entries)
            elif isinstance(operation, Settlement):
                settled.append(operation)
                if operation.function:
                    self._wake(self._lane(operation.function))
            elif isinstance(operation, Want):
                lane = self._lane(operation.function)
                lane.credit += operation.credit
                if lane.backlog:
                    self._hungry[lane] = None
            elif isinstance(operation, Due):
                lane = self._lane(operation.function)
                lane.reached = max(lane.reached, operation.at)
                self._wake(lane)
            elif isinstance(operation, Call):
                commit.calls.append(operation)
            else:
                commit.close = operation
            if room <= 0:
                break
        return commit

    def _write(self, commit: Commit) -> None:
        now = self._time()
        batch = Batch()
        for operation in commit.settled:
            if isinstance(operation, int):
                batch.done.append(operation)
            else:
                getattr(batch, operation.into).append(operation.row)
        self._database.settle(batch, now)
        if self._hungry and commit.close is None:
            self._refill(commit, now)
        if commit.accepts:
            self._accept(commit, now)
        for call in commit.calls:
            try:
                call.result = call.work(self._database)
            except (TypeError, ValueError) as error:  # its own arguments; the others' work goes on
                call.error = error
            if call.wakes:
                self._wake_all()

    def _refill(self, commit: Commit, now: float) -> None:
        for lane in list(self._hungry):
            if lane.credit:
                limit = min(lane.credit, lane.size)
                lane.size = min(lane.size * 4, _REFILL)
                # A timer may be a hair early by the wall clock; what it announced is due.
                found, exhausted, next_due = self._database.take(lane.function, max(now, lane.reached), limit)
                commit.claims += found
                self._credit.setdefault(lane, lane.credit)
                lane.credit -= len(found)
                lane.backlog = not exhausted
                if exhausted:
                    lane.size = _FIRST_REFILL
                if next_due is not None:
                    commit.timers.append((lane.function, next_due))
            if not lane.credit or not lane.backlog:
                del self._hungry[lane]

    def _accept(self, commit: Commit, now: float) -> None:
        repeats = self._repeats(commit.accepts, now)
        rows: list[Any] = []
        for accept in commit.accepts:
            seq, at = accept.first - 1, accept.at
            for entry, packed in zip(accept.entries, accept.packed, strict=True):
                seq += 1
                if repeats and seq in repeats:
                    accept.answer[seq - accept.first] = False
                    continue
                function = entry.function
                lane = self._lanes.get(function) or self._lane(function)
                if lane.credit > 0 and not lane.backlog:
                    if lane not in self._credit:
                        self._credit[lane] = lane.credit
                    lane.credit -= 1
                    rows += (seq, RUNNING, function, at, packed)
                    commit.claims.append(RowClaim(seq, function, entry.event, 0, at, entry.hint))
                else:
                    lane.backlog = True
                    rows += (seq, WAITING, function, at, packed)
        self._database.insert(rows)

    def _repeats(self, accepts: list[Accept], now: float) -> set[int]:
        keys: list[Any] = []
        for accept in accepts:
            for seq, entry in enumerate(accept.entries, accept.first):
                if entry.event.dedupe:
                    keys += (entry.event.source, entry.event.id, entry.function, seq, accept.at)
        return self._database.repeats(keys, now) if keys else set()

    def _undo(self) -> None:
        for lane, credit in self._credit.items():
            lane.credit = credit
            self._wake(lane)

    def _lane(self, function: str) -> _Lane:
        lane = self._lanes.get(function)
        if lane is None:
            lane = self._lanes[function] = _Lane(function)
        return lane

    def _wake(self, lane: _Lane) -> None:
        lane.backlog = True
        if lane.credit:
            self._hungry[lane] = None

    def _wake_all(self) -> None:
        for lane in self._lanes.values():
            self._wake(lane)

    def _time(self) -> float:
        """The clock's time, but small steps back don't show: what was accepted a moment ago is not in the future."""
        now = self._clock.time()
        if now < self._now - CLOCK_STEP:
            # Else all that was accepted under the wrong date would wait for it to come.
            self._database.set_clock_back(now)
            for lane in self._lanes.values():
                lane.reached = 0.0
            self._wake_all()
            self._now = now
        self._now = max(self._now, now)
        return self._now
