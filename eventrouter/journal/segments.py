"""Events that wait and run together are kept together: many in one row, and which of them are done in another.

A segment is cut from what was accepted at once for one function. It costs one insert and one delete, whatever the number of its
events; one of them that meets another fate than the usual (a retry, a dead letter, the way back) moves to a row of its own.
Run on the journal's thread, but for `cut`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from eventrouter.journal.protocol import Claim, Whereabouts, claim_id
from eventrouter.journal.schema import readable
from eventrouter.model import Event, pack_many, unpack_many

if TYPE_CHECKING:
    from eventrouter.journal.database import Database

MOST: Final = 128  # events of a segment
_LARGE: Final = 128 * 1024  # bytes of events that are not cut again
_SLICE: Final = 100  # segments that `find` looks through at a time

_INSERT: Final = "INSERT INTO segment (seq, function, count, accepted, events) VALUES (?, ?, ?, ?, ?)"
_TAKE: Final = """SELECT segment.seq, count, accepted, events, done FROM segment INDEXED BY segments LEFT JOIN progress USING (seq)
    WHERE function = ? AND segment.seq > ? AND accepted <= ? ORDER BY segment.seq"""
_FIRST: Final = "SELECT accepted FROM segment INDEXED BY segments WHERE function = ? AND seq > ? ORDER BY seq LIMIT 1"
_ONE: Final = """SELECT segment.seq, function, count, accepted, events, done FROM segment LEFT JOIN progress USING (seq)
    WHERE segment.seq <= ? ORDER BY segment.seq DESC LIMIT 1"""
_SOME: Final = """SELECT segment.seq, function, count, accepted, events, done FROM segment LEFT JOIN progress USING (seq)
    WHERE segment.seq > ? ORDER BY segment.seq LIMIT ?"""
_NOTE: Final = "INSERT OR REPLACE INTO progress VALUES (?, ?)"


class Segment:
    """seq: of its first event; the others' follow. packed: its events, one behind the other. done: a byte for each, 1 when it is.

    size: bytes of packed, of which each has an equal part.
    spare: how many were read from the file and are not handed out yet. noted: its progress is in the file.
    """

    __slots__ = ("done", "function", "noted", "packed", "seq", "size", "spare")

    def __init__(self, seq: int, function: str, packed: bytes, done: bytearray) -> None:
        self.seq = seq
        self.function = function
        self.packed = [packed]
        self.size = len(packed)
        self.done = done
        self.spare = 0
        self.noted = False

    def joined(self, other: Segment, claims: Sequence[Claim]) -> bool:
        """Take in one that follows, if the two are small. claims: the other's."""
        if (
            self.function != other.function
            or self.seq + len(self.done) != other.seq
            or len(self.done) + len(other.done) > MOST
            or self.size + other.size > _LARGE
        ):
            return False
        for claim in claims:
            claim.segment = self
        self.packed += other.packed
        self.done += other.done
        self.size += other.size
        return True


# Of what is accepted: a segment and its claims; or no segment, a single claim for a row of its own, and its bytes.
Part = tuple[Segment | None, list[Claim], bytes]


def cut(claims: list[Claim], seq: int, most: int) -> list[Part]:
    """Segments of up to `most` claims of one function, numbered from `seq`. Raises what packing raises."""
    # Not kept by the segment itself: claims are out of the garbage collector's sight, and what leads back to them would never go.
    found: list[Part] = []
    while claims:
        some = claims[:most]
        packed = pack_many([claim.event for claim in some])
        while len(packed) > _LARGE and len(some) > 1:
            some = some[: len(some) // 2]
            packed = pack_many([claim.event for claim in some])
        segment = Segment(seq, some[0].function, packed, bytearray(len(some)))
        size = len(packed) // len(some)
        for claim in some:
            claim.segment = segment
            claim.size = size
        found.append((segment, some, b""))
        claims = claims[len(some) :]
        seq += len(some)
    return found


def insert(database: Database, segments: Sequence[tuple[Segment, float]]) -> None:
    """segments: each with when it was accepted."""
    rows = [(one.seq, one.function, len(one.done), at, b"".join(one.packed)) for one, at in segments]
    if len(rows) == 1:
        database._execute(_INSERT, rows[0])
    else:
        database._connection.executemany(_INSERT, rows)
    for one, _ in segments:
        one.packed = []
        database.live += len(one.done) - sum(one.done)
    if some := [one for one, _ in segments if 1 in one.done]:
        progress(database, some)


def progress(database: Database, segments: Iterable[Segment]) -> None:
    """Write down what is done of them; those that are done altogether go."""
    over: list[Segment] = []
    rest: list[Segment] = []
    for segment in segments:
        (rest if 0 in segment.done else over).append(segment)
    if over:
        database._run(_DELETE, 1, [segment.seq for segment in over])
        for segment in over:
            database.segments.pop(segment.seq, None)
        if noted := [segment.seq for segment in over if segment.noted]:
            database._run(_FORGET, 1, noted)
    if rest:
        database._connection.executemany(_NOTE, [(segment.seq, bytes(segment.done)) for segment in rest])
        for segment in rest:
            segment.noted = True


def first(database: Database, function: str, after: int) -> float | None:
    """When the first segment past `after` was accepted; None: there is none."""
    found: float | None = database._execute(_FIRST, (function, after)).get
    return found


class Packed:
    """The claims of a segment as they are in the file. To make them is best left to the thread that runs them: they are in its caches then.

    born: when they were accepted, by the monotonic clock. size: bytes of those that are not done.
    """

    __slots__ = ("_born", "_events", "_size", "segment", "size")

    def __init__(self, segment: Segment, events: bytes, born: float) -> None:
        self.segment = segment
        self._events = events
        self._born = born
        self._size = len(events) // len(segment.done)
        self.size = self._size * segment.spare

    def claims(self, *, held: bool = False) -> list[Claim]:
        segment, size, born = self.segment, self._size, self._born
        function, done, seq = segment.function, segment.done, segment.seq
        return [
            Claim(function, event, None, None, 0, None, 0, born, 0, False, number, size, -1, held, segment)
            for number, event in enumerate(_events(self._events, len(done)), seq)
            if not done[number - seq]
        ]


def take(database: Database, function: str, after: int, born: float, limit: int, room: int, until: float) -> tuple[list[Packed], int]:
    """Whole segments past `after` that were accepted no later than `until`, as many as it takes for `limit`; the last's place.

    born, room: as of `Database.take`.
    """
    packs: list[Packed] = []
    count = 0
    rows = database._execute(_TAKE, (function, after, until))
    for seq, events, accepted, packed, done in rows:
        if count >= limit or (packs and len(packed) > room):
            break
        room -= len(packed)
        after = seq
        segment = Segment(seq, function, b"", bytearray(done or events))
        segment.noted = done is not None
        database.segments[seq] = segment
        segment.spare = segment.done.count(0)
        count += segment.spare
        packs.append(Packed(segment, packed, accepted + born))
    rows.close()
    return packs, after


def forget(database: Database, function: str, past: int) -> None:
    """The function's segments past that one are not handed out after all."""
    for seq in [seq for seq, segment in database.segments.items() if seq > past and segment.function == function]:
        del database.segments[seq]


def _events(packed: bytes, count: int) -> list[Event]:
    try:
        return unpack_many(packed, count)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return [readable(packed if number == 0 else b"") for number in range(count)]  # each ends as a letter; the first has all bytes


def move_out(database: Database, seq: int, deaths: int) -> None:
    """What is in a segment that is handed out to nobody becomes a row that waits, if it is not done."""
    row = database._execute(_ONE, (seq,)).fetchone()
    if row is None or seq >= row[0] + row[2]:
        return
    first, function, count, accepted, packed, done = row
    segment = Segment(first, function, b"", bytearray(done or count))
    segment.noted = done is not None
    if segment.done[seq - first]:
        return
    event = _events(packed, count)[seq - first]
    database._execute(
        "INSERT INTO invocation (seq, state, function, due, accepted, attempts, deaths, event) VALUES (?1, 0, ?2, ?3, ?3, 0, ?4, ?5)",
        (seq, function, accepted, deaths, event.data if event.source == "journal" else event.pack()),
    )
    segment.done[seq - first] = 1
    progress(database, [segment])


def waiting(database: Database) -> Counter[str]:
    """Of each function, how many wait in segments that are not handed out."""
    counts: Counter[str] = Counter()
    for function, count in database._rows("SELECT function, sum(count) FROM segment INDEXED BY segments GROUP BY function"):
        counts[function] = count
    for seq, function, done in database._rows("SELECT seq, function, done FROM progress JOIN segment USING (seq)"):
        if seq not in database.segments:
            counts[function] -= sum(done)
    for segment in database.segments.values():
        counts[segment.function] -= len(segment.done) - segment.spare
    return counts


def find_one(database: Database, seq: int) -> list[Whereabouts]:
    row = database._execute(_ONE, (seq,)).fetchone()
    if row is None or seq >= row[0] + row[2]:
        return []
    first, function, count, accepted, _, done = row
    return _whereabouts(database, first, function, accepted, bytes(done or count), [seq - first])


def find_event(database: Database, event_id: str, after: int) -> tuple[list[Whereabouts], int | None]:
    """As `Database.find_event`."""
    found: list[Whereabouts] = []
    rows = database._rows(_SOME, (after, _SLICE))
    for seq, function, count, accepted, packed, done in rows:
        if event_id.encode() in packed:
            places = [place for place, event in enumerate(_events(packed, count)) if event.id == event_id]
            found += _whereabouts(database, seq, function, accepted, bytes(done or count), places)
    return found, rows[-1][0] if rows else None


def _whereabouts(database: Database, seq: int, function: str, accepted: float, done: bytes, places: Iterable[int]) -> list[Whereabouts]:
    segment = database.segments.get(seq)
    done = done if segment is None else bytes(segment.done)
    left = [place for place, over in enumerate(done) if not over]
    running = left[: len(left) - segment.spare] if segment is not None else ()
    return [
        Whereabouts(claim_id(seq + place), function, "running" if place in running else "waiting", 0, accepted, accepted)
        for place in places
        if not done[place]
    ]


def _in(head: str) -> dict[int, str]:
    return {size: f"{head} ({','.join('?' * size)})" for size in (256, 64, 16, 4, 1)}


_DELETE: Final[dict[int, Any]] = _in("DELETE FROM segment WHERE seq IN")
_FORGET: Final[dict[int, Any]] = _in("DELETE FROM progress WHERE seq IN")
