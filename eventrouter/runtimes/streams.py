"""Answers in chunks: told from whole ones, and made async, whatever they are made by."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from typing import Any

from msgspec.structs import replace

from eventrouter.model import Response, Stream

_WHOLE = frozenset((dict, list, str, bytes, int, float, bool, type(None)))


def is_streamed(result: Any) -> bool:
    """Whether a handler's answer comes in chunks."""
    if type(result) in _WHOLE:  # the usual case
        return False
    return isinstance(result.body if isinstance(result, Response) else result, AsyncIterator | Iterator)


def with_chunks(result: Any, convert: Callable[[Iterator[Any]], AsyncIterator[Any]]) -> Any:
    """The answer, its chunks in an async iterator."""
    chunks = result.body if isinstance(result, Response) else result
    if isinstance(chunks, AsyncIterator):
        return result
    return replace(result, body=convert(chunks)) if isinstance(result, Response) else convert(chunks)


async def streamed(stream: Stream, call: Coroutine[Any, Any, Any]) -> Any:
    result = await call
    return await consume(stream, result) if is_streamed(result) else result


async def consume(stream: Stream, result: Any) -> Any:
    return await stream(with_chunks(result, stepped))


async def stepped(chunks: Iterator[Any]) -> AsyncIterator[Any]:
    try:
        for chunk in chunks:
            yield chunk
    finally:
        if isinstance(chunks, Generator):
            chunks.close()


async def collect(chunks: AsyncIterator[Any]) -> Any:
    """What a generator comes to when nobody takes it chunk by chunk: text, bytes, or else a list."""
    items = [chunk async for chunk in chunks]
    if items and all(isinstance(item, str) for item in items):
        return "".join(items)
    if items and all(isinstance(item, bytes) for item in items):
        return b"".join(items)
    return items


class Closed(Exception):
    """Nobody takes the rest of what is streamed."""


class Chunks:
    """What a handler in another process yields, in its order. One waits here at most: who takes them slowly slows the handler."""

    def __init__(self) -> None:
        self._waiting: deque[Any] = deque()
        self._changed = asyncio.Event()
        self._over = self._closed = False
        self._error: Exception | None = None

    def __aiter__(self) -> Chunks:
        return self

    async def __anext__(self) -> Any:
        while not self._waiting:
            if self._error is not None:
                raise self._error
            if self._over or self._closed:
                raise StopAsyncIteration
            await self._change()
        self._changed.set()
        return self._waiting.popleft()

    async def put(self, chunk: Any) -> None:
        """Return when there is room for the next. Raises Closed."""
        while self._waiting and not self._closed:
            await self._change()
        if self._closed:
            raise Closed
        self._waiting.append(chunk)
        self._changed.set()

    def end(self, error: Exception | None) -> None:
        """The handler has ended."""
        self._over, self._error = True, error
        self._changed.set()

    async def aclose(self) -> None:
        self._closed = True
        self._waiting.clear()
        self._changed.set()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()
