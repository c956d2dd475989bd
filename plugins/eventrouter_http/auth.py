"""Who may call a route: what can be said of it, and the rules; `guards` asks the world."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import math
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from eventrouter.errors import ConfigError

_SOURCE = re.compile(r"\$(request\.(?P<place>header|querystring)|(?P<table>context|stageVariables))\.(?P<name>[\w.-]+)")
CONTEXT = ("routeKey", "stage", "httpMethod", "path", "identity.sourceIp")
_ADDRESSES = 4096  # of which wrong credentials are counted
_LOCAL = ("localhost", "127.0.0.1", "::1")


class ApiKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[http.api_keys.NAME]`. key: what callers send as `x-api-key`; or hash: its SHA-256 in hexadecimal, so that the file holds no secret.

    rate: requests a second, burst: how many at once; None: no limit.
    """

    key: str | None = None
    hash: str | None = None
    rate: float | None = None
    burst: int | None = None

    def __post_init__(self) -> None:
        if (self.key is None) == (self.hash is None):
            raise ConfigError("[http.api_keys]: write either key or hash for each")
        if self.key is not None and len(self.key) < 16:
            raise ConfigError("[http.api_keys]: a key of less than 16 characters can be guessed; make a longer one")
        if self.hash is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", self.hash):
            raise ConfigError("[http.api_keys]: hash is the key's SHA-256, 64 hexadecimal digits, as of `printf %s KEY | sha256sum`")
        if (self.rate is not None and not self.rate > 0) or (self.burst is not None and (self.rate is None or self.burst < 1)):
            raise ConfigError("[http.api_keys]: rate is more than 0 requests a second; burst is 1 or more, and goes with a rate")

    def __repr__(self) -> str:
        return "ApiKey(...)"

    @property
    def digest(self) -> bytes:
        return bytes.fromhex(self.hash) if self.hash is not None else hashlib.sha256((self.key or "").encode()).digest()


class Jwt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="jwt"):
    """What `jwt(...)` makes."""

    issuer: str
    audience: tuple[str, ...]
    jwks: str | None = None
    scopes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.audience:
            raise ConfigError("jwt: audience is empty; name whom the tokens are made for")
        for url in (self.issuer if self.jwks is None else self.jwks,):
            parts = urlsplit(url)
            if parts.scheme == "http" and parts.hostname not in _LOCAL:
                raise ConfigError(f"jwt: keys from {url} could be anybody's on the way; write https://, or name a file")
        if self.jwks is None and urlsplit(self.issuer).scheme not in ("http", "https"):
            raise ConfigError(f"jwt: issuer {self.issuer!r} is no URL that could tell its keys; name them by jwks=, a URL or a file")


class Authorizer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="authorizer"):
    """What `authorizer(...)` makes."""

    function: str
    identity: tuple[str, ...] = ("$request.header.Authorization",)
    ttl: float = 300.0

    def __post_init__(self) -> None:
        for source in self.identity:
            found = _SOURCE.fullmatch(source)
            if found is None or (found["table"] == "context" and found["name"] not in CONTEXT):
                raise ConfigError(
                    f"authorizer: identity {source!r}: write $request.header.NAME, $request.querystring.NAME, $stageVariables.NAME "
                    f"or $context.NAME, NAME one of {', '.join(CONTEXT)}"
                )
        if not 0 <= self.ttl <= 3600:
            raise ConfigError(f"authorizer: ttl={self.ttl!r}: 0 to 3600 seconds")


Auth = Jwt | Authorizer | Literal["api-key", "none"]


def jwt(*, issuer: str, audience: str | Sequence[str], jwks: str | None = None, scopes: Sequence[str] = ()) -> Jwt:
    """Callers need a JSON Web Token: `Authorization: Bearer TOKEN`.

    issuer: what its `iss` must be. audience: one of which its `aud` (or `client_id`) must be. scopes: of which it must have one.
    jwks: where the keys are, a URL or a file beside the config; None asks the issuer (`/.well-known/openid-configuration`).
    """
    return Jwt(issuer=issuer, audience=(audience,) if isinstance(audience, str) else tuple(audience), jwks=jwks, scopes=tuple(scopes))


def authorizer(function: str, *, identity: Sequence[str] = ("$request.header.Authorization",), ttl: float = 300) -> Authorizer:
    """A function of the app decides: it gets API Gateway's authorizer event and answers `{"isAuthorized": ..., "context": {...}}` or
    with an IAM policy.

    identity: what a request must have for the function to be asked at all. ttl: seconds its answer counts for the same identity.
    """
    return Authorizer(function=function, identity=tuple(identity), ttl=ttl)


def read_auth(given: Any, place: str) -> Auth | None:
    """`auth` as a trigger or the config has it. Raises ConfigError that begins with `place`."""
    if given is None or isinstance(given, Jwt | Authorizer):
        return given
    if isinstance(given, Mapping):
        table = dict(given)
        for name in ("audience", "scopes", "identity"):
            if isinstance(table.get(name), str):
                table[name] = [table[name]]
        try:
            return msgspec.convert(table, Jwt | Authorizer)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{place}: auth: {error}") from None
    if given in ("api-key", "none"):
        return given  # type: ignore[no-any-return]
    raise ConfigError(f'{place}: auth={given!r}; write "api-key", jwt(...), authorizer(...), or "none" for an open route')


class Keys:
    """API keys, and how fast each may be used."""

    def __init__(self, keys: Mapping[str, ApiKey]) -> None:
        self._digests = {name: key.digest for name, key in keys.items()}
        self._buckets = {name: _Bucket(key.rate, key.burst or max(1, math.ceil(key.rate))) for name, key in keys.items() if key.rate}

    def named(self, presented: str) -> str | None:
        """Whose key it is; takes as long whether it is anybody's or not."""
        digest, found = hashlib.sha256(presented.encode(errors="surrogateescape")).digest(), None
        for name, known in self._digests.items():
            if hmac.compare_digest(digest, known):
                found = name
        return found

    def wait(self, name: str, now: float) -> float:
        """Take one of the key's requests; how many seconds to wait when it has none left. now: monotonic seconds."""
        bucket = self._buckets.get(name)
        return 0.0 if bucket is None else bucket.take(now)


class Failures:
    """Counts wrong credentials by the address that they come from. most: a minute; 0: no limit."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def wait(self, address: str, now: float) -> float:
        """How many seconds to wait until another try from there is looked at. now: monotonic seconds."""
        bucket = self._buckets.get(_network(address)) if self._buckets else None
        return 0.0 if bucket is None else bucket.wait(now)

    def failed(self, address: str, now: float) -> None:
        if not self._most:
            return
        place = _network(address)
        bucket = self._buckets.setdefault(place, _Bucket(self._most / 60, self._most))
        self._buckets.move_to_end(place)
        if len(self._buckets) > _ADDRESSES:
            self._buckets.popitem(last=False)
        bucket.take(now)


def _network(address: str) -> str:
    """Of IPv6, the part that one customer has."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(int(ip) >> 64) if ip.version == 6 and ip.ipv4_mapped is None else address


class _Bucket:
    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: int) -> None:
        self._rate, self._burst = rate, burst
        self._tokens, self._at = float(burst), -math.inf

    def take(self, now: float) -> float:
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1:
            return (1 - self._tokens) / self._rate
        self._tokens -= 1
        return 0.0

    def wait(self, now: float) -> float:
        tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        return max(0.0, (1 - tokens) / self._rate)


def identity_of(sources: Sequence[str], event: Mapping[str, Any], query: Mapping[str, Sequence[str]]) -> list[str] | None:
    """The values of an authorizer's identity sources; None when one is missing. event: payload 2.0."""
    context = event["requestContext"]
    known = {
        "routeKey": context["routeKey"],
        "stage": context["stage"],
        "httpMethod": context["http"]["method"],
        "path": context["http"]["path"],
        "identity.sourceIp": context["http"]["sourceIp"],
    }
    values: list[str] = []
    for source in sources:
        found = _SOURCE.fullmatch(source)
        assert found is not None
        name = found["name"]
        if found["place"] == "header":
            value = event["headers"].get(name.lower())
        elif found["place"] == "querystring":
            value = next(iter(query.get(name, ())), None)
        else:
            value = (known if found["table"] == "context" else event.get("stageVariables", {})).get(name)
        if not value:
            return None
        values.append(value)
    return values


class Verdict(msgspec.Struct, frozen=True):
    """What an authorizer function said. allowed: by a simple answer; None: policy's statements decide for each route."""

    allowed: bool | None
    statements: list[Any]
    context: dict[str, Any] | None
    principal: str | None

    def allows(self, arn: str) -> bool:
        """Whether the route of that ARN may be called; a Deny beats every Allow."""
        if self.allowed is not None:
            return self.allowed
        effects = set()
        for statement in self.statements:
            if _names(statement.get("Action"), "execute-api:Invoke", re.IGNORECASE) and _names(statement.get("Resource"), arn):
                effects.add(statement.get("Effect"))
        return "Allow" in effects and "Deny" not in effects


def verdict(answer: Any) -> Verdict:
    """Read an authorizer function's answer, simple or with a policy. Raises ValueError for neither."""
    if not isinstance(answer, dict):
        raise ValueError(f"it answered {type(answer).__name__}, not an object")
    context = answer.get("context")
    if context is not None and not isinstance(context, dict):
        raise ValueError("its context is no object")
    if isinstance(answer.get("isAuthorized"), bool):
        return Verdict(answer["isAuthorized"], [], context, None)
    policy = answer.get("policyDocument")
    statements = policy.get("Statement") if isinstance(policy, dict) else None
    statements = [statements] if isinstance(statements, dict) else statements
    if not isinstance(statements, list) or not all(isinstance(statement, dict) for statement in statements):
        raise ValueError('it has neither a truth value "isAuthorized" nor a "policyDocument" with a "Statement"')
    return Verdict(None, statements, context, answer.get("principalId"))


def _names(patterns: Any, text: str, flags: int = 0) -> bool:
    """Whether one of IAM's patterns (`*`, `?`) is meant for text."""
    for pattern in [patterns] if isinstance(patterns, str) else patterns or ():
        if isinstance(pattern, str):
            regex = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
            if re.fullmatch(regex, text, flags | re.DOTALL):
                return True
    return False
