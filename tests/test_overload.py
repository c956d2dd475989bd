"""More than there is room for: memory has bounds, intake goes on until there is none, then sources wait and go on by themselves."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import tracemalloc
from collections import namedtuple
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from eventrouter import Event, on
from eventrouter.clock import ManualClock
from eventrouter.errors import ConfigError, JournalError
from eventrouter.journal import database
from eventrouter.journal.protocol import Claim
from eventrouter.journal.sqlite import SqliteJournal
from eventrouter.journal.writer import _MEMORY, Limits
from journal_contract import DONE, entries, numbers
from served import Place, wait_for
from support import advance, local, make_app, put, running, until


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


async def test_what_is_handed_out_is_bounded_in_bytes(tmp_path: Path, clock: ManualClock) -> None:
    journal = SqliteJournal(tmp_path / "journal.db", clock=clock)
    await journal.open()
    size = 4 * 1024 * 1024
    journal.want("f", 1000)
    await journal.flush()
    for n in range(2 * _MEMORY // size):
        await journal.accept([Claim("f", Event("test", "t", str(n), bytes(size)))])
    await journal.flush()
    held = await journal.claims()
    assert len(held) == _MEMORY // size
    assert (await journal.depth())["f"] == {"waiting": _MEMORY // size, "running": len(held), "dead": 0}
    got = list(held)
    async with asyncio.timeout(20):
        while held:
            for claim in held:
                journal.settle(claim, DONE)
            held = await journal.claims() if len(got) < 2 * _MEMORY // size else []
            got += held
            assert len(held) <= _MEMORY // size
    assert [claim.event.subject for claim in got] == [str(n) for n in range(2 * _MEMORY // size)]
    await journal.close()


async def test_one_event_larger_than_the_share_still_comes(tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eventrouter.journal.writer._MEMORY", 1)
    monkeypatch.setattr("eventrouter.journal.writer._SHARE", 10)
    journal = SqliteJournal(tmp_path / "journal.db", clock=clock)
    await journal.open()
    await journal.accept(entries("f", 1, 2, 3))
    journal.want("f", 3)
    for n in (1, 2, 3):
        (claim,) = await journal.claims()
        assert numbers([claim]) == [n]
        journal.settle(claim, DONE)
    await journal.close()


async def test_beyond_max_backlog_nothing_is_accepted_until_there_is_room(tmp_path: Path, clock: ManualClock) -> None:
    gate = asyncio.Event()

    @on(local("a"), concurrency=None)
    async def handler(n: int) -> None:
        await gate.wait()

    toml = "[app]\ndrain = 0\n[journal]\nmax_backlog = 50\nmin_free = 0\n"
    async with running(tmp_path, handler, clock=clock, toml=toml) as app:
        router = app.sources["local"].router
        for n in range(50):
            assert await put(app, "a", n) == 1
        assert router.fault == "the backlog is full: 50 events wait; [journal] max_backlog is 50"
        assert app.supervisor is not None
        assert not app.supervisor.health().ready
        with pytest.raises(JournalError, match="the backlog is full"):
            await put(app, "a", 50)
        gate.set()
        await until(lambda: not router.fault)
        assert app.supervisor.health().ready
        assert await put(app, "a", 51) == 1
        await until(lambda: app.engine.lanes["handler"].succeeded == 51)


async def test_a_backlog_in_bytes(tmp_path: Path, clock: ManualClock) -> None:
    journal = SqliteJournal(tmp_path / "journal.db", clock=clock, limits=Limits(size=1_000_000))
    await journal.open()
    while not journal.fault:
        assert await journal.accept([Claim("f", Event("test", "t", "x", bytes(100_000)))]) == [True]
    with pytest.raises(JournalError, match=r"the journal has \d+ MB; \[journal\] max_backlog is 0 MB"):
        await journal.accept(entries("f", 1))
    journal.want("f", 1000)
    for claim in await journal.claims():
        journal.settle(claim, DONE)
    await journal.flush()
    assert await journal.accept(entries("f", 1)) == [True]
    await journal.close()


async def test_a_disk_that_is_nearly_full(tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    left = 1 << 30
    monkeypatch.setattr(database.shutil, "disk_usage", lambda path: usage(0, 0, left))
    journal = SqliteJournal(tmp_path / "journal.db", clock=clock, limits=Limits(free=256 << 20))
    await journal.open()
    assert await journal.accept(entries("f", 1)) == [True]
    left = 100 << 20
    clock.advance(1.1)
    assert await journal.accept(entries("f", 2)) == [True], "found out by this one"
    with pytest.raises(JournalError, match=r"the disk is nearly full: 100 MB are left, \[journal\] min_free is 256 MB; free some space"):
        await journal.accept(entries("f", 3))
    left = 1 << 30
    await advance(clock, 1.1, lambda: not journal.fault)
    assert await journal.accept(entries("f", 4)) == [True]
    await journal.close()


@pytest.mark.parametrize(
    ("toml", "fault"),
    [
        ("max_backlog = 'many'", 'write a size such as "512MB"'),
        ("max_backlog = -1", "0 is no limit"),
        ("min_free = '5%'", 'write a size such as "512MB"'),
    ],
)
def test_limits_that_are_none(tmp_path: Path, toml: str, fault: str) -> None:
    @on(local("a"))
    async def handler(n: int) -> None: ...

    with pytest.raises(ConfigError, match=fault):
        make_app(tmp_path, handler, toml=f"[journal]\n{toml}\n")


async def test_a_slow_function_leaves_slots_to_the_others(tmp_path: Path) -> None:
    gate = asyncio.Event()
    done: list[int] = []

    @on(local("slow"))
    async def slow(n: int) -> None:
        await gate.wait()

    @on(local("quick"))
    async def quick(n: int) -> None:
        done.append(n)

    async with running(tmp_path, slow, quick, toml="[app]\ndrain = 0\nconcurrency = 40\n[journal]\nurl = 'memory'\n") as app:
        lane = app.engine.lanes["slow"]
        await asyncio.gather(*(put(app, "slow", n) for n in range(200)))
        await until(lambda: lane.active == 36)
        for n in range(50):
            await put(app, "quick", n)
        await until(lambda: len(done) == 50)
        assert lane.active == 36
        gate.set()
        await until(lambda: lane.succeeded == 200)


async def test_what_waits_for_a_slot_does_not_wait_beyond_its_age(tmp_path: Path, clock: ManualClock) -> None:
    @on(local("a"), concurrency=1, max_age=60, timeout=900)
    async def handler(n: int) -> None:
        await asyncio.get_running_loop().create_future()

    async with running(tmp_path, handler, clock=clock, toml="[app]\ndrain = 0\n") as app:
        lane = app.engine.lanes["handler"]
        for n in range(3):
            await put(app, "a", n)
        await until(lambda: lane.active == 1 and lane.count == 2)
        clock.advance(59)
        assert lane.dead == 0
        clock.advance(2)
        assert (lane.dead, lane.count) == (2, 0)


APP = """
import os, time
from eventrouter import on
from eventrouter_http import http

got = os.open("got.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

@on(http("POST /box", mode="event"))
async def request(text: str) -> None:
    os.write(got, f"{text[:12]}\\n".encode())
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system of 6 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", folder], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small file system can't be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk(tmp_path: Path, small_disk: Path) -> None:
    """Really full: what got its 202 is there, what did not is refused with a reason; it goes on when there is space."""
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "eventrouter.toml").write_text("[http]\nport = 0\n[app]\ndata = 'disk'\n[journal]\nmin_free = 0\n")
    filler = small_disk / "filler"
    with Place(tmp_path) as place:
        place.serve()
        answers: list[tuple[str, str]] = []

        def send(n: int) -> str:
            body = f"{n:012}" + "x" * 20_000
            options = ("-d", body, "-H", "Content-Type: text/plain", "-o", "/dev/null", "-w", "%{http_code}")
            answers.append((body[:12], place.curl("/box", *options)))
            return answers[-1][1]

        assert send(0) == "202"
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        for n in range(1, 300):
            if send(n) == "503":
                break
        assert answers[-1][1] == "503"
        assert "the disk is full; free some space" in place.output
        assert '"ready":false' in place.curl("/readyz")
        assert "the disk is full" in place.curl("/readyz")
        filler.unlink()
        wait_for(lambda: '"ready":true' in place.curl("/readyz"))
        assert send(1000) == "202"
        wanted = {n for n, code in answers if code == "202"}
        place.says("takes events again")
        wait_for(lambda: wanted <= set((tmp_path / "got.txt").read_text().split()))
        place.stop()
    assert set((tmp_path / "got.txt").read_text().split()) >= wanted


def test_a_file_system_that_is_read_only(tmp_path: Path, small_disk: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "eventrouter.toml").write_text("[http]\nport = 0\n[app]\ndata = 'disk'\n[journal]\nmin_free = 0\n")
    with Place(tmp_path) as place:
        place.serve()
        place.stop()
        subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
        told = place.run("serve", code=1)
        assert f"{small_disk} can't be written (Read-only file system); mend that, or give --data another folder" in told
        assert "Traceback" not in told
        subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
        place.serve()
        assert place.stop() == 0


STUCK = """
import asyncio
from eventrouter import on
from eventrouter_http import http

gate = asyncio.Event()

@on(http("POST /box", mode="event"), timeout=900)
async def stuck(text: str) -> None:
    await gate.wait()

@on(http("POST /open"))
async def open_it() -> None:
    gate.set()
"""


def test_http_is_pushed_back_with_a_reason_and_a_time(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(STUCK)
    (tmp_path / "eventrouter.toml").write_text("[http]\nport = 0\n[journal]\nmax_backlog = 3\nmin_free = 0\n")
    with Place(tmp_path) as place:
        place.serve()
        assert ["202" in place.curl("/box", "-i", "-d", "x") for _ in range(3)] == [True] * 3
        refused = place.curl("/box", "-i", "-d", "x")
        assert "503 Service Unavailable" in refused
        assert "Retry-After: 1" in refused
        assert "the backlog is full: 3 events wait" in place.curl("/readyz")
        assert "204" in place.curl("/open", "-i", "-X", "POST")
        wait_for(lambda: '"ready":true' in place.curl("/readyz"))
        assert "202" in place.curl("/box", "-i", "-d", "x")
        assert place.stop() == 0


async def test_what_waits_in_the_file_is_not_kept_in_memory(tmp_path: Path, clock: ManualClock) -> None:
    journal = SqliteJournal(tmp_path / "journal.db", clock=clock)
    await journal.open()
    await journal.accept(entries("f", *range(64)))
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(100):
            await journal.accept(entries("f", *range(64)))
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 1_000_000, "6,400 events take more"
    await journal.close()
