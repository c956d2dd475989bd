"""Runs handlers in environments: processes forked from a template, one invocation at a time each, reused while warm. The router's side."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

import msgspec

from eventrouter.batches import PartialFailure
from eventrouter.clock import Clock, Timer
from eventrouter.errors import ConfigError
from eventrouter.functions import Function
from eventrouter.model import Failed, Response
from eventrouter.runtimes.forking import GRACE, Template, cause_of_death, lambda_variables, oom_kills
from eventrouter.runtimes.frames import Answer, Frames, Job, Order, Recipe, Setup, Told, frame

log = logging.getLogger("eventrouter")

IDLE: Final = 300.0  # seconds that an environment is kept for the next invocation
_CHUNK: Final = 256 * 1024
_AHEAD: Final = 16  # jobs that an environment may have waiting behind the one it runs ...
_QUICK: Final = 0.005  # ... if the last took less seconds; what waits behind one that takes more is taken back
_CPUS: Final = os.cpu_count() or 1
_answer = msgspec.msgpack.Decoder(Answer).decode


class NoEnvironment(asyncio.CancelledError):
    """The wait for an environment was given up; the handler has not begun."""


class Report(msgspec.Struct):
    """What is known of an invocation's environment. init: seconds that a cold start took. peak: its memory at most, MB."""

    init: float | None = None
    peak: int | None = None


report: ContextVar[Report | None] = ContextVar("eventrouter_report", default=None)  # set it to have it filled in


class _Call:
    __slots__ = ("context", "done", "environment", "id", "job", "number", "started")

    def __init__(self, number: int, job: Job, started: Callable[[float], None]) -> None:
        self.number = number  # in the order in which they came
        self.id = job.id
        self.started = started
        self.context = contextvars.copy_context()  # so that what it prints comes where its invocation's output goes
        self.done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.environment: _Environment | None = None
        job.report = self.context.get(report) is not None
        self.job = job

    def end(self, answer: Answer) -> None:
        if not self.done.done():
            self.done.set_result(answer)


class _Crew:
    """The environments of one function. idle: the one used last at the end. count: all that live, starting: of which not ready.

    queue: calls that wait. quick: whether the last one was, and printed nothing.
    """

    def __init__(self, function: Function, folder: Path) -> None:
        self.name = function.name
        self.minimum = function.policy.min_environments
        env = function.policy.env
        self.setup = frame(Setup(function.name, {**lambda_variables(function, folder), **env}, env))
        self.idle: list[_Environment] = []
        self.queue: deque[_Call] = deque()
        self.count = self.starting = 0
        self.quick = False


class _Environment:
    """jobs: where they are sent. tokens: where a byte is sent for each that may be begun; unread: the other end, to take them back.

    answers: where those come from. output: what it prints. call: what it runs. ahead: what it has been sent besides. slow: it gets none
    while it runs that. since: when it began it, or became idle. prints: since the last answer. ending: it gets no more at all.
    """

    __slots__ = (
        "ahead", "answers", "began", "call", "crew", "ending", "frames", "gone", "init", "jobs", "number", "output", "prints", "ready",
        "rest", "sent", "since", "slow", "tokens", "unread",
    )  # fmt: skip

    def __init__(
        self, crew: _Crew, number: int, jobs: socket.socket, tokens: tuple[socket.socket, socket.socket], answers: int, output: int,
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
        self.call: _Call | None = None
        self.ahead: deque[_Call] = deque()
        self.frames = Frames()
        self.rest: bytes | memoryview = b""  # of what is to be written to it
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class ProcessRuntime:
    """functions: those that run isolated. recipe: of the app, for the template. limit: how many environments there are at once."""

    def __init__(self, clock: Clock, functions: Mapping[str, Function], recipe: Recipe, folder: Path, limit: int) -> None:
        self._clock = clock
        self._recipe = recipe
        self._limit = limit
        self._crews = {name: _Crew(function, folder) for name, function in functions.items()}
        kept = sum(crew.minimum for crew in self._crews.values())
        if kept > limit:
            raise ConfigError(f"min_environments= of all functions come to {kept}, [app] processes is {limit}; lower them, or raise it")
        self._environments: dict[int, _Environment] = {}
        self._numbers = self._calls = 0
        self._dispatching = False
        self._looking: asyncio.TimerHandle | None = None
        self._seen: dict[int, _Call] = {}  # what environments ran that have more waiting, at the last look
        self._template: Template | None = None
        self._loading: asyncio.Task[None] | None = None
        self._reaper: Timer | None = None
        self._closing = False
        self._context = contextvars.Context()  # not that of the invocation which happens to need an environment first
        self._oom_kills = oom_kills()

    async def start(self) -> None:
        """Load the app into the template. Raises ConfigError when it can't be."""
        self._context = contextvars.copy_context()
        fault = await self._load()
        if fault:
            raise ConfigError(f"the app can't be loaded for isolated functions: {fault}")

    async def close(self) -> None:
        """End every environment; those that don't end by themselves are killed."""
        self._closing = True
        for timer in (self._reaper, self._looking):
            if timer is not None:
                timer.cancel()
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.wait((self._loading,))
        for environment in list(self._environments.values()):
            self._retire(environment)
        if self._environments:
            await asyncio.wait([environment.gone for environment in self._environments.values()])
        if self._template is not None:
            template, self._template = self._template, None
            await template.close()

    async def run(self, name: str, job: Job, started: Callable[[float], None]) -> Any:
        """What the handler returned, a PartialFailure that it raised, or Failed.

        started: called when it begins, with the seconds that a cold start took.

        Cancelled, it kills the environment and waits until it is gone. Raises NoEnvironment when it is cancelled before it has one.
        """
        crew = self._crews[name]
        self._calls += 1
        call = _Call(self._calls, job, started)
        crew.queue.append(call)
        self._dispatch_soon()
        try:
            answer = await call.done
        except asyncio.CancelledError:
            environment = call.environment
            if environment is not None and call in environment.ahead:
                self._take_back(environment)
            if call.environment is None:
                crew.queue.remove(call)
                self._dispatch_soon()
                raise NoEnvironment(f"{name}: all {self._limit} environments of [app] processes are busy") from None
            assert environment is not None
            if call is environment.call or call in environment.ahead:  # else it has answered meanwhile
                await self._gone(environment)
            raise
        return _outcome(answer)

    # What goes where

    def _dispatch_soon(self) -> None:
        """At the end of this turn of the loop: what came in it is sent together."""
        if not self._dispatching:
            self._dispatching = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._dispatching = False
        for crew in self._crews.values():
            if not crew.queue or self._closing:
                continue
            # Few that have much to do need less waking than many: but only of what is quick, and while nobody else waits.
            many = crew.quick and not self._must_make_room(crew)
            share = max(1, min(_AHEAD, -(-len(crew.queue) // _CPUS))) if many else 1
            while crew.idle and crew.queue:
                self._send(crew.idle.pop(), share)
            if many and crew.queue:
                for environment in self._environments.values():
                    if environment.crew is crew and environment.call is not None and not environment.slow | environment.ending:
                        self._send(environment, share if len(environment.ahead) <= _AHEAD // 2 else 0)
            self._scale(crew)

    def _send(self, environment: _Environment, count: int) -> None:
        """The next calls, up to so many, together."""
        queue, data, tokens = environment.crew.queue, [], bytearray()
        while queue and count and len(environment.ahead) < _AHEAD:
            # One whose output somebody waits for is sent alone: else it could not be told whose is what is printed.
            last = environment.ahead[-1] if environment.ahead else environment.call
            if last is not None and (last.job.report or queue[0].job.report):
                break
            call = queue.popleft()
            environment.sent = call.job.token = (environment.sent + 1) % 256
            tokens.append(environment.sent)
            data.append(frame(call.job))
            call.environment = environment
            environment.ahead.append(call)
            count -= 1
        if not data:
            return
        self._write(environment, b"".join(data))  # first: it wakes when there are tokens
        with suppress(OSError):
            environment.tokens.send(tokens)
        if environment.call is None:
            self._begin(environment)
        if environment.ahead and self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(_QUICK, self._look)

    def _begin(self, environment: _Environment) -> None:
        """It goes on with the next of what it was sent."""
        call = environment.call = environment.ahead.popleft()
        environment.since = self._clock.monotonic()
        if environment.init is not None and (to := call.context.get(report)) is not None:
            to.init = environment.init
        init, environment.init = environment.init, None
        call.started(init or 0.0)

    def _look(self) -> None:
        """Whether something waits behind what takes long."""
        self._looking = None
        waiting = False
        for environment in self._environments.values():
            if environment.ahead:
                seen = self._seen.get(environment.number)
                if seen is not None and seen is environment.call:
                    environment.crew.quick, environment.slow = False, True
                    self._take_back(environment)
                elif environment.call is not None:
                    self._seen[environment.number] = environment.call
                waiting = waiting or bool(environment.ahead)
        if waiting:
            self._looking = asyncio.get_running_loop().call_later(_QUICK, self._look)
        else:
            self._seen.clear()

    def _take_back(self, environment: _Environment) -> None:
        """What it has been sent and hasn't begun waits for any again."""
        queue = environment.crew.queue
        with suppress(BlockingIOError):
            taken = environment.unread.recv(256, socket.MSG_DONTWAIT)
            if len(taken) > len(environment.ahead):  # it hasn't even begun what we take it to run
                if environment.gone.done():
                    assert environment.call is not None
                    environment.ahead.appendleft(environment.call)
                    environment.call = None
                else:
                    environment.tokens.send(taken[:1])
                    taken = taken[1:]
            for _ in taken:
                call = environment.ahead.pop()
                call.environment = None
                queue.appendleft(call)
            self._dispatch_soon()

    # How many

    def _scale(self, crew: _Crew) -> None:
        """As many more environments as are waited for, within the limit."""
        while len(crew.queue) > crew.starting and not self._closing:
            if self._template is None:
                self._reload()
                return
            if len(self._environments) >= self._limit:
                # Of those whose function has nothing to do, the one that was used longest ago makes room; when it's gone it's our turn.
                others = [e for other in self._crews.values() if other.count > other.minimum and not other.queue for e in other.idle[:1]]
                if others and not any(e.ending for e in self._environments.values()):
                    self._retire(min(others, key=lambda e: e.since))
                return
            self._fork(crew)

    def _refill(self) -> None:
        """An environment has gone, or the template has come: whoever waits, and what is to be kept warm."""
        # Who has fewest comes first, then who has waited longest.
        for crew in sorted(self._crews.values(), key=lambda crew: (crew.count, crew.queue[0].number if crew.queue else 0)):
            self._scale(crew)
            while crew.count < crew.minimum and len(self._environments) < self._limit and self._template is not None and not self._closing:
                self._fork(crew)

    def _must_make_room(self, crew: _Crew) -> bool:
        """Whether others wait who have less, and have nobody's idle ones to take."""
        return len(self._environments) >= self._limit and any(
            other.queue and not other.starting and other.count < crew.count and (other.count == 0 or other.count + 1 < crew.count)
            for other in self._crews.values()
        ) and not any(e.ending for e in self._environments.values())  # fmt: skip

    def _reap(self) -> None:
        self._reaper = None
        now, earliest = self._clock.monotonic(), None
        for crew in self._crews.values():
            spare = crew.count - crew.minimum
            for environment in list(crew.idle):  # the one used longest ago first
                if spare <= 0:
                    break
                if now - environment.since >= IDLE:
                    spare -= 1
                    self._retire(environment)
                else:
                    earliest = min(earliest or environment.since, environment.since)
                    break
        if earliest is not None:
            self._reaper = self._clock.call_later(earliest + IDLE - now, self._reap)

    # Life of an environment

    def _fork(self, crew: _Crew) -> None:
        self._context.copy().run(self._order, crew)

    def _order(self, crew: _Crew) -> None:
        assert self._template is not None
        jobs, theirs = socket.socketpair()
        tokens, (answers, answered), (output, printed) = socket.socketpair(), os.pipe(), os.pipe()
        tokens[0].setblocking(False)
        try:
            self._numbers += 1
            environment = _Environment(crew, self._numbers, jobs, tokens, answers, output, self._clock.monotonic())
            jobs.setblocking(False)
            self._environments[environment.number] = environment
            crew.count += 1
            crew.starting += 1
            loop = asyncio.get_running_loop()
            for descriptor, read in ((answers, self._readable), (output, self._printed)):
                os.set_blocking(descriptor, False)
                loop.add_reader(descriptor, read, environment)
            self._template.order(Order(environment.number), theirs.fileno(), tokens[1].fileno(), answered, printed)
            self._write(environment, crew.setup)
        finally:
            theirs.close()
            os.close(answered)
            os.close(printed)

    def _write(self, environment: _Environment, data: bytes) -> None:
        if environment.rest:
            environment.rest = bytes(environment.rest) + data
            return
        try:
            sent = environment.jobs.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:  # it has died: the template is about to say so
            return
        if sent < len(data):
            environment.rest = memoryview(data)[sent:]
            asyncio.get_running_loop().add_writer(environment.jobs, self._writable, environment)

    def _writable(self, environment: _Environment) -> None:
        with suppress(BlockingIOError, ConnectionError):
            environment.rest = memoryview(environment.rest)[environment.jobs.send(environment.rest) :]
            if not environment.rest:
                environment.rest = b""
                asyncio.get_running_loop().remove_writer(environment.jobs)

    def _readable(self, environment: _Environment) -> None:
        try:
            chunk = os.read(environment.answers, _CHUNK)
        except BlockingIOError:
            return
        if not chunk:
            asyncio.get_running_loop().remove_reader(environment.answers)
            self._end(environment)  # most have ended by themselves
            return
        for data in environment.frames.feed(chunk):
            self._answered(environment, data)
        if environment.ready and environment.call is None and not environment.ending:
            self._rests(environment)

    def _answered(self, environment: _Environment, data: bytes) -> None:
        crew, call = environment.crew, environment.call
        try:
            answer = _answer(data)
        except msgspec.DecodeError:  # the handler wrote to what isn't its own
            self._end(environment)
            return
        if not environment.ready:
            environment.ready = True
            crew.starting -= 1
            environment.init = self._clock.monotonic() - environment.began
        elif call is not None:
            if call.job.report:
                self._printed(environment)
            if (to := call.context.get(report)) is not None:
                to.peak = answer.peak
            environment.call, environment.slow = None, False
            crew.quick = self._clock.monotonic() - environment.since < _QUICK and not environment.prints | call.job.report
            environment.prints = False
            call.end(answer)
            if environment.ahead:
                self._begin(environment)

    def _rests(self, environment: _Environment) -> None:
        """It has nothing to do."""
        crew = environment.crew
        fresh = environment.init is not None
        environment.since = self._clock.monotonic()
        crew.idle.append(environment)
        if not fresh and self._must_make_room(crew):
            self._retire(environment)
        elif self._reaper is None:
            self._reaper = self._clock.call_later(IDLE, self._reap)
        if crew.queue:
            self._dispatch_soon()

    def _printed(self, environment: _Environment) -> None:
        """Pass on what it has printed, to where the output of the invocation goes that it runs."""
        call = environment.call
        while True:
            try:
                chunk = os.read(environment.output, _CHUNK)
            except BlockingIOError:
                return
            if not chunk:
                asyncio.get_running_loop().remove_reader(environment.output)
                return
            environment.prints = True
            text = chunk.decode(errors="replace")
            if call is not None:
                call.context.run(sys.stdout.write, text)
            else:
                sys.stdout.write(text)
            if len(chunk) < _CHUNK:
                sys.stdout.flush()
                return

    def _retire(self, environment: _Environment) -> None:
        """Ask it to close what it shares between invocations, and to end."""
        self._leave(environment)
        with suppress(OSError):
            environment.tokens.shutdown(socket.SHUT_WR)
        asyncio.get_running_loop().call_later(GRACE, self._end, environment)

    def _end(self, environment: _Environment) -> None:
        """SIGTERM, and SIGKILL if that doesn't help."""
        self._leave(environment)
        if environment.ahead:  # else it could begin one before the second signal
            self._take_back(environment)
        self._signal(environment, signal.SIGTERM)
        asyncio.get_running_loop().call_later(GRACE, self._signal, environment, signal.SIGKILL)

    async def _gone(self, environment: _Environment) -> None:
        self._end(environment)
        while not environment.gone.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait((environment.gone,))

    def _leave(self, environment: _Environment) -> None:
        environment.ending = True
        if environment in environment.crew.idle:
            environment.crew.idle.remove(environment)

    def _signal(self, environment: _Environment, number: int) -> None:
        if self._template is not None and not environment.gone.done():
            self._template.order(Order(environment.number, number))

    def _died(self, told: Told) -> None:
        environment = self._environments.pop(told.number, None)
        if environment is None:
            return
        crew = environment.crew
        self._leave(environment)
        with suppress(OSError):  # what it said last may not be read yet
            while chunk := os.read(environment.answers, _CHUNK):
                for data in environment.frames.feed(chunk):
                    self._answered(environment, data)
        self._printed(environment)
        environment.gone.set_result(None)
        self._take_back(environment)
        loop = asyncio.get_running_loop()
        for descriptor in (environment.answers, environment.output):
            loop.remove_reader(descriptor)
            os.close(descriptor)
        loop.remove_writer(environment.jobs)
        for end in (environment.jobs, environment.tokens, environment.unread):
            end.close()
        crew.count -= 1
        call = environment.call
        if not environment.ready:
            crew.starting -= 1
            call = crew.queue.popleft() if crew.queue else None  # so that one that can't start isn't tried for ever
        if call is not None:
            killed, self._oom_kills = self._oom_kills, oom_kills()
            kind, message = cause_of_death(told.status, out_of_memory=self._oom_kills > killed)
            call.end(Answer("failed", None, Failed(kind, f"RequestId: {call.id} Error: {message}"), 0))
        if environment.ready:
            self._refill()
        else:
            asyncio.get_running_loop().call_later(GRACE, self._refill)

    # The template

    def _reload(self) -> None:
        if self._loading is None:
            self._loading = asyncio.create_task(self._load_again(), name="template", context=self._context.copy())

    async def _load_again(self) -> None:
        fault = await self._load()
        self._loading = None
        if fault:
            log.error("the app can't be loaded for isolated functions: %s", fault, extra={"action": "template.failed"})
            for crew in self._crews.values():
                while crew.queue:
                    call = crew.queue.popleft()
                    call.end(Answer("failed", None, Failed("Runtime.ImportModuleError", fault), 0))

    async def _load(self) -> str:
        """Why it can't be, or nothing."""
        template = Template(self._died, self._template_died)
        try:
            fault = await template.load(self._recipe)
        except BaseException:
            await template.close()
            raise
        if fault:
            await template.close()
            return fault
        self._template = template
        self._refill()
        return ""

    def _template_died(self) -> None:
        """With it all its environments."""
        if self._template is not None:
            log.error("the template process has died, and with it all environments", extra={"action": "template.died"})
            template, self._template = self._template, None
            template.kill()
            for number in list(self._environments):
                self._died(Told(number, signal.SIGKILL))


def _outcome(answer: Answer) -> Any:
    if answer.failed is not None:
        return answer.failed
    if answer.kind == "response":
        body, status, headers = answer.value
        return Response(body, status, headers)
    return PartialFailure(*answer.value) if answer.kind == "partial" else answer.value
