"""Messages of logical replication about a row, as Rows."""

from __future__ import annotations

import logging
from collections.abc import Container, Sequence
from typing import Any, NamedTuple

from eventrouter_tables.pgoutput import UNCHANGED, Relation, RowMessage, Truncate, Tuple
from eventrouter_tables.pgvalues import Values
from eventrouter_tables.records import Kind, Row

log = logging.getLogger("eventrouter.tables")
_KINDS: dict[str, Kind] = {"I": "INSERT", "U": "MODIFY", "D": "REMOVE"}


class _Known(NamedTuple):
    relation: Relation
    key: Sequence[str]
    binary: Sequence[str]


class Rows:
    """wanted: oids of the tables whose rows are read; the others are passed over. truncates: how often one was emptied by TRUNCATE."""

    def __init__(self, wanted: Container[int]) -> None:
        self.values = Values()
        self.truncates = 0
        self._wanted = wanted
        self._known: dict[int, _Known] = {}

    def learn(self, relation: Relation, key: Sequence[str]) -> None:
        """key: its primary key's columns now; with an index as its identity, that index's."""
        identity = [column.name for column in relation.columns if column.identity]
        columns = {column.name for column in relation.columns}
        names = key if key and columns.issuperset(key) and relation.identity in "df" else identity
        self._known[relation.oid] = _Known(
            relation, names, [column.name for column in relation.columns if self.values.is_binary(column.type)]
        )

    def read(self, message: RowMessage, position: int, index: int, at: float) -> Row | None:
        if message.relation not in self._wanted or message.relation not in self._known:
            return None
        relation, key, binary = self._known[message.relation]
        old = self._image(relation, message.old, None, whole=message.whole)
        new = self._image(relation, message.new, message.old if message.whole else None, whole=True)
        unchanged = [] if new is None else [column.name for column in relation.columns if column.name not in new]
        kind = _KINDS[message.kind]
        partial = old is not None and not message.whole
        return Row(str(relation.oid), kind, position, index, at, key, old, new, partial=partial, binary=binary, unchanged=unchanged)

    def _image(self, relation: Relation, row: Tuple | None, before: Tuple | None, *, whole: bool) -> dict[str, Any] | None:
        if row is None:
            return None
        image: dict[str, Any] = {}
        for place, column in enumerate(relation.columns):
            value = row[place]
            if value is UNCHANGED and before is not None:
                value = before[place]
            if value is UNCHANGED or not (whole or column.identity):
                continue
            image[column.name] = self.values.load(column.type, value) if isinstance(value, bytes) else None
        return image

    def truncated(self, message: Truncate) -> None:
        for oid in message.relations:
            if oid in self._wanted:
                self.truncates += 1
                name = self._known[oid].relation.name if oid in self._known else oid
                log.warning("%s was emptied by TRUNCATE, which tells no rows: there are no REMOVE events for them", name,
                            extra={"action": "tables.truncate", "source": "tables", "count": self.truncates})  # fmt: skip
