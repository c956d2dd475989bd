"""From what a handler returned, or why it did not, to an HTTP answer."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from email.utils import formatdate
from http import HTTPStatus
from math import ceil
from typing import Any, final

import msgspec
from aiohttp import HttpVersion11, web
from aiohttp.http import SERVER_SOFTWARE
from multidict import CIMultiDict

from eventrouter import Response
from eventrouter.errors import Throttled

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
BINARY = "application/octet-stream"
NONE: Mapping[str, str] = {}
# What the connection itself says; a handler's idea of it would break the answer.
_OURS = frozenset(("connection", "content-length", "keep-alive", "transfer-encoding", "upgrade"))
# Of the router's own pages and errors; what handlers answer has the headers that they give it.
SECURITY: Mapping[str, str] = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_UNFIT = re.compile(r"[\r\n\0]")


@final
class Plain:
    """An answer without headers of its own, which most are: written in one piece, head and all.

    kind: JSON, TEXT or BINARY.
    """

    __slots__ = ("body", "kind", "status")

    def __init__(self, body: bytes, kind: str = JSON, status: int = 200) -> None:
        self.body = body
        self.kind = kind
        self.status = status

    def response(self) -> web.Response:
        return web.Response(body=self.body, status=self.status, headers={"Content-Type": self.kind})

    async def send(self, request: web.BaseRequest, now: float) -> web.StreamResponse:
        """What aiohttp is to get: that it was sent or, where there is more to be said of the connection, the answer.

        now: seconds since 1970.
        """
        if request.version != HttpVersion11 or not request.keep_alive or request.method == "HEAD":
            return self.response()
        head = _heads.get((self.status, self.kind, int(now))) or _head(self.status, self.kind, int(now))
        try:
            await request.writer.write_eof(b"%b%d\r\n\r\n%b" % (head, len(self.body), self.body))
        except ConnectionError:  # aiohttp finds out for itself, and ends the connection
            return self.response()
        return _SENT


class _Sent(web.StreamResponse):
    """Stands for answers that were sent, over connections that stay open."""

    prepared = True
    keep_alive = True

    async def prepare(self, request: web.BaseRequest) -> None:
        pass

    async def write_eof(self, data: bytes = b"") -> None:
        pass


_SENT = _Sent()
_heads: dict[tuple[int, str, int], bytes] = {}


def _head(status: int, kind: str, second: int) -> bytes:
    """All but the body's length."""
    if len(_heads) > 100:
        _heads.clear()
    said = {"Content-Type": kind, "Date": formatdate(second, usegmt=True), "Server": SERVER_SOFTWARE}
    lines = "".join(f"{name}: {value}\r\n" for name, value in said.items())
    head = _heads[status, kind, second] = f"HTTP/1.1 {status} {_title(status)}\r\n{lines}Content-Length: ".encode()
    return head


def problem(status: int, detail: str, headers: Mapping[str, str] = NONE) -> web.Response:
    """An RFC 9457 problem."""
    body = msgspec.json.encode({"type": "about:blank", "title": _title(status), "status": status, "detail": detail})
    return web.Response(body=body, status=status, content_type="application/problem+json", headers={**SECURITY, **headers})


def throttled(error: Throttled) -> web.Response:
    return problem(HTTPStatus.TOO_MANY_REQUESTS, str(error), {"Retry-After": str(max(1, ceil(error.after)))})


def _title(status: int) -> str:
    return "Content Too Large" if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE else HTTPStatus(status).phrase


def from_typed(result: Any) -> web.Response | Plain:
    """Raises TypeError, ValueError for what HTTP or JSON can't say."""
    if type(result) is dict:  # the usual case
        return Plain(msgspec.json.encode(result))
    if isinstance(result, Response):
        answer = _body(result.body, headers(result.headers, lists=True))
        answer.set_status(status_of(result.status))
        return answer
    if result is None:
        return web.Response(status=204)
    kind, data = encoded(result)
    return Plain(data, kind or BINARY)


def from_lambda(result: Any, infer: bool) -> web.Response | Plain:
    """A Lambda function's answer. infer: what has no `statusCode` is the body of a 200, as in payload 2.0.

    Raises TypeError, ValueError for what API Gateway answers with 500 as well.
    """
    if not isinstance(result, dict) or "statusCode" not in result:
        if not infer:
            raise ValueError('it has no statusCode; payload 1.0 wants {"statusCode": ..., "headers": ..., "body": ...}')
        return Plain(result.encode() if isinstance(result, str) else msgspec.json.encode(result))
    body = result.get("body")
    if body is not None and not isinstance(body, str):
        raise ValueError(f"body is {type(body).__name__}, in an answer with statusCode it is text; json.dumps it")
    data = base64.b64decode(body or "", validate=True) if result.get("isBase64Encoded") else (body or "").encode()
    said = headers(_table(result, "headers"))
    for name, values in _table(result, "multiValueHeaders").items():
        if not isinstance(values, list):
            raise ValueError(f"multiValueHeaders: {name}: {values!r} is no list")
        said.popall(name, None)
        said.extend(headers({name: values}, lists=True))
    said.extend(headers({"Set-Cookie": list(result.get("cookies") or ())}, lists=True))
    if data:
        said.setdefault("Content-Type", TEXT)
    return web.Response(body=data, status=status_of(result["statusCode"]), headers=said)


def headers(given: Mapping[str, Any], *, lists: bool = False) -> CIMultiDict[str]:
    """Headers that can be sent. lists: one of them is as many headers. Raises ValueError for names and values that can't."""
    said: CIMultiDict[str] = CIMultiDict()
    for name, value in _each(given) if lists else given.items():
        if value is None or name.lower() in _OURS:
            continue
        if isinstance(value, dict | list):
            raise ValueError(f"header {name}: {value!r} is no text")
        text = str(value).lower() if isinstance(value, bool) else str(value)
        if not _NAME.fullmatch(name) or _UNFIT.search(text):
            raise ValueError(f"header {name!r}: {text!r} can't be sent: no line breaks, and names are letters, digits and dashes")
        said.add(name, text)
    return said


def _each(given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in given.items():
        if isinstance(value, list):
            for each in value:
                yield name, each
        else:
            yield name, value


def _table(result: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    found = result.get(field) or {}
    if not isinstance(found, dict):
        raise ValueError(f"{field} is {type(found).__name__}, not an object")
    return found


def status_of(given: Any) -> int:
    """Raises ValueError for what is no status of an answer."""
    status = int(given)
    if isinstance(given, bool) or not 200 <= status <= 599:
        raise ValueError(f"its status {given!r} is none between 200 and 599")
    return status


def _body(body: Any, said: CIMultiDict[str]) -> web.Response:
    kind, data = encoded(body)
    if kind is not None:
        said.setdefault("Content-Type", kind)
    return web.Response(body=data, headers=said)


def encoded(body: Any) -> tuple[str | None, bytes]:
    """A body as bytes, and what they are."""
    if body is None:
        return None, b""
    if isinstance(body, str):
        return TEXT, body.encode()
    if isinstance(body, bytes | bytearray | memoryview):
        return BINARY, bytes(body)
    return JSON, msgspec.json.encode(body)
