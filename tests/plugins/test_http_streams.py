"""Answers in chunks, over real sockets."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientPayloadError, ClientSession

from eventrouter import App, Event, Response, on
from eventrouter_http import http
from http_support import app_of, raw, serving, url_of
from support import until


@dataclasses.dataclass
class Tick:
    n: int


def failed(app: App, name: str = "handler") -> tuple[int, int]:
    lane = app.engine.lanes[name]
    return lane.failed, lane.active


@pytest.mark.parametrize(
    ("chunks", "kind", "body"),
    [
        (["a", "é"], "text/plain; charset=utf-8", "aé".encode()),
        ([b"\x00", b"\xff", bytearray(b"!")], "application/octet-stream", b"\x00\xff!"),
        ([{"a": 1}, Tick(2), [3]], "application/jsonl", b'{"a":1}\n{"n":2}\n[3]\n'),
        ([], None, b""),
    ],
)
async def test_a_generator_is_streamed(tmp_path: Path, chunks: list[Any], kind: str | None, body: bytes) -> None:
    @on(http("GET /"))
    async def handler() -> AsyncIterator[Any]:
        for chunk in chunks:
            yield chunk

    async with serving(tmp_path, handler) as ask:
        answer = await ask("GET /")
        assert (answer.status, answer.body) == (200, body)
        assert kind is None or answer.headers["Content-Type"] == kind
        assert answer.headers["Transfer-Encoding"] == "chunked"
        assert failed(ask.app) == (0, 0)


async def test_chunks_come_as_they_are_made(tmp_path: Path) -> None:
    go = asyncio.Event()

    @on(http("GET /{path+}"))
    async def handler(path: str, event: Event, times: int = 1) -> AsyncIterator[str]:
        yield f"{path} {event.subject} {times}"
        await go.wait()
        yield "!"

    async with serving(tmp_path, handler) as ask, ask.session.get(f"{url_of(ask.app)}/a/b?times=2") as answer:
        assert await answer.content.readany() == b"a/b /a/b 2"
        assert failed(ask.app) == (0, 1)
        go.set()
        assert await answer.read() == b"!"


async def test_a_response_may_have_chunks_as_its_body(tmp_path: Path) -> None:
    go = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        await go.wait()
        yield b"late"

    def lines() -> Iterator[str]:
        yield from ("a", "b")

    @on(http("GET /async"))
    async def first() -> Response:
        return Response(slowly(), 201, {"X-Own": "1", "Content-Type": "a/b"})

    @on(http("GET /sync"))
    async def second() -> Response:
        return Response(iter([b"a", b"b"]))

    @on(http("GET /thread"))
    def third() -> Any:
        return lines()

    async with serving(tmp_path, first, second, third) as ask:
        async with ask.session.get(f"{url_of(ask.app)}/async") as answer:  # its head is here before the first chunk
            assert (answer.status, answer.headers["X-Own"], answer.headers["Content-Type"]) == (201, "1", "a/b")
            go.set()
            assert await answer.read() == b"late"
        assert (await ask("GET /sync")).body == b"ab"
        assert (await ask("GET /thread")).body == b"ab"


async def test_server_sent_events(tmp_path: Path) -> None:
    async def ticks() -> AsyncIterator[Any]:
        yield Tick(1)
        yield {"n": 2}
        yield "event: end\ndata: bye\n\n"

    @on(http("GET /"))
    async def handler() -> Response:
        return Response(ticks(), headers={"content-type": "text/event-stream"})

    async with serving(tmp_path, handler) as ask:
        answer = await ask("GET /")
    assert answer.body == b'data: {"n":1}\n\ndata: {"n":2}\n\nevent: end\ndata: bye\n\n'
    assert (answer.headers["Content-Type"], answer.headers["Cache-Control"]) == ("text/event-stream", "no-cache")


async def test_an_error_before_the_first_chunk_is_a_500(tmp_path: Path) -> None:
    @on(http("GET /"))
    async def handler(fail: bool = True) -> AsyncIterator[str]:
        if fail:
            raise LookupError("secret")
        yield "a"

    async with serving(tmp_path, handler) as ask:
        answer = await ask("GET /")
        assert (answer.status, answer.json["detail"]) == (500, "the function failed")
        assert failed(ask.app) == (1, 0)
        assert (await ask("GET /?fail=false")).body == b"a"
        assert (await ask("GET /?fail=perhaps")).status == 400


@pytest.mark.parametrize("what", ["raises", "can't be said"])
async def test_an_error_after_it_cuts_the_connection(tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture) -> None:
    @on(http("GET /"))
    async def handler() -> AsyncIterator[Any]:
        yield "a"
        await asyncio.sleep(0)
        if what == "raises":
            raise LookupError("no more")
        yield object()

    async with serving(tmp_path, handler) as ask:
        with pytest.raises(ClientPayloadError):
            await ask("GET /")
        await until(lambda: failed(ask.app) == (1, 0))
        assert (await raw(ask.app, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")).endswith(b"1\r\na\r\n")  # and no end
    assert any("handler: request" in record.message and "Error" in record.message for record in caplog.records)


async def test_the_time_out_holds_while_it_streams(tmp_path: Path) -> None:
    ended = []

    @on(http("GET /"), timeout=0.2)
    async def handler(first: bool = False) -> AsyncIterator[str]:
        try:
            if first:
                yield "a"
            await asyncio.Event().wait()
        finally:
            ended.append(first)

    async with serving(tmp_path, handler) as ask:
        assert (await ask("GET /")).status == 504
        with pytest.raises(ClientPayloadError):
            await ask("GET /?first=true")
        await until(lambda: ended == [False, True])


async def test_a_handler_that_refuses_to_end_can_not_add_to_another_answer(tmp_path: Path) -> None:
    go, ended = asyncio.Event(), asyncio.Event()

    @on(http("GET /"), timeout=0.1)
    async def handler() -> AsyncIterator[str]:
        try:
            while not go.is_set():
                try:
                    await go.wait()
                except asyncio.CancelledError:
                    pass
            yield "too late"
        finally:
            ended.set()

    async with serving(tmp_path, handler) as ask:
        assert (await ask("GET /")).status == 504
        go.set()
        async with asyncio.timeout(20):
            await ended.wait()
        assert (await ask("GET /healthz")).body == b"ok"  # over the same connection


async def test_a_stream_holds_its_concurrency(tmp_path: Path) -> None:
    go = asyncio.Event()

    @on(http("GET /"), concurrency=1)
    async def handler() -> AsyncIterator[str]:
        yield "a"
        await go.wait()

    async with serving(tmp_path, handler) as ask, ask.session.get(url_of(ask.app)) as answer:
        assert await answer.content.readany() == b"a"
        assert (await ask("GET /")).status == 429
        go.set()
        await answer.read()
        await until(lambda: failed(ask.app) == (0, 0))
        assert (await ask("GET /")).status == 200


@pytest.mark.parametrize("where", ["waiting", "sending"])
async def test_a_client_that_goes_away_ends_the_handler(tmp_path: Path, where: str) -> None:
    ended = asyncio.Event()

    @on(http("GET /"), timeout=60)
    async def handler() -> AsyncIterator[bytes]:
        try:
            yield b"a"
            if where == "waiting":
                await asyncio.Event().wait()
            while True:
                yield b"x" * 65536
        finally:
            ended.set()

    async with serving(tmp_path, handler) as ask:
        async with ClientSession() as session, session.get(url_of(ask.app)) as answer:
            await answer.content.readexactly(1)
        async with asyncio.timeout(20):
            await ended.wait()
        await until(lambda: failed(ask.app) == (0, 0))  # it is nobody's failure
        assert (await ask("GET /healthz")).status == 200


async def test_a_handler_that_does_not_stream_goes_on_without_its_client(tmp_path: Path) -> None:
    running, go, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @on(http("GET /"), timeout=60)
    async def handler() -> None:
        running.set()
        await go.wait()
        done.set()

    async with serving(tmp_path, handler) as ask:
        async with ClientSession() as session:
            asked = asyncio.create_task(session.get(url_of(ask.app)))
            await running.wait()
            asked.cancel()
        go.set()
        async with asyncio.timeout(20):
            await done.wait()


async def test_head_takes_no_chunks(tmp_path: Path) -> None:
    made = []

    async def chunks() -> AsyncIterator[str]:
        made.append(1)
        yield "a"

    @on(http("ANY /"))
    async def handler() -> Response:
        return Response(chunks(), headers={"X-Own": "1"})

    async with serving(tmp_path, handler) as ask:
        answer = await ask("HEAD /")
        assert (answer.status, answer.headers["X-Own"], answer.body, made) == (200, "1", b"", [])
        assert (await ask("GET /")).body == b"a"


async def test_old_clients_get_the_chunks_without_their_lengths(tmp_path: Path) -> None:
    @on(http("GET /"))
    async def handler() -> AsyncIterator[str]:
        yield "a"
        yield "b"

    async with serving(tmp_path, handler) as ask:
        assert (await raw(ask.app, b"GET / HTTP/1.0\r\n\r\n")).endswith(b"\r\n\r\nab")


async def test_stopping_waits_for_a_stream_and_then_cuts_it(tmp_path: Path) -> None:
    @on(http("GET /"), timeout=60)
    async def handler() -> AsyncIterator[str]:
        yield "a"
        await asyncio.Event().wait()

    app = app_of(tmp_path, handler, toml="[http]\nport = 0\n[app]\ndrain = 0.1\n")
    await app.start()
    async with ClientSession() as session, session.get(url_of(app)) as answer:
        assert await answer.content.readany() == b"a"
        await app.stop()
        with pytest.raises(ClientPayloadError):
            await answer.read()


async def test_curl_sees_events_as_they_come(tmp_path: Path) -> None:
    go = asyncio.Event()

    async def ticks() -> AsyncIterator[Any]:
        yield Tick(1)
        await go.wait()
        yield Tick(2)

    @on(http("GET /"))
    async def handler() -> Response:
        return Response(ticks(), headers={"Content-Type": "text/event-stream"})

    async with serving(tmp_path, handler) as ask:
        curl = await asyncio.create_subprocess_exec("curl", "-sN", url_of(ask.app), stdout=asyncio.subprocess.PIPE)
        assert curl.stdout is not None
        assert json.loads((await curl.stdout.readline()).removeprefix(b"data: ")) == {"n": 1}
        go.set()
        assert await curl.stdout.read() == b'\ndata: {"n":2}\n\n'
        assert await curl.wait() == 0
