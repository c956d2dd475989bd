"""What the router knows of the environments: which function's, what each runs and has been sent, and its ends of the lines to it."""

from __future__ import annotations

import asyncio
import contextvars
import os
import socket
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

import msgspec

from eventrouter.batches import PartialFailure
from eventrouter.functions import Function
from eventrouter.model import Response
from eventrouter.runtimes.confine import confinement
from eventrouter.runtimes.forking import lambda_variables
from eventrouter.runtimes.frames import Answer, Frames, Job, Setup

_CHUNK: Final = 256 * 1024


class NoEnvironment(asyncio.CancelledError):
    """The wait for an environment was given up; the handler has not begun."""


class Report(msgspec.Struct):
    """What is known of an invocation's environment. init: seconds that a cold start took. peak: its memory at most, MB."""

    init: float | None = None
    peak: int | None = None


report: ContextVar[Report | None] = ContextVar("eventrouter_report", default=None)  # set it to have it filled in


class Call:
    __slots__ = ("context", "done", "environment", "id", "job", "number", "started")

    def __init__(self, number: int, job: Job, started: Callable[[float], None]) -> None:
        self.number = number  # in the order in which they came
        self.id = job.id
        self.started = started
        self.context = contextvars.copy_context()  # so that what it prints comes where its invocation's output goes
        self.done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.environment: Environment | None = None
        job.report = self.context.get(report) is not None
        self.job = job

    def end(self, answer: Answer) -> None:
        if not self.done.done():
            self.done.set_result(answer)


class Crew:
    """The environments of one function. idle: the one used last at the end. count: all that live, starting: of which not ready.

    queue: calls that wait. quick: whether the last one was, and printed nothing.
    """

    def __init__(self, function: Function, folder: Path) -> None:
        self.name = function.name
        self.minimum = function.policy.min_environments
        env = function.policy.env
        self.setup = Setup(function.name, {**lambda_variables(function, folder), **env}, env)
        self.confinement = confinement(function)
        self.idle: list[Environment] = []
        self.queue: deque[Call] = deque()
        self.count = self.starting = 0
        self.quick = False


class Environment:
    """jobs: where they are sent. tokens: where a byte is sent for each that may be begun; unread: the other end, to take them back.

    answers: where those come from. output: what it prints. call: what it runs. ahead: what it has been sent besides. slow: it gets none
    while it runs that. since: when it began it, or became idle. prints: since the last answer. ending: it gets no more at all.
    """

    __slots__ = (
        "ahead", "answers", "began", "call", "crew", "ending", "frames", "gone", "init", "jobs", "number", "output", "prints", "ready",
        "rest", "sent", "since", "slow", "tokens", "unread",
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
        self.began = began
        self.init: float | None = None  # until it is told with the first invocation
        self.ready = self.ending = self.slow = self.prints = False
        self.since = 0.0
        self.call: Call | None = None
        self.ahead: deque[Call] = deque()
        self.frames = Frames()
        self.rest: bytes | memoryview = b""  # of what is to be written to it
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
            self.prints = True
            text = chunk.decode(errors="replace")
            if call is not None:
                call.context.run(sys.stdout.write, text)
            else:
                sys.stdout.write(text)
            if len(chunk) < _CHUNK:
                sys.stdout.flush()
                return


def outcome(answer: Answer) -> Any:
    if answer.failed is not None:
        return answer.failed
    if answer.kind == "response":
        body, status, headers = answer.value
        return Response(body, status, headers)
    return PartialFailure(*answer.value) if answer.kind == "partial" else answer.value
