"""What runs in an environment: one invocation after another, each as the router's own attempts run it."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any, Final

import msgspec

from eventrouter.batches import PartialFailure
from eventrouter.binding import BatchBinder, Dependencies
from eventrouter.clock import SystemClock
from eventrouter.functions import Function
from eventrouter.model import Context, Event, Failed, Response
from eventrouter.runtimes.failures import failure
from eventrouter.runtimes.frames import Answer, Job, Line, frame

# What a handler may raise that ends an attempt, and not its environment.
_ENDS: Final = (Exception, SystemExit, KeyboardInterrupt, asyncio.CancelledError)
_job = msgspec.msgpack.Decoder(Job).decode
_MEGABYTE: Final = 1024 * 1024 if sys.platform == "darwin" else 1024  # in the unit of ru_maxrss


def serve(function: Function, env: Mapping[str, str], line: Line, tokens: socket.socket, answers: int) -> None:
    """Answer jobs, which come by `line`, until the router ends the line of tokens. env: what `context.env` holds.

    A job may be begun by whoever reads its token: so the router can take back those that wait here behind one that takes long, and
    send many at once to one that doesn't.
    """
    worker = _Worker(function, env)
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
        give(answers, answer)
        del data, job, answer  # a warm environment must not keep the last payload
    worker.close()


def give(answers: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(answers, rest) :]


class _Worker:
    def __init__(self, function: Function, env: Mapping[str, str]) -> None:
        self._function = function
        self._env = env
        self._depends = function.binders[None].depends
        self._dependencies = Dependencies()
        self._awaits = function.is_async or bool(self._depends)
        if self._awaits:
            self._loop = asyncio.new_event_loop()

    def close(self) -> None:
        """Close what lives as long as the environment."""
        if self._awaits:
            self._loop.run_until_complete(self._dependencies.close())

    def answer(self, job: Job) -> bytes:
        """The frame that says what became of it."""
        answer = self._loop.run_until_complete(self._awaited(job)) if self._awaits else self._called(job)
        if job.report:
            answer.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // _MEGABYTE
        try:
            return frame(answer)
        except Exception as error:  # of msgspec, or of the handler's own objects when they are read
            return frame(_failed(Failed("Runtime.MarshalError", f"Unable to marshal response: {error}")))

    def _called(self, job: Job) -> Answer:
        try:
            args, kwargs, _, _ = bound(self._function, self._env, job)
            return _returned(self._function.handler(*args, **kwargs))
        except _ENDS as error:
            return _raised(error, job)

    async def _awaited(self, job: Job) -> Answer:
        try:
            args, kwargs, event, context = bound(self._function, self._env, job)
            async with AsyncExitStack() as stack:
                made = await self._dependencies.resolve(self._depends, stack, event, context)
                result = self._function.handler(*args, **{**kwargs, **made})
                return _returned(await result if self._function.is_async else result)
        except _ENDS as error:
            return _raised(error, job)


def bound(function: Function, env: Mapping[str, str], job: Job) -> tuple[Any, dict[str, Any], Event, Context]:
    """Its arguments, by place and by name. Raises what is wrong with the event."""
    binder = function.binders[None if job.trigger < 0 else function.triggers[job.trigger]]
    pairs = []
    for packed, captures, attempt in job.events:
        event = Event.unpack(packed)
        event.attempt = attempt
        pairs.append((event, captures))
    event, captures = pairs[0]
    deadline = SystemClock.monotonic() + job.seconds
    context = Context(function.name, job.id, deadline, SystemClock.monotonic, env, event.attempt)
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
