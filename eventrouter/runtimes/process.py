"""Runs handlers in environments: processes forked from a template, one invocation at a time each, reused while warm. The router's side."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import signal
import socket
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from eventrouter.clock import Clock, Timer
from eventrouter.errors import ConfigError
from eventrouter.functions import Function
from eventrouter.lineage import set_cause
from eventrouter.logs import Log
from eventrouter.model import Event, Failed, Stream
from eventrouter.runtimes.calls import Caller, Calls, Clients
from eventrouter.runtimes.environments import Call, Crew, Environment, NoEnvironment, Started
from eventrouter.runtimes.forking import GRACE, Template, cause_of_death
from eventrouter.runtimes.frames import Answer, Job, Order, Recipe, Told, TooLarge, frame
from eventrouter.runtimes.netns import Namespaces

log = logging.getLogger("eventrouter")

IDLE: Final = 300.0  # seconds that an environment is kept for the next invocation
_CHUNK: Final = 256 * 1024
_AHEAD: Final = 16  # jobs that an environment may have waiting behind the one it runs ...
_QUICK: Final = 0.005  # ... if the last took less seconds; what waits behind one that takes more is taken back
_CPUS: Final = os.cpu_count() or 1
_answer = msgspec.msgpack.Decoder(Answer).decode


class ProcessRuntime:
    """functions: those that run isolated. recipe: of the app, for the template. limit: how many environments there are at once.

    clients: what they may call.
    """

    def __init__(self, clock: Clock, functions: Mapping[str, Function], recipe: Recipe, folder: Path, limit: int, clients: Clients) -> None:
        self._clock = clock
        self._monotonic = clock.monotonic
        self._clients = clients
        self._recipe = recipe
        self._limit = limit
        self._crews = {name: Crew(function, folder) for name, function in functions.items()}
        self._asking: dict[Crew, None] = {}  # all that have calls waiting, and maybe others: there may be thousands that have none
        kept = sum(crew.minimum for crew in self._crews.values())
        if kept > limit:
            raise ConfigError(f"min_environments= of all functions come to {kept}, [app] processes is {limit}; lower them, or raise it")
        self._namespaces = Namespaces({name: function.network for name, function in functions.items() if function.network is not None})
        self._environments: dict[int, Environment] = {}
        self._numbers = self._calls = 0
        self._dispatching = self._built = self._started = False
        self._looking: asyncio.TimerHandle | None = None
        self._seen: dict[int, Call] = {}  # what environments ran that have more waiting, at the last look
        self._template: Template | None = None
        self._loading: asyncio.Task[str] | None = None
        self._reaper: Timer | None = None
        self._closing = False
        self._context = contextvars.Context()  # not that of the invocation which happens to need an environment first

    async def load(self) -> None:
        """Begin to load the app into the template, beside all else that starts; else it is loaded when it's needed.

        Raises ConfigError when the functions' networks can't be made.
        """
        await self._build()
        self._loading = asyncio.create_task(self._load(), name="template")
        await asyncio.sleep(0)  # else the process would begin only once this one has imported its sources, and it is to import meanwhile

    def start(self) -> None:
        """Take this context for what isn't an invocation's."""
        self._context, self._started = contextvars.copy_context(), True
        if self._template is not None:
            self._refill()

    async def ready(self) -> None:
        """The app is loaded. Raises ConfigError when it can't be."""
        if self._loading is not None:
            loading = self._loading
            try:
                fault = await loading
            finally:
                if self._loading is loading:
                    self._loading = None
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
        await self._namespaces.close()

    async def run(self, name: str, job: Job, started: Started, log: Log | None = None, stream: Stream | None = None) -> Any:
        """What the handler returned. Raises HasFailed, PartialFailure.

        started: called when it begins. log: of what it prints. stream: see `Router.request`.
        Cancelled, it kills the environment and waits until it is gone. Raises NoEnvironment when it is cancelled before it has one.
        """
        crew = self._crews[name]
        self._calls += 1
        job.stream = stream is not None
        call = Call(self._calls, job, started, log)
        crew.queue.append(call)
        self._asking[crew] = None
        self._dispatch_soon()
        try:
            return call.value(await call.done) if stream is None else await call.streamed(stream)
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

    # What goes where

    def _dispatch_soon(self) -> None:
        """At the end of this turn of the loop: what came in it is sent together."""
        if not self._dispatching:
            self._dispatching = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._dispatching = False
        for crew in list(self._asking):
            if not crew.queue or self._closing:
                del self._asking[crew]
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

    def _send(self, environment: Environment, count: int) -> None:
        """The next calls, up to so many, together."""
        queue, data, tokens = environment.crew.queue, [], bytearray()
        while queue and count and len(environment.ahead) < _AHEAD:
            call = queue.popleft()
            environment.sent = call.job.token = (environment.sent + 1) % 256
            tokens.append(environment.sent)
            data.append(frame(call.job))
            call.environment = environment
            environment.ahead.append(call)
            count -= 1
        if not data:
            return
        environment.write(b"".join(data))  # first: it wakes when there are tokens
        with suppress(OSError):
            environment.tokens.send(tokens)
        if environment.call is None:
            self._begin(environment, self._monotonic())
        if environment.ahead and self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(_QUICK, self._look)

    def _begin(self, environment: Environment, now: float) -> None:
        """It goes on with the next of what it was sent."""
        call = environment.call = environment.ahead.popleft()
        environment.since = now
        call.started(environment.init or 0.0, now)
        if call.log is not None:
            call.log.init = environment.init
            call.log.begin()
        environment.init = None

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

    def _take_back(self, environment: Environment) -> None:
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
                self._asking[environment.crew] = None
            self._dispatch_soon()

    # How many

    def _scale(self, crew: Crew) -> None:
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

    def _must_make_room(self, crew: Crew) -> bool:
        """Whether others wait who have less, and have nobody's idle ones to take."""
        return len(self._environments) >= self._limit and any(
            other.queue and not other.starting and other.count < crew.count and (other.count == 0 or other.count + 1 < crew.count)
            for other in self._asking
        ) and not any(e.ending for e in self._environments.values())  # fmt: skip

    def _reap(self) -> None:
        self._reaper = None
        now, earliest = self._monotonic(), None
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

    def _fork(self, crew: Crew) -> None:
        self._context.copy().run(self._order, crew)

    def _order(self, crew: Crew) -> None:
        assert self._template is not None
        jobs, theirs = socket.socketpair()
        calls, called = socket.socketpair()
        tokens, (answers, answered), (output, printed) = socket.socketpair(), os.pipe(), os.pipe()
        tokens[0].setblocking(False)
        try:
            self._numbers += 1
            environment = Environment(crew, self._numbers, jobs, tokens, answers, output, self._monotonic())
            jobs.setblocking(False)
            environment.calls = Calls(calls, self._clients, partial(self._caller, environment), partial(self._end, environment))
            self._environments[environment.number] = environment
            crew.count += 1
            crew.starting += 1
            loop = asyncio.get_running_loop()
            for descriptor in (answers, output):
                os.set_blocking(descriptor, False)
            loop.add_reader(answers, self._readable, environment)
            loop.add_reader(output, self._printed, environment)
            order = Order(environment.number, confinement=crew.confinement)
            self._template.order(order, theirs.fileno(), tokens[1].fileno(), answered, printed, called.fileno())
            environment.write(frame(crew.setup))
        finally:
            theirs.close()
            called.close()
            os.close(answered)
            os.close(printed)

    def _readable(self, environment: Environment) -> None:
        try:
            chunk = os.read(environment.answers, _CHUNK)
        except BlockingIOError:
            return
        if not chunk:
            asyncio.get_running_loop().remove_reader(environment.answers)
            self._end(environment)  # most have ended by themselves
            return
        try:
            for data in environment.frames.feed(chunk):
                self._answered(environment, data)
        except TooLarge:  # as below
            self._end(environment)
        if environment.ready and environment.call is None and not environment.ending:
            self._rests(environment)

    def _answered(self, environment: Environment, data: bytes) -> None:
        crew, call = environment.crew, environment.call
        try:
            answer = _answer(data)
        except msgspec.DecodeError:  # the handler wrote to what isn't its own
            self._end(environment)
            return
        if not environment.ready:
            environment.ready = True
            crew.starting -= 1
            environment.init = self._monotonic() - environment.began
        elif call is not None:
            environment.calls.give_up()  # what it hasn't waited for
            environment.call, environment.slow = None, False
            now = self._monotonic()
            crew.quick = now - environment.since < _QUICK
            if call.log is not None and self._template is not None:
                # Its group counts what it has started, but not the pages that it shares with others.
                answer.peak = max(self._template.peak(environment.number) or 0, answer.peak)
            call.end(answer)
            if environment.ahead:
                self._begin(environment, now)

    def _rests(self, environment: Environment) -> None:
        """It has nothing to do."""
        crew = environment.crew
        fresh = environment.init is not None
        environment.since = self._monotonic()
        crew.idle.append(environment)
        if not fresh and self._must_make_room(crew):
            self._retire(environment)
        elif self._reaper is None:
            self._reaper = self._clock.call_later(IDLE, self._reap)
        if crew.queue:
            self._dispatch_soon()

    def _printed(self, environment: Environment) -> None:
        self._readable(environment)  # so that it is known which invocation prints: none has ended that had printed what is there now
        environment.pass_on()

    def _caller(self, environment: Environment, id: str) -> Caller | None:
        """Who calls in the name of the invocation `id`, if the environment runs that; "": itself, while it starts and ends."""
        if not id:
            if environment.ready and not environment.ending:
                return None
            context = self._context.copy()
            context.run(set_cause, (environment.crew.name, Event("environment", "environment.life", environment.crew.name)))
            return Caller(context)
        if any(call.id == id for call in environment.ahead):
            self._readable(environment)  # that those before it have ended has not been read
        return environment.call.caller if environment.call is not None and environment.call.id == id else None

    def _retire(self, environment: Environment) -> None:
        """Ask it to close what it shares between invocations, and to end."""
        self._leave(environment)
        with suppress(OSError):
            environment.tokens.shutdown(socket.SHUT_WR)
        asyncio.get_running_loop().call_later(GRACE, self._end, environment)

    def _end(self, environment: Environment) -> None:
        """SIGTERM, and SIGKILL if that doesn't help."""
        self._leave(environment)
        if environment.ahead:  # else it could begin one before the second signal
            self._take_back(environment)
        self._signal(environment, signal.SIGTERM)
        asyncio.get_running_loop().call_later(GRACE, self._signal, environment, signal.SIGKILL)

    async def _gone(self, environment: Environment) -> None:
        self._end(environment)
        while not environment.gone.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait((environment.gone,))

    def _leave(self, environment: Environment) -> None:
        environment.ending = True
        if environment in environment.crew.idle:
            environment.crew.idle.remove(environment)

    def _signal(self, environment: Environment, number: int) -> None:
        if self._template is not None and not environment.gone.done():
            self._template.order(Order(environment.number, number))

    def _died(self, told: Told) -> None:
        environment = self._environments.pop(told.number, None)
        if environment is None:
            return
        crew = environment.crew
        self._leave(environment)
        with suppress(OSError, TooLarge):  # what it said last may not be read yet
            while chunk := os.read(environment.answers, _CHUNK):
                for data in environment.frames.feed(chunk):
                    self._answered(environment, data)
        environment.pass_on()
        environment.calls.close()
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
            kind, message = cause_of_death(told.status, out_of_memory=told.out_of_memory)
            call.end(Answer("failed", None, Failed(kind, f"RequestId: {call.id} Error: {message}"), told.peak))
        if environment.ready:
            self._refill()
        else:
            asyncio.get_running_loop().call_later(GRACE, self._refill)

    # The template

    def _reload(self) -> None:
        if self._loading is None:
            self._loading = asyncio.create_task(self._load_again(), name="template", context=self._context.copy())

    async def _load_again(self) -> str:
        try:
            fault = await self._load()
        except ConfigError as error:
            fault = str(error)
        self._loading = None
        if fault:
            log.error("the app can't be loaded for isolated functions: %s", fault, extra={"action": "template.failed"})
            for crew in self._crews.values():
                while crew.queue:
                    call = crew.queue.popleft()
                    call.end(Answer("failed", None, Failed("Runtime.ImportModuleError", fault), 0))
        return fault

    async def _load(self) -> str:
        """Why it can't be, or nothing. Raises ConfigError when the functions' networks can't be made."""
        await self._build()
        template = Template(self._died, self._template_died)
        try:
            fault = await template.load(self._recipe)
        except BaseException:
            await template.close()
            raise
        if fault:
            await template.close()
            return fault
        for note in template.notes:
            log.warning("%s", note, extra={"action": "limits.missing"})
        self._template = template
        if self._started:  # else what is to be kept warm would be started outside of its context
            self._refill()
        return ""

    async def _build(self) -> None:
        if not self._built:
            await self._namespaces.build()
            self._built = True
            for crew in self._crews.values():
                crew.setup.network = self._namespaces.path(crew.name)

    def _template_died(self) -> None:
        """With it all its environments."""
        if self._template is not None:
            log.error("the template process has died, and with it all environments", extra={"action": "template.died"})
            template, self._template = self._template, None
            template.kill()
            for number in list(self._environments):
                self._died(Told(number, signal.SIGKILL))
