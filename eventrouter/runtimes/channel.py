"""The way from an environment to the router: clients' methods, `invoke` and the like are run there, in this invocation's name."""

from __future__ import annotations

import asyncio
import builtins
import functools
import importlib
import inspect
import itertools
import os
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from queue import SimpleQueue
from typing import Any

import msgspec

from eventrouter.errors import EventRouterError, NotRunning
from eventrouter.invoking import running_channel
from eventrouter.model import Response
from eventrouter.runtimes.frames import Ask, Line, Raised, Reply, frame, pack
from eventrouter.runtimes.signatures import Decode, Methods, decoder, name_of

_reply = msgspec.msgpack.Decoder(Reply).decode
_any = msgspec.msgpack.Decoder().decode
_response = msgspec.msgpack.Decoder(Response).decode


class Channel:
    """invocation: the one that runs, in whose name calls are made; None: none does, so there is nobody to make them for.

    Any thread may call, and many calls may be under way.
    """

    def __init__(self, end: socket.socket) -> None:
        self.invocation: str | None = ""
        self._end = end
        self._line = Line(end)
        self._numbers = itertools.count(1)
        self._writing = threading.Lock()
        # Whoever has this reads for all: a thread that waits for its own reply, so that no other need wake it, or else the reader.
        self._reading = threading.Lock()
        self._taken: dict[int, Callable[[Reply | None], None]] = {}  # by number, who waits for the reply
        self._reader: threading.Thread | None = None
        self._wanted = threading.Semaphore(0)  # by the reader: somebody waits who doesn't read
        self._mode = threading.local()
        os.register_at_fork(after_in_child=self._forked)

    async def call(
        self,
        target: str,
        method: str = "",
        made: Mapping[str, Any] = {},
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] = {},
        decode: Decode = _any,
    ) -> Any:
        """What the router's method returned; raises what it raised, NotRunning, TypeError for what is no data, TooLarge."""
        if self.invocation is None:
            what = f"{name_of(target)}.{method}" if method else target
            raise NotRunning(f"{what}: no invocation is running here; what a handler leaves behind can't call the router")
        ask = Ask(next(self._numbers), self.invocation, target, method, dict(made), list(args), dict(kwargs))
        if getattr(self._mode, "blocks", False):
            return _value(self._send_and_read(ask), decode)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Reply | None] = loop.create_future()

        def taken(reply: Reply | None) -> None:
            try:
                loop.call_soon_threadsafe(_resolve, future, reply)
            except RuntimeError:
                pass  # the loop is closed: nobody waits any more

        self._send(ask, taken)
        self._read_for_others()
        try:
            return _value(await future, decode)
        except asyncio.CancelledError:
            if self._taken.pop(ask.number, None) is not None:
                self._write(frame(Ask(ask.number, ask.id, "", "cancel")))
            raise

    def wait(self, what: str, make: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Run a coroutine that waits for calls alone, where nothing else runs meanwhile."""
        self._mode.blocks = True
        coroutine = make()
        try:
            coroutine.send(None)
        except StopIteration as stop:
            return stop.value
        finally:
            self._mode.blocks = False
            coroutine.close()
        raise EventRouterError(f"{what}: .sync waits for calls to the router alone in an isolated function; `await` the call without .sync")

    def _send(self, ask: Ask, taken: Callable[[Reply | None], None]) -> None:
        data = frame(ask, pack)
        self._taken[ask.number] = taken
        self._write(data)

    def _write(self, data: bytes) -> None:
        with self._writing:
            self._end.sendall(data)

    def _send_and_read(self, ask: Ask) -> Reply | None:
        replies: SimpleQueue[Reply | None] = SimpleQueue()
        self._send(ask, replies.put)
        if self._reading.acquire(blocking=False):
            try:
                while ask.number in self._taken:
                    self._take()
            finally:
                self._reading.release()
            if self._taken:
                self._read_for_others()
        return replies.get()

    def _read_for_others(self) -> None:
        if self._reader is None:
            with self._writing:
                if self._reader is None:
                    self._reader = threading.Thread(target=self._read, name="calls", daemon=True)
                    self._reader.start()
        self._wanted.release()

    def _read(self) -> None:
        while True:
            self._wanted.acquire()
            while self._taken:  # looked at anew with the lock free: who came before that has not got it
                with self._reading:
                    while self._taken:
                        self._take()

    def _take(self) -> None:
        data = self._line.take()
        if data is None:
            self.invocation = None
            while self._taken:
                self._taken.popitem()[1](None)
        else:
            reply = _reply(data)
            if (taken := self._taken.pop(reply.number, None)) is not None:
                taken(reply)

    def _forked(self) -> None:
        """A process that the handler forks would take its replies from it."""
        self.invocation = None


def _resolve(future: asyncio.Future[Reply | None], reply: Reply | None) -> None:
    if not future.done():
        future.set_result(reply)


def _value(reply: Reply | None, decode: Decode) -> Any:
    if reply is None:
        raise NotRunning("the router has gone")
    if reply.raised is not None:
        raise _exception(reply.raised)
    return _response(reply.value) if reply.response else decode(reply.value)


def _exception(raised: Raised) -> Exception:
    """The same exception, if its class is known here."""
    found = getattr(sys.modules.get(raised.module, builtins), raised.name, None)
    if not (isinstance(found, type) and issubclass(found, Exception)):
        return EventRouterError(": ".join(map(str, (raised.name, *raised.args))))
    # Not by its own __init__, which may want what isn't in `args`.
    error: Exception = found.__new__(found, *raised.args)
    vars(error).update(raised.state)
    return error


def install(clients: Iterable[str]) -> None:
    """Have the methods of these classes, `module:Class`, ask the router."""
    for target in clients:
        module, _, name = target.partition(":")
        cls = getattr(importlib.import_module(module), name)
        methods = Methods(cls)
        for method in methods.coroutines:
            setattr(cls, method, _asking(target, methods.made_of, getattr(cls, method)))
        for method in methods.generators:
            setattr(cls, method, _refusing(getattr(cls, method)))


def _asking(target: str, made_of: Sequence[str], method: Callable[..., Any]) -> Callable[..., Any]:
    name = method.__name__
    decode = functools.cache(lambda: decoder(method))  # not when it is installed: most are never called

    @functools.wraps(method)
    async def ask(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        made = {part: getattr(self, part) for part in made_of}
        channel = running_channel(f"{name_of(target)}.{name}")
        return await channel.call(target, name, made, args, kwargs, decode())

    return ask


def _refusing(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise EventRouterError(
            f"{method.__qualname__}: it gives one value after another, and what runs in a process gets whole answers alone"
        )

    assert inspect.isasyncgenfunction(method)
    return refuse
