"""Answers in chunks: sent as a handler makes them, inside its attempt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec
from aiohttp import web
from multidict import CIMultiDict

from eventrouter import Response
from eventrouter_http.answers import BINARY, TEXT, headers, status_of
from eventrouter_http.connections import Connection

EVENTS = "text/event-stream"
LINES = "application/jsonl"
MORE: web.RequestKey[Mapping[str, str]] = web.RequestKey("more", Mapping)


class Stream:
    """Sends a handler's chunks to whom asked. answer: what was begun; None: nothing was sent yet.

    over: the attempt has ended, whatever of its handler refused to end; nothing more may be sent.
    request: its MORE are headers that the answer has besides its own.
    """

    __slots__ = ("_request", "answer", "over")

    def __init__(self, request: web.BaseRequest) -> None:
        self.answer: web.StreamResponse | None = None
        self.over = False
        self._request = request

    async def __call__(self, result: Any) -> web.StreamResponse:
        """Send all of them. The head of a Response goes at once; else with the first chunk, so that an error before it is a 500.

        Raises what the handler does, ValueError for what can't be sent.
        """
        task = asyncio.current_task()
        connection = self._request.protocol
        assert task is not None
        assert isinstance(connection, Connection)
        chunks: AsyncIterator[Any] = result.body if isinstance(result, Response) else result
        connection.streaming = task
        try:
            if not connection.gone:
                return await self._send(result, chunks)
        except ConnectionError:
            if not connection.gone:  # the handler's own
                raise
        except asyncio.CancelledError:
            if not connection.gone or task.uncancel():  # it is late, too, or the router ends
                raise
        finally:
            connection.streaming = None
            if close := getattr(chunks, "aclose", None):
                await close()
        return self.answer or web.Response()  # nobody is there to get it

    async def _send(self, result: Any, chunks: AsyncIterator[Any]) -> web.StreamResponse:
        said: CIMultiDict[str] = CIMultiDict()
        status = 200
        if isinstance(result, Response):
            said, status = headers(result.headers, lists=True), status_of(result.status)
            await self._begin(status, said)
        lines = said.get("Content-Type", "").startswith(EVENTS)
        if self._request.method == "HEAD":
            return self.answer or await self._begin(status, said)
        async for chunk in chunks:
            kind, data = _encoded(chunk, lines)
            if self.over:
                raise ConnectionError("the answer is over")
            if self.answer is None:
                said.setdefault("Content-Type", kind)
                await self._begin(status, said)
            assert self.answer is not None
            await self.answer.write(data)
        answer = self.answer or await self._begin(status, said)
        await answer.write_eof()
        return answer

    async def _begin(self, status: int, said: CIMultiDict[str]) -> web.StreamResponse:
        if said.get("Content-Type", "").startswith(EVENTS):
            said.setdefault("Cache-Control", "no-cache")
        if (more := self._request.get(MORE)) is not None:
            for name in [name for name in said if name.lower().startswith("access-control-")]:
                del said[name]
            said.update(more)
        answer = web.StreamResponse(status=status, headers=said)
        await answer.prepare(self._request)
        self.answer = answer
        return answer

    def cut(self) -> web.StreamResponse:
        """Let the client see that what it has is not all."""
        if self._request.transport is not None:
            self._request.transport.abort()
        assert self.answer is not None
        return self.answer


def _encoded(chunk: Any, events: bool) -> tuple[str, bytes]:
    """What kind of chunk it is, and its bytes: text and bytes as they are, all else as JSON."""
    if isinstance(chunk, str):
        return TEXT, chunk.encode()
    if isinstance(chunk, bytes | bytearray | memoryview):
        return BINARY, bytes(chunk)
    text = msgspec.json.encode(chunk)
    return LINES, b"data: %b\n\n" % text if events else text + b"\n"
