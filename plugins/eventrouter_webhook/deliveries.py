"""What a delivery is, once its signature has been verified: its type, its id, or a challenge to answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec

from eventrouter import HttpRequest, json_path
from eventrouter_webhook.settings import Webhook
from eventrouter_webhook.signatures import Provider

_UNNAMED: Final = "message"  # the type of what has none


class Malformed(ValueError):
    """It is nothing that a provider sends. Its text is for the sender."""


class Delivery(msgspec.Struct, frozen=True):
    """type: without the provider's name before it. id: None when it has none. action: what more there is to the type (GitHub's "opened").

    challenge: what is to be answered; then it is no event.
    """

    type: str
    id: str | None
    action: str = ""
    challenge: str | None = None


def read(webhook: Webhook, request: HttpRequest) -> Delivery:
    """What is signed is taken, whatever it holds: a handler that can't read it leaves a dead letter, and nothing is lost.

    Raises Malformed for what the journal should not be burdened with.
    """
    found = _READERS[webhook.provider](webhook, request)
    if len(found.type) > 256 or len(found.id or "") > 512:
        raise Malformed("its type or its id is too long")
    return found


def write(webhook: Webhook, body: str, event: str | None, id: str) -> tuple[bytes, dict[str, str]]:
    """A body, and the headers besides its signature, as the provider sends them; for `send` and `sample`.

    event: the type of the delivery. What the provider has in the body is put there; an id of the body's own stays.
    """
    provider = webhook.provider
    headers = {"Content-Type": "application/json"}
    inside: dict[str, str] = {}
    if provider == "github":
        headers |= {"X-GitHub-Event": event or "push", "X-GitHub-Delivery": id}
    elif provider == "stripe":
        inside = {"id": f"evt_{id}", "object": "event", "type": event or "ping"}
    elif provider == "standard":
        inside = {"type": event} if event else {}
    elif provider == "hmac":
        for value, where in ((event, webhook.type), (id, webhook.id)):
            if value and where and not where.startswith("$"):
                headers[where] = value
            elif value and where[:2] == "$." and where[2:].isidentifier():
                inside[where[2:]] = value
    try:
        made = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return body.encode(), headers
    if provider == "slack" and isinstance(made, dict) and made.get("type") not in ("event_callback", "url_verification"):
        made = {"type": "event_callback", "event_id": f"Ev{id}", "event": {"type": event or "message", **made}}
    elif isinstance(made, dict) and inside:
        made = {**inside, **made, **({"type": event} if event and "type" in inside else {})}
    else:
        return body.encode(), headers  # as it was written
    return msgspec.json.encode(made), headers


def _object(text: bytes | str) -> dict[str, Any]:
    """The JSON object; an empty one where there is none."""
    try:
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _github(webhook: Webhook, request: HttpRequest) -> Delivery:
    action = _text(_object(request.body).get("action"))
    return Delivery(request.header("X-GitHub-Event") or _UNNAMED, request.header("X-GitHub-Delivery"), action)


def _stripe(webhook: Webhook, request: HttpRequest) -> Delivery:
    body = _object(request.body)
    return Delivery(_text(body.get("type")) or _UNNAMED, _text(body.get("id")) or None)


def _slack(webhook: Webhook, request: HttpRequest) -> Delivery:
    if (request.header("Content-Type") or "").startswith("application/x-www-form-urlencoded"):
        # A command, or something that was clicked. It is sent once, and no two are signed alike: whoever copies one gets nowhere.
        return Delivery(_slack_form(request.body), request.header("X-Slack-Signature"))
    body = _object(request.body)
    type, inner = _text(body.get("type")), body.get("event")
    if type == "url_verification":
        return Delivery(type, None, challenge=_text(body.get("challenge")))
    if isinstance(inner, dict):
        type = _text(inner.get("type")) or type
    return Delivery(type or _UNNAMED, _text(body.get("event_id")) or None)


def _slack_form(body: bytes) -> str:
    try:
        fields = parse_qs(body.decode(), max_num_fields=100)
    except ValueError:
        return _UNNAMED
    if "payload" in fields:
        return _text(_object(fields["payload"][0]).get("type")) or _UNNAMED
    return "command" if "command" in fields else _UNNAMED


def _standard(webhook: Webhook, request: HttpRequest) -> Delivery:
    id = request.header("webhook-id") or request.header("svix-id")
    return Delivery(_at("$.type", request) or _UNNAMED, id)


def _hmac(webhook: Webhook, request: HttpRequest) -> Delivery:
    return Delivery(_at(webhook.type, request) or _UNNAMED, _at(webhook.id, request) or None)


def _at(place: str, request: HttpRequest) -> str:
    """What a header, or a JSON path of the body, says; empty when it says nothing."""
    if not place.startswith("$"):
        return (request.header(place) or "") if place else ""
    try:
        found = json_path(place)(msgspec.json.decode(request.body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    return str(found) if isinstance(found, str | int) else ""


_READERS: Final[Mapping[Provider, Callable[[Webhook, HttpRequest], Delivery]]] = {
    "github": _github,
    "stripe": _stripe,
    "slack": _slack,
    "standard": _standard,
    "hmac": _hmac,
}
