"""SQS's names, limits and shapes."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from math import isfinite
from typing import Any, Final

import msgspec

from eventrouter import Event
from eventrouter.errors import ConfigError

MOST_BYTES: Final = 1024 * 1024  # of a message, its attributes included
MOST_SECONDS: Final = 43_200  # of a visibility time-out
MOST_DELAY: Final = 900  # seconds
MOST_WAIT: Final = 20
MOST_FILTERS: Final = 5
WINDOW: Final = 300  # seconds in which a FIFO queue knows a repeat
FIFO: Final = ".fifo"
_NAME: Final = re.compile(r"(?=.{1,80}$)[A-Za-z0-9_-]+(\.fifo)?", re.DOTALL)
_TOKEN: Final = re.compile(r"[!-~]{1,128}")
_NO_TEXT: Final = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")  # what XML can't say; its complement compiles in 8 ms
_ATTRIBUTE: Final = re.compile(r"(?!(?i:aws|amazon)\.)(?!\.|.*\.\.|.*\.\Z)[A-Za-z0-9_.-]{1,256}")

Value = str | int | float | bytes


class Message(msgspec.Struct, frozen=True):
    """What `Queue.receive` gives.

    id: as `send` returned it. receives: how often it was received, this time included. sent: when, in seconds since 1970.
    receipt: of this time; `delete` and `change_visibility` take it as long as nobody has received the message since.
    system: what SQS knows of it, as a record's `attributes` are: `MessageGroupId`, `SequenceNumber`, `DeadLetterQueueSourceArn` ...
    """

    id: str
    body: str
    attributes: dict[str, Value]
    receives: int
    sent: float
    receipt: str
    system: dict[str, str] = {}

    def json(self) -> Any:
        """The body decoded. Raises msgspec.DecodeError when it is not JSON."""
        return msgspec.json.decode(self.body)


def check_name(name: str, what: str = "sqs queue") -> str:
    """The name itself. Raises ConfigError that begins with `what`."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{what} {name!r}: a queue's name is 1 to 80 letters, digits, '-' and '_'; that of a FIFO queue ends in .fifo")
    return name


def is_fifo(name: str) -> bool:
    return name.endswith(FIFO)


def queue_arn(name: str) -> str:
    return f"arn:aws:sqs:local:000000000000:{name}"


def typed(attributes: Mapping[str, Value]) -> dict[str, Any]:
    """Message attributes as a record has them: `3` -> `{"stringValue": "3", ..., "dataType": "Number"}`. Raises ValueError."""
    return {name: _typed(name, value) for name, value in attributes.items()}


def _typed(name: str, value: Any) -> dict[str, Any]:
    lists: dict[str, Any] = {"stringListValues": [], "binaryListValues": []}  # AWS has them, and never anything in them
    if isinstance(value, str):
        return {"stringValue": value, **lists, "dataType": "String"}
    if isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value):
        return {"stringValue": str(value), **lists, "dataType": "Number"}
    if isinstance(value, bytes):
        return {"binaryValue": base64.b64encode(value).decode(), **lists, "dataType": "Binary"}
    raise ValueError(f"attribute {name!r}: {value!r} is no text, number or bytes")


def values(attributes: Mapping[str, Any]) -> dict[str, Value]:
    """What `typed` was given."""
    return {name: _value(attribute) for name, attribute in attributes.items()}


def _value(attribute: Mapping[str, str]) -> Value:
    if attribute["dataType"] == "Binary":
        return base64.b64decode(attribute["binaryValue"])
    text = attribute["stringValue"]
    if attribute["dataType"] == "String":
        return text
    try:
        return int(text)
    except ValueError:
        return float(text)


def _check_text(text: str, what: str) -> None:
    if found := _NO_TEXT.search(text):
        raise ValueError(f"{what} has the character {found[0]!r}, which SQS refuses; encode it, as base64 say")


def check(body: bytes, attributes: Mapping[str, Any], delay: float | None) -> None:
    """Raise ValueError for what SQS would refuse. Not for dead letters: what they come from decides how large they are."""
    if delay is not None and not 0 <= delay <= MOST_DELAY:
        raise ValueError(f"delay={delay!r}: 0 to {MOST_DELAY} seconds")
    if len(attributes) > 10:
        raise ValueError(f"{len(attributes)} attributes: a message has at most 10")
    size = len(body)
    for name, attribute in attributes.items():
        value = attribute.get("binaryValue") or attribute.get("stringValue")
        if not _ATTRIBUTE.fullmatch(name):
            raise ValueError(
                f"attribute {name!r}: its name is 1 to 256 letters, digits, '_', '-' and single '.' in between, "
                "and begins with no 'AWS.' or 'Amazon.'"
            )
        if not value:
            raise ValueError(f"attribute {name!r} is empty; leave it out")
        _check_text(value, f"attribute {name!r}")
        size += len(name) + len(value.encode())
    if not body:
        raise ValueError("the body is empty; a message has at least 1 byte")
    _check_text(body.decode(), "the body")
    if size > MOST_BYTES:
        raise ValueError(f"{size} bytes: a message has at most {MOST_BYTES}; put what is larger into a bucket and send its key")


def group_of(event: Event) -> str | None:
    found: str | None = event.attributes.get("fifo", {}).get("MessageGroupId")
    return found


def sent(
    queue: str, body: bytes, attributes: Mapping[str, Any], delay: float | None = None, fifo: Mapping[str, str] | None = None
) -> Event:
    """The event of a message that comes into a queue. attributes: as `typed` gives them. delay: None is the queue's. fifo: as `ordered`."""
    known: dict[str, Any] = {"messageAttributes": attributes}
    if delay is not None:
        known["delay"] = delay
    if fifo is not None:
        known["fifo"] = fifo
    # The id is made here and now, so no repeat of it can come: nothing to deduplicate.
    return Event("sqs", "sqs.message", queue, body, attributes=known)


def ordered(body: bytes, group: str | None, dedupe: str | None, *, by_content: bool) -> dict[str, str]:
    """What a message of a FIFO queue is known by, but for its number. Raises ValueError."""
    if group is None:
        raise ValueError("a message of a FIFO queue needs a group=")
    if dedupe is None and not by_content:
        raise ValueError("a message of a FIFO queue needs a dedupe=, unless the queue has content_dedupe = true")
    found = {"MessageGroupId": group, "MessageDeduplicationId": hashlib.sha256(body).hexdigest() if dedupe is None else dedupe}
    for what, value in zip(("group", "dedupe"), found.values(), strict=True):
        if not _TOKEN.fullmatch(value):
            raise ValueError(f"{what}={value!r}: 1 to 128 letters, digits and punctuation of ASCII")
    return found


def died(event: Event, dlq: str) -> Event:
    """A dead message in its dead-letter queue: the same message, which came from another queue. A FIFO queue dates it anew."""
    attributes = {key: event.attributes[key] for key in ("messageAttributes", "fifo") if key in event.attributes} | {"from": event.subject}
    time = None if is_fifo(dlq) else event.time
    return Event(
        "sqs", "sqs.moved", dlq, event.data, event.content_type, id=event.id, time=time, attributes=attributes, natural=False
    )  # it may die again


def redriven(event: Event, queue: str, number: str) -> Event:
    """What a dead message is in the queue that it goes back to: a new one. number: its place there, if that is a FIFO queue."""
    attributes: dict[str, Any] = {"messageAttributes": attributes_of(event)}
    if "fifo" in event.attributes:
        attributes["fifo"] = {**event.attributes["fifo"], "SequenceNumber": number}
    return Event("sqs", "sqs.moved", queue, event.data, event.content_type, attributes=attributes)


def text_of(event: Event) -> str:
    """A body. Only a dead letter's may be no text; the letter itself keeps its bytes."""
    return event.data.decode(errors="replace")


def attributes_of(event: Event) -> dict[str, Any]:
    """As `typed` gives them."""
    found: dict[str, Any] = event.attributes.get("messageAttributes", {})
    return found


def record(event: Event) -> dict[str, Any]:
    """The message as a Lambda function gets it."""
    body, attributes = text_of(event), attributes_of(event)
    made = {
        "messageId": event.id,
        "receiptHandle": f"{event.id}.{event.attempt}",
        "body": body,
        "attributes": system_of(event),
        "messageAttributes": attributes,
        "md5OfBody": md5(body),
        "eventSource": "aws:sqs",
        "eventSourceARN": queue_arn(event.subject),
        "awsRegion": "local",
    }
    if attributes:
        made["md5OfMessageAttributes"] = md5_of_attributes(attributes)
    return made


def system_of(event: Event) -> dict[str, str]:
    """The `attributes` of a record."""
    sent = str(int((event.time or 0) * 1000))
    found = {
        "ApproximateReceiveCount": str(event.attempt),
        "SentTimestamp": sent,
        "SenderId": "000000000000",
        "ApproximateFirstReceiveTimestamp": sent,  # nobody writes down when it was first received
        **event.attributes.get("fifo", {}),
    }
    if (source := event.attributes.get("from")) is not None:
        found["DeadLetterQueueSourceArn"] = queue_arn(source)
    return found


def md5(body: str) -> str:
    return hashlib.md5(body.encode(), usedforsecurity=False).hexdigest()


def md5_of_attributes(attributes: Mapping[str, Any]) -> str:
    """By AWS's algorithm: each by name; lengths in four bytes before name, type and value; 1 says that a text follows, 2 bytes."""
    digest = hashlib.md5(usedforsecurity=False)
    for name in sorted(attributes):
        attribute = attributes[name]
        binary = attribute["dataType"] == "Binary"
        value = base64.b64decode(attribute["binaryValue"]) if binary else attribute["stringValue"].encode()
        for part in (name.encode(), attribute["dataType"].encode()):
            digest.update(len(part).to_bytes(4) + part)
        digest.update((b"\x02" if binary else b"\x01") + len(value).to_bytes(4) + value)
    return digest.hexdigest()
