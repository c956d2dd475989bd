"""Handlers that mean harm, each as a plain process function, and in a sandbox as `NAME_boxed`."""

import ctypes
import errno
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

from eventrouter import on

LIBC = ctypes.CDLL(None, use_errno=True)


def hostile(**policy: Any) -> Callable[[FunctionType], FunctionType]:
    def mark(function: FunctionType) -> FunctionType:
        boxed = FunctionType(function.__code__, function.__globals__, f"{function.__name__}_boxed")
        boxed.__annotations__ = function.__annotations__
        globals()[boxed.__name__] = on(isolation="process", sandbox=True, retries=0, **policy)(boxed)
        return on(isolation="process", retries=0, **policy)(function)

    return mark


def tried(attempts: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """What came of each: an error's name, or what it gave."""
    found = {}
    for name, attempt in attempts.items():
        try:
            result = attempt()
        except OSError as error:
            found[name] = errno.errorcode.get(error.errno or 0, str(error))
        else:
            found[name] = result if isinstance(result, int | str | list | dict | None) else repr(result)
    return found


def called(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "call")
    return result


@hostile()
def peaceful(payload: Any) -> Any:
    return [os.getpid(), os.getppid(), payload]


@hostile(timeout=0.5)
def spins_in_c(payload: Any) -> None:
    re.match(r"(a+)+$", "a" * 60 + "b")


@hostile(timeout=0.5)
def ignores_sigterm(payload: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(1)


@hostile(timeout=2)
def forks(payload: Any) -> None:
    """In sessions of their own, so that no signal to its group finds them."""
    while True:
        try:
            if os.fork() == 0:
                os.setsid()
        except OSError:
            time.sleep(0.01)


@hostile(timeout=30, memory=128, enforce="best-effort")
def allocates(payload: int) -> int:
    held = b"x" * (payload << 20)
    while payload > 128:  # until somebody sees it
        time.sleep(0.01)
    return len(held)


@hostile(timeout=30, memory=128, enforce="best-effort")
def has_a_child_allocate(payload: Any) -> int:
    return subprocess.run([sys.executable, "-c", "b'x' * (2 << 30)"], check=False).returncode


@hostile(timeout=30)
def opens(payload: Any) -> str:
    held: list[int] = []
    try:
        held.extend(os.open("/dev/null", os.O_RDONLY) for _ in range(100_000))
    except OSError as error:
        return f"{errno.errorcode[error.errno or 0]} {len(held) < 1024}"
    finally:
        for descriptor in held:
            os.close(descriptor)
    return "opened"


@hostile(timeout=30)
def reads(payload: dict[str, Any]) -> dict[str, Any]:
    data, router = payload["data"], payload["router"]

    def everywhere(what: str) -> list[str]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                (folder / what).read_bytes()
            except OSError:
                continue
            if folder.name != str(os.getpid()):
                found.append(folder.name)
        return found

    def links(pid: int) -> list[str]:
        return [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]

    def control() -> str:
        with socket.socket(socket.AF_UNIX) as end:
            end.connect(f"{data}/control.sock")
        return "connected"

    def again() -> str:
        """In namespaces of its own, where it may do much."""
        called(LIBC.unshare(0x10020000))
        called(LIBC.umount2(data.encode(), 2))
        return (Path(data) / "journal.db").read_bytes()[:6].decode()

    return tried(
        {
            "listed": lambda: [path.name for path in Path(data).iterdir()],
            "by path": (Path(data) / "journal.db").read_bytes,
            "config": lambda: Path(payload["config"]).read_text(),
            "by root": lambda: everywhere(f"root{data}/journal.db"),
            "by cwd": lambda: everywhere("cwd/.eventrouter/journal.db"),
            "router's descriptors": lambda: links(router),
            "template's descriptors": lambda: links(os.getppid()),
            "router's environ": lambda: Path(f"/proc/{router}/environ").read_text(),
            "template's environ": lambda: Path(f"/proc/{os.getppid()}/environ").read_text(),
            "router's memory": lambda: Path(f"/proc/{router}/mem").open("rb").close(),
            "uncovered": lambda: called(LIBC.umount2(data.encode(), 2)),
            "uncovered elsewhere": again,
            "disks": lambda: [path for path in raw_disks() if os.access(path, os.R_OK) and os.open(path, os.O_RDONLY)],
            "made a disk": lambda: os.mknod("/tmp/disk", 0o60600, os.makedev(254, 0)),
            "control": control,
        }
    )


def raw_disks() -> Iterator[str]:
    for line in Path("/proc/partitions").read_text().splitlines()[2:]:
        path = Path("/dev", line.split()[3])
        if path.is_block_device():
            yield str(path)


@hostile(timeout=30)
def seizes(payload: dict[str, int]) -> dict[str, Any]:
    """Each of the router, the template, a sibling."""

    def forge(pid: int) -> int:
        written = 0
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with path.open("wb", 0) as file:
                written += file.write(b"\0\0\0\x01\xc0")
        return written

    def write(pid: int) -> None:
        with Path(f"/proc/{pid}/mem").open("r+b"):
            pass

    def vm(pid: int) -> int:
        class Piece(ctypes.Structure):
            _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))

        buffer = ctypes.create_string_buffer(8)
        mine, theirs = Piece(ctypes.addressof(buffer), 8), Piece(ctypes.addressof(buffer), 8)
        return called(LIBC.process_vm_readv(pid, ctypes.byref(mine), 1, ctypes.byref(theirs), 1, 0))

    found = {}
    for who, pid in payload.items():
        found[who] = tried(
            {
                "signal": lambda pid=pid: os.kill(pid, signal.SIGTERM),
                "stop": lambda pid=pid: os.kill(pid, signal.SIGSTOP),
                "ptrace": lambda pid=pid: called(LIBC.ptrace(16, pid, None, None)),
                "memory": lambda pid=pid: write(pid),
                "read memory": lambda pid=pid: vm(pid),
                "forged": lambda pid=pid: forge(pid),
                "limits": lambda pid=pid: resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0)),
                "priority": lambda pid=pid: os.setpriority(os.PRIO_PROCESS, pid, 1),
                "all priorities": lambda: os.setpriority(os.PRIO_USER, 0, 1),
                "processors": lambda pid=pid: os.sched_setaffinity(pid, os.sched_getaffinity(pid)),
            }
        )
    return found


@hostile()
def changes_the_machine(payload: Any) -> dict[str, Any]:
    def groups() -> list[str]:
        found = []
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, place = line.split(":", 2)
            for controller in controllers.split(",") if controllers else ["unified"]:
                for file in ("memory.limit_in_bytes", "pids.max", "cgroup.procs"):
                    try:
                        Path(f"/sys/fs/cgroup/{controller}{place}/{file}").write_text("-1")
                    except OSError:
                        continue
                    found.append(f"{controller} {file}")
        return found

    return tried(
        {
            "groups": groups,
            "core_pattern": lambda: Path("/proc/sys/kernel/core_pattern").open("r+").close(),
            "mount": lambda: called(LIBC.mount(b"none", b"/mnt", b"tmpfs", 0, None)),
            "host name": lambda: called(LIBC.sethostname(b"x", 1)),
            "root": lambda: os.setuid(0) if os.getuid() else os.chroot("/tmp"),
            "capabilities": lambda: sorted(set(re.findall(r"Cap(?:Inh|Prm|Eff|Amb):\t(\w+)", Path("/proc/self/status").read_text()))),
            "privileges": lambda: re.search(r"NoNewPrivs:\t(\d)", Path("/proc/self/status").read_text())[1],  # type: ignore[index]
            "user": os.getuid,
        }
    )


@hostile()
def writes(payload: dict[str, Any]) -> dict[str, Any]:
    def create(path: str) -> str:
        Path(path).write_text("x")
        return "written"

    return tried(
        {
            "beside the config": lambda: create(f"{payload['folder']}/made.txt"),
            "its code": lambda: Path(__file__).open("a").close(),
            "its code's rights": lambda: Path(__file__).chmod(0o644),
            "the machine's": lambda: create("/etc/eventrouter-test"),
            "python's": lambda: create(f"{sys.prefix}/eventrouter-test"),
            "the shared memory": lambda: create("/dev/shm/eventrouter-test"),
            "tmp": lambda: create("/tmp/eventrouter-test"),
            "null": lambda: create("/dev/null"),
        }
    )


@hostile(timeout=60)
def fills(payload: Any) -> Any:
    import tempfile

    written = 0
    try:
        for number in range(100):
            with Path(tempfile.gettempdir(), str(number)).open("wb") as file:
                for _ in range(64):
                    written += file.write(bytes(1 << 20))
    except OSError as error:
        return [errno.errorcode[error.errno or 0], written >> 20]
    return ["filled", written >> 20]
