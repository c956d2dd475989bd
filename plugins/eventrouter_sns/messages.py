"""SNS's names, limits and shapes."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from eventrouter import Event
from eventrouter.errors import ConfigError

MOST_BYTES: Final = 256 * 1024  # of a message, its attributes included
FIFO: Final = ".fifo"
_NAME: Final = re.compile(r"(?=.{1,256}\Z)[A-Za-z0-9_-]+(\.fifo)?")
_ATTRIBUTE: Final = re.compile(r"(?!(?i:aws|amazon)\.)[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_SUBJECT: Final = re.compile(r"[!-~][ -~]{0,99}")
_GROUP: Final = re.compile(r"[!-~]{1,128}")
_TYPE: Final = re.compile(r"(String|Number|Binary)(\.[ -~]+)?")
_UNSIGNED: Final = {"SignatureVersion": "1", "Signature": "", "SigningCertUrl": "", "UnsubscribeUrl": ""}


def check_name(name: str, what: str = "sns topic") -> str:
    """The name itself. Raises ConfigError that begins with `what`."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{what} {name!r}: a topic's name is 1 to 256 letters, digits, '-' and '_'; that of a topic that keeps order ends in '.fifo'"
        )
    return name


def topic_arn(name: str) -> str:
    return f"arn:aws:sns:local:000000000000:{name}"


def typed(attributes: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Message attributes as a record has them: `3` -> `{"Type": "Number", "Value": "3"}`. Raises ValueError."""
    return {name: _typed(name, value) for name, value in attributes.items()}


def _typed(name: str, value: Any) -> dict[str, str]:
    if isinstance(value, str):
        return {"Type": "String", "Value": value}
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return {"Type": "Number", "Value": str(value)}
    if isinstance(value, bytes):
        return {"Type": "Binary", "Value": base64.b64encode(value).decode()}
    if isinstance(value, list | tuple):
        return {"Type": "String.Array", "Value": msgspec.json.encode(value).decode()}
    if isinstance(value, Mapping):
        kind, binary = value.get("DataType"), value.get("BinaryValue")
        given = value.get("StringValue") if binary is None else base64.b64encode(binary).decode()
        if isinstance(kind, str) and _TYPE.fullmatch(kind) and isinstance(given, str) and kind.startswith("Binary") == (binary is not None):
            return {"Type": kind, "Value": given}
    raise ValueError(f"attribute {name!r}: {value!r} is no text, number, bytes or list, nor {{'DataType': ..., 'StringValue': ...}}")


def check(message: bytes, subject: str | None, attributes: Mapping[str, Mapping[str, str]]) -> None:
    """Raise ValueError for what SNS would refuse. Not for dead letters: what they come from decides how large they are."""
    if not message:
        raise ValueError("Invalid parameter: Empty message")
    if subject is not None and not _SUBJECT.fullmatch(subject):
        raise ValueError(f"Invalid parameter: Subject: {subject!r} must be 1 to 100 printable ASCII characters on one line")
    size = len(message)
    for name, attribute in attributes.items():
        if len(name) > 256 or not _ATTRIBUTE.fullmatch(name):
            raise ValueError(
                f"Invalid parameter: attribute {name!r}: its name is 1 to 256 letters, digits, '_', '-' and single '.' between them, "
                "and begins with no 'AWS.' or 'Amazon.'"
            )
        if not attribute["Value"]:
            raise ValueError(f"Invalid parameter: attribute {name!r} is empty; leave it out")
        if attribute["Type"].startswith("Number"):
            _check_number(name, attribute["Value"])
        size += len(name) + len(attribute["Type"]) + len(attribute["Value"].encode())
    if size > MOST_BYTES:
        raise ValueError(
            f"Invalid parameter: Message too long: {size} bytes of {MOST_BYTES}; put what is larger into a bucket and publish its key"
        )


def _check_number(name: str, text: str) -> None:
    try:
        finite = math.isfinite(float(text))
    except ValueError:
        finite = False
    if not finite:
        raise ValueError(f"Invalid parameter: attribute {name!r}: {text!r} is no number")


def check_order(topic: str, group: str | None, dedupe: str | None, by_content: bool) -> None:
    """Raise ValueError for a group or a deduplication id that is missing, or that the topic has no use for."""
    if not topic.endswith(FIFO):
        if group is not None or dedupe is not None:
            raise ValueError(f"Invalid parameter: topic {topic!r} keeps no order; group= and dedupe= are for topics that end in '.fifo'")
        return
    if group is None:
        raise ValueError(f"Invalid parameter: The MessageGroupId parameter is required for FIFO topics; give {topic!r} a group=")
    if dedupe is None and not by_content:
        raise ValueError(
            f"Invalid parameter: The topic should either have ContentBasedDeduplication enabled or MessageDeduplicationId provided "
            f"explicitly; give {topic!r} a dedupe=, or set [sns.topics.{msgspec.json.encode(topic).decode()}] content_dedupe = true"
        )
    for what, text in (("group", group), ("dedupe", dedupe)):
        if text is not None and not _GROUP.fullmatch(text):
            raise ValueError(f"Invalid parameter: {what}={text!r}: 1 to 128 letters, digits and punctuation marks")


def attributes_of(event: Event) -> dict[str, dict[str, str]]:
    """As `typed` gives them."""
    found: dict[str, dict[str, str]] = event.attributes.get("messageAttributes", {})
    return found


def raw_attributes(event: Event) -> dict[str, str | int | float | bytes]:
    """Attributes for a destination that has them beside the message."""
    return {name: _raw(attribute["Type"], attribute["Value"]) for name, attribute in attributes_of(event).items()}


def _raw(kind: str, text: str) -> str | int | float | bytes:
    if kind.startswith("Binary"):
        return base64.b64decode(text)
    if not kind.startswith("Number"):
        return text
    try:
        return int(text)
    except ValueError:
        return float(text)


def text_of(event: Event) -> str:
    """A message. Only a dead letter's may be no text; the letter itself keeps its bytes."""
    return event.data.decode(errors="replace")


def notification(event: Event) -> dict[str, Any]:
    """The message as endpoints get it, all but what comes with the signature."""
    made: dict[str, Any] = {"Type": "Notification", "MessageId": event.id}
    if "sequence" in event.attributes:
        made["SequenceNumber"] = event.attributes["sequence"]
    made["TopicArn"] = topic_arn(event.subject)
    if event.attributes.get("subject") is not None:
        made["Subject"] = event.attributes["subject"]
    return {**made, "Message": text_of(event), "Timestamp": timestamp(event.time or 0)}


def record(event: Event, subscription: str) -> dict[str, Any]:
    """The message as a Lambda function gets it. subscription: its ARN."""
    message = notification(event)
    message = {**message, "Subject": message.get("Subject"), **_UNSIGNED, "MessageAttributes": attributes_of(event)}
    return {"EventSource": "aws:sns", "EventVersion": "1.0", "EventSubscriptionArn": subscription, "Sns": message}


def timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def canonical(message: Mapping[str, str]) -> bytes:
    """What a signature is made of: names and values in this order, each on a line; those that it has not are left out."""
    confirms = message["Type"] != "Notification"
    names = ["Message", "MessageId", "SubscribeURL" if confirms else "Subject", "Timestamp", *["Token"] * confirms, "TopicArn", "Type"]
    return "".join(f"{name}\n{message[name]}\n" for name in names if name in message).encode()
