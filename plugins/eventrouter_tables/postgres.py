"""Follows a PostgreSQL database by logical replication: publication and slot, made if missing; then the stream of transactions."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg.pq import ExecStatus

from eventrouter import EventRouterError, Finding
from eventrouter_tables.databases import Database, shown
from eventrouter_tables.delivery import Delivery
from eventrouter_tables.pgoutput import Begin, Commit, Keepalive, Relation, RowMessage, Truncate, parse, status
from eventrouter_tables.pgrows import Rows
from eventrouter_tables.pgvalues import TYPES
from eventrouter_tables.records import Feed, Row, Stream

_AT_ONCE = 500  # changes
_STATUS_EVERY = 10.0  # seconds; the server ends a connection that is silent for wal_sender_timeout, 60 s
_LOOK = 5.0  # seconds between looks at the tables: one that is dropped and made again is another
_CONNECT = 10  # seconds
# How values are written must not depend on the role's settings. Several hosts, sslmode and the rest stand in the URL.
_OPTIONS = "-c datestyle=ISO -c intervalstyle=iso_8601 -c timezone=UTC -c bytea_output=hex -c extra_float_digits=3"
_WAL_LEVEL = (
    "wal_level is {!r}: set wal_level = logical in postgresql.conf, or ALTER SYSTEM SET wal_level = logical, and restart the server"
)


class PostgresFeed:
    """slot: the name of slot and publication; empty: one is made up once and kept."""

    def __init__(self, database: Database, delivery: Delivery, slot: str) -> None:
        self._database = database
        self._delivery = delivery
        self._router = delivery.router
        self._names = list(dict.fromkeys(feed.table for feed in delivery.feeds))
        self._slot = slot
        self._key = f"slot/{hashlib.sha256(database.name.encode()).hexdigest()[:16]}"
        self._wanted: dict[int, list[Feed]] = {}
        self._confirmed = 0

    def line(self) -> str:
        slot = f", slot {self._slot}" if self._slot else ""
        return f"tables {', '.join(self._names)} of {self._database.name}{slot}"

    def nudge(self) -> None:
        """The server tells by itself."""

    async def follow(self, tell: Callable[[str], None]) -> None:
        try:
            async with connected(self._database.url) as sql:
                created = await self._prepare(sql)
                # A dead network shows by what is sent and not confirmed: libpq's own time is hours.
                async with connected(self._database.url, replication="database", tcp_user_timeout=30_000) as connection:
                    await self._stream(sql, connection, created, tell)
        except (psycopg.Error, OSError) as error:
            raise EventRouterError(" ".join(str(error).split()) or type(error).__name__) from error

    async def _prepare(self, sql: AsyncConnection[Any]) -> float:
        """Have what is needed on the server: publication first, for a slot knows only publications that are older. Returns since when."""
        (level,) = await one(sql, "SHOW wal_level")
        if level != "logical":
            raise EventRouterError(_WAL_LEVEL.format(level))
        name = await self._slot_name()
        await self._publish(sql, name, await self._find_tables(sql))
        made, head = await self._make_slot(sql, name)
        await self._delivery.load()
        self._delivery.progress.position = 0  # the slot knows it
        await self._delivery.begin(0 if made else head)
        saved = await self._router.get(self._key)
        assert saved is not None
        return float(saved.decode().split()[1])

    async def _slot_name(self) -> str:
        if not self._slot:
            saved = await self._router.get(self._key)
            self._slot = saved.decode().split()[0] if saved else f"eventrouter_{os.urandom(4).hex()}"
        if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", self._slot):
            raise EventRouterError(f"[tables] slot = {self._slot!r}: write small letters, digits and _, up to 63, no digit first")
        return self._slot

    async def _find_tables(self, sql: AsyncConnection[Any]) -> dict[int, str]:
        """By oid, the tables as they are written in SQL. Raises EventRouterError with what to do about one that can't be followed."""
        self._wanted = {}
        found: dict[int, str] = {}
        for name in self._names:
            parts = name.split(".", 1)
            row = await one(
                sql,
                "SELECT c.oid, format('%%I.%%I', n.nspname, c.relname), c.relkind, c.relreplident,"
                " EXISTS (SELECT 1 FROM pg_index WHERE indrelid = c.oid AND indisprimary)"
                " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass(%s)",
                (".".join('"' + part.replace('"', '""') + '"' for part in parts),),
            )
            if row is None:
                raise EventRouterError(f"there is no table {name!r} that {sql.info.user} can see")
            oid, quoted, kind, identity, has_key = row
            feeds = [feed for feed in self._delivery.feeds if feed.table == name]
            if fault := _unfit(quoted, kind, identity, has_key, feeds):
                raise EventRouterError(fault)
            found[oid] = quoted
            self._wanted.setdefault(oid, []).extend(feeds)
        return found

    async def _publish(self, sql: AsyncConnection[Any], name: str, tables: dict[int, str]) -> None:
        rows = await (await sql.execute("SELECT puballtables FROM pg_publication WHERE pubname = %s", (name,))).fetchall()
        listed = ", ".join(tables.values())
        if not rows:
            statement = f"CREATE PUBLICATION {name} FOR TABLE {listed} WITH (publish_via_partition_root = true)"
        elif rows[0][0]:
            return
        else:
            there = await (await sql.execute(
                "SELECT prrelid FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid WHERE pubname = %s", (name,)
            )).fetchall()  # fmt: skip
            if {oid for (oid,) in there} >= set(tables):
                return
            statement = f"ALTER PUBLICATION {name} SET TABLE {listed}"
        try:
            await sql.execute(statement.encode())
        except psycopg.Error as error:
            raise EventRouterError(f"{sql.info.user} can't make the publication: {_text(error)}; have somebody run: {statement}") from error

    async def _make_slot(self, sql: AsyncConnection[Any], name: str) -> tuple[bool, int]:
        """Whether the slot is new, and where the log ends now."""
        row = await one(sql, "SELECT database, plugin, wal_status FROM pg_replication_slots WHERE slot_name = %s", (name,))
        (head,) = await one(sql, "SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint")
        create = f"SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')"
        saved = await self._router.get(self._key)
        was = saved is not None and saved.decode().split()[0] == name
        if row is None and was:
            raise EventRouterError(
                f"the replication slot {name} is gone, and the changes since then with it; to go on with what comes from now on: {create}"
            )
        if row is None:
            await sql.execute(create.encode())
            self._router.log.info("made the replication slot %s in %s", name, self._database.name,
                                  extra={"action": "tables.slot", "source": "tables"})  # fmt: skip
        else:
            database, plugin, kept = row
            if database != sql.info.dbname or plugin != "pgoutput":
                raise EventRouterError(
                    f"the replication slot {name} is of database {database} and plugin {plugin}; choose another name with [tables] slot"
                )
            if kept == "lost":
                raise EventRouterError(
                    f"the replication slot {name} fell too far behind (max_slot_wal_keep_size), and changes are lost; "
                    f"to go on with what comes from now on: SELECT pg_drop_replication_slot('{name}'); {create}"
                )
        if not was:
            await self._router.put(self._key, f"{name} {self._router.clock.time()}".encode())
        return row is None, int(head)

    async def _stream(
        self, sql: AsyncConnection[Any], connection: AsyncConnection[Any], created: float, tell: Callable[[str], None]
    ) -> None:
        pg = connection.pgconn
        system = await _run(pg, "IDENTIFY_SYSTEM", ExecStatus.TUPLES_OK)
        stream = Stream(_prefix(f"{system.get_value(0, 0)} {sql.info.dbname} {self._slot}"), created)
        start = f"START_REPLICATION SLOT {self._slot} LOGICAL 0/0 (proto_version '1', publication_names '{self._slot}')"
        await _run(pg, start, ExecStatus.COPY_BOTH)
        self._confirmed = 0
        tables = dict(self._wanted)
        loop, readable = asyncio.get_running_loop(), asyncio.Event()
        look = loop.time() + _LOOK
        loop.add_reader(pg.socket, readable.set)
        beat = asyncio.create_task(self._beat(pg))
        tell("")
        try:
            rows = Rows(self._wanted)
            reader = _Transactions(rows)
            while True:
                while (found := pg.get_copy_data(1))[0] > 0:
                    message = parse(bytes(found[1]))
                    if isinstance(message, Relation):
                        await self._learn(sql, rows, message)
                    reader.take(message)
                    if len(reader.rows) >= _AT_ONCE:
                        await self._hand_over(pg, reader, stream)
                if found[0] < 0:
                    raise EventRouterError("the server has ended the stream")
                await self._hand_over(pg, reader, stream)
                readable.clear()
                if loop.time() > look:
                    if (there := await self._find_tables(sql)).keys() != tables.keys():
                        raise EventRouterError(f"{', '.join(there.values())}: made anew; starting again with what it is now")
                    look = loop.time() + _LOOK
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK):
                        await readable.wait()
                pg.consume_input()
        finally:
            beat.cancel()
            loop.remove_reader(pg.socket)

    async def _hand_over(self, pg: Any, reader: _Transactions, stream: Stream) -> None:
        """Deliver what was read; tell the server once it is on disk."""
        rows, reader.rows = reader.rows, []
        if rows:
            await self._delivery.deliver(rows, {str(oid): feeds for oid, feeds in self._wanted.items()}, stream)
            self._router.crash_point("ack.before")
        if reader.ended > self._confirmed or reader.urgent:
            self._confirmed, reader.urgent = max(reader.ended, self._confirmed), False
            self._send_status(pg)
        if rows:
            self._router.crash_point("ack.after")

    async def _beat(self, pg: Any) -> None:
        """The server must hear something even while the journal takes nothing and nothing is read."""
        while True:
            await asyncio.sleep(_STATUS_EVERY)
            self._send_status(pg)

    def _send_status(self, pg: Any) -> None:
        pg.put_copy_data(status(self._confirmed, self._router.clock.time()))
        pg.flush()

    async def _learn(self, sql: AsyncConnection[Any], rows: Rows, relation: Relation) -> None:
        if relation.oid not in self._wanted:
            return
        unknown = rows.values.unknown(column.type for column in relation.columns)
        if unknown:
            rows.values.learn(await (await sql.execute(TYPES, (unknown,))).fetchall())
        key = await (await sql.execute(
            "SELECT attname FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = ANY(indkey)"
            " WHERE indrelid = %s AND indisprimary ORDER BY array_position(indkey::int2[], attnum)", (relation.oid,)
        )).fetchall()  # fmt: skip
        rows.learn(relation, [name for (name,) in key])
        if relation.identity != "f" and any(feed.view in _OLD for feed in self._wanted[relation.oid]):
            self._router.log.warning("%s has no REPLICA IDENTITY FULL any more: its changes come without old images", relation.name,
                                     extra={"action": "tables.identity", "source": "tables"})  # fmt: skip


class _Transactions:
    """Messages of the stream as rows. ended: what comes before it, the server may forget once the rows are on disk."""

    def __init__(self, reading: Rows) -> None:
        self.rows: list[Row] = []
        self.ended = 0
        self.urgent = False
        self._reading = reading
        self._begin: Begin | None = None
        self._index = 0

    def take(self, message: Any) -> None:
        if isinstance(message, RowMessage):
            assert self._begin is not None
            row = self._reading.read(message, self._begin.commit, self._index, self._begin.at)
            self._index += 1
            if row is not None:
                self.rows.append(row)
        elif isinstance(message, Begin):
            self._begin, self._index = message, 0
        elif isinstance(message, Commit):
            self._begin, self.ended = None, message.end
        elif isinstance(message, Keepalive):
            self.urgent |= message.urgent
            if self._begin is None:
                self.ended = max(self.ended, message.end)
        elif isinstance(message, Truncate):
            self._reading.truncated(message)


_OLD = ("NEW_AND_OLD_IMAGES", "OLD_IMAGE")


def _unfit(table: str, kind: str, identity: str, has_key: bool, feeds: Sequence[Feed]) -> str:
    """Why a table can't be followed, and what to do about it."""
    if kind not in ("r", "p"):
        return f"{table} is no table; only tables have changes"
    if not has_key and identity != "i":
        return f"{table} has no primary key, so nothing tells which row has changed: ALTER TABLE {table} ADD PRIMARY KEY (...)"
    if identity == "n":
        return f"{table} has REPLICA IDENTITY NOTHING: ALTER TABLE {table} REPLICA IDENTITY DEFAULT, or FULL for old images"
    view = next((feed.view for feed in feeds if feed.view in _OLD), None)
    if view is not None and identity != "f":
        return (
            f"view {view} of {table} needs old images, which PostgreSQL sends only after: ALTER TABLE {table} REPLICA IDENTITY FULL; "
            'or choose view="NEW_IMAGE" or "KEYS_ONLY"'
        )
    return ""


@asynccontextmanager
async def connected(url: str, **more: Any) -> AsyncIterator[AsyncConnection[Any]]:
    """Raises EventRouterError, never with the URL's password."""
    try:
        options = psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.Error:  # its text may hold the password
        raise EventRouterError("the URL is not one that PostgreSQL reads: check its options, and write special characters as %XX") from None
    options = {"connect_timeout": _CONNECT, "application_name": "eventrouter", **more, **options}
    options["options"] = f"{options.get('options') or ''} {_OPTIONS}".strip()
    connection = await AsyncConnection.connect(psycopg.conninfo.make_conninfo("", **options), autocommit=True)
    try:
        yield connection
    finally:
        await connection.close()


async def _run(pg: Any, command: str, wanted: ExecStatus) -> Any:
    """A command of the replication protocol. Raises EventRouterError with what the server says."""
    result = await asyncio.to_thread(pg.exec_, command.encode())
    if result.status != wanted:
        raise EventRouterError(" ".join(result.error_message.decode(errors="replace").split()))
    return result


def _prefix(identity: str) -> int:
    """For sequence numbers: another server, database or slot counts by itself."""
    return 10_000_000 + int(hashlib.sha256(identity.encode()).hexdigest(), 16) % 90_000_000


async def one(sql: AsyncConnection[Any], query: str, values: Sequence[Any] = ()) -> Any:
    return await (await sql.execute(query.encode(), values)).fetchone()


def _text(error: psycopg.Error) -> str:
    return " ".join(str(error).split())


def diagnose(url: str) -> Finding:
    """What `eventrouter doctor` says of the database."""

    async def level() -> str:
        async with connected(url, connect_timeout=3) as sql:
            (found,) = await one(sql, "SHOW wal_level")
            return str(found)

    try:
        found = asyncio.run(level())
    except (psycopg.Error, OSError, EventRouterError) as error:
        return Finding("problem", f"tables: {shown(url)}: {' '.join(str(error).split())}")
    if found != "logical":
        return Finding("problem", f"tables: {shown(url)}: {_WAL_LEVEL.format(found)}")
    return Finding("ok", f"tables: {shown(url)} answers, and its wal_level is logical")
