"""A row's change as an Event, and as the record that a Lambda function gets from DynamoDB Streams."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import msgspec

from eventrouter import Event

Kind = Literal["INSERT", "MODIFY", "REMOVE"]
Image = Mapping[str, Any]  # by column: None, bool, int, float, str, bytes, lists and maps of them, or msgspec.Raw: JSON as it is


class Feed(NamedTuple):
    """What triggers ask for. database, table: as they were written there, the database without its secrets."""

    database: str
    table: str
    view: str


class Stream(msgspec.Struct, frozen=True):
    """A log of changes. prefix: eight digits that set its sequence numbers apart from those of other logs. created: seconds since 1970."""

    prefix: int
    created: float


class Row(msgspec.Struct):
    """What happened to a row. old, new: None where it is not known, or there is none.

    position: orders the changes of a database, with `index` those of one transaction. key: the names of the key's columns.
    partial: `old` has the key only. binary: columns that hold bytes.
    unchanged: columns that are not in `new`, because they did not change and nothing tells what they are.
    """

    table: str
    kind: Kind
    position: int
    index: int
    at: float
    key: Sequence[str]
    old: Image | None
    new: Image | None
    partial: bool = False
    binary: Sequence[str] = ()
    unchanged: Sequence[str] = ()


def events(row: Row, feed: Feed, stream: Stream) -> list[Event]:
    """None when nothing has changed; two when the key has: as in DynamoDB, the row is another one then."""
    old, new = None if row.partial else row.old, row.new
    before, after = _key(row, row.old), _key(row, new)
    if row.kind == "MODIFY" and old is not None and old == new and msgspec.json.encode(old) == msgspec.json.encode(new):  # 1 == 1.0
        return []
    if row.kind == "MODIFY" and before is not None and before != after:
        removed, inserted = (
            _event(row, "REMOVE", before, old, None, feed, stream, 0),
            _event(row, "INSERT", after, None, new, feed, stream, 1),
        )
        return [removed, inserted]
    return [_event(row, row.kind, before if after is None else after, old, new, feed, stream, 0)]


def _key(row: Row, image: Image | None) -> Image | None:
    return None if image is None else {name: image[name] for name in row.key if name in image}


def _event(row: Row, kind: Kind, key: Image | None, old: Image | None, new: Image | None, feed: Feed, stream: Stream, part: int) -> Event:
    key = key or {}
    if feed.view in ("KEYS_ONLY", "NEW_IMAGE"):
        old = None
    if feed.view in ("KEYS_ONLY", "OLD_IMAGE"):
        new = None
    data: dict[str, Any] = {"kind": kind, "table": feed.table, "key": key, "old": old, "new": new}
    if row.unchanged and new is not None:
        data["unchanged"] = row.unchanged
    values = msgspec.json.decode(msgspec.json.encode(list(key.values())))
    return Event(
        "tables",
        f"tables.{kind.lower()}",
        "/".join((feed.table, *(value if isinstance(value, str) else msgspec.json.encode(value).decode() for value in values))),
        msgspec.json.encode(data),
        id=f"{stream.prefix:08}{row.position:020}{row.index:011}{part}",
        time=row.at,
        attributes={"feed": list(feed), "binary": list(row.binary), "created": stream.created},
    )


class _Number(str):
    __slots__ = ()


_decode = msgspec.json.Decoder(float_hook=_Number).decode


def record(event: Event) -> dict[str, Any]:
    """The event as DynamoDB Streams' record."""
    change, attributes = _decode(event.data), event.attributes
    table, view = change["table"], attributes["feed"][2]
    binary = frozenset(attributes["binary"])
    images = {name: change[field] for name, field in (("Keys", "key"), ("NewImage", "new"), ("OldImage", "old"))}
    described = {
        name: {column: _typed(value, column in binary) for column, value in image.items()}
        for name, image in images.items()
        if image is not None
    }
    created = datetime.fromtimestamp(attributes["created"], UTC).isoformat(timespec="milliseconds").removesuffix("+00:00")
    return {
        "eventID": hashlib.md5(event.id.encode(), usedforsecurity=False).hexdigest(),
        "eventName": change["kind"],
        "eventVersion": "1.1",
        "eventSource": "aws:dynamodb",
        "awsRegion": "local",
        "dynamodb": {
            "ApproximateCreationDateTime": round(event.time or 0),
            **described,
            "SequenceNumber": event.id,
            "SizeBytes": sum(len(column.encode()) + _size(value) for image in described.values() for column, value in image.items()),
            "StreamViewType": view,
        },
        "eventSourceARN": f"arn:aws:dynamodb:local:000000000000:table/{table}/stream/{created}",
    }


def _typed(value: Any, binary: bool) -> dict[str, Any]:
    if value is None:
        return {"NULL": True}
    if isinstance(value, bool):
        return {"BOOL": value}
    if isinstance(value, _Number | int):
        return {"N": str(value)}
    if isinstance(value, str):
        return {"B" if binary else "S": value}
    if isinstance(value, list):
        return {"L": [_typed(item, binary) for item in value]}
    return {"M": {name: _typed(item, binary) for name, item in value.items()}}


def _size(typed: Mapping[str, Any]) -> int:
    """As DynamoDB counts: a number takes a byte for two of its digits, and one more."""
    ((kind, value),) = typed.items()
    if kind == "S":
        return len(value.encode())
    if kind == "B":
        return len(base64.b64decode(value))
    if kind == "N":
        digits = value.lower().partition("e")[0].replace("-", "").replace(".", "").strip("0")
        return (len(digits) + 1) // 2 + 1
    if kind == "L":
        return 3 + sum(1 + _size(item) for item in value)
    if kind == "M":
        return 3 + sum(1 + len(name.encode()) + _size(item) for name, item in value.items())
    return 1
