"""Isolated handlers: warm round trips with 64 outstanding, against ProcessPoolExecutor with as many processes; cold starts; and warm ones
one after another, against the same bytes over a bare socket pair, and beside AWS's own client, which speaks the Runtime API to us."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import msgspec

from benchmarks.apps import PAYLOAD, on_loop
from benchmarks.harness import Result, compare
from benchmarks.measure import ROOT, Measured, Watch, fresh
from eventrouter import App, Event, on
from eventrouter.config import load_config
from eventrouter.model import Succeeded
from eventrouter.plugins import Plugins

COUNT = 30_000
ONE_BY_ONE = 3_000
OUTSTANDING = 64
COLD = 40


@on(isolation="process")
def echo(payload: bytes) -> bytes:
    return payload


def _another(name: str) -> Callable[[bytes], bytes]:
    def cold(payload: bytes) -> bytes:
        return payload

    return on(isolation="process", name=name)(cold)


vars().update({name: _another(name) for name in (f"cold{number}" for number in range(COLD))})


def plain(payload: bytes) -> bytes:
    return payload


async def _load(call: Callable[[], Coroutine[Any, Any, bytes]], count: int) -> Measured:
    """Round trips a second, `OUTSTANDING` of them under way."""
    left = iter(range(count))

    async def caller() -> None:
        for _ in left:
            assert await call() == PAYLOAD

    await asyncio.gather(*(call() for _ in range(OUTSTANDING)))  # so that all processes are warm
    with Watch() as watch:
        await asyncio.gather(*(caller() for _ in range(OUTSTANDING)))
    return watch.rate(count)


def _app(folder: str, processes: int, toml: str = "") -> App:
    """toml: more of its configuration."""
    file = Path(folder) / "eventrouter.toml"
    file.write_text(f"[app]\nprocesses = {processes}\n[journal]\nurl = 'memory'\n{toml}")
    plugins = Plugins([])
    return App("benchmarks.process", config=load_config(plugins.by_name, file=file), plugins=plugins, folder=ROOT)


async def _invoke(app: App, name: str = "echo") -> Any:
    outcome = await app.run_now(name, Event("invoke", "lambda.invoke", name, PAYLOAD), {})
    assert isinstance(outcome, Succeeded), outcome
    return outcome.result


def ours(count: int, processes: int) -> Measured:
    async def main() -> Measured:
        with TemporaryDirectory() as folder:
            async with _app(folder, processes) as app:
                return await _load(lambda: _invoke(app), count)

    return on_loop(main)


def limit(count: int, processes: int) -> Measured:
    async def main() -> Measured:
        loop = asyncio.get_running_loop()
        with ProcessPoolExecutor(processes) as pool:

            async def call() -> bytes:
                return await loop.run_in_executor(pool, plain, PAYLOAD)

            return await _load(call, count)

    return on_loop(main)


def warm(count: int) -> Measured:
    """One round trip after another."""

    async def main() -> Measured:
        with TemporaryDirectory() as folder:
            async with _app(folder, 1) as app:
                return await _warm(lambda number: _invoke(app), count)

    return on_loop(main)


def awslambdaric(count: int) -> Measured:
    """The same of AWS's client, which reads and writes JSON, and gets an object, as it does on Lambda."""

    async def main() -> Measured:
        with TemporaryDirectory() as folder:
            (Path(folder) / "handlers.py").write_text("def echo(event, context):\n    return event\n")
            toml = "[functions.ric]\nruntime = 'python'\nhandler = 'handlers.echo'\ntimeout = 60\n"
            async with _app(folder, 1, toml) as app:

                async def call(number: int) -> bytes:
                    assert await _invoke(app, "ric") == msgspec.json.decode(PAYLOAD)
                    return PAYLOAD

                return await _warm(call, count)

    return on_loop(main)


def cold(count: int) -> Measured:
    """The first round trip of so many functions, one after the other."""

    async def main() -> Measured:
        with TemporaryDirectory() as folder:
            async with _app(folder, count) as app:
                return await _one_by_one(lambda number: _invoke(app, f"cold{number}"), count)

    return on_loop(main)


def cold_limit(count: int) -> Measured:
    """The first round trip of so many executors with one process each."""

    async def main() -> Measured:
        loop = asyncio.get_running_loop()
        with ExitStack() as stack:
            pools = [stack.enter_context(ProcessPoolExecutor(1)) for _ in range(count)]
            return await _one_by_one(lambda number: loop.run_in_executor(pools[number], plain, PAYLOAD), count)

    return on_loop(main)


async def _warm(call: Callable[[int], Awaitable[bytes]], count: int) -> Measured:
    await _one_by_one(call, 100)
    return await _one_by_one(call, count)


async def _one_by_one(call: Callable[[int], Awaitable[bytes]], count: int) -> Measured:
    taken = []
    for number in range(count):
        began = perf_counter()
        assert await call(number) == PAYLOAD
        taken.append((perf_counter() - began) * 1000)
    return Measured(count / sum(taken) * 1000, latencies=taken)


def run(rounds: int) -> Iterator[Result]:
    processes = 4 * (os.cpu_count() or 1)
    yield compare(
        "process", "round trips/s",
        fresh(f"{__name__}:ours", count=COUNT, processes=processes),
        fresh(f"{__name__}:limit", count=COUNT // 5, processes=processes),
        rounds=rounds, against=f"ProcessPoolExecutor, both with {processes} processes and {OUTSTANDING} outstanding",
    )  # fmt: skip
    yield compare(
        "process-warm", "round trips/s", fresh(f"{__name__}:warm", count=ONE_BY_ONE), fresh("benchmarks.calls:limit", count=ONE_BY_ONE),
        rounds=rounds, against="the same bytes to and fro over a bare socket pair",
        peers={"awslambdaric": fresh(f"{__name__}:awslambdaric", count=ONE_BY_ONE // 5)},
    )  # fmt: skip
    yield compare(
        "process-cold", "starts/s", fresh(f"{__name__}:cold", count=COLD), fresh(f"{__name__}:cold_limit", count=COLD),
        rounds=rounds, against="a fresh ProcessPoolExecutor for each, one after the other",
    )  # fmt: skip
