"""What the router, the template and the environments say to each other: length-prefixed MessagePack, over socket pairs."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec

from eventrouter.model import Failed
from eventrouter.runtimes.confine import Confinement

LIMIT: Final = 64 * 1024 * 1024  # bytes of a frame
_HEAD: Final = 4  # bytes of a frame's length
_CHUNK: Final = 256 * 1024
_length: Final = struct.Struct(">I").unpack_from


class Recipe(msgspec.Struct, array_like=True):
    """What the template makes the app's functions of.

    modules: (as the app names it, the folder that it is relative to). path: where Python looks for modules.
    overrides: `[functions.NAME]` tables without what is none of an environment's business. clients: `module:Class` of each.
    hidden: files and folders that none of it is to see, the first of them the data folder. key: see `Shelter`.
    """

    modules: list[tuple[str, str]]
    path: list[str]
    overrides: dict[str, dict[str, Any]]
    hidden: list[str] = []
    key: str = ""
    clients: list[str] = []


class Order(msgspec.Struct, array_like=True):
    """To the template. signal: for the environment of that number; None: fork it, from the descriptors that come along, and confine it."""

    number: int
    signal: int | None = None
    confinement: Confinement | None = None


class Told(msgspec.Struct, array_like=True):
    """From the template: environment `number` ended with that wait status, out_of_memory: killed for that. peak: its memory at most, MB.

    Number 0: the app is loaded, or `fault` says why not. notes: which limits are not kept. groups: see `cgroups.peak`.
    """

    number: int
    status: int = 0
    fault: str = ""
    out_of_memory: bool = False
    notes: list[str] = []
    groups: str = ""
    peak: int = 0


class Setup(msgspec.Struct, array_like=True):
    """To an environment, first. variables: its `os.environ`, besides what the template has; env: what `context.env` holds.

    network: what `netns.enter` takes; empty: the host's."""

    function: str
    variables: dict[str, str]
    env: dict[str, str]
    network: str = ""


class Job(msgspec.Struct, array_like=True):
    """To an environment: run this. id: the invocation's. trigger: its number among the function's, -1: none.

    events: each packed, with its captures and which attempt at it this is; several only for a `batch`. seconds: the time-out.
    report: whether somebody asks for the `peak`. stream: whether an answer of chunks is taken. token: what the environment must have got
    before it begins.
    """

    id: str
    trigger: int
    events: list[tuple[bytes, dict[str, str], int]]
    seconds: float
    batch: bool
    report: bool = False
    stream: bool = False
    token: int = 0


class Answer(msgspec.Struct, array_like=True):
    """From an environment: what a job came to; the first says that it is ready for one.

    value: what the handler returned; for a Response its body, status and headers; for a PartialFailure its items and message.
    peak: the environment's memory at most so far, MB; 0: nobody asked.
    """

    kind: str  # "returned", "response", "partial", "failed", "streamed"
    value: Any
    failed: Failed | None = None
    peak: int = 0


class Ask(msgspec.Struct, array_like=True):
    """From an environment, while it runs the invocation `id` ("": while it starts): call this, and reply.

    number: of the call. target: a client's `module:Class`, or what the router does by itself; "": it is about the invocation, and `method`
    says what. made: what the client is made of.
    """

    number: int
    id: str
    target: str
    method: str
    made: dict[str, Any] = {}
    args: list[Any] = []
    kwargs: dict[str, Any] = {}


class Raised(msgspec.Struct, array_like=True):
    """An exception as data. state: its own attributes."""

    module: str
    name: str
    args: list[Any]
    state: dict[str, Any] = {}


class Reply(msgspec.Struct, array_like=True):
    """To an environment: what came of a call of its. response: the value is a `Response`."""

    number: int
    value: msgspec.Raw = msgspec.Raw(b"\xc0")
    raised: Raised | None = None
    response: bool = False


def _plain(value: Any) -> Any:
    """What msgspec doesn't know, as what it does."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Iterable):
        return list(value)
    raise TypeError(f"{type(value).__name__} is no data")


pack = msgspec.msgpack.Encoder(enc_hook=_plain).encode  # of what goes to clients and comes from them
_encode = msgspec.msgpack.Encoder().encode


class TooLarge(ValueError):
    """A frame is larger than LIMIT."""


def frame(message: Any, encode: Callable[[Any], bytes] = _encode) -> bytes:
    """Raises what msgspec raises for what can't be encoded, TooLarge."""
    data = encode(message)
    if len(data) > LIMIT:
        raise TooLarge(f"{len(data):,} bytes are more than the {LIMIT >> 20} MiB that go between a function and the router at once")
    return len(data).to_bytes(_HEAD, "big") + data


class Frames:
    """Cuts what is read into frames."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """Raises TooLarge: who sends that isn't what we have written."""
        if self._rest:
            self._rest += chunk
            found, start = self._cut(self._rest)
            del self._rest[:start]
        else:  # the usual case
            found, start = self._cut(chunk)
            if start < len(chunk):
                self._rest += chunk[start:]
        return found

    @staticmethod
    def _cut(data: bytes | bytearray) -> tuple[list[bytes], int]:
        """The whole frames, and where the rest begins."""
        found, start, size = [], 0, len(data)
        while (begin := start + _HEAD) <= size:
            end = begin + _length(data, start)[0]
            if end > size:
                if end - begin > LIMIT:
                    raise TooLarge
                break
            found.append(bytes(data[begin:end]))
            start = end
        return found, start


class Line:
    """Takes frames from a blocking socket, one by one."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._frames = Frames()
        self._waiting: list[bytes] = []

    def take(self) -> bytes | None:
        """The next frame; None: the other side has ended it."""
        while not self._waiting:
            chunk = self._end.recv(_CHUNK)
            if not chunk:
                return None
            self._waiting = self._frames.feed(chunk)
        return self._waiting.pop(0)
