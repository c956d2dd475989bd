"""Listens with aiohttp, hands requests to the router, and turns outcomes into answers."""

from __future__ import annotations

import base64
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from aiohttp import ClientSession, web

from eventrouter import Binding, Endpoint, Event, Failed, HttpRequest, Outcome, Response, Router, Source, Succeeded, TimedOut
from eventrouter.errors import EventRouterError, InvalidPayload, JournalError, Throttled
from eventrouter_http import HttpConfig, HttpTrigger, is_loopback

_JSON = "application/json"
Handle = Callable[[web.Request], Awaitable[web.Response]]
_LAST_ANSWERS = 5.0  # seconds for answers on their way, once no handler runs
_FAULTS = {
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    413: "Content Too Large",
    429: "Too Many Requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}


class HttpSource(Source[HttpConfig]):
    name = "http"

    def __init__(self, config: HttpConfig, router: Router) -> None:
        super().__init__(config, router)
        self._runner: web.AppRunner | None = None
        self._site: web.TCPSite | None = None
        self.url = ""

    async def start(self) -> None:
        host, port = self.config.host, self.config.port
        runner = web.AppRunner(self._application(), access_log=None, shutdown_timeout=_LAST_ANSWERS)
        await runner.setup()
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            await runner.cleanup()
            raise EventRouterError(
                f"http: can't listen on {host}:{port}: {error.strerror or error}; choose another with --port (0: a free one) or [http] host"
            ) from None
        self._runner, self._site = runner, site
        address = runner.addresses[0]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{address[1]}"
        self.router.listens(self.url)
        if self.router.bindings and not is_loopback(host):
            routes = ", ".join(str(binding.trigger) for binding in self.router.bindings)
            self.router.log.warning("anyone who reaches %s can call %s", self.url, routes, extra={"action": "http.open"})

    async def stop(self) -> None:
        if self._site is not None:
            await self._site.stop()

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def lines(self) -> list[str]:
        return [f"http on {self.url}"]

    async def send(self, request: str, body: str = "", *, header: list[str] = []) -> dict[str, Any]:  # noqa: B006 - read only
        """Make a request as a client does; each header is "Name: value"."""
        method, _, path = request.partition(" ")
        headers = dict(text.split(": ", 1) for text in header if ": " in text)
        url = self.url.replace("0.0.0.0", "127.0.0.1").replace("[::]", "[::1]")  # noqa: S104 - what it listens on is no address to call
        async with ClientSession() as client, client.request(method, url + path, data=body or None, headers=headers) as answer:
            return {"status": answer.status, "headers": dict(answer.headers), "body": await answer.text(errors="replace")}

    # Routes

    def _application(self) -> web.Application:
        # aiohttp's own limit raises in `read`, where it can be answered.
        application = web.Application(client_max_size=self.config.body_limit)
        add = application.router.add_route
        add("GET", "/healthz", self._healthz)
        add("GET", "/readyz", self._readyz)
        default: Handle = self._miss
        routes = [(endpoint.method, endpoint.path, self._served(endpoint)) for endpoint in self.router.endpoints]
        for binding in self.router.bindings:
            trigger = binding.trigger
            assert isinstance(trigger, HttpTrigger)
            handle = self._journalled(binding) if trigger.mode == "event" else self._answered(binding)
            if trigger.pattern:
                routes.append((trigger.method, trigger.pattern, handle))
            else:
                default = handle
        for method, pattern, handle in sorted(routes, key=lambda route: _precedence(route[0], route[1])):
            add("*" if method == "ANY" else method, pattern.replace("+}", ":.+}"), handle)
        add("*", "/{tail:.*}", default)
        return application

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _readyz(self, request: web.Request) -> web.Response:
        health = self.router.health()
        return web.Response(body=msgspec.json.encode(health), content_type=_JSON, status=200 if health.ready else 503)

    async def _miss(self, request: web.Request) -> web.Response:
        allowed: set[str] = set()
        for resource in list(request.app.router.resources())[:-1]:
            allowed |= (await resource.resolve(request))[1]
        if allowed:
            return problem(405, f"{request.path} answers {', '.join(sorted(allowed))}", Allow=", ".join(sorted(allowed)))
        return _unwanted(request)

    def _served(self, endpoint: Endpoint) -> Handle:
        """An endpoint of another source's."""

        async def handle(request: web.Request) -> web.Response:
            try:
                body = await request.read()
            except web.HTTPRequestEntityTooLarge:
                return self._too_large()
            url, headers = request.rel_url, tuple(request.headers.items())
            asked = HttpRequest(
                request.method, url.path, dict(request.match_info), url.raw_query_string, headers, body, request.remote or ""
            )
            try:
                return _from_typed(await endpoint.answer(asked))
            except Exception:
                self.router.log.exception("%s %s failed", endpoint.method, endpoint.path, extra={"action": "http.endpoint"})
                return problem(500, "the router could not answer")

        return handle

    def _answered(self, binding: Binding) -> Handle:
        run, clock, trigger = self.router.request, self.router.clock, binding.trigger
        filtered = binding.function.where is not None

        async def handle(request: web.Request) -> web.Response:
            try:
                event = await _event(request, clock.time())
                if filtered and not self.router.wants(binding, event):
                    return _unwanted(request)
                outcome = await run(binding, event, request.match_info if trigger.names else _NONE)
            except web.HTTPRequestEntityTooLarge:
                return self._too_large()
            except Throttled as error:
                return problem(429, str(error), **{"Retry-After": "1"})
            return self._answer(binding, outcome)

        return handle

    def _journalled(self, binding: Binding) -> Handle:
        filtered = binding.function.where is not None

        async def handle(request: web.Request) -> web.Response:
            try:
                event = await _event(request, self.router.clock.time())
                if filtered and not self.router.wants(binding, event):
                    return _unwanted(request)
                self.router.check(binding, event, request.match_info if binding.trigger.names else _NONE)
                await self.router.deliver_to(binding, event)
                self.router.crash_point("ack.before")
            except web.HTTPRequestEntityTooLarge:
                return self._too_large()
            except InvalidPayload as error:
                return problem(400, str(error))
            except JournalError:  # the reason is logged and in /readyz; it may name files
                return problem(503, "the event could not be written; send it again", **{"Retry-After": "1"})
            return web.Response(body=msgspec.json.encode({"id": event.id}), content_type=_JSON, status=202)

        return handle

    # Answers

    def _too_large(self) -> web.Response:
        # The rest of the body is not read, so the connection can't be used again.
        return problem(413, f"the body is larger than {self.config.body_limit} bytes", Connection="close")

    def _answer(self, binding: Binding, outcome: Outcome) -> web.Response:
        function = binding.function
        if isinstance(outcome, Succeeded):
            try:
                return _from_lambda(outcome.result) if function.is_lambda else _from_typed(outcome.result)
            except (TypeError, ValueError) as error:
                self.router.log.error(
                    "%s: its answer can't be sent: %s", function.name, error, extra={"action": "http.answer", "function": function.name}
                )
                return problem(500, "the function's answer can't be sent")
        if isinstance(outcome, Failed):
            if outcome.error_type == "InvalidPayload":
                return problem(400, outcome.error_message)
            return problem(500, "the function failed")
        if isinstance(outcome, TimedOut):
            return problem(504, f"the function did not answer within {outcome.seconds:g} s")
        return problem(503, "the router is shutting down", **{"Retry-After": "1"})


def _unwanted(request: web.Request) -> web.Response:
    return problem(404, f"no function answers {request.method} {request.path}")


_NONE: Mapping[str, str] = {}


async def _event(request: web.Request, now: float) -> Event:
    url = request.rel_url
    headers = {name.lower(): value for name, value in request.headers.items()}
    if len(headers) < len(request.headers):  # some come more than once
        headers = {name: ",".join(request.headers.getall(name)) for name in headers}
    data = await request.read() if request.body_exists else b""
    version = request.version
    attributes = {
        "method": request.method,
        "path": url.raw_path,
        "query": url.raw_query_string,
        "headers": headers,
        "protocol": f"HTTP/{version.major}.{version.minor}",
        "ip": request.remote or "",
    }
    content_type = headers.get("content-type", "application/octet-stream")
    return Event("http", "http.request", url.path_safe, data, content_type, time=now, attributes=attributes)


# A segment with a wildcard and something besides.
_PARTLY = re.compile(r"[^{]\{|\}[^}]")


def _precedence(method: str, pattern: str) -> tuple[list[tuple[int, str]], bool]:
    """aiohttp tries literal paths first, then wildcards in the order they were added."""
    ranks = [
        (0, segment) if "{" not in segment else (3 if "+}" in segment else 1 if _PARTLY.search(segment) else 2, "")
        for segment in pattern.split("/")
    ]
    return ranks, method == "ANY"


def problem(status: int, detail: str, **headers: str) -> web.Response:
    """An RFC 9457 problem."""
    body = msgspec.json.encode({"type": "about:blank", "title": _FAULTS[status], "status": status, "detail": detail})
    return web.Response(body=body, status=status, content_type="application/problem+json", headers=headers)


def _from_typed(result: Any) -> web.Response:
    if type(result) is dict:  # the usual case
        return web.Response(body=msgspec.json.encode(result), content_type=_JSON)
    if isinstance(result, Response):
        answer = _body(result.body, result.headers)
        answer.set_status(result.status)
        return answer
    if result is None:
        return web.Response(status=204)
    return _body(result, _NONE)


def _body(body: Any, headers: Mapping[str, str]) -> web.Response:
    if body is None:
        kind, data = None, b""
    elif isinstance(body, str):
        kind, data = "text/plain; charset=utf-8", body.encode()
    elif isinstance(body, bytes | bytearray | memoryview):
        kind, data = "application/octet-stream", bytes(body)
    else:
        kind, data = _JSON, msgspec.json.encode(body)
    if kind is not None and not any(name.lower() == "content-type" for name in headers):
        headers = {**headers, "Content-Type": kind}
    return web.Response(body=data, headers=headers)


def _from_lambda(result: Any) -> web.Response:
    """Payload 2.0's mapping. Raises ValueError for what API Gateway answers with 500 as well."""
    if not isinstance(result, dict) or "statusCode" not in result:
        data = result.encode() if isinstance(result, str) else msgspec.json.encode(result)
        return web.Response(body=data, content_type=_JSON)
    body = result.get("body")
    if body is not None and not isinstance(body, str):
        raise ValueError(f"body is {type(body).__name__}, in an answer with statusCode it is text; json.dumps it")
    data = base64.b64decode(body or "", validate=True) if result.get("isBase64Encoded") else (body or "").encode()
    answer = web.Response(body=data, status=int(result["statusCode"]))
    for name, value in (result.get("headers") or {}).items():
        answer.headers[name] = _header(value)
    for cookie in result.get("cookies") or ():
        answer.headers.add("Set-Cookie", cookie)
    if data and not any(name.lower() == "content-type" for name in result.get("headers") or ()):
        answer.headers["Content-Type"] = "text/plain; charset=utf-8"
    return answer


def _header(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
