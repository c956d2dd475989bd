"""What the benchmarks' apps have in common: a 300-byte reading, a trigger and a source to deliver it by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any, TypeVar

from benchmarks.payload import PAYLOAD, Reading
from eventrouter import App, Event, Plugin, Source, Trigger, Wild
from eventrouter.clock import Clock
from eventrouter.config import load_config
from eventrouter.plugins import Plugins

__all__ = ["PAYLOAD", "BenchSource", "BenchTrigger", "Load", "Reading", "event", "make_app", "on_loop", "per_second"]

T = TypeVar("T")


class BenchTrigger(Trigger):
    source = "bench"
    names = ("device",)

    def __init__(self, kind: str = "temperature") -> None:
        self.path = ("sensors", Wild.ONE, kind)

    def captures(self, subject: str) -> Mapping[str, str] | None:
        return {"device": subject.split("/")[1]}


class BenchSource(Source[None]):
    name = "bench"


def event(kind: str = "temperature") -> Event:
    return Event("bench", "bench.reading", f"sensors/kitchen/{kind}", PAYLOAD)


def make_app(folder: Path, *handlers: Callable[..., Any], more: Sequence[Plugin] = (), clock: Clock | None = None) -> App:
    plugins = Plugins([Plugin(name="bench", source="benchmarks.apps:BenchSource", always=True), *more])
    module = ModuleType("handlers")
    vars(module).update({handler.__name__: handler for handler in handlers})
    return App(module, config=load_config(plugins.by_name, folder=folder), plugins=plugins, clock=clock)


class Load:
    """Delivers `count` events in batches, as a source reads them, with a bounded number under way."""

    def __init__(self, count: int, batch: int = 256, under_way: int = 4096) -> None:
        self._count = count
        self._batch = batch
        self._free = asyncio.Semaphore(under_way // batch)
        self._done = 0
        self._all_done = asyncio.Event()

    def done(self, count: int = 1) -> None:
        """To be called by the handler, or by who counts for it."""
        before, self._done = self._done // self._batch, self._done + count
        for _ in range(before, self._done // self._batch):
            self._free.release()
        if self._done == self._count:
            self._all_done.set()

    async def run(
        self, deliver: Callable[[Sequence[Event]], asyncio.Future[int]], make: Callable[[int], Sequence[Event]] | None = None
    ) -> None:
        """Until all are handled. make: the events for a number of invocations; None: one of the same for each."""
        receipts, kind = [], "temperature"
        for _ in range(self._count // self._batch):
            await self._free.acquire()
            receipts.append(
                deliver(
                    make(self._batch)
                    if make is not None
                    else [Event("bench", "bench.reading", f"sensors/kitchen/{kind}", PAYLOAD) for _ in range(self._batch)]
                )
            )
            await asyncio.sleep(0)  # as a source, which the loop calls with what has come
        await asyncio.gather(*receipts)
        await self._all_done.wait()


def on_loop(main: Callable[[], Coroutine[Any, Any, T]], loop: str | None = None) -> T:
    """Run `main` on a fresh loop: "asyncio", "uvloop", or None: uvloop when it is installed."""
    if loop != "asyncio":
        try:
            import uvloop
        except ImportError:
            if loop:
                raise
        else:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(main())
    return asyncio.run(main())


def per_second(count: int, main: Callable[[], Coroutine[Any, Any, None]], loop: str | None = None) -> float:
    """Run `main` on such a loop; events a second."""

    async def timed() -> float:
        began = perf_counter()
        await main()
        return count / (perf_counter() - began)

    return on_loop(timed, loop)
