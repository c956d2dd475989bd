"""A SQLite database's tables, for clients. Everything here blocks; the source calls it in threads."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eventrouter import EventRouterError
from eventrouter.errors import suggest
from eventrouter_tables.changelog import quoted
from eventrouter_tables.sqlite import connect, describe, find, tables, value

_COMPARE = ("=", "!=", "<", "<=", ">", ">=", "LIKE")


class Rows:
    """One table, for clients."""

    def __init__(self, db: sqlite3.Connection, name: str) -> None:
        found = find(db, name)
        if found is None or found[0] != name:  # to SQLite they are one table, to a role two: what it denies must have one name
            raise EventRouterError(
                f"there is no table {name!r} in {value(db, 'SELECT file FROM pragma_database_list')}{suggest(name, tables(db))}"
            )
        self._db = db
        self._shape = describe(db, found[0], bool(found[2]))
        self._table = quoted(found[0])
        self._made = {row[0] for row in db.execute("SELECT name FROM pragma_table_xinfo(?) WHERE hidden > 1", (found[0],))}

    def get(self, key: Any) -> dict[str, Any] | None:
        where, values = self._where_key(key)
        return self._one(f"SELECT {self._columns} FROM {self._table} WHERE {where}", values)

    def put(self, item: Mapping[str, Any]) -> dict[str, Any]:
        self._check(item)
        names = ", ".join(map(quoted, item))
        places = ", ".join("?" * len(item))
        into = f"({names}) VALUES ({places})" if item else "DEFAULT VALUES"
        key, settable = self._shape.key, [name for name in self._shape.columns if name not in self._made]
        conflict = ""
        if all(name in item for name in key):
            others = [f"{quoted(name)} = excluded.{quoted(name)}" for name in settable if name not in key]
            conflict = (
                f" ON CONFLICT ({', '.join(map(quoted, key))}) DO UPDATE SET {', '.join(others)}" if others else " ON CONFLICT DO NOTHING"
            )
        if key[0] not in self._columns_of_table:
            conflict = ""  # rows without a primary key are all different
        made = self._one(f"INSERT INTO {self._table} {into}{conflict} RETURNING {self._columns}", tuple(item.values()))
        return made if made is not None else dict(item)

    def update(self, key: Any, changes: Mapping[str, Any]) -> dict[str, Any] | None:
        self._check(changes)
        where, values = self._where_key(key)
        if not changes:
            return self.get(key)
        settings = ", ".join(f"{quoted(name)} = ?" for name in changes)
        return self._one(f"UPDATE {self._table} SET {settings} WHERE {where} RETURNING {self._columns}", (*changes.values(), *values))

    def delete(self, key: Any) -> bool:
        where, values = self._where_key(key)
        return self._one(f"DELETE FROM {self._table} WHERE {where} RETURNING 1", values) is not None

    def query(self, where: Mapping[str, Any], order_by: str, limit: int) -> list[dict[str, Any]]:
        self._check(where)
        conditions, values = ["1"], []
        for name, wanted in where.items():
            compare, value = wanted if isinstance(wanted, tuple) else ("=", wanted)
            if compare not in _COMPARE:
                raise ValueError(f"query: {compare!r} compares nothing; one of {' '.join(_COMPARE)}")
            if value is None:
                compare = "IS" if compare == "=" else "IS NOT"
            conditions.append(f"{quoted(name)} {compare} ?")
            values.append(value)
        order = order_by.removeprefix("-") or self._shape.key[0]
        self._check([order])
        sql = f"SELECT {self._columns} FROM {self._table} WHERE {' AND '.join(conditions)} ORDER BY {quoted(order)}"
        return self._all(f"{sql}{' DESC' if order_by.startswith('-') else ''} LIMIT ?", (*values, limit))

    @property
    def _columns(self) -> str:
        return ", ".join(map(quoted, self._shape.columns))

    @property
    def _columns_of_table(self) -> set[str]:
        return {row[0] for row in self._db.execute("SELECT name FROM pragma_table_xinfo(?)", (self._shape.name,))}

    def _check(self, names: Any) -> None:
        for name in names:
            if name not in self._shape.columns:
                raise ValueError(f"table {self._shape.name!r} has no column {name!r}{suggest(name, self._shape.columns)}")

    def _where_key(self, key: Any) -> tuple[str, tuple[Any, ...]]:
        names = self._shape.key
        if isinstance(key, Mapping):
            if set(key) != set(names):
                raise ValueError(f"table {self._shape.name!r}: its key is {', '.join(names)}, not {', '.join(key)}")
            key = tuple(key[name] for name in names)
        values = key if isinstance(key, tuple) else (key,)
        if len(values) != len(names):
            raise ValueError(f"table {self._shape.name!r}: its key has {len(names)} parts: {', '.join(names)}")
        return " AND ".join(f"{quoted(name)} = ?" for name in names), values

    def _one(self, sql: str, values: Sequence[Any]) -> dict[str, Any] | None:
        return next(iter(self._all(sql, values)), None)

    def _all(self, sql: str, values: Sequence[Any]) -> list[dict[str, Any]]:
        return [dict(zip(self._shape.columns, row, strict=False)) for row in self._db.execute(sql, values).fetchall()]


class Client:
    """The connection that clients of one database share."""

    def __init__(self, path: str) -> None:
        self._db = connect(path)

    def call(self, table: str, do: Callable[[Rows], Any]) -> Any:
        return do(Rows(self._db, table))

    def close(self) -> None:
        self._db.close()
