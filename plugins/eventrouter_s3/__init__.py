"""Folders as S3 buckets: files dropped, replaced, moved or removed start functions."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from eventrouter import Event, Part, Plugin, Trigger, Wildcards, call_from_thread, hookimpl, permissions
from eventrouter.errors import ConfigError, suggest
from eventrouter_s3.files import IGNORED, Names
from eventrouter_s3.notifications import HAPPEN, S3Object, event_of, record, test_event, types_of

if TYPE_CHECKING:
    from eventrouter_s3.source import S3Source

__all__ = ["Bucket", "S3Object", "S3Trigger", "s3"]


class S3Config(msgspec.Struct, kw_only=True):
    """`[s3]`. root: bucket NAME is the folder root/NAME, made if missing. buckets: folders by name, elsewhere.

    ignore: patterns of file names that are no objects; names that begin with a dot never are.
    """

    root: str = "buckets"
    buckets: dict[str, str] = {}
    ignore: tuple[str, ...] = IGNORED

    def folder(self, bucket: str, base: Path) -> Path:
        """Where a bucket is. base: where relative paths start."""
        return base / self.buckets.get(bucket, f"{self.root}/{bucket}")


class S3Trigger(Trigger):
    """`s3(...)` makes it. initial: whether objects found at first sight start the function too."""

    source = "s3"
    service = "s3.amazonaws.com"

    def __init__(self, bucket: str, events: tuple[str, ...], prefix: str, suffix: str, key: str, initial: bool) -> None:
        check_bucket(bucket)
        self.bucket = bucket
        self.initial = initial
        self.same = bucket, events, prefix, suffix, key
        self.suffix = suffix
        self._events = tuple(event.removeprefix("s3:") for event in events) or ("ObjectCreated:*",)
        self._types = {f"s3.{event}" for event in types_of(self._events, f"s3({bucket!r})")}
        self._prefix = prefix
        self._key = Wildcards(key, "s3 key") if key else None
        self.names = self._key.names if self._key else ()
        *folders, start = prefix.split("/")
        rest = Part(start, suffix.rpartition("/")[2], rest=True)  # a suffix may begin in what the prefix ends with
        self.path = (bucket, *(self._key.path if self._key else (*folders, rest)))

    def accepts(self, event: Event) -> bool:
        return event.type in self._types

    def captures(self, subject: str) -> Mapping[str, str] | None:
        bucket, _, key = subject.partition("/")
        if bucket != self.bucket or not key.startswith(self._prefix) or not key.endswith(self.suffix):
            return None
        return self._key.match(key) if self._key else {}

    def aws_event(self, events: Sequence[Event]) -> dict[str, Any]:
        return {"Records": [record(event) for event in events]}

    def arn(self, function: str, subject: str | None = None) -> str:
        return f"arn:aws:s3:::{self.bucket}"

    def __str__(self) -> str:
        options = {"prefix": self._prefix, "suffix": self.suffix, "key": self._key.text if self._key else ""}
        shown = [f"s3 {self.bucket}", *self._events, *(f"{name}={value}" for name, value in options.items() if value)]
        return " ".join(shown)


def s3(bucket: str, *events: str, prefix: str = "", suffix: str = "", key: str = "", initial: bool = False) -> S3Trigger:
    """Start the function when an object of `bucket` appears, is replaced, or goes.

    events: S3's names, with or without `s3:`: `"ObjectCreated:*"` (the default), `"ObjectCreated:Put"`, `"ObjectCreated:Copy"` (moved
        within the bucket), `"ObjectRemoved:*"`.
    prefix, suffix: of the keys wanted. key: a pattern of keys: `"reports/{year}/{name}.csv"`.
    initial: also for the objects that are there when the bucket is first seen.

    Only finished files count; names that begin with a dot or that `[s3] ignore` names, and links, are no objects. The payload is an
    S3Object; a Lambda function gets AWS's S3 event with one record. Raises ConfigError.
    """
    return S3Trigger(bucket, events, prefix, suffix, key, initial)


def check_bucket(name: str) -> None:
    if not name or name.startswith(".") or set(name) & set("/\\{}\0"):
        raise ConfigError(f"bucket {name!r}: a bucket's name is a folder's: no '/', '{{' or '}}', no dot in front")


class Bucket:
    """A bucket to read and write from handlers; making one does nothing yet.

    Every method raises ValueError for a key that is none (`../x`) or leads through a link, AccessDenied for what the function's role
    does not allow, NotRunning outside a handler.
    """

    def __init__(self, name: str) -> None:
        check_bucket(name)
        self.name = name
        self.sync = SyncBucket(self)

    async def read(self, key: str) -> bytes:
        """The object's content. Raises FileNotFoundError."""
        permissions.require("s3:GetObject", f"arn:aws:s3:::{self.name}/{key}")
        return await _source().read(self.name, key)

    async def write(self, key: str, data: bytes | str) -> None:
        """Make or replace an object; it is on disk when this returns. Whoever reads sees the old or the new, never a part."""
        if isinstance(data, str):
            data = data.encode()
        elif not isinstance(data, bytes):
            raise TypeError(f"{self!r}.write({key!r}): data is bytes or str, not {type(data).__name__}; encode it first")
        permissions.require("s3:PutObject", f"arn:aws:s3:::{self.name}/{key}")
        await _source().write(self.name, key, data)

    async def delete(self, key: str) -> None:
        """Remove an object; none there is no error, as in S3."""
        permissions.require("s3:DeleteObject", f"arn:aws:s3:::{self.name}/{key}")
        await _source().delete(self.name, key)

    async def list(self, prefix: str = "") -> list[str]:
        """The keys that begin with `prefix`, sorted."""
        permissions.require("s3:ListBucket", f"arn:aws:s3:::{self.name}", {"s3:prefix": prefix})
        return await _source().keys(self.name, prefix)

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


def _source() -> S3Source:
    from eventrouter_s3.source import S3Source  # noqa: PLC0415 - sources load when they are needed

    return S3Source.current()


def check(config: S3Config, pairs: Sequence[tuple[str, Any]]) -> None:
    for name in config.buckets:
        check_bucket(name)
    for pattern in config.ignore:
        if "/" in pattern or not pattern:
            raise ConfigError(f"[s3] ignore: {pattern!r}: patterns are of file names, without '/'")
    names = Names(config.ignore)
    for function, trigger in pairs:
        if trigger.suffix and "/" not in trigger.suffix and not names.finished(f"x{trigger.suffix}"):
            raise ConfigError(
                f"{function}: {trigger}: files that end so count as unfinished and start nothing; change [s3] ignore, or the suffix"
            )


def sample(
    bucket: str = "uploads", key: str = "berlin/may 2026.csv", *, event: str = "ObjectCreated:Put", size: int = 1024
) -> dict[str, Any]:
    """The notification of such an event; of `TestEvent`, what S3 sends when a notification is set up."""
    check_bucket(bucket)
    wanted = event.removeprefix("s3:")
    if wanted not in (*HAPPEN, "TestEvent"):
        raise ConfigError(f"sample s3: --event {event!r} makes no sample{suggest(wanted, (*HAPPEN, 'TestEvent'))}")
    now = time.time_ns()
    gone = wanted.startswith("ObjectRemoved")
    it = S3Object(bucket=bucket, key=key, event=wanted, sequencer=f"{now:016X}{gone:02X}")
    if not gone:
        it.size, it.etag = size, "d41d8cd98f00b204e9800998ecf8427e"
    made = event_of(it, now / 1e9)
    return test_event(made) if wanted == "TestEvent" else s3(bucket, wanted).aws_event([made])


@hookimpl
def eventrouter_plugin() -> Plugin:
    # Always there: handlers started by any source read and write buckets.
    return Plugin(
        name="s3",
        source="eventrouter_s3.source:S3Source",
        always=True,
        config=S3Config,
        clients=[Bucket],
        triggers={"s3": s3},
        check=check,
        sample=sample,
    )
