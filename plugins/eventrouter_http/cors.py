"""Cross-origin requests, as API Gateway's HTTP APIs answer them: by the gateway, from settings."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from eventrouter.errors import ConfigError

_NONE: Mapping[str, str] = {}


class Cors(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which pages of other origins may call a route, and how; `*` is any.

    allow_origins: `https://example.com`, or `https://*` for all of a scheme. allow_methods, allow_headers: of requests.
    expose_headers: of answers, what the page may read. max_age: seconds a browser may remember this.
    allow_credentials: with cookies and the like; goes with named origins only.
    """

    allow_origins: tuple[str, ...] = ("*",)
    allow_methods: tuple[str, ...] = ("*",)
    allow_headers: tuple[str, ...] = ("*",)
    expose_headers: tuple[str, ...] = ()
    max_age: int = 0
    allow_credentials: bool = False

    def __post_init__(self) -> None:
        for origin in self.allow_origins:
            if not re.fullmatch(r"\*|[a-z][a-z0-9+.-]*://(\*|[^/*\s]+)", origin):
                raise ConfigError(f'cors: allow_origins: {origin!r} is no origin; write "https://example.com", without a path, or "*"')
        if self.allow_credentials and any(origin.endswith("*") for origin in self.allow_origins):
            raise ConfigError("cors: allow_credentials goes with named origins only; name them in allow_origins instead of `*`")
        if not self.allow_origins:
            raise ConfigError("cors: allow_origins is empty; name an origin, or leave cors away")

    def allows(self, origin: str) -> bool:
        return any(
            allowed in ("*", origin) or (allowed.endswith("://*") and origin.startswith(allowed[:-1])) for allowed in self.allow_origins
        )

    def answer(self, origin: str | None) -> Mapping[str, str]:
        """Headers for the answer to a request from `origin`."""
        if origin is None or not self.allows(origin):
            return _NONE if "*" in self.allow_origins else {"Vary": "Origin"}
        said = self._origin(origin)
        if self.expose_headers:
            said["Access-Control-Expose-Headers"] = ",".join(self.expose_headers)
        return said

    def preflight(self, origin: str, method: str, headers: str) -> Mapping[str, str]:
        """Headers for the answer to a browser that asks first. With `*` it is told what it asks for: credentials void a literal `*`."""
        if not self.allows(origin):
            return self.answer(origin)
        said = self._origin(origin)
        said["Access-Control-Allow-Methods"] = method if "*" in self.allow_methods else ",".join(self.allow_methods)
        if allowed := headers if "*" in self.allow_headers else ",".join(self.allow_headers):
            said["Access-Control-Allow-Headers"] = allowed
        if self.max_age:
            said["Access-Control-Max-Age"] = str(self.max_age)
        return said

    def _origin(self, origin: str) -> dict[str, str]:
        if "*" in self.allow_origins:
            return {"Access-Control-Allow-Origin": "*"}
        said = {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}
        if self.allow_credentials:
            said["Access-Control-Allow-Credentials"] = "true"
        return said
