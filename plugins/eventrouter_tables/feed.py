"""Follows the log of a SQLite database: looks whether it has grown, and hands over what is new."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from eventrouter_tables.delivery import Delivery
from eventrouter_tables.sqlite import Log

R = TypeVar("R")
_SOONEST, _LATEST = 0.02, 0.2  # seconds between looks: just after a change, and after a while without
_AT_ONCE = 500  # changes
_TRIM = 3600.0  # seconds


class SqliteFeed:
    def __init__(self, path: str, delivery: Delivery) -> None:
        self._path = path
        self._delivery = delivery
        self._names = list(dict.fromkeys(feed.table for feed in delivery.feeds))
        self._look = asyncio.Event()
        self._executor: ThreadPoolExecutor | None = None

    def line(self) -> str:
        return f"tables {', '.join(self._names)} of {self._path}"

    def nudge(self) -> None:
        self._look.set()

    async def _call(self, do: Callable[..., R], *args: Any) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._executor, do, *args)

    async def follow(self, tell: Callable[[str], None]) -> None:
        # One thread: it is never in the connection twice, even when this task is cancelled meanwhile.
        self._executor = executor = ThreadPoolExecutor(1, "tables")
        log: Log | None = None
        try:
            log = await self._call(Log, self._path)
            await self._follow(log, tell)
        finally:
            if log is not None:
                executor.submit(log.close)
            executor.shutdown(wait=False)

    async def _follow(self, log: Log, tell: Callable[[str], None]) -> None:
        clock, begun, pause, trimmed = self._delivery.router.clock, False, _SOONEST, 0.0
        while True:
            if await self._call(log.changed) or not begun:
                faults = await self._call(log.prepare, self._names)
                if not begun:
                    await self._begin(log)
                    begun = True
                await self._drain(log)
                tell("; ".join(faults.values()))
                pause = _SOONEST
            if clock.monotonic() - trimmed > _TRIM:
                await self._call(log.trim)
                trimmed = clock.monotonic()
            timer = clock.call_later(pause, self._look.set)
            try:
                await self._look.wait()
            finally:
                timer.cancel()
            self._look.clear()
            pause = min(pause * 1.5, _LATEST)

    async def _begin(self, log: Log) -> None:
        progress, warn = await self._delivery.load(), self._delivery.router.log.warning
        head = await self._call(log.head)
        if progress.prefix not in (0, log.stream.prefix) or progress.position > head:
            warn("%s is another database than before, or an older copy: all changes that it has written down are taken as new", self._path,
                 extra={"action": "tables.another", "source": "tables"})  # fmt: skip
            progress.position, progress.since = 0, dict.fromkeys(progress.since, 0)
            progress.generation += 1
        elif lost := await self._call(log.trimmed, progress.position) if progress.since else 0:
            warn("%s: %d changes are lost: they were older than a day when the router came back", self._path, lost,
                 extra={"action": "tables.trimmed", "source": "tables", "count": lost})  # fmt: skip
        progress.prefix = log.stream.prefix
        await self._delivery.begin(head)

    async def _drain(self, log: Log) -> None:
        delivery = self._delivery
        while rows := await self._call(log.read, delivery.progress.position, _AT_ONCE):
            named = {row.table for row in rows}  # also of tables that have been dropped meanwhile
            wanted = {name: [feed for feed in delivery.feeds if feed.table.lower() == name.lower()] for name in named}
            await delivery.deliver(rows, wanted, delivery.progress.apart(log.stream))
            delivery.progress.position = rows[-1].position
            delivery.router.crash_point("ack.before")
            await delivery.save()
            delivery.router.crash_point("ack.after")
