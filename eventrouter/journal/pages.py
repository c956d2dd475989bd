"""What is left of an SQLite file, read page by page: past damage that SQLite itself stops at.

After https://sqlite.org/fileformat2.html. A page that is damaged takes with it what is on it; with SQL, an interior page would take
all pages below it, and the first one everything.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

HEADER: Final = 100  # bytes of the file's header, before the first page's own
_INDEX_INTERIOR, _TABLE_INTERIOR, _INDEX_LEAF, _TABLE_LEAF = 2, 5, 10, 13
TABLE: Final = frozenset({_TABLE_INTERIOR, _TABLE_LEAF})
INDEX: Final = frozenset({_INDEX_INTERIOR, _INDEX_LEAF})
_INTEGERS: Final = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}  # serial type -> bytes


class Damaged(Exception):
    """It can't be what it should be."""


class Cell(NamedTuple):
    """rowid: 0 in an index, whose records end with it, and in a table that has none."""

    page: int
    rowid: int
    record: Sequence[Any]


class Node(NamedTuple):
    """A page of a tree. whole: all cells of it could be read."""

    kind: int
    children: list[int]
    cells: list[Cell]
    whole: bool


class Pages:
    """data: the file, its write-ahead log already in it. Pages are counted from 1."""

    def __init__(self, data: Any) -> None:
        self._data = data
        size = int.from_bytes(data[16:18])
        self._size = 65536 if size == 1 else size
        self._usable = self._size - data[20]
        self.count = len(data) // self._size

    def node(self, number: int) -> Node:
        """Raises Damaged when nothing of it can be read."""
        page = self._page(number)
        at = HEADER if number == 1 else 0
        kind = page[at]
        if kind not in TABLE | INDEX:
            raise Damaged
        interior = kind in (_TABLE_INTERIOR, _INDEX_INTERIOR)
        count, first = int.from_bytes(page[at + 3 : at + 5]), at + (12 if interior else 8)
        if first + 2 * count > self._usable:
            raise Damaged
        children, cells = [], []
        whole = True
        for start in struct.unpack_from(f">{count}H", page, first):
            try:
                if start < first + 2 * count:
                    raise Damaged
                child, rowid, record = self._cell(kind, page, start)
            except (Damaged, IndexError, UnicodeDecodeError):
                whole = False
                continue
            if child:
                children.append(child)
            if record is not None:
                cells.append(Cell(number, rowid, record))
        if not whole and not cells and not children:
            raise Damaged
        if interior:
            children.append(int.from_bytes(page[at + 8 : at + 12]))
        return Node(kind, children, cells, whole)

    def free(self) -> Iterator[int]:
        """The pages that are in no tree. Raises Damaged, with the page at fault, where nothing more can be known of them."""
        at, trunk = 1, int.from_bytes(self._data[32:36])
        seen: set[int] = set()
        while trunk:
            if trunk in seen or trunk > self.count:
                raise Damaged(at)
            seen.add(trunk)
            yield trunk
            page = self._page(trunk)
            following, count = struct.unpack_from(">2I", page)
            if count > self._usable // 4 - 2:
                raise Damaged(trunk)
            yield from struct.unpack_from(f">{count}I", page, 8)
            at, trunk = trunk, following

    def _page(self, number: int) -> bytes:
        if not 1 <= number <= self.count:
            raise Damaged
        page: bytes = self._data[(number - 1) * self._size : number * self._size]
        return page

    def _cell(self, kind: int, page: bytes, at: int) -> tuple[int, int, Sequence[Any] | None]:
        """Its child, its rowid, its record; 0, 0, None where it has none."""
        child = rowid = 0
        if kind in (_TABLE_INTERIOR, _INDEX_INTERIOR):
            child = int.from_bytes(page[at : at + 4])
            if not 1 < child <= self.count:
                raise Damaged
            at += 4
        if kind == _TABLE_INTERIOR:
            return child, 0, None
        length, at = _varint(page, at)
        if kind == _TABLE_LEAF:
            rowid, at = _varint(page, at)
            rowid -= (rowid >> 63) << 64  # it is signed
        return child, rowid, _record(self._payload(page, at, length, kind))

    def _payload(self, page: bytes, at: int, length: int, kind: int) -> bytes:
        usable = self._usable
        most = usable - 35 if kind == _TABLE_LEAF else (usable - 12) * 64 // 255 - 23
        local = length
        if length > most:
            least = (usable - 12) * 32 // 255 - 23
            local = least + (length - least) % (usable - 4)
            if local > most:
                local = least
        if at + local > usable or length > len(self._data):
            raise Damaged
        parts, missing = [page[at : at + local]], length - local
        more = int.from_bytes(page[at + local : at + local + 4]) if missing else 0
        while missing > 0:
            overflow = self._page(more)
            more, part = int.from_bytes(overflow[:4]), overflow[4 : min(usable, 4 + missing)]
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place in range(at, at + 8):
        byte = data[place]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, place + 1
    return value << 8 | data[at + 8], at + 9


def _record(payload: bytes) -> list[Any]:
    header, at = _varint(payload, 0)
    kinds = []
    while at < header:
        kind, at = _varint(payload, at)
        kinds.append(kind)
    values: list[Any] = []
    for kind in kinds:
        size = _INTEGERS.get(kind, 0) if kind < 7 else 8 if kind == 7 else (kind - 12) // 2 if kind >= 12 else 0
        part = payload[at : at + size]
        at += size
        if kind == 0:
            values.append(None)
        elif kind < 7:
            values.append(int.from_bytes(part, signed=True))
        elif kind == 7:
            values.append(struct.unpack(">d", part)[0] if size == len(part) else None)
        elif kind < 10:
            values.append(kind - 8)
        elif kind < 12:
            raise Damaged
        else:
            values.append(part.decode() if kind % 2 else part)
    if not kinds or at != len(payload):
        raise Damaged
    return values
