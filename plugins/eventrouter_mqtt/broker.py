"""A real broker as a supervised child: mosquitto where it is installed, else the MQTT side of nats-server."""

from __future__ import annotations

import asyncio
import ctypes
import os
import pwd
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from eventrouter.errors import EventRouterError

_READY = 10.0  # seconds
_END = 5.0
_SET_PDEATHSIG = 1


class Found(NamedTuple):
    """kind: "mosquitto" or "nats-server"."""

    kind: str
    path: str


def find() -> Found | None:
    """The broker that there is."""
    # Debian puts servers where a user's PATH does not look; pip puts scripts beside its Python.
    for kind, folder in (("mosquitto", "/usr/sbin:/usr/local/sbin"), ("nats-server", str(Path(sys.executable).parent))):
        path = shutil.which(kind, path=f"{os.environ.get('PATH', os.defpath)}:{folder}")
        if path is not None:
            return Found(kind, path)
    return None


class EmbeddedBroker:
    """folder: where it keeps sessions and retained messages. port: 0 chooses a free one."""

    def __init__(self, folder: Path, host: str, port: int) -> None:
        found = find()
        if found is None:
            raise EventRouterError('mqtt: no broker to embed; install mosquitto, or pip install "eventrouter[broker]"')
        self.kind, self._path = found
        self.host = host
        self.port = port
        self._folder = folder / self.kind
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Return once it accepts connections. Raises EventRouterError with its own last words."""
        self.port = _free_port(self.host, self.port)
        self._folder.mkdir(exist_ok=True)
        config, output = self._folder / "broker.conf", self._folder / "broker.log"
        config.write_text(self._mosquitto() if self.kind == "mosquitto" else self._nats())
        with output.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                self._path, "-c", str(config), stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=_end_with_parent()
            )
        deadline = asyncio.get_running_loop().time() + _READY
        pause = 0.001
        while not await _accepts(self.host, self.port):
            if self._process.returncode is not None or asyncio.get_running_loop().time() > deadline:
                await self.stop()
                said = output.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
                raise EventRouterError(f"mqtt: the embedded {self.kind} does not start: {said[-1]}; see {output}")
            await asyncio.sleep(pause := min(2 * pause, 0.05))

    async def wait(self) -> int:
        """Until it has ended; its exit status."""
        assert self._process is not None
        return await self._process.wait()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def stop(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()  # mosquitto writes its sessions down
        try:
            await asyncio.wait_for(process.wait(), _END)
        except TimeoutError:
            process.kill()
            await process.wait()

    def _mosquitto(self) -> str:
        # Its own limits of 20 in flight and 1,000 queued messages a client would throttle, then drop.
        return f"""listener {self.port} {self.host}
allow_anonymous true
user {pwd.getpwuid(os.getuid()).pw_name}
persistence true
persistence_location {self._folder}/
autosave_interval 30
max_inflight_messages 0
max_queued_messages 1000000
"""

    def _nats(self) -> str:
        return f"""server_name: eventrouter
listen: "127.0.0.1:-1"
jetstream {{ store_dir: "{self._folder}", sync_interval: always }}
mqtt {{ listen: "{self.host}:{self.port}" }}
"""


def _free_port(host: str, port: int) -> int:
    """The port, when it can be had; a free one for 0."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise EventRouterError(
                f"mqtt: the embedded broker can't listen on {host}:{port}: {error.strerror}; choose another [mqtt] port (0: a free one)"
            ) from None
        chosen: int = probe.getsockname()[1]
        return chosen


async def _accepts(host: str, port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.close()
    return True


def _end_with_parent() -> Callable[[], None] | None:
    """To run in the child: on Linux it ends when the router dies, even by SIGKILL."""
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None, use_errno=True).prctl, os.getpid()

    def ask() -> None:
        prctl(_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before it was asked
            os._exit(1)

    return ask
