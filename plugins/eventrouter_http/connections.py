"""Connections, and what is read from them, within limits."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from eventrouter_http import HttpConfig
from eventrouter_http.answers import problem

_LINGER = 1.0  # seconds that a client may go on sending what nobody reads, so that it gets to read why
log = logging.getLogger("eventrouter.http")


class TooLarge(Exception):
    """The body is beyond the limit; the rest of it is not read, so the connection can't be used again."""


class TooSlow(Exception):
    """The body did not come in time."""


class Garbled(Exception):
    """The body is not what its headers say."""


class Connection(web.RequestHandler):
    """Ends the stream that is sent over it when the client goes away; what else runs for the client goes on."""

    __slots__ = ("gone", "held", "streaming")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gone = False
        self.held = False  # reading is, as a body comes faster than it is read
        self.streaming: asyncio.Task[Any] | None = None

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self.gone = True
        if self.streaming is not None:
            self.streaming.cancel()

    def pause_reading(self) -> None:
        self.held = True
        super().pause_reading()

    def resume_reading(self, resume_parser: bool = True) -> None:
        # aiohttp asks for it with every piece and at the end of a body, and parses and polls anew each time: a tenth of a small request.
        if self.held:
            self.held = False
            super().resume_reading(resume_parser)

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """What aiohttp can't read, which is no news on an open port, and what this plugin does wrong, which is."""
        if status < 500:
            log.debug("a request from %s can't be read: %s", request.remote, message, extra={"action": "http.garbled"})
            answer = problem(status, f"the request can't be read: {(message or 'it is no HTTP').splitlines()[0].rstrip(':').lower()}")
            answer.force_close()
            return answer
        log.error("a request could not be answered", exc_info=exc, extra={"action": "http.failed"})
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun")
        answer = problem(500, "the router could not answer")
        answer.force_close()
        return answer


class Server(web.Server):
    """aiohttp's low-level server: no routes, no middleware."""

    def __init__(self, handler: Any, config: HttpConfig) -> None:
        super().__init__(handler, request_factory=self._request)
        self._config = config

    def __call__(self) -> web.RequestHandler:
        # The time that a connection may be idle is also what the head of a request may take.
        return Connection(self, loop=self._loop, access_log=None, keepalive_timeout=self._config.read_timeout, lingering_time=_LINGER)

    def _request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        return web.BaseRequest(message, payload, protocol, writer, task, self._loop, client_max_size=self._config.body_limit)


async def read_body(request: web.BaseRequest, config: HttpConfig) -> bytes:
    """Raises TooLarge, TooSlow, Garbled."""
    content = request.content
    try:
        if content.is_eof():  # the usual case: it is all here, or there is none
            body = content.read_nowait()
            if body and max(len(body), content.total_raw_bytes) > config.body_limit:
                raise TooLarge
            return body
        if (request.content_length or 0) > config.body_limit:
            raise TooLarge
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        async with asyncio.timeout(config.read_timeout):
            return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise TooLarge from None
    except TimeoutError:
        raise TooSlow from None
    except (web.RequestPayloadError, HttpProcessingError) as error:
        raise Garbled(str(error)) from None
