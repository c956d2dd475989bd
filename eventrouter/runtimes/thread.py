"""Runs `def` handlers in threads. A thread can't be stopped: past its deadline it is left to end by itself."""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_Job = tuple[contextvars.Context, Callable[[], Any], "asyncio.Future[Any]"]


class ThreadRuntime:
    """As many threads as run at once, reused. They are daemons: one that never ends can't hold the exit."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._idle = 0  # threads waiting for a job, less the jobs waiting for a thread
        self._threads = 0

    async def run(self, handler: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Cancelled, it still waits for the thread to end, as the handler can't be asked to."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()
        self._idle -= 1
        if self._idle < 0:
            self._threads += 1
            self._idle += 1
            threading.Thread(target=self._serve, args=(loop,), name=f"handler-{self._threads}", daemon=True).start()
        self._jobs.put((contextvars.copy_context(), lambda: handler(*args, **kwargs), done))
        cancelled: asyncio.CancelledError | None = None
        while not done.done():
            try:
                await asyncio.wait((done,))
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            done.exception()  # seen
            raise cancelled
        return done.result()

    def close(self) -> None:
        for _ in range(self._threads):
            self._jobs.put(None)

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        while (job := self._jobs.get()) is not None:
            context, call, done = job
            result, error = None, None
            try:
                result = context.run(call)
            except (Exception, SystemExit) as raised:
                # A future can't carry StopIteration: it would end the coroutine that awaits it.
                error = RuntimeError(f"handler raised StopIteration: {raised}") if isinstance(raised, StopIteration) else raised
            try:
                loop.call_soon_threadsafe(self._finish, done, result, error)
            except RuntimeError:
                return  # the loop is closed: the router left this thread behind
            del job, context, call, done, result, error  # a waiting thread must not keep the last event alive

    def _finish(self, done: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        self._idle += 1
        if done.done():
            return
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)
