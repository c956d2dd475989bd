"""What goes to dead-letter queues and destinations, in AWS Lambda's shapes."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from eventrouter.errors import ConfigError
from eventrouter.model import Dead, Decision, Event, Failed, Outcome, Succeeded, TimedOut, Trigger, function_arn, iso_time

# Lambda's HTTP status for what is dead without its handler's doing.
_CODES = {"ConcurrencyZero": 429, "EventAgeExceeded": 429, "RecursiveLoop": 400, "RouterCrashed": 500, "Unreadable": 500}
_SHOWN = 1024  # bytes of an error's message in an attribute


class Destination(NamedTuple):
    """`"sqs:bad-readings"`. scheme: of the plugin that takes it, or "lambda"."""

    scheme: str
    name: str

    def __str__(self) -> str:
        return f"{self.scheme}:{self.name}"


class Message(NamedTuple):
    """What is sent there. body: JSON, or what could not be read as it. about: the event that it is a copy of, if it is one.

    group, dedupe: for a destination that keeps an order (a FIFO queue): which one, and what makes it a repeat of another.
    """

    body: bytes
    attributes: Mapping[str, str | int | float | bytes]
    about: Event | None = None
    group: str | None = None
    dedupe: str | None = None


def parse_destination(text: str, what: str) -> Destination:
    """Raises ConfigError naming `what`."""
    scheme, colon, name = text.partition(":")
    if not (scheme and colon and name):
        raise ConfigError(f'{what}={text!r}: write where it goes, as in "sqs:NAME", "sns:NAME" or "lambda:NAME"')
    return Destination(scheme, name)


def letter(event: Event, trigger: Trigger | None, id: str, dead: Dead) -> Message:
    """The copy of a dead letter: the event as the function got it, and the three attributes."""
    code = _CODES.get(dead.reason, 200)
    message = dead.error_message.encode(errors="replace")[:_SHOWN].decode(errors="ignore")
    return Message(_payload(event, trigger), {"RequestID": id, "ErrorCode": code, "ErrorMessage": message}, event)


def record(
    event: Event, trigger: Trigger | None, id: str, function: str, decision: Decision, outcome: Outcome | None, attempts: int, now: float
) -> Message:
    """Lambda's destination record. outcome: of the last attempt; None: there was none."""
    if isinstance(decision, Dead):
        condition = "EventAgeExceeded" if decision.reason == "EventAgeExceeded" else "RetriesExhausted"
        error = {"errorMessage": decision.error_message, "errorType": decision.error_type}
        if isinstance(outcome, Failed):
            error["stackTrace"] = outcome.trace  # type: ignore[assignment]
        answer: dict[str, Any] = {"responsePayload": error}
        if isinstance(outcome, Failed | TimedOut):
            answer["responseContext"] = {"statusCode": 200, "executedVersion": "$LATEST", "functionError": "Unhandled"}
    else:
        result = outcome.result if isinstance(outcome, Succeeded) else None
        answer = {"responseContext": {"statusCode": 200, "executedVersion": "$LATEST"}, "responsePayload": result}
        condition = "Success"
    made = {
        "version": "1.0",
        "timestamp": iso_time(now),
        "requestContext": {
            "requestId": id,
            "functionArn": f"{function_arn(function)}:$LATEST",
            "condition": condition,
            "approximateInvokeCount": attempts,
        },
        "requestPayload": msgspec.Raw(_payload(event, trigger, raw=False)),
        **answer,
    }
    return Message(msgspec.json.encode(made), {})


def _payload(event: Event, trigger: Trigger | None, *, raw: bool = True) -> bytes:
    """The event as a Lambda function gets it. raw: what is no JSON may stay as it is."""
    try:
        if trigger is not None:
            return msgspec.json.encode(trigger.aws_event((event,)))
        event.json()
        return event.data
    except Exception:  # an event that a function can't be given either, which is why it is dead
        if raw:
            return event.data
    try:
        return msgspec.json.encode(event.data.decode())
    except UnicodeDecodeError:
        return msgspec.json.encode({"base64": base64.b64encode(event.data).decode()})
