"""Watches buckets' folders. What is told of them is a hint only: what a file is now decides what happened."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eventrouter import Event, Router, Source
from eventrouter.errors import ConfigError, EventRouterError, JournalError
from eventrouter_s3 import S3Config, S3Trigger, check_bucket, files
from eventrouter_s3.changes import Folder
from eventrouter_s3.files import Names
from eventrouter_s3.manifest import Change, Manifest
from eventrouter_s3.notifications import S3Object, event_of

if TYPE_CHECKING:
    from eventrouter_s3.hints import Hints, Watch

_AT_ONCE = 500  # objects examined and delivered together
_SOON = 0.03  # seconds until a file that is being written is looked at again, at first
_LATER = 0.5  # ... and then
_RESCAN = 30.0  # seconds between looks at everything: a full kernel queue or a network file system tells nothing
_RESCAN_SHARE = 100  # a rescan takes at most this part of the time
_REMEMBER = 3600.0  # seconds: what a handler wrote that was overwritten before it was reported

Version = tuple[str, str, int, int]  # bucket, key, inode, modified; no inode: it was deleted


class S3Source(Source[S3Config]):
    name = "s3"

    def __init__(self, config: S3Config, router: Router) -> None:
        super().__init__(config, router)
        self._triggers = [(binding, binding.trigger) for binding in router.bindings if isinstance(binding.trigger, S3Trigger)]
        self._watched = {trigger.bucket: self._where(trigger.bucket) for _, trigger in self._triggers}
        self._starting: set[str] = set()
        self._names = Names(config.ignore)
        self._written: dict[Version, tuple[float, Mapping[str, int] | None]] = {}  # by clients, until it is reported

    def lines(self) -> list[str]:
        return [f"s3 bucket {name} in {folder}" for name, folder in self._watched.items()]

    def folder(self, bucket: str) -> Path:
        """A bucket's folder, made if missing."""
        folder = self._where(bucket)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _where(self, bucket: str) -> Path:
        return self.config.folder(bucket, self.router.base).resolve()

    async def read(self, bucket: str, key: str) -> bytes:
        self._names.check(key)
        return await asyncio.to_thread(files.read, self.folder(bucket), key)

    async def write(self, bucket: str, key: str, content: bytes | Path) -> int:
        """Returns the size."""
        self._names.check(key)
        lineage = self.router.lineage

        def coming(status: os.stat_result) -> None:
            self._remember((bucket, key, status.st_ino, status.st_mtime_ns), lineage)

        return await asyncio.to_thread(files.write, self.folder(bucket), key, content, coming)

    async def delete(self, bucket: str, key: str) -> None:
        self._names.check(key)
        lineage = self.router.lineage
        await asyncio.to_thread(files.delete, self.folder(bucket), key, lambda: self._remember((bucket, key, 0, 0), lineage))

    async def keys(self, bucket: str, prefix: str) -> list[str]:
        return await asyncio.to_thread(files.keys, self.folder(bucket), self._names, prefix)

    def _remember(self, version: Version, lineage: Mapping[str, int] | None) -> None:
        if version[0] in self._watched:
            self._written[version] = self.router.clock.monotonic(), lineage

    def _event(self, bucket: str, change: Change) -> Event:
        version = (0, 0) if change.gone else (change.seen.inode, change.seen.modified)
        _, lineage = own = self._written.pop((bucket, change.key, *version), (0.0, None))
        it = S3Object(bucket=bucket, key=change.key, event=change.event, sequencer=change.sequencer)
        if not change.gone:
            it.size, it.etag = change.seen.size, change.etag
            if own[0]:  # a client puts, though what it has written takes its place by a rename
                it.event = "ObjectCreated:Put"
        return event_of(it, change.at, lineage)

    async def send(self, bucket: str, key: str, file: Path) -> dict[str, Any]:
        """Copy FILE into the bucket under KEY."""
        check_bucket(bucket)
        try:
            size = await self.write(bucket, key, file)
        except OSError as error:
            raise ConfigError(f"send s3: {error.filename or file}: {error.strerror or error}") from None
        except ValueError as error:
            raise ConfigError(f"send s3: {error}") from None
        return {"bucket": bucket, "key": key, "size": size}

    async def start(self) -> None:
        for name, folder in self._watched.items():
            manifest = self._manifest_file(name, folder)
            if not folder.is_dir() and manifest.exists() and manifest.stat().st_size:
                # A disk that is not mounted looks like this; everything in it would be reported as removed.
                raise EventRouterError(
                    f"s3: bucket {name} had objects, but its folder {folder} is gone; bring it back, or delete {manifest}"
                )
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise EventRouterError(
                    f"s3: bucket {name}: {folder}: {error.strerror}; choose its folder with [s3.buckets] {name}"
                ) from None

    async def run(self) -> None:
        if not self._watched:
            self.router.live()
            await asyncio.get_running_loop().create_future()
        from eventrouter_s3.hints import Watch  # noqa: PLC0415 - watchdog is only for those who have buckets watched

        watch = Watch()
        self._starting = set(self._watched)
        try:
            async with asyncio.TaskGroup() as group:
                for name, path in self._watched.items():
                    group.create_task(self._watch(name, path, watch))
        except* Exception as errors:
            raise errors.exceptions[0] from None
        finally:
            await asyncio.to_thread(watch.close)

    async def _watch(self, name: str, path: Path, watch: Watch) -> None:
        try:
            # Before the first look, so that nothing falls in between.
            hints = await watch.add(path, self._names)
        except OSError as error:
            raise EventRouterError(f"bucket {name}: can't watch {path}: {error.strerror}; see fs.inotify in `sysctl`") from None
        manifest = Manifest(self._manifest_file(name, path))  # in no thread: one that outlives a cancellation would leave it open
        try:
            folder = await asyncio.to_thread(Folder, path, manifest, self._names)
            await self._keep_up(name, folder, hints)
        finally:
            manifest.close()

    async def _keep_up(self, name: str, folder: Folder, hints: Hints) -> None:
        clock = self.router.clock
        todo: set[str] = set()
        again: dict[str, float] = {}  # keys that are being written, and since when
        rescan_at = clock.monotonic()
        while True:
            keys, closed, below = hints.take()
            todo |= keys
            for prefix in below:
                todo.update(await asyncio.to_thread(folder.differences, prefix))
            if clock.monotonic() >= rescan_at:
                began = clock.monotonic()
                self._check(name, folder)
                todo.update(await asyncio.to_thread(folder.differences))
                self._forget(began - _REMEMBER)
                rescan_at = clock.monotonic() + max(_RESCAN, _RESCAN_SHARE * (clock.monotonic() - began))
            written = await self._settle(name, folder, todo | again.keys(), closed)
            todo = set()
            now = clock.monotonic()
            again = {key: again.get(key, now) for key in written}
            soon = any(now - since < _LATER for since in again.values())
            if name in self._starting and not (folder.manifest.is_new and soon):
                if folder.manifest.is_new:
                    folder.manifest.complete()
                self._starting.discard(name)
                if not self._starting:
                    self.router.live()
            pause = rescan_at - now
            if again:
                pause = _SOON if soon else _LATER
            await self._hint_or(hints, pause)

    @staticmethod
    def _check(name: str, folder: Folder) -> None:
        if not folder.is_there():
            raise EventRouterError(f"bucket {name}: its folder {folder.path} is gone; bring it back")

    def _forget(self, before: float) -> None:
        for version, (at, _) in list(self._written.items()):
            if at < before:
                self._written.pop(version, None)

    async def _hint_or(self, hints: Hints, seconds: float) -> None:
        timer = self.router.clock.call_later(seconds, hints.any.set)
        try:
            await hints.any.wait()
        finally:
            timer.cancel()

    async def _settle(self, name: str, folder: Folder, keys: Iterable[str], closed: set[str]) -> list[str]:
        """Report what has happened to these keys; returns those that are being written."""
        written: list[str] = []
        todo = await asyncio.to_thread(folder.present_first, keys)
        for start in range(0, len(todo), _AT_ONCE):
            changes, again = await asyncio.to_thread(folder.examine, todo[start : start + _AT_ONCE], closed, self.router.clock.time())
            written += again
            if any(change.gone for change in changes):
                self._check(name, folder)
            if changes:
                await self._deliver(name, folder, changes)
        self._tell(name, folder)
        return written

    def _tell(self, bucket: str, folder: Folder) -> None:
        """Of what was met that can't be an object."""
        listing = folder.listing
        for path in listing.unnamable - folder.told:
            self.router.log.warning(
                "bucket %s: %r is no object: its name is not UTF-8; rename it", bucket, path, extra={"action": "s3.name"}
            )
        for path in listing.closed.keys() - folder.told:
            self.router.log.warning(
                "bucket %s: can't look into %r, so nothing of it is reported: %s", bucket, path, listing.closed[path],
                extra={"action": "s3.closed"},
            )  # fmt: skip
        folder.told = listing.unnamable | listing.closed.keys()

    async def _hand_over(self, folder: Folder, changes: list[Change], events: list[Event]) -> None:
        if folder.manifest.is_new:
            receipts = [
                self.router.deliver_to(binding, event)
                for binding, trigger in self._triggers
                if trigger.initial
                for event in events
                if trigger.matches(event) is not None
            ]
            await asyncio.gather(*receipts)
        else:
            await self.router.deliver(events)
        self.router.crash_point("ack.before")
        await asyncio.to_thread(folder.manifest.report, changes)
        self.router.crash_point("ack.after")

    async def _deliver(self, bucket: str, folder: Folder, changes: list[Change]) -> None:
        events = [self._event(bucket, change) for change in changes]
        while True:
            task = asyncio.create_task(self._hand_over(folder, changes, events))
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                # What is on disk must be noted down, or the next change of a key would be told as one of the version before.
                await asyncio.gather(task, return_exceptions=True)
                raise
            except JournalError as error:
                self.router.lost(f"bucket {bucket}: {error}")
                await self.router.clock.sleep(1)
            else:
                if self.router.was_live:
                    self.router.live()
                return

    def _manifest_file(self, name: str, folder: Path) -> Path:
        place = hashlib.sha256(str(folder).encode()).hexdigest()[:8]  # another folder is another bucket
        return self.router.folder / f"{name}-{place}.db"
