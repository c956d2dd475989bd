"""What is written down besides the events: what each function has used, and the audit log. Run on the journal's thread, but for `check`.

The log is a chain: the hash of each record is that of the one before it and of what it says. So a record can't be edited, removed or
moved without all hashes behind it changing. Who writes those anew as well lacks the key of the seals.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from eventrouter.journal.protocol import Block, Head, Ledger, Usage, numbers

if TYPE_CHECKING:
    import apsw

    from eventrouter.journal.database import Database

HASH: Final = 32  # bytes
START: Final = bytes(HASH)  # comes before the first record
_PIECE: Final = 2047  # bytes

_ADD: Final = """INSERT INTO usage (day, function, tags, invocations, errors, throttles, billed, memory, init)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
    invocations = invocations + excluded.invocations, errors = errors + excluded.errors, throttles = throttles + excluded.throttles,
    billed = billed + excluded.billed, memory = memory + excluded.memory, init = init + excluded.init"""
_USED: Final = """SELECT day, function, tags, invocations, errors, throttles, billed, memory, init FROM usage
    WHERE day >= ? AND day < ? ORDER BY day, function, tags"""
_READ: Final = "SELECT first, records, hashes, seal FROM audit WHERE first > ? ORDER BY first"


class Books:
    """key: makes or reads that of the seals, and raises JournalError; it is called when the journal opens."""

    def __init__(self, key: Callable[[], bytes]) -> None:
        self._make_key = key
        self._end: tuple[int, bytes] | None = None  # the last record's number and hash; None: it is to be read

    def open(self, connection: apsw.Connection) -> None:
        self._execute = connection.execute
        self._key = self._make_key()

    def undo(self) -> None:
        """What was written last was not, after all."""
        self._end = None

    def write(self, ledgers: Sequence[Ledger]) -> None:
        sums: dict[tuple[int, str, str], list[int]] = {}
        trail: list[bytes] = []
        for ledger in ledgers:
            for use in ledger.usage:
                amounts = (use.invocations, use.errors, use.throttles, use.billed, use.memory, use.init)
                before = sums.get((use.day, use.function, use.tags))
                sums[use.day, use.function, use.tags] = (
                    [*amounts] if before is None else [a + b for a, b in zip(before, amounts, strict=True)]
                )
            if ledger.trail:
                trail.append(ledger.trail)
        for of, added in sums.items():
            self._execute(_ADD, (*of, *added))
        if trail:
            self._append(b"".join(trail))

    def _append(self, trail: bytes) -> None:
        last, chain = self._end or self._read_end()
        records = trail.split(b"\n")
        records.pop()
        hashes = [chain := link(chain, record) for record in records]
        first, last = last + 1, last + sum(map(numbers, records))
        self._execute(
            "INSERT INTO audit VALUES (?, ?, ?, ?)",
            (first, trail, b"".join(hashes), seal(self._key, last, chain)),
        )
        self._execute("UPDATE audit_head SET last = ?, hash = ?, seal = ?", (last, chain, seal(self._key, last, chain, b"head")))
        self._end = last, chain

    def _read_end(self) -> tuple[int, bytes]:
        head = self._execute("SELECT last, hash FROM audit_head").fetchone()
        if head is not None:
            return head[0], head[1]
        self._execute("INSERT INTO audit_head VALUES (0, ?, ?)", (START, seal(self._key, 0, START, b"head")))
        return 0, START

    def used(self, since: int, until: int) -> list[Usage]:
        return [Usage(*row) for row in self._execute(_USED, (since, until))]

    def blocks(self, after: int, most: int) -> tuple[list[Block], Head]:
        found, count = list[Block](), 0
        rows = self._execute(_READ, (after,))
        for first, records, hashes, sealed in rows:
            found.append(Block(first, records.split(b"\n")[:-1], split(hashes), sealed))
            count += found[-1].last - first + 1
            if count >= most:
                break
        rows.close()
        return found, self.head()

    def head(self) -> Head:
        last, chain, sealed = self._execute("SELECT last, hash, seal FROM audit_head").fetchone() or (0, START, b"")
        return Head(last, chain, sealed, list(self._execute("SELECT first, last, digest FROM audit_file ORDER BY first")))

    def filed(self, first: int, last: int, digest: bytes) -> None:
        self._execute("INSERT INTO audit_file VALUES (?, ?, ?)", (first, last, digest))
        self._execute("DELETE FROM audit WHERE first BETWEEN ? AND ?", (first, last))


class OpenBooks:
    """The same, for the event loop. ask: has the journal's thread do something in its next transaction."""

    def __init__(self, ask: Callable[[Callable[[Database], Any]], asyncio.Future[Any]]) -> None:
        self._ask = ask

    def enter(self, ledger: Ledger) -> asyncio.Future[None]:
        return self._ask(lambda database: database.books.write([ledger]))

    async def used(self, since: int, until: int) -> list[Usage]:
        found: list[Usage] = await self._ask(lambda database: database.books.used(since, until))
        return found

    async def blocks(self, after: int, most: int) -> tuple[list[Block], Head]:
        found: tuple[list[Block], Head] = await self._ask(lambda database: database.books.blocks(after, most))
        return found

    async def head(self) -> Head:
        found: Head = await self._ask(lambda database: database.books.head())
        return found

    async def filed(self, first: int, last: int, digest: bytes) -> None:
        await self._ask(lambda database: database.books.filed(first, last, digest))


def link(chain: bytes, record: bytes) -> bytes:
    """The hash of a record, by that of the one before it."""
    # In pieces: over more at once it lets go of the interpreter's lock, and has to wait for the loop to get it again.
    made = hashlib.sha256(chain)
    for at in range(0, len(record), _PIECE):
        made.update(record[at : at + _PIECE])
    return made.digest()


def seal(key: bytes, last: int, chain: bytes, of: bytes = b"block") -> bytes:
    return hmac.digest(key, b"%b %d " % (of, last) + chain, "sha256")


def split(hashes: bytes) -> list[bytes]:
    return [hashes[at : at + HASH] for at in range(0, len(hashes), HASH)]


class Fault(msgspec.Struct, frozen=True):
    """What is wrong with an audit log. record: the number of the first that it is wrong with."""

    record: int
    what: str


class Check:
    """Goes along the chain. Give it all blocks in their order, then the head; it is over with the first fault."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.last, self._chain = 0, START

    def block(self, block: Block) -> Fault | None:
        if block.first != self.last + 1:
            return self._gap(block)
        for number, record, stored in block.numbered():
            self._chain = link(self._chain, record)
            self.last += numbers(record)
            if not hmac.compare_digest(self._chain, stored):
                what = f"{_named(number, self.last)} in {block.place} is not what was written"
                return Fault(number, f"{what}: it, or the one before it with its hash, was edited, removed or moved")
        if len(block.records) != len(block.hashes):
            return Fault(self.last + 1, f"record {self.last + 1} in {block.place} was removed, or added")
        if not hmac.compare_digest(seal(self._key, self.last, self._chain), block.seal):
            return Fault(block.first, f"records {block.first} to {self.last} in {block.place} have another seal: they were written anew")
        return None

    def _gap(self, block: Block) -> Fault:
        due = self.last + 1
        if block.first > due:
            return Fault(due, f"record {due} is missing: {block.place} goes on with {block.first}")
        return Fault(block.first, f"record {block.first} in {block.place} comes after {self.last}: it was moved, or is there twice")

    def head(self, head: Head) -> Fault | None:
        if head.last > self.last:
            return Fault(self.last + 1, f"record {self.last + 1} is missing: the log was cut off, it went on to {head.last}")
        if head.last < self.last:
            return Fault(head.last + 1, f"record {head.last + 1} is beyond the log's end: it was added, or the end was set back")
        if not head.seal and not head.last:
            return None
        if not hmac.compare_digest(head.hash, self._chain) or not hmac.compare_digest(
            head.seal, seal(self._key, head.last, head.hash, b"head")
        ):
            return Fault(self.last, f"the log's end, record {self.last}, has another seal: it was written anew, or the key is another")
        return None


def check(blocks: Iterable[Block], head: Head, key: bytes) -> Fault | None:
    going = Check(key)
    for block in blocks:
        if (fault := going.block(block)) is not None:
            return fault
    return going.head(head)


def _named(first: int, last: int) -> str:
    return f"record {first}" if first == last else f"the record of {first} to {last}"


def line(row: Any) -> bytes:
    return msgspec.json.encode(row) + b"\n"
