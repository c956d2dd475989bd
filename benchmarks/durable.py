"""Durable accept, run, complete, every step of it fsynced; against bare SQLite insert and delete in batches of 256."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import apsw

from benchmarks.apps import PAYLOAD, BenchTrigger, Load, Reading, make_app, per_second
from benchmarks.harness import Result, compare
from eventrouter import on

COUNT = 40_960
BATCH = 256


async def ours() -> None:
    load = Load(COUNT)

    @on(BenchTrigger())
    async def handler(reading: Reading, device: str) -> None:
        load.done()

    with tempfile.TemporaryDirectory(dir=".") as folder:  # the disk that a journal would be on, not a RAM disk
        async with make_app(Path(folder), handler) as app:
            await load.run(app.engine.deliver)
            await app.journal.flush()


def limit() -> float:
    with tempfile.TemporaryDirectory(dir=".") as folder:
        connection = apsw.Connection(str(Path(folder) / "bare.db"))
        for pragma in ("journal_mode = WAL", "synchronous = FULL"):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)")
        rows = [(PAYLOAD,)] * BATCH
        began = perf_counter()
        for start in range(0, COUNT, BATCH):
            with connection:
                connection.executemany("INSERT INTO t (data) VALUES (?)", rows)
            with connection:
                connection.execute("DELETE FROM t WHERE id > ? AND id <= ?", (start, start + BATCH))
        rate = COUNT / (perf_counter() - began)
        connection.close()
        return rate


def run(rounds: int) -> Iterator[Result]:
    yield compare(
        "durable", "events/s", lambda: per_second(COUNT, ours), limit,
        rounds=rounds, against="bare SQLite insert and delete, synchronous=FULL, batches of 256",
    )  # fmt: skip
