"""What a journal is: the durable truth about every accepted event, and a little state besides."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from math import inf
from typing import Any, Protocol

import msgspec

from eventrouter.model import Decision, Event


class Note(msgspec.Struct, frozen=True):
    """Small state to keep besides. ttl: seconds; None: for ever."""

    key: str
    value: bytes
    ttl: float | None = None


class Usage(msgspec.Struct, frozen=True, gc=False):
    """What attempts at a function come to on one day; the journal adds up those of a day, function and tags.

    day: since 1970, by UTC. tags: as JSON. invocations: attempts that ended, of which `errors` failed or were too slow.
    throttles: requests that were turned away. billed: milliseconds. memory: MB times milliseconds. init: milliseconds of cold starts.
    """

    day: int
    function: str
    tags: str
    invocations: int = 0
    errors: int = 0
    throttles: int = 0
    billed: int = 0
    memory: int = 0
    init: int = 0


class Ledger(msgspec.Struct, frozen=True, gc=False):
    """What is written down of something, in the very transaction in which it ends. trail: lines for the audit log."""

    usage: Sequence[Usage] = ()
    trail: bytes = b""


class Block(msgspec.Struct, frozen=True):
    """Records of the audit log that were written together. first: the number of the first; of each, what it says and its hash.

    A run of invocations is one record, with as many numbers as there are of them.
    seal: vouches for the last hash, by a key that is kept elsewhere. place: where it was read.
    """

    first: int
    records: list[bytes]
    hashes: list[bytes]
    seal: bytes
    place: str = "the journal"

    def numbered(self) -> Iterator[tuple[int, bytes, bytes]]:
        """Of each record its first number, what it says, its hash."""
        number = self.first
        for record, stored in zip(self.records, self.hashes, strict=False):
            yield number, record, stored
            number += numbers(record)

    @property
    def last(self) -> int:
        """The last record's last number."""
        return self.first - 1 + sum(map(numbers, self.records))


def numbers(record: bytes) -> int:
    """How many a record takes, whatever has become of it."""
    if record.startswith(b'["s",'):
        count = record[5:16].partition(b",")[0]
        return max(1, int(count)) if count.isdigit() else 1
    return 1


class Head(msgspec.Struct, frozen=True):
    """Where the audit log ends: the number and hash of its last record, and its seal. files: (first, last, digest) of its segments."""

    last: int
    hash: bytes
    seal: bytes
    files: list[tuple[int, int, bytes]]


# Made by C, and out of the garbage collector's sight: nothing that it holds leads back to it.
class Claim(msgspec.Struct, eq=False, gc=False):
    """One function, or queue, owed one event: what a journal accepts, and hands out as work of this process's until it is settled.

    hint: the engine's own, handed back while it is in memory.
    key: claims of one function with the same one run one after another. delay: seconds until it may be handed out.
    note: written with it; while there is one of that key it is a repeat.
    The journal's: attempts, those charged so far. born: when it was accepted, in the clock's monotonic seconds, which no setting
    of the clock makes older. deaths: of the router, in a row, while it ran. redriven: it was a dead letter before.
    began: when the attempt began that succeeded, if it ran with others.
    seq: which it is of all. size: bytes it takes in memory. mark, segment: where it is kept. held: it is handed out and not settled.
    """

    function: str
    event: Event
    hint: Any = None
    key: str | None = None
    delay: float = 0
    note: Note | None = None
    attempts: int = 0
    born: float = 0.0
    deaths: int = 0
    redriven: bool = False
    seq: int = -1
    size: int = 0
    mark: int = -1
    held: bool = False
    segment: Any = None
    began: float = 0.0

    @property
    def id(self) -> str:
        """Names this invocation for ever."""
        return claim_id(self.seq)


Fresh = Callable[[list[bool]], Any]  # is told of several claims which were new, and which repeats


def is_queue(function: str) -> bool:
    """Whether it is a queue's name, such as `sqs:jobs`; no function has one with a colon."""
    return ":" in function


def claim_id(seq: int) -> str:
    """Of the shape of a version 4 UUID, as AWS's request ids are; `claim_seq` reads it."""
    return f"00000000-0000-4000-8{seq >> 48:03x}-{seq & 0xFFFF_FFFF_FFFF:012x}"


def claim_seq(id: str) -> int | None:
    """None: no id of a claim."""
    try:
        seq = int(id[20:23] + id[24:], 16)
    except ValueError:
        return None
    return seq if claim_id(seq) == id else None


class Received(msgspec.Struct, frozen=True):
    """A message of a queue, hidden from others for a while. receives: how often it was received, this time included."""

    id: str
    event: Event
    receives: int


class QueueDepth(msgspec.Struct, frozen=True):
    """How many messages of a queue can be received, are held by somebody, and have a delay that is not over."""

    available: int = 0
    held: int = 0
    delayed: int = 0


class Letter(msgspec.Struct, frozen=True):
    """A dead letter. died_at: seconds since 1970."""

    id: str
    function: str
    reason: str
    error_type: str
    error_message: str
    attempts: int
    died_at: float
    event: Event


class Archived(msgspec.Struct, frozen=True):
    """An event that was accepted. id: of its invocation; at: when, in seconds since 1970."""

    id: str
    at: float
    event: Event


class LetterQuery(msgspec.Struct, frozen=True):
    """Which letters: all that is given must hold. error: an error type or reason. since: seconds since 1970. id: just this one."""

    function: str | None = None
    error: str | None = None
    since: float | None = None
    id: str | None = None


class Whereabouts(msgspec.Struct, frozen=True):
    """Where one invocation is. state: "waiting", "running" (handed out to the router), "dead" or "done".
    What waits for others of its order is "waiting", too.

    attempts: those used up; of what is dead or done, all that were made.
    due: when it may run next, or when it ended; seconds since 1970.
    """

    id: str
    function: str
    state: str
    attempts: int
    accepted: float
    due: float


class Books(Protocol):
    """What is written down besides the events."""

    def enter(self, ledger: Ledger) -> asyncio.Future[None]:
        """Never blocks. Resolves when it is on disk; fails with JournalError when it could not be written."""

    async def used(self, since: int, until: int) -> list[Usage]:
        """Of the days from `since` to before `until`, in their order."""

    async def blocks(self, after: int, most: int) -> tuple[list[Block], Head]:
        """The audit log's records past `after` that are in no segment file, some `most` of them; and where it ended just then."""

    async def head(self) -> Head: ...

    async def filed(self, first: int, last: int, digest: bytes) -> None:
        """These records are in a segment file of that digest now, and no longer in the journal."""


class Journal(Protocol):
    """Every implementation passes `tests/journal_contract.py`. All calls are made on one event loop.

    fault: why it takes no events at present; empty while it does.
    """

    @property
    def fault(self) -> str: ...

    @property
    def books(self) -> Books: ...

    async def open(self) -> None:
        """Recover: the claims of a dead predecessor become claimable, uncharged.

        Raises JournalError when it is another router's, too new, or damaged.
        """

    async def close(self) -> None:
        """Write what is pending, give unsettled claims back uncharged, and let go."""

    def on_fault(self, heard: Callable[[str], None]) -> None:
        """Call it with `fault` whenever events are not taken any more, and when they are again."""

    def accept(self, claims: Sequence[Claim], told: Fresh = list) -> asyncio.Future[Any]:
        """Never blocks. Resolves once all are on disk, to what `told` makes of it; of each: True = new, False = a repeat.

        `told` is called even if nobody waits any more.
        Those whose event has a natural id are deduplicated by (source, id, function), those with a note by its key.
        Fails with JournalError when they could not be written, or there is no room for more; then none was.
        """

    def want(self, function: str, count: int) -> None:
        """Credit: hand out up to `count` more claims of this function, fewer while those it has are large.

        Of one key they come in order, and none behind one that went back before that has ended.
        """

    async def claims(self) -> list[Claim]:
        """Wait for due work that has credit. One caller at a time."""

    def started(self, claim: Claim) -> None:
        """An attempt begins: when the router dies before it is settled, that counts as one of its `deaths`."""

    def marker(self) -> Callable[[Claim | None], None]:
        """As `started`, for attempts that are made one after another: to be called with the claim of each, and with None after the last."""

    def settle(
        self,
        claim: Claim,
        decision: Decision,
        copies: Sequence[Claim] = (),
        notes: Sequence[Note] = (),
        ledger: Ledger | None = None,
    ) -> None:
        """Never blocks: joins the next commit, and what follows from it (copies, results) in the same. Repeated it is harmless."""

    def finish(self, claims: Sequence[Claim], ledger: Ledger | None = None) -> None:
        """As `settle` for each, with `Done`; none has a key."""

    async def flush(self) -> None:
        """Return when all that was said so far is on disk."""

    async def dead(self, query: LetterQuery, after: str = "", limit: int = 100) -> list[Letter]:
        """Oldest first, those past the letter `after`."""

    async def redrive(self, ids: Sequence[str]) -> int:
        """Move letters to the tail with fresh attempts and age, in one transaction. How many there were."""

    async def purge(self, ids: Sequence[str]) -> int:
        """Delete letters. How many there were."""

    async def receive(
        self, queue: str, count: int, hide: float, most: int, keep: float = inf, wait: float = 0
    ) -> tuple[list[Received], list[Claim]]:
        """Messages of a queue that nobody holds, oldest first; they stay, unseen for `hide` seconds.

        Those that have been received `most` times before, or are older than `keep` seconds, are not among them, but claims to be settled.
        Of one key they come in order, and none while one of it is held. wait: seconds to wait for the first.
        """

    async def remove(self, queue: str, id: str, receives: int) -> bool:
        """Delete a message of the queue that was received, if it has not been received again since."""

    async def hide(self, queue: str, id: str, receives: int, seconds: float) -> bool:
        """As `remove`, but let it be seen again in so many seconds."""

    async def expired(self, queue: str, keep: float, count: int) -> list[Claim]:
        """Claims to be settled: up to `count` messages of a queue that nobody holds and that are older than `keep` seconds."""

    async def clear(self, queue: str) -> int:
        """Delete what waits in a queue, what is held by hand included. How many there were."""

    async def queue_depth(self, queue: str) -> QueueDepth: ...

    async def find(self, event_id: str) -> list[Whereabouts]:
        """What is known of an event, or of an invocation by its id, one entry per function."""

    async def archived(self, function: str, since: float, until: float, after: Archived | None = None, limit: int = 1000) -> list[Archived]:
        """What was accepted for the function, or queue, between two times, oldest first, those past `after`; as far as it is kept.

        What has `replay` among its attributes was kept before, and isn't again.
        """

    async def archived_functions(self) -> list[str]:
        """Those of which the archive has anything."""

    async def depth(self) -> dict[str, dict[str, int]]:
        """Per function, how many are `waiting`, `running` and `dead`."""

    async def get(self, key: str) -> bytes | None:
        """Small durable state: checkpoints, cron ticks, client ids."""

    async def put(
        self,
        key: str,
        value: bytes | None,
        expect: bytes | type(...) | None = ...,  # type: ignore[valid-type]
        ttl: float | None = None,
    ) -> bool:
        """Write (None deletes) and return when it is on disk. expect: only if this is the present value. ttl: seconds it is kept.

        False when it was not, and nothing was written.
        """

    async def keys(self, prefix: str) -> list[str]: ...
