"""Real servers on free ports, for tests to talk to."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import socket
from pathlib import Path

import pytest

PATH = f"{os.environ['PATH']}:/usr/sbin"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def program(name: str, package: str) -> str:
    """The path of a program that the tests need; failing says what to install."""
    found = shutil.which(name, path=PATH)
    if found is None:
        pytest.fail(f"{name} is not installed; apt-get install {package}, or run scripts/test, which does")
    return found


class Mosquitto:
    """A broker that can be ended and started again on its port; it keeps its sessions in `folder`."""

    def __init__(self, folder: Path, more: str = "") -> None:
        self.port = free_port()
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self._config = folder / "mosquitto.conf"
        self._log = folder / "mosquitto.log"
        user = pwd.getpwuid(os.getuid()).pw_name
        self._config.write_text(
            f"listener {self.port} 127.0.0.1\nuser {user}\npersistence true\npersistence_location {folder}/\n"
            f"max_queued_messages 0\n{more or 'allow_anonymous true'}\n"
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
