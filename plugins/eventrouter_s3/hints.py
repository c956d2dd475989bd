"""What watchdog tells of buckets' folders: the one room that imports it."""

from __future__ import annotations

import asyncio
import threading
import warnings
from pathlib import Path

from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer

from eventrouter_s3.files import Names

# watchdog 7 may come upon a folder in a new folder twice, replaces its callback by the same one, and warns of it.
warnings.filterwarnings("ignore", "Callback with id", RuntimeWarning)

# The narrowest that tells all: what readers do, and every single write, would fill the kernel's queue.
_LISTEN: list[type[FileSystemEvent]] = [
    FileClosedEvent, FileCreatedEvent, FileDeletedEvent, FileMovedEvent, DirCreatedEvent, DirDeletedEvent, DirMovedEvent,
]  # fmt: skip


class Hints(FileSystemEventHandler):
    """Collects, in watchdog's thread, which keys and subfolders to look at."""

    def __init__(self, folder: Path, names: Names) -> None:
        self._root = f"{folder}/"
        self._names = names
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self.any = asyncio.Event()
        self._keys: set[str] = set()
        self._closed: set[str] = set()
        self._below: set[str] = set()

    def dispatch(self, event: FileSystemEvent) -> None:
        with self._lock:
            self._add(event.src_path, event)
            if event.event_type == "moved":
                self._add(event.dest_path, event)
        self._loop.call_soon_threadsafe(self.any.set)

    def _add(self, path: bytes | str, event: FileSystemEvent) -> None:
        name = path if isinstance(path, str) else path.decode(errors="surrogateescape")
        key = name.removeprefix(self._root)
        if key == name or not all(map(self._names.visible, key.split("/"))):
            return
        if event.is_directory:
            self._below.add(f"{key}/")
        elif self._names.is_key(key):
            self._keys.add(key)
            if isinstance(event, FileClosedEvent | FileMovedEvent):
                self._closed.add(key)

    def take(self) -> tuple[set[str], set[str], set[str]]:
        """Keys, those of them just closed, subfolders; and forget them."""
        with self._lock:
            self.any.clear()
            taken = self._keys, self._closed, self._below
            self._keys, self._closed, self._below = set(), set(), set()
        return taken


class Watch:
    """One observer of all buckets."""

    def __init__(self) -> None:
        self._observer = Observer()
        self._observer.start()

    async def add(self, folder: Path, names: Names) -> Hints:
        """What changes below a folder from now on. Raises OSError."""
        hints = Hints(folder, names)
        await asyncio.to_thread(self._observer.schedule, hints, str(folder), recursive=True, event_filter=_LISTEN)
        return hints

    def close(self) -> None:
        self._observer.stop()
        self._observer.join()
