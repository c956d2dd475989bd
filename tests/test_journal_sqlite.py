"""The contract on SQLite, in a file and in memory, and what only a file can do."""

from __future__ import annotations

import asyncio
import gzip
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest

from eventrouter.clock import ManualClock
from eventrouter.errors import JournalError
from eventrouter.journal import archive, schema, writer
from eventrouter.journal.database import Database
from eventrouter.journal.protocol import Claim, Journal, LetterQuery
from eventrouter.journal.running import Running
from eventrouter.journal.sqlite import SqliteJournal
from eventrouter.journal.writer import Limits
from eventrouter.model import Event, RetryAt
from journal_contract import DONE, JournalContract, entries, event, numbers
from support import in_segments, until


class TestFile(JournalContract):
    @pytest.fixture
    def make(self, clock: ManualClock, tmp_path: Path) -> Callable[..., Journal]:
        return lambda **options: SqliteJournal(tmp_path / "journal.db", clock=clock, **options)

    async def test_the_receipt_means_that_it_is_in_the_file(self, journal: Journal, tmp_path: Path) -> None:
        await journal.accept(entries("f", 1, 2))
        reader = apsw.Connection(str(tmp_path / "journal.db"), flags=apsw.SQLITE_OPEN_READONLY)
        assert [int(event.data) for *_, event in in_segments(reader)] == [1, 2]
        reader.close()

    async def test_completions_are_written_with_what_is_awaited_or_soon_by_themselves(
        self, journal: SqliteJournal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reader = apsw.Connection(str(tmp_path / "journal.db"), flags=apsw.SQLITE_OPEN_READONLY)
        journal.want("f", 9)
        await journal.accept(entries("f", 1))
        await journal.accept(entries("f", 2, 3))
        one, two, three = await self.claims(journal, 3)
        journal.settle(one, DONE)
        await until(lambda: [int(event.data) for *_, event in in_segments(reader)] == [2, 3])
        monkeypatch.setattr(writer, "_LINGER", 60.0)
        commits = 0
        real = Database.commit

        def counted(database: Database) -> None:
            nonlocal commits
            commits += 1
            real(database)

        monkeypatch.setattr(Database, "commit", counted)
        journal.finish([two, three])
        await journal.accept(entries("f", 4))
        assert commits == 1
        assert [int(event.data) for *_, event in in_segments(reader)] == [4]
        reader.close()

    async def test_every_commit_is_fsynced(self, journal: SqliteJournal) -> None:
        pragmas = await journal._ask(lambda database: {name: database._connection.pragma(name) for name in ("journal_mode", "synchronous")})
        assert pragmas == {"journal_mode": "wal", "synchronous": 2}

    @pytest.mark.parametrize(
        ("fault", "told"),
        [
            (apsw.FullError("database or disk is full"), "the disk is full; free some space, it goes on by itself"),
            (apsw.ReadOnlyError("attempt to write a readonly database"), "cannot be opened for writing"),
            (apsw.IOError("disk I/O error"), "check the disk"),
        ],
    )
    async def test_a_failing_disk_refuses_events_and_keeps_settlements(
        self, journal: SqliteJournal, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, fault: Exception, told: str
    ) -> None:
        journal.want("f", 3)
        await journal.accept(entries("f", 1, 2))
        one, two = await self.claims(journal, 2)

        def full(database: Database) -> None:
            raise fault

        monkeypatch.setattr(Database, "commit", full)
        journal.settle(one, DONE, entries("g", 7, 8))
        journal.settle(two, RetryAt(clock.time() + 10, 1), entries("g", 9))
        with pytest.raises(JournalError, match=told):
            await journal.accept(entries("f", 3))
        assert told in journal.fault
        monkeypatch.undo()
        clock.advance(1.5)
        await until(lambda: not journal.fault)
        assert await journal.accept(entries("f", 4)) == [True]
        assert numbers(await self.claims(journal, 1)) == [4]  # its credit was not used up by what failed
        assert (await journal.depth())["f"] == {"waiting": 1, "running": 1, "dead": 0}
        journal.want("g", 9)
        assert numbers(await self.claims(journal, 3)) == [7, 8, 9]  # what follows from a settlement is kept with it

    @pytest.mark.parametrize("amid", ["whole", "damaged", "tried", "keyed"])
    async def test_a_backlog_comes_whole_and_in_order_whatever_is_amid(self, journal: SqliteJournal, clock: ManualClock, amid: str) -> None:
        await journal.accept(entries("sqs:f", *range(200)))  # a queue's, so that each is in a row of its own
        change = {"whole": "seq = seq", "damaged": "event = substr(event, 2)", "tried": "attempts = 1", "keyed": "key = 'k'"}[amid]
        sql = f"UPDATE invocation SET {change} WHERE seq = (SELECT seq + 150 FROM invocation ORDER BY seq LIMIT 1)"
        await journal._ask(lambda database: database._rows(sql))
        journal.want("sqs:f", 200)
        claims = await self.claims(journal, 200)
        events = [claim.event for claim in claims]
        assert [n for n, event in enumerate(events) if event.source == "journal"] == ([150] if amid == "damaged" else [])
        assert [event.data for event in events if event.source != "journal"] == [
            b"%d" % n for n in range(200) if (n, amid) != (150, "damaged")
        ]
        assert [claim.attempts for claim in claims] == [int((n, amid) == (150, "tried")) for n in range(200)]
        assert [claim.key for claim in claims] == ["k" if (n, amid) == (150, "keyed") else None for n in range(200)]
        assert all(claim.born == pytest.approx(clock.monotonic(), abs=0.001) for claim in claims)
        for claim in claims:
            journal.settle(claim, DONE)
        await journal.flush()
        assert await journal.depth() == {}

    async def test_what_was_accepted_in_a_future_that_did_not_come(self, make: Callable[..., Journal], clock: ManualClock) -> None:
        clock.advance(3600)
        journal = make()
        await journal.open()
        await journal.accept(entries("f", 1))
        await journal.close()
        clock._now -= 3600
        journal = make()
        await journal.open()
        journal.want("f", 1)
        assert numbers(await self.claims(journal, 1)) == [1]
        await journal.close()

    async def die(self, journal: SqliteJournal) -> None:
        """Leave in the files what a killed process leaves."""
        journal._marks.close = lambda: None  # type: ignore[method-assign]
        await journal.close()

    async def test_deaths_of_the_router_are_counted_for_what_it_ran(self, make: Callable[..., SqliteJournal]) -> None:
        for death in range(10):
            journal = make()
            await journal.open()
            journal.want("f", 3)
            if death == 0:
                await journal.accept(entries("f", 1, 2, 3))
            claims = await self.claims(journal, 3)
            journal.started(claims[0])
            if death == 5:
                journal.started(claims[1])  # once is no row
            await self.die(journal)
        journal = make()
        await journal.open()
        journal.want("f", 3)
        assert [(int(claim.event.data), claim.deaths, claim.attempts) for claim in await self.claims(journal, 3)] == [
            (1, 10, 0), (2, 1, 0), (3, 0, 0),
        ]  # fmt: skip
        await journal.close()

    async def test_an_attempt_that_ends_breaks_the_row(self, make: Callable[..., SqliteJournal], clock: ManualClock) -> None:
        for death in range(15):
            journal = make()
            await journal.open()
            journal.want("f", 1)
            if death == 0:
                await journal.accept(entries("f", 1))
            (claim,) = await self.claims(journal, 1)
            journal.started(claim)
            if death == 7:
                journal.settle(claim, RetryAt(clock.time(), 1))
                await journal.flush()
            await self.die(journal)
        journal = make()
        await journal.open()
        assert await journal.dead(LetterQuery()) == []
        await journal.close()

    async def test_a_stop_is_no_death(self, make: Callable[..., SqliteJournal]) -> None:
        for stop in range(11):
            journal = make()
            await journal.open()
            journal.want("f", 1)
            if stop == 0:
                await journal.accept(entries("f", 1))
            (claim,) = await self.claims(journal, 1)
            journal.started(claim)
            await journal.close()
        journal = make()
        await journal.open()
        assert (await journal.depth())["f"] == {"waiting": 1, "running": 0, "dead": 0}
        await journal.close()

    async def test_the_first_releases_file_is_upgraded(
        self, make: Callable[..., SqliteJournal], clock: ManualClock, tmp_path: Path
    ) -> None:
        (tmp_path / "journal.db").write_bytes(gzip.decompress((Path(__file__).parent / "data/journal-1.db.gz").read_bytes()))
        journal = make(history=86_400)
        await journal.open()
        assert await journal.depth() == {
            "f": {"waiting": 4, "running": 0, "dead": 1},
            "g": {"waiting": 1, "running": 0, "dead": 0},
        }
        (letter,) = await journal.dead(LetterQuery())
        assert (numbers([letter]), letter.reason, letter.error_message) == ([2], "RetriesExhausted", "no such device")
        assert await journal.get("cron/tick") == b"42"
        assert [found.state for found in await journal.find("known")] == ["waiting"]
        assert await journal.accept([Claim("f", event(5, "known"))]) == [False]
        journal.want("f", 9)
        assert numbers(await self.claims(journal, 3)) == [4, 5, 6]
        clock.advance(61)
        (retried,) = await self.claims(journal, 1)
        assert (numbers([retried]), retried.attempts) == ([3], 1)
        await journal.close()
        journal = make()
        await journal.open()  # and now it is of today's
        await journal.close()

    async def test_an_event_is_accepted_and_archived_or_neither(
        self, make: Callable[..., SqliteJournal], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        journal = make(archive=3600)
        await journal.open()
        with monkeypatch.context() as patch:
            patch.setattr(archive, "_ADD", "INSERT INTO archive VALUES (?, ?, ?, ?, 'no such column')")
            with pytest.raises(JournalError):
                await journal.accept(entries("f", 1))
        await journal.accept(entries("f", 2))
        assert (await journal.depth())["f"]["waiting"] == 1
        assert [int(kept.event.data) for kept in await journal.archived("f", 0, 1e12)] == [2]
        await journal.close()

    async def test_the_archive_counts_for_the_size_of_the_backlog(self, make: Callable[..., SqliteJournal]) -> None:
        journal = make(archive=3600, limits=Limits(size=4 << 20))
        await journal.open()
        journal.want("f", 1000)
        taken = 0
        while not journal.fault and taken < 100:
            await journal.accept([Claim("f", Event("test", "t", "s", bytes(100_000)))])
            (claim,) = await self.claims(journal, 1)
            journal.settle(claim, DONE)
            taken += 1
        assert "the backlog is full" in journal.fault
        assert len(await journal.archived("f", 0, 1e12)) == taken
        await journal.close()

    async def test_an_upgrade_that_fails_changes_nothing(self, make: Callable[..., SqliteJournal], tmp_path: Path) -> None:
        old = gzip.decompress((Path(__file__).parent / "data/journal-1.db.gz").read_bytes())
        (tmp_path / "journal.db").write_bytes(old)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(schema.UPGRADES, 1, f"{schema.UPGRADES[1]}; SELECT x FROM nowhere")
            with pytest.raises(JournalError, match="no such table"):
                await make().open()
        reader = apsw.Connection(str(tmp_path / "journal.db"))
        assert reader.pragma("user_version") == 1
        reader.close()
        journal = make()
        await journal.open()
        assert (await journal.depth())["f"]["waiting"] == 4
        await journal.close()

    async def test_a_commit_that_is_heard_while_it_closes_is_heard_to_its_end(
        self, make: Callable[..., SqliteJournal], clock: ManualClock
    ) -> None:
        journal = make()
        await journal.open()
        journal.want("f", 2)
        await journal.accept([Claim("f", event(n), key="k") for n in (1, 2)])
        one, two = await self.claims(journal, 2)
        journal.settle(one, RetryAt(clock.time() + 10, 1))
        closing = asyncio.ensure_future(journal.close())
        await asyncio.sleep(0)
        journal._hand_out([two])  # its key waits for what goes back; the closed journal takes no operation any more
        await closing

    async def test_more_places_are_made_for_what_runs(self, tmp_path: Path) -> None:
        for path in (tmp_path / "running", None):
            running = Running(path)
            running.clear()
            places = [running.start(seq) for seq in range(1, 3001)]
            assert len(set(places)) == 3000
            running.end(places[7])
            assert running.start(5000) == places[7]
            if path is not None:
                assert sorted(Running(path).before) == sorted({*range(1, 3001), 5000} - {8})
            running.close()
        assert Running(tmp_path / "running").before == []


class TestBehind(JournalContract):
    """A file whose functions all have a long backlog as soon as anything waits: what comes then is not kept until it is written."""

    @pytest.fixture
    def make(self, clock: ManualClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Journal]:
        monkeypatch.setattr(writer, "_BEHIND", 0)
        return lambda **options: SqliteJournal(tmp_path / "journal.db", clock=clock, **options)

    async def test_what_comes_is_freed_once_it_is_packed_and_comes_again_from_the_file(self, journal: SqliteJournal) -> None:
        class Attributes(dict[str, Any]):
            """Can be referred to weakly."""

        await journal.accept(entries("f", 1))
        kept: list[weakref.ref[Any]] = []

        def more() -> list[Claim]:
            made = entries("f", 2, 3)
            for claim in made:
                claim.event.attributes = attributes = Attributes(n=1)
                kept.append(weakref.ref(attributes))
            return made

        receipt = journal.accept(more())
        assert [each() for each in kept] == [None, None]
        assert await receipt == [True, True]
        journal.want("f", 9)
        claims = await self.claims(journal, 3)
        assert numbers(claims) == [1, 2, 3]
        assert [claim.event.attributes for claim in claims] == [{"n": 1}] * 3
        assert journal._behind == set()
        await journal.accept(entries("f", 4))
        (four,) = await self.claims(journal, 1)
        assert four.hint == 4, "straight from memory"

    async def test_how_many_wait_is_known_whatever_fails(
        self, journal: SqliteJournal, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(database: Database) -> None:
            raise apsw.FullError("database or disk is full")

        async def behind() -> int:
            return await journal._ask(lambda database: journal._writer._lanes["f"].behind)  # type: ignore[union-attr]

        await journal.accept(entries("f", 1, 2, 3, 4, 5))
        assert await behind() == 5
        with monkeypatch.context() as fault:
            fault.setattr(Database, "commit", full)
            with pytest.raises(JournalError, match="the disk is full"):
                await journal.accept(entries("f", 6))
            journal.want("f", 2)
            with pytest.raises(JournalError, match="the disk is full"):
                await journal.flush()
        clock.advance(1.5)
        assert numbers(await self.claims(journal, 2)) == [1, 2]
        assert await behind() == 3
        assert journal._behind == {"f"}
        await journal.accept(entries("f", 7))
        journal.want("f", 9)
        assert numbers(await self.claims(journal, 4)) == [3, 4, 5, 7]
        assert await behind() == 0

    async def test_it_is_known_after_a_restart(self, make: Callable[..., SqliteJournal]) -> None:
        journal = make()
        await journal.open()
        await journal.accept(entries("f", 1, 2, 3))
        journal.want("f", 1)
        (one,) = await self.claims(journal, 1)
        journal.settle(one, DONE)
        await journal.close()
        journal = make()
        await journal.open()
        assert await journal._ask(lambda database: journal._writer._lanes["f"].behind) == 2  # type: ignore[union-attr]
        await journal.close()


class TestMemory(JournalContract):
    lasting = False
    test_what_was_not_settled_comes_again_uncharged = None  # nothing outlives it

    @pytest.fixture
    def make(self, clock: ManualClock) -> Callable[..., Journal]:
        return lambda **options: SqliteJournal(None, clock=clock, **options)


def other_database(path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.execute("CREATE TABLE theirs (x)").fetchall()
    connection.close()


def newer_format(path: Path) -> None:
    asyncio.run(open_and_close(path))
    connection = apsw.Connection(str(path))
    connection.pragma("user_version", 99)
    connection.close()


async def open_and_close(path: Path) -> None:
    journal = SqliteJournal(path, clock=ManualClock())
    await journal.open()
    await journal.close()


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (other_database, "another program's database; choose another data folder"),
        (newer_format, "made by a newer eventrouter (format 99"),
        (lambda path: path.write_bytes(b"no database at all, but long enough to be looked at" * 40), "damaged or not a journal"),
        (lambda path: path.mkdir(), "cannot be opened for writing"),
    ],
)
def test_what_is_no_journal_is_refused_and_left_alone(tmp_path: Path, spoil: Callable[[Path], Any], fault: str) -> None:
    path = tmp_path / "journal.db"
    spoil(path)
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(JournalError) as caught:
        asyncio.run(open_and_close(path))
    assert str(path) in str(caught.value)
    assert fault in str(caught.value)
    assert (path.read_bytes() if path.is_file() else b"") == before


async def test_an_event_that_cannot_be_stored_says_why() -> None:
    journal = SqliteJournal(None, clock=ManualClock())
    await journal.open()
    bad = event(1)
    bad.attributes = {"x": object()}
    with pytest.raises(JournalError, match="attributes must be JSON types"):
        await journal.accept([Claim("f", bad)])
    await journal.close()


ACCEPTING = """
import asyncio, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from eventrouter.clock import SystemClock
from eventrouter.journal.sqlite import SqliteJournal
from support import until
from journal_contract import DONE, entries

async def main():
    journal = SqliteJournal(Path(sys.argv[1]), clock=SystemClock())
    await journal.open()
    journal.want("f", 1000000)

    async def settle():
        while True:
            for claim in await journal.claims():
                if int(claim.event.data) % 3 == 0:
                    journal.settle(claim, DONE)

    settling = asyncio.create_task(settle())
    n = 0
    while True:
        await journal.accept(entries("f", *range(n, n + 7)))
        n += 7
        print(n, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("lines", [5, 60, 200])
async def test_a_sigkill_loses_nothing_accepted(tmp_path: Path, lines: int) -> None:
    path = tmp_path / "journal.db"
    command = [sys.executable, "-c", ACCEPTING, str(path), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:  # noqa: ASYNC220
        assert child.stdout is not None
        accepted = 0
        for _ in range(lines):
            accepted = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
    journal = SqliteJournal(path, clock=ManualClock(4e9))
    await journal.open()
    waiting = (await journal.depth())["f"]["waiting"]
    journal.want("f", 1_000_000)
    got: list[int] = []
    while len(got) < waiting:
        got += numbers(await journal.claims())
    missing = set(range(accepted)) - set(got)
    assert all(n % 3 == 0 for n in missing), "only what was done may be gone"
    assert len(got) == len(set(got))
    await journal.close()
