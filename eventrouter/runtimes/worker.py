"""What runs in an environment: one invocation after another, each as the router's own attempts run it."""

from __future__ import annotations

import asyncio
import fcntl
import inspect
import os
import resource
import socket
import sys
import termios
import time
import traceback
from array import array
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Final

import msgspec

from eventrouter.batches import PartialFailure
from eventrouter.binding import BatchBinder, Dependencies
from eventrouter.clock import SystemClock
from eventrouter.functions import Collected, Function
from eventrouter.invoking import set_channel
from eventrouter.logs import MAXRSS
from eventrouter.model import Context, Event, Failed, Response
from eventrouter.runtimes.channel import Channel
from eventrouter.runtimes.failures import failure
from eventrouter.runtimes.frames import Answer, Job, Line, Setup, frame
from eventrouter.runtimes.streams import Closed, collect, is_streamed, stepped, with_chunks

# What a handler may raise that ends an attempt, and not its environment.
_ENDS: Final = (Exception, SystemExit, KeyboardInterrupt, asyncio.CancelledError)
_PAUSES: Final = (0.00002, 0.00005, *[0.0002] * 500)  # seconds between two looks whether what was printed has been read
_job = msgspec.msgpack.Decoder(Job).decode


def serve(setup: Setup, app: Collected, line: Line, tokens: socket.socket, answers: int, channel: Channel) -> None:
    """Answer jobs, which come by `line`, until the router ends the line of tokens.

    A job may be begun by whoever reads its token: so the router can take back those that wait here behind one that takes long, and
    send many at once to one that doesn't.
    """
    set_channel(channel)
    worker = _Worker(app, setup, channel)
    give(answers, frame(Answer("ready", None)))
    while token := tokens.recv(1):
        while (data := line.take()) is not None:
            job = _job(data)
            if job.token == token[0]:  # else it was taken back
                break
        else:
            break
        answer = worker.answer(job)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        wait_until_read()
        give(answers, answer)
        del data, job, answer  # a warm environment must not keep the last payload
    worker.close()


def give(answers: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(answers, rest) :]


def wait_until_read() -> None:
    """What was printed must be with the router before it hears that this invocation has ended: it takes it for the next one's else."""
    waiting = array("i", [0])
    for pause in _PAUSES:
        fcntl.ioctl(1, termios.FIONREAD, waiting)
        if not waiting[0]:
            return
        time.sleep(pause)  # some other process that it started may print without end


class _Worker:
    def __init__(self, app: Collected, setup: Setup, channel: Channel) -> None:
        self._function = app.functions[setup.function]
        self._env = setup.env
        self._stops = app.stops
        self._channel = channel
        self._depends = self._function.binders[None].depends
        self._dependencies = Dependencies()
        self._awaits = self._function.is_async or bool(self._depends)
        life = [*app.starts, *app.stops]
        if self._awaits or any(map(inspect.iscoroutinefunction, life)):
            self._loop = asyncio.new_event_loop()
        for start in app.starts:
            self._live(start)
        channel.invocation = None

    def _live(self, function: Callable[[], Any]) -> None:
        """Run an `@on_start` or `@on_stop` function."""
        if inspect.iscoroutinefunction(function):
            self._loop.run_until_complete(function())
        else:
            function()

    def close(self) -> None:
        """Close what lives as long as the environment."""
        self._channel.invocation = ""
        for stop in reversed(self._stops):
            try:
                self._live(stop)
            except Exception:
                traceback.print_exc()
        if self._awaits:
            self._loop.run_until_complete(self._dependencies.close())

    def answer(self, job: Job) -> bytes:
        """The frame that says what became of it."""
        self._channel.invocation = job.id
        answer = self._loop.run_until_complete(self._awaited(job)) if self._awaits else self._called(job)
        self._channel.invocation = None
        if job.report:
            answer.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // MAXRSS
        try:
            return frame(answer)
        except Exception as error:  # of msgspec, or of the handler's own objects when they are read
            return frame(_failed(Failed("Runtime.MarshalError", f"Unable to marshal response: {error}")))

    def _decrypt(self, value: str) -> str:
        answer: str = self._channel.wait("context.decrypt", lambda: self._channel.call("decrypt", args=(value,)))
        return answer

    def _called(self, job: Job) -> Answer:
        try:
            args, kwargs, _, _ = bound(self._function, self._env, job, self._decrypt)
            result = self._function.handler(*args, **kwargs)
            if job.stream and is_streamed(result):
                answer: Answer = self._channel.wait(self._function.name, lambda: self._stream(result))
                return answer
            return _returned(result)
        except _ENDS as error:
            return _raised(error, job)

    async def _awaited(self, job: Job) -> Answer:
        function = self._function
        try:
            args, kwargs, event, context = bound(self._function, self._env, job, self._decrypt)
            async with AsyncExitStack() as stack:
                made = await self._dependencies.resolve(self._depends, stack, event, context)
                result = function.handler(*args, **{**kwargs, **made})
                if function.streams:
                    result = result if job.stream else await collect(result)
                elif function.is_async:
                    result = await result
                return await self._stream(result) if job.stream and is_streamed(result) else _returned(result)
        except _ENDS as error:
            return _raised(error, job)

    async def _stream(self, result: Any) -> Answer:
        """Hand over chunks as they are asked for: the handler goes on when the last one is on its way."""
        head = (result.status, result.headers) if isinstance(result, Response) else None
        whole = with_chunks(result, stepped)
        chunks = whole.body if isinstance(whole, Response) else whole
        try:
            await self._channel.call("", "begin", args=(head,))
            async for chunk in chunks:
                await self._channel.call("", "chunk", args=(chunk,))
        except Closed:
            pass
        finally:
            if close := getattr(chunks, "aclose", None):
                await close()
        return Answer("streamed", None)


def bound(
    function: Function, env: Mapping[str, str], job: Job, decrypt: Callable[[str], str] | None = None
) -> tuple[Any, dict[str, Any], Event, Context]:
    """Its arguments, by place and by name. Raises what is wrong with the event."""
    binder = function.binders[None if job.trigger < 0 else function.triggers[job.trigger]]
    pairs = []
    for packed, captures, attempt in job.events:
        event = Event.unpack(packed)
        event.attempt = attempt
        pairs.append((event, captures))
    event, captures = pairs[0]
    deadline = SystemClock.monotonic() + job.seconds
    context = Context(function.name, job.id, deadline, SystemClock.monotonic, env, event.attempt, decrypt)
    if isinstance(binder, BatchBinder):
        args, kwargs = binder.all([binder.one(event, captures) for event, captures in pairs], context)
    else:
        args, kwargs = binder.bind(event, captures, context)
    return args, kwargs, event, context


def _failed(failed: Failed) -> Answer:
    return Answer("failed", None, failed)


def _returned(result: Any) -> Answer:
    if isinstance(result, Response):
        return Answer("response", (result.body, result.status, result.headers))
    return Answer("returned", result)


def _raised(error: BaseException, job: Job) -> Answer:
    if isinstance(error, PartialFailure) and job.batch:
        return Answer("partial", (error.items, str(error)))
    return _failed(failure(error))
