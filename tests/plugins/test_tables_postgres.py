"""A real PostgreSQL with logical replication."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from eventrouter import App, Event, Trigger, on
from eventrouter.plugins import Plugins
from eventrouter_tables import Change, TablesConfig, doctor, eventrouter_plugin, postgres, table
from served import Place, wait_for
from servers import Postgres
from source_contract import Item, Outside, SourceContract
from support import LOCAL, make_app, until


@pytest.fixture(scope="session")
def server() -> Iterator[Postgres]:
    made = Postgres()
    made.start()
    yield made
    made.close()


class Shop:
    """A database of its own. Each call is a transaction."""

    made = 0

    def __init__(self, server: Postgres) -> None:
        Shop.made += 1
        self.server = server
        self.name = f"shop{Shop.made}"
        with psycopg.connect(server.url, autocommit=True) as db:
            db.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(self.name)))
        self.url = server.url.rpartition("/")[0] + f"/{self.name}"
        self.toml = f'[tables]\ndatabase = "{self.url}"\n'
        self("CREATE TABLE orders (id int PRIMARY KEY, status text, total numeric)", "ALTER TABLE orders REPLICA IDENTITY FULL")

    def __call__(self, *statements: str) -> list[Any]:
        with psycopg.connect(self.url) as db:
            rows: list[Any] = []
            for statement in statements:
                cursor = db.execute(statement.encode())
                rows = cursor.fetchall() if cursor.description else []
        return rows

    def close(self) -> None:
        with psycopg.connect(self.server.url, autocommit=True) as db:
            db.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active AND database = %s", (self.name,))
            wait_for(lambda: not db.execute(
                "SELECT 1 FROM pg_replication_slots WHERE active AND database = %s", (self.name,)).fetchall())  # fmt: skip
            db.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = %s", (self.name,))


@pytest.fixture
def shop(server: Postgres) -> Iterator[Shop]:
    made = Shop(server)
    yield made
    made.close()


class Seen:
    def __init__(self, *triggers: Trigger, name: str = "seen") -> None:
        self._got: list[tuple[str, Change[dict[str, Any]]]] = []

        async def seen(change: Change[dict[str, Any]], event: Event) -> None:
            self._got.append((event.id, change))

        seen.__name__ = name
        self.handler = on(*(triggers or (table("orders"),)))(seen)

    @property
    def changes(self) -> list[Change[dict[str, Any]]]:
        return [change for _, change in sorted(self._got, key=lambda got: got[0])]

    @property
    def short(self) -> list[tuple[str, Any]]:
        return [(change.kind, *change.key.values()) for change in self.changes]


def app_of(folder: Path, shop: Shop, *handlers: Callable[..., Any]) -> App:
    return make_app(folder, *handlers, toml=shop.toml, plugins=Plugins([LOCAL, eventrouter_plugin()]))


@asynccontextmanager
async def following(folder: Path, shop: Shop, *handlers: Callable[..., Any]) -> AsyncIterator[App]:
    async with app_of(folder, shop, *handlers) as app:
        await until(lambda: app.sources["tables"].router.state == "live")
        yield app


class PostgresOutside(Outside):
    source = "tables"
    keeps = True
    rejects = False  # as with SQLite

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        shop("CREATE TABLE items (n int PRIMARY KEY)")

    def plugins(self) -> Plugins:
        return Plugins([LOCAL, eventrouter_plugin()])

    def trigger(self) -> Trigger:
        return table("items", database=self.shop.url, view="NEW_IMAGE")

    @property
    def payload(self) -> Any:
        return Change[Item]

    def number(self, payload: Any) -> int:
        return int(payload.new.n)

    async def put(self, app: App, n: int, body: bytes | None = None) -> bool:
        await asyncio.to_thread(self.shop, f"INSERT INTO items VALUES ({n})")
        return True


class TestPostgresTablesAreASource(SourceContract):
    @pytest.fixture
    def outside(self, shop: Shop) -> Outside:
        return PostgresOutside(shop)


async def test_insert_modify_and_remove_with_both_images(tmp_path: Path, shop: Shop) -> None:
    seen = Seen()
    async with following(tmp_path, shop, seen.handler):
        shop("INSERT INTO orders VALUES (1, 'new', 2)")
        shop("UPDATE orders SET status = 'paid'")
        shop("UPDATE orders SET status = 'paid'")
        shop("UPDATE orders SET id = 2")
        shop("DELETE FROM orders")
        await until(lambda: len(seen.changes) == 5)
    new, paid, moved = (
        {"id": 1, "status": "new", "total": 2},
        {"id": 1, "status": "paid", "total": 2},
        {"id": 2, "status": "paid", "total": 2},
    )
    assert seen.changes == [
        Change("INSERT", "orders", {"id": 1}, None, new),
        Change("MODIFY", "orders", {"id": 1}, new, paid),
        Change("REMOVE", "orders", {"id": 1}, paid, None),
        Change("INSERT", "orders", {"id": 2}, None, moved),
        Change("REMOVE", "orders", {"id": 2}, moved, None),
    ]


async def test_values_of_every_type(tmp_path: Path, shop: Shop) -> None:
    shop(
        "CREATE TYPE mood AS ENUM ('good', 'bad')",
        "CREATE DOMAIN positive AS numeric CHECK (VALUE > 0)",
        "CREATE TABLE things (id bigint PRIMARY KEY, n numeric, f float8, nan float4, t text, b bool, raw bytea, j jsonb, none int,"
        " u uuid, at timestamptz, local timestamp, day date, ints int[], texts text[], raws bytea[], m mood, ms mood[], p positive)",
    )
    raw: list[bytes] = []
    records: list[Any] = []

    @on(table("public.things", view="NEW_IMAGE"))
    async def typed(change: bytes) -> None:
        raw.append(change)

    @on(table("things", view="NEW_IMAGE"))
    def aws(event, context):  # type: ignore[no-untyped-def]
        records.append(event["Records"][0]["dynamodb"]["NewImage"])

    async with following(tmp_path, shop, typed, aws):
        shop(
            r"""INSERT INTO things VALUES (9223372036854775807, 1.10, 0.1::float8 + 0.2, 'NaN', 'ü', true, '\x00ff',
            '{"a": [1.50, null]}', NULL,
            '00000000-0000-0000-0000-000000000001', '2026-01-01 10:00:00.5+02', '2026-01-01 10:00', '2026-01-01',
            '{{1},{2}}', '{a,NULL,"b,c"}',
            ARRAY['\x01'::bytea], 'good', '{good,bad}', 12345678901234567890.12345)"""
        )
        await until(lambda: raw and records)
    assert '"n":1.10' in raw[0].decode()
    assert '"p":12345678901234567890.12345' in raw[0].decode()
    new = json.loads(raw[0])["new"]
    assert (new["at"], new["local"], new["f"]) == ("2026-01-01T08:00:00.5+00:00", "2026-01-01T10:00:00", 0.1 + 0.2)
    assert records[0] == {
        "id": {"N": "9223372036854775807"}, "n": {"N": "1.10"}, "f": {"N": "0.30000000000000004"}, "nan": {"S": "NaN"}, "t": {"S": "ü"},
        "b": {"BOOL": True}, "raw": {"B": "AP8="}, "j": {"M": {"a": {"L": [{"N": "1.50"}, {"NULL": True}]}}}, "none": {"NULL": True},
        "u": {"S": "00000000-0000-0000-0000-000000000001"}, "at": {"S": "2026-01-01T08:00:00.5+00:00"},
        "local": {"S": "2026-01-01T10:00:00"}, "day": {"S": "2026-01-01"}, "ints": {"L": [{"L": [{"N": "1"}]}, {"L": [{"N": "2"}]}]},
        "texts": {"L": [{"S": "a"}, {"NULL": True}, {"S": "b,c"}]}, "raws": {"L": [{"B": "AQ=="}]},
        "m": {"S": "good"}, "ms": {"L": [{"S": "good"}, {"S": "bad"}]}, "p": {"N": "12345678901234567890.12345"},
    }  # fmt: skip


async def test_large_values_that_did_not_change(tmp_path: Path, shop: Shop) -> None:
    """Of TOASTed values the server sends only those that changed."""
    shop("CREATE TABLE bare (id int PRIMARY KEY, big text, n int)", "ALTER TABLE orders ADD big text")
    for name in ("bare", "orders"):
        shop(f"ALTER TABLE {name} ALTER big SET STORAGE EXTERNAL")
    full, bare = Seen(), Seen(table("bare", view="NEW_IMAGE"), name="bare")
    async with following(tmp_path, shop, full.handler, bare.handler):
        shop("INSERT INTO orders VALUES (1, 'new', 1, repeat('x', 10000))", "INSERT INTO bare VALUES (1, repeat('x', 10000), 1)")
        shop("UPDATE orders SET status = 'paid'", "UPDATE bare SET n = 2")
        await until(lambda: len(full.changes) == len(bare.changes) == 2)
    assert (full.changes[1].new or {})["big"] == "x" * 10_000
    assert (bare.changes[1].new, bare.changes[1].unchanged) == ({"id": 1, "n": 2}, ["big"])


async def test_a_large_transaction_and_one_over_two_tables(tmp_path: Path, shop: Shop) -> None:
    shop("CREATE TABLE lines (id int PRIMARY KEY, of int)")
    seen = Seen(table("orders"), table("lines", view="KEYS_ONLY"))
    async with following(tmp_path, shop, seen.handler):
        shop("INSERT INTO orders SELECT n, 'new', n FROM generate_series(1, 10000) n")
        await until(lambda: len(seen.changes) == 10_000, 60)
        shop("INSERT INTO orders VALUES (0, 'a', 0)", "INSERT INTO lines VALUES (1, 0)", "UPDATE orders SET status = 'b' WHERE id = 0",
             "DELETE FROM lines")  # fmt: skip
        await until(lambda: len(seen.changes) == 10_004)
    assert seen.short[:10_000] == [("INSERT", n) for n in range(1, 10_001)]
    assert [(change.table, change.kind) for change in seen.changes[10_000:]] == [
        ("orders", "INSERT"), ("lines", "INSERT"), ("orders", "MODIFY"), ("lines", "REMOVE"),
    ]  # fmt: skip


async def test_the_schema_changes_midstream(
    tmp_path: Path, shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(postgres, "_LOOK", 0.1)
    seen = Seen()
    async with following(tmp_path, shop, seen.handler) as app:
        source = app.sources["tables"].router
        shop("INSERT INTO orders VALUES (1, 'new', 1)", "ALTER TABLE orders ADD note text", "INSERT INTO orders VALUES (2, 'new', 1, 'hi')")
        shop("ALTER TABLE orders RENAME total TO sum", "UPDATE orders SET sum = 5 WHERE id = 2")
        await until(lambda: len(seen.changes) == 3)
        assert [list(change.new or {}) for change in seen.changes] == [
            ["id", "status", "total"], ["id", "status", "total", "note"], ["id", "status", "sum", "note"],
        ]  # fmt: skip
        shop("TRUNCATE orders")
        await until(lambda: "emptied by TRUNCATE" in caplog.text)
        shop("DROP TABLE orders")
        await until(lambda: "there is no table 'orders'" in source.state)
        shop("CREATE TABLE orders (code text PRIMARY KEY)")
        await until(lambda: "ALTER TABLE public.orders REPLICA IDENTITY FULL" in source.state)
        shop("ALTER TABLE orders REPLICA IDENTITY FULL")
        await until(lambda: source.state == "live")
        shop("INSERT INTO orders VALUES ('x')")
        await until(lambda: len(seen.changes) == 4)


async def test_the_server_restarts(tmp_path: Path, server: Postgres, shop: Shop) -> None:
    seen = Seen()
    async with following(tmp_path, shop, seen.handler) as app:
        router = app.sources["tables"].router
        for number, end in enumerate((signal.SIGINT, signal.SIGQUIT)):
            shop(f"INSERT INTO orders VALUES ({number * 2}, 'new', 1)")
            await until(lambda n=number: len(seen.changes) == n * 2 + 1)
            await asyncio.to_thread(server.stop, end)
            await until(lambda: router.state != "live")
            await asyncio.to_thread(server.start)
            shop(f"INSERT INTO orders VALUES ({number * 2 + 1}, 'new', 1)")
            await until(lambda n=number: len(seen.changes) == n * 2 + 2)
    assert seen.short == [("INSERT", n) for n in range(4)]


async def test_where_a_function_starts(tmp_path: Path, shop: Shop) -> None:
    shop("INSERT INTO orders VALUES (0, 'before', 1)")
    first = Seen(name="first")
    async with following(tmp_path, shop, first.handler):
        shop("INSERT INTO orders VALUES (1, 'new', 1)")
        await until(lambda: first.changes)
    shop("INSERT INTO orders VALUES (2, 'down', 1)")
    latest, oldest = Seen(name="latest"), Seen(table("orders", starting="TRIM_HORIZON"), name="oldest")
    async with following(tmp_path, shop, first.handler, latest.handler, oldest.handler):
        shop("INSERT INTO orders VALUES (3, 'all', 1)")
        await until(lambda: latest.changes and len(first.changes) == 3 and len(oldest.changes) == 2)
    assert [seen.short for seen in (latest, oldest)] == [[("INSERT", 3)], [("INSERT", 2), ("INSERT", 3)]]


def test_killed_between_the_journal_and_the_confirmation(tmp_path: Path, shop: Shop) -> None:
    """The server sends the transaction again; it runs once."""
    (tmp_path / "app.py").write_text(
        "from eventrouter import on\nfrom eventrouter_tables import Change, table\n\n"
        '@on(table("orders"))\nasync def note(change: Change) -> None:\n    print("got", change.key["id"], flush=True)\n'
    )
    (tmp_path / "eventrouter.toml").write_text(shop.toml + "[http]\nport = 0\n")
    with Place(tmp_path) as place:
        place.serve()
        place.stop()
        with (tmp_path / "out.txt").open("w") as out:
            place.router = subprocess.Popen(
                [sys.executable, "-m", "eventrouter", "serve"], cwd=tmp_path, stdout=out, stderr=subprocess.STDOUT, text=True,
                env={**os.environ, "EVENTROUTER_CRASH_AT": "ack.before"},
            )  # fmt: skip
        shop("INSERT INTO orders VALUES (1, 'new', 1), (2, 'new', 1)")
        assert place.router.wait(30) == 86
        before = place.output
        place.serve()
        shop("INSERT INTO orders VALUES (3, 'new', 1)")
        place.says("got 3")
        place.stop()
        got = [line for line in place.output.splitlines() if line.startswith("got")]
        assert len(set(got)) == len(got)  # what ran when it died may run again, but once
        assert {"got 1", "got 2", "got 3"} <= {*got, *before.splitlines()}


@pytest.mark.parametrize(
    ("statements", "view", "fault"),
    [
        (["CREATE TABLE bad (id int)"], "NEW_IMAGE", r"public.bad has no primary key.*ALTER TABLE public.bad ADD PRIMARY KEY"),
        (["CREATE TABLE bad (id int PRIMARY KEY)"], "NEW_AND_OLD_IMAGES", r"ALTER TABLE public.bad REPLICA IDENTITY FULL; or choose view="),
        (["CREATE TABLE bad (id int PRIMARY KEY)", "ALTER TABLE bad REPLICA IDENTITY NOTHING"], "KEYS_ONLY", "REPLICA IDENTITY NOTHING"),
        (["CREATE VIEW bad AS SELECT 1"], "KEYS_ONLY", "public.bad is no table"),
        ([], "KEYS_ONLY", "there is no table 'bad'"),
    ],
)
async def test_tables_that_can_not_be_followed(tmp_path: Path, shop: Shop, statements: list[str], view: Any, fault: str) -> None:
    if statements:
        shop(*statements)
    async with app_of(tmp_path, shop, Seen(table("bad", view=view)).handler) as app:
        await until(lambda: re.search(fault, app.sources["tables"].router.state))


async def test_a_slot_that_is_gone(tmp_path: Path, shop: Shop) -> None:
    seen = Seen()
    async with following(tmp_path, shop, seen.handler):
        shop("INSERT INTO orders VALUES (1, 'new', 1)")
        await until(lambda: seen.changes)
    await asyncio.to_thread(shop.close)
    async with app_of(tmp_path, shop, seen.handler) as app:
        router = app.sources["tables"].router
        await until(lambda: "is gone, and the changes since then with it" in router.state)
        shop(router.state.rpartition(": ")[2])  # it says what to do
        await until(lambda: router.state == "live")
        shop("INSERT INTO orders VALUES (2, 'new', 1)")
        await until(lambda: len(seen.changes) == 2)


async def test_other_tables_do_not_keep_the_log(tmp_path: Path, shop: Shop) -> None:
    """What others write is confirmed, too, else the server would keep its log for us for ever."""
    shop("CREATE TABLE other (n int)")
    lag = "SELECT confirmed_flush_lsn >= %s::pg_lsn FROM pg_replication_slots WHERE database = current_database()"
    async with following(tmp_path, shop, Seen().handler):
        shop("INSERT INTO other SELECT generate_series(1, 1000)")
        ((position,),) = shop("SELECT pg_current_wal_lsn()::text")
        await until(lambda: shop(lag.replace("%s", f"'{position}'")) == [(True,)], 60)


def test_what_the_server_must_be_told() -> None:
    server = Postgres()
    server.start("wal_level=replica")
    try:
        (finding,) = doctor(TablesConfig(database=server.url))
        assert (finding.level, "restart the server" in finding.text) == ("problem", True)
    finally:
        server.close()
    (finding,) = doctor(TablesConfig(database=server.url.replace("@", ":geheim@")))
    assert finding.level == "problem"
    assert "Connection refused" in finding.text
    assert "geheim" not in finding.text
    (finding,) = doctor(TablesConfig(database="postgresql://u:ge%heim@h/d"))
    assert "geheim" not in finding.text.replace("%", "")


def test_doctor_of_a_good_one(server: Postgres) -> None:
    (finding,) = doctor(TablesConfig(database=server.url))
    assert finding.level == "ok"
