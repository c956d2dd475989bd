"""An HTTP gateway: routes start functions, as in Amazon's API Gateway."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs

import msgspec
from msgspec import Meta

from eventrouter import Event, Plugin, Trigger, Wild, Wildcards, hookimpl
from eventrouter.errors import ConfigError, explain
from eventrouter_http.auth import ApiKey, Auth, Authorizer, Jwt, authorizer, jwt, read_auth
from eventrouter_http.cors import Cors
from eventrouter_http.payload import ACCOUNT, API, payload_1, payload_2
from eventrouter_http.routes import bare, captured

__all__ = ["Cors", "HttpTrigger", "authorizer", "http", "jwt"]

METHODS = ("ANY", "GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
RESERVED = ("/healthz", "/readyz")


class HttpConfig(msgspec.Struct, kw_only=True):
    """`[http]`. port: 0 picks a free one. body_limit: bytes of a request's body.

    read_timeout: seconds for a request's head, for its body, and that a connection may be idle.
    stage: "$default", or what paths begin with, as `prod` in `/prod/devices`; stage_variables: handed to Lambda functions.
    openapi: whether `/openapi.json` and `/docs` tell of the routes.
    admin_token_hash: SHA-256, in hexadecimal, of the token that administrators send as `Authorization: Bearer TOKEN`.
    auth_failures: wrong credentials a minute that one address may send before it has to wait; 0: no limit.
    auth, cors: for all routes that say nothing themselves. cert_file, key_file: PEM files; with them it speaks TLS.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8080
    body_limit: Annotated[int, Meta(ge=1)] = 6 * 1024 * 1024
    read_timeout: Annotated[float, Meta(gt=0)] = 75.0
    stage: Annotated[str, Meta(pattern=r"^(\$default|[A-Za-z0-9_-]+)$")] = "$default"
    stage_variables: dict[str, str] = {}
    cors: Cors | None = None
    auth: str | dict[str, Any] | None = None
    api_keys: dict[str, ApiKey] = {}
    admin_token_hash: Annotated[str, Meta(pattern=r"^[0-9a-fA-F]{64}$")] | None = None
    auth_failures: Annotated[int, Meta(ge=0)] = 30
    openapi: bool = True
    cert_file: str | None = None
    key_file: str | None = None


class HttpTrigger(Trigger):
    """`http(...)` makes it. route: as API Gateway's route key. method: "ANY" too. pattern: of the path; "" is `$default`.

    auth, cors: None leaves it to the config; "none" and False are none at all.
    """

    source = "http"
    service = "apigateway.amazonaws.com"

    def __init__(
        self,
        route: str,
        mode: Literal["request", "event"],
        payload: Literal["2.0", "1.0"],
        auth: Auth | None,
        cors: Cors | Literal[False] | None,
    ) -> None:
        self.route = route
        self.mode = mode
        self.payload = payload
        self.auth = auth
        self.cors = cors
        if mode not in ("request", "event"):
            raise ConfigError(
                f'http({route!r}): mode={mode!r}; write "request" (the caller gets the answer) or "event" (202, then it runs)'
            )
        if payload not in ("2.0", "1.0"):
            raise ConfigError(f'http({route!r}): payload={payload!r}; API Gateway knows "2.0" and "1.0"')
        if route == "$default":
            self.method, self.pattern, self.path = "ANY", "", (Wild.REST,)
            return
        self.method, _, self.pattern = route.partition(" ")
        if self.method not in METHODS:
            raise ConfigError(f'http({route!r}): write "METHOD /path", METHOD one of {", ".join(METHODS)}; or "$default"')
        if not self.pattern.startswith("/") or re.search(r"[\s?#%]", self.pattern):
            raise ConfigError(
                f"http({route!r}): the path {self.pattern!r} must start with '/' and have no space, '?', '#' or '%'; "
                "requests are decoded before they are matched"
            )
        if self.pattern != bare(self.pattern):
            raise ConfigError(f"http({route!r}): drop the slash at the end; {bare(self.pattern)!r} answers requests with and without it")
        if self.pattern in RESERVED:
            raise ConfigError(f"http({route!r}): {self.pattern} is answered by the router itself; choose another path")
        self._wildcards = Wildcards(self.pattern, "http path")
        self.names = self._wildcards.names

    def captures(self, subject: str) -> Mapping[str, str] | None:
        return captured(self._wildcards, subject) if self.pattern else {}

    def accepts(self, event: Event) -> bool:
        return self.method in ("ANY", event.attributes["method"])

    def auth_in(self, config: HttpConfig) -> Jwt | Authorizer | Literal["api-key"] | None:
        """What callers need; None: the route is open."""
        auth = self.auth or read_auth(config.auth, "[http]") or "none"
        return None if auth == "none" else auth

    def query(self, event: Event) -> Mapping[str, list[str]]:
        return parse_qs(event.attributes["query"], keep_blank_values=True)

    def aws_event(self, events: Sequence[Event]) -> dict[str, Any]:
        make = payload_1 if self.payload == "1.0" else payload_2
        return make(events[0], self.route, self.matches(events[0]) or {})

    def arn(self, function: str, subject: str | None = None) -> str:
        path = re.sub(r"\{.*?\}", "*", self.pattern or "/*") if subject is None else subject
        return f"arn:aws:execute-api:local:{ACCOUNT}:{API}/$default/{'*' if self.method == 'ANY' else self.method}{path}"

    def __str__(self) -> str:
        return f"http {self.route}" + (" (event)" if self.mode == "event" else "")


def http(
    route: str,
    *,
    mode: Literal["request", "event"] = "request",
    payload: Literal["2.0", "1.0"] = "2.0",
    auth: Auth | Mapping[str, Any] | None = None,
    cors: Cors | Mapping[str, Any] | bool | None = None,
) -> HttpTrigger:
    """Start the function with requests to `route`.

    route: `"GET /devices/{device}"`, `"ANY /files/{path+}"`, or `"$default"` for what no other route wants. An exact path
        comes before `{name}`, that before `{name+}`; a method before `ANY`.
    mode: "request" sends what the handler returns; "event" journals the request, answers 202 `{"id": ...}`, then runs.
    payload: which of API Gateway's formats a Lambda function gets.
    auth: who may call it: "api-key", `jwt(...)`, `authorizer(...)`; "none" opens it where `[http] auth` says otherwise.
        What is known of the caller is `event.attributes["authorizer"]`, and `requestContext.authorizer` of a Lambda function.
    cors: which pages of other origins may call it: `Cors(...)`, the same as a table, True for any; False shuts out what
        `[http.cors]` lets in.

    The payload is the body, parameters with defaults are query parameters.
    """
    return HttpTrigger(route, mode, payload, read_auth(auth, f"http({route!r})"), _cors(route, cors))


def _cors(route: str, given: Cors | Mapping[str, Any] | bool | None) -> Cors | Literal[False] | None:
    if given is None or given is False or isinstance(given, Cors):
        return given
    try:
        return Cors() if given is True else msgspec.convert(given, Cors)
    except msgspec.ValidationError as error:
        raise ConfigError(f"http({route!r}): cors: {explain(error)[1]}") from None


def check(config: HttpConfig, pairs: Sequence[tuple[str, HttpTrigger]]) -> None:
    """Two functions can't answer one route; half of what TLS needs is a mistake."""
    if (config.cert_file is None) != (config.key_file is None):
        raise ConfigError(f"[http] {'key_file' if config.key_file is None else 'cert_file'} is missing; TLS needs both")
    read_auth(config.auth, "[http]")
    needs_key = [name for name, trigger in pairs if trigger.auth_in(config) == "api-key"]
    if needs_key and not config.api_keys:
        raise ConfigError(f"function {needs_key[0]!r} wants API keys and there are none; write [http.api_keys.NAME] with a key or hash")
    taken: dict[tuple[str, str], str] = {}
    for name, trigger in pairs:
        key = (trigger.method, re.sub(r"\{\w+", "{", trigger.pattern))
        other = taken.setdefault(key, name)
        if other != name or list(pairs).count((name, trigger)) > 1:
            raise ConfigError(f"functions {other!r} and {name!r} both answer {trigger.route!r}; change the path or method of one")


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


_SAMPLE = "POST /devices/oven?verbose=true"


def sample(
    request: str = _SAMPLE,
    body: str = '{"celsius": 21.5}',
    *,
    payload: Literal["2.0", "1.0"] = "2.0",
    route: str = "",
    header: list[str] = ["Content-Type: application/json"],  # noqa: B006 - read only
) -> dict[str, Any]:
    """What a Lambda function gets; each header is "Name: value". route: "" is the request's own path."""
    route = route or ("POST /devices/{device}" if request == _SAMPLE else request.partition("?")[0])
    method, _, target = request.partition(" ")
    path, _, query = target.partition("?")
    trigger = http(route, payload=payload)
    headers = {"host": "localhost:8080", "user-agent": "sample"}
    headers |= {name.lower(): value for name, value in (text.split(": ", 1) for text in header if ": " in text)}
    asked = {"method": method, "path": path, "query": query, "headers": headers, "protocol": "HTTP/1.1", "ip": "127.0.0.1"}
    kind = headers.get("content-type", "application/octet-stream")
    event = Event("http", "http.request", path, body.encode(), kind, time=1767225600.0, attributes=asked)
    if trigger.matches(event) is None:
        raise ConfigError(f"sample http: {request!r} is not for the route {trigger.route!r}")
    return trigger.aws_event((event,))


@hookimpl
def eventrouter_plugin() -> Plugin:
    # Always there: /healthz and /readyz tell how the router is, whatever starts its functions.
    return Plugin(
        name="http",
        source="eventrouter_http.source:HttpSource",
        always=True,
        config=HttpConfig,
        triggers={"http": http},
        sample=sample,
        check=check,  # type: ignore[arg-type]  # it is only given triggers of its own
    )
