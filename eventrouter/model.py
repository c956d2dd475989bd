"""The nouns: Event, Trigger, Context, and what an attempt and a decision can be."""

from __future__ import annotations

import base64
import itertools
import os
from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from types import MappingProxyType
from typing import Any, ClassVar, Final, Literal, NamedTuple
from urllib.parse import quote

import msgspec

from eventrouter.errors import EventRouterError, not_running
from eventrouter.patterns import Pattern

_prefix: str
REGION: Final = "local"
ACCOUNT: Final = "000000000000"

_LOW: Final = tuple(f"{number:03x}" for number in range(0x1000))


def _block(high: int) -> Iterator[str]:
    return map(f"{_prefix}{high:09x}".__add__, _LOW)


# Ids are made on the hot path: all but one of 4,096 by C alone, in a tenth of uuid4's time.
_ids = itertools.chain.from_iterable(map(_block, itertools.count()))


def _new_process() -> None:
    global _prefix
    random = os.urandom(11).hex()
    _prefix = f"{random[:8]}-{random[8:12]}-4{random[12:15]}-8{random[15:18]}-"


def _forked() -> None:
    """Else a child would make its parent's ids again."""
    _new_process()
    next(id for id in _ids if id.startswith(_prefix))


_new_process()
os.register_at_fork(after_in_child=_forked)


def new_id() -> str:
    """A fresh identifier, unique across processes, of UUID shape (36 characters)."""
    return next(_ids)


def function_arn(name: str) -> str:
    return f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{name}"


def iso_time(seconds: float) -> str:
    """`1767225600.5` -> `2026-01-01T00:00:00.500Z`, as AWS writes times."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


_TEXT: Final = ("text/", "application/json", "application/javascript", "application/xml")


NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


class _Said(msgspec.Struct, array_like=True, eq=False, gc=False):
    source: str
    type: str
    subject: str
    data: bytes = b""
    content_type: str = "application/json"


# Made by C, in a third of the time, and read from the journal without a line of Python. Out of the garbage collector's sight:
# nothing that it holds leads back to it.
class Event(_Said, array_like=True, eq=False, gc=False, kw_only=True):
    """An immutable fact from outside, with CloudEvents' attributes.

    source, type: which plugin's source it came from (`"mqtt"`) and what happened (`"mqtt.message"`).
    subject: what it is about, the text that triggers match (`sensors/a/temperature`, `bucket/key`).
    data, content_type: the payload as it came, bytes.
    id: the source's own identifier of this event: a repeat of (source, id) runs once. Left out when the
        source has none: the event gets one of `new_id` and is never deduplicated.
    time: seconds since 1970 when it happened; None is filled in when the router accepts it.
    attributes: whatever else the source knows (HTTP headers, S3 object size); JSON types only.
    natural: False: a repeat of its id is no repeat of it.
    attempt: which attempt at it is being made, while a function gets it.
    """

    id: str = msgspec.field(default_factory=_ids.__next__)
    time: float | None = None
    attributes: Mapping[str, Any] = NOTHING
    natural: bool = True
    attempt: int = 1
    _decoded: Any = msgspec.UNSET

    @property
    def dedupe(self) -> bool:
        """Whether a repeat of its id runs once."""
        return self.natural and not self.id.startswith(_prefix)

    def json(self) -> Any:
        """The data decoded as JSON, once. Raises msgspec.DecodeError when it is not JSON."""
        if self._decoded is msgspec.UNSET:
            self._decoded = msgspec.json.decode(self.data)
        return self._decoded

    def text_or_base64(self) -> tuple[str, bool]:
        """The data as AWS puts a body into JSON: text where the content type says so, else base64, and then True."""
        kind = self.content_type.partition(";")[0].strip().lower()
        if kind.startswith(_TEXT) or kind.endswith(("+json", "+xml")):
            try:
                return self.data.decode(), False
            except UnicodeDecodeError:
                pass  # it is not what it says it is
        return base64.b64encode(self.data).decode(), True

    def envelope(self) -> dict[str, Any]:
        """The event as JSON types: `id, source, type, subject, time, data`.

        `data` is the decoded JSON, else the text, else `{"base64": "..."}`.
        """
        data: Any
        try:
            data = self.json()
        except msgspec.DecodeError:
            try:
                data = self.data.decode()
            except UnicodeDecodeError:
                data = {"base64": base64.b64encode(self.data).decode()}
        time = None if self.time is None else iso_time(self.time)
        return {
            "id": self.id,
            "source": self.source,
            "type": self.type,
            "subject": self.subject,
            "time": time,
            "data": data,
        }

    def pack(self) -> bytes:
        """The event as bytes for a journal; `unpack` makes it again."""
        attributes = self.attributes if type(self.attributes) is dict else dict(self.attributes)
        natural = self.natural and not self.id.startswith(_prefix)  # see `dedupe`
        # The first of its fields, in their order.
        return _pack((self.source, self.type, self.subject, self.data, self.content_type, self.id, self.time, attributes, natural))

    @classmethod
    def unpack(cls, packed: bytes) -> Event:
        """Raises msgspec.DecodeError."""
        return unpack_many(packed, 1)[0]

    def __repr__(self) -> str:
        return f"Event({self.source!r}, {self.type!r}, {self.subject!r}, id={self.id!r}, {len(self.data)} bytes)"


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(list[Event]).decode
# As events were packed in the journal's formats before the fifth.
_unpack_old = msgspec.msgpack.Decoder(list[tuple[str, bool, str, str, str, float | None, str, dict[str, Any], bytes]]).decode


def pack_many(events: Sequence[Event]) -> bytes:
    """Up to 65,535 events, one behind the other, as bytes that `unpack_many` reads."""
    packed = _pack(
        [
            (
                event.source,
                event.type,
                event.subject,
                event.data,
                event.content_type,
                event.id,
                event.time,
                event.attributes if type(event.attributes) is dict else dict(event.attributes),
                event.natural and not event.id.startswith(_prefix),
            )
            for event in events
        ]
    )
    return packed[1 if len(events) < 16 else 3 :]  # without MessagePack's head of an array


def unpack_many(packed: bytes, count: int) -> list[Event]:
    """`count` events (up to 65,535) that were packed, one behind the other. Raises msgspec.DecodeError."""
    array = b"\xdc" + count.to_bytes(2, "big") + packed  # MessagePack's head of an array
    try:
        return _unpack(array)
    except msgspec.ValidationError:
        old = _unpack_old(array)
    return [
        Event(source, type, subject, data, kind, id=id, time=time, attributes=attributes, natural=dedupe)
        for id, dedupe, source, type, subject, time, kind, attributes, data in old
    ]


class Wild(Enum):
    """A segment of a trigger's `path` that is not literal."""

    ONE = "one segment"
    REST = "any segments, none included"


class Part(NamedTuple):
    """A segment that begins and ends so, `log-{day}.csv`; with `rest` all that is left of the subject, however many segments."""

    begins: str
    ends: str
    rest: bool = False


Segment = str | Wild | Part

Mode = Literal["event", "request"]


class Trigger:
    """What one function wants from one kind of source. Plugins subclass it.

    source: the plugin's name; events with that `source` are offered to it.
    service: who starts functions by it, as function policies name it (`"s3.amazonaws.com"`); empty: `SOURCE.eventrouter`.
    mode: "event" is journalled, acknowledged, then run; "request" has a caller waiting for the answer.
    path: where the trigger stands in the router's index over `event.subject` split at "/": literal
        segments, `Wild.ONE`, `Wild.REST`, `Part`. It may let too much through; `captures` and `accepts` have the last word.
    names: the named wildcards that `captures` gives, in order.
    content_pattern: what `view(event)` must match besides; the router holds events against the patterns of
        many triggers at once. What doesn't match in a queue is deleted.
    same: what tells it from others of its class: those with the same match the same events, capture the same and make the same
        `aws_event`, so that the router holds an event against the `where` of all their functions at once; None: there are none.
    """

    source: ClassVar[str]
    service: ClassVar[str] = ""
    mode: Mode = "event"
    path: tuple[Segment, ...] = (Wild.REST,)
    names: tuple[str, ...] = ()
    content_pattern: Pattern | None = None
    same: Hashable = None

    def captures(self, subject: str) -> Mapping[str, str] | None:
        """The captured wildcards when this trigger may want what is about `subject`, else None. The router keeps the answer."""
        raise NotImplementedError(f"{type(self).__name__}.captures")

    def accepts(self, event: Event) -> bool:
        """Whether it wants the event, whose subject is one it wants; only for what looks at more. `content_pattern` is not its affair."""
        return True

    def matches(self, event: Event) -> Mapping[str, str] | None:
        """The captured wildcards when this trigger wants the event, else None. Not to be overridden."""
        found = self.captures(event.subject)
        return found if found is not None and self.accepts(event) else None

    def check(self, policy: Any) -> None:
        """Raise ConfigError when a function of this `Policy` can't have the trigger; called at load."""

    @staticmethod
    def view(event: Event) -> Any:
        """The JSON object that `content_pattern` is held against; made once for all triggers of this function."""
        return event.json()

    def wants(self, event: Event) -> Mapping[str, str] | None:
        """As `matches`, and only if `content_pattern` matches."""
        captures = self.matches(event)
        if captures is None or self.content_pattern is None:
            return captures
        seen = viewed(self.view, event)
        return captures if seen is not None and self.content_pattern.matches(seen) else None

    def order_key(self, event: Event) -> str | None:
        """Events that are equal here run one after another, in their order; a function's `order_by` goes first. None: in any order."""
        return None

    def query(self, event: Event) -> Mapping[str, Sequence[str]] | None:
        """Query parameters, all values of each, for handler parameters with defaults; None: it has none."""
        return None

    def aws_event(self, events: Sequence[Event]) -> Any:
        """The documented AWS JSON that a Lambda function gets for these events (one unless batched)."""
        return events[0].json()

    @property
    def principal(self) -> str:
        return self.service or f"{self.source}.eventrouter"

    def arn(self, function: str, subject: str | None = None) -> str:
        """Where events of this subject come from, as function policies name it (`arn:aws:s3:::uploads`); None: with wildcards, where all
        come from that it wants."""
        return f"arn:aws:{self.source}:{REGION}:{ACCOUNT}:{quote(str(self))}"

    def __str__(self) -> str:
        """What `eventrouter list` shows: `mqtt sensors/{device}/temperature`."""
        return self.source


def viewed(view: Callable[[Event], Any], event: Event) -> dict[str, Any] | None:
    """What a pattern is held against; None, which no pattern matches, where that is no JSON object."""
    try:
        seen = view(event)
    except (EventRouterError, ValueError, RecursionError):  # its data isn't JSON, or nested beyond reason
        return None
    return seen if isinstance(seen, dict) else None


class Context:
    """What a handler can know of its invocation; has every field of AWS Lambda's Python context."""

    __slots__ = ("_deadline", "_decrypt", "_monotonic", "attempt", "aws_request_id", "env", "function_name")

    function_version = "$LATEST"
    identity = None
    client_context = None

    def __init__(
        self,
        function_name: str,
        aws_request_id: str,
        deadline: float,
        monotonic: Callable[[], float],
        env: Mapping[str, str] = NOTHING,
        attempt: int = 1,
        decrypt: Callable[[str], str] | None = None,
    ) -> None:
        self.function_name = function_name
        self.aws_request_id = aws_request_id
        self.env = env
        self.attempt = attempt
        self._deadline = deadline
        self._monotonic = monotonic
        self._decrypt = decrypt

    def decrypt(self, value: str) -> str:
        """What was encrypted for this function with `eventrouter secrets encrypt`: `context.decrypt(context.env["TOKEN"])`.

        Raises SecretError when it was not, or its master key is missing; NotRunning where no router runs the handler.
        """
        if self._decrypt is None:
            raise not_running("context.decrypt")
        return self._decrypt(value)

    @property
    def memory_limit_in_mb(self) -> str:
        return os.environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128")

    @property
    def invoked_function_arn(self) -> str:
        return function_arn(self.function_name)

    @property
    def log_group_name(self) -> str:
        return f"/aws/lambda/{self.function_name}"

    @property
    def log_stream_name(self) -> str:
        return f"[$LATEST]{_prefix.replace('-', '')}{os.getpid():012x}"

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until this attempt's time-out, 0 or more."""
        return max(0, int((self._deadline - self._monotonic()) * 1000))


class Response(msgspec.Struct, frozen=True):
    """A typed HTTP answer.

    body: `None`, `str`, `bytes`, anything that JSON can say, or an iterator of chunks (async or not), which is streamed.
    headers: a list is sent as so many headers of that name (`Set-Cookie`).
    """

    body: Any = None
    status: int = 200
    headers: Mapping[str, str | list[str]] = {}


class HttpRequest(msgspec.Struct, frozen=True):
    """What an `Endpoint` of a source is asked. path: decoded. parameters: of the path's wildcards. query: as it came.
    headers: in their order, names as they came. remote: the client's address."""

    method: str
    path: str
    parameters: Mapping[str, str]
    query: str
    headers: Sequence[tuple[str, str]]
    body: bytes
    remote: str

    def header(self, name: str) -> str | None:
        """The first header of that name, in any case."""
        wanted = name.lower()
        return next((value for key, value in self.headers if key.lower() == wanted), None)


class Notice(msgspec.Struct, frozen=True):
    """What happened to the router itself, or to a function; see `Source`.

    kind, and its detail, in JSON types:
    "dead": the function `about` has a dead letter: `id, reason, error_type, error_message, attempts, event` (an envelope without data).
    "throttled": requests to the function `about` found no concurrency: `throttles` since the last notice, `concurrency`.
    "source", "journal": the source `about`, or the journal, has changed: `state` ("live", "lost"; "accepting", "refusing"), `reason`.
    """

    kind: Literal["dead", "throttled", "source", "journal"]
    about: str
    detail: Mapping[str, Any]


# Consumes an answer of chunks; what it returns stands for the answer.
Stream = Callable[[Any], Awaitable[Any]]


# What became of one attempt.


class Succeeded(msgspec.Struct, frozen=True):
    """The handler returned `result`."""

    result: Any = None


class Failed(msgspec.Struct, frozen=True):
    """The handler raised. error_type as Lambda names it; retry_after: seconds, when the handler chose.

    final: no attempt can help (rejected, or the payload does not validate)."""

    error_type: str
    error_message: str
    trace: list[str] = []
    retry_after: float | None = None
    final: bool = False


class TimedOut(msgspec.Struct, frozen=True):
    """seconds: the limit that was reached. ended: False when the handler refused to end."""

    seconds: float
    ended: bool = True


class Interrupted(msgspec.Struct, frozen=True):
    """The router shut down, or had no concurrency left: not the handler's fault."""


Outcome = Succeeded | Failed | TimedOut | Interrupted


# What to do about it.


class Done(msgspec.Struct, frozen=True):
    pass


class RetryAt(msgspec.Struct, frozen=True):
    """at: seconds since 1970. attempts: how many are used up by now."""

    at: float
    attempts: int


class Release(msgspec.Struct, frozen=True):
    """Back to the journal, uncharged."""


class Dead(msgspec.Struct, frozen=True):
    """reason: one word of why it ended (`RetriesExhausted`); the error is the last attempt's."""

    reason: str
    error_type: str
    error_message: str
    attempts: int


Decision = Done | RetryAt | Release | Dead
