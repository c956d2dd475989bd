"""The journal that every router has by itself: one SQLite file, or the same in memory.

This is the event loop's side: it queues operations, and hears once per commit what the writer thread has done with them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import EllipsisType
from typing import Any, Final, TypeVar

from eventrouter.clock import Clock, Timer
from eventrouter.errors import JournalError
from eventrouter.journal.database import Database, RowClaim, claim_seq
from eventrouter.journal.protocol import Claim, Entry, Letter, LetterQuery, Whereabouts
from eventrouter.journal.running import Running
from eventrouter.journal.writer import Accept, Call, Close, Commit, Due, Opened, Operation, Settlement, Want, Writer
from eventrouter.model import Decision, Done, Event, Release, RetryAt

T = TypeVar("T")
log = logging.getLogger("eventrouter.journal")

_TRY_AGAIN: Final = 1.0  # seconds after a failed commit


class SqliteJournal:
    """path: the file, made if missing; None is in memory. dedupe: seconds in which a repeated event id runs once.

    history: seconds that `find` knows of what is done; 0 keeps nothing.
    """

    def __init__(self, path: Path | None, *, clock: Clock, dedupe: float = 86_400, history: float = 0) -> None:
        self._clock = clock
        self._path = path
        self._database = Database(path, dedupe, history)
        self._writer: Writer | None = None
        self._put: Callable[[Operation], None] = _closed
        self._seq = 0
        self._running: dict[int, Claim] = {}
        self._ready: list[Claim] = []
        self._waiter: asyncio.Future[None] | None = None
        self._timers: dict[str, tuple[float, Timer]] = {}
        self._again: Timer | None = None

    async def open(self) -> None:
        if self._writer is not None:
            raise JournalError("this journal has been opened before; make a new one")
        loop = asyncio.get_running_loop()
        try:
            self._marks = Running(self._path and self._path.with_name("running"))
        except OSError as error:
            raise JournalError(f"journal {self._path}: {error.strerror}; check that its folder exists and is yours") from None
        opened: Opened = loop.create_future()
        self._writer = Writer(self._database, self._clock, self._marks.before, opened, self._heard)
        self._writer.start()
        try:
            self._seq, crashed = await opened
        except asyncio.CancelledError:
            self._writer.put(Close(loop.create_future()))
            raise
        self._marks.clear()
        for id, function in crashed:
            log.error(
                "%s: dead letter %s (RouterCrashed): the router died while running it, too often in a row; `eventrouter dlq show %s`",
                function, id, id, extra={"action": "invocation.dead", "function": function, "invocation": id},
            )  # fmt: skip
        self._put = self._writer.put

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
        await asyncio.wait((closed,))
        self._writer.join()
        self._marks.close()
        self._running.clear()
        self._ready.clear()
        closed.result()

    # Events

    def accept(self, entries: Sequence[Entry]) -> asyncio.Future[list[bool]]:
        future: asyncio.Future[list[bool]] = asyncio.get_running_loop().create_future()
        try:
            self._put(Accept(future, entries, _pack(entries), self._seq, self._clock.time()))
        except JournalError as error:
            future.set_exception(error)
        else:
            self._seq += len(entries)
        return future

    def want(self, function: str, count: int) -> None:
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
        ready, self._ready = self._ready, []
        return ready

    def started(self, claim: Claim) -> None:
        if isinstance(claim, RowClaim) and self._put is not _closed:
            claim.mark = self._marks.start(claim.seq)

    def settle(self, claim: Claim, decision: Decision) -> None:
        # By identity: the same row may have been handed out anew, and that claim is another's to settle.
        if not isinstance(claim, RowClaim) or self._running.get(claim.seq) is not claim or self._put is _closed:
            return
        seq = claim.seq
        del self._running[seq]
        if claim.mark >= 0:
            self._marks.end(claim.mark)
        if isinstance(decision, Done):
            self._put(seq)
        elif isinstance(decision, RetryAt):
            self._put(Settlement("retries", (decision.at, decision.attempts, seq)))
            self._announce(claim.function, decision.at)
        elif isinstance(decision, Release):
            self._put(Settlement("released", seq, claim.function))
        else:
            texts = (_storable(decision.reason), _storable(decision.error_type), _storable(decision.error_message))
            self._put(Settlement("letters", (self._clock.time(), decision.attempts, *texts, seq)))

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

    async def find(self, event_id: str) -> list[Whereabouts]:
        now = self._clock.time()
        seq = claim_seq(event_id)
        found = [] if seq is None else await self._ask(lambda database: database.find_one(seq, now))
        after: int | None = None if found else -1
        while after is not None:  # in slices, so that commits get in between
            some, after = await self._ask(partial(Database.find_event, event_id=event_id, after=after, now=now))
            found += some
        return found

    async def depth(self) -> dict[str, dict[str, int]]:
        waiting, dead = await self._ask(Database.depth)
        running = Counter(claim.function for claim in self._running.values())
        return {
            function: {"waiting": waiting.get(function, 0), "running": running[function], "dead": dead.get(function, 0)}
            for function in sorted({*waiting, *running, *dead})
        }

    async def get(self, key: str) -> bytes | None:
        return await self._ask(lambda database: database.get(key))

    async def put(self, key: str, value: bytes | None, expect: bytes | EllipsisType | None = ...) -> bool:
        return await self._ask(lambda database: database.put(key, value, expect))

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
        for claim in commit.claims:
            self._running[claim.seq] = claim
        self._ready += commit.claims
        for accept in commit.accepts:
            if not accept.future.done():
                accept.future.set_result(accept.answer)
        for call in commit.calls:
            if not call.future.done():
                if call.error is None:
                    call.future.set_result(call.result)
                else:
                    call.future.set_exception(call.error)
        for function, due in commit.timers:
            self._announce(function, due)
        if commit.close is not None and not commit.close.future.done():
            commit.close.future.set_result(None)
        if self._ready and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _failed(self, commit: Commit, error: JournalError) -> None:
        futures: list[asyncio.Future[Any]] = [*(accept.future for accept in commit.accepts), *(call.future for call in commit.calls)]
        if commit.close is not None:
            futures.append(commit.close.future)
        for future in futures:
            if not future.done():
                future.set_exception(error)
        if self._again is None and self._put is not _closed:
            self._again = self._clock.call_later(_TRY_AGAIN, self._try_again)

    def _try_again(self) -> None:
        self._again = None
        self._put(Want("", 0))  # the writer keeps what failed; it needs but a call

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


def _pack(entries: Sequence[Entry]) -> list[bytes]:
    packed: list[bytes] = []
    last: Event | None = None
    for entry in entries:
        event = entry.event
        if event is last:  # several functions want it
            packed.append(packed[-1])
            continue
        last = event
        try:
            packed.append(event.pack())
        except (TypeError, ValueError, OverflowError) as error:
            raise JournalError(f"{event!r} cannot be stored: {error}; attributes must be JSON types") from error
    return packed


def _is_closed() -> JournalError:
    return JournalError("the journal is closed")


def _closed(operation: Operation) -> None:
    raise _is_closed()


def _nothing(database: Database) -> None:
    """Its answer says that all before it is on disk."""


def _storable(text: str) -> str:
    return text.encode(errors="replace").decode()  # a lone surrogate would fail every commit it is in


def _seqs(ids: Sequence[str]) -> list[int]:
    return [seq for seq in map(claim_seq, ids) if seq is not None]
