"""Copies what can be read of a damaged journal into a new one, and puts that in its place. For use while no router runs."""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from math import inf
from pathlib import Path
from typing import Any, Final

import apsw
import msgspec

from eventrouter.errors import JournalError
from eventrouter.journal.pages import INDEX, TABLE, Cell, Damaged, Pages
from eventrouter.journal.schema import APPLICATION, STATES, VERSION, WAITING, make
from eventrouter.journal.segments import MOST

_BATCH: Final = 1000  # rows
_TYPES: Final = {"INTEGER": int, "REAL": int | float, "TEXT": str, "BLOB": bytes}  # SQLite keeps a REAL of 2.0 as 2


class Salvage(msgspec.Struct):
    """What became of it.

    invocations: rows by state. others: rows by table. damaged: pages of `pages`, the file's first being 1.
    unread: sequence numbers that an index names but that could not be read; what was running is named by none.
    aside: where the damaged file is now.
    """

    invocations: dict[str, int]
    others: dict[str, int]
    pages: int
    damaged: list[int]
    unread: int
    aside: Path


def salvage(path: Path) -> Salvage:
    """Raises JournalError; the journal is untouched then."""
    if not path.is_file():
        raise JournalError(f"journal {path}: there is none; give --data the folder that it is in")
    work, new = path.with_name(f"{path.name}.salvage"), path.with_name(f"{path.name}.new")
    try:
        _remove(work, new)
        _copy(path, work)
        mended = _mend(work, path)
        with work.open("rb") as file, closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as data:
            found = _Reader(work, data, mended).copy_to(new)
        if not sum(found.invocations.values()) + sum(found.others.values()) and mended:
            raise JournalError(f"journal {path}: nothing in it is a journal's; restore a backup, or move it away to start empty")
        found.aside = _replace(path, new)
    except (OSError, apsw.Error) as error:
        raise JournalError(f"journal {path}: can't be salvaged: {error}; there must be free space for two copies of it") from error
    finally:
        _remove(work, new)
    return found


def _remove(*paths: Path) -> None:
    for path in paths:
        for suffix in ("", "-wal", "-shm", "-journal"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)


def _copy(path: Path, to: Path) -> None:
    shutil.copyfile(path, to)
    with suppress(FileNotFoundError):
        shutil.copyfile(f"{path}-wal", f"{to}-wal")


def _replace(path: Path, new: Path) -> Path:
    number = next(n for n in range(1, 1_000_000) if not path.with_name(f"{path.name}.damaged-{n}").exists())
    aside = path.with_name(f"{path.name}.damaged-{number}")
    # The write-ahead log first: beside another journal SQLite would take it for that one's.
    for suffix in ("-shm", "-wal", ""):
        with suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(f"{aside}{suffix}")
    new.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return aside


def _mend(work: Path, path: Path) -> bool:
    """Make the copy a file that SQLite opens, with the write-ahead log in it; whether its first page had to be made anew."""
    mended = False
    try:
        _checkpoint(work, path)
    except apsw.Error:
        # The first page says where each table begins. It is written when the journal is made, and alike in all of one version.
        mended = True
        _graft(work)
        _checkpoint(work, path)
    return mended


def _checkpoint(work: Path, path: Path) -> None:
    with closing(apsw.Connection(str(work))) as connection:
        application, version = connection.pragma("application_id"), connection.pragma("user_version")
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
        if tables and "invocation" not in tables:
            raise JournalError(f"journal {path}: this is another program's database; nothing to salvage")
        if not tables or application != APPLICATION:
            raise apsw.NotADBError("not of a journal")
        if version > VERSION:
            raise JournalError(f"journal {path}: made by a newer eventrouter (format {version}); upgrade eventrouter")
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)


def _graft(work: Path) -> None:
    blank = work.with_name(f"{work.name}-blank")
    try:
        with closing(apsw.Connection(str(blank))) as connection:
            connection.pragma("journal_mode", "WAL")
            make(connection)
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            size = connection.pragma("page_size")
        made = blank.read_bytes()
    finally:
        _remove(blank)
    length = max(work.stat().st_size, len(made))  # SQLite wants every tree to begin within the file
    first = bytearray(made[:size])
    first[28:32] = (length // size).to_bytes(4)  # pages of the file
    first[32:40] = bytes(8)  # no free ones are known
    with work.open("r+b") as file:
        file.write(first)
        file.truncate(length)


def _of_segment(record: Sequence[Any]) -> bool:
    """Whether it is of the index of segments; a first page made anew may take another for it, whose figures are times and numbers."""
    return isinstance(record[1], int) and isinstance(record[2], int) and 0 < record[2] <= MOST


class _Table:
    """What rows of a table look like in the damaged file."""

    def __init__(self, connection: apsw.Connection, name: str, rowid: bool) -> None:
        columns = list(connection.execute('SELECT name, type, "notnull", dflt_value, pk FROM pragma_table_info(?)', (name,)))
        if not rowid:  # such a table is an index of its key, with the rest behind
            columns.sort(key=lambda column: column[4] or inf)
        self.name = name
        self.rowid = rowid
        self.columns = [column[0] for column in columns]
        self._types = [_TYPES[column[1]] for column in columns]
        self._nullable = [not column[2] and not column[4] for column in columns]
        self._least = max((at for at, column in enumerate(columns, 1) if column[3] is None and column[2]), default=1)
        self._alias = next((at for at, column in enumerate(columns) if rowid and column[4]), None)

    def row(self, cell: Cell) -> list[Any] | None:
        """None: it is no row of this table. Rows from before a column was added lack it."""
        values = list(cell.record)
        if not self._least <= len(values) <= len(self.columns):
            return None
        if self._alias is not None:
            values[self._alias] = cell.rowid
        for value, kind, nullable in zip(values, self._types, self._nullable, strict=False):
            if not (isinstance(value, kind) if value is not None else nullable):
                return None
        return values


class _Reader:
    """work: the damaged file's mended copy. mended: its first page is none of its own."""

    def __init__(self, work: Path, data: mmap.mmap, mended: bool) -> None:
        self._pages = Pages(data)
        self._mended = mended
        self._damaged: set[int] = {1} if mended else set()
        self._seen: set[int] = set()
        self._torn = False  # a page is damaged that had pages of a table below it
        with closing(apsw.Connection(str(work), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
            schema = list(connection.execute("SELECT type, name, tbl_name, rootpage, sql FROM sqlite_schema WHERE rootpage > 0"))
        with closing(apsw.Connection(":memory:")) as connection:
            for _, _, _, _, sql in schema:
                if sql:
                    connection.execute(sql).fetchall()
            kinds = {name: not wr for name, wr in connection.execute("SELECT name, wr FROM pragma_table_list WHERE schema = 'main'")}
            self._tables = {name: _Table(connection, name, kinds[name]) for kind, name, *_ in schema if kind == "table"}
        self._roots = {name: root for kind, name, _, root, _ in schema if kind == "table"}
        self._indexes = [root for kind, _, table, root, _ in schema if kind == "index" and table == "invocation"]
        self._segments = [root for kind, _, table, root, _ in schema if kind == "index" and table == "segment"]
        self._other_indexes = [root for kind, _, table, root, _ in schema if kind == "index" and table not in ("invocation", "segment")]

    def copy_to(self, new: Path) -> Salvage:
        with closing(apsw.Connection(str(new))) as connection:
            with connection:
                make(connection)
                connection.execute("DELETE FROM numbering").fetchall()
                named = self._copy(connection)
                self._number(connection, named)
            if (fault := connection.execute("PRAGMA integrity_check(1)").get) != "ok":
                raise JournalError(f"the salvaged copy is damaged too ({fault}); check the disk and the memory")
            return self._report(connection, named)

    def _copy(self, connection: apsw.Connection) -> set[int]:
        """The sequence numbers that indexes name."""
        strays: dict[bool, list[Cell]] = {True: [], False: []}
        for name, root in self._roots.items():
            table = self._tables[name]
            strays[table.rowid] += self._insert(connection, table, self._tree(root, TABLE if table.rowid else INDEX))
        self._damaged.update(cell.page for cells in strays.values() for cell in cells)
        # A first page made anew may take one table for another, if the file's tables were made in another order.
        for table in self._tables.values():
            strays[table.rowid] = self._insert(connection, table, iter(strays[table.rowid]))
        torn = self._torn
        named: set[int] = set()
        misread: list[Cell] = []
        for root in (*self._indexes, *self._segments, *self._other_indexes):
            for cell in self._tree(root, INDEX):
                if root in self._indexes and isinstance(cell.record[-1], int):
                    named.add(cell.record[-1])
                elif root in self._segments and _of_segment(cell.record):
                    named.update(range(cell.record[1], cell.record[1] + cell.record[2]))  # those of its events
                elif self._mended:
                    misread.append(cell)
        for table in self._tables.values():
            if not table.rowid:
                misread = self._insert(connection, table, iter(misread))
        free = set(self._free())
        if torn:
            for table in self._tables.values():
                self._insert(connection, table, self._orphans(free, TABLE if table.rowid else INDEX))
        return named

    def _insert(self, connection: apsw.Connection, table: _Table, cells: Iterator[Cell]) -> list[Cell]:
        """What was read before wins over a repeat of it. Returns what is no row of this table."""
        there = {column for (column,) in connection.execute("SELECT name FROM pragma_table_info(?)", (table.name,))}
        at = [place for place, column in enumerate(table.columns) if column in there]
        rows: dict[int, list[list[Any]]] = {}
        strays: list[Cell] = []

        def write(length: int) -> None:
            shared = [place for place in at if place < length]
            names, marks = ", ".join(table.columns[place] for place in shared), ", ".join("?" * len(shared))
            connection.executemany(
                f"INSERT OR IGNORE INTO {table.name} ({names}) VALUES ({marks})",  # noqa: S608 - names of the schema
                [[row[place] for place in shared] for row in rows.pop(length)],
            )

        for cell in cells:
            row = table.row(cell)
            if row is None:
                strays.append(cell)
                continue
            rows.setdefault(len(row), []).append(row)
            if len(rows[len(row)]) >= _BATCH:
                write(len(row))
        for length in list(rows):
            write(length)
        return strays

    def _tree(self, root: int, kinds: frozenset[int]) -> Iterator[Cell]:
        level = [root]
        while level:
            below: list[int] = []
            damaged = leaves = False
            for number in level:
                if number in self._seen:
                    continue
                try:
                    node = self._pages.node(number)
                    if node.kind not in kinds:  # it may still be of another tree
                        raise Damaged
                except Damaged:
                    damaged = True
                    self._damaged.add(number)
                    continue
                self._seen.add(number)
                if not node.whole:
                    self._damaged.add(number)
                    damaged |= bool(node.children)
                leaves |= not node.children
                below += node.children
                yield from node.cells
            self._torn |= damaged and not leaves  # all leaves of a tree are on one level
            level = below

    def _free(self) -> Iterator[int]:
        try:
            yield from self._pages.free()
        except Damaged as damaged:
            self._damaged.add(damaged.args[0])

    def _orphans(self, free: set[int], kinds: frozenset[int]) -> Iterator[Cell]:
        """What is in no tree any more. Free pages still hold what was deleted; where the list of them is damaged, that comes again."""
        for number in range(2, self._pages.count + 1):
            if number not in self._seen and number not in free:
                with suppress(Damaged):
                    node = self._pages.node(number)
                    if node.kind in kinds:
                        yield from node.cells

    def _number(self, connection: apsw.Connection, named: set[int]) -> None:
        """No number may be given twice, were it that of what is lost."""
        last = (
            connection.execute(
                """SELECT max(seq) FROM (SELECT seq FROM invocation UNION ALL SELECT seq + count FROM segment
                UNION ALL SELECT seq FROM seen UNION ALL SELECT seq FROM archive)"""
            ).get
            or 0
        )
        following = max(last, max(named, default=0)) + 1 if last or named else 0
        if connection.execute("SELECT count(*) FROM numbering").get == 0:
            connection.execute("INSERT INTO numbering VALUES (?)", (following,))
        connection.execute("UPDATE numbering SET next = max(next, ?)", (following,))

    def _report(self, connection: apsw.Connection, named: set[int]) -> Salvage:
        states = dict(connection.execute("SELECT state, count(*) FROM invocation GROUP BY state"))
        # Of those in segments that are done alone the wait is over.
        for count, done in connection.execute("SELECT count, done FROM segment LEFT JOIN progress USING (seq)"):
            states[WAITING] = states.get(WAITING, 0) + count - sum(done or b"")
        others = {
            name: connection.execute(f"SELECT count(*) FROM {name}").get  # noqa: S608
            for name in self._tables
            if name not in ("invocation", "numbering", "segment", "progress")
        }
        read = {seq for (seq,) in connection.execute("SELECT seq FROM invocation")}
        for seq, count in connection.execute("SELECT seq, count FROM segment"):
            read.update(range(seq, seq + count))
        return Salvage(
            {name: sum(count for state, count in states.items() if STATES[state] == name) for name in STATES},
            others, self._pages.count, sorted(self._damaged), len(named - read), Path(),
        )  # fmt: skip
