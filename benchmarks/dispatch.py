"""In-memory dispatch: match, bind, validate, run under a time-out, settle; against queue workers with `asyncio.timeout`, on both loops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from time import monotonic
from typing import Any

import msgspec

from benchmarks.apps import PAYLOAD, BenchTrigger, Load, Reading, on_loop
from benchmarks.harness import Result, compare
from benchmarks.measure import Measured, Watch, fresh
from eventrouter import on
from eventrouter.clock import SystemClock
from eventrouter.engine import Engine
from eventrouter.functions import Function, Policy
from eventrouter.journal.protocol import Claim, Ledger, Note
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

    def finish(self, claims: Sequence[Claim], ledger: Ledger | None = None) -> None: ...

    def settle(
        self,
        claim: Claim,
        decision: Decision,
        copies: Sequence[Claim] = (),
        notes: Sequence[Note] = (),
        ledger: Ledger | None = None,
    ) -> None: ...

    async def depth(self) -> dict[str, dict[str, int]]:
        return {}


def ours(count: int, loop: str) -> Measured:
    async def main() -> Measured:
        load = Load(count)

        @on(BenchTrigger())
        async def handler(reading: Reading, device: str) -> None:
            load.done()

        journal: Any = InstantJournal()
        engine = Engine({"handler": Function(handler, [BenchTrigger()], Policy())}, journal, SystemClock())
        await engine.start()
        with Watch() as watch:
            await load.run(engine.deliver)
        await engine.stop(5)
        return watch.rate(count)

    return on_loop(main, loop)


def limit(count: int, loop: str) -> Measured:
    decode = msgspec.json.Decoder(Reading).decode

    async def handler(reading: Reading, device: str) -> None: ...

    async def worker(queue: asyncio.Queue[bytes]) -> None:
        while True:
            data = await queue.get()
            async with asyncio.timeout(3):
                await handler(decode(data), "kitchen")
            queue.task_done()

    async def main() -> Measured:
        queue: asyncio.Queue[bytes] = asyncio.Queue(4096)
        workers = [asyncio.create_task(worker(queue)) for _ in range(8)]
        with Watch() as watch:
            for _ in range(count):
                await queue.put(PAYLOAD)
            await queue.join()
        for task in workers:
            task.cancel()
        return watch.rate(count)

    return on_loop(main, loop)


def run(rounds: int) -> Iterator[Result]:
    for name, loop in (("dispatch", "asyncio"), ("dispatch-uvloop", "uvloop")):
        yield compare(
            name, "events/s", fresh(f"{__name__}:ours", count=COUNT, loop=loop), fresh(f"{__name__}:limit", count=COUNT, loop=loop),
            rounds=rounds, against=f"asyncio.Queue workers with asyncio.timeout, both on {loop}'s loop",
        )  # fmt: skip
