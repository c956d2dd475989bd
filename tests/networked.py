"""Handlers in networks, for tests: which those are the configuration says."""

import ctypes
import os
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from eventrouter import on
from hosts import reach


@on(isolation="process", timeout=60)
def free(payload: list[Any]) -> list[Any]:
    return [reach(*target) for target in payload]


@on(isolation="process", timeout=60)
def plant(payload: list[Any]) -> list[Any]:
    return [reach(*target) for target in payload]


@on(isolation="process", timeout=60)
def wide(payload: list[Any]) -> list[Any]:
    return [reach(*target) for target in payload]


@on(isolation="process", timeout=60)
def closed(payload: list[Any]) -> list[Any]:
    return [reach(*target) for target in payload]


@on(isolation="process")
def looks(payload: Any) -> dict[str, Any]:
    """What is around. payload: the name of an abstract socket of the machine's."""
    with socket.socket(socket.AF_UNIX) as client:
        heard = client.connect_ex("\0" + payload) == 0
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    capabilities = int(status["CapEff"], 16)
    return {
        "pid": os.getpid(),
        "namespace": str(Path("/proc/self/ns/net").readlink()),
        "interfaces": sorted(name for _, name in socket.if_nameindex()),
        "heard": heard,
        "capable": bool(capabilities & 1 << 21),  # CAP_SYS_ADMIN
        "resolvers": any(Path("/run/dbus").glob("*")),
    }


@on(isolation="process", timeout=60)
def attacks(payload: list[Any]) -> list[Any]:
    """What is reached once it has done to the rules what it can."""
    environ = {"PATH": f"{os.environ['PATH']}:/usr/sbin"}
    for command in ("nft flush ruleset", "ip link add dummy type veth", "ip route add 10.0.0.0/8 dev eth0", "ip neigh flush all"):
        subprocess.run(command.split(), env=environ, capture_output=True, check=False)
    return [reach(*target, seconds=1) for target in payload]


@on(isolation="process", timeout=60)
def leaves(payload: list[Any]) -> list[Any]:
    """What is reached after an attempt to go where the router is."""
    libc = ctypes.CDLL(None)
    for number in (1, os.getppid()):
        with suppress(OSError), Path(f"/proc/{number}/ns/net").open() as namespace:
            libc.setns(namespace.fileno(), 0x40000000)
    return [reach(*target) for target in payload]
