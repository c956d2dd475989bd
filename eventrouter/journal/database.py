"""The SQLite journal's file: its schema and every statement. Blocking: one thread opens, uses and closes a Database."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from types import EllipsisType
from typing import Any, Final

import apsw

from eventrouter.errors import JournalError
from eventrouter.journal.protocol import Letter, LetterQuery, Whereabouts
from eventrouter.model import Event

WAITING: Final = 0
RUNNING: Final = 1
DEAD: Final = 2
DONE: Final = 3
_STATES: Final = ("waiting", "running", "dead", "done")

CLOCK_STEP: Final = 1.0  # seconds; a clock that went back further than this was set back
_APPLICATION: Final = 0x45565254  # "EVRT", in the file's header
_VERSION: Final = 1

# Rows of the memory window (RUNNING) are in no index: what runs at once costs one insert and one delete.
# `seen` outlives the rows; its order by seq is the order of age in which it is trimmed.
_SCHEMA: Final = f"""
CREATE TABLE invocation (
    seq INTEGER PRIMARY KEY, state INTEGER NOT NULL, attempts INTEGER NOT NULL, due REAL NOT NULL, accepted REAL NOT NULL,
    function TEXT NOT NULL, reason TEXT, error_type TEXT, error_message TEXT, event BLOB NOT NULL) STRICT;
CREATE INDEX waiting ON invocation (function, due, seq) WHERE state = {WAITING};
CREATE INDEX dead ON invocation (seq, function) WHERE state = {DEAD};
CREATE INDEX done ON invocation (due) WHERE state = {DONE};
CREATE TABLE seen (
    seq INTEGER PRIMARY KEY, source TEXT NOT NULL, event_id TEXT NOT NULL, function TEXT NOT NULL, at REAL NOT NULL,
    UNIQUE (source, event_id, function)) STRICT;
CREATE TABLE state (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_VERSION};
"""


class Batch:
    """What one transaction writes.

    rows, width 5: seq, state, function, accepted, packed event. keys, width 5: source, event id, function, seq, accepted, of
    those events that run once; `keyed` has their rows by seq, and after the commit the repeats alone.
    done: seqs. retries: (due, attempts, seq). released: seqs. letters: (died, attempts, reason, type, message, seq).
    """

    __slots__ = ("done", "keyed", "keys", "letters", "released", "retries", "rows")

    def __init__(self) -> None:
        self.rows: list[Any] = []
        self.keys: list[Any] = []
        self.keyed: dict[int, tuple[Any, ...]] = {}
        self.done: list[int] = []
        self.retries: list[tuple[float, int, int]] = []
        self.released: list[int] = []
        self.letters: list[tuple[float, int, str, str, str, int]] = []


# Statements of many rows cost half of executemany, and every call is a contest for the GIL with a busy loop.
# A few sizes serve every length and stay in the statement cache.
_SIZES: Final = (256, 64, 16, 4, 1)


def _sized(head: str, row: tuple[str, ...], tail: str = "") -> dict[int, str]:
    """The statement for each size. row: its placeholders; `?1` is the row's first parameter."""
    width = len(set(row) - {"0"})
    made = {}
    for size in _SIZES:
        rows = []
        for at in range(0, size * width, width):
            rows.append(",".join(f"?{at + int(part[1:])}" if part[0] == "?" else part for part in row))
        made[size] = head + ",".join(f"({text})" if width > 1 else text for text in rows) + tail
    return made


_INSERT: Final = _sized(
    "INSERT INTO invocation (seq, state, function, due, accepted, attempts, event) VALUES ", ("?1", "?2", "?3", "?4", "?4", "0", "?5")
)
_DELETE: Final = _sized("DELETE FROM invocation WHERE seq IN (", ("?1",), ")")
_TAKE: Final = _sized(f"UPDATE invocation SET state = {RUNNING} WHERE seq IN (", ("?1",), ")")
_RELEASE: Final = _sized(f"UPDATE invocation SET state = {WAITING}, due = accepted WHERE state = {RUNNING} AND seq IN (", ("?1",), ")")
_RETRY: Final = f"UPDATE invocation SET state = {WAITING}, due = ?, attempts = ? WHERE seq = ?"
_BURY: Final = f"UPDATE invocation SET state = {DEAD}, due = ?, attempts = ?, reason = ?, error_type = ?, error_message = ? WHERE seq = ?"
_DUE: Final = f"""SELECT seq, attempts, accepted, event FROM invocation INDEXED BY waiting
    WHERE state = {WAITING} AND function = ? AND due <= ? ORDER BY due, seq LIMIT ?"""
_NEXT_DUE: Final = f"SELECT due FROM invocation INDEXED BY waiting WHERE state = {WAITING} AND function = ? ORDER BY due LIMIT 1"
_LETTERS: Final = f"""SELECT seq, function, reason, error_type, error_message, attempts, due, event FROM invocation INDEXED BY dead
    WHERE state = {DEAD} AND seq > ?1 AND (?2 IS NULL OR function = ?2) AND (?3 IS NULL OR ?3 IN (reason, error_type))
    AND (?4 IS NULL OR due >= ?4) ORDER BY seq LIMIT ?5"""
_REDRIVE: Final = f"""UPDATE invocation SET seq = ?1, state = {WAITING}, due = ?2, accepted = ?2, attempts = 0,
    reason = NULL, error_type = NULL, error_message = NULL WHERE seq = ?3 AND state = {DEAD} RETURNING function"""
_PURGE: Final = f"DELETE FROM invocation WHERE seq = ? AND state = {DEAD}"
_FIND: Final = "SELECT seq, function, state, attempts, accepted, due, event FROM invocation WHERE "


class Database:
    """path: None is in memory. dedupe, history: seconds that seen ids and done rows are kept."""

    def __init__(self, path: Path | None, dedupe: float, history: float) -> None:
        self._path = path
        self._dedupe = dedupe
        self._history = history
        # A key that was seen longer ago counts as new, whether it has been trimmed or not.
        self._sift = _sized(
            "INSERT INTO seen (source, event_id, function, seq, at) VALUES ",
            ("?1", "?2", "?3", "?4", "?5"),
            " ON CONFLICT (source, event_id, function) DO UPDATE SET seq = excluded.seq, at = excluded.at"
            f" WHERE seen.at <= excluded.at - {float(dedupe)!r}",
        )

    def open(self, now: float) -> int:
        """Recover, and return the highest sequence number in the file, 0 if there is none. Raises JournalError."""
        try:
            self._connection = apsw.Connection(":memory:" if self._path is None else str(self._path))
        except apsw.Error as error:
            raise self.explain(error) from error
        self._execute = self._connection.execute
        try:
            self._check()
            return self._recover(now)
        except apsw.Error as error:
            self._connection.close()
            raise self.explain(error) from error
        except JournalError:
            self._connection.close()
            raise

    def _check(self) -> None:
        """Make sure that the file is ours before anything in it is changed, then that what was set did take."""
        connection = self._connection
        connection.set_busy_timeout(5000)
        application, version = connection.pragma("application_id"), connection.pragma("user_version")
        tables = connection.execute("SELECT count(*) FROM sqlite_schema").get
        if application != _APPLICATION and (tables or application):
            raise JournalError(f"journal {self._path}: this is another program's database; choose another data folder or move it away")
        if application == _APPLICATION and version > _VERSION:
            raise JournalError(
                f"journal {self._path}: made by a newer eventrouter (format {version}, this one knows {_VERSION}); upgrade eventrouter"
            )
        for name, value, want in (
            ("journal_mode", "WAL", "memory" if self._path is None else "wal"),
            ("synchronous", "FULL", 2),
            ("fullfsync", 1, 1),  # on macOS a plain fsync does not reach the disk
            ("checkpoint_fullfsync", 1, 1),
            ("journal_size_limit", 67_108_864, 67_108_864),
            ("cache_size", -16_000, -16_000),
        ):
            # The setting answers with what holds, some only when asked again, and a refusal is silent.
            connection.pragma(name, value)
            if (got := connection.pragma(name)) != want:
                raise JournalError(f"journal {self._path}: SQLite refused {name} = {value} (it is {got}); use a local disk for it")
        if not tables:
            with connection:
                for _ in connection.execute(_SCHEMA):
                    pass

    def _recover(self, now: float) -> int:
        self._execute("BEGIN IMMEDIATE")
        # What a dead predecessor was running comes first again, uncharged.
        self._execute(f"UPDATE invocation SET state = {WAITING}, due = accepted WHERE state = {RUNNING}")
        newest = self._execute("SELECT accepted FROM invocation ORDER BY seq DESC LIMIT 1").get
        if newest is not None and newest > now + CLOCK_STEP:
            self.set_clock_back(now)
        self._execute("COMMIT")
        top = self._execute("SELECT max(coalesce((SELECT max(seq) FROM invocation), 0), coalesce((SELECT max(seq) FROM seen), 0))").get
        assert isinstance(top, int)
        return top

    def close(self) -> None:
        try:
            if self._path is not None:
                self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        finally:
            self._connection.close()

    def explain(self, error: Exception) -> JournalError:
        """The same in the user's words."""
        where = "in memory" if self._path is None else str(self._path)
        if isinstance(error, apsw.FullError):
            return JournalError(f"journal {where}: the disk is full; free some space, it goes on by itself")
        if isinstance(error, apsw.NotADBError | apsw.CorruptError | apsw.SQLError):
            return JournalError(f"journal {where}: damaged or not a journal ({error}); restore a backup, or move it away to start empty")
        if isinstance(error, apsw.CantOpenError | apsw.ReadOnlyError | apsw.PermissionsError):
            return JournalError(f"journal {where}: cannot be opened for writing ({error}); check that its folder exists and is yours")
        if isinstance(error, apsw.BusyError | apsw.LockedError):
            return JournalError(f"journal {where}: another process is writing to it; end that process")
        return JournalError(f"journal {where}: {type(error).__name__}: {error}; check the disk")

    # The transaction: begin, any of what follows, commit or roll back

    def begin(self) -> None:
        self._execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        self._execute("COMMIT")

    def roll_back(self) -> None:
        if self._connection.in_transaction:  # SQLite has rolled back by itself after some errors
            self._execute("ROLLBACK")

    def write(self, batch: Batch, now: float) -> None:
        if batch.keys:
            self._drop_repeats(batch, now)
        if batch.done:
            self._finish(batch.done, now)
        if batch.released:
            self._run(_RELEASE, 1, batch.released)
        if batch.retries:
            self._connection.executemany(_RETRY, batch.retries)
        if batch.letters:
            self._connection.executemany(_BURY, batch.letters)
        if batch.rows:
            self._run(_INSERT, 5, batch.rows)

    def _run(self, statements: dict[int, str], width: int, parameters: Sequence[Any]) -> None:
        at, end = 0, len(parameters)
        for size in _SIZES:
            step = size * width
            while end - at >= step:
                self._execute(statements[size], parameters[at : at + step])
                at += step

    def _drop_repeats(self, batch: Batch, now: float) -> None:
        """Keep the rows of new keys only; leave the repeats in `batch.keyed`."""
        before = self._connection.total_changes()
        self._run(self._sift, 5, batch.keys)
        if self._connection.total_changes() - before == len(batch.keyed):
            new: Iterable[int] = tuple(batch.keyed)
        else:
            new = [row[0] for row in self._execute("SELECT seq FROM seen WHERE seq BETWEEN ? AND ?", (min(batch.keyed), max(batch.keyed)))]
        batch.rows += chain.from_iterable([batch.keyed.pop(seq) for seq in new])
        # Each newcomer pays for two of the oldest: the table stays in bounds, no timer wakes an idle router.
        self._trim("seen", "seq", "at", now - self._dedupe, len(batch.keys) // 5)

    def _finish(self, seqs: list[int], now: float) -> None:
        if not self._history:
            self._run(_DELETE, 1, seqs)
            return
        update = f"UPDATE invocation SET state = {DONE}, due = ? WHERE seq = ?"
        self._connection.executemany(update, [(now, seq) for seq in seqs])
        self._execute(
            f"DELETE FROM invocation WHERE seq IN (SELECT seq FROM invocation INDEXED BY done WHERE state = {DONE} AND due <= ?"
            " ORDER BY due LIMIT ?)",
            (now - self._history, 2 * len(seqs)),
        )
