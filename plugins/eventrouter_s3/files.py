"""A bucket's folder: which files in it are objects, and how to reach them without leaving it. Everything here blocks."""

from __future__ import annotations

import errno
import fnmatch
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

IGNORED = ("*.tmp", "*.part", "*.partial", "*.crdownload", "*~")  # what programs name files that they have not finished
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC  # opening a pipe must not wait


class Names:
    """Which names are those of objects. ignore: patterns of file names that are not."""

    def __init__(self, ignore: Iterable[str] = IGNORED) -> None:
        self._ignored = re.compile("|".join(map(fnmatch.translate, ignore)) or r"(?!)").match

    def visible(self, name: str) -> bool:
        """Of a folder; and of a file, unless it is ignored."""
        return not name.startswith(".")

    def finished(self, name: str) -> bool:
        """Of a file."""
        return not name.startswith(".") and self._ignored(name) is None

    def is_key(self, key: str) -> bool:
        parts = key.split("/")
        return all(part and self.visible(part) for part in parts) and self.finished(parts[-1]) and "\0" not in key

    def check(self, key: str) -> None:
        """Raises ValueError for what is no object's key here."""
        parts = key.split("/")
        if any(part == "" or part.startswith(".") for part in parts) or "\0" in key:
            raise ValueError(f"key {key!r}: parts between '/' can't be empty, begin with a dot or hold NUL")
        if not self.finished(parts[-1]):
            raise ValueError(f"key {key!r}: files of that name are taken for unfinished ones, see [s3] ignore; choose another")
        key.encode()


class Link(ValueError):
    """A symbolic link is in the way: it is no object, and what it leads to may be outside the bucket."""


@contextmanager
def opened(folder: Path, inside: str = "", *, make: bool = False) -> Iterator[int]:
    """A handle of a subfolder, given as keys begin (`"a/b/"`), reached without following any link. Raises Link, OSError."""
    handle = os.open(folder, _FOLDER)
    try:
        for part in inside.split("/")[:-1]:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(part, dir_fd=handle)
            try:
                inner = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=handle)
            except OSError as error:
                if error.errno in (errno.ENOTDIR, errno.ELOOP) and stat.S_ISLNK(status_of(handle, part).st_mode):
                    raise Link(f"key {inside!r}: {part!r} is a link, and links are no part of a bucket") from None
                raise
            os.close(handle)
            handle = inner
        yield handle
    finally:
        os.close(handle)


def status_of(folder: int, name: str) -> os.stat_result:
    return os.stat(name, dir_fd=folder, follow_symlinks=False)


def open_file(folder: int, name: str) -> int:
    """A handle for reading. Raises Link, FileNotFoundError for what is no file."""
    try:
        handle = os.open(name, _FILE, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Link(f"{name!r} is a link, and links are no objects") from None
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise FileNotFoundError(errno.ENOENT, "not a file", name)
    return handle


def split(key: str) -> tuple[str, str]:
    """`"a/b/c"` -> `"a/b/"`, `"c"`."""
    folder, slash, name = key.rpartition("/")
    return folder + slash, name


def read(folder: Path, key: str) -> bytes:
    inside, name = split(key)
    try:
        with opened(folder, inside) as parent, open(open_file(parent, name), "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(errno.ENOENT, "no such object", f"{folder.name}/{key}") from None


def write(folder: Path, key: str, content: bytes | Path, coming: Callable[[os.stat_result], None] | None = None) -> int:
    """Put bytes, or a copy of a file, in place at once and for good. Returns the size.

    coming: called before anybody can see it, with the status of the file that will be there.
    """
    inside, name = split(key)
    unfinished = f".eventrouter-{uuid.uuid4().hex}"
    try:
        with opened(folder, inside, make=True) as parent:
            handle = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=parent)
            try:
                with open(handle, "wb") as file:  # noqa: PTH123
                    if isinstance(content, bytes):
                        file.write(content)
                    else:
                        with content.open("rb") as original:
                            shutil.copyfileobj(original, file)
                    file.flush()
                    os.fsync(handle)
                    status = os.fstat(handle)
                if coming is not None:
                    coming(status)
                os.replace(unfinished, name, src_dir_fd=parent, dst_dir_fd=parent)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(unfinished, dir_fd=parent)
                raise
            os.fsync(parent)
    except (NotADirectoryError, IsADirectoryError) as error:
        if error.filename == str(content):
            raise
        raise ValueError(
            f"key {key!r}: a file can't have the name of a folder; S3 may hold 'a' beside 'a/b', a file system can't"
        ) from None
    return status.st_size


def delete(folder: Path, key: str, going: Callable[[], None] | None = None) -> bool:
    """Whether there was such an object. going: called when there is, before it goes."""
    inside, name = split(key)
    try:
        with opened(folder, inside) as parent:
            if not stat.S_ISREG(status_of(parent, name).st_mode):
                return False
            if going is not None:
                going()
            os.unlink(name, dir_fd=parent)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


class Listing:
    """Goes through a bucket's folder. unnamable: paths that are no text; closed: subfolders that can't be looked into, and why."""

    def __init__(self, folder: Path, names: Names) -> None:
        self._folder = folder
        self._names = names
        self.unnamable: set[str] = set()
        self.closed: dict[str, str] = {}

    def __call__(self, below: str = "") -> Iterator[tuple[str, list[tuple[str, os.stat_result]]]]:
        """Each subfolder, given as keys begin, with the objects right in it. below: only this one and those in it."""
        todo = [below]
        while todo:
            inside = todo.pop()
            found: list[tuple[str, os.stat_result]] = []
            try:
                with opened(self._folder, inside) as handle, os.scandir(handle) as entries:
                    for entry in entries:
                        self._look_at(entry, inside, found, todo)
            except (FileNotFoundError, NotADirectoryError, Link):
                self.closed.pop(inside, None)
                continue  # it went meanwhile; what was in it is missing from the listing
            except OSError as error:
                self.closed[inside] = error.strerror or str(error)
                continue
            self.closed.pop(inside, None)
            yield inside, found

    def _look_at(self, entry: os.DirEntry[str], inside: str, found: list[tuple[str, os.stat_result]], todo: list[str]) -> None:
        name = entry.name
        if not self._names.visible(name):
            return
        try:
            is_folder = entry.is_dir(follow_symlinks=False)
            if not (is_folder or (entry.is_file(follow_symlinks=False) and self._names.finished(name))):
                return
            try:
                name.encode()
            except UnicodeEncodeError:
                self.unnamable.add(inside + name)
                return
            if is_folder:
                todo.append(f"{inside}{name}/")
            else:
                found.append((name, entry.stat(follow_symlinks=False)))
        except FileNotFoundError:
            return


def keys(folder: Path, names: Names, prefix: str) -> list[str]:
    """The keys that begin with `prefix`, sorted."""
    below = split(prefix)[0]
    if below and not all(part and names.visible(part) for part in below.split("/")[:-1]):
        return []
    return sorted(
        inside + name for inside, found in Listing(folder, names)(below) for name, _ in found if (inside + name).startswith(prefix)
    )
