"""What the router knows of the environments: which function's, what each runs and has been sent, and its ends of the lines to it."""

from __future__ import annotations

import asyncio
import contextvars
import os
import socket
import sys
from codecs import getincrementaldecoder
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from eventrouter.batches import PartialFailure
from eventrouter.errors import EventRouterError
from eventrouter.functions import Function
from eventrouter.logs import Log
from eventrouter.model import Failed, Response, Stream
from eventrouter.runtimes.calls import Caller, Calls
from eventrouter.runtimes.confine import confinement
from eventrouter.runtimes.forking import lambda_variables
from eventrouter.runtimes.frames import Answer, Frames, Job, Setup
from eventrouter.runtimes.streams import Chunks

_CHUNK: Final = 256 * 1024


Started = Callable[[float, float], None]  # with the seconds that a cold start took, and the time, monotonic


class NoEnvironment(asyncio.CancelledError):
    """The wait for an environment was given up; the handler has not begun."""


class HasFailed(Exception):
    """A handler that ran elsewhere has failed; what that is was said there."""

    def __init__(self, outcome: Failed) -> None:
        self.outcome = outcome


class Call:
    """An invocation. log: of what it prints. opened: with an answer in chunks, None: it has none."""

    __slots__ = ("chunks", "context", "done", "environment", "id", "job", "log", "number", "opened", "started")

    def __init__(self, number: int, job: Job, started: Started, log: Log | None) -> None:
        loop = asyncio.get_running_loop()
        self.number = number  # in the order in which they came
        self.id = job.id
        self.started = started
        self.log = log
        self.context = contextvars.copy_context()  # so that what it prints comes where its invocation's output goes
        self.done: asyncio.Future[Answer] = loop.create_future()
        self.environment: Environment | None = None
        job.report = log is not None
        self.job = job
        if job.stream:
            self.chunks = Chunks()
            self.opened: asyncio.Future[Any] = loop.create_future()

    @property
    def caller(self) -> Caller:
        """It, as what it calls sees it."""
        return Caller(self.context, {"begin": self._open, "chunk": self.chunks.put} if self.job.stream else {})

    def end(self, answer: Answer) -> None:
        if self.log is not None:
            self.log.peak = answer.peak
            self.log.end()
        if not self.done.done():
            self.done.set_result(answer)
            if self.job.stream:
                self.chunks.end(None if answer.failed is None else HasFailed(answer.failed))
                if not self.opened.done():
                    self.opened.set_result(None)

    @staticmethod
    def value(answer: Answer) -> Any:
        """What the handler returned. Raises HasFailed, PartialFailure."""
        if answer.failed is not None:
            raise HasFailed(answer.failed)
        if answer.kind == "partial":
            raise PartialFailure(*answer.value)
        if answer.kind == "response":
            body, status, headers = answer.value
            return Response(body, status, headers)
        return answer.value

    async def streamed(self, stream: Stream) -> Any:
        """As `value`; if the handler answers in chunks, what `stream` makes of them."""
        head = await self.opened
        if head is None:
            return self.value(await self.done)
        try:
            given = await stream(head)
        except Exception:
            await self.chunks.aclose()
            await self.done  # it has been told, and may have to close what it opened
            raise
        self.value(await self.done)
        return given

    async def _open(self, head: tuple[int, dict[str, str]] | None) -> None:
        if self.opened.done():
            raise EventRouterError("an answer begins once")
        self.opened.set_result(self.chunks if head is None else Response(self.chunks, *head))


class Crew:
    """The environments of one function. idle: the one used last at the end. count: all that live, starting: of which not ready.

    queue: calls that wait. quick: whether the last one was.
    """

    def __init__(self, function: Function, folder: Path) -> None:
        self.name = function.name
        self.minimum = function.policy.min_environments
        env = function.env
        self.setup = Setup(function.name, {**lambda_variables(function, folder), **env}, env)
        self.confinement = confinement(function)
        self.idle: list[Environment] = []
        self.queue: deque[Call] = deque()
        self.count = self.starting = 0
        self.quick = False


class Environment:
    """jobs: where they are sent. tokens: where a byte is sent for each that may be begun; unread: the other end, to take them back.

    answers: where those come from. calls: what it calls of the router's. output: what it prints, text: reads it. call: what it runs.
    ahead: what it has been sent besides. slow: it gets none while it runs that. since: when it began it, or became idle.
    ending: it gets no more at all.
    """

    __slots__ = (
        "ahead", "answers", "began", "call", "calls", "crew", "ending", "frames", "gone", "init", "jobs", "number", "output",
        "ready", "rest", "sent", "since", "slow", "text", "tokens", "unread",
    )  # fmt: skip

    def __init__(
        self, crew: Crew, number: int, jobs: socket.socket, tokens: tuple[socket.socket, socket.socket], answers: int, output: int,
        began: float,
    ) -> None:  # fmt: skip
        self.crew = crew
        self.number = number
        self.jobs = jobs
        self.tokens, self.unread = tokens
        self.sent = 0
        self.answers = answers
        self.output = output
        self.text = getincrementaldecoder("utf-8")("replace")
        self.began = began
        self.init: float | None = None  # until it is told with the first invocation
        self.ready = self.ending = self.slow = False
        self.since = 0.0
        self.call: Call | None = None
        self.ahead: deque[Call] = deque()
        self.frames = Frames()
        self.rest: bytes | memoryview = b""  # of what is to be written to it
        self.calls: Calls
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def write(self, data: bytes) -> None:
        if self.rest:
            self.rest = bytes(self.rest) + data
            return
        try:
            sent = self.jobs.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:  # it has died: the template is about to say so
            return
        if sent < len(data):
            self.rest = memoryview(data)[sent:]
            asyncio.get_running_loop().add_writer(self.jobs, self._writable)

    def _writable(self) -> None:
        with suppress(BlockingIOError, ConnectionError):
            self.rest = memoryview(self.rest)[self.jobs.send(self.rest) :]
            if not self.rest:
                self.rest = b""
                asyncio.get_running_loop().remove_writer(self.jobs)

    def pass_on(self) -> None:
        """What it has printed, to where the output of the invocation goes that it runs."""
        call = self.call
        while True:
            try:
                chunk = os.read(self.output, _CHUNK)
            except BlockingIOError:
                return
            if not chunk:
                asyncio.get_running_loop().remove_reader(self.output)
                return
            text = self.text.decode(chunk)
            if call is None:
                sys.stdout.write(text)
            elif call.log is not None:
                call.log.write(text)
            else:
                call.context.run(sys.stdout.write, text)
            if len(chunk) < _CHUNK:
                sys.stdout.flush()
                return
