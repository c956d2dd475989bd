"""In-memory dispatch: match, bind, validate, run under a time-out, settle; against queue workers with `asyncio.timeout`, on both loops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
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
from eventrouter.journal.protocol import Claim, Fresh, Ledger, Note
from eventrouter.model import Decision

COUNT = 409_600


class InstantJournal:
    """A journal that keeps nothing, so that only the engine is measured. done: called with how many have succeeded at once."""

    def __init__(self, done: Callable[[int], None] = lambda count: None, now: Callable[[], float] = monotonic) -> None:
        self._done = done
        self._now = now
        self._claims: list[Claim] = []
        self._any = asyncio.Event()

    def accept(self, entries: Sequence[Claim], told: Fresh = list) -> asyncio.Future[Any]:
        self._claims += entries
        now = self._now()
        for claim in entries:
            claim.born = now
        self._any.set()
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        done.set_result(told([True] * len(entries)))
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

    def finish(self, claims: Sequence[Claim], ledger: Ledger | None = None) -> None:
        self._done(len(claims))

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


async def raw(data: bytes, device: str) -> None:
    """Takes the payload as it came."""


async def validated(reading: Reading, device: str) -> None:
    """Has it read and validated."""


HANDLERS: dict[str, Callable[[Any, str], Coroutine[Any, Any, None]]] = {"raw": raw, "validated": validated}


def ours(count: int, loop: str, kind: str) -> Measured:
    async def main() -> Measured:
        load = Load(count)
        handler = on(BenchTrigger())(HANDLERS[kind])
        journal: Any = InstantJournal(load.done)
        engine = Engine({"handler": Function(handler, [BenchTrigger()], Policy())}, journal, SystemClock())
        await engine.start()
        with Watch() as watch:
            await load.run(engine.deliver)
        await engine.stop(5)
        return watch.rate(count)

    return on_loop(main, loop)


def limit(count: int, loop: str, kind: str) -> Measured:
    decode = msgspec.json.Decoder(Reading).decode if kind == "validated" else None
    handler = HANDLERS[kind]

    async def worker(queue: asyncio.Queue[bytes]) -> None:
        while True:
            data = await queue.get()
            async with asyncio.timeout(3):
                await handler(data if decode is None else decode(data), "kitchen")
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
    for loop in ("asyncio", "uvloop"):
        for kind in HANDLERS:
            name = "-".join(["dispatch", *([kind] if kind != "raw" else []), *([loop] if loop != "asyncio" else [])])
            yield compare(
                name, "events/s", fresh(f"{__name__}:ours", count=COUNT, loop=loop, kind=kind),
                fresh(f"{__name__}:limit", count=COUNT, loop=loop, kind=kind),
                rounds=rounds, against=f"asyncio.Queue workers with asyncio.timeout, both on {loop}'s loop",
            )  # fmt: skip
