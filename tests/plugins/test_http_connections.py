"""What goes over one connection: requests behind each other, bodies in pieces, and answers, for old clients and for slow ones."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from yarl import URL

from eventrouter import App, Response, on
from eventrouter_http import http
from eventrouter_http.source import HttpSource
from http_support import raw, serving, url_of
from support import until

RAN: list[int] = []


@on(http("POST /length"))
async def length(body: bytes) -> dict[str, int]:
    RAN.append(len(body))
    return {"length": len(body)}


@on(http("GET /large"))
async def large() -> str:
    RAN.append(0)
    return "x" * 20_000  # less than aiohttp sends before it looks whether anybody reads


@on(http("POST /later", mode="event"))
async def later(body: bytes) -> None: ...


def answering(name: str, path: str, result: Any) -> Callable[..., Any]:
    async def handler() -> Any:
        return result

    handler.__name__ = name
    return on(http(f"GET {path}"))(handler)


KINDS = {
    "json": {"a": [1, "é"]},
    "list": [1, 2],
    "number": 7,
    "text": "grüße",
    "empty-text": "",
    "binary": b"\0\xff",
    "nothing": None,
    "own": Response({"a": 1}, status=201, headers={"X-Mine": "1"}),
}


def post(body: bytes, *lines: str, path: str = "/length") -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: a", f"Content-Length: {len(body)}", *lines, "", ""]).encode() + body


def parsed(answer: bytes) -> tuple[str, dict[str, str], bytes]:
    """Status line without its version, headers, and all that comes behind them."""
    head, _, body = answer.partition(b"\r\n\r\n")
    line, *lines = head.decode().split("\r\n")
    return line.partition(" ")[2], dict(text.split(": ", 1) for text in lines), body


def listener(app: App) -> web.Server:
    source = app.sources["http"]
    assert isinstance(source, HttpSource)
    assert source._runner is not None
    server = source._runner.server
    assert isinstance(server, web.Server)
    return server


@pytest.mark.parametrize("kind", KINDS)
async def test_an_answer_is_the_same_whatever_the_connection(tmp_path: Path, kind: str) -> None:
    """Those over a connection that stays open are written by ourselves, the others by aiohttp."""

    def but(headers: dict[str, str], *names: str) -> dict[str, str]:
        return {name: value for name, value in headers.items() if name not in ("Date", "Connection", *names)}

    async with serving(tmp_path, answering("handler", "/x", KINDS[kind])) as ask:
        both = await raw(
            ask.app,
            b"GET /x HTTP/1.1\r\nHost: a\r\n\r\nGET /x HTTP/1.1\r\nHost: a\r\nX-Y: " + b"y" * 8000 + b"\r\nConnection: close\r\n\r\n",
        )
        end = both.index(b"HTTP/1.1 ", 1)
        kept, closed = parsed(both[:end]), parsed(both[end:])
        old = parsed(await raw(ask.app, b"GET /x HTTP/1.0\r\n\r\n"))
        old_kept = parsed(await raw(ask.app, b"GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /x HTTP/1.0\r\n\r\n"))
    assert "Connection" not in kept[1]
    assert closed[1]["Connection"] == "close"
    assert old_kept[1]["Connection"] == "keep-alive"
    assert all(re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} [\d:]{8} GMT", answer[1]["Date"]) for answer in (kept, closed, old))
    assert (kept[0], but(kept[1]), kept[2]) == (closed[0], but(closed[1]), closed[2]) == (old[0], but(old[1]), old[2])
    if kind != "nothing":
        assert int(kept[1]["Content-Length"]) == len(kept[2])


async def test_head_has_the_headers_of_get_and_no_body(tmp_path: Path) -> None:
    @on(http("ANY /x"))
    async def handler() -> dict[str, int]:
        return {"a": 1}

    async with serving(tmp_path, handler) as ask:
        got, head = await ask("GET /x"), await ask("HEAD /x")
        behind = await raw(ask.app, b"HEAD /x HTTP/1.1\r\nHost: a\r\n\r\nGET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert (got.body, head.body) == (b'{"a":1}', b"")
    assert {**got.headers, "Date": ""} == {**head.headers, "Date": ""}
    assert behind.count(b'{"a":1}') == 1
    assert b"\r\n\r\nHTTP/1.1 200 OK\r\n" in behind


async def test_the_answer_of_event_mode(tmp_path: Path) -> None:
    async with serving(tmp_path, later) as ask:
        status, headers, body = parsed(
            (await raw(ask.app, post(b"x", path="/later") + post(b"x", "Connection: close", path="/later"))).rpartition(b"HTTP/1.1 202")[0]
        )
        answer = await ask("POST /later", b"x")
    assert (status, headers["Content-Type"], list(json.loads(body))) == ("202 Accepted", "application/json", ["id"])
    assert (answer.status, answer.headers["Content-Type"], list(answer.json)) == (202, "application/json", ["id"])
    assert len(answer.json["id"]) == 36


async def test_requests_behind_each_other_are_answered_in_order(tmp_path: Path) -> None:
    """More of them than aiohttp takes at once, bodies and none, in pieces that end anywhere."""
    sizes = [number % 7 * 11 for number in range(300)]
    sent = b"".join(
        post(b"y" * size, "Connection: close") if place == len(sizes) - 1
        else b"POST /length HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (size, b"z" * size)
        if size % 2 and size
        else post(b"y" * size)
        for place, size in enumerate(sizes)
    )  # fmt: skip
    async with serving(tmp_path, length) as ask:
        answers = await raw(ask.app, sent)
        assert [int(found) for found in re.findall(rb'\{"length":(\d+)\}', answers)] == sizes
        url = URL(url_of(ask.app))
        reader, writer = await asyncio.open_connection(url.host, url.port)
        for start in range(0, len(sent), 1009):
            writer.write(sent[start : start + 1009])
            await writer.drain()
        assert len(re.findall(rb'\{"length":(\d+)\}', await reader.read())) == len(sizes)
        writer.close()


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
async def test_large_bodies_are_held_back_and_read_on(tmp_path: Path, packed: bool) -> None:
    """Beyond aiohttp's buffer reading pauses, until the body is read; what comes behind it is read, too."""
    size = 5_000_000
    body = gzip.compress(b"x" * size) if packed else b"x" * size
    kind = ("Content-Encoding: gzip",) if packed else ()
    async with serving(tmp_path, length) as ask:
        answers = await raw(ask.app, post(body, *kind) + post(b"12") + post(body, *kind, "Connection: close"))
    assert [int(found) for found in re.findall(rb'\{"length":(\d+)\}', answers)] == [size, 2, size]


async def test_a_client_that_does_not_read_waits_for_itself(tmp_path: Path) -> None:
    """Its answers are not piled up in memory: the next request is not looked at until they are sent."""
    RAN.clear()
    count = 1500
    request = b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n"
    async with serving(tmp_path, large) as ask:
        url = URL(url_of(ask.app))
        reader, writer = await asyncio.open_connection(url.host, url.port, limit=1000)
        writer.write(request * (count - 1) + request[:-2] + b"Connection: close\r\n\r\n")
        await until(lambda: any(connection.writing_paused for connection in listener(ask.app).connections))
        before = len(RAN)
        for _ in range(1000):
            await asyncio.sleep(0)
        assert len(RAN) <= before + 1
        assert len(RAN) < count
        answers = await reader.read()
        writer.close()
    assert (len(RAN), answers.count(b"HTTP/1.1 200 OK")) == (count, count)


async def test_a_client_that_is_gone_when_its_answer_comes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    gone = asyncio.Event()
    ended: list[str] = []

    @on(http("GET /slow"))
    async def slow() -> dict[str, int]:
        ended.append("started")
        await gone.wait()
        ended.append("ended")
        return {}

    async with serving(tmp_path, slow) as ask:
        url = URL(url_of(ask.app))
        _, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        await until(lambda: ended == ["started"])
        writer.transport.abort()
        await until(lambda: all(not connection.connected for connection in listener(ask.app).connections))
        gone.set()
        await until(lambda: ended == ["started", "ended"])
        await until(lambda: not listener(ask.app).connections)
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
