"""Durable accept, run, complete, every step of it fsynced; against bare SQLite, and beside task queues and stream frameworks.

Then, at 100 events a second, from the delivery of one to its handler; against one fdatasync in the same folder.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter, sleep

import apsw

from benchmarks.apps import PAYLOAD, BenchTrigger, Load, Reading, event, make_app, on_loop
from benchmarks.harness import Result, compare, percentile
from benchmarks.measure import Measured, Watch, fresh
from benchmarks.peers import Peers, environments
from benchmarks.servers import folder
from eventrouter import on

COUNT = 40_960
BATCH = 256
LATENCIES = 300
WARM_UP = 40_960  # events, after which SQLite's log has its size, and is written over
RATE = 100  # events a second


def ours(count: int, toml: str = "") -> Measured:
    """toml: the router's configuration."""

    async def main() -> Measured:
        load = Load(count)

        @on(BenchTrigger())
        async def handler(reading: Reading, device: str) -> None:
            load.done()

        with folder() as place:
            place.joinpath("eventrouter.toml").write_text(toml)
            async with make_app(place, handler) as app:
                with Watch() as watch:
                    await load.run(app.engine.deliver)
                    await app.journal.flush()
        return watch.rate(count)

    return on_loop(main)


def limit(count: int) -> Measured:
    with folder() as place:
        connection = apsw.Connection(str(place / "bare.db"))
        for pragma in ("journal_mode = WAL", "synchronous = FULL"):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)")
        rows = [(PAYLOAD,)] * BATCH
        with Watch() as watch:
            for start in range(0, count, BATCH):
                with connection:
                    connection.executemany("INSERT INTO t (data) VALUES (?)", rows)
                with connection:
                    connection.execute("DELETE FROM t WHERE id > ? AND id <= ?", (start, start + BATCH))
        connection.close()
    return watch.rate(count)


def latency(count: int) -> Measured:
    """Milliseconds from `deliver` to the first line of the handler, of a router that has run for a while."""
    latencies: list[float] = []
    started = asyncio.Event()
    load: Load | None = Load(WARM_UP)

    @on(BenchTrigger())
    async def handler(reading: Reading, device: str) -> None:
        if load is not None:
            load.done()
            return
        latencies.append((perf_counter() - sent) * 1000)
        started.set()

    sent = 0.0

    async def main() -> None:
        nonlocal sent, load
        with folder() as place:
            async with make_app(place, handler) as app:
                assert load is not None
                await load.run(app.engine.deliver)
                await app.journal.flush()
                load = None
                began = perf_counter()
                for number in range(count):
                    await asyncio.sleep(max(0, began + number / RATE - perf_counter()))
                    started.clear()
                    sent = perf_counter()
                    await app.engine.deliver([event()])
                    await started.wait()

    on_loop(main)
    return Measured(percentile(latencies, 50), latencies=latencies)


def fdatasync(count: int) -> Measured:
    """Milliseconds of the call alone, after each of `count` pages appended to a file."""
    latencies = []
    with folder() as place:
        file = os.open(place / "file", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        began = perf_counter()
        for number in range(count):
            sleep(max(0, began + number / RATE - perf_counter()))
            os.write(file, bytes(4096))
            sent = perf_counter()
            os.fdatasync(file)
            latencies.append((perf_counter() - sent) * 1000)
        os.close(file)
    return Measured(percentile(latencies, 50), latencies=latencies)


def run(rounds: int, peers: Path | None = None) -> Iterator[Result]:
    """peers: where their environments are; None: without them."""
    others = environments(peers) if peers else Peers({}, {}, {})
    yield compare(
        "durable", "events/s", fresh(f"{__name__}:ours", count=COUNT), fresh(f"{__name__}:limit", count=COUNT),
        rounds=rounds, against="bare SQLite insert and delete, synchronous=FULL, batches of 256",
        peers=others.found, missing=others.missing, versions=others.versions,
    )  # fmt: skip
    yield compare(
        "durable-latency", "ms", fresh(f"{__name__}:latency", count=LATENCIES), fresh(f"{__name__}:fdatasync", count=LATENCIES),
        rounds=rounds, against=f"one fdatasync of one appended page in the same folder (p50 at {RATE}/s)",
    )  # fmt: skip
