"""What isolated functions are kept from: the router's data folder and secrets, other processes, the machine, each other.

The template makes a `Shelter` before it imports the app, and lives in it; each environment calls `confine` before the user's code.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from eventrouter.errors import ConfigError
from eventrouter.functions import Function
from eventrouter.runtimes import kernel
from eventrouter.runtimes.cgroups import Groups, Watch

FILES: Final = 1024  # open at once, as in Lambda
TMP: Final = 512  # MB of a sandbox's /tmp, as in Lambda
_LARGEST: Final = 10_240  # MB of a file outside of a sandbox
_MEGABYTE: Final = 1024 * 1024
_UIDS: Final = 0x70000000  # a sandbox's is this and its process's number: no living process of the machine has the same
_PIDS: Final = 1 << 22  # there are no more
_TMP: Final = Path("/tmp")  # noqa: S108
_DEVICES: Final = ("full", "null", "ptmx", "pts", "random", "tty", "urandom", "zero")
_RAW: Final = re.compile(r"k?mem|port|kmsg|nvram|sg\d+|nvme\d+")  # beside block devices: what leads past the file system


class Confinement(msgspec.Struct, array_like=True):
    """What a function is held to. memory: MB, 0: it has no limit, of CPU neither. sandbox: as the policy says."""

    memory: int = 0
    sandbox: bool = False


def confinement(function: Function) -> Confinement:
    return Confinement(function.policy.memory or 0, function.policy.sandbox)


class Means(msgspec.Struct):
    """What this machine has to confine functions with.

    groups: version of the control groups for "memory", "cpu", "pids"; without: why there are not all. mounts: by what right the
    template has a view of the file system of its own, "root" or "user namespace"; "": it has none. landlock: version of its
    interface, 0: none. seccomp: whether calls can be refused. root: whether the router runs as such. uids: whether sandboxes get user
    ids of their own; private: what of the code no other user can read.
    """

    groups: dict[str, int] = {}
    without: str = ""
    mounts: str = ""
    landlock: int = 0
    seccomp: bool = False
    root: bool = False
    uids: bool = False
    private: str = ""


AS_SERVICE: Final = "run it as root, or as a systemd service with Delegate=yes"


PROCESS: Final = 'isolation="process"'


def lacking(means: Means, asked: Confinement) -> Iterator[tuple[str, str, str]]:
    """Of what can't be kept here: the option, what is missing, the remedy."""
    if kernel.LINUX and not means.mounts and not means.landlock:
        yield (
            PROCESS,
            "nothing keeps it from reading the router's data folder: this kernel has no Landlock, and allows no mount namespace",
            "allow user namespaces, or boot with lsm=landlock",
        )
    if asked.memory and not (kernel.LINUX and "cpu" in means.groups):
        why = means.without if kernel.LINUX else "it takes Linux"
        yield f"memory={asked.memory}", f"its share of the CPU can't be enforced: {why}", AS_SERVICE
    if not asked.sandbox:
        return
    if not (means.mounts or means.landlock >= 3):  # before that, files could be cut short
        yield "sandbox=True", "nothing keeps it from writing: it takes mount namespaces, or Landlock of Linux 6.2", "allow user namespaces"
    if not means.seccomp:
        yield "sandbox=True", "this kernel filters no calls (seccomp), or its architecture isn't known", "run it on x86_64 or aarch64"
    if means.root and not means.uids:
        yield (
            "sandbox=True",
            "it can't have a user id of its own"
            + (f", as no other user can read {means.private}" if means.private else " in this container"),
            f"chmod -R o+rX {means.private}" if means.private else "give the container more user ids",
        )
    elif not means.uids and means.landlock < kernel.SCOPES_SINCE:
        yield (
            "sandbox=True",
            "nothing keeps it from sending signals to the router: it takes Landlock of Linux 6.12, or a user id of its own",
            "run it as root",
        )


def check(means: Means, functions: Iterable[Function]) -> list[str]:
    """Which limits of isolated functions are not kept here. Raises ConfigError for those that have to be."""
    notes = []
    for function in functions:
        if function.isolation != "process":
            continue
        for option, missing, remedy in lacking(means, confinement(function)):
            where = f"{function.place}: {function.name}: {option}: {missing}"
            if function.policy.enforce == "strict":
                raise ConfigError(f'{where}; {remedy}, or set enforce="best-effort" to go without')
            notes.append(f'{where}; it runs without, as enforce="best-effort" says')
    return notes


class Shelter:
    """The template's. From here on it, and what it forks, doesn't see what is hidden.

    hidden: folders and files of the router's. code: folders that functions need. key: the same for all routers of one data folder, and for
    no other. Raises OSError.
    """

    def __init__(self, hidden: Iterable[str], code: Iterable[str | Path], key: str) -> None:
        self._hidden = [path for path in hidden if os.path.lexists(path)]
        self._code = [Path(path).resolve() for path in code if path and Path(path).is_dir()]
        self._key = key
        root = os.geteuid() == 0
        self.means = means = Means(root=root, landlock=kernel.landlock(), seccomp=kernel.has_seccomp())
        self.groups: Groups | None = None
        self.watch = Watch()
        self._rules: int | None = None
        self._covered: dict[str, tuple[int, int] | None] = {}
        if not kernel.LINUX:
            return
        kernel.prepare()
        self.groups = Groups(key)
        means.groups, means.without = self.groups.versions, self.groups.why
        if not means.landlock:
            kernel.prctl(kernel.DUMPABLE, 0)  # or functions could look into it, and into each other
        if "pids" not in means.groups:
            self.watch.adopt()
        for right, enter in (("root", _own_mounts), ("user namespace", _own_user_namespace)):
            if _succeeds(self._hide, enter):
                self._hide(enter)
                means.mounts = right
                break
        closed = [folder for path in self._code for folder in path.parents if root and not _open_to_all(folder, stat.S_IXOTH)]
        self._covers = _outermost([_TMP, *closed])
        means.private = next((str(path) for path in self._code if not _open_to_all(path, stat.S_IROTH | stat.S_IXOTH)), "")
        means.uids = root and bool(means.mounts) and not means.private and _succeeds(_become, _UIDS + _PIDS)
        if means.landlock:
            self._rules = kernel.ruleset((), ["/"]) if means.mounts else kernel.ruleset(*self._granted())

    @property
    def memory(self) -> str:
        """Where the groups are that count it, or nothing."""
        return self.groups.folders.get("memory", "") if self.groups is not None else ""

    # In the template

    def _hide(self, enter: Callable[[], None]) -> None:
        enter()
        kernel.mount("none", "/", "", kernel.REC | kernel.SLAVE)
        self._cover()
        if os.geteuid() == 0:
            for path in ("/proc", "/sys"):  # whose files are root's, whatever capabilities it has
                if os.path.ismount(path):
                    kernel.read_only(path)
            for path in _raw_devices("/dev"):
                kernel.mount("/dev/null", path, "", kernel.BIND)

    def _cover(self) -> None:
        for path in self._hidden:
            if (now := _identity(path)) is None or now == self._covered.get(path):
                continue
            if Path(path).is_dir():
                kernel.mount("none", path, "tmpfs", kernel.RDONLY | kernel.NOSUID | kernel.NODEV, "size=4k,mode=555")
            else:
                kernel.mount("/dev/null", path, "", kernel.BIND)
            self._covered[path] = _identity(path)

    def renew(self) -> None:
        """Before a fork: a file that was replaced meanwhile has lost its cover."""
        if self.means.mounts and any(_identity(path) != known for path, known in self._covered.items()):
            self._cover()

    def _granted(self) -> tuple[list[str], list[str], list[str]]:
        """Where there is no view of our own: what can be read, written, and listed, since Landlock forbids nothing below what it grants."""
        kept = {os.path.realpath(path) for path in self._hidden}
        if self.means.root:
            kept |= {"/proc", "/sys", *_raw_devices("/dev")}
        granted: list[str] = []
        listed: list[str] = []

        def walk(folder: str) -> None:
            listed.append(folder)
            with suppress(OSError):
                for entry in os.scandir(folder):
                    if entry.path in kept or entry.is_symlink():
                        continue
                    if any(path.startswith(entry.path + "/") for path in kept):
                        walk(entry.path)
                    else:
                        granted.append(entry.path)

        walk("/")
        return [path for path in ("/proc", "/sys") if path in kept], granted, listed

    def forked(self, pid: int, asked: Confinement) -> None:
        if "memory" not in self.means.groups:
            self.watch.begins(pid, asked.memory)

    def ended(self, number: int, pid: int) -> bool:
        """What an environment has left behind is removed. Whether it, or what it started, was killed for want of memory."""
        if folder := self._folder(number):
            shutil.rmtree(folder, ignore_errors=True)
        killed = self.groups.ended(number) if self.groups is not None else False
        watched = self.watch.ended(pid)
        return killed if "memory" in self.means.groups else watched

    def tidy(self, pids: Iterable[int]) -> float | None:
        """Seconds until it wants to be called again; None: there is nothing to look after. pids: the environments that live."""
        if self.groups is not None and self.groups.tidy():
            return 0.01
        return self.watch.look(pids)

    def close(self, numbers: Iterable[int]) -> None:
        if self.groups is not None:
            self.groups.close(numbers)
        self.watch.close()

    # In an environment

    def confine(self, number: int, asked: Confinement) -> Mapping[str, str]:
        """This process, and all that it starts, to what was asked and this machine can do. Its variables that differ. Raises OSError."""
        variables: dict[str, str] = {}
        if self.groups is not None:
            self.groups.enter(number, asked.memory)
            self.groups.leave()
        largest = TMP if asked.sandbox else _LARGEST
        for what, most in ((resource.RLIMIT_NOFILE, FILES), (resource.RLIMIT_FSIZE, largest * _MEGABYTE), (resource.RLIMIT_CORE, 0)):
            _lower(what, most)
        if not kernel.LINUX:
            return variables
        if "pids" not in self.means.groups:
            self.watch.bound()
        if asked.memory and "memory" not in self.means.groups:
            self.watch.enter(asked.memory)
        rules = self._rules
        if asked.sandbox:
            folder = "/tmp"  # noqa: S108 - its own
            if self.means.mounts:
                self._seal()
            else:
                folder = self._folder(number)
                Path(folder).mkdir(0o700)
                if self.means.landlock:
                    readable, writable, listed = self._granted()
                    rules = kernel.ruleset([*readable, *writable], [folder, *(f"/dev/{name}" for name in _DEVICES)], listed)
            variables = dict.fromkeys(("HOME", "TMPDIR"), folder)
            tempfile.tempdir = None  # it remembers the machine's
        kernel.prctl(kernel.NO_NEW_PRIVS, 1)
        if asked.sandbox and self.means.uids:
            _become(_UIDS + os.getpid())
            # A change of user takes the right to it from all that go by it.
            kernel.prctl(kernel.DUMPABLE, int(bool(self.means.landlock)))
        kernel.drop_capabilities()
        if rules is not None:
            kernel.restrict(rules)
            os.close(rules)
        if self._rules is not None and rules is not self._rules:
            os.close(self._rules)
        if self.means.seccomp:
            kernel.refuse_calls(sandbox=asked.sandbox)
        kernel.die_with_parent(signal.SIGKILL)
        return variables

    def _seal(self) -> None:
        """Nothing can be written but a /tmp of its own, and of folders that are their owner's alone there is the code that is in them."""
        kernel.unshare(kernel.NEWNS)
        kernel.read_only("/")
        sources = [(path, os.open(path, os.O_PATH)) for path in _outermost(self._code) if any(path.is_relative_to(c) for c in self._covers)]
        for cover in self._covers:
            options = f"size={TMP}m,mode=1777" if cover == _TMP else "size=1m,mode=755"
            kernel.mount("none", str(cover), "tmpfs", kernel.NOSUID | kernel.NODEV, options)
        for path, source in sources:
            path.mkdir(parents=True)
            # With all that is mounted below: that's what covers the router's files.
            kernel.mount(f"/proc/self/fd/{source}", str(path), "", kernel.BIND | kernel.REC)
            kernel.read_only(str(path))
            os.close(source)
        for cover in self._covers:
            if cover != _TMP:
                kernel.read_only(str(cover), below=False)

    def _folder(self, number: int) -> str:
        return "" if self.means.mounts else f"{tempfile.gettempdir()}/eventrouter-{self._key}-{number}"


def look(*code: Path) -> Means:
    """What this machine has. It takes a process of its own to try."""
    done = subprocess.run([sys.executable, "-P", "-c", _LOOK, *map(str, code)], capture_output=True, check=False)  # noqa: S603 - itself
    return msgspec.json.decode(done.stdout, type=Means) if done.returncode == 0 else Means(without=done.stderr.decode().strip()[-200:])


_LOOK: Final = """
import os, sys, msgspec
from eventrouter.runtimes.confine import Shelter
shelter = Shelter([], sys.argv[1:], f"doctor-{os.getpid()}")
shelter.close(())
sys.stdout.write(msgspec.json.encode(shelter.means).decode())
"""


def _own_mounts() -> None:
    kernel.unshare(kernel.NEWNS)


def _own_user_namespace() -> None:
    user, group = os.geteuid(), os.getegid()
    kernel.unshare(kernel.NEWNS | kernel.NEWUSER)
    for file, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        Path(f"/proc/self/{file}").write_text(text)


def _become(user: int) -> None:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def _succeeds(attempt: Callable[[Any], None], argument: Any) -> bool:
    """In a process of its own: what fails half-way can't be taken back."""
    pid = os.fork()
    if pid == 0:
        try:
            attempt(argument)
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def _raw_devices(folder: str) -> Iterator[str]:
    with suppress(OSError):
        for entry in os.scandir(folder):
            if entry.is_symlink():
                continue
            if entry.is_dir():
                if not os.path.ismount(entry.path):
                    yield from _raw_devices(entry.path)
            elif stat.S_ISBLK(entry.stat().st_mode) or _RAW.fullmatch(entry.name):
                yield entry.path


def _open_to_all(path: Path, mode: int) -> bool:
    return path.stat().st_mode & mode == mode


def _outermost(paths: Iterable[Path]) -> list[Path]:
    """Without those that are within others."""
    found: list[Path] = []
    for path in sorted(set(paths)):
        if not any(path.is_relative_to(other) for other in found):
            found.append(path)
    return found


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _lower(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    if hard == resource.RLIM_INFINITY or hard > most:
        resource.setrlimit(what, (most, most))
