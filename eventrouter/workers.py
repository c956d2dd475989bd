"""The tasks that run lanes' claims: started where there is work, and kept for a while when there is none, as a new one is dear."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from typing import Any, Final

from eventrouter.lanes import Lane
from eventrouter.lineage import set_cause

_RESTING: Final = 64  # workers, one of a lane; the one that has rested longest goes to another lane, or ends


class Workers:
    """work: what one does for a lane, until it need not `rest`."""

    def __init__(self, work: Callable[[Lane], Coroutine[Any, Any, None]]) -> None:
        self.tasks: set[asyncio.Task[None]] = set()
        self._work = work
        self._resting: dict[Lane, asyncio.Future[Lane | None]] = {}
        self._context = copy_context()

    def begin(self) -> None:
        """What they run sees the context variables of now: who happens to need a worker is no cause of what it will do."""
        self._context = copy_context()

    def start(self, lane: Lane) -> None:
        resting = self._resting.pop(lane, None)
        if resting is None and len(self._resting) == _RESTING:
            resting = self._longest()
        if resting is not None:
            resting.set_result(lane)
            return
        task = asyncio.get_running_loop().create_task(self._work(lane), name="worker", context=self._context.copy())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def rest(self, lane: Lane) -> Lane | None:
        """To be awaited by a worker that finds nothing to do: the lane that has something for it, or it is to end."""
        if lane in self._resting:
            return None
        set_cause(None)
        if len(self._resting) == _RESTING:
            self._longest().set_result(None)
        resting: asyncio.Future[Lane | None] = asyncio.get_running_loop().create_future()
        self._resting[lane] = resting
        return await resting

    def _longest(self) -> asyncio.Future[Lane | None]:
        return self._resting.pop(next(iter(self._resting)))

    async def stop(self) -> None:
        """Wait until all have ended; those at rest do now."""
        for resting in self._resting.values():
            resting.set_result(None)
        self._resting.clear()
        if self.tasks:
            await asyncio.wait(self.tasks)
