"""Journals with junk in them: refused with the remedy, and what lies outside the junk is got back."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest

from eventrouter.clock import ManualClock
from eventrouter.errors import JournalError
from eventrouter.journal import database, schema
from eventrouter.journal.pages import Pages
from eventrouter.journal.protocol import Claim, Ledger, LetterQuery, Usage
from eventrouter.journal.salvage import salvage
from eventrouter.journal.sqlite import SqliteJournal
from eventrouter.model import Dead, Done, Event, RetryAt
from journal_contract import entries
from served import Place

ROWS = 4000
PAGE = 4096


async def fill(path: Path, clock: ManualClock) -> None:
    """Rows in every state, some of them longer than a page, remembered ids, state of sources, and free pages."""
    journal = SqliteJournal(path, clock=clock, history=86_400, archive=86_400)
    await journal.open()
    for key in range(300):
        await journal.put(f"cron/{key}", bytes(40))
    for day in range(20):
        await journal.books.enter(Ledger((Usage(day, "f", "{}", 1, 0, 0, 100, 12_800),), b'["a",%d]\n' % day))
        await journal.books.enter(Ledger((), b'["b",%d]\n["c",%d]\n' % (day, day)))
    await journal.accept([Claim("f", Event("local", "put", "a", b"%d" % n, id=f"id {n}")) for n in range(ROWS // 2)])
    await journal.accept(entries("g", *range(ROWS // 2 - 20)))
    await journal.accept([Claim("long", Event("local", "put", "a", bytes([n]) * 20_000)) for n in range(20)])
    journal.want("f", 1500)
    claims: list[Any] = []
    while len(claims) < 1500:
        claims += await journal.claims()
    for claim in claims[:500]:
        journal.settle(claim, Dead("RetriesExhausted", "ValueError", "no such device", 3))
    for claim in claims[500:900]:
        journal.settle(claim, Done())
    for claim in claims[900:1300]:
        journal.settle(claim, RetryAt(clock.time() + 60, 1))
    await journal.flush()
    assert await journal.purge([claim.id for claim in claims[:100]]) == 100
    await journal.close()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("filled")
    asyncio.run(fill(folder / "journal.db", ManualClock()))
    return folder


@pytest.fixture
def path(filled: Path, tmp_path: Path) -> Path:
    return shutil.copytree(filled, tmp_path / "data") / "journal.db"


def dump(path: Path) -> dict[str, list[Any]]:
    with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        return {name: list(connection.execute(f"SELECT * FROM {name} ORDER BY 1")) for name in tables}


def usage(path: Path, name: str, kind: str) -> list[int]:
    """The pages of a table or index, in its order."""
    with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
        sql = "SELECT pageno FROM dbstat WHERE name = ? AND pagetype = ? ORDER BY path"
        return [number for (number,) in connection.execute(sql, (name, kind))]


def junk_of(size: int) -> bytes:
    return random.Random(5).randbytes(size)


def spoil(path: Path, *pages: int, junk: Callable[[int], bytes] = junk_of) -> None:
    with path.open("r+b") as file:
        for number in pages:
            file.seek((number - 1) * PAGE)
            file.write(junk(PAGE))


def on_pages(path: Path, numbers: list[int]) -> set[int]:
    """The rows that begin on these leaves."""
    pages = Pages(path.read_bytes())
    return {cell.rowid for number in numbers for cell in pages.node(number).cells}


async def refused(path: Path) -> None:
    before = path.read_bytes()
    journal = SqliteJournal(path, clock=ManualClock())
    with pytest.raises(JournalError) as caught:
        await journal.open()
    assert f"journal {path}: damaged" in str(caught.value)
    assert f"`eventrouter doctor --salvage --data {path.parent}`" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


async def works(path: Path) -> None:
    journal = SqliteJournal(path, clock=ManualClock())
    await journal.open()
    before = await journal.depth()
    assert await journal.accept(entries("new", 1, 2)) == [True, True]
    journal.want("f", 1)
    assert len(await journal.claims()) == 1
    (letter,) = await journal.dead(LetterQuery(), limit=1)
    assert await journal.redrive([letter.id]) == 1
    after = await journal.depth()
    assert sum(after["f"].values()) == sum(before["f"].values())
    await journal.close()


async def test_where_nothing_is_damaged_the_copy_is_identical(path: Path) -> None:
    before, bytes_before = dump(path), path.read_bytes()
    found = salvage(path)
    assert dump(path) == before
    assert found.invocations == {"waiting": 3_100, "running": 0, "dead": 400, "done": 400}  # what ran waits for the next start
    assert found.others == {"seen": 2000, "state": 300, "archive": ROWS, "usage": 20, "audit": 40, "audit_file": 0, "audit_head": 1}
    assert (found.damaged, found.unread) == ([], 0)
    assert found.aside == path.with_name("journal.db.damaged-1")
    assert found.aside.read_bytes() == bytes_before
    assert salvage(path).aside == path.with_name("journal.db.damaged-2")
    assert sorted(file.name for file in path.parent.iterdir() if not file.name.endswith(("-shm", "-wal"))) == [
        "journal.db", "journal.db.damaged-1", "journal.db.damaged-2", "running",
    ]  # fmt: skip
    await works(path)


@pytest.mark.parametrize("at", [0, 7, -1])
async def test_a_leaf_of_the_table(path: Path, at: int) -> None:
    before = dump(path)
    leaf = usage(path, "invocation", "leaf")[at]
    lost = on_pages(path, [leaf])
    spoil(path, leaf)
    await refused(path)
    found = salvage(path)
    after = dump(path)
    assert after["invocation"] == [row for row in before["invocation"] if row[0] not in lost]
    assert {name: rows for name, rows in after.items() if name != "invocation"} == {
        name: rows for name, rows in before.items() if name != "invocation"
    }
    running = sum(row[0] in lost and row[1] == 1 for row in before["invocation"])
    assert (found.damaged, found.unread) == ([leaf], len(lost) - running)
    await works(path)


@pytest.mark.parametrize("kind", ["leaf", "overflow"])
async def test_of_what_is_kept_together_the_rest_stays(tmp_path: Path, kind: str) -> None:
    path, clock = tmp_path / "journal.db", ManualClock()
    journal = SqliteJournal(path, clock=clock)
    await journal.open()
    for start in range(0, 6400, 64):
        await journal.accept(entries("f", *range(start, start + 64)))
    journal.want("f", 100)
    claims: list[Any] = []
    while len(claims) < 100:
        claims += await journal.claims()
    journal.finish(claims[:70])  # one segment and some of the next
    await journal.close()
    before = dump(path)
    (page,) = usage(path, "segment", kind)[5:6]
    lost = on_pages(path, [page]) if kind == "leaf" else set()
    spoil(path, page)
    found = salvage(path)
    after = dump(path)
    gone = [row for row in before["segment"] if row not in after["segment"]]
    assert {row[0] for row in gone} == lost if kind == "leaf" else len(gone) == 1
    assert after["progress"] == before["progress"]
    missing = sum(row[2] for row in gone)
    # A page that only goes on with a row tells not that it is damaged: its events end as dead letters.
    left = 6400 - 70 - (missing if kind == "leaf" else 0)
    assert (found.invocations["waiting"], found.unread) == (left, missing if kind == "leaf" else 0)
    journal = SqliteJournal(path, clock=clock)
    await journal.open()
    journal.want("f", 10_000)
    claims.clear()
    while len(claims) < left:
        claims += await journal.claims()
    read = [claim for claim in claims if claim.event.source != "journal"]
    assert len({claim.event.data for claim in read}) == len(read) == 6400 - 70 - missing
    assert await journal.accept(entries("f", 1)) == [True]
    assert (await journal.claims())[0].seq > max(row[0] + row[2] for row in before["segment"])
    await journal.close()


@pytest.mark.parametrize("name", ["invocation", "seen", "waiting", "dead", "state", "sqlite_autoindex_seen_1"])
async def test_an_interior_page_takes_nothing_with_it(path: Path, name: str) -> None:
    before = dump(path)
    (root,) = usage(path, name, "internal")
    assert list(Pages(path.read_bytes()).free()), "what was purged is still on these, and must not come back"
    keys = {cell.record[0] for cell in Pages(path.read_bytes()).node(root).cells} if name == "state" else set()
    spoil(path, root)
    await refused(path)
    found = salvage(path)
    before["state"] = [row for row in before["state"] if row[0] not in keys]  # such a page holds rows itself
    assert len(before["state"]) >= 295
    assert dump(path) == before
    assert (found.damaged, found.unread) == ([root], 0)
    await works(path)


@pytest.mark.parametrize("name", ["waiting", "dead", "done", "sqlite_autoindex_seen_1"])
async def test_a_leaf_of_an_index_takes_nothing_with_it(path: Path, name: str) -> None:
    before = dump(path)
    leaf = usage(path, name, "leaf")[0]
    spoil(path, leaf)
    await refused(path)
    assert salvage(path).damaged == [leaf]
    assert dump(path) == before
    await works(path)


@pytest.mark.parametrize("size", [PAGE, 100, 16])
async def test_the_first_page(path: Path, size: int) -> None:
    before = dump(path)
    spoil(path, 1, junk=lambda _: random.Random(6).randbytes(size))
    await refused(path)
    assert salvage(path).damaged == [1]
    assert dump(path) == before
    await works(path)


async def test_the_first_page_from_the_schema_on(path: Path) -> None:
    before = dump(path)
    spoil(path, 1, junk=lambda _: path.read_bytes()[:100] + random.Random(6).randbytes(PAGE - 100))
    await refused(path)
    assert salvage(path).damaged == [1]
    assert dump(path) == before


async def test_the_first_page_of_a_file_whose_tables_were_made_in_another_order(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    tables = schema.SCHEMA.split(";\n")
    with closing(apsw.Connection(str(path))) as connection:
        for statement in sorted(tables, key=lambda text: ("INSERT" in text, "INDEX" in text, text)):
            connection.execute(statement).fetchall()
        connection.pragma("application_id", schema.APPLICATION)
        connection.pragma("user_version", schema.VERSION)
    await fill(path, ManualClock())
    before = dump(path)
    spoil(path, 1)
    found = salvage(path)
    after = dump(path)
    for name in ("invocation", "seen", "state"):
        there = set(after[name])
        assert sum(row not in there for row in before[name]) <= 3, name  # rows on interior pages of a tree that no root leads to
    assert 1 in found.damaged
    await works(path)


async def test_the_freelist(path: Path) -> None:
    before = dump(path)
    trunk = next(Pages(path.read_bytes()).free())
    spoil(path, trunk)
    await refused(path)
    assert salvage(path).damaged == [trunk]
    assert dump(path) == before


async def test_half_of_the_file(path: Path) -> None:
    before = dump(path)
    leaves = usage(path, "invocation", "leaf")
    lost = on_pages(path, leaves[::2])
    spoil(path, *leaves[::2], *usage(path, "invocation", "internal"), *usage(path, "waiting", "leaf"), 1)
    await refused(path)
    salvage(path)
    after = {row[0]: row for row in dump(path)["invocation"]}
    for row in before["invocation"]:
        assert row[0] in lost or after[row[0]] == row
    await works(path)


async def test_a_page_that_overflows_and_one_of_zeros(path: Path) -> None:
    before = dump(path)
    long = usage(path, "invocation", "overflow")[0]
    spoil(path, long, junk=bytes)
    salvage(path)
    after = dump(path)["invocation"]
    assert len([row for row in before["invocation"] if row not in after]) == 1


async def test_a_file_that_was_cut_off(path: Path) -> None:
    before = dump(path)
    size = path.stat().st_size // 2 // PAGE * PAGE
    pages = [number for number in usage(path, "invocation", "leaf") if number > size // PAGE]
    lost = on_pages(path, pages)
    with path.open("r+b") as file:
        file.truncate(size)
    await refused(path)
    found = salvage(path)
    after = {row[0]: row for row in dump(path)["invocation"] if row[5] != "long"}
    kept = {row[0]: row for row in before["invocation"] if row[0] not in lost and row[5] != "long"}
    assert {seq: after.get(seq) for seq in kept} == kept
    # Where the list of free pages is cut off, too, the letters that were purged may come back from them.
    first = min(row[0] for row in before["invocation"]) - 100
    assert all(first <= seq < first + 100 for seq in after.keys() - kept.keys() - lost)
    assert found.unread


async def test_a_file_of_the_first_release(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    path.write_bytes(gzip.decompress((Path(__file__).parent / "data/journal-1.db.gz").read_bytes()))
    before = dump(path)
    assert salvage(path).damaged == []
    after = dump(path)
    assert [row[:10] for row in after["invocation"]] == before["invocation"]
    assert {row[10:] for row in after["invocation"]} == {(0, None)}
    assert after["state"] == [(*row, None) for row in before["state"]]
    assert (after["seen"], after["numbering"]) == (before["seen"], before["numbering"])


async def test_what_is_in_the_write_ahead_log_alone(tmp_path: Path) -> None:
    path, copy = tmp_path / "journal.db", tmp_path / "copy" / "journal.db"
    copy.parent.mkdir()
    journal = SqliteJournal(path, clock=ManualClock())
    await journal.open()
    await journal.accept(entries("f", *range(500)))
    for suffix in ("", "-wal"):
        copy.with_name(copy.name + suffix).write_bytes(path.with_name(path.name + suffix).read_bytes())
    await journal.close()
    found = salvage(copy)
    assert found.invocations["waiting"] == 500
    assert not copy.with_name("journal.db-wal").exists()
    assert copy.with_name("journal.db.damaged-1-wal").exists()
    assert dump(copy)["invocation"] == dump(path)["invocation"]


async def test_damage_in_a_running_router_names_the_remedy(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_LOOK", 0)
    spoil(path, *usage(path, "dead", "leaf"))
    journal = SqliteJournal(path, clock=ManualClock())
    await journal.open()
    with pytest.raises(JournalError, match="eventrouter doctor --salvage"):
        await journal.dead(LetterQuery())
    assert await journal.accept(entries("h", 1)) == [True]
    await journal.close()


async def test_after_a_crash_longer_files_are_looked_through(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(path, *usage(path, "dead", "leaf"))
    monkeypatch.setattr(database, "_LOOK", 0)
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("UPDATE numbering SET next = next + 1")
        wal = path.with_name("journal.db-wal").read_bytes()
    path.with_name("journal.db-wal").write_bytes(wal)
    with pytest.raises(JournalError, match="damaged"):
        await SqliteJournal(path, clock=ManualClock()).open()


def test_what_is_no_journal_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with pytest.raises(JournalError, match="there is none"):
        salvage(path)
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    for content, fault in (
        (path.read_bytes(), "another program's database"),
        (b"no database at all, but long enough to be looked at" * 400, "nothing in it is a journal's; restore a backup"),
        (b"", "nothing in it is a journal's"),
    ):
        path.write_bytes(content)
        with pytest.raises(JournalError, match=fault):
            salvage(path)
        assert path.read_bytes() == content
        assert [file.name for file in tmp_path.iterdir()] == ["journal.db"]


def test_random_junk_never_makes_it_fail(path: Path) -> None:
    whole, numbers = path.read_bytes(), random.Random(7)
    for _ in range(15):
        path.write_bytes(whole)
        with path.open("r+b") as file:
            for _ in range(30):
                file.seek(numbers.randrange(len(whole)))
                file.write(numbers.randbytes(numbers.choice((1, 10, 1000))))
        found = salvage(path)
        assert sum(found.invocations.values()) > 3000
        salvage(path)


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "from eventrouter import on\nfrom eventrouter_sns import sns\n\n@on(sns('a'), name='f')\nasync def f(text: str) -> None: ...\n"
    )
    (tmp_path / "eventrouter.toml").write_text("[http]\nport = 0\n")
    path = tmp_path / ".eventrouter" / "journal.db"
    with Place(tmp_path) as place:
        assert "no such folder" in place.run("doctor", "--salvage", code=1)
        path.parent.mkdir()
        asyncio.run(fill(path, ManualClock()))
        leaf = usage(path, "invocation", "leaf")[3]
        spoil(path, leaf)
        said = place.run("serve", code=1)
        assert f"journal {path}: damaged or not a journal" in said
        assert len(said.splitlines()) <= 6
        said = place.run("doctor", "--salvage")
        assert "copied: " in said
        assert "damaged: 1 of " in said
        assert "journal.db.damaged-1" in said
        again = json.loads(place.run("doctor", "--salvage", "--json"))
        assert (again["damaged"], again["unread"]) == ([], 0)
        assert again["aside"].endswith("journal.db.damaged-2")
        place.serve()
        assert "stop it" in place.run("doctor", "--salvage", code=1)
