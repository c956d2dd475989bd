"""SQS-like queues: a message stays in its queue until a function has handled it, or somebody has received and deleted it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec

from eventrouter import Event, EventRouterError, Plugin, Trigger, Wildcards, call_from_thread, hookimpl
from eventrouter.errors import ConfigError
from eventrouter_sqs.messages import MOST_SECONDS, Message, Value, check_name, record
from eventrouter_sqs.settings import Queues, SqsConfig

if TYPE_CHECKING:
    from eventrouter_sqs.source import SqsSource

__all__ = ["Message", "Queue", "QueueTrigger", "sqs"]


class QueueTrigger(Trigger):
    """`sqs(...)` makes it. text: as it was written."""

    source = "sqs"

    def __init__(self, queue: str) -> None:
        self._wildcards = Wildcards(queue, "sqs queue")
        check_name(re.sub(r"\{.*?\}", "x", queue), f"sqs({queue!r}):")
        self.text = queue
        self.path = self._wildcards.path
        self.names = self._wildcards.names

    def matches(self, event: Event) -> Mapping[str, str] | None:
        return self._wildcards.match(event.subject)

    def aws_event(self, events: Sequence[Event]) -> dict[str, Any]:
        return {"Records": [record(event) for event in events]}

    def __str__(self) -> str:
        return f"sqs {self.text}"


def sqs(queue: str) -> QueueTrigger:
    """Start the function with every message of `queue`, until it has handled it.

    queue: a name, or a pattern of names: `"{team}-jobs"` hands `team` to the parameter of that name.
    The payload is the message's body; a Lambda function gets AWS's SQS event. A message that fails is there again after
    the queue's visibility time-out: the queue's settings take the place of the function's `retries`, `backoff` and `max_age`.
    """
    return QueueTrigger(queue)


class Queue:
    """A queue to send to and receive from, in handlers; making one does nothing yet."""

    def __init__(self, name: str) -> None:
        self.name = check_name(name, "Queue")
        self.sync = SyncQueue(self)

    async def send(self, body: Any, *, attributes: Mapping[str, Value] | None = None) -> str:
        """Put a message into the queue; returns its id once it is on disk.

        body: text goes in as it is, anything else as JSON; up to 1 MiB with the attributes.
        attributes: at most 10; texts, numbers and bytes become message attributes of their type.
        Raises NotRunning outside a handler, JournalError when it can't be written, ValueError for what SQS would refuse.
        """
        data = body.encode() if isinstance(body, str) else msgspec.json.encode(body)
        return await _source().put(self.name, data, attributes or {})

    async def receive(self, max: int = 1, *, visibility: float | None = None) -> list[Message]:
        """Up to `max` (1 to 10) messages that nobody holds, those first that have been there longest; it does not wait for any.

        visibility: seconds (0 to 43200) until they are there again, unless they have been deleted; None: the queue's.
        What was received `max_receives` times before is a dead letter now.
        """
        if not 1 <= max <= 10:
            raise ValueError(f"{self!r}.receive: max={max!r}: 1 to 10")
        return await _source().receive(self.name, max, None if visibility is None else self._seconds(visibility))

    async def delete(self, message: Message) -> bool:
        """It is done with. False: it was deleted before, or received by another since; then it stays."""
        return await _source().router.remove(*self._receipt(message))

    async def change_visibility(self, message: Message, seconds: float) -> bool:
        """Let it be there again in so many seconds from now (0 to 43200). False: as `delete`."""
        return await _source().router.hide(*self._receipt(message), self._seconds(seconds))

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

    def send(self, body: Any, *, attributes: Mapping[str, Value] | None = None) -> str:
        """As `Queue.send`."""
        return call_from_thread(self._what, lambda: self._queue.send(body, attributes=attributes))

    def receive(self, max: int = 1, *, visibility: float | None = None) -> list[Message]:
        """As `Queue.receive`."""
        return call_from_thread(self._what, lambda: self._queue.receive(max, visibility=visibility))

    def delete(self, message: Message) -> bool:
        """As `Queue.delete`."""
        return call_from_thread(self._what, lambda: self._queue.delete(message))

    def change_visibility(self, message: Message, seconds: float) -> bool:
        """As `Queue.change_visibility`."""
        return call_from_thread(self._what, lambda: self._queue.change_visibility(message, seconds))


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


@hookimpl
def eventrouter_plugin() -> Plugin:
    # Always there: handlers started by any source send, dead letters come, and `eventrouter send sqs` too.
    return Plugin(
        name="sqs",
        source="eventrouter_sqs.source:SqsSource",
        always=True,
        destination=check_name,
        config=SqsConfig,
        triggers={"sqs": sqs},
        check=check,  # type: ignore[arg-type]  # it is only given triggers of its own
    )
