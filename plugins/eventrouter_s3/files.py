"""What a bucket's folder holds, and what has changed in it. Everything here blocks; the source calls it in threads."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import stat
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

_WHOLE_MD5 = 64 * 1024 * 1024  # bytes; what is larger gets an ETag of the form that multipart uploads have
_RACY = 0.02  # seconds: a file written twice within one tick of the kernel's clock looks the same both times
_STILL = 1.0  # seconds without a change, where nothing else tells that a file is finished


class Seen(NamedTuple):
    """A version of an object. Times in nanoseconds since 1970."""

    size: int
    modified: int
    inode: int
    sequencer: str


class Change(NamedTuple):
    """What happened to a key. seen: the new version; None: the object is gone, `sequencer` says after which version."""

    key: str
    seen: Seen | None
    sequencer: str
    at: float
    etag: str | None = None


def path_of(folder: Path, key: str) -> Path:
    """The file of a key. Raises ValueError for what would be no object or lie outside the bucket."""
    parts = key.split("/")
    if any(part == "" or part.startswith(".") for part in parts) or "\0" in key:
        raise ValueError(f"key {key!r}: parts between '/' can't be empty or begin with a dot")
    path = folder.joinpath(*parts)
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"key {key!r}: a link leads out of the bucket")
    return path


def write(folder: Path, key: str, content: bytes | Path) -> int:
    """Put bytes, or a copy of a file, in place at once. Returns the size."""
    path = path_of(folder, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".eventrouter-{uuid.uuid4().hex}")
    try:
        with unfinished.open("xb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                with content.open("rb") as original:
                    shutil.copyfileobj(original, file)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return size


def scan(folder: Path, below: str = "") -> Iterator[tuple[str, os.stat_result]]:
    """Every object: (key, stat). below: only in this subfolder, given as the beginning of keys (`"a/b/"`)."""
    todo = [below]
    while todo:
        prefix = todo.pop()
        try:
            entries = list(os.scandir(folder / prefix))
        except (FileNotFoundError, NotADirectoryError):
            continue  # it went meanwhile; what was in it is missing from the scan
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                if entry.is_dir(follow_symlinks=False):
                    todo.append(f"{prefix}{entry.name}/")
                elif entry.is_file(follow_symlinks=False):
                    yield prefix + entry.name, entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue


class Manifest:
    """What was last reported of a bucket: in memory, and as lines of JSON appended to a file.

    No fsync: what a power cut takes of it is found again as the same events, and repeats run once.
    """

    def __init__(self, file: Path) -> None:
        self.seen: dict[str, Seen] = {}
        self.is_new = True  # until all that was there at first sight has been noted down
        lines = 0
        for line in file.read_bytes().splitlines() if file.exists() else ():
            try:
                key, *fields = msgspec.json.decode(line)
            except (msgspec.DecodeError, ValueError):
                continue  # a crash tore it
            lines += 1
            if not key:
                self.is_new = False
            elif fields:
                self.seen[key] = Seen(*fields)
            else:
                self.seen.pop(key, None)
        if lines > 1000 + 2 * len(self.seen):
            compact = file.with_suffix(".new")
            compact.write_bytes(b"".join([_line("", None), *(_line(key, seen) for key, seen in self.seen.items())]))
            compact.replace(file)
        self._file = file.open("ab")
        self._file.write(b"\n")  # ends a torn line

    def report(self, changes: Iterable[Change]) -> None:
        """These have been delivered."""
        for change in changes:
            self._file.write(_line(change.key, change.seen))
            if change.seen is None:
                self.seen.pop(change.key, None)
            else:
                self.seen[change.key] = change.seen
        self._file.flush()

    def complete(self) -> None:
        """What was there at first sight has been noted down."""
        self._file.write(_line("", None))
        self._file.flush()
        self.is_new = False

    def close(self) -> None:
        self._file.close()


def _line(key: str, seen: Seen | None) -> bytes:
    return msgspec.json.encode([key, *(seen or ())]) + b"\n"


class Folder:
    """A bucket's folder, compared with its manifest."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.unnamable: set[str] = set()  # files whose names are no text
        self._leases = _leases_work(path)
        self._waiting: dict[str, tuple[int, int, float]] = {}  # size, modified, since: of files that are being written

    def differences(self, below: str = "") -> list[str]:
        """The keys whose files are not as last reported."""
        seen = self.manifest.seen
        missing = {key for key in seen if key.startswith(below)} if below else set(seen)
        found = []
        for key, status in scan(self.path, below):
            missing.discard(key)
            if not _same(seen.get(key), status):
                found.append(key)
        return found + sorted(missing)

    def examine(self, keys: Iterable[str], closed: set[str], now: float) -> tuple[list[Change], list[str]]:
        """What has happened to these keys, and which must be looked at again as they are being written.

        closed: keys whose writer was just seen to close them. now: seconds since 1970.
        """
        changes: list[Change] = []
        again: list[str] = []
        for key in keys:
            try:
                key.encode()
            except UnicodeEncodeError:
                self.unnamable.add(key)
                continue
            known = self.manifest.seen.get(key)
            try:
                status = (self.path / key).lstat()
                if not stat.S_ISREG(status.st_mode):
                    raise FileNotFoundError
                if _same(known, status):
                    self._waiting.pop(key, None)
                    continue
                if not self._finished(key, status, key in closed, now):
                    again.append(key)
                    continue
                etag = _etag(self.path / key)
            except (FileNotFoundError, NotADirectoryError):
                self._waiting.pop(key, None)
                if known is not None:
                    changes.append(Change(key, None, known.sequencer + "01", now))
                continue
            except PermissionError:
                etag = ""  # not ours to read; it is there all the same
            self._waiting.pop(key, None)
            # The same version found twice (a crash before it was noted down) must have the same sequencer.
            sequencer = f"{status.st_ctime_ns:016X}"
            changes.append(
                Change(key, Seen(status.st_size, status.st_mtime_ns, status.st_ino, sequencer), sequencer, status.st_ctime, etag)
            )
        return changes, again

    def _finished(self, key: str, status: os.stat_result, closed: bool, now: float) -> bool:
        if 0 <= now - status.st_ctime < _RACY:
            return False
        if self._leases:
            free = _nobody_writes(self.path / key)
            if free is not None:
                return free
        if closed:
            return True
        size, modified, since = self._waiting.get(key, (-1, -1, now))
        if (size, modified) != (status.st_size, status.st_mtime_ns):
            self._waiting[key] = (status.st_size, status.st_mtime_ns, now)
            return False
        return not 0 <= now - since < _STILL


def _same(known: Seen | None, status: os.stat_result) -> bool:
    return known is not None and known[:3] == (status.st_size, status.st_mtime_ns, status.st_ino)


def _nobody_writes(path: Path) -> bool | None:
    """Whether no process has the file open for writing; None where the kernel won't tell."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except PermissionError:
        return None
    try:
        # Linux grants a read lease only while nobody writes; closing gives it back. Who opens the file in between
        # waits that long, and the kernel sends a signal: SIGURG, which is ignored unless somebody asked for it.
        fcntl.fcntl(handle, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return False
    except OSError:
        return None  # another's file
    finally:
        os.close(handle)
    return True


def _leases_work(folder: Path) -> bool:
    """Some file systems refuse every lease with the error that means "it is being written"."""
    if not hasattr(fcntl, "F_SETLEASE"):
        return False
    with tempfile.NamedTemporaryFile(prefix=".eventrouter-", dir=folder) as probe:
        path = Path(probe.name)
        if _nobody_writes(path) is not False:
            return False
        reader = path.open("rb")
        probe.file.close()
        with reader:
            return _nobody_writes(path) is True


def _etag(path: Path) -> str:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size <= _WHOLE_MD5:
            return hashlib.file_digest(file, _md5).hexdigest()
        status = os.fstat(file.fileno())
        return _md5(f"{status.st_size} {status.st_mtime_ns}".encode()).hexdigest() + "-1"


def _md5(data: bytes = b"") -> hashlib._Hash:
    return hashlib.md5(data, usedforsecurity=False)
