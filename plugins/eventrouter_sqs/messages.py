"""SQS's names, limits and shapes."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from eventrouter import Event
from eventrouter.errors import ConfigError

MOST_BYTES: Final = 1024 * 1024  # of a message, its attributes included
MOST_SECONDS: Final = 43_200  # of a visibility time-out
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,80}")
_ATTRIBUTE: Final = re.compile(r"(?!(?i:aws|amazon)\.)[A-Za-z0-9_.-]{1,256}")

Value = str | int | float | bytes


class Message(msgspec.Struct, frozen=True):
    """What `Queue.receive` gives.

    id: as `send` returned it. receives: how often it was received, this time included. sent: when, in seconds since 1970.
    receipt: of this time; `delete` and `change_visibility` take it as long as nobody has received the message since.
    """

    id: str
    body: str
    attributes: dict[str, Value]
    receives: int
    sent: float
    receipt: str

    def json(self) -> Any:
        """The body decoded. Raises msgspec.DecodeError when it is not JSON."""
        return msgspec.json.decode(self.body)


def check_name(name: str, what: str = "sqs queue") -> str:
    """The name itself. Raises ConfigError that begins with `what`."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{what} {name!r}: a queue's name is 1 to 80 letters, digits, '-' and '_'")
    return name


def queue_arn(name: str) -> str:
    return f"arn:aws:sqs:local:000000000000:{name}"


def typed(attributes: Mapping[str, Value]) -> dict[str, Any]:
    """Message attributes as a record has them: `3` -> `{"stringValue": "3", ..., "dataType": "Number"}`. Raises ValueError."""
    return {name: _typed(name, value) for name, value in attributes.items()}


def _typed(name: str, value: Any) -> dict[str, Any]:
    lists: dict[str, Any] = {"stringListValues": [], "binaryListValues": []}  # AWS has them, and never anything in them
    if isinstance(value, str):
        return {"stringValue": value, **lists, "dataType": "String"}
    if isinstance(value, int | float) and not isinstance(value, bool):
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


def check(body: bytes, attributes: Mapping[str, Any]) -> None:
    """Raise ValueError for what SQS would refuse. Not for dead letters: what they come from decides how large they are."""
    if len(attributes) > 10:
        raise ValueError(f"{len(attributes)} attributes: a message has at most 10")
    size = len(body)
    for name, attribute in attributes.items():
        value = attribute.get("binaryValue") or attribute.get("stringValue")
        if not _ATTRIBUTE.fullmatch(name):
            raise ValueError(
                f"attribute {name!r}: its name is 1 to 256 letters, digits, '_', '-' and '.', and begins with no 'AWS.' or 'Amazon.'"
            )
        if not value:
            raise ValueError(f"attribute {name!r} is empty; leave it out")
        size += len(name) + len(value.encode())
    if not body:
        raise ValueError("the body is empty; a message has at least 1 byte")
    if size > MOST_BYTES:
        raise ValueError(f"{size} bytes: a message has at most {MOST_BYTES}; put what is larger into a bucket and send its key")


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
    sent = str(int((event.time or 0) * 1000))
    made = {
        "messageId": event.id,
        "receiptHandle": f"{event.id}.{event.attempt}",
        "body": body,
        "attributes": {
            "ApproximateReceiveCount": str(event.attempt),
            "SentTimestamp": sent,
            "SenderId": "000000000000",
            "ApproximateFirstReceiveTimestamp": sent,  # nobody writes down when it was first received
        },
        "messageAttributes": attributes,
        "md5OfBody": md5(body),
        "eventSource": "aws:sqs",
        "eventSourceARN": queue_arn(event.subject),
        "awsRegion": "local",
    }
    if attributes:
        made["md5OfMessageAttributes"] = md5_of_attributes(attributes)
    return made


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
