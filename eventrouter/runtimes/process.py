"""Runs handlers in environments: processes forked from a template, one invocation at a time each, reused while warm. The router's side."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import signal
import socket
import subprocess
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
from eventrouter.model import REGION, Failed, Response, new_id
from eventrouter.runtimes.frames import Answer, Frames, Job, Order, Recipe, Setup, Told, frame

log = logging.getLogger("eventrouter")

IDLE: Final = 300.0  # seconds that an environment is kept for the next invocation
GRACE: Final = 1.0  # seconds between SIGTERM and SIGKILL; they are the machine's, whatever the router's clock says
_CHUNK: Final = 256 * 1024
_KEPT_VARIABLES: Final = ("HOME", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "LOGNAME", "PATH", "PYTHONPATH", "SHELL", "TMPDIR", "TZ", "USER",
                          "VIRTUAL_ENV")  # fmt: skip
_answer = msgspec.msgpack.Decoder(Answer).decode
_told = msgspec.msgpack.Decoder(Told).decode


class NoEnvironment(asyncio.CancelledError):
    """The wait for an environment was given up; the handler has not begun."""


class Report(msgspec.Struct):
    """What is known of an invocation's environment. init: seconds that a cold start took. peak: its memory at most, MB."""

    init: float | None = None
    peak: int | None = None


report: ContextVar[Report | None] = ContextVar("eventrouter_report", default=None)  # set it to have it filled in


class _Call:
    __slots__ = ("context", "data", "done", "environment", "id", "number", "started")

    def __init__(self, number: int, job: Job, started: Callable[[], None]) -> None:
        self.number = number  # in the order in which they came
        self.id = job.id
        self.data = frame(job)
        self.started = started
        self.context = contextvars.copy_context()  # so that what it prints comes where its invocation's output goes
        self.done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.environment: _Environment | None = None

    def end(self, answer: Answer) -> None:
        if not self.done.done():
            self.done.set_result(answer)


class _Crew:
    """The environments of one function. idle: the one used last at the end. count: all that live, starting: of which not ready."""

    def __init__(self, function: Function, folder: Path) -> None:
        self.name = function.name
        self.minimum = function.policy.min_environments
        env = function.policy.env
        self.setup = frame(Setup(function.name, {**_lambda_variables(function, folder), **env}, env))
        self.idle: list[_Environment] = []
        self.queue: deque[_Call] = deque()
        self.count = self.starting = 0


class _Environment:
    """line: where jobs go and answers come from. output: what it prints. ending: it gets no more jobs; silenced: its line is closed."""

    __slots__ = ("began", "call", "crew", "ending", "frames", "gone", "idle_since", "init", "line", "number", "output", "ready", "rest")

    def __init__(self, crew: _Crew, number: int, line: socket.socket, output: int, began: float) -> None:
        self.crew = crew
        self.number = number
        self.line = line
        self.output = output
        self.began = began
        self.init: float | None = None  # until it is told with the first invocation
        self.ready = self.ending = False
        self.idle_since = 0.0
        self.call: _Call | None = None
        self.frames = Frames()
        self.rest = b""  # of what is to be written to it
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
        self._template: _Template | None = None
        self._loading: asyncio.Task[None] | None = None
        self._reaper: Timer | None = None
        self._closing = False
        self._context = contextvars.Context()  # not that of the invocation which happens to need an environment first
        self._oom_kills = _oom_kills()

    async def start(self) -> None:
        """Load the app into the template. Raises ConfigError when it can't be."""
        self._context = contextvars.copy_context()
        fault = await self._load()
        if fault:
            raise ConfigError(f"the app can't be loaded for isolated functions: {fault}")

    async def close(self) -> None:
        """End every environment; those that don't end by themselves are killed."""
        self._closing = True
        if self._reaper is not None:
            self._reaper.cancel()
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

    async def run(self, name: str, job: Job, started: Callable[[], None]) -> Any:
        """What the handler returned, a PartialFailure that it raised, or Failed. started: called when it begins.

        Cancelled, it kills the environment and waits until it is gone. Raises NoEnvironment when it is cancelled before it has one.
        """
        crew = self._crews[name]
        self._calls += 1
        call = _Call(self._calls, job, started)
        if crew.idle:
            self._give(crew.idle.pop(), call)
        else:
            crew.queue.append(call)
            self._scale(crew)
        try:
            answer = await call.done
        except asyncio.CancelledError:
            if call.environment is None:
                crew.queue.remove(call)
                raise NoEnvironment(f"{name}: all {self._limit} environments of [app] processes are busy") from None
            await self._gone(call.environment)
            raise
        return _outcome(answer)

    # How many

    def _scale(self, crew: _Crew) -> None:
        """As many more environments as are waited for, within the limit."""
        while len(crew.queue) > crew.starting and not self._closing:
            if self._template is None:
                self._reload()
                return
            if len(self._environments) >= self._limit:
                # Of those who have nothing to do, the one that was used longest ago makes room; when it's gone it's our turn.
                others = [e for other in self._crews.values() if other.count > other.minimum for e in other.idle[:1]]
                if others and not any(e.ending for e in self._environments.values()):
                    self._retire(min(others, key=lambda e: e.idle_since))
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
                if now - environment.idle_since >= IDLE:
                    spare -= 1
                    self._retire(environment)
                else:
                    earliest = min(earliest or environment.idle_since, environment.idle_since)
                    break
        if earliest is not None:
            self._reaper = self._clock.call_later(earliest + IDLE - now, self._reap)

    # Life of an environment

    def _fork(self, crew: _Crew) -> None:
        self._context.copy().run(self._order, crew)

    def _order(self, crew: _Crew) -> None:
        assert self._template is not None
        ours, theirs = socket.socketpair()
        output, printed = os.pipe()
        try:
            self._numbers += 1
            environment = _Environment(crew, self._numbers, ours, output, self._clock.monotonic())
            ours.setblocking(False)
            os.set_blocking(output, False)
            self._environments[environment.number] = environment
            crew.count += 1
            crew.starting += 1
            loop = asyncio.get_running_loop()
            loop.add_reader(ours, self._readable, environment)
            loop.add_reader(output, self._printed, environment)
            self._template.order(Order(environment.number), theirs.fileno(), printed)
            self._write(environment, crew.setup)
        finally:
            theirs.close()
            os.close(printed)

    def _give(self, environment: _Environment, call: _Call) -> None:
        environment.call = call
        call.environment = environment
        if environment.init is not None and (to := call.context.get(report)) is not None:
            to.init = environment.init
        environment.init = None
        call.started()
        self._write(environment, call.data)
        call.data = b""

    def _write(self, environment: _Environment, data: bytes) -> None:
        try:
            sent = environment.line.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:  # it has died: the template is about to say so
            return
        if sent < len(data):
            environment.rest = data[sent:]
            asyncio.get_running_loop().add_writer(environment.line, self._writable, environment)

    def _writable(self, environment: _Environment) -> None:
        rest, environment.rest = memoryview(environment.rest), b""
        try:
            while rest:
                rest = rest[environment.line.send(rest) :]
        except BlockingIOError:
            environment.rest = bytes(rest) if len(rest) < _CHUNK else rest  # type: ignore[assignment]
            return
        except OSError:
            pass
        asyncio.get_running_loop().remove_writer(environment.line)

    def _readable(self, environment: _Environment) -> None:
        try:
            chunk = environment.line.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self._hush(environment)
            self._end(environment)  # most have ended by themselves
            return
        for data in environment.frames.feed(chunk):
            self._answered(environment, data)

    def _answered(self, environment: _Environment, data: bytes) -> None:
        crew, call = environment.crew, environment.call
        try:
            answer = _answer(data)
        except msgspec.DecodeError:  # the handler wrote to what isn't its own
            self._end(environment)
            return
        fresh = not environment.ready
        if fresh:
            environment.ready = True
            crew.starting -= 1
            environment.init = self._clock.monotonic() - environment.began
        elif call is not None:
            self._printed(environment)
            if (to := call.context.get(report)) is not None:
                to.peak = answer.peak
            environment.call = None
            call.end(answer)
        if environment.ending or self._closing:
            return
        if crew.queue and (fresh or not self._must_make_room(crew)):
            self._give(environment, crew.queue.popleft())
            return
        environment.idle_since = self._clock.monotonic()
        crew.idle.append(environment)
        if crew.queue or self._must_make_room(crew):
            self._retire(environment)
        elif self._reaper is None:
            self._reaper = self._clock.call_later(IDLE, self._reap)

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
            environment.line.shutdown(socket.SHUT_WR)
        asyncio.get_running_loop().call_later(GRACE, self._end, environment)

    def _end(self, environment: _Environment) -> None:
        """SIGTERM, and SIGKILL if that doesn't help."""
        self._leave(environment)
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

    def _hush(self, environment: _Environment) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(environment.line)
        loop.remove_writer(environment.line)

    def _died(self, told: Told) -> None:
        environment = self._environments.pop(told.number, None)
        if environment is None:
            return
        crew = environment.crew
        with suppress(OSError):  # what it said last may still be in the line
            while chunk := environment.line.recv(_CHUNK):
                for data in environment.frames.feed(chunk):
                    self._leave(environment)
                    self._answered(environment, data)
        self._printed(environment)
        self._hush(environment)
        asyncio.get_running_loop().remove_reader(environment.output)
        environment.line.close()
        os.close(environment.output)
        self._leave(environment)
        crew.count -= 1
        call = environment.call
        if not environment.ready:
            crew.starting -= 1
            call = crew.queue.popleft() if crew.queue else None  # so that one that can't start isn't tried for ever
        environment.gone.set_result(None)
        if call is not None:
            killed, self._oom_kills = self._oom_kills, _oom_kills()
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
        template = _Template(self._died, self._template_died)
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


class _Template:
    """The router's end of the template process."""

    def __init__(self, died: Callable[[Told], None], lost: Callable[[], None]) -> None:
        self._died = died
        self._lost = lost
        self._frames = Frames()
        self._control, theirs = socket.socketpair()
        self._control.setblocking(False)
        names = [name for name in os.environ if name in _KEPT_VARIABLES or name.startswith("LC_")]
        with theirs:
            # -P: else a file of the user's could pass for a standard module.
            self._process = subprocess.Popen(  # noqa: S603 - itself
                [sys.executable, "-P", "-m", "eventrouter.runtimes.template", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env={name: os.environ[name] for name in names},
            )

    async def load(self, recipe: Recipe) -> str:
        """Why it can't be loaded, or nothing."""
        loop = asyncio.get_running_loop()
        with suppress(ConnectionError):
            await loop.sock_sendall(self._control, frame(recipe))
            while chunk := await loop.sock_recv(self._control, _CHUNK):
                for data in self._frames.feed(chunk):
                    loop.add_reader(self._control, self._readable)
                    return _told(data).fault
        code = await asyncio.to_thread(self._process.wait)
        _, message = cause_of_death(-code if code < 0 else code << 8)
        return f"the process that imports it ended: {message}"

    def order(self, order: Order, *descriptors: int) -> None:
        try:
            socket.send_fds(self._control, [frame(order)], descriptors)
        except OSError:  # it has died, or takes no orders any more
            self._process.kill()

    def _readable(self) -> None:
        try:
            chunk = self._control.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            asyncio.get_running_loop().remove_reader(self._control)
            self._lost()
        for data in self._frames.feed(chunk):
            self._died(_told(data))

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._control.close()

    async def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._control)
        self._control.close()  # it ends by that
        try:
            await asyncio.to_thread(self._process.wait, GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _outcome(answer: Answer) -> Any:
    if answer.failed is not None:
        return answer.failed
    if answer.kind == "response":
        body, status, headers = answer.value
        return Response(body, status, headers)
    return PartialFailure(*answer.value) if answer.kind == "partial" else answer.value


def _lambda_variables(function: Function, folder: Path) -> dict[str, str]:
    return {
        "AWS_DEFAULT_REGION": REGION,
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "128",
        "AWS_LAMBDA_FUNCTION_NAME": function.name,
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_INITIALIZATION_TYPE": "provisioned-concurrency" if function.policy.min_environments else "on-demand",
        "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{function.name}",
        "AWS_LAMBDA_LOG_STREAM_NAME": f"[$LATEST]{new_id().replace('-', '')}",
        "AWS_REGION": REGION,
        "LAMBDA_TASK_ROOT": str(folder),
        "_HANDLER": f"{function.module}.{function.handler.__name__}",
    }


def _oom_kills() -> int:
    """How many processes the kernel has killed for want of memory; 0 where it doesn't say."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def cause_of_death(status: int, *, out_of_memory: bool = False) -> tuple[str, str]:
    """Lambda's error type and words for a process that ended with this wait status. out_of_memory: the kernel has killed for that."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        kind = "Runtime.OutOfMemory" if number == signal.SIGKILL and out_of_memory else "Runtime.ExitError"
        return kind, f"Runtime exited with error: signal: {(signal.strsignal(number) or str(number)).lower()}"
    code = os.WEXITSTATUS(status)
    return "Runtime.ExitError", f"Runtime exited with error: exit status {code}" if code else "Runtime exited without providing a reason"
