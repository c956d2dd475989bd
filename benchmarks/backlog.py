"""What a long backlog costs, in memory and in speed; what a slow handler costs the intake, and one that fails its neighbours.

`python -m benchmarks.backlog COUNT FOLDER` is the router that holds one: it accepts COUNT events for a handler that waits, prints its
resident megabytes, then for each line of input measures what that says and prints the rate.
"""

from __future__ import annotations

import asyncio
import logging
import os
import statistics
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.apps import BenchTrigger, Reading, event, make_app, per_second
from benchmarks.harness import Measure, Result, compare, once
from eventrouter import App, fixed, on

COUNT = 40_960  # events of a round
BATCH = 64
UNDER_WAY = 64  # batches
BESIDE_RATE, BESIDE_SECONDS = 2000, 4


class Held:
    """A router with a backlog, in this process. The handler waits while `gate` is shut."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.handled = 0
        self.stop_at = -1  # then the gate shuts by itself
        self.some_handled = asyncio.Semaphore(0)  # once for every batch
        self.app: App

    def handler(self) -> Any:
        @on(BenchTrigger(), concurrency=4, timeout=900)
        async def handler(reading: Reading, device: str) -> None:
            if not self.gate.is_set():
                await self.gate.wait()
            self.handled += 1
            if self.handled % BATCH == 0:
                self.some_handled.release()
            if self.handled == self.stop_at:
                self.gate.clear()

        return handler

    async def accept(self, count: int) -> None:
        """In batches, as a source reads them, with a bounded number of unacknowledged ones; until all are on disk."""
        receipts: deque[asyncio.Future[int]] = deque()
        for start in range(0, count, BATCH):
            if len(receipts) == UNDER_WAY:
                await receipts.popleft()
            receipts.append(self.app.engine.deliver([event() for _ in range(min(BATCH, count - start))]))
        await asyncio.gather(*receipts)

    async def steady(self) -> float:
        """New events come in at the rate at which old ones are worked off; events a second."""
        began = perf_counter()
        self.stop_at = self.handled + COUNT
        self.gate.set()
        receipts = []
        for _ in range(COUNT // BATCH):
            await self.some_handled.acquire()
            receipts.append(self.app.engine.deliver([event() for _ in range(BATCH)]))
        await asyncio.gather(*receipts)
        await self.app.journal.flush()
        return COUNT / (perf_counter() - began)

    async def intake(self, *, slow: bool) -> float:
        """Accepted events a second, with the handler standing still or not; the backlog is as before afterwards."""
        self.stop_at = self.handled + COUNT
        if not slow:
            self.gate.set()
        began = perf_counter()
        await self.accept(COUNT)
        rate = COUNT / (perf_counter() - began)
        self.gate.set()
        for _ in range(COUNT // BATCH):
            await self.some_handled.acquire()
        await self.app.journal.flush()
        return rate


async def hold(count: int, folder: Path) -> None:
    held = Held()
    async with make_app(folder, held.handler()) as held.app:
        await held.accept(count)
        print(resident(), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            what = line.strip()
            print(await (held.steady() if what == "steady" else held.intake(slow=what == "slow")), flush=True)
        held.gate.set()


def resident() -> float:
    """Megabytes of this process."""
    return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0]) / 1024


class Holder:
    """Such a router in a process of its own."""

    def __init__(self, count: int) -> None:
        self._folder = tempfile.TemporaryDirectory(dir=".")  # the disk that a journal would be on, not a RAM disk
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.backlog", str(count), self._folder.name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.resident = self._answer()

    def __enter__(self) -> Holder:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()  # its backlog is for nobody
        self._process.communicate()
        self._folder.cleanup()

    def measure(self, what: str) -> Measure:
        def rate() -> float:
            assert self._process.stdin is not None
            print(what, file=self._process.stdin, flush=True)
            return self._answer()

        return rate

    def _answer(self) -> float:
        assert self._process.stdout is not None
        return float(self._process.stdout.readline())


def beside(troubled: bool) -> float:
    """The 99th percentile of milliseconds from the delivery of an event to its handler, of a quick function.

    troubled: beside one that sleeps through every event and one that fails each, with as many events as it has.
    """
    latencies: list[float] = []

    async def main() -> None:
        sent: deque[float] = deque()

        @on(BenchTrigger("quick"))
        async def quick(reading: Reading, device: str) -> None:
            latencies.append(perf_counter() - sent.popleft())

        @on(BenchTrigger("slow"), concurrency=100)
        async def slow(reading: Reading, device: str) -> None:
            await asyncio.sleep(1)

        @on(BenchTrigger("bad"), retries=2, backoff=fixed(1))
        async def bad(reading: Reading, device: str) -> None:
            raise ValueError("always")

        with tempfile.TemporaryDirectory(dir=".") as folder:
            async with make_app(Path(folder), quick, slow, bad) as app:
                app.config.app.drain = 0
                others: Sequence[str] = ("slow", "bad") if troubled else ()
                began, step = perf_counter(), 10 / BESIDE_RATE
                for number in range(BESIDE_RATE * BESIDE_SECONDS // 10):
                    await asyncio.sleep(max(0, began + number * step - perf_counter()))
                    sent.extend([perf_counter()] * 10)
                    await app.engine.deliver([event("quick") for _ in range(10)])
                    for other in others:
                        app.engine.deliver([event(other) for _ in range(2)])
                while sent:
                    await asyncio.sleep(0.01)

    per_second(0, main)
    return statistics.quantiles(latencies, n=100)[98] * 1000


def run(rounds: int) -> Iterator[Result]:
    with ExitStack() as stack:
        few, many, most = (stack.enter_context(Holder(count)) for count in (1_000, 100_000, 1_000_000))
        yield once("backlog-memory", "MB", many.resident, few.resident, against="a backlog of 1,000 events; ours is one of 100,000")
        yield once("backlog-memory", "MB", most.resident, many.resident, against="a backlog of 100,000 events; ours is one of 1,000,000")
        yield compare(
            "backlog", "events/s", most.measure("steady"), few.measure("steady"),
            rounds=rounds, against="a standing backlog of 1,000 events; ours is one of 1,000,000",
        )  # fmt: skip
        yield compare(
            "backlog-intake", "events/s", few.measure("slow"), few.measure("quick"),
            rounds=rounds, against="the intake of a quick handler; ours is that of one that stands still",
        )  # fmt: skip
    devnull = logging.FileHandler(os.devnull)  # failures are logged, as they are in earnest
    logging.getLogger("eventrouter").addHandler(devnull)
    yield compare(
        "beside", "ms", lambda: beside(True), lambda: beside(False),
        rounds=rounds, against="a quick function alone (p99); ours is beside one that sleeps and one that fails",
    )  # fmt: skip


if __name__ == "__main__":
    per_second(0, lambda: hold(int(sys.argv[1]), Path(sys.argv[2])))
