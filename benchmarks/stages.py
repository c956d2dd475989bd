"""`python -m benchmarks stages`: CPU time of each stage of an event's way, in memory and with the journal, µs per event.

Taken around batches of 64 by the clock of the thread that does the work, so that neither waits nor the measuring count for much;
each figure is the median of many batches. What can't be taken by itself, the engine's dispatch, is what is left of the loop's time.
`python -m benchmarks.stages --docs docs` renews the table of performance.md.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import msgspec

from benchmarks.apps import BenchTrigger, Reading, event, on_loop
from benchmarks.dispatch import InstantJournal
from benchmarks.guard import BATCH, Handled
from benchmarks.harness import machine
from benchmarks.report import replace
from eventrouter import on
from eventrouter.clock import SystemClock
from eventrouter.engine import Engine
from eventrouter.functions import Function, Policy
from eventrouter.journal.protocol import Claim
from eventrouter.journal.sqlite import SqliteJournal

BATCHES: Final = 400
P = ParamSpec("P")
T = TypeVar("T")

STAGES: Final = (
    ("receive", "make the Event"),
    ("match", "find the functions, make the claims"),
    ("accept", "the journal's part on the loop: pack, queue"),
    ("bind", "decode, validate, arguments"),
    ("handler", "an `async def` that only counts"),
    ("settle", "tell the journal what is done"),
    ("dispatch", "hand out, worker, context, deadline, receipts, the loop itself"),
    ("journal", "the journal's thread: pack rows, SQLite, commits"),
)


class Stages:
    """CPU seconds of one batch, by stage."""

    def __init__(self) -> None:
        self.taken: defaultdict[str, float] = defaultdict(float)

    def timed(self, stage: str, call: Callable[P, T]) -> Callable[P, T]:
        def timed(*args: P.args, **kwargs: P.kwargs) -> T:
            began = time.thread_time()
            try:
                return call(*args, **kwargs)
            finally:
                self.taken[stage] += time.thread_time() - began

        return timed


class TimedJournal:
    """A journal whose loop side is timed."""

    def __init__(self, journal: Any, stages: Stages) -> None:
        self._journal = journal
        self.accept: Callable[..., asyncio.Future[Any]] = stages.timed("accept", journal.accept)
        self.finish: Callable[[Sequence[Claim]], None] = stages.timed("settle", journal.finish)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)


async def measure(journal: Any, batches: int) -> dict[str, float]:
    """Microseconds per event of each stage. journal: opened."""
    stages, handled, trigger = Stages(), Handled(), BenchTrigger()

    @on(trigger)
    async def handler(reading: Reading, device: str) -> None:
        handled.done()

    async def counts(reading: Reading, device: str) -> None:
        next(ticks)

    ticks = itertools.count()
    function = Function(handler, [trigger], Policy())
    timed: Any = TimedJournal(journal, stages)
    engine = Engine({"handler": function}, timed, SystemClock())
    await engine.start()
    clocks = [time.pthread_getcpuclockid(thread.ident) for thread in threading.enumerate() if "journal" in thread.name and thread.ident]
    receive = stages.timed("receive", lambda: [event() for _ in range(BATCH)])
    deliver = stages.timed("match", engine.deliver)
    binder, captures = function.binders[trigger], trigger.captures(event().subject) or {}

    def bind_all() -> list[Sequence[Any]]:
        return [binder.bind(each, captures, None)[0] for each in [event() for _ in range(BATCH)]]

    rows: list[dict[str, float]] = []
    for _ in range(batches):
        stages.taken.clear()
        thread, loop = sum(map(time.clock_gettime, clocks)), time.thread_time()
        await deliver(receive())
        await handled.wait()
        await journal.flush() if clocks else await asyncio.sleep(0)
        loop, thread = time.thread_time() - loop, sum(map(time.clock_gettime, clocks)) - thread
        taken = dict(stages.taken)
        taken["match"] -= taken["accept"]
        arguments = stages.timed("bind and receive", bind_all)()
        taken["bind"] = max(0.0, stages.taken["bind and receive"] - taken["receive"])
        stages.timed("handler", _run)(counts, arguments)
        taken["handler"] = stages.taken["handler"]
        taken["dispatch"] = loop - sum(taken.values())
        taken["journal"] = thread
        rows.append(taken)
    await engine.stop(5)
    return {name: statistics.median(row[name] for row in rows[len(rows) // 10 :]) / BATCH * 1e6 for name, _ in STAGES}


def _run(handler: Callable[..., Coroutine[Any, Any, None]], rows: Sequence[Sequence[Any]]) -> None:
    for row in rows:
        with suppress(StopIteration):
            handler(*row).send(None)


async def in_memory(batches: int) -> dict[str, float]:
    return await measure(InstantJournal(), batches)


async def durable(batches: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=".") as folder:  # the disk that a journal would be on
        journal = SqliteJournal(Path(folder, "journal.db"), clock=SystemClock())
        await journal.open()
        try:
            return await measure(journal, batches)
        finally:
            await journal.close()


class Table(msgspec.Struct):
    """Microseconds per event, by stage."""

    memory: dict[str, float]
    disk: dict[str, float]
    machine: str
    name: str = "stages"

    def line(self) -> str:
        """As Markdown."""
        rows = ["| stage | what | in memory, µs | with the journal, µs |", "|---|---|---|---|"]
        rows += [f"| {name} | {what} | {self.memory[name]:.2f} | {self.disk[name]:.2f} |" for name, what in STAGES]
        return "\n".join([*rows, f"| all | | {sum(self.memory.values()):.2f} | {sum(self.disk.values()):.2f} |"])


def run(rounds: int) -> Iterator[Table]:
    """rounds: a fifth of BATCHES each, so that the harness's default makes all of them."""
    batches = max(2, rounds * BATCHES // 5)
    yield Table(on_loop(lambda: in_memory(batches)), on_loop(lambda: durable(batches)), machine())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stages", description=__doc__)
    parser.add_argument("--docs", type=Path, required=True, help="the folder of performance.md")
    page = parser.parse_args().docs / "performance.md"
    for table in run(5):
        page.write_text(replace(page.read_text(), table.name, table.line()))


if __name__ == "__main__":
    main()
