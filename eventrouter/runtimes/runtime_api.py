"""Lambda's Runtime API over HTTP, for one program: it asks for what there is to do, and says what came of it."""

from __future__ import annotations

import asyncio
import base64
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import Any, Final

import h11
import msgspec

from eventrouter.model import Failed
from eventrouter.runtimes.streams import Chunks, Closed

LIMIT: Final = 6 * 1024 * 1024 + 100  # bytes of an answer; Lambda's own figure
_TOO_MUCH: Final = 16 * LIMIT  # what is read of an answer, to tell how large it was, before the connection is ended
_CHUNK: Final = 256 * 1024
_PREFIX: Final = "/2018-06-01/runtime/"
_PATHS: Final = {
    "init/error": "POST",
    "invocation/next": "GET",
    "invocation/([^/]+)/response": "POST",
    "invocation/([^/]+)/error": "POST",
}
_HTTP_ANSWER: Final = "application/vnd.awslambda.http-integration-response"
_HTTP_HEAD_ENDS: Final = bytes(8)

Headers = list[tuple[str, str]]
Reply = tuple[int, Headers, bytes]


class Invocation(msgspec.Struct, frozen=True):
    """What the program is to do. payload: JSON. deadline: milliseconds since 1970. client_context, cognito_identity: JSON, or nothing.

    streams: whether an answer that is streamed is wanted as it comes.
    """

    id: str
    payload: bytes
    deadline: int
    arn: str
    trace: str = ""
    client_context: str = ""
    cognito_identity: str = ""
    streams: bool = False


Head = tuple[Any, dict[str, Any]]  # which who answers has to check


class Streamed:
    """An answer as it comes. head: its status and headers. failed: how it ended, when the chunks have."""

    def __init__(self, head: Head) -> None:
        self.head = head
        self.chunks = Chunks()
        self.failed: Failed | None = None


class _Refused(Exception):
    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.reply = (status, _JSON, msgspec.json.encode({"errorMessage": message, "errorType": kind}))


_JSON: Final[Headers] = [("Content-Type", "application/json")]
_OK: Final[Reply] = (202, _JSON, b'{"status":"OK"}\n')


class RuntimeApi:
    """asks: set while the program asks for work, or once it has said why it can't; `fault` is that.

    admits: whether a connection is the program's own.
    """

    def __init__(self, admits: Callable[[socket.socket], bool]) -> None:
        self._admits = admits
        self.asks = asyncio.Event()
        self.fault: Failed | None = None
        self._state = "Started"  # then "InitError", or by turns "Ready", "Running", "Answered"
        self._invocation: Invocation | None = None
        self._answer: asyncio.Future[Any] | None = None
        self._given = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._talks: set[asyncio.Task[Any]] = set()

    async def listen(self) -> str:
        """Its address, `host:port`."""
        self._server = await asyncio.start_server(self._converse, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for talk in self._talks:
            talk.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)

    async def invoke(self, invocation: Invocation) -> Any:
        """Give it to the program, which must be asking. What comes of it: Failed, or else the answer: as JSON says, or text, or bytes.

        Or Streamed, if that is wanted.
        """
        self._invocation = invocation
        self._answer = asyncio.get_running_loop().create_future()
        self.asks.clear()
        self._given.set()
        return await self._answer

    # What is asked

    async def _next(self) -> Reply:
        if self._state == "InitError":
            raise self._forbidden("Ready")
        if self._state != "Running":  # else its connection may have been lost: it gets the same again
            self._state = "Ready"
            self.asks.set()
            await self._given.wait()
            self._state = "Running"
        given = self._invocation
        assert given is not None
        headers = [
            ("Lambda-Runtime-Aws-Request-Id", given.id),
            ("Lambda-Runtime-Deadline-Ms", str(given.deadline)),
            ("Lambda-Runtime-Invoked-Function-Arn", given.arn),
            ("Lambda-Runtime-Trace-Id", given.trace),
            ("Lambda-Runtime-Client-Context", given.client_context),
            ("Lambda-Runtime-Cognito-Identity", given.cognito_identity),
        ]
        return 200, _JSON + [(name, value) for name, value in headers if value], given.payload

    def _begin_answer(self, id: str, state: str, mode: str = "") -> None:
        """Raises _Refused unless there may be one, which then is the only one."""
        if self._invocation is None or self._invocation.id != id:
            raise _Refused(400, "InvalidRequestID", "Invalid request ID")
        if self._state != "Running":
            raise self._forbidden(state)
        if mode not in ("", "streaming"):
            raise _Refused(400, "InvalidFunctionResponseMode", f"Invalid function response mode: {mode}")
        self._state = "Answered"
        self._given.clear()

    def _end_answer(self, answer: Any) -> None:
        assert self._answer is not None
        if not self._answer.done():
            self._answer.set_result(answer)

    def _forbidden(self, state: str) -> _Refused:
        return _Refused(403, "InvalidStateTransition", f"Transition from {self._state} to {state} is not allowed")

    # How it is asked

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._talks.add(task)
        task.add_done_callback(self._talks.discard)
        talk = _Talk(reader, writer)
        admitted = self._admits(writer.get_extra_info("socket"))
        try:
            while (request := await talk.request()) is not None:
                if not admitted:
                    refused = _Refused(403, "Forbidden", "this Runtime API is another environment's")
                    await talk.reply(refused.reply, close=True)
                    return
                await talk.reply(await self._reply(talk, request))
        except h11.RemoteProtocolError as error:
            with suppress(ConnectionError, h11.LocalProtocolError):
                await talk.reply(_Refused(error.error_status_hint, "InvalidRequest", str(error)).reply, close=True)
        except ConnectionError:  # the program has ended, or asks again
            pass
        finally:
            writer.close()

    async def _reply(self, talk: _Talk, request: h11.Request) -> Reply:
        target, method = request.target.decode("ascii", "replace").partition("?")[0], request.method.decode()
        path = target.removeprefix(_PREFIX) if target.startswith(_PREFIX) else ""
        found = [(match, allowed) for pattern, allowed in _PATHS.items() if (match := re.fullmatch(pattern, path))]
        try:
            if not found:
                return 404, [("Content-Type", "text/plain; charset=utf-8")], b"404 page not found\n"
            match, allowed = found[0]
            if method != allowed:
                return 405, [("Allow", allowed)], b""
            if method == "GET":
                return await self._next()
            if path == "init/error":
                if self._state != "Started":
                    raise self._forbidden("InitError")
                self._state = "InitError"
                self.fault = _failure(await talk.body(), _header(request, _ERROR_TYPE))
                self.asks.set()
                return _OK
            if path.endswith("/error"):
                self._begin_answer(match[1], "InvocationErrorResponse")
                self._end_answer(_failure(await self._whole(talk), _header(request, _ERROR_TYPE)))
                return _OK
            mode, kind = _header(request, "lambda-runtime-function-response-mode"), _header(request, "content-type")
            self._begin_answer(match[1], "InvocationResponse", mode)
            assert self._invocation is not None
            return await (self._streamed(talk, kind) if mode and self._invocation.streams else self._answered(talk, kind))
        except _Refused as refused:
            return refused.reply
        finally:
            await talk.body()  # else the connection could not be used again

    async def _whole(self, talk: _Talk) -> bytes:
        with self._truncates():
            return await talk.body()

    @contextmanager
    def _truncates(self, answer: Streamed | None = None) -> Iterator[None]:
        """A connection that ends here ends amid the answer; answer: what has gone out of it."""
        try:
            yield
        except (ConnectionError, h11.RemoteProtocolError) as error:
            failed = Failed("Runtime.TruncatedResponse", f"the connection ended amid the answer: {error}")
            if answer is None:
                self._end_answer(failed)
            else:
                answer.failed = failed
            raise

    async def _answered(self, talk: _Talk, kind: str) -> Reply:
        body = await self._whole(talk)
        if talk.size > LIMIT:
            message = f"Response payload size ({talk.size} bytes) exceeded maximum allowed payload size ({LIMIT} bytes)."
            self._end_answer(Failed("Function.ResponseSizeTooLarge", message))
            raise _Refused(413, "RequestEntityTooLarge", f"Exceeded maximum allowed payload size ({LIMIT} bytes).")
        self._end_answer(talk.failed(body) or (_http_answer(body) if kind.startswith(_HTTP_ANSWER) else _value(body)))
        return _OK

    async def _streamed(self, talk: _Talk, kind: str) -> Reply:
        """Hand it on as it comes."""
        head: Head = (200, {"Content-Type": kind or "application/octet-stream"})
        rest = b""
        if kind.startswith(_HTTP_ANSWER):
            with self._truncates():
                async for piece in talk.pieces():
                    rest += piece
                    if _HTTP_HEAD_ENDS in rest or len(rest) > _CHUNK:
                        break
            told, _, rest = rest.partition(_HTTP_HEAD_ENDS)
            try:
                head = _http_head(told)
            except (ValueError, UnicodeDecodeError) as error:
                self._end_answer(talk.failed(told) or Failed("Runtime.InvalidResponse", f"the head of the streamed answer: {error}"))
                return _OK
        answer = Streamed(head)
        self._end_answer(answer)
        try:
            with self._truncates(answer):
                with suppress(Closed):
                    if rest:
                        await answer.chunks.put(rest)
                    async for piece in talk.pieces():
                        await answer.chunks.put(piece)
                await talk.body()  # of which nobody takes the rest
            answer.failed = talk.failed(b"")
        finally:
            answer.chunks.end(None)
        return _OK


_ERROR_TYPE: Final = "lambda-runtime-function-error-type"


class _Talk:
    """One connection. size, trailers: of the last request's body."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_CHUNK)  # trailers may be long
        self.size = 0
        self.trailers: list[tuple[bytes, bytes]] = []

    async def request(self) -> h11.Request | None:
        """The next one; None: there is none."""
        if h11.MUST_CLOSE in (self._http.our_state, self._http.their_state):
            return None
        if self._http.our_state is h11.DONE:
            self._http.start_next_cycle()
        self.size, self.trailers = 0, []
        event = await self._event()
        return event if isinstance(event, h11.Request) else None

    async def body(self) -> bytes:
        """As much of it as an answer may have; all of it is read. Raises ConnectionError, RemoteProtocolError."""
        kept = bytearray()
        async for piece in self.pieces():
            if self.size > _TOO_MUCH:
                raise ConnectionAbortedError("more than anybody reads")
            if self.size <= LIMIT:
                kept += piece
        return bytes(kept)

    async def pieces(self) -> AsyncIterator[bytes]:
        """What has not been read of it, as it comes; raises the same."""
        while self._http.their_state is h11.SEND_BODY:
            event = await self._event()
            if isinstance(event, h11.Data):
                self.size += len(event.data)
                yield bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                self.trailers = list(event.headers)

    def failed(self, body: bytes) -> Failed | None:
        """What the trailers say of an error; body: what it is if they don't."""
        trailers = {name.decode(): value.decode("latin-1") for name, value in self.trailers}
        if (error_type := trailers.get(_ERROR_TYPE)) is None:
            return None
        with suppress(ValueError):
            body = base64.b64decode(trailers.get("lambda-runtime-function-error-body", ""), validate=True)
        return _failure(body, error_type)

    async def reply(self, reply: Reply, *, close: bool = False) -> None:
        status, headers, body = reply
        headers = [*headers, ("Content-Length", str(len(body)))]
        if close:
            headers.append(("Connection", "close"))
        head = h11.Response(status_code=status, reason=HTTPStatus(status).phrase, headers=headers)
        self._writer.write(b"".join(self._http.send(event) or b"" for event in (head, h11.Data(data=body), h11.EndOfMessage())))
        await self._writer.drain()

    async def _event(self) -> Any:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            if self._http.they_are_waiting_for_100_continue:
                self._writer.write(self._http.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
            self._http.receive_data(await self._reader.read(_CHUNK))
        return event


def _header(request: h11.Request, name: str) -> str:
    wanted = name.encode()
    return next((value.decode("latin-1") for key, value in request.headers if key == wanted), "")


def _failure(body: bytes, kind: str) -> Failed:
    """What runtimes say of an error: JSON, or whatever they like."""
    try:
        told = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        told = None
    if not isinstance(told, dict):
        return Failed(kind or "Runtime.Unknown", body.decode(errors="replace"))
    trace = told.get("stackTrace") or told.get("trace")
    lines = [str(line) for line in trace] if isinstance(trace, list) else []
    return Failed(str(told.get("errorType") or kind or "Runtime.Unknown"), str(told.get("errorMessage") or ""), lines)


def _value(body: bytes) -> Any:
    """What is no JSON goes on as it is, as Lambda hands it to who invoked."""
    if not body:
        return None
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    try:
        return body.decode()
    except UnicodeDecodeError:
        return body


class _HttpHead(msgspec.Struct, rename="camel"):
    status_code: Any = 200
    headers: dict[str, Any] | None = None
    multi_value_headers: dict[str, list[Any]] | None = None
    cookies: list[str] | None = None


def _http_head(told: bytes) -> Head:
    """Raises ValueError."""
    head = msgspec.json.decode(told, type=_HttpHead)
    said = {**(head.headers or {}), **(head.multi_value_headers or {})}
    return head.status_code, said | ({"Set-Cookie": head.cookies} if head.cookies else {})


def _http_answer(body: bytes) -> Any:
    """A streamed HTTP answer, its head in JSON before its body, as the same answer in payload 2.0."""
    head, _, rest = body.partition(_HTTP_HEAD_ENDS)
    try:
        told = msgspec.json.decode(head, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Failed("Runtime.InvalidResponse", f"the head of the streamed answer: {error}")
    return {"statusCode": 200, **told, "body": base64.b64encode(rest).decode(), "isBase64Encoded": True}
