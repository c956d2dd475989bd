"""PostgreSQL's logical replication, as bytes: messages of the streaming protocol, and in them those of the plugin `pgoutput`, version 1."""

from __future__ import annotations

import struct
from typing import NamedTuple

UNCHANGED = object()  # a large value that was not sent, because the UPDATE did not touch it
_EPOCH = 946_684_800  # 2000-01-01 in seconds since 1970
Tuple = list[bytes | object | None]  # a row's values as text, in order of its columns


class Column(NamedTuple):
    name: str
    type: int
    identity: bool  # part of the replica identity


class Relation(NamedTuple):
    """A table as it is from now on. identity: "d" the primary key, "f" all columns, "i" an index, "n" none."""

    oid: int
    schema: str
    name: str
    identity: str
    columns: tuple[Column, ...]


class Begin(NamedTuple):
    """A transaction. commit: its place among all; at: seconds since 1970."""

    commit: int
    at: float


class Commit(NamedTuple):
    """end: what comes after the transaction begins here."""

    end: int


class RowMessage(NamedTuple):
    """kind: "I", "U" or "D". whole: `old` has all columns, not just the identity's."""

    kind: str
    relation: int
    old: Tuple | None
    whole: bool
    new: Tuple | None


class Truncate(NamedTuple):
    relations: tuple[int, ...]


class Keepalive(NamedTuple):
    """end: how far the server has come. urgent: it waits for an answer."""

    end: int
    urgent: bool


Message = Relation | Begin | Commit | RowMessage | Truncate | Keepalive


def parse(data: bytes) -> Message | None:
    """One message of the stream; None for one that says nothing of tables."""
    if data[:1] == b"k":
        end, _, urgent = struct.unpack_from(">QQB", data, 1)
        return Keepalive(end, bool(urgent))
    if data[:1] != b"w":
        return None
    return _Reader(data, 25).message()


def status(position: int, at: float) -> bytes:
    """Tell the server that all before `position` is on disk here. at: seconds since 1970."""
    return struct.pack(">cQQQQB", b"r", position, position, position, int((at - _EPOCH) * 1_000_000), 0)


class _Reader:
    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._at = at

    def _take(self, format: str) -> tuple[int, ...]:
        values = struct.unpack_from(">" + format, self._data, self._at)
        self._at += struct.calcsize(">" + format)
        return values

    def _letter(self) -> str:
        return chr(self._take("B")[0])

    def _string(self) -> str:
        end = self._data.index(b"\0", self._at)
        text = self._data[self._at : end].decode()
        self._at = end + 1
        return text

    def message(self) -> Message | None:
        kind = self._letter()
        if kind == "B":
            commit, at, _ = self._take("QqI")
            return Begin(commit, _EPOCH + at / 1_000_000)
        if kind == "C":
            return Commit(self._take("BQQq")[2])
        if kind == "R":
            return self._relation()
        if kind in "IUD":
            return self._row(kind)
        if kind == "T":
            count, _ = self._take("IB")
            return Truncate(self._take(f"{count}I"))
        return None

    def _relation(self) -> Relation:
        (oid,) = self._take("I")
        schema, name, identity = self._string(), self._string(), self._letter()
        columns = []
        for _ in range(self._take("H")[0]):
            (flags,) = self._take("B")
            column = self._string()
            type, _ = self._take("Ii")
            columns.append(Column(column, type, bool(flags & 1)))
        return Relation(oid, schema or "pg_catalog", name, identity, tuple(columns))

    def _row(self, kind: str) -> RowMessage:
        (relation,) = self._take("I")
        tag, old, whole, new = self._letter(), None, False, None
        if tag in "KO":
            old, whole = self._tuple(), tag == "O"
            tag = self._letter() if kind == "U" else ""
        if tag == "N":
            new = self._tuple()
        return RowMessage(kind, relation, old, whole, new)

    def _tuple(self) -> Tuple:
        values: Tuple = []
        for _ in range(self._take("H")[0]):
            kind = self._letter()
            if kind == "t":
                (length,) = self._take("I")
                values.append(self._data[self._at : self._at + length])
                self._at += length
            else:
                values.append(None if kind == "n" else UNCHANGED)
        return values
