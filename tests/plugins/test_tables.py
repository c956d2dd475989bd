"""SQLite databases are real files, written by Python's own sqlite3: another library, in other connections, as a user's programs are."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from eventrouter import App, Batch, Event, Trigger, fixed, on
from eventrouter.errors import ConfigError, EventRouterError
from eventrouter.journal.protocol import LetterQuery
from eventrouter.operations import Operations
from eventrouter.plugins import Plugins
from eventrouter_tables import Change, Table, changelog, eventrouter_plugin, sample, table
from eventrouter_tables.changelog import read
from eventrouter_tables.databases import check, resolve, shown
from eventrouter_tables.records import Feed, Row, Stream, events
from served import Place
from source_contract import Item, Outside, SourceContract
from support import LOCAL, local, make_app, put, until

TOML = '[tables]\ndatabase = "sqlite:///shop.db"\n'


class Shop:
    """`shop.db`. Each statement is a connection of its own."""

    def __init__(self, folder: Path, schema: str = "CREATE TABLE orders (id INTEGER PRIMARY KEY, status, total)") -> None:
        self.path = folder / "shop.db"
        self(schema)

    def __call__(self, *statements: str, pragmas: tuple[str, ...] = ()) -> list[Any]:
        with closing(sqlite3.connect(self.path)) as db:
            for pragma in pragmas:
                db.execute(f"PRAGMA {pragma}")
            for statement in statements:
                rows = db.execute(statement).fetchall()
            db.commit()
            return rows


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


class Seen:
    """A handler that notes down what it gets."""

    def __init__(self, *triggers: Trigger, name: str = "seen", **policy: Any) -> None:
        self._got: list[tuple[str, Change[dict[str, Any]]]] = []

        async def seen(change: Change[dict[str, Any]], event: Event) -> None:
            self._got.append((event.id, change))

        seen.__name__ = name
        self.handler = on(*(triggers or (table("orders"),)), **policy)(seen)

    @property
    def changes(self) -> list[Change[dict[str, Any]]]:
        """By sequence number: only what is of one row comes one after another."""
        return [change for _, change in sorted(self._got, key=lambda got: got[0])]

    @property
    def short(self) -> list[tuple[str, Any]]:
        """Kind, and the key if it is one value."""
        return [(change.kind, *change.key.values()) for change in self.changes]


def app_of(folder: Path, *handlers: Callable[..., Any], toml: str = TOML, **more: Any) -> App:
    return make_app(folder, *handlers, toml=toml, plugins=Plugins([LOCAL, eventrouter_plugin()]), **more)


@asynccontextmanager
async def following(folder: Path, *handlers: Callable[..., Any], toml: str = TOML) -> AsyncIterator[App]:
    async with app_of(folder, *handlers, toml=toml) as app:
        await until(lambda: app.sources["tables"].router.state == "live")
        yield app


class SqliteOutside(Outside):
    source = "tables"
    keeps = True
    rejects = False  # the path of the fault is longer: see test_a_row_that_does_not_fit

    def __init__(self, folder: Path) -> None:
        self.path = folder / "items.db"
        with closing(sqlite3.connect(self.path)) as db:
            db.execute("CREATE TABLE items (n INTEGER PRIMARY KEY)")

    def plugins(self) -> Plugins:
        return Plugins([LOCAL, eventrouter_plugin()])

    def trigger(self) -> Trigger:
        return table("items", database=f"sqlite:///{self.path}")

    @property
    def payload(self) -> Any:
        return Change[Item]

    def number(self, payload: Any) -> int:
        return int(payload.new.n)

    async def put(self, app: App, n: int, body: bytes | None = None) -> bool:
        with closing(sqlite3.connect(self.path)) as db:
            db.execute("INSERT INTO items VALUES (?)", (n,))
            db.commit()
        return True


class TestSqliteTablesAreASource(SourceContract):
    @pytest.fixture
    def outside(self, tmp_path: Path) -> Outside:
        return SqliteOutside(tmp_path)


async def test_insert_modify_and_remove_with_both_images(tmp_path: Path, shop: Shop) -> None:
    seen = Seen()
    async with following(tmp_path, seen.handler):
        shop("INSERT INTO orders VALUES (1, 'new', 2)")
        shop("UPDATE orders SET status = 'paid'")
        shop("UPDATE orders SET status = 'paid'")
        shop("DELETE FROM orders")
        await until(lambda: len(seen.changes) == 3)
    new, paid = {"id": 1, "status": "new", "total": 2}, {"id": 1, "status": "paid", "total": 2}
    assert seen.changes == [
        Change("INSERT", "orders", {"id": 1}, None, new),
        Change("MODIFY", "orders", {"id": 1}, new, paid),
        Change("REMOVE", "orders", {"id": 1}, paid, None),
    ]


async def test_values_keep_their_types_and_lose_nothing(tmp_path: Path) -> None:
    shop = Shop(tmp_path, "CREATE TABLE orders (id INTEGER PRIMARY KEY, a, b, c, d, e, f, g, h, i)")
    raw: list[bytes] = []
    records: list[Any] = []

    @on(table("orders"))
    async def typed(change: bytes) -> None:
        raw.append(change)

    @on(table("orders"))
    def aws(event, context):  # type: ignore[no-untyped-def]
        records.append(event["Records"][0]["dynamodb"]["NewImage"])

    values = (1, 1.0, "1", b"\x00\xff", None, 2**63 - 1, 0.1 + 0.2, "it's\x00\n, 'quoted' ü", float("inf"))
    async with following(tmp_path, typed, aws):
        with closing(sqlite3.connect(shop.path)) as db:
            db.execute("INSERT INTO orders VALUES (-1, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
            db.commit()
        await until(lambda: raw and records)
    new = json.loads(raw[0])["new"]
    assert list(new.values()) == [-1, 1, 1.0, "1", "AP8=", None, 2**63 - 1, 0.1 + 0.2, "it's\x00\n, 'quoted' ü", "Infinity"]
    assert [type(new[name]) for name in "abc"] == [int, float, str]
    assert list(records[0].values()) == [
        {"N": "-1"}, {"N": "1"}, {"N": "1.0"}, {"S": "1"}, {"B": "AP8="}, {"NULL": True}, {"N": "9223372036854775807"},
        {"N": "0.30000000000000004"}, {"S": "it's\x00\n, 'quoted' ü"}, {"S": "Infinity"},
    ]  # fmt: skip


@pytest.mark.parametrize("recursive", ["OFF", "ON"])
async def test_replace_upsert_and_what_is_ignored(tmp_path: Path, recursive: str) -> None:
    shop = Shop(tmp_path, "CREATE TABLE orders (id INTEGER PRIMARY KEY, code TEXT COLLATE NOCASE UNIQUE, n)")
    seen = Seen()
    pragmas = (f"recursive_triggers = {recursive}",)
    async with following(tmp_path, seen.handler):
        shop("INSERT INTO orders VALUES (1, 'a', 1), (2, 'b', 2), (-1, 'm', 0)")
        shop("REPLACE INTO orders VALUES (1, 'a', 10)", pragmas=pragmas)  # the same key: changed
        shop("INSERT OR IGNORE INTO orders VALUES (1, 'z', 99)", pragmas=pragmas)
        shop("INSERT INTO orders VALUES (1, 'z', 99) ON CONFLICT DO NOTHING", pragmas=pragmas)
        shop("INSERT INTO orders VALUES (1, 'a', 99) ON CONFLICT (id) DO UPDATE SET n = n + 1", pragmas=pragmas)
        shop("REPLACE INTO orders (code, n) VALUES ('B', 20)", pragmas=pragmas)  # in the way of row 2, by its code only
        shop("UPDATE OR REPLACE orders SET id = 1 WHERE id = 3", pragmas=pragmas)  # row 1 is gone, row 3 is row 1
        shop("REPLACE INTO orders VALUES (-1, 'm', 5)", pragmas=pragmas)
        shop("DELETE FROM orders WHERE id = 1", pragmas=pragmas)
        await until(lambda: len(seen.changes) == 12)
    numbers = [(change.kind, *(None if image is None else image["n"] for image in (change.old, change.new))) for change in seen.changes]
    assert numbers == [
        ("INSERT", None, 1), ("INSERT", None, 2), ("INSERT", None, 0), ("MODIFY", 1, 10), ("MODIFY", 10, 11),
        ("REMOVE", 2, None), ("INSERT", None, 20), ("REMOVE", 11, None), ("REMOVE", 20, None), ("INSERT", None, 20),
        ("MODIFY", 0, 5), ("REMOVE", 20, None),
    ]  # fmt: skip


async def test_keys_of_every_kind(tmp_path: Path) -> None:
    shop = Shop(tmp_path, "CREATE TABLE none (a)")
    shop(
        "CREATE TABLE pairs (a TEXT, b INTEGER, v, PRIMARY KEY (b, a)) WITHOUT ROWID",
        "CREATE TABLE texts (code TEXT PRIMARY KEY, v, twice GENERATED ALWAYS AS (v * 2))",
        'CREATE TABLE "odd ""name""/x" ("a ""b""" INTEGER PRIMARY KEY, "select", rowid)',
    )
    seen = Seen(table("none"), table("PAIRS"), table("texts"), table('odd "name"/x'))
    async with following(tmp_path, seen.handler):
        shop("INSERT INTO none VALUES ('x')", "UPDATE none SET a = 'y'")
        await until(lambda: len(seen.changes) == 2)
        shop("INSERT INTO pairs VALUES ('x', 1, 1)", "REPLACE INTO pairs VALUES ('x', 1, 2)", "UPDATE pairs SET b = 2")
        await until(lambda: len(seen.changes) == 6)
        shop("INSERT INTO texts (code, v) VALUES ('x', 2)", "UPDATE texts SET v = 3")
        await until(lambda: len(seen.changes) == 8)
        shop('INSERT INTO "odd ""name""/x" VALUES (7, 1, 2)')
        await until(lambda: len(seen.changes) == 9)
    assert [(change.kind, change.key) for change in seen.changes] == [
        ("INSERT", {"rowid": 1}), ("MODIFY", {"rowid": 1}),
        ("INSERT", {"b": 1, "a": "x"}), ("MODIFY", {"b": 1, "a": "x"}), ("REMOVE", {"b": 1, "a": "x"}), ("INSERT", {"b": 2, "a": "x"}),
        ("INSERT", {"code": "x"}), ("MODIFY", {"code": "x"}), ("INSERT", {'a "b"': 7}),
    ]  # fmt: skip
    assert seen.changes[7].new == {"code": "x", "v": 3, "twice": 6}
    assert seen.changes[2].table == "PAIRS"


async def test_what_cascades_and_what_is_rolled_back(tmp_path: Path, shop: Shop) -> None:
    shop("CREATE TABLE lines (id INTEGER PRIMARY KEY, of REFERENCES orders ON DELETE CASCADE)")
    seen = Seen(table("orders"), table("lines"))
    async with following(tmp_path, seen.handler):
        shop("INSERT INTO orders VALUES (1, 'new', 1)", "INSERT INTO lines VALUES (1, 1), (2, 1)")
        with closing(sqlite3.connect(shop.path)) as db:
            db.execute("INSERT INTO orders VALUES (5, 'never', 1)")
            db.rollback()
        shop("DELETE FROM orders", pragmas=("foreign_keys = ON",))
        await until(lambda: len(seen.changes) == 6)
    assert sorted((change.table, *change.key.values()) for change in seen.changes if change.kind == "REMOVE") == [
        ("lines", 1), ("lines", 2), ("orders", 1),
    ]  # fmt: skip
    assert 5 not in [change.key["id"] for change in seen.changes]


async def test_changes_while_the_router_is_down_come_later_and_once(tmp_path: Path, shop: Shop) -> None:
    seen = Seen()
    shop("INSERT INTO orders VALUES (1, 'before', 0)")
    async with following(tmp_path, seen.handler):
        shop("INSERT INTO orders VALUES (2, 'live', 0)")
        await until(lambda: seen.changes)
    shop("UPDATE orders SET total = 1")
    for _ in range(2):
        async with following(tmp_path, seen.handler):
            await until(lambda: len(seen.changes) == 3)
    assert sorted(seen.short) == [("INSERT", 2), ("MODIFY", 1), ("MODIFY", 2)]


async def test_what_was_delivered_but_not_noted_down_runs_once(tmp_path: Path, shop: Shop) -> None:
    """As after a crash between the journal's commit and the note of how far it has come."""
    seen = Seen()
    async with following(tmp_path, seen.handler) as app:
        (key,) = await app.journal.keys("tables/at/")
        before = await app.journal.get(key)
        shop("INSERT INTO orders VALUES (1, 'new', 0)")
        await until(lambda: seen.changes)
        await until(lambda: True)
    async with app_of(tmp_path, seen.handler, toml=TOML.replace("shop", "none")) as app:
        await app.journal.put(key, before)
    async with following(tmp_path, seen.handler) as app:
        await until(lambda: app.engine.intake.repeats == 1)
        shop("INSERT INTO orders VALUES (2, 'new', 0)")
        await until(lambda: len(seen.changes) == 2)
    assert seen.short == [("INSERT", 1), ("INSERT", 2)]


@pytest.mark.parametrize("point", ["ack.before", "ack.after"])
def test_killed_between_the_journal_and_the_note(tmp_path: Path, shop: Shop, point: str) -> None:
    (tmp_path / "app.py").write_text(
        "from eventrouter import on\nfrom eventrouter_tables import Change, table\n\n"
        '@on(table("orders"))\nasync def note(change: Change) -> None:\n    print("got", change.key["id"], flush=True)\n'
    )
    (tmp_path / "eventrouter.toml").write_text(TOML + "[http]\nport = 0\n")
    with Place(tmp_path) as place:
        place.serve()
        place.stop()
        with (tmp_path / "out.txt").open("w") as out:
            place.router = subprocess.Popen(
                [sys.executable, "-m", "eventrouter", "serve"], cwd=tmp_path, stdout=out, stderr=subprocess.STDOUT, text=True,
                env={**os.environ, "EVENTROUTER_CRASH_AT": point},
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


async def test_where_a_function_starts(tmp_path: Path, shop: Shop) -> None:
    """LATEST and TRIM_HORIZON are for functions that are new; the log is there since the first of them."""
    first = Seen(name="first")
    async with following(tmp_path, first.handler):
        shop("INSERT INTO orders VALUES (1, 'new', 0)")
        await until(lambda: first.changes)
    shop("INSERT INTO orders VALUES (2, 'down', 0)")
    latest = Seen(name="latest")
    oldest = Seen(table("orders", starting="TRIM_HORIZON"), name="oldest")
    async with following(tmp_path, first.handler, latest.handler, oldest.handler):
        await until(lambda: len(first.changes) == 2 and len(oldest.changes) == 2)
        shop("INSERT INTO orders VALUES (3, 'all', 0)")
        await until(lambda: latest.changes and len(first.changes) == 3 and len(oldest.changes) == 3)
    assert [len(seen.changes) for seen in (first, latest, oldest)] == [3, 1, 3]


async def test_a_new_column_a_dropped_table_and_one_that_comes_back(tmp_path: Path, shop: Shop) -> None:
    seen = Seen()
    async with following(tmp_path, seen.handler) as app:
        source = app.sources["tables"]
        shop("INSERT INTO orders VALUES (1, 'new', 0)")
        shop("ALTER TABLE orders ADD COLUMN note")
        await until(lambda: shop("SELECT count(*) FROM eventrouter_shapes") == [(2,)])
        shop("INSERT INTO orders VALUES (2, 'new', 0, 'hello')")
        await until(lambda: len(seen.changes) == 2)
        assert [list(change.new or {}) for change in seen.changes] == [["id", "status", "total"], ["id", "status", "total", "note"]]
        shop("DROP TABLE orders")
        await until(lambda: "there is no table 'orders'" in source.router.state)
        shop("CREATE TABLE orders (code TEXT PRIMARY KEY)")
        await until(lambda: source.router.state == "live")
        shop("INSERT INTO orders VALUES ('x')")
        await until(lambda: len(seen.changes) == 3)
    assert seen.changes[2].key == {"code": "x"}


async def test_what_was_written_down_survives_its_table(tmp_path: Path, shop: Shop) -> None:
    seen = Seen()
    async with following(tmp_path, seen.handler):
        pass
    shop("INSERT INTO orders VALUES (1, 'new', 0)", "DROP TABLE orders")
    async with app_of(tmp_path, seen.handler):
        await until(lambda: seen.short == [("INSERT", 1)])


async def test_a_wide_table(tmp_path: Path) -> None:
    shop = Shop(tmp_path, f"CREATE TABLE orders ({', '.join(f'c{n}' for n in range(1500))}, PRIMARY KEY (c0, c1))")
    seen = Seen()
    async with following(tmp_path, seen.handler):
        shop(f"INSERT INTO orders VALUES ({', '.join(map(str, range(1500)))})", "REPLACE INTO orders (c0, c1) VALUES (0, 1)")
        await until(lambda: len(seen.changes) == 2)
    assert (seen.changes[1].old or {})["c1499"] == 1499


async def test_a_database_that_is_replaced(tmp_path: Path, shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    seen = Seen()
    async with following(tmp_path, seen.handler):
        shop("INSERT INTO orders VALUES (1, 'new', 0)")
        await until(lambda: len(seen.changes) == 1)
        shutil.copy(shop.path, tmp_path / "backup")
        shop("INSERT INTO orders VALUES (2, 'new', 0)")
        await until(lambda: len(seen.changes) == 2)
    shutil.copy(tmp_path / "backup", shop.path)
    async with following(tmp_path, seen.handler):
        shop("INSERT INTO orders VALUES (3, 'restored', 0)")
        await until(lambda: ("INSERT", 3) in seen.short)
        assert "older copy" in caplog.text
        (tmp_path / "backup").replace(shop.path)
        await until(lambda: shop("SELECT count(*) FROM sqlite_master WHERE type = 'trigger'") == [(5,)])
        await until(lambda: caplog.text.count("older copy") == 2)
        shop("INSERT INTO orders VALUES (4, 'replaced', 0)")
        await until(lambda: ("INSERT", 4) in seen.short)
    shop.path.unlink()
    Shop(tmp_path)
    async with following(tmp_path, seen.handler):
        shop("INSERT INTO orders VALUES (5, 'made anew', 0)")
        await until(lambda: ("INSERT", 5) in seen.short)


async def test_the_log_is_trimmed_after_a_day_and_that_is_told(
    tmp_path: Path, shop: Shop, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen()
    async with following(tmp_path, seen.handler):
        shop("INSERT INTO orders VALUES (1, 'new', 0)")
        await until(lambda: seen.changes)
    shop(
        *[f"INSERT INTO orders VALUES ({n}, 'down', 0)" for n in range(2, 6)], f"UPDATE eventrouter_changes SET at = at - {changelog.KEEP}"
    )
    shop("INSERT INTO orders VALUES (6, 'a writer trims', 0)")
    assert shop("SELECT count(*) FROM eventrouter_changes") == [(4,)]
    async with following(tmp_path, seen.handler):
        await until(lambda: ("INSERT", 6) in seen.short)
    assert "1 changes are lost: they were older than a day" in caplog.text
    shop(f"UPDATE eventrouter_changes SET at = at - {changelog.KEEP}")
    async with following(tmp_path, seen.handler):
        await until(lambda: shop("SELECT count(*) FROM eventrouter_changes") == [(0,)])


async def test_a_busy_database_only_waits(tmp_path: Path, shop: Shop) -> None:
    seen = Seen()
    with closing(sqlite3.connect(shop.path, isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        async with app_of(tmp_path, seen.handler) as app:
            done: list[int] = []
            asyncio.get_running_loop().call_soon(done.append, 1)
            await until(lambda: done)  # the loop turns
            db.execute("COMMIT")
            await until(lambda: app.sources["tables"].router.state == "live")
            shop("INSERT INTO orders VALUES (1, 'new', 0)")
            await until(lambda: seen.changes)


async def test_rows_keep_their_order_through_retries(tmp_path: Path, shop: Shop) -> None:
    got: list[tuple[int, int]] = []
    tries = 0

    @on(table("orders"), retries=5, backoff=fixed(0.01))
    async def handler(change: Change[dict[str, Any]]) -> None:
        nonlocal tries
        assert change.new
        if change.key["id"] == 1 and change.new["total"] == 1 and (tries := tries + 1) < 4:
            raise OSError("not yet")
        got.append((change.key["id"], change.new["total"]))

    async with following(tmp_path, handler):
        shop("INSERT INTO orders VALUES (1, '', 0), (2, '', 0)", *(f"UPDATE orders SET total = {n}" for n in range(1, 20)))
        await until(lambda: len(got) == 40)
    for id in (1, 2):
        assert [total for of, total in got if of == id] == list(range(20))
    assert tries == 4


async def test_views(tmp_path: Path, shop: Shop) -> None:
    got: dict[str, Change[Any]] = {}
    records: dict[str, Any] = {}

    def handlers(view: Any) -> list[Any]:
        async def typed(change: Change[dict[str, Any]]) -> None:
            if change.kind == "MODIFY":
                got[view] = change

        def aws(event, context):  # type: ignore[no-untyped-def]
            if event["Records"][0]["eventName"] == "MODIFY":
                records[view] = event["Records"][0]["dynamodb"]

        typed.__name__, aws.__name__ = f"typed_{view}", f"aws_{view}"
        return [on(table("orders", view=view))(handler) for handler in (typed, aws)]

    views = ("NEW_AND_OLD_IMAGES", "NEW_IMAGE", "OLD_IMAGE", "KEYS_ONLY")
    async with following(tmp_path, *[handler for view in views for handler in handlers(view)]):
        shop("INSERT INTO orders VALUES (1, 'new', 0)", "UPDATE orders SET status = 'paid'")
        await until(lambda: len(got) == len(records) == 4)
    assert {view: (change.old is not None, change.new is not None) for view, change in got.items()} == {
        "NEW_AND_OLD_IMAGES": (True, True), "NEW_IMAGE": (False, True), "OLD_IMAGE": (True, False), "KEYS_ONLY": (False, False),
    }  # fmt: skip
    images = {view: {"OldImage", "NewImage"} & set(record) for view, record in records.items()}
    assert images == {
        "NEW_AND_OLD_IMAGES": {"OldImage", "NewImage"},
        "NEW_IMAGE": {"NewImage"},
        "OLD_IMAGE": {"OldImage"},
        "KEYS_ONLY": set(),
    }
    assert all(record["StreamViewType"] == view and record["Keys"] == {"id": {"N": "1"}} for view, record in records.items())


def untyped(image: dict[str, Any]) -> dict[str, Any]:
    """The plain values of typed ones, as far as the samples have them; sets are DynamoDB's own."""

    def plain(kind: str, value: Any) -> Any:
        if kind == "M":
            return {name: plain(*next(iter(item.items()))) for name, item in value.items()}
        if kind == "L":
            return [plain(*next(iter(item.items()))) for item in value]
        return msgspec.Raw(value.encode()) if kind == "N" else None if kind == "NULL" else value

    return {name: plain(*next(iter(item.items()))) for name, item in image.items()}


def test_records_are_amazons(cases: Path) -> None:
    """Made again from what samples say of the row, records are the same but for whose they are."""
    texts = [(cases / f"events/{name}.jsonl").read_text() for name in ("events", "sam_generate_event_rendered")]
    lines = [json.loads(line) for text in texts for line in text.splitlines()]
    found = [line[field] for line in lines for field in ("event", "rendered") if field in line]
    records = [record for event in found if isinstance(event, dict) for record in event.get("Records", []) if isinstance(record, dict)]
    samples = [record for record in records if "ApproximateCreationDateTime" in record.get("dynamodb", {}) and "userIdentity" not in record]
    compared = 0
    for record in samples:
        body = record["dynamodb"]
        if any(
            kind in ("SS", "NS", "BS") for image in ("NewImage", "OldImage") for value in body.get(image, {}).values() for kind in value
        ):
            continue  # SQL has no sets
        trigger = table("Example", view=body["StreamViewType"])
        new, old = (untyped(body[image]) if image in body else None for image in ("NewImage", "OldImage"))
        binary = [name for name, value in {**body.get("NewImage", {}), **body.get("OldImage", {})}.items() if "B" in value]
        row = Row("Example", record["eventName"], 7, 0, body["ApproximateCreationDateTime"], list(body["Keys"]), old, new, binary=binary)
        (event,) = events(row, Feed(*trigger.feed), Stream(10_000_000, 0))
        (made,) = trigger.aws_event([event])["Records"]
        own = {"eventID", "awsRegion", "eventSourceARN", "eventVersion"}
        assert {key: value for key, value in made.items() if key not in own | {"dynamodb"}} == {
            key: value for key, value in record.items() if key not in own | {"dynamodb"}
        }
        assert set(made) == set(record)
        assert {**made["dynamodb"], "SequenceNumber": ""} == {**body, "SequenceNumber": ""}
        assert made["dynamodb"]["SequenceNumber"].isdecimal()
        assert len(made["eventID"]) == 32
        compared += 1
    assert compared >= 6


async def test_partial_failures_are_treated_as_amazons_streams(tmp_path: Path, shop: Shop, cases: Path) -> None:
    """Which answers fail the batch."""
    answers = json.loads((cases / "streams/partial_batch_responses.json").read_text())
    calls: Counter[str] = Counter()

    def answering(id: str, answer: Any) -> Callable[..., Any]:
        def handler(event, context):  # type: ignore[no-untyped-def]
            calls[id] += 1
            if isinstance(answer, dict) and "__raises__" in answer:
                raise ZeroDivisionError
            return answer

        handler.__name__ = id
        return on(table("orders"), batch=Batch(10), retries=3, backoff=fixed(0))(handler)

    async with following(tmp_path, *(answering(case["id"], case["handler_returns"]) for case in answers)) as app:
        shop("INSERT INTO orders VALUES (1, 'new', 0)")
        lanes = app.engine.lanes
        await until(lambda: all(lane.dead or lane.succeeded for lane in lanes.values()))
        outcomes = {name: ("batch_fails" if lane.dead else "batch_succeeds", calls[name]) for name, lane in lanes.items()}
    assert outcomes == {case["id"]: (case["expected"], 4 if case["expected"] == "batch_fails" else 1) for case in answers}


async def test_a_batch_names_what_failed_by_sequence_number(tmp_path: Path, shop: Shop) -> None:
    batches: list[list[tuple[str, str]]] = []

    @on(table("orders"), batch=Batch(10, 0.1), backoff=fixed(0))
    def handler(event, context):  # type: ignore[no-untyped-def]
        records = [record["dynamodb"] for record in event["Records"]]
        batches.append([(r["Keys"]["id"]["N"], r["NewImage"]["total"]["N"]) for r in records])
        return {"batchItemFailures": [{"itemIdentifier": min(r["SequenceNumber"] for r in records)}] if len(batches) == 1 else []}

    async with following(tmp_path, handler):
        shop("INSERT INTO orders VALUES (1, '', 0), (2, '', 0)", "UPDATE orders SET total = 1")
        await until(lambda: sum(map(len, batches)) >= 6)
    assert sorted(batches[0]) == [("1", "0"), ("1", "1"), ("2", "0"), ("2", "1")]
    assert [each for batch in batches[1:] for each in batch] == [("1", "0"), ("1", "1")]


async def test_a_lambda_function_written_for_aws_runs_as_it_is(tmp_path: Path, shop: Shop) -> None:
    (tmp_path / "app.py").write_text(
        """
import json
from eventrouter import on
from eventrouter_tables import table

def lambda_handler(event, context):
    for record in event["Records"]:
        print(record["eventID"], record["eventName"], context.function_name)
        print("DynamoDB Record: " + json.dumps(record["dynamodb"], indent=2))
        if record["eventName"] != "REMOVE":
            with open("total.txt", "a") as file:
                file.write(record["dynamodb"]["NewImage"]["total"]["N"])
    return "Successfully processed {} records.".format(len(event["Records"]))

on(table("orders"), name="unmodified")(lambda_handler)
""".replace("total.txt", str(tmp_path / "total.txt"))
    )
    plugins = Plugins([eventrouter_plugin()])
    from eventrouter.config import load_config

    (tmp_path / "eventrouter.toml").write_text(TOML)
    async with App(str(tmp_path / "app.py"), config=load_config(plugins.by_name, folder=tmp_path), plugins=plugins) as app:
        await until(lambda: app.sources["tables"].router.state == "live")
        shop("INSERT INTO orders VALUES (1, 'new', 42)")
        await until((tmp_path / "total.txt").exists)
        await until(lambda: (tmp_path / "total.txt").read_text() == "42")


async def test_a_row_that_does_not_fit(tmp_path: Path, shop: Shop) -> None:
    class Order(msgspec.Struct):
        id: int
        total: float

    got: list[Order | None] = []

    @on(table("orders"))
    async def handler(change) -> None:  # type: ignore[no-untyped-def]
        got.append(change.new)

    handler.__annotations__["change"] = Change[Order]
    async with following(tmp_path, handler) as app:
        shop("INSERT INTO orders VALUES (1, '', 'much'), (2, '', 2)")
        await until(lambda: got and app.engine.lanes["handler"].dead)
        (letter,) = await app.journal.dead(LetterQuery())
    assert got == [Order(2, 2.0)]
    assert (letter.error_type, letter.attempts) == ("InvalidPayload", 1)
    assert "$.new.total: expected float, got str" in letter.error_message


async def test_clients(tmp_path: Path) -> None:
    shop = Shop(tmp_path, "CREATE TABLE orders (id INTEGER PRIMARY KEY, status TEXT DEFAULT 'new', total)")
    shop("CREATE TABLE pairs (a TEXT, b INTEGER, v, PRIMARY KEY (a, b)) WITHOUT ROWID", "CREATE TABLE none (a)")
    got: list[Any] = []
    faults: list[str] = []

    @on(local("go"))
    async def go(payload: Any) -> None:
        orders, pairs, none = Table("orders"), Table("pairs", database="sqlite:///shop.db"), Table("none")
        got.append(await orders.put({"total": 5}))
        got.append(await orders.put({"id": 1, "total": 6.5}))
        got.append(await orders.update(1, status="it's; DROP TABLE orders"))
        got.append(await orders.get(1))
        got.append((await orders.get(2), await orders.update(2, total=1), await orders.delete(2)))
        await orders.put({"id": 2, "total": None})
        got.append([row["id"] for row in await orders.query(order_by="-id")])
        got.append([row["id"] for row in await orders.query({"total": None})])
        got.append([row["id"] for row in await orders.query({"total": (">", 6), "status": ("LIKE", "it%")}, limit=1)])
        await pairs.put({"a": "x", "b": 1, "v": b"\x01"})
        got.append((await pairs.get(("x", 1)), await pairs.get({"b": 1, "a": "x"}), await pairs.delete(("x", 1))))
        got.append([await none.put({"a": 1}), await none.put({"a": 1}), await none.get(2)])
        for call in (
            orders.query({"totl": 1}), orders.put({"nope": 1}), pairs.get(1), pairs.get({"a": 1}), Table("ordres").get(1),
            orders.query({"total": ("; DROP", 1)}), orders.put({"id": "text"}), Table("x", database="postgresql://h/d").get(1),
        ):  # fmt: skip
            try:
                await call
            except (ValueError, EventRouterError) as error:
                faults.append(str(error))

    @on(local("threaded"))
    def threaded(payload: Any) -> None:
        orders = Table("orders").sync
        orders.put({"id": 9, "total": 1})
        orders.update(9, total=2)
        got.append((orders.get(9), [row["id"] for row in orders.query({"id": 9})], orders.delete(9)))

    seen = Seen()
    async with following(tmp_path, go, threaded, seen.handler) as app:
        await put(app, "go")
        await until(lambda: len(faults) == 8)
        await until(lambda: len(seen.changes) == 4)
        await put(app, "threaded")
        await until(lambda: len(got) == 11)
    assert got == [
        {"id": 1, "status": "new", "total": 5},
        {"id": 1, "status": "new", "total": 6.5},
        {"id": 1, "status": "it's; DROP TABLE orders", "total": 6.5},
        {"id": 1, "status": "it's; DROP TABLE orders", "total": 6.5},
        (None, None, False),
        [2, 1], [2], [1],
        ({"a": "x", "b": 1, "v": b"\x01"}, {"a": "x", "b": 1, "v": b"\x01"}, True),
        [{"rowid": 1, "a": 1}, {"rowid": 2, "a": 1}, {"rowid": 2, "a": 1}],
        ({"id": 9, "status": "new", "total": 2}, [9], True),
    ]  # fmt: skip
    told = ["did you mean 'total'", "no column 'nope'", "has 2 parts", "its key is a, b", "did you mean 'orders'", "compares nothing",
            "datatype mismatch", "is for SQLite"]  # fmt: skip
    assert all(want in fault for want, fault in zip(told, faults, strict=True)), faults


async def test_send_puts_a_row(tmp_path: Path, shop: Shop) -> None:
    seen = Seen()
    async with following(tmp_path, seen.handler) as app:
        send = Operations(app).send
        assert await send("tables", ["orders", '{"id": 1, "total": 2.5}'], {}, str(tmp_path)) == {"id": 1, "status": None, "total": 2.5}
        await until(lambda: seen.changes)
        with pytest.raises(ConfigError, match="write the row as a JSON object"):
            await send("tables", ["orders", "[1]"], {}, str(tmp_path))
        with pytest.raises(ConfigError, match="no column 'x'"):
            await send("tables", ["orders", '{"x": 1}'], {}, str(tmp_path))


async def test_a_burst_loses_none(tmp_path: Path, shop: Shop) -> None:
    seen = Seen()
    shop("PRAGMA journal_mode = WAL")
    code = f"""
import sqlite3
db = sqlite3.connect({str(shop.path)!r}, isolation_level=None)
for n in range(3000):
    db.execute("INSERT INTO orders VALUES (?, '', 0)", (n,))
"""
    async with following(tmp_path, seen.handler):
        writer = await asyncio.create_subprocess_exec("python3", "-c", code)
        await writer.wait()
        await until(lambda: len(seen.changes) >= 3000, 60)
    assert [change.key["id"] for change in seen.changes] == list(range(3000))


async def test_a_database_that_is_not_there_yet(tmp_path: Path) -> None:
    seen = Seen()
    async with app_of(tmp_path, seen.handler) as app:
        source = app.sources["tables"]
        await until(lambda: "no such file; make the database first" in source.router.state)
        assert not (tmp_path / "shop.db").exists()
        assert source.lines() == [f"tables orders of {tmp_path / 'shop.db'}"]
        shop = Shop(tmp_path)
        await until(lambda: source.router.state == "live")
        shop("INSERT INTO orders VALUES (1, '', 0)")
        await until(lambda: seen.changes)


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda: table(""), "a table has a name"),
        (lambda: table("t", view="NEW_IMAGES"), "did you mean 'NEW_IMAGE'"),  # type: ignore[arg-type]
        (lambda: table("t", starting="NOW"), "starting='NOW'; known: LATEST, TRIM_HORIZON"),  # type: ignore[arg-type]
        (lambda: table("t", database="mysql://h/d"), "no kind of database is named 'mysql'"),
        (lambda: table("t", database="shop.db"), "it is no URL"),
        (lambda: table("t", database="sqlite://shop.db"), "three slashes"),
        (lambda: table("t", database="sqlite://"), "a file's name is missing"),
        (lambda: table("t", database="postgresql://u:secret@h"), "the database's name is missing"),
        (lambda: Table("t", database="postgresql://u:sec[ret@h/d"), "the URL can't be read"),
    ],
)
def test_what_is_refused_at_load(make: Callable[[], Any], fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert fault in str(caught.value)
    assert "sec" not in str(caught.value)


def test_a_trigger_without_a_database(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"function 'seen': table orders: which database\?"):
        app_of(tmp_path, Seen().handler, toml="")
    with pytest.raises(ConfigError, match=r"\[tables\] database 'mysql://u@h/d': no kind of database"):
        app_of(tmp_path, Seen().handler, toml='[tables]\ndatabase = "mysql://u:pw@h/d"')


def test_urls_are_shown_without_secrets(tmp_path: Path) -> None:
    assert shown("postgresql://u:p%40ss@h:1/d?sslmode=require&sslpassword=x&password=y") == "postgresql://u@h:1/d?sslmode=require"
    assert str(table("t", database="postgresql://u:pass@h/d", view="KEYS_ONLY")) == "table t postgresql://u@h/d KEYS_ONLY"
    assert resolve("sqlite:///a%20b.db", tmp_path).url == str(tmp_path / "a b.db")
    assert resolve("sqlite:////srv/x.db", tmp_path).name == "sqlite:////srv/x.db"
    assert check("postgres://h/d") == "postgres://h/d"


def test_a_sample() -> None:
    (record,) = sample()["Records"]
    assert record["eventName"] == "MODIFY"
    assert record["dynamodb"]["OldImage"] == {"id": {"N": "101"}, "status": {"S": "new"}}
    (record,) = sample("t", '{"a": 1, "b": null}', "null", key="a", view="KEYS_ONLY")["Records"]
    assert (record["eventName"], record["dynamodb"]["Keys"]) == ("INSERT", {"a": {"N": "1"}})
    assert "NewImage" not in record["dynamodb"]
    assert sample("t", "null")["Records"][0]["eventName"] == "REMOVE"
    with pytest.raises(ConfigError, match="sample tables: "):
        sample("t", "[")


def test_literals_of_older_and_newer_sqlite() -> None:
    assert read("9.0e+999,-9.0e+999,1.0e+20,Inf,TX'4100',X'',''", "utf-8") == ["Infinity", "-Infinity", 1e20, "Infinity", "A\0", b"", ""]


@pytest.mark.parametrize("encoding", ["UTF-16le", "UTF-16be"])
async def test_databases_in_utf_16(tmp_path: Path, encoding: str) -> None:
    seen = Seen()
    with closing(sqlite3.connect(tmp_path / "shop.db")) as db:
        db.execute(f"PRAGMA encoding = '{encoding}'")
        db.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, a, b)")
        db.commit()
        async with following(tmp_path, seen.handler):
            db.execute("INSERT INTO orders VALUES (1, ?, ?)", ("grüezi", "a\0ü"))
            db.commit()
            await until(lambda: seen.changes)
    assert seen.changes[0].new == {"id": 1, "a": "grüezi", "b": "a\0ü"}
