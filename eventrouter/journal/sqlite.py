"""The journal that every router has by itself: one SQLite file, or the same in memory.

This is the event loop's side: it queues operations, and hears once per commit what the writer thread has done with them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from itertools import groupby
from math import inf
from operator import attrgetter
from pathlib import Path
from types import EllipsisType
from typing import Any, Final, TypeVar

import msgspec

from eventrouter.clock import Clock, Timer
from eventrouter.errors import JournalError
from eventrouter.journal import queues, segments
from eventrouter.journal.accepts import Accept, pack
from eventrouter.journal.books import OpenBooks
from eventrouter.journal.database import Database
from eventrouter.journal.protocol import (
    Archived,
    Claim,
    Fresh,
    Ledger,
    Letter,
    LetterQuery,
    Note,
    QueueDepth,
    Received,
    Whereabouts,
    claim_seq,
)  # fmt: skip
from eventrouter.journal.running import Running
from eventrouter.journal.segments import MOST, Packed
from eventrouter.journal.writer import Call, Close, Commit, Completed, Due, Limits, Opened, Operation, Settlement, Want, Writer
from eventrouter.model import Decision, Done, Release, RetryAt

T = TypeVar("T")
log = logging.getLogger("eventrouter.journal")

_TRY_AGAIN: Final = 1.0  # seconds after a failed commit, or when there is no room
_RELEASE: Final = Release()
_SEGMENT: Final = attrgetter("segment")
_SEQ: Final = attrgetter("seq")


class SqliteJournal:
    """path: the file, made if missing; None is in memory. dedupe: seconds in which a repeated event id runs once.

    history: seconds that `find` knows of what is done, archive: that `archived` has what was accepted; 0 keeps nothing.
    limits: when to accept no more. key: of the audit log's seals.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        clock: Clock,
        dedupe: float = 86_400,
        history: float = 0,
        archive: float = 0,
        limits: Limits | None = None,
        key: Callable[[], bytes] = bytes,
    ) -> None:
        self.fault = ""
        self._fault_heard: Callable[[str], None] = lambda fault: None
        self._clock = clock
        self._path = path
        self._limits = limits or Limits()
        self._pressure = ""
        self._database = Database(path, dedupe, history, archive, key)
        self.books = OpenBooks(self._ask)
        self._most: dict[str, int] = {}  # of each function, how many events a segment may have: no more than it may hold
        self._cuts = not history and not archive  # which keep events one by one
        self._writer: Writer | None = None
        self._put: Callable[[Operation], None] = _closed
        self._behind: Set[str] = frozenset()
        self._seq = 0
        self._running: Counter[str] = Counter()  # of each function, how many are handed out
        self._ready: list[Claim] = []
        self._waiter: asyncio.Future[None] | None = None
        self._timers: dict[str, tuple[float, Timer]] = {}
        self._again: Timer | None = None
        self._freed: dict[str, int] = {}
        self._listeners: dict[asyncio.Future[None], str] = {}  # of whom waits for messages, each of which queue
        self._blocked: Counter[tuple[str, str]] = Counter()  # keys whose head goes back: settlements not yet committed

    async def open(self) -> None:
        if self._writer is not None:
            raise JournalError("this journal has been opened before; make a new one")
        loop = asyncio.get_running_loop()
        try:
            self._marks = Running(self._path and self._path.with_name("running"))
        except OSError as error:
            raise JournalError(f"journal {self._path}: {error.strerror}; check that its folder exists and is yours") from None
        opened: Opened = loop.create_future()
        self._writer = Writer(self._database, self._clock, self._limits, self._marks.before, self._freed, opened, self._heard)
        self._writer.start()
        try:
            self._seq = await opened
        except asyncio.CancelledError:
            self._writer.put(Close(loop.create_future()))
            raise
        self._marks.clear()
        self._put, self._behind = self._writer.put, self._writer.behind

    async def close(self) -> None:
        if self._writer is None or self._put is _closed:
            return
        closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # What is running stays so in the file: an opening gives it back, whether there was a close before it or a crash.
        self._put(Close(closed))
        self._put = _closed
        for _, timer in self._timers.values():
            timer.cancel()
        if self._again is not None:
            self._again.cancel()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(_is_closed())
        self._wake_listeners()
        await asyncio.wait((closed,))
        self._writer.join()
        self._marks.close()
        self._running.clear()
        self._ready.clear()
        closed.result()

    def on_fault(self, heard: Callable[[str], None]) -> None:
        self._fault_heard = heard

    def _set_fault(self, fault: str) -> None:
        before, self.fault = self.fault, fault
        if bool(before) != bool(fault):
            self._fault_heard(fault)

    # Events

    def accept(self, claims: Sequence[Claim], told: Fresh = list) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        try:
            if self._pressure:
                raise JournalError(self._pressure)
            self._put(self._accept(future, told, claims, self._most if self._cuts else None))
        except JournalError as error:
            future.set_exception(error)
        return future

    def _accept(self, future: asyncio.Future[Any], told: Fresh, claims: Sequence[Claim], most: Mapping[str, int] | None) -> Accept:
        accept = Accept(future, told, claims, self._seq, self._clock.monotonic())
        accept.divide(claims, most, self._behind)
        self._seq += len(claims)
        return accept

    def want(self, function: str, count: int) -> None:
        self._most[function] = max(self._most.get(function, 0), min(count, MOST))
        self._put(Want(function, count))

    async def claims(self) -> list[Claim]:
        while not self._ready:
            if self._put is _closed:
                raise _is_closed()
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        ready: list[Claim] = [*self._ready]
        self._ready = []
        return ready

    def started(self, claim: Claim) -> None:
        if self._put is not _closed:
            claim.mark = self._marks.start(claim.seq)

    def marker(self) -> Callable[[Claim | None], None]:
        marks, place = self._marks, -1

        def mark(claim: Claim | None) -> None:
            nonlocal place
            if claim is None:
                if place >= 0:
                    marks.end(place)
                    place = -1
            elif place >= 0:
                marks.places[place] = claim.seq
            else:
                place = marks.start(claim.seq)

        return mark

    def settle(
        self,
        claim: Claim,
        decision: Decision,
        copies: Sequence[Claim] = (),
        notes: Sequence[Note] = (),
        ledger: Ledger | None = None,
    ) -> None:
        # The same row may have been handed out anew, but that is another claim.
        if not claim.held or self._put is _closed:
            return
        seq, function, key = claim.seq, claim.function, claim.key
        operation: Operation
        if isinstance(decision, Done) and key is None and not copies and not notes:
            operation = Completed([(claim.segment, [seq])], 1, ledger)
        else:
            # No segments: what is tried again when a commit fails must not change on its way into the file.
            accept = self._accept(asyncio.get_running_loop().create_future(), list, copies, None) if copies else None
            packed = None if claim.segment is None or isinstance(decision, Done) else pack(claim.event)
            if isinstance(decision, Done):
                operation = Settlement("done", seq, claim, packed, accept, notes, ledger)
            elif isinstance(decision, RetryAt):
                retry = (0 if key is None else -1, decision.at, decision.attempts, seq)
                operation = Settlement("retries", retry, claim, packed, accept, notes, ledger)
            elif isinstance(decision, Release):
                operation = Settlement("released" if key is None else "parked", seq, claim, packed, ledger=ledger)
            else:
                texts = (_storable(decision.reason), _storable(decision.error_type), _storable(decision.error_message))
                row = (self._clock.time(), decision.attempts, *texts, seq)
                operation = Settlement("letters", row, claim, packed, accept, notes, ledger)
        self._running[function] -= 1
        claim.held = False
        if claim.mark >= 0:
            self._marks.end(claim.mark)
        self._put(operation)
        self._freed[function] = self._freed.get(function, 0) + claim.size
        if isinstance(decision, RetryAt | Release) and key is not None:
            first = (function, key) not in self._blocked
            self._blocked[function, key] += 1
            if first:
                self._hold_back()
        if isinstance(decision, RetryAt):
            self._announce(function, decision.at)

    def finish(self, claims: Sequence[Claim], ledger: Ledger | None = None) -> None:
        held = [claim for claim in claims if claim.held]
        if not held or self._put is _closed:
            return
        function, size = held[0].function, 0
        for claim in held:
            claim.held = False
            size += claim.size
            if claim.mark >= 0:
                self._marks.end(claim.mark)
        self._running[function] -= len(held)
        self._freed[function] = self._freed.get(function, 0) + size
        parts = [(segment, [*map(_SEQ, those)]) for segment, those in groupby(held, _SEGMENT)]
        self._put(Completed(parts, len(held), ledger))

    async def flush(self) -> None:
        await self._ask(_nothing)

    # Letters, whereabouts, state

    async def dead(self, query: LetterQuery, after: str = "", limit: int = 100) -> list[Letter]:
        past = -1
        if after and (past := claim_seq(after)) is None:  # type: ignore[assignment]
            raise JournalError(f"{after!r} is not the id of a dead letter; list them from the start")
        if query.id is None:
            return await self._ask(lambda database: database.letters(query, past, limit))
        seq = claim_seq(query.id)
        if seq is None or seq <= past:
            return []
        found = await self._ask(lambda database: database.letters(query, seq - 1, 1))
        return [letter for letter in found if letter.id == query.id]

    async def redrive(self, ids: Sequence[str]) -> int:
        seqs, now = _seqs(ids), self._clock.time()
        first = self._seq
        self._seq = first + len(seqs)
        functions = await self._ask(lambda database: database.redrive(seqs, first, now), wakes=True)
        return len(functions)

    async def purge(self, ids: Sequence[str]) -> int:
        seqs = _seqs(ids)
        return await self._ask(lambda database: database.purge(seqs))

    async def receive(
        self, queue: str, count: int, hide: float, most: int, keep: float = inf, wait: float = 0
    ) -> tuple[list[Received], list[Claim]]:
        end = self._clock.monotonic() + wait
        while True:
            listener: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            if wait:
                self._listeners[listener] = queue  # before it looks, or it would miss what comes meanwhile
            try:
                now, monotonic = self._clock.time(), self._clock.monotonic()
                look = partial(queues.receive, queue=queue, now=now, born=monotonic - now, count=count, hide=hide, most=most, keep=keep)
                asked = self._ask(look)
                try:
                    received, spent, later = await asyncio.shield(asked)
                except asyncio.CancelledError:
                    asked.add_done_callback(partial(self._give_back, queue, now + hide))
                    raise
                if received:
                    self._announce(queue, now + hide)
                rest = end - self._clock.monotonic()
                if received or spent or rest <= 0:
                    return received, self._adopt(queue, spent)
                # A timer may be a hair early by the wall clock; then it takes another turn.
                pause = rest if later is None else min(rest, max(later - self._clock.time(), 0.001))
                timer = self._clock.call_later(pause, partial(_wake, listener))
                try:
                    await listener
                finally:
                    timer.cancel()
            finally:
                self._listeners.pop(listener, None)

    def _adopt(self, queue: str, claims: list[Claim]) -> list[Claim]:
        """They run, though the writer has not handed them out."""
        self._running[queue] += len(claims)
        for claim in claims:
            claim.held = True
            self._freed[queue] = self._freed.get(queue, 0) - claim.size
        return list(claims)

    def _give_back(self, queue: str, seen: float, asked: asyncio.Future[tuple[list[Received], list[Claim], float | None]]) -> None:
        """Who asked has gone."""
        if asked.cancelled() or asked.exception() is not None:
            return
        received, spent, _ = asked.result()
        if received:
            self._announce(queue, seen)
        for claim in self._adopt(queue, spent):
            self.settle(claim, _RELEASE)

    async def expired(self, queue: str, keep: float, count: int) -> list[Claim]:
        now, monotonic = self._clock.time(), self._clock.monotonic()
        return self._adopt(queue, await self._ask(lambda database: queues.expired(database, queue, now, monotonic - now, keep, count)))

    async def clear(self, queue: str) -> int:
        before, total = self._seq, 0
        while some := await self._ask(lambda database: queues.clear(database, queue, before), wakes=True):  # in slices, as `find`
            total += some
        return total

    async def queue_depth(self, queue: str) -> QueueDepth:
        now = self._clock.time()
        found = await self._ask(lambda database: queues.queue_depth(database, queue, now))
        return msgspec.structs.replace(found, held=found.held + self._running[queue])

    async def remove(self, queue: str, id: str, receives: int) -> bool:
        seq = claim_seq(id)
        if seq is None:
            return False
        removed, woken = await self._ask(lambda database: queues.remove(database, queue, seq, receives))
        if woken:
            await self._ask(_nothing, wakes=True)
        return removed

    async def hide(self, queue: str, id: str, receives: int, seconds: float) -> bool:
        seq, until = claim_seq(id), self._clock.time() + seconds
        return seq is not None and await self._ask(lambda database: queues.hide(database, queue, seq, receives, until), wakes=True)

    async def find(self, event_id: str) -> list[Whereabouts]:
        now = self._clock.time()
        seq = claim_seq(event_id)
        found = [] if seq is None else await self._ask(lambda database: database.find_one(seq, now))
        if found:
            return found
        for look in (partial(Database.find_event, event_id=event_id, now=now), partial(segments.find_event, event_id=event_id)):
            after: int | None = -1
            while after is not None:  # in slices, so that commits get in between
                some, after = await self._ask(partial(look, after=after))
                found += some
        return found

    async def archived(self, function: str, since: float, until: float, after: Archived | None = None, limit: int = 1000) -> list[Archived]:
        now = self._clock.time()
        return await self._ask(lambda database: database.archive.read(function, since, until, after, limit, now))

    async def archived_functions(self) -> list[str]:
        return await self._ask(lambda database: database.archive.functions())

    async def depth(self) -> dict[str, dict[str, int]]:
        waiting, dead = await self._ask(Database.depth)
        running = {function: count for function, count in self._running.items() if count}
        return {
            function: {"waiting": waiting.get(function, 0), "running": running.get(function, 0), "dead": dead.get(function, 0)}
            for function in sorted({*waiting, *running, *dead})
        }

    async def get(self, key: str) -> bytes | None:
        now = self._clock.time()
        return await self._ask(lambda database: database.get(key, now))

    async def put(self, key: str, value: bytes | None, expect: bytes | EllipsisType | None = ..., ttl: float | None = None) -> bool:
        now = self._clock.time()
        expires = None if ttl is None else now + ttl
        return await self._ask(lambda database: database.put(key, value, expect, expires, now))

    async def keys(self, prefix: str) -> list[str]:
        return await self._ask(lambda database: database.keys(prefix))

    def _ask(self, work: Callable[[Database], T], *, wakes: bool = False) -> asyncio.Future[T]:
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        try:
            self._put(Call(future, work, wakes=wakes))
        except JournalError as error:
            future.set_exception(error)
        return future

    # What the writer has done

    def _heard(self, commit: Commit) -> None:
        if commit.error is not None:
            self._failed(commit, commit.error)
            return
        if self.fault != commit.pressure:
            self._changed(commit.pressure)
        if self._pressure:
            self._try_later()
        if commit.step:
            self._set_timers(commit.step)
        if self._blocked:
            self._unblock(commit.settled)
        if self._listeners:
            self._tell_listeners(commit)
        self._hand_out(commit.claims)
        for accept in commit.accepts:
            told = accept.told(accept.answer)
            if not accept.future.done():
                accept.future.set_result(told)
        for call in commit.calls:
            call.answer()
        for function, due in commit.timers:
            self._announce(function, due)
        if commit.close is not None and not commit.close.future.done():
            commit.close.future.set_result(None)
        if self._ready and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)  # after the receipts: sources acknowledge before handlers run

    def _tell_listeners(self, commit: Commit) -> None:
        """Wake those in whose queues there may be something now."""
        if commit.step or any(call.wakes for call in commit.calls):
            self._wake_listeners()
            return
        ended = [operation for operation in commit.settled if isinstance(operation, Settlement)]
        accepts = [*commit.accepts, *(operation.copies for operation in ended if operation.copies is not None)]
        names = {operation.claim.function for operation in ended}
        names.update(claims[0].function for accept in accepts for _, claims, _ in accept.parts if claims)
        self._wake_listeners(names)

    def _wake_listeners(self, names: Set[str] | None = None) -> None:
        for listener, queue in self._listeners.items():
            if names is None or queue in names:
                _wake(listener)

    def _changed(self, pressure: str) -> None:
        if not pressure:
            log.info("the journal takes events again", extra={"action": "journal.accepting"})
        elif not self._pressure:
            log.warning("no more events are taken: %s", pressure, extra={"action": "journal.full"})
        self._pressure = pressure
        self._set_fault(pressure)

    def _unblock(self, settled: Sequence[Completed | Settlement]) -> None:
        for operation in settled:
            if isinstance(operation, Settlement) and operation.claim.key is not None and operation.into in ("retries", "parked"):
                place = operation.claim.function, operation.claim.key
                self._blocked[place] -= 1
                if not self._blocked[place]:
                    del self._blocked[place]

    def _hand_out(self, claims: Sequence[Claim | Packed]) -> None:
        for claim in claims:
            if isinstance(claim, Packed):
                unpacked = claim.claims(held=True)
                self._running[claim.segment.function] += len(unpacked)
                self._ready += unpacked
                continue
            self._running[claim.function] += 1
            claim.held = True
            self._ready.append(claim)
        if self._blocked:
            self._hold_back()

    def _hold_back(self) -> None:
        """What was handed out before it was known that one before it goes back, and nobody has taken yet, goes back, too."""
        ready, self._ready = self._ready, []
        for claim in ready:
            if claim.key is not None and (claim.function, claim.key) in self._blocked and self._put is not _closed:
                self.settle(claim, _RELEASE)
                self.want(claim.function, 1)
            else:
                self._ready.append(claim)

    def _set_timers(self, step: float) -> None:
        timers, self._timers = self._timers, {}
        for function, (due, timer) in timers.items():
            timer.cancel()
            self._announce(function, due + step)

    def _failed(self, commit: Commit, error: JournalError) -> None:
        if not self.fault:
            log.error("%s", error, extra={"action": "journal.failed"})
        self._set_fault(str(error))
        futures: list[asyncio.Future[Any]] = [*(accept.future for accept in commit.accepts), *(call.future for call in commit.calls)]
        if commit.close is not None:
            futures.append(commit.close.future)
        for future in futures:
            if not future.done():
                future.set_exception(error)
        self._try_later()

    def _try_later(self) -> None:
        if self._again is None and self._put is not _closed:
            self._again = self._clock.call_later(_TRY_AGAIN, self._try_again)

    def _try_again(self) -> None:
        self._again = None
        self._put(Want("", 0))  # the writer keeps what failed, and looks for room; it needs but a call

    def _announce(self, function: str, due: float) -> None:
        """See that the function's rows are looked at again at `due`."""
        if self._put is _closed:
            return
        delay = due - self._clock.time()
        if delay <= 0:
            self._put(Due(function, due))
            return
        if function in self._timers:
            at, timer = self._timers[function]
            if at <= due:
                return
            timer.cancel()
        self._timers[function] = (due, self._clock.call_later(delay, partial(self._due, function)))

    def _due(self, function: str) -> None:
        at, _ = self._timers.pop(function)
        self._put(Due(function, at))


def _is_closed() -> JournalError:
    return JournalError("the journal is closed")


def _closed(operation: Operation) -> None:
    raise _is_closed()


def _wake(listener: asyncio.Future[None]) -> None:
    if not listener.done():
        listener.set_result(None)


def _nothing(database: Database) -> None:
    """Its answer says that all before it is on disk."""


def _storable(text: str) -> str:
    return text.encode(errors="replace").decode()  # a lone surrogate would fail every commit it is in


def _seqs(ids: Sequence[str]) -> list[int]:
    return [seq for seq in map(claim_seq, ids) if seq is not None]
