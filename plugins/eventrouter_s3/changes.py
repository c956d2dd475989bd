"""What has changed in a bucket's folder since it was last reported. Everything here blocks; the source calls it in threads."""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path

from eventrouter_s3.files import Link, Listing, Names, open_file, opened, split, status_of
from eventrouter_s3.manifest import Change, Manifest, Seen

_WHOLE_MD5 = 64 * 1024 * 1024  # bytes; what is larger gets an ETag of the form that multipart uploads have
_RACY = 0.02  # seconds: a file written twice within one tick of the kernel's clock looks the same both times
_STILL = 1.0  # seconds without a change, where nothing else tells that a file is finished


class Folder:
    """A bucket's folder, compared with its manifest. listing: what was met in it that is no object; told: what of that was logged."""

    def __init__(self, path: Path, manifest: Manifest, names: Names) -> None:
        self.path = path
        self.manifest = manifest
        self.listing = Listing(path, names)
        self.told: set[str] = set()
        self._names = names
        self._inode = path.stat().st_ino
        self._leases = _leases_work(path)
        self._waiting: dict[str, tuple[int, int, float]] = {}  # size, modified, since: of files that are being written

    def is_there(self) -> bool:
        """Else all in it seems to have gone: a disk that was unmounted looks like that."""
        try:
            return self.path.stat().st_ino == self._inode
        except FileNotFoundError:
            return False

    def differences(self, below: str = "") -> list[str]:
        """The keys whose files are not as last reported."""
        found: list[str] = []
        visited: set[str] = set()
        for inside, objects in self.listing(below):
            visited.add(inside)
            seen = self.manifest.inside(inside)
            for name, status in objects:
                if not _same(seen.pop(name, None), status):
                    found.append(inside + name)
            found += (inside + name for name in seen)
        closed = tuple(self.listing.closed)  # what can't be looked into has not gone
        for inside in self.manifest.folders(below):
            if inside not in visited and not (closed and inside.startswith(closed)):
                found += (inside + name for name in self.manifest.inside(inside))
        return found

    def present_first(self, keys: Iterable[str]) -> list[str]:
        """Sorted; what is gone comes last, so that what was moved is still known by its old name when its new one is looked at."""
        present: list[str] = []
        gone: list[str] = []
        for key in sorted(keys):
            (present if os.path.lexists(self.path / key) else gone).append(key)
        return present + gone

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
                self.listing.unnamable.add(key)
                continue
            try:
                change = self._examine(key, key in closed, now)
            except (FileNotFoundError, NotADirectoryError, Link):
                self._waiting.pop(key, None)
                known = self.manifest.get(key)
                if known is not None:
                    changes.append(Change(key, "ObjectRemoved:Delete", known, now))
                continue
            except OSError as error:
                self.listing.closed[split(key)[0]] = error.strerror or str(error)
                continue
            if change is None:
                again.append(key)
                continue
            self._waiting.pop(key, None)
            if change.event:
                changes.append(change)
        return changes, again

    def _examine(self, key: str, closed: bool, now: float) -> Change | None:
        """The version that is there, without an event when it is the one that is known; None: it is being written."""
        inside, name = split(key)
        with opened(self.path, inside) as parent:
            status = status_of(parent, name)
            if not (stat.S_ISREG(status.st_mode) and self._names.finished(name)):
                raise FileNotFoundError
            known = self.manifest.get(key)
            if known is not None and _same(known, status):
                return Change(key, "", known, now, "")
            try:
                handle = open_file(parent, name)
            except PermissionError:  # not ours to read; it is there all the same
                if not self._lies_still(key, status, closed, now):
                    return None
                etag = ""
            else:
                try:
                    status = os.fstat(handle)
                    if not self._finished(key, handle, status, closed, now):
                        return None
                    etag = _etag(handle, status)
                    after = os.fstat(handle)
                finally:
                    os.close(handle)
                if (after.st_size, after.st_mtime_ns) != (status.st_size, status.st_mtime_ns):
                    return None
        # The same version found twice (a crash before it was noted down) must have the same number.
        version = self.manifest.next_version(key, status.st_ctime_ns)
        seen = Seen(status.st_size, status.st_mtime_ns, status.st_ino, version)
        replaced = known is not None and known.inode != seen.inode  # by a file that was complete when it took the name
        copied = replaced or self.manifest.is_copy(key, *seen[:3])
        return Change(key, "ObjectCreated:Copy" if copied else "ObjectCreated:Put", seen, status.st_ctime, etag)

    def _finished(self, key: str, handle: int, status: os.stat_result, closed: bool, now: float) -> bool:
        if 0 <= now - status.st_mtime < _RACY:
            return False
        if self._leases:
            free = _nobody_writes(handle)
            if free is not None:
                return free
        return self._lies_still(key, status, closed, now)

    def _lies_still(self, key: str, status: os.stat_result, closed: bool, now: float) -> bool:
        if closed:
            return True
        size, modified, since = self._waiting.get(key, (-1, -1, now))
        if (size, modified) != (status.st_size, status.st_mtime_ns):
            self._waiting[key] = (status.st_size, status.st_mtime_ns, now)
            return False
        return not 0 <= now - since < _STILL


def _same(known: Seen | None, status: os.stat_result) -> bool:
    return known is not None and known[:3] == (status.st_size, status.st_mtime_ns, status.st_ino)


def _nobody_writes(handle: int) -> bool | None:
    """Whether no process has the file open for writing; None where the kernel won't tell."""
    try:
        # Linux grants a read lease only while nobody writes. Who opens the file until it is given back waits that long, and the
        # kernel sends a signal: SIGURG, which is ignored unless somebody asked for it.
        fcntl.fcntl(handle, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return False
    except OSError:
        return None  # another's file
    return True


def _leases_work(folder: Path) -> bool:
    """Some file systems refuse every lease with the error that means "it is being written"."""
    if not hasattr(fcntl, "F_SETLEASE"):
        return False
    with tempfile.NamedTemporaryFile(prefix=".eventrouter-", dir=folder) as probe, Path(probe.name).open("rb") as reader:
        if _nobody_writes(reader.fileno()) is not False:
            return False
        probe.file.close()
        return _nobody_writes(reader.fileno()) is True


def _etag(handle: int, status: os.stat_result) -> str:
    if status.st_size <= _WHOLE_MD5:
        with open(handle, "rb", closefd=False) as file:
            return hashlib.file_digest(file, _md5).hexdigest()
    return _md5(f"{status.st_size} {status.st_mtime_ns}".encode()).hexdigest() + "-1"


def _md5(data: bytes = b"") -> hashlib._Hash:
    return hashlib.md5(data, usedforsecurity=False)
