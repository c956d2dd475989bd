"""A short run of what `tests/fuzz/governance.py` does for as long as one likes; and what a client of the control socket could do wrong."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))

import governance

from eventrouter import on
from eventrouter.control import _LIMIT, ControlServer, socket_path
from eventrouter.operations import Operations
from support import local, running


def rounds(count: int) -> Callable[[], bool]:
    left = iter(range(count))
    return lambda: next(left, None) is not None


def test_encrypted_values(tmp_path: Path) -> None:
    assert governance.fuzz_secrets(tmp_path, random.Random(1), rounds(1500)) == 1500


async def test_the_control_socket(tmp_path: Path) -> None:
    assert await governance.fuzz_control(tmp_path, random.Random(1), rounds(60)) == 480


@pytest.mark.parametrize(
    ("sent", "fault"),
    [
        (b"\n", "a request is a line of JSON, at most 64 MB"),
        (b"\xff\n", "a request is a line of JSON"),
        (b"x" * (_LIMIT + 1000), "a request is a line of JSON"),
        (b'{"command": "status"}\n', "a request is a line of JSON"),
        (b'{"command": "_answer", "arguments": {}}\n', "the running router knows no command '_answer'"),
        (b'{"command": "throttle", "arguments": {}}\n', "throttle does not take these arguments: missing a required argument: 'function'"),
        (b'{"command": "throttle", "arguments": {"function": 5}}\n', "throttle does not take these arguments: Expected `str`, got `int`"),
        (b'{"command": "status", "arguments": {"self": 5}}\n', "status does not take these arguments"),
        (b'{"command": "letters", "arguments": {"query": {"since": "x"}}}\n', "no query for dead letters: Expected `float | null`"),
    ],
)
async def test_what_is_no_request_gets_an_answer_that_says_so(
    tmp_path: Path, sent: bytes, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    @on(local("a"))
    async def handler(n: int) -> None: ...

    async with running(tmp_path, handler) as app, ControlServer(Operations(app, echo=False), app.config.data):
        silent = await asyncio.open_unix_connection(socket_path(app.config.data))
        reader, writer = await asyncio.open_unix_connection(socket_path(app.config.data))
        key = (app.config.data / "control.key").read_text()
        writer.write(sent.replace(b"{", b'{"key": "%s", ' % key.encode(), 1))
        assert json.loads(await reader.read())["error"].startswith(fault)
        writer.close()
        reader, writer = await asyncio.open_unix_connection(socket_path(app.config.data))
        writer.write(json.dumps({"command": "functions", "arguments": {}, "key": key}).encode() + b"\n")
        assert len(json.loads(await reader.read())["result"]) == 1
        for each in (silent[1], writer):
            each.close()
    assert not caplog.records
