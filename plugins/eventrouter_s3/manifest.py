"""What was last reported of a bucket: a small database beside the journal, so that a large bucket takes no memory."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from eventrouter.errors import EventRouterError
from eventrouter_s3.files import split

_TABLES = """
CREATE TABLE IF NOT EXISTS object (
    folder TEXT NOT NULL, name TEXT NOT NULL, size INTEGER NOT NULL, modified INTEGER NOT NULL, inode INTEGER NOT NULL,
    version INTEGER NOT NULL, PRIMARY KEY (folder, name)) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS of_inode ON object (inode);
CREATE TABLE IF NOT EXISTS known (what TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
"""


class Seen(NamedTuple):
    """A version of an object. modified: nanoseconds since 1970. version: greater than that of any before it under the same key."""

    size: int
    modified: int
    inode: int
    version: int


class Change(NamedTuple):
    """What happened to a key. seen: the new version; of what is gone, the last. at: seconds since 1970."""

    key: str
    event: str
    seen: Seen
    at: float
    etag: str | None = None

    @property
    def gone(self) -> bool:
        return self.etag is None

    @property
    def sequencer(self) -> str:
        return f"{self.seen.version:016X}{self.gone:02X}"


class Manifest:
    """is_new: until all that was there at first sight has been noted down.

    A power cut takes its last lines at most; they are found again as the same events, and repeats run once. Raises EventRouterError.
    """

    def __init__(self, file: Path) -> None:
        self._db = sqlite3.connect(file, check_same_thread=False, isolation_level=None)
        self._lock = threading.Lock()  # a source that is stopped does not wait for its thread, and closes this under its feet
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.executescript(_TABLES)
            self.is_new = self._known("complete") == 0
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise EventRouterError(f"{file}: {error}; delete it, and what is in the bucket now counts as known") from None

    def _rows(self, sql: str, values: Iterable[str | int]) -> list[Any]:
        with self._lock:
            return self._db.execute(sql, tuple(values)).fetchall()

    def _known(self, what: str) -> int:
        found = self._rows("SELECT value FROM known WHERE what = ?", (what,))
        return found[0][0] if found else 0

    def get(self, key: str) -> Seen | None:
        rows = self._rows("SELECT size, modified, inode, version FROM object WHERE folder = ? AND name = ?", split(key))
        return Seen(*rows[0]) if rows else None

    def next_version(self, key: str, changed: int) -> int:
        """Of a file that was changed then, in nanoseconds since 1970; the clock may have been set back since it was last reported."""
        known = self.get(key)
        return max(changed, (self._known("removed") if known is None else known.version) + 1)

    def is_copy(self, key: str, size: int, modified: int, inode: int) -> bool:
        """The same file was reported under another key: it was moved, or has two names."""
        rows = self._rows("SELECT folder || name FROM object WHERE inode = ? AND size = ? AND modified = ?", (inode, size, modified))
        return any(other != key for (other,) in rows)

    def inside(self, folder: str) -> dict[str, Seen]:
        """The objects right in a subfolder, by name."""
        rows = self._rows("SELECT name, size, modified, inode, version FROM object WHERE folder = ?", (folder,))
        return {name: Seen(*seen) for name, *seen in rows}

    def folders(self, below: str) -> list[str]:
        """Those that have objects, of a subfolder and all in it."""
        rows = self._rows("SELECT DISTINCT folder FROM object WHERE folder >= ?1 AND substr(folder, 1, length(?1)) = ?1", (below,))
        return [folder for (folder,) in rows]

    def report(self, changes: Iterable[Change]) -> None:
        """These have been delivered."""
        with self._lock, self._db:
            self._db.execute("BEGIN")
            for change in changes:
                if change.gone:
                    self._db.execute("DELETE FROM object WHERE folder = ? AND name = ?", split(change.key))
                    self._db.execute(
                        "INSERT INTO known VALUES ('removed', ?1) ON CONFLICT DO UPDATE SET value = max(value, ?1)", (change.seen.version,)
                    )
                else:
                    self._db.execute("INSERT OR REPLACE INTO object VALUES (?, ?, ?, ?, ?, ?)", (*split(change.key), *change.seen))

    def complete(self) -> None:
        """What was there at first sight has been noted down."""
        self._rows("INSERT OR REPLACE INTO known VALUES ('complete', 1)", ())
        self.is_new = False

    def close(self) -> None:
        with self._lock:
            self._db.close()
