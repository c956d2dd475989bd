"""SQS-like queues: a message stays in its queue until a function has handled it, or somebody has received and deleted it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec

from eventrouter import (
    Event,
    EventRouterError,
    Plugin,
    QueueDepth,
    Trigger,
    Wildcards,
    call_from_thread,
    hookimpl,
    patterns,
    permissions,
)
from eventrouter.errors import ConfigError
from eventrouter_sqs.messages import (
    MOST_FILTERS,
    MOST_SECONDS,
    MOST_WAIT,
    Message,
    Value,
    check_name,
    is_fifo,
    ordered,
    queue_arn,
    record,
    sent,
    typed,
)
from eventrouter_sqs.settings import Queues, SqsConfig, attributes

if TYPE_CHECKING:
    from eventrouter_sqs.source import SqsSource

__all__ = ["Message", "Queue", "QueueTrigger", "sqs"]


class QueueTrigger(Trigger):
    """`sqs(...)` makes it. text: as it was written."""

    source = "sqs"
    service = "sqs.amazonaws.com"

    def __init__(self, queue: str, filter: Filter | None = None) -> None:
        self._wildcards = Wildcards(queue, "sqs queue")
        check_name(re.sub(r"\{.*?\}", "x", queue), f"sqs({queue!r}):")
        self.text = queue
        self.path = self._wildcards.path
        self.names = self._wildcards.names
        self.fifo = is_fifo(queue)
        self.content_pattern = None if filter is None else _compile(filter, queue)

    def captures(self, subject: str) -> Mapping[str, str] | None:
        return self._wildcards.match(subject) if is_fifo(subject) == self.fifo else None

    @staticmethod
    def view(event: Event) -> Any:
        """The record, with a body that is a JSON object decoded."""
        it = record(event)
        try:
            body = event.json()
        except (msgspec.DecodeError, UnicodeDecodeError):
            return it
        return it | {"body": body} if isinstance(body, dict) else it

    def check(self, policy: Any) -> None:
        if not self.fifo:
            return
        if policy.order_by is not None:
            raise ConfigError(f"order_by={policy.order_by!r} and {self}: a FIFO queue's order is that of its groups; drop order_by")
        if policy.batch is not None and (policy.batch.size > 10 or policy.batch.window):
            raise ConfigError(f"batch={policy.batch} and {self}: batches of a FIFO queue have at most 10 messages, and no window")

    def aws_event(self, events: Sequence[Event]) -> dict[str, Any]:
        return {"Records": [record(event) for event in events]}

    def arn(self, function: str, subject: str | None = None) -> str:
        return queue_arn(re.sub(r"\{.*?\}", "*", self.text) if subject is None else subject)

    def __str__(self) -> str:
        return f"sqs {self.text}" + (" (filtered)" if self.content_pattern else "")


Filter = str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]]


def sqs(queue: str, filter: Filter | None = None) -> QueueTrigger:
    """Start the function with every message of `queue`, until it has handled it.

    queue: a name, or a pattern of names: `"{team}-jobs"` hands `team` to the parameter of that name.
    filter: an EventBridge pattern, or several of which one must match, over the record as a Lambda function gets it, but with a body
        that is a JSON object decoded: `{"body": {"kind": ["order"]}}`. Messages that don't match are deleted.
    The payload is the message's body; a Lambda function gets AWS's SQS event. A message that fails is there again after
    the queue's visibility time-out: the queue's settings take the place of the function's `retries`, `backoff` and `max_age`.
    Of a FIFO queue (`"orders.fifo"`) the messages of a group come in order, one after another or in one batch.
    Raises ConfigError.
    """
    return QueueTrigger(queue, filter)


def _compile(filter: Filter, queue: str) -> patterns.Pattern:
    several = [filter] if isinstance(filter, str | Mapping) else list(filter)
    if not 1 <= len(several) <= MOST_FILTERS:
        raise ConfigError(f"sqs({queue!r}): filter has {len(several)} patterns: 1 to {MOST_FILTERS}")
    try:
        each = [patterns.compile(pattern) for pattern in several]
        return each[0] if len(each) == 1 else patterns.compile({"$or": [pattern.source for pattern in each]})
    except patterns.PatternError as error:
        raise ConfigError(f"sqs({queue!r}): filter: {error}") from None


class Queue:
    """A queue to send to and receive from, in handlers; making one does nothing yet. That of a FIFO queue ends in ".fifo".

    Every method raises AccessDenied for what the function's role does not allow.
    """

    def __init__(self, name: str) -> None:
        self.name = check_name(name, "Queue")
        self.sync = SyncQueue(self)

    async def send(
        self,
        body: Any,
        *,
        attributes: Mapping[str, Value] | None = None,
        delay: float | None = None,
        group: str | None = None,
        dedupe: str | None = None,
    ) -> str:
        """Put a message into the queue; returns its id once it is on disk.

        body: text goes in as it is, anything else as JSON; up to 1 MiB with the attributes.
        attributes: at most 10; texts, numbers and bytes become message attributes of their type.
        delay: seconds (0 to 900) until it can be received; None: the queue's.
        group, dedupe: for FIFO queues only. The messages of a group stay in order. For 5 minutes another of the same `dedupe` is a repeat:
            it is not kept, and the id is that of the first. A queue with `content_dedupe` needs no `dedupe`.
        Raises NotRunning outside a handler, JournalError when it can't be written, ValueError for what SQS would refuse.
        """
        (id,) = await self._send([body], attributes, delay, group, dedupe)
        return id

    async def send_many(
        self, bodies: Iterable[Any], *, attributes: Mapping[str, Value] | None = None, delay: float | None = None, group: str | None = None
    ) -> list[str]:
        """Put messages into the queue, all or none; returns their ids. As `send`."""
        return await self._send(bodies, attributes, delay, group, None)

    async def _send(
        self, bodies: Iterable[Any], attributes: Mapping[str, Value] | None, delay: float | None, group: str | None, dedupe: str | None
    ) -> list[str]:
        self._require("SendMessage")
        source, attributes = _source(), attributes or {}
        encoded = [body.encode() if isinstance(body, str) else msgspec.json.encode(body) for body in bodies]
        return await source.put([source.make(self.name, body, attributes, delay, group, dedupe) for body in encoded])

    async def receive(self, max: int = 1, *, wait: float = 0, visibility: float | None = None) -> list[Message]:
        """Up to `max` (1 to 10) messages that nobody holds, those first that have been there longest.

        wait: seconds (0 to 20) to wait for the first, when there is none. The handler's time-out goes on meanwhile.
        visibility: seconds (0 to 43200) until they are there again, unless they have been deleted; None: the queue's.
        Of a group of a FIFO queue there is none while one that was received is neither deleted nor there again.
        What was received `max_receives` times before is a dead letter now.
        """
        self._require("ReceiveMessage")
        if not 1 <= max <= 10:
            raise ValueError(f"{self!r}.receive: max={max!r}: 1 to 10")
        if not 0 <= wait <= MOST_WAIT:
            raise ValueError(f"{self!r}.receive: wait={wait!r}: 0 to {MOST_WAIT} seconds")
        return await _source().receive(self.name, max, None if visibility is None else self._seconds(visibility), wait)

    async def delete(self, message: Message) -> bool:
        """It is done with. False: it was deleted before, or received by another since; then it stays."""
        self._require("DeleteMessage")
        return await _source().router.remove(self.name, *self._receipt(message))

    async def change_visibility(self, message: Message, seconds: float) -> bool:
        """Let it be there again in so many seconds from now (0 to 43200). False: as `delete`."""
        self._require("ChangeMessageVisibility")
        return await _source().router.hide(self.name, *self._receipt(message), self._seconds(seconds))

    async def redrive(self, to: str | None = None, max: int | None = None) -> int:
        """Move messages of this dead-letter queue back to the queues that they came from, or all to `to`; how many were moved.

        They are new messages there, each moved in one transaction. max: at most so many. What somebody holds stays. The function's role
        must allow to send to each of those queues; the first that it doesn't ends it, with AccessDenied.
        """
        self._require("StartMessageMoveTask")
        if to is not None and (check_name(to, "redrive") == self.name or is_fifo(to) != is_fifo(self.name)):
            raise ValueError(f"{self!r}.redrive: to={to!r}: another queue, and FIFO if this one is")
        if max is not None and max < 1:
            raise ValueError(f"{self!r}.redrive: max={max!r}: 1 or more")
        return await _source().redrive(self.name, to, max)

    async def purge(self) -> int:
        """Delete all its messages, those that were received by hand included; how many there were. What a function runs goes on."""
        self._require("PurgeQueue")
        return await _source().purge(self.name)

    async def depth(self) -> QueueDepth:
        """How many messages are `available`, `held` by somebody, and `delayed`."""
        self._require("GetQueueAttributes")
        return await _source().depth(self.name)

    async def attributes(self) -> dict[str, str]:
        """What GetQueueAttributes of SQS answers: `ApproximateNumberOfMessages`, `VisibilityTimeout`, `QueueArn` ..."""
        self._require("GetQueueAttributes")
        source = _source()
        return attributes(self.name, source.queue(self.name), await source.depth(self.name))

    def _require(self, action: str) -> None:
        permissions.require(f"sqs:{action}", queue_arn(self.name))

    def _receipt(self, message: Message) -> tuple[str, int]:
        queue, id, receives = message.receipt.split("/")
        if queue != self.name:
            raise EventRouterError(f"{self!r}: message {message.id} was received from Queue({queue!r}); use that one")
        return id, int(receives)

    def _seconds(self, seconds: float) -> float:
        if not 0 <= seconds <= MOST_SECONDS:
            raise ValueError(f"{self!r}: visibility {seconds!r}: 0 to {MOST_SECONDS} seconds")
        return seconds

    def __repr__(self) -> str:
        return f"Queue({self.name!r})"


class SyncQueue:
    """`Queue.sync`: the same for `def` handlers."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._what = f"{queue!r}.sync"

    def send(
        self,
        body: Any,
        *,
        attributes: Mapping[str, Value] | None = None,
        delay: float | None = None,
        group: str | None = None,
        dedupe: str | None = None,
    ) -> str:
        """As `Queue.send`."""
        return call_from_thread(self._what, lambda: self._queue.send(body, attributes=attributes, delay=delay, group=group, dedupe=dedupe))

    def send_many(
        self, bodies: Iterable[Any], *, attributes: Mapping[str, Value] | None = None, delay: float | None = None, group: str | None = None
    ) -> list[str]:
        """As `Queue.send_many`."""
        return call_from_thread(self._what, lambda: self._queue.send_many(bodies, attributes=attributes, delay=delay, group=group))

    def receive(self, max: int = 1, *, wait: float = 0, visibility: float | None = None) -> list[Message]:
        """As `Queue.receive`."""
        return call_from_thread(self._what, lambda: self._queue.receive(max, wait=wait, visibility=visibility))

    def delete(self, message: Message) -> bool:
        """As `Queue.delete`."""
        return call_from_thread(self._what, lambda: self._queue.delete(message))

    def change_visibility(self, message: Message, seconds: float) -> bool:
        """As `Queue.change_visibility`."""
        return call_from_thread(self._what, lambda: self._queue.change_visibility(message, seconds))

    def redrive(self, to: str | None = None, max: int | None = None) -> int:
        """As `Queue.redrive`."""
        return call_from_thread(self._what, lambda: self._queue.redrive(to, max))

    def purge(self) -> int:
        """As `Queue.purge`."""
        return call_from_thread(self._what, self._queue.purge)

    def depth(self) -> QueueDepth:
        """As `Queue.depth`."""
        return call_from_thread(self._what, self._queue.depth)

    def attributes(self) -> dict[str, str]:
        """As `Queue.attributes`."""
        return call_from_thread(self._what, self._queue.attributes)


def _source() -> SqsSource:
    from eventrouter_sqs.source import SqsSource  # noqa: PLC0415 - sources load when they are needed

    return SqsSource.current()


def check(config: SqsConfig, pairs: Sequence[tuple[str, QueueTrigger]]) -> None:
    """The settings hold, and no two functions take from one queue."""
    Queues(config)
    owners: dict[str, str] = {}
    patterns = [pair for pair in pairs if pair[1].names]
    for name, trigger in pairs:
        rivals = [(owners.setdefault(trigger.text, name), trigger), *(pairs if trigger.names else patterns)]
        for other, its in rivals:
            if other != name and _meet(trigger.text, its.text):
                queues = repr(its.text) if its.text == trigger.text else f"{its.text!r} and {trigger.text!r}, which may be one,"
                raise ConfigError(
                    f"functions {other!r} and {name!r} take from the queue {queues} and each message would go to one of them only; "
                    "send to a queue for each, or publish to a topic"
                )


def _meet(one: str, two: str) -> bool:
    """Whether some name fits both patterns."""
    if is_fifo(one) != is_fifo(two):
        return False
    one, two = (re.sub(r"\{.*?\}", "?*", pattern) for pattern in (one, two))  # a wildcard is a character, then any

    @cache
    def meet(at: int, to: int) -> bool:
        a, b = one[at : at + 1], two[to : to + 1]
        if a == "*":
            return meet(at + 1, to) or (bool(b) and meet(at, to + 1))
        if b == "*":
            return meet(at, to + 1) or (bool(a) and meet(at + 1, to))
        if not (a and b):
            return a == b
        return (a == b or "?" in (a, b)) and meet(at + 1, to + 1)

    return meet(0, 0)


def sample(
    queue: str = "jobs",
    body: str = "Hello from SQS!",
    *,
    attribute: dict[str, str] = {},  # noqa: B006 - read only
    group: str | None = None,
) -> dict[str, Any]:
    """The event of a message from QUEUE. group is for FIFO queues."""
    fifo = None
    if is_fifo(check_name(queue, "sample sqs:")):
        fifo = {"SequenceNumber": "18849496460467696128", **ordered(body.encode(), group or "group", None, by_content=True)}
    event = sent(queue, body.encode(), typed(attribute), None, fifo)
    event.time = 1_767_225_600.0
    return sqs(queue).aws_event([event])


@hookimpl
def eventrouter_plugin() -> Plugin:
    # Always there: handlers started by any source send, dead letters come, and `eventrouter send sqs` too.
    return Plugin(
        name="sqs",
        source="eventrouter_sqs.source:SqsSource",
        always=True,
        destination=check_name,
        sends=("sqs:SendMessage", queue_arn("{}")),
        config=SqsConfig,
        clients=[Queue],
        triggers={"sqs": sqs},
        sample=sample,
        check=check,  # type: ignore[arg-type]  # it is only given triggers of its own
    )
