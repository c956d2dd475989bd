"""The router's side of what environments call: which clients there are, and the calls of one environment."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from contextvars import Context
from typing import Any, Final, NamedTuple

import msgspec

from eventrouter.errors import EventRouterError
from eventrouter.model import Response
from eventrouter.runtimes.frames import Ask, Frames, Raised, Reply, TooLarge, frame, pack
from eventrouter.runtimes.signatures import Arguments, Methods, name_of

log = logging.getLogger("eventrouter")

_CHUNK: Final = 256 * 1024
_MANY: Final = 1000  # calls of one environment at once; while there are more, or ...
_MUCH: Final = 64 * 1024 * 1024  # ... bytes of theirs and of replies that it hasn't read, no more are taken
_ask = msgspec.msgpack.Decoder(Ask).decode
Answerer = Callable[..., Awaitable[Any]]


class _Method(NamedTuple):
    made: Arguments | None
    arguments: Arguments
    function: Answerer


class Clients:
    """What environments may call: the public coroutine methods of these classes, and these functions by their names."""

    def __init__(self, classes: Iterable[type], functions: Mapping[str, Answerer]) -> None:
        self._classes = {f"{cls.__module__}:{cls.__qualname__}": cls for cls in classes}
        self._methods = {(name, ""): _Method(None, Arguments(function), function) for name, function in functions.items()}
        for target, cls in self._classes.items():
            made = Arguments(cls)
            for name in Methods(cls).coroutines:
                function = getattr(cls, name)
                self._methods[target, name] = _Method(made, Arguments(function), function)

    @property
    def names(self) -> list[str]:
        """As environments name the classes."""
        return list(self._classes)

    async def call(self, ask: Ask) -> Any:
        """Raises what the method raises, TypeError for wrong arguments, EventRouterError for what can't be called."""
        what = f"{name_of(ask.target)}.{ask.method}" if ask.method else ask.target
        method = self._methods.get((ask.target, ask.method))
        if method is None:
            raise EventRouterError(f"{what}: functions in processes can't call this; a plugin names its clients in Plugin(clients=...)")
        if method.made is None:
            bound = method.arguments.bind(what, *ask.args, **ask.kwargs)
        else:
            of = method.made.bind(what, **ask.made)
            bound = method.arguments.bind(what, self._classes[ask.target](*of.args, **of.kwargs), *ask.args, **ask.kwargs)
        return await method.function(*bound.args, **bound.kwargs)


class Caller(NamedTuple):
    """An invocation that calls. context: what its calls run in. own: what only it can call, about itself."""

    context: Context
    own: Mapping[str, Answerer] = {}


class Calls:
    """Those of one environment. whose: who makes a call in the name of such an invocation; None: it is not that environment's.

    broken: called when what comes is no call.
    """

    def __init__(self, end: socket.socket, clients: Clients, whose: Callable[[str], Caller | None], broken: Callable[[], None]) -> None:
        self._end = end
        self._clients = clients
        self._whose = whose
        self._broken = broken
        self._frames = Frames()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._size = 0  # bytes of calls under way
        self._rest = bytearray()  # of replies
        self._reading = self._writing = False
        end.setblocking(False)
        self._flow()

    def give_up(self) -> None:
        """The invocation that made them has ended."""
        for task in self._tasks.values():
            task.cancel()

    def close(self) -> None:
        self.give_up()
        self._rest.clear()
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._end)
        loop.remove_writer(self._end)
        self._end.close()

    def _flow(self) -> None:
        """Read while not too much is under way, write while there is something to."""
        if self._end.fileno() < 0:
            return
        loop = asyncio.get_running_loop()
        reads = len(self._tasks) < _MANY and self._size + len(self._rest) < _MUCH
        if reads != self._reading:
            self._reading = reads
            if reads:
                loop.add_reader(self._end, self._readable)
            else:
                loop.remove_reader(self._end)
        if bool(self._rest) != self._writing:
            self._writing = not self._writing
            if self._writing:
                loop.add_writer(self._end, self._write)
            else:
                loop.remove_writer(self._end)

    def _readable(self) -> None:
        try:
            chunk = self._end.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:  # it has closed it, or died
            asyncio.get_running_loop().remove_reader(self._end)
            return
        try:
            for data in self._frames.feed(chunk):
                self._asked(_ask(data), len(data))
        except (msgspec.DecodeError, TooLarge):
            self._broken()
        self._flow()

    def _asked(self, ask: Ask, size: int) -> None:
        if not ask.target and ask.method == "cancel":
            if (task := self._tasks.get(ask.number)) is not None:
                task.cancel()
            return
        caller = self._whose(ask.id)
        if caller is None or ask.number in self._tasks:
            log.warning("a call in the name of %r is refused", ask.id, extra={"action": "call.refused", "invocation": ask.id})
            why = EventRouterError("the call is refused: it is made in the name of an invocation that this environment does not run")
            self._reply(ask.number, raised=why)
            return
        self._size += size
        task = asyncio.get_running_loop().create_task(self._run(ask, caller), name="call", context=caller.context.copy())
        self._tasks[ask.number] = task
        task.add_done_callback(lambda task: self._done(ask.number, size))

    async def _run(self, ask: Ask, caller: Caller) -> None:
        try:
            if ask.target:
                value = await self._clients.call(ask)
            elif (own := caller.own.get(ask.method)) is not None:
                value = await own(*ask.args)
            else:
                raise EventRouterError(f"the router knows no call {ask.method!r}")
            self._reply(ask.number, value)
        except Exception as error:  # whatever it is, it is the handler's to see
            self._reply(ask.number, raised=error)

    def _done(self, number: int, size: int) -> None:
        del self._tasks[number]
        self._size -= size
        self._flow()

    def _reply(self, number: int, value: Any = None, raised: Exception | None = None) -> None:
        """Raises what can't be sent."""
        if raised is None:
            data = frame(Reply(number, msgspec.Raw(pack(value)), response=type(value) is Response))
        else:
            data = frame(Reply(number, raised=_as_data(raised)))
        if self._end.fileno() < 0:
            return
        if not self._rest:
            with suppress(BlockingIOError, ConnectionError):
                data = data[self._end.send(data) :]
        self._rest += data
        self._flow()

    def _write(self) -> None:
        try:
            del self._rest[: self._end.send(self._rest)]
        except BlockingIOError:
            return
        except OSError:  # it has died
            self._rest.clear()
        self._flow()


def _as_data(error: Exception) -> Raised:
    cls = type(error)
    try:
        args, state = list(error.args), {name: value for name, value in vars(error).items() if not name.startswith("_")}
        if isinstance(error, OSError) and error.filename is not None:
            args.append(str(error.filename))
        pack((args, state))
    except Exception:  # what it carries is no data
        args, state = [str(error)], {}
    return Raised(cls.__module__, cls.__qualname__, args, state)
