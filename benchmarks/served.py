"""Starts HTTP servers as users do, one process each, and loads them from this one."""

from __future__ import annotations

import asyncio
import http.client
import inspect
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, sleep
from typing import IO, cast

from benchmarks.apps import PAYLOAD, Reading, on_loop
from benchmarks.measure import memory

MODEL = f"import msgspec\n\n{inspect.getsource(Reading)}"

OURS = (
    MODEL
    + """
from eventrouter import on
from eventrouter_http import http

@on(http("POST /readings/{device}"))
async def reading(reading: Reading, device: str) -> dict[str, str]:
    return {"device": device}

@on(http("POST /journal/{device}", mode="event"))
async def journalled(reading: Reading, device: str) -> None: ...
"""
)

PLAIN = (
    MODEL
    + """
import asyncio
from aiohttp import web

decode = msgspec.json.Decoder(Reading).decode

async def reading(request):
    decode(await request.read())
    return web.Response(body=msgspec.json.encode({"device": request.match_info["device"]}), content_type="application/json")

async def main():
    application = web.Application()
    application.router.add_post("/readings/{device}", reading)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(f"http on http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.get_running_loop().create_future()

try:
    import uvloop
except ImportError:
    asyncio.run(main())
else:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
"""
)


class Server:
    """A server process. address: where it listens. began: `perf_counter` just before its start."""

    def __init__(self, process: subprocess.Popen[str], began: float) -> None:
        self.process = process
        self.began = began
        self.port = self._port(process.stdout)

    @staticmethod
    def _port(output: IO[str] | None) -> int:
        assert output is not None
        said = ""
        for line in output:
            said += line
            if found := re.search(r"http on http://127\.0\.0\.1:(\d+)", line):
                return int(found[1])
        raise RuntimeError(f"the server ended before it listened: {said}")

    def resident(self) -> float:
        """Megabytes of memory in use."""
        return memory(self.process.pid)

    def fds(self) -> int:
        """Open file descriptors."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


@contextmanager
def ours() -> Iterator[Server]:
    with tempfile.TemporaryDirectory(dir=".") as folder:  # the disk that a journal would be on, not a RAM disk
        Path(folder, "app.py").write_text(OURS)
        with _started([sys.executable, "-m", "eventrouter", "serve", "--port", "0"], folder) as server:
            yield server


@contextmanager
def plain() -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "plain.py").write_text(PLAIN)
        with _started([sys.executable, "plain.py"], folder) as server:
            yield server


@contextmanager
def _started(command: list[str], folder: str) -> Iterator[Server]:
    began = perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield Server(process, began)
    finally:
        process.terminate()
        process.communicate()


class _Client(asyncio.Protocol):
    """One connection that always has one request under way: no HTTP library, so that the server is the limit."""

    def __init__(self, request: bytes, status: bytes, left: list[int], done: asyncio.Event) -> None:
        self._request, self._status, self._left, self._done = request, status, left, done
        self._got = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are of no such class
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._got += data
        head, end, body = self._got.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        if not end or (length and len(body) < int(length[1])):
            return
        if self._status not in head[:16]:
            raise RuntimeError(f"unexpected answer: {self._got!r}")
        self._got = b""
        self._left[0] -= 1
        if self._left[0] > 0:
            self._transport.write(self._request)
        else:
            self._done.set()


def load(port: int, path: str, status: int, count: int, connections: int) -> float:
    """POST a reading `count` times; answers a second."""

    async def main() -> float:
        left, done = [count], asyncio.Event()
        loop = asyncio.get_running_loop()
        began = perf_counter()
        made = [
            await loop.create_connection(lambda: _Client(post(path), str(status).encode(), left, done), "127.0.0.1", port)
            for _ in range(connections)
        ]
        async with asyncio.timeout(60):
            await done.wait()
        rate = count / (perf_counter() - began)
        for transport, _ in made:
            transport.close()
        return rate

    return on_loop(main)


def answer_times(port: int, path: str, status: int, count: int, rate: int = 100) -> list[float]:
    """POST a reading `count` times at so many a second, on one connection; milliseconds until each answer."""
    times = []
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        began = perf_counter()
        for number in range(count):
            sleep(max(0, began + number / rate - perf_counter()))
            sent = perf_counter()
            connection.sendall(post(path))
            answer = connection.recv(65_536)  # a small one comes at once
            times.append((perf_counter() - sent) * 1000)
            if str(status).encode() not in answer[:16]:
                raise RuntimeError(f"unexpected answer: {answer!r}")
    return times


def get(port: int, path: str) -> int:
    """The status of its answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path)
    status = connection.getresponse().status
    connection.close()
    return status


def post(path: str) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(PAYLOAD)}\r\n\r\n"
    return head.encode() + PAYLOAD
