"""`python -m benchmarks.guard [--renew]`: counts the instructions of the hot path and compares them with those of guard.json.

Counted are Python's bytecodes, of all threads, and the steps of SQLite's virtual machine, per event. Neither depends on how fast or busy
the machine is or how Python was compiled, but the bytecodes do on Python's minor version: each has its own figures. What is more than 10 %
off, to either side, is told and ends it with 1. A version without figures is told, too, and ends it with 0.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import socket
import statistics
import sys
import tempfile
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from math import inf
from pathlib import Path
from types import FrameType
from typing import Any, Final

import apsw
import msgspec

import eventrouter
import eventrouter_http
from benchmarks.apps import BenchTrigger, Reading, event, make_app
from benchmarks.dispatch import InstantJournal
from benchmarks.served import post
from eventrouter import accounts, on
from eventrouter.clock import ManualClock
from eventrouter.engine import Engine
from eventrouter.functions import Function, Policy
from eventrouter_http import eventrouter_plugin
from eventrouter_http import http as http_trigger
from eventrouter_http.source import HttpSource

STORED: Final = Path(__file__).with_suffix(".json")
VERSION: Final = "{}.{}".format(*sys.version_info)
BATCH: Final = 64  # events
BATCHES: Final = 24  # that are counted; the median is taken, as a timer may fall into any
WARM: Final = 4  # before them: caches, and the code that is specialised
MOST: Final = 0.10  # that a figure may be off

OURS: Final = tuple(str(Path(module.__file__ or "").parent) for module in (eventrouter, eventrouter_http))  # where our code is
UNITS: Final = ("bytecodes of ours", "bytecodes in all", "steps of SQLite")

Counts = dict[str, float]  # per event, by "path: unit"


class Counter:
    """Counts what runs between `start` and `stop`."""

    def __init__(self) -> None:
        self._ours, self._rest = itertools.count(), itertools.count()  # which threads may share
        self._steps = 0
        self._batches: list[Sequence[int]] = []

    def start(self) -> None:
        self._began = self._read()

    def stop(self) -> None:
        self._batches.append([now - before for now, before in zip(self._read(), self._began, strict=True)])

    def _read(self) -> Sequence[int]:
        ours = next(self._ours)
        return ours, ours + next(self._rest), self._steps

    def run(self, main: Callable[[], Coroutine[Any, Any, None]]) -> list[float]:
        """Per event of the median batch, by UNITS. On asyncio's own loop: what uvloop does can't be seen."""
        sys._getframe().f_trace_opcodes = True  # without it Python 3.12 does not tell of any, as it was not asked for when tracing began
        threading.settrace(self._called)
        sys.settrace(self._called)
        apsw.connection_hooks.append(self._opened)
        try:
            asyncio.run(main())
        finally:
            apsw.connection_hooks.remove(self._opened)
            sys.settrace(None)
            threading.settrace(None)
        return [statistics.median(counts) / BATCH for counts in zip(*self._batches[WARM:], strict=True)]

    def _called(self, frame: FrameType, what: str, about: Any) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._ran_ours if frame.f_code.co_filename.startswith(OURS) else self._ran_else

    def _ran_ours(self, frame: FrameType, what: str, about: Any) -> Any:
        if what == "opcode":
            next(self._ours)
        return self._ran_ours

    def _ran_else(self, frame: FrameType, what: str, about: Any) -> Any:
        if what == "opcode":
            next(self._rest)
        return self._ran_else

    def _opened(self, connection: apsw.Connection) -> None:
        connection.trace_v2(apsw.SQLITE_TRACE_PROFILE, self._stepped)

    def _stepped(self, profile: dict[str, Any]) -> None:
        self._steps += profile["stmt_status"]["SQLITE_STMTSTATUS_VM_STEP"]


class Handled:
    """Tells when a batch has been handled."""

    def __init__(self) -> None:
        self._left = BATCH
        self._all = asyncio.Event()

    def done(self) -> None:
        self._left -= 1
        if not self._left:
            self._all.set()

    async def wait(self) -> None:
        await self._all.wait()
        self._all.clear()
        self._left = BATCH


async def dispatch(counter: Counter) -> None:
    """In memory: match, decode, run under the time-out, settle."""
    handled = Handled()

    @on(BenchTrigger())
    async def handler(reading: Reading, device: str) -> None:
        handled.done()

    clock = ManualClock()  # traced, all is slow: a turn would end by its time, here or there
    journal: Any = InstantJournal(now=clock.monotonic)
    engine = Engine({"handler": Function(handler, [BenchTrigger()], Policy())}, journal, clock)
    await engine.start()
    for _ in range(WARM + BATCHES):
        counter.start()
        await engine.deliver([event() for _ in range(BATCH)])
        await handled.wait()
        await asyncio.sleep(0)
        counter.stop()
    await engine.stop(5)


async def durable(counter: Counter) -> None:
    """The same with the journal, until the batch is done with on the disk; one step after the other, as commits would vary otherwise."""
    handled = Handled()

    @on(BenchTrigger())
    async def handler(reading: Reading, device: str) -> None:
        handled.done()

    with tempfile.TemporaryDirectory() as folder:
        async with make_app(Path(folder), handler, clock=ManualClock()) as app:
            for _ in range(WARM + BATCHES):
                counter.start()
                await app.engine.deliver([event() for _ in range(BATCH)])
                await handled.wait()
                await app.journal.flush()
                counter.stop()


async def http(counter: Counter) -> None:
    """Requests on one connection. The client is on the same loop and counted: of a thread's, the pace would vary.

    What they have used is not written meanwhile: how often that falls into a batch depends on the machine's speed.
    """
    accounts._EVERY = inf  # type: ignore[misc]

    @on(http_trigger("POST /readings/{device}"))
    async def handler(reading: Reading, device: str) -> dict[str, str]:
        return {"device": device}

    loop, request = asyncio.get_running_loop(), post("/readings/kitchen")
    with tempfile.TemporaryDirectory() as folder, socket.socket() as client:
        client.setblocking(False)
        Path(folder, "eventrouter.toml").write_text("[http]\nport = 0\n")  # noqa: ASYNC240  # nothing else runs yet
        async with make_app(Path(folder), handler, more=[eventrouter_plugin()]) as app:
            source = app.sources["http"]
            assert isinstance(source, HttpSource)
            await loop.sock_connect(client, ("127.0.0.1", int(source.url.rpartition(":")[2])))
            for _ in range(WARM + BATCHES):
                counter.start()
                for _ in range(BATCH):
                    await loop.sock_sendall(client, request)
                    answer = await loop.sock_recv(client, 65_536)  # a small one comes at once
                    if not answer.startswith(b"HTTP/1.1 200"):
                        raise RuntimeError(f"unexpected answer: {answer!r}")
                counter.stop()


PATHS: Final = {"dispatch": dispatch, "durable": durable, "http": http}


def count() -> Counts:
    counts: Counts = {}
    for name, path in PATHS.items():
        counter = Counter()
        for unit, figure in zip(UNITS, counter.run(partial(path, counter)), strict=True):
            if figure:
                counts[f"{name}: {unit}"] = round(figure, 2)
    return counts


def compare(counts: Counts, stored: Mapping[str, Counts], version: str = VERSION) -> tuple[list[str], bool]:
    """A line for each figure, and whether all are near what is stored for this version of Python."""
    renew = f"keep what is counted now with: python{version} -m benchmarks.guard --renew"
    known = stored.get(version)
    if known is None:
        return [f"guard: no figures are stored for Python {version}; {renew}"], True
    lines, good = [], True
    for name in {**known, **counts}:
        old, new = known.get(name, 0), counts.get(name, 0)
        line = f"{name}: {new:g} per event, {old:g} stored for Python {version}"
        if abs(new - old) > MOST * old:
            good = False
            line += f", more than {MOST:.0%} off: find out why; if it is meant, {renew}"
        lines.append(line)
    return lines, good


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guard", description=__doc__)
    parser.add_argument("--renew", action="store_true", help="keep what is counted now, for this version of Python")
    given = parser.parse_args()
    stored = msgspec.json.decode(STORED.read_bytes(), type=dict[str, Counts]) if STORED.exists() else {}
    counts = count()
    lines, good = compare(counts, stored)
    if given.renew:
        kept = {**stored, VERSION: counts}
        STORED.write_bytes(msgspec.json.format(msgspec.json.encode(kept, order="sorted"), indent=2) + b"\n")
        lines, good = [f"{name}: {figure:g} per event is kept for Python {VERSION}" for name, figure in counts.items()], True
    print("\n".join(lines))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
