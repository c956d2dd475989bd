"""A SQLite database's log of changes, and its tables for clients. Everything here blocks; the source calls it in threads."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import msgspec

from eventrouter import EventRouterError
from eventrouter.errors import suggest
from eventrouter_tables.changelog import KEEP, SCHEMA, Shape, quoted, read, triggers
from eventrouter_tables.records import Kind, Row, Stream

_BUSY = 5.0  # seconds to wait for other writers
_OWN = ("eventrouter_", "sqlite_")


def too_old() -> str:
    """Whether this Python's SQLite lacks what is needed here (pragma_table_list); empty when not."""
    return "" if sqlite3.sqlite_version_info >= (3, 37) else f"this Python has SQLite {sqlite3.sqlite_version}; tables need 3.37 or newer"


def connect(path: str) -> sqlite3.Connection:
    """Raises EventRouterError when there is no such database: none is made of a name that is misspelt."""
    if fault := too_old():
        raise EventRouterError(fault)
    if not Path(path).is_file():
        raise EventRouterError(f"{path}: no such file; make the database first, or correct the path")
    # Handlers open the database with this library, too. A second copy of SQLite in one process, apsw's say, would undo their locks.
    return sqlite3.connect(f"file:{quote(path)}?mode=rw", uri=True, timeout=_BUSY, isolation_level=None, check_same_thread=False)


def value(db: sqlite3.Connection, sql: str, parameters: Sequence[Any] = ()) -> Any:
    """The first column of the first row; None when there is none."""
    row = db.execute(sql, parameters).fetchone()
    return None if row is None else row[0]


class _Shape(NamedTuple):
    name: str
    columns: list[str]
    key: list[str]


class Log:
    """The log of one database."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._db = connect(path)
        self._inode: int | None = None
        self._seen: int | None = None
        self._schema: int | None = None
        self._faults: dict[str, str] = {}
        self._shapes: dict[int, _Shape] = {}
        self._encoding = "utf-8"
        self.stream = Stream(0, 0)

    def close(self) -> None:
        self._db.close()

    def changed(self) -> bool:
        """Whether another connection has committed since it was last asked. Raises EventRouterError when the file is another one."""
        try:
            inode = self._path.stat().st_ino
        except FileNotFoundError:
            inode = 0
        if self._inode is None:
            self._inode = inode
        if inode != self._inode:
            raise EventRouterError(f"{self._path}: the file was {'replaced' if inode else 'removed'}")
        seen = value(self._db, "PRAGMA data_version")
        changed, self._seen = bool(seen != self._seen), seen
        return changed

    def prepare(self, names: Sequence[str]) -> dict[str, str]:
        """Have these tables' changes logged from now on; what stands in the way, by name. Does nothing while the schema stays."""
        if self._schema == value(self._db, "PRAGMA schema_version"):
            return self._faults
        self._faults = {}
        # "UTF-16le" to Python's "utf-16-le"
        self._encoding = str(value(self._db, "PRAGMA encoding")).lower().replace("utf-16", "utf-16-")
        with Immediate(self._db):
            for statement in SCHEMA.split(";\n"):
                self._db.execute(statement)
            self._db.execute(
                "INSERT INTO eventrouter_stream SELECT ?, (julianday('now') - 2440587.5) * 86400.0"
                " WHERE NOT EXISTS (SELECT 1 FROM eventrouter_stream)", (_prefix(),),
            )  # fmt: skip
            for name in names:
                shape = self._describe(name)
                if isinstance(shape, str):
                    self._faults[name] = shape
                else:
                    self._install(shape)
        self._shapes.clear()
        self._schema = value(self._db, "PRAGMA schema_version")
        self.stream = Stream(*self._db.execute("SELECT prefix, created FROM eventrouter_stream").fetchone())
        return self._faults

    def head(self) -> int:
        """The number of the last change."""
        return value(self._db, "SELECT seq FROM sqlite_sequence WHERE name = 'eventrouter_changes'") or 0

    def trimmed(self, after: int) -> int:
        """How many changes after this one are gone unread."""
        first = value(self._db, "SELECT min(seq) FROM eventrouter_changes")
        return max(0, (self.head() + 1 if first is None else first) - after - 1)

    def read(self, after: int, limit: int) -> list[Row]:
        """The next changes, in order of commit."""
        found = self._db.execute(
            "SELECT seq, shape, at, CAST(old AS BLOB), CAST(new AS BLOB) FROM eventrouter_changes WHERE seq > ? ORDER BY seq LIMIT ?",
            (after, limit),
        )
        return [self._row(*values) for values in found]

    def trim(self) -> None:
        """Forget what is older than a day; the triggers do, too, as long as somebody writes."""
        old = "at < (julianday('now') - 2440587.5) * 86400.0 - ?"
        if value(self._db, f"SELECT 1 FROM (SELECT at FROM eventrouter_changes ORDER BY seq LIMIT 1) WHERE {old}", (KEEP,)):
            self._db.execute(
                f"DELETE FROM eventrouter_changes WHERE seq IN (SELECT seq FROM eventrouter_changes ORDER BY seq LIMIT 10000) AND {old}",
                (KEEP,),
            )

    def _row(self, seq: int, shape: int, at: float, old: bytes | None, new: bytes | None) -> Row:
        if shape not in self._shapes:
            name, columns, key = self._db.execute("SELECT name, columns, key FROM eventrouter_shapes WHERE shape = ?", (shape,)).fetchone()
            self._shapes[shape] = _Shape(name, msgspec.json.decode(columns), msgspec.json.decode(key))
        name, columns, key = self._shapes[shape]
        before, after = (self._image(columns, image) for image in (old, new))
        kind: Kind = "INSERT" if before is None else "REMOVE" if after is None else "MODIFY"
        binary = {column for image in (before, after) if image for column, value in image.items() if isinstance(value, bytes)}
        return Row(name, kind, seq, 0, at, key, before, after, binary=sorted(binary))

    def _image(self, columns: Sequence[str], literals: bytes | None) -> dict[str, Any] | None:
        if literals is None:
            return None
        return dict(zip(columns, read(literals.decode(self._encoding, "replace"), self._encoding), strict=True))

    def _describe(self, name: str) -> Shape | str:
        """The table, or why its changes can't be logged."""
        found = find(self._db, name)
        if found is None:
            return f"there is no table {name!r}{suggest(name, self.tables())}"
        real, kind, without_rowid = found
        if kind != "table" or real.lower().startswith(_OWN):
            return f"{name!r} is {'a ' + kind if kind != 'table' else 'no table of yours'}: its changes can't be logged"
        return describe(self._db, real, without_rowid)

    def tables(self) -> list[str]:
        return tables(self._db)

    def _install(self, shape: Shape) -> None:
        described = (shape.name, *(msgspec.json.encode(names).decode() for names in (shape.columns, shape.key)))
        self._db.execute("INSERT OR IGNORE INTO eventrouter_shapes (name, columns, key) VALUES (?, ?, ?)", described)
        number = value(self._db, "SELECT shape FROM eventrouter_shapes WHERE name = ? AND columns = ? AND key = ?", described)
        there = dict(
            self._db.execute(
                "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ? AND name LIKE 'eventrouter!_%' ESCAPE '!'",
                (shape.name,),
            )
        )
        wanted = triggers(shape, number)
        if there == wanted:
            return
        for name in there:
            self._db.execute(f"DROP TRIGGER {quoted(name)}")
        for statement in wanted.values():
            self._db.execute(statement)


class Immediate:
    """A transaction that writes: it waits for others at its begin, not in its middle."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._db.execute("COMMIT" if kind is None else "ROLLBACK")


def find(db: sqlite3.Connection, name: str) -> tuple[str, str, bool] | None:
    """As it is really written, its type ("table", "view"), and whether it is WITHOUT ROWID."""
    found = db.execute("SELECT name, type, wr FROM pragma_table_list WHERE schema = 'main' AND name = ? COLLATE NOCASE", (name,))
    row: tuple[str, str, bool] | None = found.fetchone()
    return row


def tables(db: sqlite3.Connection) -> list[str]:
    found = db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    return [str(name) for (name,) in found if not str(name).lower().startswith(_OWN)]


def describe(db: sqlite3.Connection, name: str, without_rowid: bool) -> Shape:
    """name: as the table is really written."""
    info = [row for row in db.execute("SELECT name, pk, hidden FROM pragma_table_xinfo(?)", (name,)) if row[2] != 1]
    columns = [column for column, _, _ in info]
    key = [column for column, pk, _ in sorted(info, key=lambda row: row[1]) if pk]
    unique: list[Any] = []
    indexed = False
    for index, is_unique, origin, partial in db.execute('SELECT name, "unique", origin, partial FROM pragma_index_list(?)', (name,)):
        indexed |= origin == "pk"
        parts: list[Any] = db.execute("SELECT name, coll FROM pragma_index_xinfo(?) WHERE key", (index,)).fetchall()
        if is_unique and not partial and all(column is not None for column, _ in parts):
            unique.append(tuple(parts))
    number = key[0] if key and not indexed and not without_rowid else None
    if not key:
        number = next(each for each in ("rowid", "_rowid_", "oid") if each not in {column.lower() for column in columns})
        columns.insert(0, number)
        key = [number]
    if number is not None:
        unique.append(((number, "BINARY"),))
    return Shape(name, tuple(columns), tuple(key), tuple(unique), number is not None)


def _prefix() -> int:
    return random.SystemRandom().randrange(10_000_000, 100_000_000)
