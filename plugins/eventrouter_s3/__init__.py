"""Folders as S3 buckets: files dropped, replaced, moved or removed start functions."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import msgspec

from eventrouter import Event, Plugin, Trigger, Wild, Wildcards, call_from_thread, hookimpl
from eventrouter.errors import ConfigError, suggest
from eventrouter_s3 import files

__all__ = ["Bucket", "S3Object", "S3Trigger", "s3"]

_HAPPEN = ("ObjectCreated:*", "ObjectCreated:Put", "ObjectRemoved:*", "ObjectRemoved:Delete")


class S3Config(msgspec.Struct, kw_only=True):
    """`[s3]`. root: bucket NAME is the folder root/NAME, made if missing. buckets: folders by name, elsewhere."""

    root: str = "buckets"
    buckets: dict[str, str] = {}

    def folder(self, bucket: str, base: Path) -> Path:
        """Where a bucket is. base: where relative paths start."""
        return base / self.buckets.get(bucket, f"{self.root}/{bucket}")


class S3Object(msgspec.Struct, kw_only=True):
    """The payload of an S3 event for a typed handler. event: "ObjectCreated:Put" or "ObjectRemoved:Delete".

    size: bytes; etag: the MD5 of the content, in hex; both empty for what is removed. sequencer: orders events of one key.
    """

    bucket: str
    key: str
    event: str
    sequencer: str
    size: int | None = None
    etag: str | None = None


class S3Trigger(Trigger):
    """`s3(...)` makes it. initial: whether objects found at first sight start the function too."""

    source = "s3"

    def __init__(self, bucket: str, events: tuple[str, ...], prefix: str, suffix: str, key: str, initial: bool) -> None:
        check_bucket(bucket)
        self.bucket = bucket
        self.initial = initial
        self._events = tuple(event.removeprefix("s3:") for event in events) or ("ObjectCreated:*",)
        for event in self._events:
            if event not in _HAPPEN:
                raise ConfigError(f"s3({bucket!r}): event {event!r} never happens in a folder{suggest(event, _HAPPEN)}")
        self._prefix, self._suffix = prefix, suffix
        self._key = Wildcards(key, "s3 key") if key else None
        self.names = self._key.names if self._key else ()
        self.path = (bucket, *self._key.path) if self._key else (bucket, Wild.REST)

    def matches(self, event: Event) -> Mapping[str, str] | None:
        happened = event.type.removeprefix("s3.")
        if not any(happened == want or (want.endswith("*") and happened.startswith(want[:-1])) for want in self._events):
            return None
        bucket, _, key = event.subject.partition("/")
        if bucket != self.bucket or not key.startswith(self._prefix) or not key.endswith(self._suffix):
            return None
        return self._key.match(key) if self._key else {}

    def aws_event(self, events: Sequence[Event]) -> dict[str, Any]:
        return {"Records": [_record(event) for event in events]}

    def __str__(self) -> str:
        options = {"prefix": self._prefix, "suffix": self._suffix, "key": self._key.text if self._key else ""}
        shown = [f"s3 {self.bucket}", *self._events, *(f"{name}={value}" for name, value in options.items() if value)]
        return " ".join(shown)


def s3(bucket: str, *events: str, prefix: str = "", suffix: str = "", key: str = "", initial: bool = False) -> S3Trigger:
    """Start the function when an object of `bucket` appears, is replaced, or goes.

    events: `"ObjectCreated:*"` (the default), `"ObjectRemoved:*"`.
    prefix, suffix: of the keys wanted. key: a pattern of keys: `"reports/{year}/{name}.csv"`.
    initial: also for the objects that are there when the bucket is first seen.

    Only finished files count; names that begin with a dot, and links, are no objects. The payload is an
    S3Object; a Lambda function gets AWS's S3 event with one record.
    """
    return S3Trigger(bucket, events, prefix, suffix, key, initial)


def _record(event: Event) -> dict[str, Any]:
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
        "responseElements": {"x-amz-request-id": it.sequencer, "x-amz-id-2": event.id},
        "s3": {
            "s3SchemaVersion": "1.0",
            "configurationId": "eventrouter",
            "bucket": {"name": it.bucket, "ownerIdentity": {"principalId": "local"}, "arn": f"arn:aws:s3:::{it.bucket}"},
            "object": {**described, "sequencer": it.sequencer},
        },
    }


def check_bucket(name: str) -> None:
    if not name or name.startswith(".") or set(name) & set("/\\{}"):
        raise ConfigError(f"bucket {name!r}: a bucket's name is a folder's: no '/', '{{' or '}}', no dot in front")


class Bucket:
    """A bucket to read and write from handlers; making one does nothing yet.

    Every method raises ValueError for a key that is none (`../x`), NotRunning outside a handler.
    """

    def __init__(self, name: str) -> None:
        check_bucket(name)
        self.name = name
        self.sync = SyncBucket(self)

    async def read(self, key: str) -> bytes:
        """The object's content. Raises FileNotFoundError."""
        return await asyncio.to_thread(files.path_of(self._folder(), key).read_bytes)

    async def write(self, key: str, data: bytes | str) -> None:
        """Make or replace an object: whoever reads sees the old or the new, never a part."""
        content = data.encode() if isinstance(data, str) else data
        await asyncio.to_thread(files.write, self._folder(), key, content)

    async def delete(self, key: str) -> None:
        """Remove an object; none there is no error, as in S3."""
        await asyncio.to_thread(partial(files.path_of(self._folder(), key).unlink, missing_ok=True))

    async def list(self, prefix: str = "") -> list[str]:
        """The keys that begin with `prefix`, sorted."""
        folder = self._folder()
        return await asyncio.to_thread(lambda: sorted(key for key, _ in files.scan(folder) if key.startswith(prefix)))

    def _folder(self) -> Path:
        from eventrouter_s3.source import S3Source  # noqa: PLC0415 - sources load when they are needed

        return S3Source.current().folder(self.name)

    def __repr__(self) -> str:
        return f"Bucket({self.name!r})"


class SyncBucket:
    """`Bucket.sync`: the same for `def` handlers."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def read(self, key: str) -> bytes:
        """As `Bucket.read`."""
        return call_from_thread(f"{self._bucket!r}.sync", lambda: self._bucket.read(key))

    def write(self, key: str, data: bytes | str) -> None:
        """As `Bucket.write`."""
        call_from_thread(f"{self._bucket!r}.sync", lambda: self._bucket.write(key, data))

    def delete(self, key: str) -> None:
        """As `Bucket.delete`."""
        call_from_thread(f"{self._bucket!r}.sync", lambda: self._bucket.delete(key))

    def list(self, prefix: str = "") -> list[str]:
        """As `Bucket.list`."""
        return call_from_thread(f"{self._bucket!r}.sync", lambda: self._bucket.list(prefix))


def check(config: S3Config, pairs: Sequence[tuple[str, Trigger]]) -> None:
    for name in config.buckets:
        check_bucket(name)


@hookimpl
def eventrouter_plugin() -> Plugin:
    # Always there: handlers started by any source read and write buckets.
    return Plugin(name="s3", source="eventrouter_s3.source:S3Source", always=True, config=S3Config, triggers={"s3": s3}, check=check)
