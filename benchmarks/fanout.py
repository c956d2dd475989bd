"""One event for ten functions, against ten events for one of them each: what both come to is the same ten invocations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.apps import BenchTrigger, Load, Reading, event, make_app, on_loop
from benchmarks.dispatch import InstantJournal
from benchmarks.harness import Result, compare
from benchmarks.measure import Measured, Watch, fresh
from benchmarks.servers import folder
from eventrouter import Event, on
from eventrouter.clock import SystemClock
from eventrouter.engine import Engine
from eventrouter.functions import Function, Policy

FUNCTIONS = 10
COUNT = 40_960  # of invocations
BATCH = 640  # of them
KINDS = [f"kind-{number}" for number in range(FUNCTIONS)]


def handlers(load: Load, fan_out: bool) -> list[Callable[..., Any]]:
    """Ten functions that want the same events, or one kind of events each."""

    def made(kind: str) -> Callable[..., Any]:
        async def handler(reading: Reading, device: str) -> None:
            load.done()

        handler.__name__ = kind.replace("-", "_")
        return on(BenchTrigger("temperature" if fan_out else kind))(handler)

    return [made(kind) for kind in KINDS]


def one_for_all(invocations: int) -> Sequence[Event]:
    return [event() for _ in range(invocations // FUNCTIONS)]


def one_for_each(invocations: int) -> Sequence[Event]:
    return [event(kind) for _ in range(invocations // FUNCTIONS) for kind in KINDS]


def in_memory(count: int, fan_out: bool) -> Measured:
    async def main() -> Measured:
        load = Load(count, BATCH)
        journal: Any = InstantJournal()
        made = zip(KINDS, handlers(load, fan_out), strict=True)
        functions = {kind: Function(of, [BenchTrigger("temperature" if fan_out else kind)], Policy(name=kind)) for kind, of in made}
        engine = Engine(functions, journal, SystemClock())
        await engine.start()
        with Watch() as watch:
            await load.run(engine.deliver, one_for_all if fan_out else one_for_each)
        await engine.stop(5)
        return watch.rate(count)

    return on_loop(main)


def durable(count: int, fan_out: bool) -> Measured:
    async def main() -> Measured:
        load = Load(count, BATCH)
        with folder() as place:
            async with make_app(place, *handlers(load, fan_out)) as app:
                with Watch() as watch:
                    await load.run(app.engine.deliver, one_for_all if fan_out else one_for_each)
                    await app.journal.flush()
        return watch.rate(count)

    return on_loop(main)


def run(rounds: int) -> Iterator[Result]:
    for name, measure in (("fanout", "durable"), ("fanout-memory", "in_memory")):
        ours, limit = (fresh(f"{__name__}:{measure}", count=COUNT, fan_out=fan_out) for fan_out in (True, False))
        yield compare(name, "invocations/s", ours, limit, rounds=rounds, against=f"{FUNCTIONS} events for one function each")
