"""EventBridge's shapes: an event, an entry of PutEvents, and what is valid in them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from eventrouter import Event, new_id
from eventrouter.errors import ConfigError

_ACCOUNT: Final = "000000000000"
_REGION: Final = "local"
OWN: Final = "eventrouter"  # the source of the router's own events
_MOST_ENTRIES: Final = 10
_MOST_BYTES: Final = 1024 * 1024
_BUS = re.compile(r"[.\-_A-Za-z0-9]{1,256}")


def check_bus(name: str) -> str:
    """The name itself. Raises ConfigError."""
    if not _BUS.fullmatch(name):
        raise ConfigError(f"bus {name!r}: its name is 1 to 256 of letters, digits, '.', '-' and '_'")
    return name


def make(
    bus: str,
    source: str,
    detail_type: str,
    detail: bytes,
    *,
    resources: Sequence[str] = (),
    time: float | None = None,
    id: str | None = None,
    content_type: str = "application/json",
    **more: Any,
) -> Event:
    """An event on a bus. detail: as it came. id: of its source's own; repeats of it run once. more: attributes; None is left out."""
    # Ids are unique within a source only. Without spaces in the source no two pairs are written alike.
    unique = new_id() if id is None else f"{source.replace('%', '%25').replace(' ', '%20')} {id}"
    event = Event("events", detail_type, bus, detail, content_type, id=unique, time=time)
    more = {name: value for name, value in more.items() if value is not None}
    event.attributes = {"id": id or event.id, "source": source, "resources": list(resources), **more}
    return event


def shape(event: Event) -> dict[str, Any]:
    """The EventBridge event that a Lambda function gets, and that patterns are held against. Raises nothing."""
    attributes = event.attributes
    shaped = {
        "version": "0",
        "id": attributes.get("id", event.id),
        "detail-type": event.type,
        "source": attributes.get("source", ""),
        "account": attributes.get("account", _ACCOUNT),
        "time": datetime.fromtimestamp(event.time or 0, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "region": attributes.get("region", _REGION),
        "resources": attributes.get("resources", []),
        "detail": detail_of(event),
    }
    if "replay" in attributes:
        shaped["replay-name"] = attributes["replay"]
    return shaped


def detail_of(event: Event) -> Any:
    """Its data: JSON, else text, else `{"base64": ...}`; `{}` when there is none."""
    return event.envelope()["data"] if event.data else {}


class BadEntryError(ValueError):
    """code: as AWS has it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def _invalid(parameter: str, reason: str) -> BadEntryError:
    return BadEntryError("InvalidArgument", f"Parameter {parameter} is not valid. Reason: {reason}")


def event_of_entry(entry: Mapping[str, Any], bus: str = "default") -> Event:
    """An entry of PutEvents as an event. Raises BadEntryError for what AWS would refuse."""
    for name in ("Source", "DetailType", "Detail"):
        value = entry.get(name)
        if value is None or value == "":
            raise _invalid(name, f"{name} is a required argument.")
        if not isinstance(value, str):
            raise _invalid(name, f"{name} is a string.")
    if entry["Source"] == OWN:
        raise BadEntryError("NotAuthorizedForSourceException", f"Not authorized for the source: {OWN} is the router's own.")
    if len(entry["DetailType"]) > 128:
        raise _invalid("DetailType", "DetailType has at most 128 characters.")
    detail = _object(entry["Detail"])
    resources = entry.get("Resources") or []
    if not isinstance(resources, list | tuple) or not all(isinstance(resource, str) for resource in resources):
        raise _invalid("Resources", "Resources is a list of strings.")
    name = _bus_of(entry, bus)
    if not _BUS.fullmatch(name):
        raise _invalid("EventBusName", "its name is 1 to 256 of letters, digits, '.', '-' and '_'.")
    return make(name, entry["Source"], entry["DetailType"], detail, resources=resources, time=seconds_of(entry.get("Time")))


def bus_arn(name: str) -> str:
    return f"arn:aws:events:{_REGION}:{_ACCOUNT}:event-bus/{name}"


def _bus_of(entry: Mapping[str, Any], bus: str) -> str:
    return str(entry.get("EventBusName") or bus).removeprefix(bus_arn(""))


def buses_of(entries: Any, bus: str) -> set[str]:
    """Where entries of PutEvents are to go. bus: where those go that don't say. Raises ValueError as `check_entries`."""
    check_entries(entries)
    return {_bus_of(entry, bus) for entry in entries}


def _object(text: str) -> bytes:
    """The text of a JSON object."""
    try:
        data = text.encode()
        if isinstance(msgspec.json.decode(data), dict):
            return data
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        pass
    raise BadEntryError("MalformedDetail", "Detail is malformed.")


def check_entries(entries: Any) -> None:
    """Raises ValueError for what AWS answers with a ValidationException: nothing of it is taken."""
    if not isinstance(entries, list | tuple) or not all(isinstance(entry, Mapping) for entry in entries):
        raise ValueError("entries: a list of entries, each an object")
    if not 1 <= len(entries) <= _MOST_ENTRIES:
        raise ValueError(f"entries: {len(entries)} of them; there must be 1 to {_MOST_ENTRIES}")
    if (size := sum(map(entry_size, entries))) > _MOST_BYTES:
        raise ValueError(f"entries: {size} bytes together; there may be {_MOST_BYTES}")


def entry_size(entry: Mapping[str, Any]) -> int:
    """As AWS counts it."""
    texts = [entry.get("Source"), entry.get("DetailType"), entry.get("Detail"), *(entry.get("Resources") or ())]
    return 14 * bool(entry.get("Time")) + sum(len(text.encode(errors="replace")) for text in texts if isinstance(text, str))


def seconds_of(time: Any) -> float | None:
    """A time as AWS clients write it, as seconds since 1970; None: now. Raises BadEntryError."""
    if time is None or time == "":
        return None
    try:
        if isinstance(time, int | float):
            time = datetime.fromtimestamp(time, UTC)
        elif isinstance(time, str):
            time = msgspec.convert(time, datetime, strict=False)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()  # type: ignore[no-any-return]
    except (AttributeError, ValueError, OverflowError, OSError, msgspec.ValidationError):
        raise _invalid("Time", "Time is no timestamp.") from None


def event_of_shape(shaped: Mapping[str, Any], bus: str) -> Event:
    """An EventBridge-shaped dict, a captured one say, as an event. Raises BadEntryError."""
    entry = {
        "Source": shaped.get("source"),
        "DetailType": shaped.get("detail-type"),
        "Detail": msgspec.json.encode(shaped.get("detail", {})).decode(),
        "Resources": shaped.get("resources"),
        "Time": shaped.get("time"),
        "EventBusName": bus,
    }
    event = event_of_entry(entry)
    kept = {"id": "id", "account": "account", "region": "region", "replay-name": "replay"}
    given = {kept[name]: value for name, value in shaped.items() if name in kept and isinstance(value, str)}
    event.attributes = {**event.attributes, **given}
    return event


def event_of_message(bus: str, body: bytes, attributes: Mapping[str, Any]) -> Event:
    """What goes to a destination: Lambda's records wrapped as Lambda wraps them; anything else, a dead letter say, as it is."""
    try:
        record = msgspec.json.decode(body)
    except msgspec.DecodeError:
        record = body.decode(errors="replace")
    request = record.get("requestContext") if isinstance(record, dict) and not attributes else None
    if isinstance(request, dict) and "functionArn" in request:
        how = "Success" if request.get("condition") == "Success" else "Failure"
        resources = [request["functionArn"]]
        return make(bus, "lambda", f"Lambda Function Invocation Result – {how}", body, resources=resources)
    detail = msgspec.json.encode({"attributes": dict(attributes), "body": record})
    return make(bus, "lambda", "Lambda Function Message", detail)
