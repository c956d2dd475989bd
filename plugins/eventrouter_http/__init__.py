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
from eventrouter.errors import ConfigError
from eventrouter_http.payload import payload_2

__all__ = ["HttpTrigger", "http"]

METHODS = ("ANY", "GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
RESERVED = ("/healthz", "/readyz")


class HttpConfig(msgspec.Struct, kw_only=True):
    """`[http]`. port: 0 picks a free one. body_limit: bytes of a request's body."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8080
    body_limit: Annotated[int, Meta(ge=1)] = 6 * 1024 * 1024


class HttpTrigger(Trigger):
    """`http(...)` makes it. route: as API Gateway's route key. method: "ANY" too. pattern: of the path; "" is `$default`."""

    source = "http"

    def __init__(self, route: str, mode: Literal["request", "event"]) -> None:
        self.route = route
        self.mode = mode
        if mode not in ("request", "event"):
            raise ConfigError(
                f'http({route!r}): mode={mode!r}; write "request" (the caller gets the answer) or "event" (202, then it runs)'
            )
        if route == "$default":
            self.method, self.pattern, self.path = "ANY", "", (Wild.REST,)
            return
        self.method, _, self.pattern = route.partition(" ")
        if self.method not in METHODS:
            raise ConfigError(f'http({route!r}): write "METHOD /path", METHOD one of {", ".join(METHODS)}; or "$default"')
        if not self.pattern.startswith("/") or re.search(r"[\s?#]", self.pattern):
            raise ConfigError(f"http({route!r}): the path {self.pattern!r} must start with '/' and have no space, '?' or '#'")
        if self.pattern in RESERVED:
            raise ConfigError(f"http({route!r}): {self.pattern} is answered by the router itself; choose another path")
        self._wildcards = Wildcards(self.pattern, "http path")
        self.path = self._wildcards.path
        self.names = self._wildcards.names

    def matches(self, event: Event) -> Mapping[str, str] | None:
        if self.method not in ("ANY", event.attributes["method"]):
            return None
        if not self.pattern:
            return {}
        captures = self._wildcards.match(event.subject)
        # Subjects are decoded but for slashes inside a segment.
        return captures and {name: value.replace("%2F", "/").replace("%25", "%") for name, value in captures.items()}

    def query(self, event: Event) -> Mapping[str, list[str]]:
        return parse_qs(event.attributes["query"], keep_blank_values=True)

    def aws_event(self, events: Sequence[Event]) -> dict[str, Any]:
        return payload_2(events[0], self.route, self.matches(events[0]) or {})

    def __str__(self) -> str:
        return f"http {self.route}" + (" (event)" if self.mode == "event" else "")


def http(route: str, *, mode: Literal["request", "event"] = "request") -> HttpTrigger:
    """Start the function with requests to `route`.

    route: `"GET /devices/{device}"`, `"ANY /files/{path+}"`, or `"$default"` for what no other route wants. An exact path
        comes before `{name}`, that before `{name+}`; a method before `ANY`.
    mode: "request" sends what the handler returns; "event" journals the request, answers 202 `{"id": ...}`, then runs.

    The payload is the body, parameters with defaults are query parameters; a Lambda function gets payload 2.0.
    """
    return HttpTrigger(route, mode)


def check(config: HttpConfig, pairs: Sequence[tuple[str, HttpTrigger]]) -> None:
    """Two functions can't answer one route."""
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


@hookimpl
def eventrouter_plugin() -> Plugin:
    # Always there: /healthz and /readyz tell how the router is, whatever starts its functions.
    return Plugin(
        name="http",
        source="eventrouter_http.source:HttpSource",
        always=True,
        config=HttpConfig,
        triggers={"http": http},
        check=check,  # type: ignore[arg-type]  # it is only given triggers of its own
    )
