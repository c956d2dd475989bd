"""Whose connection it is that has come in on the loopback, as the kernel tells."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")


def of_descendant(end: socket.socket, pid: int) -> bool:
    """Whether process `pid`, or one that it has started, holds the other end of a TCP connection over IPv4.

    Where the kernel doesn't say, which is on no Linux, it is taken for granted.
    """
    if sys.platform != "linux":
        return True
    inode = _inode(end.getpeername(), end.getsockname())
    if inode is None:
        return False
    return _holds(pid, inode) or any(_holds(each, inode) for each in descendants(pid))


def _inode(local: tuple[str, int], remote: tuple[str, int]) -> str | None:
    """Of the socket with these addresses, in this network namespace."""
    for table, prefix in (("tcp", ""), ("tcp6", _MAPPED)):  # some open sockets of IPv6 for both
        wanted = [f"{prefix}{_word(socket.inet_aton(host))}:{port:04X}" for host, port in (local, remote)]
        with suppress(FileNotFoundError):
            for line in (_PROC / "self/net" / table).read_text().splitlines():
                columns = line.split()
                if columns[1:3] == wanted:
                    return columns[9]
    return None


def _word(data: bytes) -> str:
    return f"{int.from_bytes(data, sys.byteorder):08X}"


_MAPPED: Final = _word(bytes(4)) * 2 + _word(b"\0\0\xff\xff")


def _holds(pid: int, inode: str) -> bool:
    with suppress(OSError):
        for descriptor in (_PROC / str(pid) / "fd").iterdir():
            with suppress(OSError):
                if str(descriptor.readlink()) == f"socket:[{inode}]":
                    return True
    return False


def descendants(pid: int) -> Iterator[int]:
    """The processes that it has started, and those that they have, as far as their line to it has not ended."""
    if not _PROC.is_dir():
        return
    children: dict[int, list[int]] = {}
    for each in _PROC.iterdir():
        if each.name.isdecimal():
            with suppress(OSError):
                parent = int((each / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(each.name))
    waiting = children.get(pid, [])
    while waiting:
        yield (found := waiting.pop())
        waiting += children.get(found, [])
