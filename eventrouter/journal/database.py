"""The SQLite journal's file: every statement. Blocking: one thread opens, uses and closes a Database."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import EllipsisType
from typing import Any, Final

import apsw
import msgspec

from eventrouter.crashpoints import crash_point
from eventrouter.errors import JournalError
from eventrouter.journal import segments
from eventrouter.journal.archive import Archive
from eventrouter.journal.books import Books
from eventrouter.journal.protocol import Claim, Letter, LetterQuery, Whereabouts, claim_id
from eventrouter.journal.schema import APPLICATION, DONE, PARKED, STATES, UPGRADES, VERSION, make, readable
from eventrouter.journal.segments import Segment
from eventrouter.model import Event, unpack_many

CLOCK_STEP: Final = 1.0  # seconds; a clock that went further than this from the monotonic one was set
_LOOK: Final = 64 << 20  # bytes of a file that is looked through at each opening: 0.05 s, 0.8 s when it is in no cache
_LOOK_AFTER_CRASH: Final = 1 << 30  # 0.7 s, 13 s
_MOST_AT_ONCE: Final = 4 << 20  # bytes of events that are read as one
_CHAIN: Final = 256  # rows of one key that are handed out together
START: Final = (float("-inf"), -1)  # before all (due, seq)
_RESERVE: Final = 10**9  # sequence numbers that one opening may use
_SLICE: Final = 20_000  # rows that `find` looks through at a time, some 10 ms


def claimed(
    seq: int,
    function: str,
    event: Event,
    attempts: int,
    born: float,
    size: int,
    key: str | None = None,
    deaths: int = 0,
    redriven: bool = False,
) -> Claim:
    """A claim of what is in the file."""
    return Claim(function, event, None, key, 0, None, attempts, born, deaths, redriven, seq, size)


class Batch:
    """Claims that end or go back. done, released, parked: seqs. retries: (state, due, attempts, seq).
    moved, flat: seq, state, function, accepted, packed event, key of those that leave their segment for a row.
    touched: segments of which something is done, or moved; ended: how many of their events are.
    letters: (died, attempts, reason, type, message, seq). notes: (key, value, expires). keys: (function, key) of those that had one.
    """

    __slots__ = ("done", "ended", "keys", "letters", "moved", "notes", "parked", "released", "retries", "touched")

    def __init__(self) -> None:
        self.moved: list[Any] = []
        self.touched: dict[Segment, None] = {}
        self.ended = 0
        self.done: list[int] = []
        self.retries: list[tuple[int, float, int, int]] = []
        self.released: list[int] = []
        self.parked: list[int] = []
        self.letters: list[tuple[float, int, str, str, str, int]] = []
        self.notes: list[tuple[str, bytes, float | None]] = []
        self.keys: dict[tuple[str, str], None] = {}


# Statements of many rows cost half of executemany, and every call is a contest for the GIL with a busy loop.
# A few sizes serve every length and stay in the statement cache.
_SIZES: Final = (256, 64, 16, 4, 1)


def _sized(head: str, row: tuple[str, ...], tail: str = "") -> dict[int, str]:
    """The statement for each size. row: its placeholders; `?1` is the row's first parameter."""
    width = len(set(row) - {"0"})
    made = {}
    for size in _SIZES:
        rows = (",".join(f"?{at + int(part[1:])}" if part[0] == "?" else part for part in row) for at in range(0, size * width, width))
        made[size] = head + ",".join(f"({text})" if width > 1 else text for text in rows) + tail
    return made


_INSERT: Final = _sized(
    "INSERT INTO invocation (seq, state, function, due, accepted, attempts, event, key) VALUES ",
    ("?1", "?2", "?3", "?4", "?4", "0", "?5", "?6"),
)
_DELETE: Final = _sized("DELETE FROM invocation WHERE seq IN (", ("?1",), ")")
_TAKE: Final = _sized("UPDATE invocation SET state = 1 WHERE seq IN (", ("?1",), ")")
_RELEASE: Final = _sized("UPDATE invocation SET state = 0, due = accepted WHERE state = 1 AND seq IN (", ("?1",), ")")
_PARK: Final = _sized("UPDATE invocation SET state = -1, due = accepted WHERE state = 1 AND seq IN (", ("?1",), ")")
_RETRY: Final = "UPDATE invocation SET state = ?, due = ?, attempts = ?, deaths = 0 WHERE seq = ?"
_KEEP: Final = "UPDATE invocation SET state = 3, due = ?, attempts = attempts + 1 WHERE seq = ?"
_BURY: Final = "UPDATE invocation SET state = 2, due = ?, attempts = ?, reason = ?, error_type = ?, error_message = ? WHERE seq = ?"
_DUE: Final = """SELECT seq, attempts, accepted, event, key, deaths, reason IS NOT NULL AS redriven, due FROM invocation INDEXED BY waiting
    WHERE state = 0 AND function = ? AND due <= ? AND (due, seq) > (?, ?) ORDER BY due, seq"""
# Many rows as one: each row that is stepped to is a contest for the GIL with a busy loop.
_TAKE_MANY: Final = f"""WITH due AS ({_DUE} LIMIT ?)
    SELECT count(*), sum(length(event)), count(nullif(attempts + deaths + redriven, 0)), count(key), max(due),
    CAST(group_concat(event, '') AS BLOB), json_group_array(seq), json_group_array(CAST(accepted * 1000000 AS INTEGER)) FROM due"""  # noqa: S608
_OF_KEY: Final = "FROM invocation INDEXED BY keyed WHERE function = ? AND key = ? AND state < 2"
_FIRST: Final = f"SELECT state, seq {_OF_KEY} ORDER BY seq LIMIT 1"
_LAST: Final = f"SELECT state {_OF_KEY} ORDER BY seq DESC LIMIT 1"
_BEHIND: Final = f"""SELECT seq, attempts, accepted, event, key, deaths, reason IS NOT NULL, due, state {_OF_KEY}
    AND seq > ? ORDER BY seq LIMIT ?"""
_NEXT_DUE: Final = "SELECT due FROM invocation INDEXED BY waiting WHERE state = 0 AND function = ? AND due > ? ORDER BY due LIMIT 1"
_LETTERS: Final = """SELECT seq, function, reason, error_type, error_message, attempts, due, event FROM invocation INDEXED BY dead
    WHERE state = 2 AND seq > ?1 AND (?2 IS NULL OR function = ?2) AND (?3 IS NULL OR ?3 IN (reason, error_type))
    AND (?4 IS NULL OR due >= ?4) ORDER BY seq LIMIT ?5"""
# What has a reason and is not dead has been redriven.
_REDRIVE: Final = """UPDATE invocation SET seq = ?1, due = ?2, accepted = ?2, attempts = 0, deaths = 0,
    state = CASE WHEN key IS NOT NULL AND EXISTS (SELECT 1 FROM invocation AS other INDEXED BY keyed
        WHERE other.function = invocation.function AND other.key = invocation.key AND other.state < 2) THEN -1 ELSE 0 END,
    error_type = NULL, error_message = NULL WHERE seq = ?3 AND state = 2 RETURNING function"""
_FORGET: Final = """DELETE FROM invocation WHERE seq IN (
    SELECT seq FROM invocation INDEXED BY done WHERE state = 3 AND due <= ? ORDER BY due LIMIT ?)"""
_PURGE: Final = "DELETE FROM invocation WHERE seq = ? AND state = 2"
_NOTE: Final = "INSERT INTO state VALUES (?1, ?2, ?3) ON CONFLICT (key) DO UPDATE SET value = ?2, expires = ?3"
_FIND: Final = "SELECT seq, function, state, attempts, accepted, due, event FROM invocation WHERE "


class Database:
    """path: None is in memory. dedupe, history: seconds that seen ids and done rows are kept.

    archive: of what was accepted, for so many seconds. key: of the audit log's seals.
    live: how many events wait or run. taken: the rows without a key that wait by the file, and run. segments: those that are handed out.
    """

    def __init__(self, path: Path | None, dedupe: float, history: float, archive: float = 0, key: Callable[[], bytes] = bytes) -> None:
        self._path = path
        self.dedupe = dedupe
        self._history = history
        self.archive = Archive(archive)
        self.books = Books(key)
        self.live = self._live = 0
        self.taken: set[int] = set()
        self.segments: dict[int, Segment] = {}
        self._put_back: set[int] = set()  # into it, if this transaction fails
        # A key that was seen longer ago counts as new, whether it has been trimmed or not.
        self._sift = _sized(
            "INSERT INTO seen (source, event_id, function, seq, at) VALUES ",
            ("?1", "?2", "?3", "?4", "?5"),
            " ON CONFLICT (source, event_id, function) DO UPDATE SET seq = excluded.seq, at = excluded.at"
            f" WHERE seen.at <= excluded.at - {float(dedupe)!r}",
        )

    def open(self, now: float, running: Sequence[int]) -> int:
        """Recover. running: seqs that a dead predecessor was running. Returns the first sequence number to use. Raises JournalError."""
        # A close leaves no write-ahead log.
        look = self._path is not None and _size(self._path) <= (_LOOK_AFTER_CRASH if _size(f"{self._path}-wal") else _LOOK)
        try:
            self._connection = apsw.Connection(":memory:" if self._path is None else str(self._path))
        except apsw.Error as error:
            raise self.explain(error) from error
        self._execute = self._connection.execute
        try:
            self._check(look)
            self.archive.open(self._connection)
            self.books.open(self._connection)
            return self._recover(now, running)
        except apsw.Error as error:
            self._connection.close()
            raise self.explain(error) from error
        except JournalError:
            self._connection.close()
            raise

    def _check(self, look: bool) -> None:
        """Make sure that the file is ours before anything in it is changed, then that what was set did take."""
        connection = self._connection
        connection.set_busy_timeout(5000)
        application, version = connection.pragma("application_id"), connection.pragma("user_version")
        tables = connection.execute("SELECT count(*) FROM sqlite_schema").get
        if application != APPLICATION and (tables or application):
            raise JournalError(f"journal {self._path}: this is another program's database; choose another data folder or move it away")
        if application == APPLICATION and version > VERSION:
            raise JournalError(
                f"journal {self._path}: made by a newer eventrouter (format {version}, this one knows {VERSION}); upgrade eventrouter"
            )
        # SQLite notices a damaged page only when it comes to it, and may have written to others by then.
        if look and (fault := connection.execute("PRAGMA quick_check(1)").get) != "ok":
            raise apsw.CorruptError(str(fault).splitlines()[-1])
        for name, value, want in (
            ("journal_mode", "WAL", "memory" if self._path is None else "wal"),
            ("synchronous", "FULL", 2),
            ("fullfsync", 1, 1),  # on macOS a plain fsync does not reach the disk
            ("checkpoint_fullfsync", 1, 1),
            ("journal_size_limit", 67_108_864, 67_108_864),
            ("wal_autocheckpoint", 4000, 4000),  # pages; each pays for two fsyncs
            ("cache_size", -16_000, -16_000),
        ):
            # The setting answers with what holds, some only when asked again, and a refusal is silent.
            connection.pragma(name, value)
            if (got := connection.pragma(name)) != want:
                raise JournalError(f"journal {self._path}: SQLite refused {name} = {value} (it is {got}); use a local disk for it")
        with connection:
            if not tables:
                make(connection)
            else:
                for old in range(version, VERSION):
                    connection.execute(UPGRADES[old]).fetchall()
            connection.pragma("user_version", VERSION)

    def _recover(self, now: float, running: Sequence[int]) -> int:
        with self._connection:
            self._connection.executemany(
                "UPDATE invocation SET deaths = deaths + 1 WHERE seq = ? AND state IN (0, 1)", [(seq,) for seq in running]
            )
            for seq in running:
                segments.move_out(self, seq, deaths=1)
            # What a dead predecessor was running comes first again, uncharged.
            self._execute("UPDATE invocation SET state = 0, due = accepted WHERE state = 1 AND key IS NULL")
            parked = self._rows(
                """UPDATE invocation INDEXED BY keyed SET state = -1, due = accepted
                WHERE key IS NOT NULL AND state < 2 AND state = 1 RETURNING function, key"""
            )
            self.promote(dict.fromkeys(parked))
            newest = self._execute(
                """SELECT max(accepted) FROM (SELECT * FROM (SELECT accepted FROM invocation ORDER BY seq DESC LIMIT 1)
                UNION ALL SELECT * FROM (SELECT accepted FROM segment ORDER BY seq DESC LIMIT 1))"""
            ).get
            if newest is not None and newest > now + CLOCK_STEP:
                self._set_back(now)
            first: int = max(self._execute("SELECT next FROM numbering").get, int(now * 1e6), 1)
            # Reserved before use: no id comes twice, whatever was deleted, crashed, or done to the clock.
            self._execute("UPDATE numbering SET next = ?", (first + _RESERVE,))
        self.live = sum(self._waiting().values()) + segments.waiting(self).total()
        return first

    def _set_back(self, now: float) -> None:
        """What was accepted in a future that did not come is due now; its retries keep their delays."""
        self._execute(
            "UPDATE invocation SET due = ?1 + max(0.0, due - accepted), accepted = ?1 WHERE accepted > ?1 AND state < 2",
            (now,),
        )
        self._execute("UPDATE segment SET accepted = ?1 WHERE accepted > ?1", (now,))
        self._execute("UPDATE seen SET at = ?1 WHERE at > ?1", (now,))

    def shift(self, seconds: float) -> None:
        """The clock was set by so much: what waits is neither older nor due sooner for it."""
        self._execute("UPDATE invocation SET accepted = accepted + ?1, due = due + ?1 WHERE state < 2", (seconds,))
        self._execute("UPDATE segment SET accepted = accepted + ?", (seconds,))
        self._execute("UPDATE seen SET at = at + ?", (seconds,))
        self._execute("UPDATE state SET expires = expires + ? WHERE expires IS NOT NULL", (seconds,))

    def size(self) -> int:
        """Bytes of the file that are in use."""
        pages = self._connection.pragma("page_count") - self._connection.pragma("freelist_count")
        return int(pages * self._connection.pragma("page_size"))

    def disk_free(self) -> int:
        """Bytes."""
        return sys.maxsize if self._path is None else shutil.disk_usage(self._path.parent).free

    def probe(self) -> None:
        """Write something: an empty transaction would tell nothing of the disk."""
        self._execute("UPDATE numbering SET next = next")

    def close(self) -> None:
        with suppress(apsw.Error):  # no harm: the next one to open reads the write-ahead log
            if self._path is not None:
                self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        self._connection.close()

    def explain(self, error: Exception) -> JournalError:
        """The same in the user's words."""
        where = "in memory" if self._path is None else str(self._path)
        if isinstance(error, apsw.FullError):
            return JournalError(f"journal {where}: the disk is full; free some space, it goes on by itself")
        if isinstance(error, apsw.NotADBError | apsw.CorruptError | apsw.SQLError):
            remedy = f"`eventrouter doctor --salvage --data {self._path and self._path.parent}` copies what can be read into a new one"
            return JournalError(f"journal {where}: damaged or not a journal ({error}); with no router running, {remedy}")
        if isinstance(error, apsw.CantOpenError | apsw.ReadOnlyError | apsw.PermissionsError):
            return JournalError(f"journal {where}: cannot be opened for writing ({error}); check that its folder exists and is yours")
        if isinstance(error, apsw.BusyError | apsw.LockedError):
            return JournalError(f"journal {where}: another process is writing to it; end that process")
        return JournalError(f"journal {where}: {type(error).__name__}: {error}; check the disk")

    def begin(self) -> None:
        """A transaction: what is done up to `commit` is all written, or, when anything raises, nothing of it; `undo` it then."""
        self._live = self.live
        self._put_back = set()
        self._execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        crash_point("commit.before")
        self._execute("COMMIT")
        crash_point("commit.after")

    def undo(self, error: Exception) -> JournalError:
        """What to tell of it."""
        self.live = self._live
        self.books.undo()
        self.taken |= self._put_back
        if self._connection.in_transaction:  # after some errors SQLite has rolled back by itself
            with suppress(apsw.Error):
                self._execute("ROLLBACK")
        return self.explain(error)

    def settle(self, batch: Batch, now: float) -> list[str]:
        """Returns the functions of which a row that was parked waits now."""
        if batch.moved:
            self._run(_INSERT, 6, batch.moved)
        if batch.touched:
            segments.progress(self, batch.touched)
            self.live -= batch.ended
        if self.taken:
            for seqs in (batch.done, batch.released, [row[-1] for row in batch.retries], [row[-1] for row in batch.letters]):
                self._put_back |= self.taken.intersection(seqs)
            self.taken -= self._put_back
        if batch.done:
            self._finish(batch.done, now)
        if batch.released:
            self._run(_RELEASE, 1, batch.released)
        if batch.parked:
            self._run(_PARK, 1, batch.parked)
        if batch.retries:
            self._connection.executemany(_RETRY, batch.retries)
        if batch.letters:
            self._connection.executemany(_BURY, batch.letters)
        if batch.notes:
            self._connection.executemany(_NOTE, batch.notes)
            self._expire(2 * len(batch.notes), now)
        self.live -= len(batch.done) + len(batch.letters)
        return self.promote(batch.keys)

    def promote(self, keys: Iterable[tuple[str, str]]) -> list[str]:
        """The first live row of each key waits, if it was parked; returns the functions of those that were."""
        woken = []
        for function, key in keys:
            state, seq = self._execute(_FIRST, (function, key)).fetchone() or (None, None)
            if state == PARKED:
                self._execute("UPDATE invocation SET state = 0 WHERE seq = ?", (seq,))
                woken.append(function)
        return woken

    def follows(self, function: str, key: str) -> tuple[int, int] | None:
        """The states of the first and the last live row of a key; None: there is none."""
        first = self._execute(_FIRST, (function, key)).fetchone()
        return None if first is None else (first[0], self._execute(_LAST, (function, key)).get)

    def insert(self, rows: Sequence[Any]) -> None:
        """rows, flat: seq, state, function, accepted, packed event, key."""
        self._run(_INSERT, 6, rows)
        self.live += len(rows) // 6

    def delay(self, rows: Sequence[tuple[float, int]]) -> None:
        """rows: (due, seq) of those just inserted that may not run yet."""
        self._connection.executemany("UPDATE invocation SET due = ? WHERE seq = ?", rows)

    def repeats(self, keys: Sequence[Any], now: float) -> set[int]:
        """Remember what was not seen before; the seqs of what was. keys, flat: source, event id, function, seq, accepted."""
        seqs = keys[3::5]
        before = self._connection.total_changes()
        self._run(self._sift, 5, keys)
        repeats = set()
        if self._connection.total_changes() - before < len(seqs):
            new = {seq for (seq,) in self._rows("SELECT seq FROM seen WHERE seq BETWEEN ? AND ?", (min(seqs), max(seqs)))}
            repeats = {seq for seq in seqs if seq not in new}
        # Each newcomer pays for two of the oldest: the table stays in bounds, and no timer wakes an idle router.
        horizon = now - self.dedupe
        oldest = self._execute("SELECT at FROM seen ORDER BY seq LIMIT 1").get
        if oldest is not None and oldest <= horizon:
            self._execute(
                "DELETE FROM seen WHERE seq IN (SELECT seq FROM (SELECT seq, at FROM seen ORDER BY seq LIMIT ?) WHERE at <= ?)",
                (2 * len(seqs), horizon),
            )
        return repeats

    def _finish(self, seqs: list[int], now: float) -> None:
        if not self._history:
            seqs.sort()
            if seqs[-1] - seqs[0] == len(seqs) - 1:  # what came together mostly ends together
                self._execute("DELETE FROM invocation WHERE seq BETWEEN ? AND ?", (seqs[0], seqs[-1]))
            else:
                self._run(_DELETE, 1, seqs)
            return
        self._connection.executemany(_KEEP, [(now, seq) for seq in seqs])
        self._execute(_FORGET, (now - self._history, 2 * len(seqs)))

    def _rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        return self._execute(sql, parameters).fetchall()

    def _run(self, statements: dict[int, str], width: int, parameters: Sequence[Any]) -> None:
        at, end = 0, len(parameters)
        for size in _SIZES:
            step = size * width
            while end - at >= step:
                self._execute(statements[size], parameters[at : at + step])
                at += step

    def take(
        self, function: str, after: tuple[float, int], now: float, born: float, limit: int, room: int
    ) -> tuple[list[Claim], tuple[float, int] | None, float | None]:
        """Up to `limit` waiting rows that are due. Then the place of the last; or None when these were all, and when the next is due.

        after: (due, seq) up to which all was taken before. born: what to add to a Unix time to have the monotonic one.
        room: bytes; a first one is taken however large it is.
        """
        if after != START or not self.taken:  # else some are likely to be passed over
            many = self._take_many(function, after, now, born, limit, room)
            if many is not None:
                return many
        claims: list[Claim] = []
        heads: list[Claim] = []
        taken = self.taken
        rows = self._execute(_DUE, (function, now, *after))
        for seq, attempts, accepted, packed, key, deaths, redriven, due in rows:
            if seq in taken:
                continue
            if len(claims) == limit or (claims and len(packed) > room):
                break
            room -= len(packed)
            claim = claimed(seq, function, readable(packed), attempts, accepted + born, len(packed), key, deaths, bool(redriven))
            claims.append(claim)
            after = due, seq
            if key is None:
                taken.add(seq)
            else:
                heads.append(claim)
        else:
            rows.close()
            self._take_keyed(heads, claims, now, born, limit, room)
            return claims, None, self._execute(_NEXT_DUE, (function, now)).get
        rows.close()
        self._take_keyed(heads, claims, now, born, limit, room)
        return claims, after, None

    def _take_many(
        self, function: str, after: tuple[float, int], now: float, born: float, limit: int, room: int
    ) -> tuple[list[Claim], tuple[float, int] | None, float | None] | None:
        """The usual case of `take`: rows without keys, never tried, never redriven, and not large. None: it isn't."""
        before = self._connection.limit(apsw.SQLITE_LIMIT_LENGTH, _MOST_AT_ONCE)
        try:
            ((count, size, tried, keyed, last_due, packed, seqs, accepted),) = self._rows(_TAKE_MANY, (function, now, *after, limit))
        except apsw.TooBigError:
            return None
        finally:
            self._connection.limit(apsw.SQLITE_LIMIT_LENGTH, before)
        if tried or keyed or (size or 0) > room:
            return None
        if not count:
            return [], None, self._execute(_NEXT_DUE, (function, now)).get
        seqs = msgspec.json.decode(seqs)
        if not self.taken.isdisjoint(seqs):
            return None
        try:
            events = unpack_many(packed, count)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        self.taken.update(seqs)
        size //= count
        ages = msgspec.json.decode(accepted)
        claims = [claimed(seq, function, event, 0, at / 1e6 + born, size) for seq, event, at in zip(seqs, events, ages, strict=True)]
        if count == limit:
            return claims, (last_due, seqs[-1]), None
        return claims, None, self._execute(_NEXT_DUE, (function, now)).get

    def _take_keyed(self, heads: list[Claim], claims: list[Claim], now: float, born: float, limit: int, room: int) -> None:
        """Mark what has a key as running, and take with it what is parked behind it."""
        marked = [head.seq for head in heads]
        for head in heads:
            count = min(limit - len(claims), _CHAIN)
            if head.attempts or count <= 0:  # a head that was tried before comes alone: if it fails again, all would go back again
                continue
            rows = self._rows(_BEHIND, (head.function, head.key, head.seq, count))
            for seq, attempts, accepted, packed, key, deaths, redriven, due, state in rows:
                if state != PARKED or due > now or len(packed) > room:
                    break
                room -= len(packed)
                marked.append(seq)
                at, event = accepted + born, readable(packed)
                claims.append(claimed(seq, head.function, event, attempts, at, len(packed), key, deaths, bool(redriven)))
        self._run(_TAKE, 1, marked)

    # What operators ask for

    def letters(self, query: LetterQuery, after: int, limit: int) -> list[Letter]:
        found = self._rows(_LETTERS, (after, query.function, query.error, query.since, limit))
        return [
            Letter(claim_id(seq), function, reason, error_type, error_message, attempts, died_at, readable(packed))
            for seq, function, reason, error_type, error_message, attempts, died_at, packed in found
        ]

    def redrive(self, seqs: Sequence[int], first: int, now: float) -> list[str]:
        """Letters become waiting rows numbered from `first`; the function of each that was one."""
        moved = (self._execute(_REDRIVE, (new, now, seq)).get for new, seq in enumerate(seqs, first))
        functions = [function for function in moved if function is not None]
        self.live += len(functions)
        return functions

    def purge(self, seqs: Sequence[int]) -> int:
        before = self._connection.total_changes()
        self._connection.executemany(_PURGE, [(seq,) for seq in seqs])
        return self._connection.total_changes() - before

    def find_one(self, seq: int, now: float) -> list[Whereabouts]:
        return self._whereabouts(self._rows(_FIND + "seq = ?", (seq,)), now) or segments.find_one(self, seq)

    def find_event(self, event_id: str, after: int, now: float) -> tuple[list[Whereabouts], int | None]:
        """The next slice of rows past `after`, and where it ended; None: that was the last."""
        # No index: it would cost every event for a question that is asked once in a while.
        end = self._execute("SELECT max(seq) FROM (SELECT seq FROM invocation WHERE seq > ? ORDER BY seq LIMIT ?)", (after, _SLICE)).get
        if end is None:
            return [], None
        rows = self._rows(_FIND + "seq > ? AND seq <= ? AND instr(event, ?)", (after, end, event_id.encode()))
        return self._whereabouts([row for row in rows if readable(row[6]).id == event_id], now), end

    def _whereabouts(self, rows: list[Any], now: float) -> list[Whereabouts]:
        return [
            Whereabouts(claim_id(seq), function, "running" if seq in self.taken else STATES[state], attempts, accepted, due)
            for seq, function, state, attempts, accepted, due, _ in rows
            if state != DONE or due > now - self._history
        ]

    def depth(self) -> tuple[dict[str, int], dict[str, int]]:
        """How many of each function are waiting, and dead."""
        waiting = Counter(self._waiting()) + segments.waiting(self)
        for seq in self.taken:
            waiting[self._execute("SELECT function FROM invocation WHERE seq = ?", (seq,)).get] -= 1
        dead = "SELECT function, count(*) FROM invocation INDEXED BY dead WHERE state = 2 GROUP BY function"
        return {function: count for function, count in waiting.items() if count}, dict(self._rows(dead))

    def _waiting(self) -> dict[str, int]:
        counts = dict(self._rows("SELECT function, count(*) FROM invocation INDEXED BY waiting WHERE state = 0 GROUP BY function"))
        parked = """SELECT function, count(*) FROM invocation INDEXED BY keyed
            WHERE key IS NOT NULL AND state < 2 AND state = -1 GROUP BY function"""
        for function, count in self._rows(parked):
            counts[function] = counts.get(function, 0) + count
        return counts

    def get(self, key: str, now: float) -> bytes | None:
        value = self._execute("SELECT value FROM state WHERE key = ? AND (expires IS NULL OR expires > ?)", (key, now)).get
        assert value is None or isinstance(value, bytes)
        return value

    def put(self, key: str, value: bytes | None, expect: bytes | EllipsisType | None, expires: float | None, now: float) -> bool:
        if expect is not ... and self.get(key, now) != expect:
            return False
        if value is None:
            self._execute("DELETE FROM state WHERE key = ?", (key,))
        else:
            self._execute(_NOTE, (key, value, expires))
            if expires is not None:
                self._expire(2, now)
        return True

    def _expire(self, count: int, now: float) -> None:
        # Each newcomer pays for two of the oldest, as above.
        self._execute("DELETE FROM state WHERE key IN (SELECT key FROM state WHERE expires <= ? ORDER BY expires LIMIT ?)", (now, count))

    def keys(self, prefix: str) -> list[str]:
        found = self._rows("SELECT key FROM state WHERE key >= ?1 AND substr(key, 1, length(?1)) = ?1 ORDER BY key", (prefix,))
        return [key for (key,) in found]


def _size(path: str | Path) -> int:
    try:
        return Path(path).stat().st_size
    except FileNotFoundError:
        return 0
