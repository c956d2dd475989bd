"""CloudEvents 1.0 over HTTP: out of requests, and into them."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote, unquote

import msgspec

from eventrouter import Event, HttpRequest
from eventrouter_events.shapes import OWN, make

STRUCTURED: Final = "application/cloudevents"
BATCH: Final = "application/cloudevents-batch"
_NAME = re.compile(r"[a-z0-9]{1,64}")
_JSON = re.compile(r"[\w.+-]+/(?:[\w.+-]+\+)?json", re.ASCII)
_REQUIRED: Final = ("id", "source", "type")
_UNSAFE: Final = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')  # these go as they are


class UnsupportedError(ValueError):
    """A media type that is none of ours."""


def read(request: HttpRequest, bus: str) -> list[Event]:
    """The events of a request, by its content type: one (structured, or binary by its `ce-` headers), or a batch.

    Raises ValueError that names what is wrong, and in which event of a batch; UnsupportedError for another format than JSON.
    """
    kind = (request.header("content-type") or "").strip()
    media = kind.partition(";")[0].strip().lower()
    if media.startswith(STRUCTURED):
        if media not in (f"{STRUCTURED}+json", f"{BATCH}+json"):
            raise UnsupportedError(f"{media}: events are taken as {STRUCTURED}+json, {BATCH}+json, or with ce- headers")
        if media.startswith(BATCH):
            rows = _decoded(request.body, list[dict[str, msgspec.Raw]])
            return [_at(place, row, bus) for place, row in enumerate(rows)]
        return [_structured(_decoded(request.body, dict[str, msgspec.Raw]), bus)]
    if request.header("ce-specversion") is None:
        raise UnsupportedError(
            f"no CloudEvent: its content type is neither {STRUCTURED}+json nor {BATCH}+json, and it has no header ce-specversion"
        )
    return [_binary(request, kind, bus)]


def _decoded(body: bytes, type: Any) -> Any:
    try:
        return msgspec.json.decode(body, type=type)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"no CloudEvent in JSON: {error}") from None


def _at(place: int, row: dict[str, msgspec.Raw], bus: str) -> Event:
    try:
        return _structured(row, bus)
    except ValueError as error:
        raise ValueError(f"[{place}]: {error}") from None


def _structured(row: dict[str, msgspec.Raw], bus: str) -> Event:
    data, encoded = row.pop("data", None), row.pop("data_base64", None)
    attributes = {}
    for name, raw in row.items():
        value = msgspec.json.decode(raw)
        if isinstance(value, dict | list | float):
            raise ValueError(f"{name}: an attribute is a text, an integer or a truth value")
        if value is not None:  # as if it weren't there
            attributes[name] = value
    kind = str(attributes.get("datacontenttype", "application/json"))
    if data is not None and encoded is not None:
        raise ValueError("data and data_base64: there can be but one of them")
    if encoded is not None:
        binary = _from_base64(msgspec.json.decode(encoded))
        if "datacontenttype" not in attributes and not _reads(binary):
            kind = "application/octet-stream"  # what nobody named is JSON where it can be
        return _event(attributes, binary, kind, bus)
    body = b"" if data is None else bytes(data)
    if body and not is_json(kind):
        text = msgspec.json.decode(body)
        if isinstance(text, str):
            body = text.encode(errors="replace")
    return _event(attributes, body, kind, bus)


def _reads(data: bytes) -> bool:
    try:
        msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _from_base64(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise ValueError("data_base64: not base64") from None


def _binary(request: HttpRequest, kind: str, bus: str) -> Event:
    attributes: dict[str, Any] = {}
    for name, value in request.headers:
        name = name.lower()  # noqa: PLW2901
        if name.startswith("ce-"):
            if name[3:] in attributes:
                raise ValueError(f"{name}: it is there twice")
            attributes[name[3:]] = _plain(name, value)
    if kind:
        attributes["datacontenttype"] = kind
    return _event(attributes, request.body, kind or "application/json", bus)


def _plain(name: str, value: str) -> str:
    """A header's value: quoted, or percent-encoded, or both."""
    value = value.strip()
    if len(value) > 1 and value[0] == value[-1] == '"':
        value = re.sub(r"\\(.)", r"\1", value[1:-1])
    try:
        return unquote(value, errors="strict")
    except UnicodeDecodeError:
        raise ValueError(f"{name}: not UTF-8, percent-encoded") from None


def _event(attributes: dict[str, Any], data: bytes, kind: str, bus: str) -> Event:
    if (version := attributes.pop("specversion", None)) != "1.0":
        raise ValueError(f"specversion: {version!r}; 1.0 is taken")
    for name, value in attributes.items():
        if not _NAME.fullmatch(name) or name == "data":
            raise ValueError(f"{name[:64]!r}: an attribute's name is of lower-case letters and digits")
        if value == "" and name in ("subject", "dataschema", "datacontenttype", "time"):
            raise ValueError(f"{name}: empty; leave it away")
    for name in _REQUIRED:
        if not isinstance(attributes.get(name), str) or not attributes[name]:
            raise ValueError(f"{name}: missing; a CloudEvent has {', '.join(_REQUIRED)} and specversion, and none of them is empty")
    for name in ("subject", "dataschema", "datacontenttype", "time"):
        if not isinstance(attributes.get(name, ""), str):
            raise ValueError(f"{name}: it is a text")
    if attributes["source"] == OWN:
        raise ValueError(f"source: {OWN!r} is the router's own")
    if data and is_json(kind):
        try:
            msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"data: no JSON, which {kind} says it is: {error}") from None
    subject = attributes.get("subject")
    return make(
        bus, attributes["source"], attributes["type"], data,
        resources=[subject] if subject else [], time=_time(attributes.get("time")), id=attributes["id"], content_type=kind,
        cloudevent={name: value for name, value in attributes.items() if name not in _REQUIRED},
    )  # fmt: skip


def _time(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        time = msgspec.convert(text, datetime)
        if time.tzinfo is not None:
            return time.timestamp()
    except (msgspec.ValidationError, OverflowError):
        pass
    raise ValueError(f"time: {text[:64]!r} is not of RFC 3339, as 2026-01-31T08:00:00Z is")


def is_json(kind: str) -> bool:
    return _JSON.fullmatch(kind.partition(";")[0].strip().lower()) is not None


def write(event: Event, mode: str, time: str) -> tuple[dict[str, str], bytes]:
    """Headers and body of a request with this event. time: of an event that brought none of its own."""
    given = dict(event.attributes.get("cloudevent", {}))
    resources = event.attributes.get("resources", [])
    attributes: dict[str, Any] = {
        "specversion": "1.0",
        "id": event.attributes["id"],
        "source": event.attributes["source"],
        "type": event.type,
        "time": time,
        **({"subject": resources[0]} if resources else {}),
        "datacontenttype": event.content_type,
        **given,
    }
    if not event.data and "datacontenttype" not in given:
        del attributes["datacontenttype"]
    if mode == "structured":
        return {"Content-Type": f"{STRUCTURED}+json"}, msgspec.json.encode({**attributes, **_data(event)})
    kind = attributes.pop("datacontenttype", None)
    headers = {f"ce-{name}": quote(_text(value), safe=_UNSAFE) for name, value in attributes.items()}
    if kind is not None:
        headers["Content-Type"] = kind
    return headers, event.data


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _data(event: Event) -> Mapping[str, Any]:
    if not event.data:
        return {}
    if is_json(event.content_type):
        return {"data": msgspec.Raw(event.data)}
    try:
        return {"data": event.data.decode()}
    except UnicodeDecodeError:
        return {"data_base64": base64.b64encode(event.data).decode()}
