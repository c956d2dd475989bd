"""S3's names and shapes: event types, notifications, the test event."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import quote_plus

import msgspec

from eventrouter import Event
from eventrouter.errors import ConfigError, suggest

HAPPEN: Final = ("ObjectCreated:Put", "ObjectCreated:Copy", "ObjectRemoved:Delete")
_GROUPS: Final = {
    "ObjectCreated": ("*", "Put", "Post", "Copy", "CompleteMultipartUpload"),
    "ObjectRemoved": ("*", "Delete", "DeleteMarkerCreated"),
    "ObjectRestore": ("*", "Post", "Completed", "Delete"),
    "ObjectTagging": ("*", "Put", "Delete"),
    "ObjectAcl": ("Put",),
    "LifecycleExpiration": ("*", "Delete", "DeleteMarkerCreated"),
    "Replication": (
        "*", "OperationFailedReplication", "OperationMissedThreshold", "OperationReplicatedAfterThreshold", "OperationNotTracked",
    ),
}  # fmt: skip
_KNOWN: Final = (
    *(f"{group}:{kind}" for group, kinds in _GROUPS.items() for kind in kinds),
    "LifecycleTransition", "IntelligentTiering", "ReducedRedundancyLostObject",
)  # fmt: skip


class S3Object(msgspec.Struct, kw_only=True):
    """The payload of an S3 event for a typed handler. event: `"ObjectCreated:Put"`, `"ObjectCreated:Copy"` or `"ObjectRemoved:Delete"`.

    key: as it is, not encoded. sequencer: hexadecimal; of two events of one key the later has the greater. size: bytes; etag: the MD5
    of the content in hexadecimal; both None for what is removed.
    """

    bucket: str
    key: str
    event: str
    sequencer: str
    size: int | None = None
    etag: str | None = None


def types_of(events: Iterable[str], place: str) -> frozenset[str]:
    """Which of the events that happen in a folder are meant. Raises ConfigError that begins with `place`."""
    wanted = [event.removeprefix("s3:") for event in events]
    for event in wanted:
        if event not in _KNOWN:
            raise ConfigError(f"{place}: S3 has no event {event!r}{suggest(event, _KNOWN)}")
    found = {it for it in HAPPEN for event in wanted if it == event or (event.endswith("*") and it.startswith(event[:-1]))}
    if not found:
        raise ConfigError(
            f"{place}: {', '.join(wanted)} never happens in a folder, which has no archive, versions, tags or rules; {', '.join(HAPPEN)} do"
        )
    return frozenset(found)


def event_of(it: S3Object, time: float, lineage: Any = None) -> Event:
    """time: seconds since 1970. lineage: of who wrote it, when that was a handler."""
    subject = f"{it.bucket}/{it.key}"
    event = Event("s3", f"s3.{it.event}", subject, msgspec.json.encode(it), id=f"{subject}#{it.sequencer}", time=time)
    if lineage is not None:
        event.attributes = {"lineage": lineage}
    return event


def record(event: Event) -> dict[str, Any]:
    it = msgspec.json.decode(event.data, type=S3Object)
    described: dict[str, Any] = {"key": quote_plus(it.key, safe="/")}
    if it.size is not None:
        described |= {"size": it.size, "eTag": it.etag}
    return {
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "awsRegion": "local",
        "eventTime": event.envelope()["time"],
        "eventName": it.event,
        "userIdentity": {"principalId": "local"},
        "requestParameters": {"sourceIPAddress": "127.0.0.1"},
        "responseElements": _response(event),
        "s3": {
            "s3SchemaVersion": "1.0",
            "configurationId": "eventrouter",
            "bucket": {"name": it.bucket, "ownerIdentity": {"principalId": "local"}, "arn": f"arn:aws:s3:::{it.bucket}"},
            "object": {**described, "sequencer": it.sequencer},
        },
    }


def _response(event: Event) -> dict[str, str]:
    return {"x-amz-request-id": event.id.rpartition("#")[2][:16], "x-amz-id-2": event.id}


def test_event(event: Event) -> dict[str, str]:
    """What S3 sends when a notification is set up: it has no Records."""
    bucket = event.subject.partition("/")[0]
    request, host = _response(event).values()
    time = event.envelope()["time"]
    return {"Service": "Amazon S3", "Event": "s3:TestEvent", "Time": time, "Bucket": bucket, "RequestId": request, "HostId": host}
