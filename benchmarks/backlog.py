"""What a long backlog costs, in memory and in speed; what a slow handler costs the intake, and one that fails its neighbours.

`python -m benchmarks.backlog COUNT FOLDER` is the router that holds one: it accepts COUNT events for a handler that waits, says so,
then for each line of input measures what that says and prints it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec

from benchmarks.apps import BenchTrigger, Reading, event, make_app, on_loop
from benchmarks.harness import Measure, Result, compare, percentile
from benchmarks.measure import Measured, Watch, memory
from benchmarks.servers import folder
from eventrouter import App, fixed, on

COUNT = 40_960  # events of a round
FEW, MANY = 1_000, 1_000_000
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

    async def steady(self, count: int) -> Measured:
        """New events come in at the rate at which old ones are worked off; events a second."""
        self.stop_at = self.handled + count
        with Watch() as watch:
            self.gate.set()
            receipts = []
            for _ in range(count // BATCH):
                await self.some_handled.acquire()
                receipts.append(self.app.engine.deliver([event() for _ in range(BATCH)]))
            await asyncio.gather(*receipts)
            await self.app.journal.flush()
        return watch.rate(count)

    async def intake(self, count: int, *, slow: bool) -> Measured:
        """Accepted events a second, with the handler standing still or not; the backlog is as before afterwards."""
        self.stop_at = self.handled + count
        if not slow:
            self.gate.set()
        with Watch() as watch:
            await self.accept(count)
        self.gate.set()
        for _ in range(count // BATCH):
            await self.some_handled.acquire()
        await self.app.journal.flush()
        return watch.rate(count)

    async def measure(self, what: str, count: int) -> Measured:
        if what == "memory":
            return Measured(memory(os.getpid()))
        return await (self.steady(count) if what == "steady" else self.intake(count, slow=what == "slow"))


async def hold(count: int, place: Path) -> None:
    held = Held()
    async with make_app(place, held.handler()) as held.app:
        await held.accept(count)
        print("holding", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            what, events = line.split()
            print(msgspec.json.encode(await held.measure(what, int(events))).decode(), flush=True)
        held.gate.set()


class Holder:
    """Such a router in a process of its own."""

    def __init__(self, count: int) -> None:
        self._stack = ExitStack()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.backlog", str(count), self._stack.enter_context(folder())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._answer()

    def __enter__(self) -> Holder:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()  # its backlog is for nobody
        self._process.communicate()
        self._stack.close()

    def measure(self, what: str) -> Measure:
        """What `Held.measure` knows."""

        def measured() -> Measured:
            assert self._process.stdin is not None
            print(what, COUNT, file=self._process.stdin, flush=True)
            return msgspec.json.decode(self._answer(), type=Measured)

        return measured

    def _answer(self) -> str:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise RuntimeError("the router that holds a backlog ended")
        return line


def beside(troubled: bool) -> Measured:
    """Milliseconds from the delivery of an event to its handler, of a quick function; the value is the 99th percentile.

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

        with folder() as place:
            async with make_app(place, quick, slow, bad) as app:
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

    on_loop(main)
    milliseconds = [seconds * 1000 for seconds in latencies]
    return Measured(percentile(milliseconds, 99), latencies=milliseconds)


def run(rounds: int) -> Iterator[Result]:
    with ExitStack() as stack:
        idle, few, many = (stack.enter_context(Holder(count)) for count in (0, FEW, MANY))
        yield compare(
            "backlog-memory", "MB", many.measure("memory"), idle.measure("memory"),
            rounds=rounds, against=f"the same router, idle; ours holds {MANY:,} events",
        )  # fmt: skip
        yield compare(
            "backlog", "events/s", many.measure("steady"), few.measure("steady"),
            rounds=rounds, against=f"a standing backlog of {FEW:,} events; ours is one of {MANY:,}",
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
    on_loop(lambda: hold(int(sys.argv[1]), Path(sys.argv[2])))
