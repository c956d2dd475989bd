"""A control group for each environment, which bounds its memory, its CPU time and its processes; and what stands in for one."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from eventrouter.runtimes import kernel

CONTROLLERS: Final = ("memory", "cpu", "pids")
PROCESSES: Final = 1024  # of an environment, threads included, as in Lambda
FEW: Final = 256  # that the user of the router may have more than at its start, where there is no group for them
CORE: Final = 1769  # MB of memory that come with one core, as in Lambda
_YIELDING: Final = 10  # or a template and a router that share a core with hundreds of processes would hardly get to end them
_PERIOD: Final = 20_000  # microseconds; at the usual 100,000 a small function would stand still for 90 ms on end
_MEGABYTE: Final = 1024 * 1024
_PATIENCE: Final = 200  # hundredths of a second that a killed process may take to be gone
_ROUNDS: Final = 100  # in which those are looked for that were started meanwhile
_NAME: Final = "eventrouter-"


def limits(version: int, memory: int) -> dict[str, list[tuple[str, int | str]]]:
    """By controller, what is written to which of a group's files. memory: MB, 0: as much as there is."""
    wanted: dict[str, list[tuple[str, int | str]]] = {"memory": [], "cpu": [], "pids": [("pids.max", PROCESSES)]}
    if memory:
        size, quota = memory * _MEGABYTE, _PERIOD * memory // CORE
        if version == 1:
            wanted["memory"] = [("memory.limit_in_bytes", size), ("memory.memsw.limit_in_bytes", size)]  # in this order
            wanted["cpu"] = [("cpu.cfs_period_us", _PERIOD), ("cpu.cfs_quota_us", quota)]
        else:
            # What it starts dies with it: else the kernel kills the largest, and the handler goes on as a cripple.
            wanted["memory"] = [("memory.max", size), ("memory.swap.max", 0), ("memory.oom.group", 1)]
            wanted["cpu"] = [("cpu.max", f"{quota} {_PERIOD}")]
    return wanted


def peak(folder: str, number: int) -> int | None:
    """MB that an environment's group has had at most; None: it isn't there any more, or the kernel doesn't count it."""
    for file in ("memory.max_usage_in_bytes", "memory.peak"):
        with suppress(OSError, ValueError):
            return -(-int(Path(folder, str(number), file).read_text()) // _MEGABYTE)
    return None


class Groups:
    """Those of one router's environments, for its template.

    versions: of each controller that is there, 1 or 2. folders: where its groups are. why: what is amiss with those that are not.
    """

    def __init__(self, key: str, root: Path = Path("/")) -> None:
        self._key = key
        self.versions: dict[str, int] = {}
        self.folders: dict[str, str] = {}
        self.why = "no cgroup file system is mounted"
        self._left: set[str] = set()  # numbers of groups to be removed
        self._find(root)
        self._first = {folder for controller, folder in self.folders.items() if self.versions[controller] == 1}
        # By descriptor: where the template looks from later, these folders can't be written to.
        self._descriptors = {folder: os.open(folder, os.O_RDONLY | os.O_DIRECTORY) for folder in dict.fromkeys(self.folders.values())}
        for descriptor in self._descriptors.values():
            self._left.update(name for name in os.listdir(descriptor) if name.isdigit())  # noqa: PTH208 - by descriptor; a killed router's
        self._tidy_all()

    def _find(self, root: Path) -> None:
        unified = None
        for line in (root / "proc/self/mounts").read_text().splitlines():
            _, place, kind, options = line.split()[:4]
            mounted = root / place.lstrip("/")
            if kind == "cgroup":
                for controller in set(options.split(",")) & set(CONTROLLERS):
                    self._take(controller, 1, mounted / (_NAME + self._key))
            elif kind == "cgroup2":
                unified = mounted
        if unified is not None:
            missing = [name for name in CONTROLLERS if name not in self.versions]
            try:
                self._find_unified(root, unified, missing)
            except OSError as error:
                self.why = f"{error.filename or unified} can't be written ({error.strerror})"

    def _find_unified(self, root: Path, unified: Path, missing: list[str]) -> None:
        own = next(line[3:] for line in (root / "proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        router = f"{_NAME}{self._key}-router"
        here = unified / own.strip("/").removesuffix(router)
        if not here.is_dir():  # it is told as seen from outside of a container
            here = unified
        there = [name for name in missing if name in (here / "cgroup.controllers").read_text().split()]
        if not there:
            return
        inside = (here / "cgroup.procs").read_text().split()
        if (here / "cgroup.type").exists():  # only the machine's root has none, and may hold both processes and groups
            mine = {str(os.getpid()), str(os.getppid())}
            if not mine.issuperset(inside):
                self.why = f"{here} holds other processes besides"
                return
            (here / router).mkdir(exist_ok=True)
            for pid in inside:
                _write(here / router / "cgroup.procs", pid)
        groups = here / (_NAME + self._key)
        groups.mkdir(exist_ok=True)
        for folder in (here, groups):
            _write(folder / "cgroup.subtree_control", " ".join("+" + name for name in there))
        for controller in there:
            self._take(controller, 2, groups)

    def _take(self, controller: str, version: int, folder: Path) -> None:
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            self.why = f"{folder.parent} can't be written ({error.strerror})"
        else:
            self.versions[controller], self.folders[controller] = version, str(folder)

    def enter(self, number: int, memory: int) -> None:
        """In an environment: make its groups, and join them. Raises OSError."""
        for folder, descriptor in self._descriptors.items():
            os.mkdir(str(number), dir_fd=descriptor)
            for controller in (name for name, place in self.folders.items() if place == folder):
                for file, value in limits(self.versions[controller], memory)[controller]:
                    try:
                        self._set(descriptor, f"{number}/{file}", value)
                    except FileNotFoundError:  # a kernel without swap; the limit itself is always there
                        if file not in ("memory.memsw.limit_in_bytes", "memory.swap.max", "memory.oom.group"):
                            raise
            # It has one thread yet. Where that can be moved by itself, the kernel has no need to wait until all processors have seen it,
            # which takes it 10 ms and more.
            self._set(descriptor, f"{number}/{'tasks' if folder in self._first else 'cgroup.procs'}", 0)

    @staticmethod
    def _set(folder: int, file: str, value: int | str) -> None:
        descriptor = os.open(file, os.O_WRONLY, dir_fd=folder)
        try:
            os.write(descriptor, str(value).encode())
        finally:
            os.close(descriptor)

    def leave(self) -> None:
        """In an environment: let go of the descriptors."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)

    def ended(self, number: int) -> bool:
        """What an environment has left behind is killed and removed. Whether the kernel has killed for want of memory."""
        file = {1: "memory.oom_control", 2: "memory.events"}.get(self.versions.get("memory", 0))
        killed = False
        if file is not None:
            folder = self._descriptors[self.folders["memory"]]
            killed = any(line.startswith("oom_kill ") and line != "oom_kill 0" for line in self._lines(folder, f"{number}/{file}"))
        self._left.add(str(number))
        self.tidy()
        return killed

    def tidy(self) -> bool:
        """Whether something is still left: killed processes take a while to be gone."""
        for name in list(self._left):
            gone = True
            for descriptor in self._descriptors.values():
                if pids := self._lines(descriptor, f"{name}/cgroup.procs"):
                    self._let_none_start(name)
                for pid in pids:
                    with suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                try:
                    os.rmdir(name, dir_fd=descriptor)
                except FileNotFoundError:
                    pass
                except OSError:
                    gone = False
            if gone:
                self._left.discard(name)
        return bool(self._left)

    def _let_none_start(self, name: str) -> None:
        """Or a crowd could make up for its dead for ever."""
        if (folder := self.folders.get("pids")) is not None:
            with suppress(OSError):
                self._set(self._descriptors[folder], f"{name}/pids.max", 0)

    def close(self, numbers: Iterable[int] = ()) -> None:
        """Remove these, and the folders of all; what runs in them is killed."""
        self._left.update(map(str, numbers))
        self._tidy_all()
        for folder, descriptor in self._descriptors.items():
            with suppress(OSError):  # what is still left is the next start's to remove
                above = os.open("..", os.O_RDONLY | os.O_DIRECTORY, dir_fd=descriptor)
                try:
                    os.rmdir(os.path.basename(folder), dir_fd=above)  # noqa: PTH119
                finally:
                    os.close(above)
            os.close(descriptor)

    def _tidy_all(self) -> None:
        for _ in range(_PATIENCE):
            if not self.tidy():
                break
            time.sleep(0.01)

    @staticmethod
    def _lines(folder: int, file: str) -> list[str]:
        try:
            descriptor = os.open(file, os.O_RDONLY, dir_fd=folder)
        except OSError:
            return []
        with os.fdopen(descriptor) as opened:
            return opened.read().splitlines()


class Watch:
    """Where there are no groups: looks at what processes have, many times a second, and kills who has too much memory.

    And ends what an environment leaves behind: orphans become the template's, whoever started them.
    """

    EVERY: Final = 0.05  # seconds
    _SOON: Final = 0.01

    def __init__(self) -> None:
        self._limits: dict[int, int] = {}  # bytes, by process, with what it shares with its template
        self._killed: set[int] = set()
        self._kills = oom_kills()
        self._most = 0
        self._orphans = False

    def adopt(self) -> None:
        """In the template."""
        kernel.prctl(kernel.CHILD_SUBREAPER, 1)
        self._most = _threads(os.getuid()) + FEW

    def bound(self) -> None:
        """In an environment: its processes."""
        resource.setrlimit(resource.RLIMIT_NPROC, (self._most, self._most))
        os.nice(_YIELDING)

    @staticmethod
    def enter(memory: int) -> None:
        """In an environment. What it asks for at once, and doesn't use, is bounded, too."""
        most = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize() + 2 * memory * _MEGABYTE
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))

    def begins(self, pid: int, memory: int) -> None:
        if memory:
            self._limits[pid] = _anonymous(os.getpid()) + memory * _MEGABYTE

    def look(self, known: Iterable[int]) -> float | None:
        """Seconds until it wants to look again. known: the environments that live."""
        if self._orphans:
            self._end_orphans(set(known))
        if self._limits:
            self._end_large()
        return self._SOON if self._orphans else self.EVERY if self._limits else None

    def close(self) -> None:
        """All that is left, environments included."""
        self._limits.clear()
        self._orphans = self._most > 0
        while self.look(()) is not None:
            time.sleep(self._SOON)

    def _end_orphans(self, known: set[int]) -> None:
        # All are stopped before any is killed, or those that are left could make up for the dead for ever.
        stopped = set[int]()
        for _ in range(_ROUNDS):
            children = [pid for pid in _children(os.getpid()) if pid not in known]
            new = {pid for child in children for pid in _tree(child)} - stopped
            if not new:
                break
            _signal(new, signal.SIGSTOP)
            stopped |= new
        _signal(stopped, signal.SIGKILL)
        for child in children:
            with suppress(ChildProcessError):
                os.waitpid(child, os.WNOHANG)
        self._orphans = bool(stopped)

    def _end_large(self) -> None:
        for pid, most in self._limits.items():
            used = [(each, _anonymous(each)) for each in _tree(pid)]
            if sum(size for _, size in used) > most:
                self._killed.add(pid)
                _signal((each for each, _ in reversed(used)), signal.SIGKILL)

    def ended(self, pid: int) -> bool:
        """Whether it was killed for want of memory, by this or, as far as can be told, by the kernel."""
        self._limits.pop(pid, None)
        self._orphans = self._most > 0
        before, self._kills = self._kills, oom_kills()
        if pid in self._killed:
            self._killed.discard(pid)
            return True
        return self._kills > before


def oom_kills() -> int:
    """How many processes of the machine the kernel has killed for want of memory; 0 where it doesn't say."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def _tree(pid: int) -> list[int]:
    found = [pid]
    for each in found:  # which grows meanwhile; a long line of descent must not be one of calls
        found += _children(each)
    return found


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):  # its number may be another's by now
            os.kill(pid, number)


def _threads(user: int) -> int:
    count = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if folder.stat().st_uid == user:
                count += len(os.listdir(folder / "task"))  # noqa: PTH208 - only how many
    return count


def _anonymous(pid: int) -> int:
    """Bytes that are no file's."""
    with suppress(OSError, ValueError, IndexError):
        _, resident, shared = Path(f"/proc/{pid}/statm").read_text().split()[:3]
        return (int(resident) - int(shared)) * resource.getpagesize()
    return 0


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        error.filename = str(path)
        raise
