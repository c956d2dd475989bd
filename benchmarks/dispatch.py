"""In-memory dispatch: match, bind, validate, run under a time-out, settle; against queue workers with `asyncio.timeout`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from time import monotonic
from typing import Any

import msgspec

from benchmarks.apps import PAYLOAD, BenchTrigger, Load, Reading, per_second
from benchmarks.harness import Result, compare
from eventrouter import on
from eventrouter.clock import SystemClock
from eventrouter.engine import Engine
from eventrouter.functions import Function, Policy
from eventrouter.journal.protocol import Claim, Note
from eventrouter.model import Decision

COUNT = 409_600


class InstantJournal:
    """A journal that keeps nothing, so that only the engine is measured."""

    def __init__(self) -> None:
        self._claims: list[Claim] = []
        self._any = asyncio.Event()

    def accept(self, entries: Sequence[Claim]) -> asyncio.Future[list[bool]]:
        self._claims += entries
        now = monotonic()
        for claim in entries:
            claim.born = now
        self._any.set()
        done: asyncio.Future[list[bool]] = asyncio.get_running_loop().create_future()
        done.set_result([True] * len(entries))
        return done

    async def claims(self) -> list[Claim]:
        await self._any.wait()
        self._any.clear()
        claims, self._claims = self._claims, []
        return claims

    def want(self, function: str, count: int) -> None: ...

    def started(self, claim: Claim) -> None: ...

    def marker(self) -> Callable[[Claim | None], None]:
        return lambda claim: None

    def finish(self, claims: Sequence[Claim]) -> None: ...

    def settle(self, claim: Claim, decision: Decision, entries: Sequence[Claim] = (), notes: Sequence[Note] = ()) -> None: ...

    async def depth(self) -> dict[str, dict[str, int]]:
        return {}


async def ours() -> None:
    load = Load(COUNT)

    @on(BenchTrigger())
    async def handler(reading: Reading, device: str) -> None:
        load.done()

    journal: Any = InstantJournal()
    engine = Engine({"handler": Function(handler, [BenchTrigger()], Policy())}, journal, SystemClock())
    await engine.start()
    await load.run(engine.deliver)
    await engine.stop(5)


async def limit() -> None:
    decode = msgspec.json.Decoder(Reading).decode
    queue: asyncio.Queue[bytes] = asyncio.Queue(4096)
    seen = 0

    async def handler(reading: Reading, device: str) -> None:
        nonlocal seen
        seen += 1

    async def worker() -> None:
        while True:
            data = await queue.get()
            async with asyncio.timeout(3):
                await handler(decode(data), "kitchen")
            queue.task_done()

    workers = [asyncio.create_task(worker()) for _ in range(8)]
    for _ in range(COUNT):
        await queue.put(PAYLOAD)
    await queue.join()
    for task in workers:
        task.cancel()


def run(rounds: int) -> Iterator[Result]:
    yield compare(
        "dispatch", "events/s", lambda: per_second(COUNT, ours), lambda: per_second(COUNT, limit),
        rounds=rounds, against="asyncio.Queue workers with asyncio.timeout",
    )  # fmt: skip
