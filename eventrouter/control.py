"""The control socket: how the command line asks a running router. One JSON line asks, one answers."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
import secrets
import socket
import struct
import tempfile
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import msgspec

from eventrouter.audit import Who
from eventrouter.errors import ConfigError, EventRouterError, NotRunning
from eventrouter.operations import Operations, perform

log = logging.getLogger("eventrouter")
_LIMIT = 64 * 1024 * 1024  # bytes of one request or answer
_SOCKET_PATH = 100  # the kernel's limit is 108 bytes, macOS' 104
_PATIENCE = 60.0  # seconds that a request may take to come


def socket_path(data: Path) -> Path:
    """DIR/control.sock, or one in a private runtime folder where that path is too long for a socket."""
    path = data.resolve() / "control.sock"
    if len(os.fsencode(path)) <= _SOCKET_PATH:
        return path
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or f"{tempfile.gettempdir()}/eventrouter-{os.getuid()}")
    runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
    if runtime.stat().st_uid != os.getuid():
        raise EventRouterError(f"{runtime} belongs to somebody else; set XDG_RUNTIME_DIR to a folder of yours")
    return runtime / f"eventrouter-{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}.sock"


class ControlServer:
    """Answers commands on the control socket; only the owner of the data folder may connect."""

    def __init__(self, operations: Operations, data: Path) -> None:
        self._operations = operations
        self._data = data
        self._path = socket_path(data)
        self._key = ""
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> None:
        self._path.unlink(missing_ok=True)  # a killed predecessor's; the folder's lock says there is no other
        self._key = _make_key(self._data)
        mask = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._serve, self._path, limit=_LIMIT)
        finally:
            os.umask(mask)

    async def __aexit__(self, *exc: object) -> None:
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(OSError):
            who = peer(writer.get_extra_info("socket"))
            async with asyncio.timeout(_PATIENCE):
                try:
                    line = await reader.readline()
                except ValueError:
                    line = b""
            writer.write(await self._answer(line, who) + b"\n")
            await writer.drain()

    async def _answer(self, line: bytes, who: Who) -> bytes:
        try:
            return msgspec.json.encode({"result": await self._do(line, who)})
        except EventRouterError as error:
            answer = {"error": str(error), "usage": isinstance(error, ConfigError)}
        except Exception as error:
            log.exception("control command failed", extra={"action": "control.failed"})
            answer = {"error": f"{type(error).__name__}: {error}", "usage": False}
        return msgspec.json.encode(answer | {"error": str(answer["error"]).encode(errors="replace").decode()})

    async def _do(self, line: bytes, who: Who) -> Any:
        """Raises EventRouterError for what is no request: it may come from anything that has found the socket."""
        if who.uid not in (0, os.getuid()):
            log.warning("%s (uid %d) was refused at the control socket", who.name, who.uid, extra={"action": "control.refused"})
            raise EventRouterError(f"this router is {Who.me().name}'s, and you are {who.name}; run the command as {Who.me().name}")
        try:
            asked = msgspec.json.decode(line, type=_Request)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise EventRouterError(f"a request is a line of JSON, at most {_LIMIT >> 20} MB") from None
        if not hmac.compare_digest(asked.key.encode(errors="replace"), self._key.encode()):
            raise EventRouterError("only who can read the data folder may ask the router that serves it")
        return await perform(self._operations, asked.command, asked.arguments, who)


def peer(connection: Any) -> Who:
    """Who is at the other end of a Unix socket, as the kernel says."""
    if not hasattr(socket, "SO_PEERCRED"):  # macOS; the socket's mode lets nobody else connect
        return Who.me()
    with socket.socket(fileno=os.dup(connection.fileno())) as own:  # uvloop's has no getsockopt
        pid, uid, _ = struct.unpack("3i", own.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return Who.of(uid, pid)


class _Request(msgspec.Struct):
    command: str
    arguments: dict[str, Any]
    key: str = ""


def _make_key(data: Path) -> str:
    """Isolated functions may be of the router's user and find its socket; they don't see its data folder."""
    path = data / "control.key"
    path.unlink(missing_ok=True)
    key = secrets.token_hex()
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(key)
    return key


def ask(data: Path, command: str, **arguments: Any) -> Any:
    """Ask the router that serves this data folder. Raises NotRunning when none does, else its error."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(os.fspath(socket_path(data)))
            key = (data / "control.key").read_text()
        except OSError:
            raise NotRunning(f"no router is running on {data}; start one with `eventrouter serve`") from None
        connection.sendall(msgspec.json.encode(_Request(command, arguments, key)) + b"\n")
        with connection.makefile("rb") as answers:
            line = answers.readline()
    if not line:
        raise EventRouterError("the router went away before it answered")
    answer = msgspec.json.decode(line)
    if "error" in answer:
        raise (ConfigError if answer["usage"] else EventRouterError)(answer["error"])
    return answer["result"]
