"""Tables whose changes start functions: SQLite and PostgreSQL, in the shape of DynamoDB Streams."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import msgspec

from eventrouter import Event, Finding, Plugin, Trigger, Wild, call_from_thread, hookimpl, permissions
from eventrouter.errors import ConfigError, suggest
from eventrouter_tables.databases import check as check_url
from eventrouter_tables.databases import shown
from eventrouter_tables.records import Feed, Kind, Row, Stream, events, record

if TYPE_CHECKING:
    from eventrouter_tables.rows import Rows

__all__ = ["Change", "Table", "TableTrigger", "table"]

T = TypeVar("T")
R = TypeVar("R")
View = Literal["NEW_AND_OLD_IMAGES", "KEYS_ONLY", "NEW_IMAGE", "OLD_IMAGE"]
Starting = Literal["LATEST", "TRIM_HORIZON"]
_VIEWS = ("NEW_AND_OLD_IMAGES", "KEYS_ONLY", "NEW_IMAGE", "OLD_IMAGE")
_STARTING = ("LATEST", "TRIM_HORIZON")


class TablesConfig(msgspec.Struct, kw_only=True):
    """`[tables]`. database: the URL of the one that is meant where none is given.

    slot: the name of the replication slot and the publication in PostgreSQL; empty: one is made up once and kept.
    """

    database: str = ""
    slot: str = ""


class Change(msgspec.Struct, Generic[T], frozen=True):
    """The payload for a typed handler: `Change[Order]`, with what a row of the table is, or just `Change` for dicts.

    key: the values of the primary key's columns. old, new: the row before and after; None where there is none, or where the trigger's
    `view` leaves it out. unchanged: columns that `new` lacks because PostgreSQL does not send what is large and has not changed.
    """

    kind: Kind
    table: str
    key: dict[str, Any]
    old: T | None = None
    new: T | None = None
    unchanged: list[str] = []


class TableTrigger(Trigger):
    """`table(...)` makes it. database: as it was written; None: the one of `[tables]`. feed: what is wanted of it, without secrets."""

    source = "tables"
    service = "dynamodb.amazonaws.com"

    def __init__(self, name: str, database: str | None, view: View, starting: Starting) -> None:
        what = f"table({name!r})"
        if not name or "\0" in name:
            raise ConfigError(f"{what}: a table has a name")
        if view not in _VIEWS:
            raise ConfigError(f"{what}: view={view!r}{suggest(view, _VIEWS)}")
        if starting not in _STARTING:
            raise ConfigError(f"{what}: starting={starting!r}{suggest(starting, _STARTING)}")
        self.table = name
        self.database = None if database is None else check_url(database)
        self.starting = starting
        self.feed = ["" if database is None else shown(database), name, view]
        self.path = (*name.split("/"), Wild.REST)

    def captures(self, subject: str) -> Mapping[str, str] | None:
        return {}

    def accepts(self, event: Event) -> bool:
        return event.attributes.get("feed") == self.feed

    def order_key(self, event: Event) -> str | None:
        """Changes of one row come one after another."""
        return f"{self.feed[0]} {event.subject}"

    def aws_event(self, events: Sequence[Event]) -> dict[str, Any]:
        return {"Records": [record(event) for event in events]}

    def arn(self, function: str, subject: str | None = None) -> str:
        return f"arn:aws:dynamodb:local:000000000000:table/{self.table}/stream/*"

    def __str__(self) -> str:
        database, name, view = self.feed
        return " ".join(("table", name, *([database] if database else []), *([view] if view != _VIEWS[0] else [])))


def table(name: str, *, database: str | None = None, view: View = "NEW_AND_OLD_IMAGES", starting: Starting = "LATEST") -> TableTrigger:
    """Start the function with each change of a table's rows, in order for each row.

    name: the table; in PostgreSQL `"schema.table"`, too. database: `"sqlite:///shop.db"` (relative to the config's folder),
    `"postgresql://user@host/shop"`; None: the one of `[tables]`.
    view: which images of the row it gets. starting: what a function gets that has never run before: `"LATEST"` what happens from then on,
    `"TRIM_HORIZON"` all that the log has.

    The payload is a `Change`; a Lambda function gets DynamoDB Streams' event with one record.
    """
    return TableTrigger(name, database, view, starting)


def database_of(written: str | None, config: TablesConfig) -> str:
    """The URL of a database. Raises ConfigError when none is known."""
    if written is None and not config.database:
        raise ConfigError('which database? Give database="sqlite:///shop.db", or set [tables] database')
    return config.database if written is None else written


class Table:
    """A table of a SQLite database to read and write in handlers; making one does nothing yet.

    A key is the primary key's value, or a tuple or a dict of its values where it has several columns; without a primary key, the
    `rowid`. Rows are dicts of None, int, float, str and bytes.
    name: as the database has it, in the same letters.
    Every method raises AccessDenied for what the function's role does not allow, NotRunning outside a handler, EventRouterError for what
    the database refuses, ValueError for an unknown column.
    """

    def __init__(self, name: str, *, database: str | None = None) -> None:
        self.name = name
        self.database = None if database is None else check_url(database)
        self.sync = SyncTable(self)

    async def get(self, key: Any) -> dict[str, Any] | None:
        """The row, or None."""
        return await self._do("GetItem", lambda rows: rows.get(key))

    async def put(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """Make a row, or replace the one of its key as a whole; returns it as it is then. Columns that are left out get their defaults."""
        return await self._do("PutItem", lambda rows: rows.put(item))

    async def update(self, key: Any, **changes: Any) -> dict[str, Any] | None:
        """Change columns of a row; returns the row as it is then, None when there is none."""
        return await self._do("UpdateItem", lambda rows: rows.update(key, changes))

    async def delete(self, key: Any) -> bool:
        """Whether there was such a row."""
        return await self._do("DeleteItem", lambda rows: rows.delete(key))

    async def query(self, where: Mapping[str, Any] | None = None, *, order_by: str = "", limit: int = 100) -> list[dict[str, Any]]:
        """Rows that are so: `{"status": "open", "total": (">", 100)}`; comparisons are = != < <= > >= LIKE.

        order_by: a column, `"-total"` for the largest first; empty: the key.
        """
        return await self._do("Query", lambda rows: rows.query(where or {}, order_by, limit))

    async def _do(self, action: str, do: Callable[[Rows], R]) -> R:
        from eventrouter_tables.source import TablesSource  # noqa: PLC0415 - sources load when they are needed

        source = TablesSource.current()
        permissions.require(f"dynamodb:{action}", source.arn(self.database, self.name))
        return await source.rows(self.database, self.name, do)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return f"Table({self.name!r})"


class SyncTable:
    """`Table.sync`: the same for `def` handlers."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._what = f"{table!r}.sync"

    def get(self, key: Any) -> dict[str, Any] | None:
        """As `Table.get`."""
        return call_from_thread(self._what, lambda: self._table.get(key))

    def put(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """As `Table.put`."""
        return call_from_thread(self._what, lambda: self._table.put(item))

    def update(self, key: Any, **changes: Any) -> dict[str, Any] | None:
        """As `Table.update`."""
        return call_from_thread(self._what, lambda: self._table.update(key, **changes))

    def delete(self, key: Any) -> bool:
        """As `Table.delete`."""
        return call_from_thread(self._what, lambda: self._table.delete(key))

    def query(self, where: Mapping[str, Any] | None = None, *, order_by: str = "", limit: int = 100) -> list[dict[str, Any]]:
        """As `Table.query`."""
        return call_from_thread(self._what, partial(self._table.query, where, order_by=order_by, limit=limit))


def check(config: TablesConfig, pairs: Sequence[tuple[str, Trigger]]) -> None:
    try:
        check_url(config.database or "sqlite:///none")
    except ConfigError as error:
        raise ConfigError(f"[tables] {error}") from None
    for name, trigger in pairs:
        assert isinstance(trigger, TableTrigger)
        try:
            database_of(trigger.database, config)
        except ConfigError as error:
            raise ConfigError(f"function {name!r}: {trigger}: {error}") from None


def doctor(config: TablesConfig) -> list[Finding]:
    from eventrouter_tables.sqlite import too_old  # noqa: PLC0415 - sources load when they are needed

    if fault := too_old():
        return [Finding("problem", f"tables: {fault}")]
    if importlib.util.find_spec("psycopg") is None:
        missing = 'tables: psycopg is not installed; pip install "eventrouter[postgres]" has functions follow tables in PostgreSQL'
        return [Finding("problem" if config.database.startswith("postgres") else "note", missing)]
    if not config.database.startswith("postgres"):
        return []
    from eventrouter_tables.postgres import diagnose  # noqa: PLC0415 - psycopg is heavy

    return [diagnose(config.database)]


def sample(
    name: str = "orders",
    new: str = '{"id": 101, "status": "paid"}',
    old: str = '{"id": 101, "status": "new"}',
    *,
    key: str = "id",
    view: View = "NEW_AND_OLD_IMAGES",
) -> dict[str, Any]:
    """What a Lambda function gets when a row of table NAME was OLD and is NEW: JSON objects, or null for none."""
    trigger = table(name, view=view)
    try:
        before, after = (msgspec.json.decode(image, type=dict[str, Any] | None) for image in (old, new))
    except msgspec.DecodeError as error:
        raise ConfigError(f"sample tables: write a row as a JSON object, or null: {error}") from None
    kind: Kind = "INSERT" if before is None else "REMOVE" if after is None else "MODIFY"
    row = Row(name, kind, 1, 0, 1_767_225_600.0, [key], before, after)
    return trigger.aws_event(events(row, Feed(*trigger.feed), Stream(10_000_000, 1_767_225_600.0)))


@hookimpl
def eventrouter_plugin() -> Plugin:
    # Always there: handlers started by any source read and write tables.
    return Plugin(
        name="tables",
        source="eventrouter_tables.source:TablesSource",
        always=True,
        config=TablesConfig,
        clients=[Table],
        triggers={"table": table},
        check=check,
        sample=sample,
        doctor=doctor,
    )
