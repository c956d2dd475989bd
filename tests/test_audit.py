"""The audit log: what operators do is in it, and whoever changes it is found out."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import inspect
import os
import random
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apsw
import msgspec
import pytest

from eventrouter import Event, Role, allow, on
from eventrouter.audit import Query, Trail, Verified, Who, _name, _write, read_key
from eventrouter.cli.secrets import secrets_command
from eventrouter.clock import ManualClock
from eventrouter.control import ControlServer, ask, peer, socket_path
from eventrouter.errors import ConfigError, EventRouterError, JournalError
from eventrouter.journal import schema
from eventrouter.journal.books import START, Books, OpenBooks, seal
from eventrouter.journal.protocol import Block, Ledger
from eventrouter.operations import Operations, perform
from served import Place
from support import local, make_app, put, running, until

ME = Who.me()


# Whoever changes it is found out


class Log:
    """A log of three files and some blocks in the journal, each of a few records; what is done to it is undone again."""

    def __init__(self, folder: Path, dice: random.Random) -> None:
        self.folder, self.dice = folder, dice
        self.key = read_key(folder)
        self.db = apsw.Connection(str(folder.parent / "journal.db"))
        for pragma in ("journal_mode = MEMORY", "synchronous = OFF"):  # its disk is not what is tested
            self.db.execute(f"PRAGMA {pragma}").fetchall()
        schema.make(self.db)
        self.books = Books(lambda: self.key)
        self.books.open(self.db)

        def now(work: Callable[[Any], Any]) -> asyncio.Future[Any]:
            done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            done.set_result(work(SimpleNamespace(books=self.books)))
            return done

        self.trail = Trail(OpenBooks(now), ManualClock(), folder, 20)
        number = 0
        while number < 90:
            lines = [b'["a",%d,"act",{},[0,"root",1],"id %d"]\n' % (n, n) for n in range(number, number + dice.randint(1, 7))]
            number += len(lines)
            self.books.write([Ledger((), b"".join(lines))])
        self.last = number

    async def rotate(self) -> None:
        for _ in range(3):
            assert await self.trail.rotate()
        self.files = {path.name: path.read_bytes() for path in self.folder.glob("*.gz")}
        assert len(self.files) == 3
        self.firsts = self.rows("SELECT first FROM audit ORDER BY first")

    def rows(self, sql: str, *given: Any) -> list[Any]:
        return [row[0] if len(row) == 1 else row for row in self.db.execute(sql, given)]

    @contextmanager
    def changed(self, *, files: bool) -> Iterator[None]:
        self.db.execute("SAVEPOINT before")
        try:
            yield
        finally:
            self.db.execute("ROLLBACK TO before")
            self.db.execute("RELEASE before")
            for path in self.folder.glob("*.gz") if files else ():
                if path.name not in self.files or path.read_bytes() != self.files[path.name]:
                    path.unlink()
            for name, data in self.files.items() if files else ():
                if not (self.folder / name).exists():
                    (self.folder / name).write_bytes(data)

    # Of the journal: edits name the first and the last record that may be told

    def block(self) -> tuple[int, list[bytes], list[bytes]]:
        first = self.dice.choice(self.firsts)
        records, hashes = self.rows("SELECT records, hashes FROM audit WHERE first = ?", first)[0]
        return first, records.split(b"\n")[:-1], [hashes[at : at + 32] for at in range(0, len(hashes), 32)]

    def put(self, first: int, records: list[bytes], hashes: list[bytes]) -> None:
        rows = b"".join(record + b"\n" for record in records), b"".join(hashes), first
        self.db.execute("UPDATE audit SET records = ?, hashes = ? WHERE first = ?", rows)

    def edited(self, record: bytes) -> bytes:
        at = self.dice.randrange(len(record))
        return record[:at] + bytes([record[at] ^ self.dice.randrange(1, 256)]) + record[at + 1 :]

    def edit(self) -> tuple[int, int]:
        first, records, hashes = self.block()
        at = self.dice.randrange(len(records))
        records[at] = self.edited(records[at])
        self.put(first, records, hashes)
        return first + at, first + at

    def edit_with_its_hash(self) -> tuple[int, int]:
        first, records, hashes = self.block()
        at = self.dice.randrange(len(records))
        before = hashes[at - 1] if at else self.before(first)
        records[at] = b"[" + records[at].replace(b"root", b"nobody")[1:]
        hashes[at] = hashlib.sha256(before + records[at]).digest()
        self.put(first, records, hashes)
        return (first if at == len(records) - 1 else first + at), first + at + 1

    def before(self, first: int) -> bytes:
        """The hash of the record before that one."""
        found = self.rows("SELECT hashes FROM audit WHERE first < ? ORDER BY first DESC LIMIT 1", first)
        if found:
            return bytes(found[0][-32:])
        text = gzip.decompress(self.files[max(self.files)])
        return bytes.fromhex([line for line in text.split(b"\n") if line[:1] not in (b"=", b"")][-1][:64].decode())

    def edit_and_forge_the_rest(self) -> tuple[int, int]:
        first, records, _hashes = self.block()
        at = self.dice.randrange(len(records))
        records[at] = records[at].replace(b"root", b"nobody")
        self.forge(first, records)
        return first, first + len(records)

    def forge(self, first: int, records: list[bytes]) -> None:
        """All hashes from there on anew, and the seals as well as one can without the key."""
        chain, key = self.before(first), self.dice.randbytes(32)
        for at in [at for at in self.firsts if at >= first]:
            mine = records if at == first else self.rows("SELECT records FROM audit WHERE first = ?", at)[0].split(b"\n")[:-1]
            hashes = []
            for record in mine:
                chain = hashlib.sha256(chain + record).digest()
                hashes.append(chain)
            self.put(at, mine, hashes)
            self.db.execute("UPDATE audit SET seal = ? WHERE first = ?", (seal(key, at + len(mine) - 1, chain), at))
        self.db.execute("UPDATE audit_head SET hash = ?, seal = ?", (chain, seal(key, self.last, chain, b"head")))

    def remove_a_record(self) -> tuple[int, int]:
        first, records, hashes = self.block()
        at = self.dice.randrange(len(records))
        del records[at]
        if self.dice.random() < 0.5:
            del hashes[at]
        self.put(first, records, hashes)
        return first if at == len(records) else first + at, first + at + 1

    def add_a_record(self) -> tuple[int, int]:
        first, records, hashes = self.block()
        at = self.dice.randint(0, len(records))
        records.insert(at, self.dice.choice(records))
        if self.dice.random() < 0.5:
            hashes.insert(at, self.dice.choice(hashes))
        self.put(first, records, hashes)
        return first, first + len(records) + 1

    def move_a_record(self) -> tuple[int, int]:
        first, records, hashes = self.block()
        if len(records) < 2:
            return self.edit()
        one, other = sorted(self.dice.sample(range(len(records)), 2))
        both = self.dice.random() < 0.5
        for of in (records, hashes) if both else (records,):
            of[one], of[other] = of[other], of[one]  # type: ignore[index]
        self.put(first, records, hashes)
        return first + one, first + one

    def remove_a_block(self) -> tuple[int, int]:
        first = self.dice.choice(self.firsts)
        self.db.execute("DELETE FROM audit WHERE first = ?", (first,))
        return first, first

    def exchange_two_blocks(self) -> tuple[int, int]:
        one, other = sorted(self.dice.sample(self.firsts, 2))
        self.db.execute("UPDATE audit SET first = -1 WHERE first = ?", (one,))
        self.db.execute("UPDATE audit SET first = ? WHERE first = ?", (one, other))
        self.db.execute("UPDATE audit SET first = ? WHERE first = -1", (other,))
        return one, one + 8

    def cut_off(self) -> tuple[int, int]:
        first = self.dice.choice(self.firsts)
        self.db.execute("DELETE FROM audit WHERE first >= ?", (first,))
        if self.dice.random() < 0.5:
            self.db.execute("UPDATE audit_head SET last = ?, hash = ?", (first - 1, self.before(first)))
            return first - 1, first
        return first, first

    def damage_a_seal(self) -> tuple[int, int]:
        first = self.dice.choice(self.firsts)
        (sealed,) = self.rows("SELECT seal FROM audit WHERE first = ?", first)
        self.db.execute("UPDATE audit SET seal = ? WHERE first = ?", (self.edited(sealed), first))
        return first, first

    def damage_the_end(self) -> tuple[int, int]:
        how = self.dice.choice(["seal", "hash", "last", "all"])
        if how == "all":
            self.db.execute("DELETE FROM audit_head")
            return 1, 1
        if how == "last":
            self.db.execute("UPDATE audit_head SET last = last + ?", (self.dice.choice([-1, 1]),))
        else:
            (value,) = self.rows(f"SELECT {how} FROM audit_head")
            self.db.execute(f"UPDATE audit_head SET {how} = ?", (self.edited(value),))
        return self.last, self.last + 1

    # Of the files

    def file(self) -> tuple[Path, int, int]:
        name = self.dice.choice(sorted(self.files))
        first, last, _ = name.split("-")
        return self.folder / name, int(first), int(last)

    def damage_a_file(self) -> tuple[int, int]:
        path, first, last = self.file()
        path.chmod(0o600)
        path.write_bytes(self.edited(path.read_bytes()))
        return first, last

    def shorten_a_file(self) -> tuple[int, int]:
        path, first, last = self.file()
        path.chmod(0o600)
        data = path.read_bytes()
        path.write_bytes(data[: self.dice.randrange(len(data))])
        return first, last

    def remove_a_file(self) -> tuple[int, int]:
        path, first, _ = self.file()
        path.unlink()
        return first, first

    def unlist_a_file(self) -> tuple[int, int]:
        _, first, _ = self.file()
        self.db.execute("DELETE FROM audit_file WHERE first = ?", (first,))
        return first, first

    def write_a_file_anew(self) -> tuple[int, int]:
        """As it should be, but for one record; and it is listed with its own digest."""
        path, first, last = self.file()
        lines = gzip.decompress(path.read_bytes()).split(b"\n")
        at = self.dice.choice([n for n, line in enumerate(lines) if line[:1] not in (b"=", b"")])
        number = first + sum(line[:1] not in (b"=", b"") for line in lines[:at])
        head, record = lines[at][:65], lines[at][65:]
        lines[at] = head + record.replace(b"root", b"nobody")
        data = gzip.compress(b"\n".join(lines), mtime=0)
        digest = hashlib.sha256(data).digest()
        path.unlink()
        (self.folder / _name(first, last, digest)).write_bytes(data)
        self.db.execute("UPDATE audit_file SET digest = ? WHERE first = ?", (digest, first))
        return number, number


EDITS = [
    Log.edit, Log.edit_with_its_hash, Log.edit_and_forge_the_rest, Log.remove_a_record, Log.add_a_record, Log.move_a_record,
    Log.remove_a_block, Log.exchange_two_blocks, Log.cut_off, Log.damage_a_seal, Log.damage_the_end,
    Log.damage_a_file, Log.shorten_a_file, Log.remove_a_file, Log.unlist_a_file, Log.write_a_file_anew,
]  # fmt: skip


def test_ten_thousand_random_edits_are_all_found_and_the_record_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def here(work: Callable[..., Any], *arguments: Any) -> Any:
        return work(*arguments)

    monkeypatch.setattr(asyncio, "to_thread", here)  # which takes longer than the work

    async def main() -> None:
        dice = random.Random(7)
        log = Log(tmp_path / "audit", dice)
        await log.rotate()
        good = await log.trail.verify()
        assert good == Verified(log.last, 3, log.last, good.hash)
        for turn in range(10_000):
            edit = EDITS[turn % len(EDITS)]
            with log.changed(files="file" in edit.__name__):
                least, most = edit(log)
                fault = (await log.trail.verify()).fault
                assert fault is not None, f"{edit.__name__} of {least} to {most} was not found ({turn})"
                assert least <= fault.record <= most, f"{edit.__name__} of {least} to {most}: {fault} ({turn})"
                assert str(fault.record) in fault.what
        assert await log.trail.verify() == good, "what was done to it is not undone"

    asyncio.run(main())


async def test_a_run_of_invocations_has_their_numbers_and_is_named_when_it_is_edited(tmp_path: Path) -> None:
    dice = random.Random(3)
    log = Log(tmp_path / "audit", dice)
    runs: list[tuple[int, int]] = []
    for _ in range(60):
        count = dice.randint(1, 9)
        each = [[at, "local", f"event {log.last + at}", at, 0] for at in range(1, count + 1)]
        log.books.write([Ledger((), msgspec.json.encode(["s", count, "f", 128, 1e9, count + 1, each]) + b"\n")])
        runs.append((log.last + 1, log.last + count))
        log.last += count
    for _ in range(8):
        assert await log.trail.rotate()
    assert await log.trail.verify() == Verified(log.last, 8, log.last, log.books.head().hash.hex())
    found = [it for it in await log.trail.query(Query(limit=0)) if it["eventName"] == "Invoke"]
    assert [it["additionalEventData"]["record"] for it in found] == [*range(runs[0][0], log.last + 1)]
    assert [it["additionalEventData"]["eventId"] for it in found] == [f"event {number}" for number in range(runs[0][0], log.last + 1)]
    assert {it["additionalEventData"]["durationMicroseconds"] for it in found} == {1_000_000}
    assert len({it["eventID"] for it in found}) == len(found)
    kept = [run for run in runs if run[0] >= log.rows("SELECT min(first) FROM audit")[0]]
    assert len(kept) > 20
    for turn in range(500):
        first, last = dice.choice(kept)
        with log.changed(files=False):
            (record,) = log.rows("SELECT records FROM audit WHERE first = ?", first)
            edited = log.edited(record[:-1]) + b"\n"
            if turn % 5 == 0:
                edited = record.replace(b'["s",%d,' % (last - first + 1), b'["s",%d,' % dice.randint(10, 1 << 40))
            log.db.execute("UPDATE audit SET records = ? WHERE first = ?", (edited, first))
            fault = (await log.trail.verify()).fault
            assert fault is not None
            assert fault.record == first
            assert str(first) in fault.what


async def test_who_has_noted_a_hash_sees_that_the_log_was_set_back_as_a_whole(tmp_path: Path) -> None:
    log = Log(tmp_path / "audit", random.Random(1))
    half = await log.trail.verify()
    copy = (tmp_path / "journal.db").read_bytes()
    log.books.write([Ledger((), b'["a",1,"purge",{},[0,"root",1],"x"]\n')])
    whole = await log.trail.verify()
    assert (await log.trail.verify((half.last, half.hash))).fault is None
    log.db.close()
    (tmp_path / "journal.db").write_bytes(copy)
    log.db = apsw.Connection(str(tmp_path / "journal.db"))
    log.books = Books(lambda: log.key)
    log.books.open(log.db)
    assert await log.trail.verify() == half
    fault = (await log.trail.verify((whole.last, whole.hash))).fault
    assert fault is not None
    assert fault.record == whole.last


async def test_files_of_another_journal_are_told(tmp_path: Path) -> None:
    log = Log(tmp_path / "audit", random.Random(1))
    await log.rotate()
    _write(tmp_path / "audit", [Block(1, [b"[]"], [START], b"")], 1)
    fault = (await log.trail.verify()).fault
    assert fault is not None
    assert "is of another journal" in fault.what


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    key = read_key(tmp_path / "audit")
    assert (tmp_path / "audit" / "key").stat().st_mode & 0o777 == 0o600
    assert read_key(tmp_path / "audit") == key
    assert len(key) == 32
    (tmp_path / "audit" / "key").chmod(0o640)
    with pytest.raises(JournalError, match=r"others may read it \(mode 0640\).*`chmod 600 "):
        read_key(tmp_path / "audit")


# What operators do is in it

ENDS = {"ended"}  # of what has a record
READS = {"status", "functions", "letter", "letters", "event", "usage", "audit", "verify", "permissions", "simulate", "tail"}


def test_every_command_is_recorded_but_those_that_only_read() -> None:
    commands = {name for name, value in inspect.getmembers(Operations, inspect.iscoroutinefunction) if not name.startswith("_")}
    unrecorded = {name for name in commands if hasattr(getattr(Operations, name), "reads")}
    assert unrecorded == READS | ENDS, "whatever changes something must be recorded; a command that only reads belongs into READS"
    assert commands - READS >= {
        "invoke", "send", "redrive", "purge", "replay", "throttle", "unthrottle", "concurrency", "add_permission", "remove_permission",
    } | {f"secrets_{name}" for name in secrets_command.commands}  # fmt: skip


@on(local("a"), retries=0)
async def bad() -> None:
    raise ValueError("always")


async def test_an_act_is_on_disk_before_it_is_done_and_then_what_came_of_it(tmp_path: Path) -> None:
    async with running(tmp_path, bad) as app:
        await put(app, "a")
        await until(lambda: app.engine.lanes["bad"].dead == 1)
        seen: list[Any] = []

        class Looking(Operations):
            async def purge(self, ids: Sequence[str], query: dict[str, Any]) -> int:
                seen.extend(await app.trail.query(Query()))
                return await super().purge(ids, query)

        operations = Looking(app)
        assert await perform(operations, "purge", {"ids": [], "query": {"function": "bad"}}, ME) == 1
        with pytest.raises(ConfigError, match="no archive"):
            await perform(operations, "replay", {"function": "bad", "since": 0}, ME)
        await perform(operations, "status", {}, ME)
        start, during = seen
        assert during["eventName"] == "Purge"
        assert during["responseElements"] is None
        _, purged, replayed = await app.trail.query(Query())
        assert purged == during | {"responseElements": {"result": 1}}
        assert purged["userIdentity"] == {
            "type": "IAMUser", "principalId": str(os.getuid()), "arn": f"arn:aws:iam::000000000000:user/{ME.name}",
            "accountId": "000000000000", "userName": ME.name,
        }  # fmt: skip
        assert purged["requestParameters"] == {"ids": [], "query": {"function": "bad"}}
        assert (purged["managementEvent"], purged["eventCategory"], purged["eventType"]) == (True, "Management", "AwsApiCall")
        assert (replayed["eventName"], replayed["errorCode"]) == ("Replay", "ConfigError")
        assert replayed["errorMessage"].startswith("there is no archive")
        assert replayed["resources"][0]["ARN"] == "arn:aws:lambda:local:000000000000:function:bad"
        assert start["eventName"] == "StartRouter"
        assert start["requestParameters"]["functions"] == ["bad"]


async def test_who_throttles_or_lets_somebody_in_is_recorded_and_who_asks_nonsense_is_not(tmp_path: Path) -> None:
    async with running(tmp_path, bad) as app:
        operations = Operations(app)
        await perform(operations, "throttle", {"function": "bad"}, ME)
        given = {"function": "bad", "principal": "s3.amazonaws.com", "action": "lambda:InvokeFunction", "source": "", "sid": "in"}
        await perform(operations, "add_permission", given, ME)
        with pytest.raises(EventRouterError, match="concurrency does not take these arguments"):
            await perform(operations, "concurrency", {"function": "bad", "count": "many"}, ME)
        with pytest.raises(EventRouterError, match="no query for the audit log"):
            await perform(operations, "audit", {"query": {"limit": "all"}}, ME)
        assert await perform(operations, "permissions", {"function": "bad"}, ME)
        _, throttled, let_in = await app.trail.query(Query())
        assert (throttled["eventName"], throttled["requestParameters"]) == ("Throttle", {"function": "bad"})
        assert (let_in["eventName"], let_in["requestParameters"]) == ("AddPermission", given)
        assert let_in["userIdentity"]["userName"] == ME.name


async def test_the_start_has_a_digest_of_the_roles_too(tmp_path: Path) -> None:
    def digest(role: Role) -> str:
        @on(local("a"), role=role)
        async def plain() -> None: ...

        return str(make_app(tmp_path, plain)._inventory()["policiesSha256"])

    reads, same, writes = (Role("r", allow(f"s3:{action}", "*")) for action in ("GetObject", "GetObject", "PutObject"))
    assert digest(reads) == digest(same) != digest(writes)


async def test_an_act_that_cant_be_recorded_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path, bad) as app:
        await put(app, "a")
        await until(lambda: app.engine.lanes["bad"].dead == 1)

        def fails(ledger: Ledger) -> asyncio.Future[None]:
            failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            failed.set_exception(JournalError("the disk is full"))
            return failed

        with monkeypatch.context() as patch:
            patch.setattr(app.journal.books, "enter", fails)
            with pytest.raises(JournalError):
                await perform(Operations(app), "purge", {"ids": [], "query": {}}, ME)
        assert (await app.journal.depth())["bad"]["dead"] == 1


async def test_what_may_be_a_secret_is_not_recorded(tmp_path: Path) -> None:
    @on()
    async def handler(text: str) -> str:
        return text

    async with running(tmp_path, handler) as app:
        given = {"function": "handler", "payload": "hunter2", "parameters": {}}
        assert (await perform(Operations(app), "invoke", given, ME))["result"] == "hunter2"
        (record,) = await app.trail.query(Query(function="handler"))
        assert record["requestParameters"] == {"function": "handler", "payload": "(not recorded)", "parameters": {}}
        assert record["responseElements"] is None


async def test_invocations_have_cloudtrails_shape_and_can_be_asked_for(tmp_path: Path) -> None:
    clock = ManualClock()

    @on(local("b"))
    async def good() -> None: ...

    @on()
    async def asked() -> None: ...

    async with running(tmp_path, bad, good, asked, clock=clock, toml="[audit]\ninvocations = true\n") as app:
        await put(app, "a", id="event 1")
        await until(lambda: app.engine.lanes["bad"].dead == 1)
        clock.advance(60)
        await put(app, "b")
        await until(lambda: app.engine.lanes["good"].succeeded == 1)
        await app.run_now("asked", Event("invoke", "lambda.invoke", "asked", b"{}"), {})
        app.engine.accounts.flush()
        (letter,) = await Operations(app).letters({})
        (record,) = await app.trail.query(Query(function="bad"))
        assert record == {
            "eventVersion": "1.11",
            "userIdentity": {"type": "AWSService", "invokedBy": "local.eventrouter"},
            "eventTime": "2026-01-01T00:00:00.000Z",
            "eventSource": "lambda.amazonaws.com",
            "eventName": "Invoke",
            "awsRegion": "local",
            "sourceIPAddress": "local.eventrouter",
            "userAgent": "local.eventrouter",
            "errorCode": "ValueError",
            "requestParameters": {"functionName": "bad", "invocationType": "Event"},
            "responseElements": None,
            "additionalEventData": {
                "record": 2, "functionVersion": "$LATEST", "eventId": "event 1", "events": 1, "attempt": 1, "durationMicroseconds": 0,
                "memoryMB": 128,
            },
            "requestID": letter["id"],
            "eventID": record["eventID"],
            "readOnly": False,
            "resources": [
                {"accountId": "000000000000", "type": "AWS::Lambda::Function", "ARN": "arn:aws:lambda:local:000000000000:function:bad"}
            ],
            "eventType": "AwsApiCall",
            "managementEvent": False,
            "recipientAccountId": "000000000000",
            "eventCategory": "Data",
        }  # fmt: skip

        async def names(**wanted: Any) -> list[str]:
            found = await app.trail.query(Query(**wanted))
            return [(it["requestParameters"].get("functionName") or it["eventName"]) for it in found]

        assert await names() == ["StartRouter", "bad", "good", "asked"]
        assert await names(limit=2) == ["good", "asked"]
        assert await names(outcome="failed") == await names(outcome="ValueError") == ["bad"]
        assert await names(outcome="succeeded", who="local") == ["good"]
        assert await names(who=ME.name) == ["StartRouter"]
        assert await names(since=clock.time() - 30) == ["good", "asked"]
        assert await names(until=clock.time() - 30) == ["StartRouter", "bad"]


async def test_a_running_router_moves_old_records_into_files(tmp_path: Path) -> None:
    @on(local("a"))
    async def good() -> None: ...

    toml = "[audit]\ninvocations = true\nsegment = 100\n"
    async with running(tmp_path, good, toml=toml) as app:
        for _ in range(12):
            await asyncio.gather(*(put(app, "a") for _ in range(25)))
        await until(lambda: app.engine.lanes["good"].succeeded == 300)
        await app.journal.flush()
        while await app.trail.rotate():
            pass
        found = await app.trail.verify()
        assert (found.fault, found.records) == (None, 301)
        assert found.segments >= 2
        assert len(await app.trail.query(Query(limit=0))) == 301
    async with running(tmp_path, good, toml=toml) as app:
        again = await app.trail.verify((found.last, found.hash))
        assert (again.fault, again.records) == (None, 303)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / ".eventrouter" / "audit").glob("*.gz")} == {0o400}


# Who it is


async def test_the_kernel_says_who_asks(tmp_path: Path) -> None:
    async with make_app(tmp_path, bad) as app, ControlServer(Operations(app), app.config.data):
        assert socket_path(app.config.data).stat().st_mode & 0o777 == 0o600
        await asyncio.to_thread(ask, app.config.data, "redrive", ids=[], query={})
        (_, record) = await app.trail.query(Query())
        assert record["userIdentity"]["userName"] == ME.name
        assert record["userAgent"] == f"eventrouter (pid {os.getpid()})"
    one, other = socket.socketpair()
    with one, other:
        assert peer(one) == ME


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
async def test_another_user_is_refused_even_where_the_socket_lets_him_connect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with make_app(tmp_path, bad) as app, ControlServer(Operations(app), app.config.data):
        path = app.config.data / "control.sock"
        path.chmod(0o666)
        path.parent.chmod(0o755)
        monkeypatch.chdir(path.parent)  # the folders above are nobody else's
        with socket.socket(socket.AF_UNIX) as connection:
            os.seteuid(65534)
            try:
                connection.connect(path.name)
            finally:
                os.seteuid(0)
            connection.sendall(b'{"command": "purge", "arguments": {"ids": [], "query": {}}}\n')
            answer = await asyncio.to_thread(connection.recv, 1000)
        assert b"this router is root's" in answer
        assert [record["eventName"] for record in await app.trail.query(Query())] == ["StartRouter"]


async def test_an_unknown_command_is_told(tmp_path: Path) -> None:
    async with running(tmp_path, bad) as app:
        for name in ("nothing", "_app", "__init__"):
            with pytest.raises(EventRouterError, match="knows no command"):
                await perform(Operations(app), name, {}, ME)


APP = """
from eventrouter import on

@on(tags={"team": "red"})
async def good() -> int:
    return 1
"""


def test_the_commands(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    with Place(tmp_path) as place:
        place.serve("--port", "0")
        place.run("invoke", "good")
        assert "Invoke" in place.run("audit", "query", "--function", "good")
        whole = place.run("audit", "verify")
        assert whole.startswith("whole: 3 records, 0 segment files; the last is 3:")
        assert place.stop() == 0
        known = whole.split()[-1]
        assert place.run("audit", "verify", "--known", known).startswith("whole: 4 records")  # the stop
        assert "write N:HASH" in place.run("audit", "verify", "--known", "x", code=2)
        listed = [line.split() for line in place.run("audit", "query").splitlines()]
        assert [row[3] for row in listed[1:]] == ["StartRouter", "Invoke", "StopRouter"]
        with apsw.Connection(str(tmp_path / ".eventrouter" / "journal.db")) as db:
            db.execute("UPDATE audit SET records = CAST(replace(CAST(records AS TEXT), 'stop_router', 'nothing') AS BLOB)")
        assert place.run("audit", "verify", code=1).startswith("NOT WHOLE: record 4 in the journal is not what was written")
        assert '"record": 4' in place.run("audit", "verify", "--json", code=1)
