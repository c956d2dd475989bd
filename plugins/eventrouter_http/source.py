"""Listens with aiohttp, hands requests to the router, and turns outcomes into answers."""

from __future__ import annotations

import re
import ssl
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from aiohttp import ClientSession, HttpVersion11, web

from eventrouter import Binding, Endpoint, Event, Failed, Health, HttpRequest, Outcome, Router, Source, Succeeded, TimedOut
from eventrouter.errors import AccessDenied, ConfigError, EventRouterError, InvalidPayload, JournalError, Throttled
from eventrouter_http import HttpConfig, HttpTrigger, is_loopback
from eventrouter_http.answers import JSON, NONE, SECURITY, Plain, from_lambda, from_typed, problem, throttled
from eventrouter_http.connections import Garbled, Server, TooLarge, TooSlow, read_body
from eventrouter_http.cors import Cors
from eventrouter_http.guards import Guard, Guards
from eventrouter_http.openapi import document
from eventrouter_http.routes import Routes
from eventrouter_http.streams import MORE, Stream

_LAST_ANSWERS = 5.0  # seconds for answers on their way, once no handler runs
Handle = Callable[[web.BaseRequest, Mapping[str, str]], Awaitable[web.StreamResponse | Plain]]


class Route(NamedTuple):
    handle: Handle
    cors: Cors | None = None


def _fixed(kind: str, body: bytes) -> Handle:
    # Its scripts and styles are in the page itself, and it talks to nobody else.
    policy = "default-src 'self' 'unsafe-inline'; frame-ancestors 'self'"
    headers = {**SECURITY, "Content-Type": kind, "Content-Security-Policy": policy, "X-Frame-Options": "SAMEORIGIN"}

    async def handle(request: web.BaseRequest, captures: Mapping[str, str]) -> web.Response:
        return web.Response(body=body, headers=headers)

    return handle


class HttpSource(Source[HttpConfig]):
    name = "http"

    def __init__(self, config: HttpConfig, router: Router) -> None:
        super().__init__(config, router)
        self._guards = Guards(config, router)
        self._runner: web.ServerRunner | None = None
        self._site: web.TCPSite | None = None
        self._routes: Routes[Route] = Routes()
        self._prefix = "" if config.stage == "$default" else f"/{config.stage}"
        self._default = self._missing = Route(self._cross_origin(self._miss, config.cors), config.cors)
        self._has_cors = False
        self.url = ""

    async def start(self) -> None:
        self._add_routes()
        host, port = self.config.host, self.config.port
        runner = web.ServerRunner(Server(self._dispatch, self.config), shutdown_timeout=_LAST_ANSWERS)
        tls = self._tls()
        await runner.setup()
        site = web.TCPSite(runner, host, port, ssl_context=tls)
        try:
            await site.start()
        except OSError as error:
            await runner.cleanup()
            raise EventRouterError(
                f"http: can't listen on {host}:{port}: {error.strerror or error}; choose another with --port (0: a free one) or [http] host"
            ) from None
        self._runner, self._site = runner, site
        address = runner.addresses[0]
        self.url = f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{address[1]}"
        self.router.listens(self.url)
        triggers = [binding.trigger for binding in self.router.bindings if isinstance(binding.trigger, HttpTrigger)]
        routes = ", ".join(str(trigger) for trigger in triggers if trigger.auth_in(self.config) is None)
        if routes and not is_loopback(host):
            self.router.log.warning("anyone who reaches %s can call %s", self.url, routes, extra={"action": "http.open"})

    async def stop(self) -> None:
        if self._site is not None:
            await self._site.stop()

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def lines(self) -> list[str]:
        return [f"http on {self.url}{self._prefix}"]

    async def send(self, request: str, body: str = "", *, header: list[str] = []) -> dict[str, Any]:  # noqa: B006 - read only
        """Make a request such as "POST /path", as a client does; each header is "Name: value"."""
        method, _, path = request.partition(" ")
        if not re.fullmatch(r"[A-Za-z]+ /.*", request):
            raise ConfigError(f"send http: {request!r}: write the method and the path, as in 'POST /path'")
        for text in header:
            if ": " not in text:
                raise ConfigError(f"send http: --header {text!r}: write 'Name: value'")
        headers = dict(text.split(": ", 1) for text in header)
        url = self.url.replace("0.0.0.0", "127.0.0.1").replace("[::]", "[::1]")  # noqa: S104 - what it listens on is no address to call
        options: dict[str, Any] = {"data": body or None, "headers": headers, "ssl": False}  # whom its certificate names is no question here
        async with ClientSession() as client, client.request(method, url + path, **options) as answer:
            return {"status": answer.status, "headers": dict(answer.headers), "body": await answer.text(errors="replace")}

    def _tls(self) -> ssl.SSLContext | None:
        if self.config.cert_file is None or self.config.key_file is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        cert, key = self.router.base / self.config.cert_file, self.router.base / self.config.key_file
        try:
            context.load_cert_chain(cert, key)
        except (OSError, ssl.SSLError) as error:
            raise EventRouterError(
                f"http: no TLS with {cert} and {key}: {error.strerror or error}; [http] cert_file and key_file must belong together"
            ) from None
        return context

    # Routes

    def _add_routes(self) -> None:
        guards = self._guards
        for binding in self.router.bindings:
            trigger = binding.trigger
            assert isinstance(trigger, HttpTrigger)
            auth = trigger.auth_in(self.config)
            guard = guards.of(auth, trigger) if auth is not None else None
            handle = self._journalled(binding, guard) if trigger.mode == "event" else self._answered(binding, guard)
            cors = self.config.cors if trigger.cors is None else trigger.cors or None
            route = Route(self._cross_origin(handle, cors), cors)
            self._has_cors = self._has_cors or cors is not None
            if trigger.pattern:
                self._routes.add(trigger.method, self._prefix + trigger.pattern, route)
            else:
                self._default = route
        for endpoint in self.router.endpoints:
            if not self._routes.add(endpoint.method, endpoint.path, Route(self._served(endpoint))):
                raise EventRouterError(f"http: {endpoint.method} {endpoint.path} is answered twice, once by another source; change a path")
        for path, answer in (("/healthz", self._healthz), ("/readyz", self._readyz)):
            self._routes.add("GET", path, Route(answer))
            self._routes.add("HEAD", path, Route(answer))
        if self.config.openapi:
            self._document()
        self._has_cors = self._has_cors or self.config.cors is not None

    def _document(self) -> None:
        """`/openapi.json` and `/docs`, unless the app has routes of its own there."""
        made = msgspec.json.encode(document(self.router.base.name, self._prefix, self.router.bindings, self.config))
        page = Path(__file__).with_name("docs.html").read_bytes()
        for path, kind, body in (("/openapi.json", JSON, made), ("/docs", "text/html; charset=utf-8", page)):
            self._routes.add("GET", path, Route(_fixed(kind, body)))

    async def _dispatch(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.rel_url.path_safe
        route, captures = self._find(request.method, path)
        if self._has_cors and request.method == "OPTIONS":
            asked = request.headers.get("Access-Control-Request-Method")
            origin = request.headers.get("Origin")
            wanted = self._find(asked, path)[0].cors if asked and origin else None
            if asked and origin and wanted is not None:
                headers = request.headers.get("Access-Control-Request-Headers", "")
                return web.Response(status=204, headers=wanted.preflight(origin, asked, headers))
        try:
            answer = await route.handle(request, captures)
        except (TooLarge, TooSlow, Garbled) as error:
            return self._unread(error)
        return await answer.send(request, self.router.clock.time()) if type(answer) is Plain else answer

    def _find(self, method: str, path: str) -> tuple[Route, Mapping[str, str]]:
        found = self._routes.find(method, path)
        if found is not None:
            return found
        if self._prefix and path != self._prefix and not path.startswith(f"{self._prefix}/"):
            return self._missing, NONE  # no business of this stage's
        return self._default, NONE

    def _cross_origin(self, handle: Handle, cors: Cors | None) -> Handle:
        """Its answers with the headers of cors, whatever it says of that itself."""
        if cors is None:
            return handle

        async def answer(request: web.BaseRequest, captures: Mapping[str, str]) -> web.StreamResponse:
            more = request[MORE] = cors.answer(request.headers.get("Origin"))
            try:
                answer = await handle(request, captures)
            except (TooLarge, TooSlow, Garbled) as error:
                answer = self._unread(error)
            if isinstance(answer, Plain):
                answer = answer.response()
            if not answer.prepared:
                for name in [name for name in answer.headers if name.lower().startswith("access-control-")]:
                    del answer.headers[name]
                answer.headers.update(more)
            return answer

        return answer

    async def _healthz(self, request: web.BaseRequest, captures: Mapping[str, str]) -> web.Response:
        return web.Response(text="ok", headers=SECURITY)

    async def _readyz(self, request: web.BaseRequest, captures: Mapping[str, str]) -> web.Response:
        health = self.router.health()
        if not self._guards.may_know(request):
            sources = {name: state if state in ("live", "starting") else "lost" for name, state in health.sources.items()}
            health = Health(health.ready, "accepting" if health.journal == "accepting" else "refusing", sources)
        status = 200 if health.ready else 503
        return web.Response(body=msgspec.json.encode(health), content_type=JSON, status=status, headers=SECURITY)

    async def _miss(self, request: web.BaseRequest, captures: Mapping[str, str]) -> web.Response:
        path = request.rel_url.path_safe
        allowed = ", ".join(sorted(self._routes.methods(path)))
        if allowed:
            return problem(405, f"{request.path} answers {allowed}", {"Allow": allowed})
        return _unwanted(request)

    def _unread(self, error: Exception) -> web.Response:
        close = {"Connection": "close"}
        if isinstance(error, TooLarge):
            return problem(413, f"the body is larger than {self.config.body_limit} bytes", close)
        if isinstance(error, TooSlow):
            return problem(408, f"the body did not come within {self.config.read_timeout:g} s", close)
        return problem(400, f"the body can't be read: {error}", close)

    # Handlers of requests

    def _served(self, endpoint: Endpoint) -> Handle:
        """An endpoint of another source's."""

        async def handle(request: web.BaseRequest, captures: Mapping[str, str]) -> web.Response | Plain:
            refused = self._guards.admin(request) if endpoint.admin else self._guards.told(request) if endpoint.tells else None
            if refused is not None:
                return refused
            body = await read_body(request, self.config)
            url, headers = request.rel_url, tuple(request.headers.items())
            asked = HttpRequest(request.method, url.path, captures, url.raw_query_string, headers, body, request.remote or "")
            try:
                return from_typed(await endpoint.answer(asked))
            except Exception:
                self.router.log.exception("%s %s failed", endpoint.method, endpoint.path, extra={"action": "http.endpoint"})
                return problem(500, "the router could not answer")

        return handle

    async def _admitted(
        self, request: web.BaseRequest, captures: Mapping[str, str], binding: Binding, guard: Guard | None
    ) -> Event | web.Response:
        """The request as an event, or why there is none; the body of somebody who may not call is not read."""
        event = self._event(request, b"")
        if guard is not None:
            found = await guard(event, captures)
            if isinstance(found, web.Response):
                return found
            event.attributes = {**event.attributes, "authorizer": found}
        event.data = await read_body(request, self.config)
        if binding.function.where is not None and not self.router.wants(binding, event):
            return _unwanted(request)
        return event

    def _answered(self, binding: Binding, guard: Guard | None) -> Handle:
        run = self.router.request
        plain = guard is None and binding.function.where is None

        async def handle(request: web.BaseRequest, captures: Mapping[str, str]) -> web.StreamResponse | Plain:
            event: Event | web.Response
            if plain:
                event = self._event(request, await read_body(request, self.config))
            else:
                event = await self._admitted(request, captures, binding, guard)
                if isinstance(event, web.Response):
                    return event
            stream = Stream(request)
            try:
                outcome = await run(binding, event, captures, stream)
            except Throttled as error:
                return throttled(error)
            except AccessDenied:
                return problem(403, "no request may start this function at present")
            stream.over = True
            if stream.answer is not None and not isinstance(outcome, Succeeded):
                return stream.cut()
            return self._answer(binding, outcome)

        return handle

    def _journalled(self, binding: Binding, guard: Guard | None) -> Handle:
        check, deliver_to = self.router.check, self.router.deliver_to
        plain = guard is None and binding.function.where is None

        async def handle(request: web.BaseRequest, captures: Mapping[str, str]) -> web.Response | Plain:
            event: Event | web.Response
            if plain:
                event = self._event(request, await read_body(request, self.config))
            else:
                event = await self._admitted(request, captures, binding, guard)
                if isinstance(event, web.Response):
                    return event
            try:
                check(binding, event, captures)
                if not await deliver_to(binding, event, captures):  # its id is new, and `where` was asked: the function policy says no
                    return problem(403, "no request may start this function at present")
                self.router.crash_point("ack.before")
            except InvalidPayload as error:
                return problem(400, str(error))
            except JournalError:  # the reason is logged and in /readyz; it may name files
                return problem(503, "the event could not be written; send it again", {"Retry-After": "1"})
            return Plain(b'{"id":"%b"}' % event.id.encode(), status=202)  # an id of ours: nothing in it needs escaping

        return handle

    def _event(self, request: web.BaseRequest, data: bytes) -> Event:
        url = request.rel_url
        headers = {name.lower(): value for name, value in request.headers.items()}
        version = request.version
        attributes: dict[str, Any] = {
            "method": request.method,
            "path": url.raw_path,
            "query": url.raw_query_string,
            "headers": headers,
            "protocol": "HTTP/1.1" if version == HttpVersion11 else f"HTTP/{version.major}.{version.minor}",
            "ip": request.remote or "",
        }
        if len(headers) < len(request.headers):  # some come more than once
            several = {name: values for name in headers if len(values := request.headers.getall(name)) > 1}
            headers.update((name, ("; " if name == "cookie" else ",").join(values)) for name, values in several.items())
            attributes["repeated"] = several
        subject = url.path_safe
        if self._prefix:
            attributes["stage"] = self.config.stage
            subject = subject.removeprefix(self._prefix) or "/"
        if self.config.stage_variables:
            attributes["stage_variables"] = self.config.stage_variables
        content_type = headers.get("content-type", "application/octet-stream")
        return Event("http", "http.request", subject, data, content_type, time=self.router.clock.time(), attributes=attributes)

    def _answer(self, binding: Binding, outcome: Outcome) -> web.StreamResponse | Plain:
        function, trigger = binding.function, binding.trigger
        if type(outcome) is Succeeded:
            if isinstance(outcome.result, web.StreamResponse):  # it was streamed
                return outcome.result
            try:
                assert isinstance(trigger, HttpTrigger)
                return from_lambda(outcome.result, trigger.payload == "2.0") if function.is_lambda else from_typed(outcome.result)
            except (TypeError, ValueError, OverflowError) as error:
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
        return problem(503, "the router is shutting down", {"Retry-After": "1"})


def _unwanted(request: web.BaseRequest) -> web.Response:
    return problem(404, f"no function answers {request.method} {request.path}")
