"""Calls to the Linux kernel that Python has no names for; the figures are those of its headers."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Iterable
from functools import cache
from typing import Any, Final

LINUX: Final = sys.platform == "linux"
_libc: Final[Any] = ctypes.CDLL(None, use_errno=True) if LINUX else None

PDEATHSIG, DUMPABLE, SECCOMP, CAPBSET_READ, CAPBSET_DROP, CHILD_SUBREAPER, NO_NEW_PRIVS, CAP_AMBIENT = 1, 4, 22, 23, 24, 36, 38, 47
NEWNS, NEWUSER = 0x00020000, 0x10000000
BIND, REC, SLAVE, NOSUID, NODEV, RDONLY = 4096, 16384, 1 << 19, 2, 4, 1
_RECURSIVE: Final = 0x8000  # AT_RECURSIVE
_MOUNT_SETATTR, _LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 442, 444, 445, 446  # the same on every architecture


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def prctl(option: int, *arguments: int) -> int:
    """Raises OSError, as all here do."""
    given = [ctypes.c_ulong(number) for number in (*arguments, 0, 0, 0, 0)[:4]]
    return _checked(_libc.prctl(option, *given), f"prctl {option}")


def die_with_parent(number: int) -> None:
    """Where the kernel can see to it. A change of user or of capabilities makes it forget."""
    if LINUX:
        prctl(PDEATHSIG, number)


def unshare(what: int) -> None:
    _checked(_libc.unshare(what), "unshare")


def mount(source: str, target: str, kind: str, flags: int = 0, options: str = "") -> None:
    words = [os.fsencode(word) for word in (source, target, kind)]
    _checked(_libc.mount(*words, ctypes.c_ulong(flags), os.fsencode(options)), f"mount {target}")


def read_only(path: str, *, below: bool = True) -> None:
    """Nothing is written on the file system that is mounted there any more, nor on those below it."""
    attributes = struct.pack("QQQQ", RDONLY, 0, 0, 0)
    flags = _RECURSIVE if below else 0
    _checked(_libc.syscall(_MOUNT_SETATTR, -1, os.fsencode(path), flags, attributes, len(attributes)), f"mount_setattr {path}")


def drop_capabilities() -> None:
    """For good: no program that it executes has any either."""
    prctl(CAP_AMBIENT, 4)
    for number in range(64):
        try:
            prctl(CAPBSET_READ, number)
        except OSError:  # it was the last
            break
        try:
            prctl(CAPBSET_DROP, number)
        except PermissionError:  # one has to have it for that: so programs are given none, by `NO_NEW_PRIVS`
            break
    head, none = struct.pack("Ii", 0x20080522, 0), bytes(24)
    _checked(_libc.capset(head, none), "capset")


# Landlock: what is handled is forbidden, but for what a rule grants. Rights are of files below the path that a rule names.

_READ, _WRITE = 0b1101, 0b0010  # EXECUTE, READ_FILE, READ_DIR; WRITE_FILE
_CHANGE: Final = 0b1_1111_1111_0000  # REMOVE_DIR to MAKE_SYM
_SINCE: Final = ((2, 1 << 13), (3, 1 << 14), (5, 1 << 15))  # REFER, TRUNCATE, IOCTL_DEV
_OF_FILES: Final = 0b111 | 1 << 14 | 1 << 15
_SCOPES: Final = 0b11  # abstract sockets, signals
SCOPES_SINCE: Final = 6


def landlock() -> int:
    """The version of its interface; 0: the kernel has none."""
    return max(0, _libc.syscall(_LANDLOCK_CREATE, None, 0, 1)) if LINUX else 0


def ruleset(readable: Iterable[str], writable: Iterable[str], listable: Iterable[str] = ()) -> int:
    """A descriptor of one that grants no more than this. Paths that aren't there are left out."""
    version = landlock()
    later = sum(bit for since, bit in _SINCE if version >= since)
    handled = _READ | _WRITE | _CHANGE | later
    attributes = struct.pack("QQQ", handled, 0, _SCOPES if version >= SCOPES_SINCE else 0)
    size = 24 if version >= SCOPES_SINCE else 8
    rules = _checked(_libc.syscall(_LANDLOCK_CREATE, attributes, size, 0), "landlock_create_ruleset")
    for paths, rights in ((readable, _READ | handled & 1 << 15), (writable, handled), (listable, 0b1000)):
        for path in paths:
            _grant(rules, path, rights)
    return rules


def _grant(rules: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not os.path.isdir(path):  # noqa: PTH112 - a Path for each costs more than the rule
            rights &= _OF_FILES
        _checked(_libc.syscall(_LANDLOCK_ADD, rules, 1, struct.pack("=Qi", rights, descriptor), 0), f"landlock_add_rule {path}")
    finally:
        os.close(descriptor)


def restrict(rules: int) -> None:
    """This process and all that it starts, to a ruleset. It needs NO_NEW_PRIVS."""
    _checked(_libc.syscall(_LANDLOCK_RESTRICT, rules, 0), "landlock_restrict_self")


# Seccomp. Calls are told by their numbers, on x86_64 and on aarch64.

_X86, _ARM = 0xC000003E, 0xC00000B7
# No handler needs these, and they have been ways out.
_REFUSED: Final[dict[str, tuple[int, int]]] = {
    "acct": (163, 89), "add_key": (248, 217), "bpf": (321, 280), "chroot": (161, 51), "delete_module": (176, 106),
    "finit_module": (313, 273), "fsconfig": (431, 431), "fsmount": (432, 432), "fsopen": (430, 430), "fspick": (433, 433),
    "init_module": (175, 105), "io_uring_setup": (425, 425), "kcmp": (312, 272), "kexec_file_load": (320, 294), "kexec_load": (246, 104),
    "keyctl": (250, 219), "mount": (165, 40), "mount_setattr": (442, 442), "move_mount": (429, 429), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265), "open_tree": (428, 428), "perf_event_open": (298, 241), "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41), "process_madvise": (440, 440), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "ptrace": (101, 117), "quotactl": (179, 60), "reboot": (169, 142), "request_key": (249, 218), "setns": (308, 268),
    "swapoff": (168, 225), "swapon": (167, 224), "umount2": (166, 39), "unshare": (272, 97), "userfaultfd": (323, 282),
}  # fmt: skip
# With these a process is bent to another's will, and only the user decides who may: which argument says whose.
_OF_OTHERS: Final = {
    "ioprio_set": ((251, 30), 1), "prlimit64": ((302, 261), 0), "sched_setaffinity": ((203, 122), 0), "sched_setattr": ((314, 274), 0),
    "sched_setparam": ((142, 118), 0), "sched_setscheduler": ((144, 119), 0), "setpriority": ((141, 140), 1),
}  # fmt: skip
_OF_A_USER: Final = {"ioprio_set": 3, "setpriority": 2}  # the first argument, when it is all of a user's processes
_CLONE, _CLONE3 = (56, 220), 435
_NAMESPACES: Final = 0x7E020000  # CLONE_NEW*
_ALLOW, _ERROR, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_EPERM, _ENOSYS = 1, 38
_X32: Final = 0x40000000


def has_seccomp() -> bool:
    """Whether the kernel filters calls, and the numbers are known here."""
    return LINUX and _arch() is not None and os.path.exists("/proc/sys/kernel/seccomp")  # noqa: PTH110


def _arch() -> tuple[int, int] | None:
    """As the filter sees it, and which column is its."""
    return {"x86_64": (_X86, 0), "aarch64": (_ARM, 1)}.get(os.uname().machine)


def prepare() -> None:
    """Once, for all processes that are forked and refuse calls."""
    if has_seccomp() and (arch := _arch()) is not None:
        for sandbox in (False, True):
            _filter(*arch, sandbox)


def refuse_calls(*, sandbox: bool) -> None:
    """To this process and all that it starts: what changes other processes; in a sandbox, what leads out of it, too.

    It needs NO_NEW_PRIVS. 32-bit programs are killed: their numbers mean other calls.
    """
    arch = _arch()
    assert arch is not None
    program = _filter(*arch, sandbox)
    code = ctypes.create_string_buffer(program, len(program))
    described = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code)))
    _checked(_libc.prctl(SECCOMP, 2, described, 0, 0), "seccomp")


@cache
def _filter(arch: int, column: int, sandbox: bool) -> bytes:
    """Classic BPF over `struct seccomp_data`: number at 0, architecture at 4, the first argument's lower half at 16, the next's at 24."""

    def load(offset: int) -> bytes:
        return struct.pack("HBBI", 0x20, 0, 0, offset)

    def jump(value: int, yes: int, no: int, test: int = 0x15) -> bytes:  # 0x15: equal, 0x35: at least, 0x45: has a bit of
        return struct.pack("HBBI", test, yes, no, value)

    def answer(value: int) -> bytes:
        return struct.pack("HBBI", 0x06, 0, 0, value)

    refused, allowed = answer(_ERROR | _EPERM), answer(_ALLOW)
    steps = [load(4), jump(arch, 1, 0), answer(_KILL), load(0), jump(_X32, 0, 1, 0x35), answer(_KILL)]
    for name, (numbers, place) in _OF_OTHERS.items():
        if name in _OF_A_USER:
            steps += [jump(numbers[column], 0, 4), load(16), jump(_OF_A_USER[name], 0, 1), refused, load(0)]
        steps += [jump(numbers[column], 0, 4), load(16 + 8 * place), jump(0, 1, 0), refused, allowed]
    if not sandbox:
        return b"".join([*steps, allowed])
    for numbers in _REFUSED.values():
        steps += [jump(numbers[column], 0, 1), refused]
    # Its flags are out of the filter's sight: libraries fall back to clone.
    steps += [jump(_CLONE3, 0, 1), answer(_ERROR | _ENOSYS)]
    steps += [jump(_CLONE[column], 0, 3), load(16), jump(_NAMESPACES, 0, 1, 0x45), refused, allowed]
    return b"".join(steps)
