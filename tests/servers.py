"""Real servers on free ports, for tests to talk to."""

from __future__ import annotations

import asyncio
import os
import pwd
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

PATH = f"{os.environ['PATH']}:/usr/sbin"


def free_port() -> int:
    """Below those that the kernel hands out, so that no server or connection of another test gets it, not even while its own restarts."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def program(name: str, package: str) -> str:
    """The path of a program that the tests need; failing says what to install."""
    found = shutil.which(name, path=PATH)
    if found is None:
        pytest.fail(f"{name} is not installed; apt-get install {package}, or run scripts/test, which does")
    return found


class Mosquitto:
    """A broker that can be ended and started again on its port; it keeps its sessions in `folder`.

    stock: with the limits it comes with: it throws away what it would have to queue beyond 1,000 messages a client.
    """

    def __init__(self, folder: Path, more: str = "", *, stock: bool = False) -> None:
        self.port = free_port()
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self._config = folder / "mosquitto.conf"
        self._log = folder / "mosquitto.log"
        user = pwd.getpwuid(os.getuid()).pw_name
        self._config.write_text(
            f"listener {self.port} 127.0.0.1\nuser {user}\npersistence true\npersistence_location {folder}/\n"
            f"{'' if stock else 'max_queued_messages 0'}\n{more or 'allow_anonymous true'}\n"
        )
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(program("mosquitto", "mosquitto"), "-c", str(self._config), stderr=log)
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                assert self._process.returncode is None, self._log.read_text()
                await asyncio.sleep(0.01)
            else:
                writer.close()
                return

    async def stop(self, number: int = signal.SIGTERM) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)
            await self._process.wait()

    async def publish(self, topic: str, *payloads: str, version: str = "mqttv311", qos: int = 1, options: tuple[str, ...] = ()) -> None:
        """Lines to mosquitto_pub, which ends when all are acknowledged."""
        command = [program("mosquitto_pub", "mosquitto-clients"), "-p", str(self.port), "-V", version, "-q", str(qos), "-t", topic, "-l"]
        process = await asyncio.create_subprocess_exec(*command, *options, stdin=asyncio.subprocess.PIPE)
        await process.communicate("".join(f"{payload}\n" for payload in payloads).encode())
        assert process.returncode == 0


class CuttingProxy:
    """Forwards its port to another one of this machine, and fails as networks do."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.heal()
        self.reset()

    def cut(self) -> None:
        """Forward nothing more, not even that a side has closed; new connections come about, and hear nothing."""
        self._flowing.clear()

    def heal(self) -> None:
        """Go on, with what came meanwhile first."""
        self._flowing.set()

    def reset(self) -> None:
        """End every connection with a RST to both sides."""
        writers, self._writers = self._writers, set()
        for writer in writers:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._flowing.wait()
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.close()
            return
        self._writers |= {writer, far_writer}
        await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, RuntimeError):  # uvloop's word for a writer that has been reset
            data = b"-"
            while data:
                data = await reader.read(65_536)
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
        self._writers.discard(writer)
        writer.close()


class Postgres:
    """A server with logical replication on a free port. It refuses to run as root, so root runs it as `postgres`."""

    def __init__(self) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
        if not found:
            pytest.fail("PostgreSQL is not installed; apt-get install postgresql, or run scripts/test, which does")
        self._bin = found[-1]
        self._folder = Path(tempfile.mkdtemp(prefix="eventrouter-postgres-"))  # pytest's folders are closed to other users
        self._user = "postgres" if os.getuid() == 0 else None
        self.port = free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self._process: subprocess.Popen[bytes] | None = None
        if self._user:
            shutil.chown(self._folder, self._user)
        self._run("initdb", "-D", str(self._folder / "data"), "-U", "postgres", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C")

    def _run(self, name: str, *words: str) -> None:
        done = subprocess.run([self._bin / name, *words], capture_output=True, user=self._user, cwd=self._folder, check=False)
        assert done.returncode == 0, done.stderr.decode()

    def start(self, *settings: str) -> None:
        options = ["wal_level=logical", "max_wal_senders=20", "max_replication_slots=20", f"unix_socket_directories={self._folder}",
                   "listen_addresses=127.0.0.1", "fsync=off", *settings]  # fmt: skip
        with (self._folder / "postgres.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", str(self._folder / "data"), "-p", str(self.port), *(f"-c{option}" for option in options)],
                stderr=log, stdout=log, user=self._user, cwd=self._folder,
            )  # fmt: skip
        end = time.monotonic() + 30
        while subprocess.run([self._bin / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)], check=False).returncode:
            assert self._process.poll() is None, (self._folder / "postgres.log").read_text()
            assert time.monotonic() < end
            time.sleep(0.05)

    def stop(self, number: int = signal.SIGINT) -> None:
        """SIGINT ends it at once and in order, SIGQUIT as a crash does."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(30)
            self._process = None

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self._folder)
