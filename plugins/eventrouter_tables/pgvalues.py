"""PostgreSQL's values as text, turned into what JSON can say without loss. psycopg knows how arrays are written; the rest is here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec
from psycopg import adapters
from psycopg.adapt import AdaptersMap, Buffer, Loader, Transformer
from psycopg.pq import Format
from psycopg.types import TypeInfo
from psycopg.types.array import register_array

# Of types that don't come with PostgreSQL (domains, enumerations, arrays of them) and what they are made of, which goes first.
TYPES = """
WITH RECURSIVE made (oid, depth) AS (
    SELECT unnest(%s::oid[]), 0
    UNION ALL
    SELECT CASE typtype WHEN 'd' THEN typbasetype ELSE typelem END, depth + 1
    FROM made JOIN pg_type USING (oid) WHERE typtype = 'd' OR (typcategory = 'A' AND typelem <> 0)
)
SELECT oid, typname, CASE typtype WHEN 'd' THEN typbasetype ELSE 0 END, CASE typcategory WHEN 'A' THEN typelem ELSE 0 END, typdelim
FROM made JOIN pg_type USING (oid) ORDER BY depth DESC
"""


class _Number(Loader):
    def load(self, data: Buffer) -> Any:
        text = bytes(data).decode()
        return msgspec.Raw(data) if text[-1].isdigit() else text  # NaN and Infinity are no numbers in JSON


class _Json(Loader):
    def load(self, data: Buffer) -> Any:
        return msgspec.Raw(bytes(data))


class _Time(Loader):
    def load(self, data: Buffer) -> Any:
        """`2026-01-01 10:00:00+00` in the form that ISO 8601 has for it."""
        text = re.sub(r"^(\d{4}-\d\d-\d\d) (\d\d:)", r"\1T\2", bytes(data).decode())
        return re.sub(r"(:\d\d(?:\.\d+)?[+-]\d\d)$", r"\1:00", text)


class _Text(Loader):
    def load(self, data: Buffer) -> Any:
        return bytes(data).decode()


_LOADERS: dict[type[Loader], tuple[str, ...]] = {
    _Number: ("int2", "int4", "int8", "float4", "float8", "numeric", "oid"),
    _Json: ("json", "jsonb"),
    _Time: ("timestamp", "timestamptz", "timetz"),
}
_AS_THEY_ARE = ("bool", "bytea")  # as bool and bytes


class Values:
    """Reads values of the types that one connection has come across."""

    def __init__(self) -> None:
        self._adapters = AdaptersMap(adapters)
        for info in adapters.types:
            loader = next((loader for loader, names in _LOADERS.items() if info.name in names), _Text)
            if info.name not in _AS_THEY_ARE:
                self._adapters.register_loader(info.oid, loader)
        self._known = {info.oid for info in adapters.types} | {info.array_oid for info in adapters.types if info.array_oid}
        self._bytea = {info.oid for info in adapters.types if info.name == "bytea"}
        self._bytea |= {info.array_oid for info in adapters.types if info.oid in self._bytea}
        self._transformer = Transformer(self._adapters)

    def unknown(self, oids: Iterable[int]) -> list[int]:
        return sorted({oid for oid in oids if oid and oid not in self._known})

    def learn(self, rows: Iterable[tuple[int, str, int, int, str]]) -> None:
        """rows: of TYPES."""
        for oid, name, base, element, delimiter in rows:
            made_of = base or element
            if oid in self._known:
                continue
            self._known.add(oid)
            if made_of in self._bytea:
                self._bytea.add(oid)
            if base:
                self._adapters.register_loader(oid, self._adapters.get_loader(base, Format.TEXT) or _Text)
            elif element:
                register_array(TypeInfo(name, element, oid, delimiter=delimiter), self._adapters)
            else:
                self._adapters.register_loader(oid, _Text)
        self._transformer = Transformer(self._adapters)

    def is_binary(self, oid: int) -> bool:
        return oid in self._bytea

    def load(self, oid: int, data: bytes) -> Any:
        return self._transformer.get_loader(oid, Format.TEXT).load(data)
