"""SNS's names and shapes."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from eventrouter.errors import ConfigError


def check_name(name: str) -> str:
    """The name itself. Raises ConfigError."""
    if not name or len(name) > 256 or set(name) & set("/{}"):
        raise ConfigError(f"Topic({name!r}): a topic's name is 1 to 256 characters without '/', '{{' and '}}'")
    return name


def topic_arn(name: str) -> str:
    return f"arn:aws:sns:local:000000000000:{name}"


def notification(topic: str, id: str, at: float, subject: str | None, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The `Sns` part of a record, all but the message. at: seconds since 1970. Raises ValueError."""
    # Nothing here has a certificate to sign with; handlers that look find the fields, and that they are empty.
    return {
        "Type": "Notification",
        "MessageId": id,
        "TopicArn": topic_arn(topic),
        "Subject": subject,
        "Timestamp": datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "SignatureVersion": "1",
        "Signature": "",
        "SigningCertUrl": "",
        "UnsubscribeUrl": "",
        "MessageAttributes": {name: _attribute(name, value) for name, value in attributes.items()},
    }


def _attribute(name: str, value: Any) -> dict[str, str]:
    """A value as SNS types it: `3` -> `{"Type": "Number", "Value": "3"}`."""
    if isinstance(value, str):
        return {"Type": "String", "Value": value}
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"Type": "Number", "Value": str(value)}
    if isinstance(value, bytes):
        return {"Type": "Binary", "Value": base64.b64encode(value).decode()}
    if isinstance(value, list | tuple):
        return {"Type": "String.Array", "Value": msgspec.json.encode(value).decode()}
    raise ValueError(f"attribute {name!r}: {value!r} is no text, number, bytes or list")
