"""Lets requests through to a route, or says why not."""

from __future__ import annotations

import hashlib
import hmac
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from eventrouter import Event, Failed, Interrupted, Router, Succeeded
from eventrouter.errors import EventRouterError, Throttled
from eventrouter_http import HttpConfig, HttpTrigger, is_loopback
from eventrouter_http.answers import problem, throttled
from eventrouter_http.auth import Auth, Authorizer, Failures, Jwt, Keys, Verdict, identity_of, verdict
from eventrouter_http.payload import ACCOUNT, API, authorizer_event

if TYPE_CHECKING:
    from eventrouter_http.tokens import KeySet

_KEPT = 4096  # answers of authorizers

# What is known of who asks, for the event's `authorizer`; or the answer that ends it.
Guard = Callable[[Event, Mapping[str, str]], Awaitable[dict[str, Any] | web.Response]]


class Guards:
    def __init__(self, config: HttpConfig, router: Router) -> None:
        self._router = router
        self._keys = Keys(config.api_keys)
        self._failures = Failures(config.auth_failures)
        self._admin = None if config.admin_token_hash is None else bytes.fromhex(config.admin_token_hash)
        self._open = is_loopback(config.host)
        self._issuers: dict[tuple[str, str | None], KeySet] = {}
        self._verdicts: OrderedDict[bytes, tuple[float, Verdict]] = OrderedDict()

    def of(self, auth: Auth, trigger: HttpTrigger) -> Guard:
        """Raises EventRouterError when what it needs is not there."""
        if isinstance(auth, Jwt):
            return self._limited(self._jwt(auth))
        if isinstance(auth, Authorizer):
            if not self._router.has(auth.function):
                raise EventRouterError(f"{trigger}: authorizer({auth.function!r}): no function has that name; mark one with @on()")
            return self._limited(self._authorizer(auth, trigger))
        return self._limited(self._api_key)

    def _limited(self, guard: Guard) -> Guard:
        """An address that sends wrong credentials again and again has to wait. Without any it is told at once what is needed."""

        async def check(event: Event, captures: Mapping[str, str]) -> dict[str, Any] | web.Response:
            address, now = event.attributes["ip"], self._router.clock.monotonic()
            if wait := self._failures.wait(address, now):
                return _too_many(wait)
            found = await guard(event, captures)
            headers = event.attributes["headers"]
            if isinstance(found, web.Response) and found.status in (401, 403) and ("authorization" in headers or "x-api-key" in headers):
                self._failures.failed(address, now)
            return found

        return check

    def admin(self, request: web.BaseRequest) -> web.Response | None:
        """Why the request may not have what is administrators' business; None: it may."""
        if self._admin is None:
            return problem(403, "this needs an administrator's token, and there is none: [http] admin_token_hash is its SHA-256")
        address, now = request.remote or "", self._router.clock.monotonic()
        if wait := self._failures.wait(address, now):
            return _too_many(wait)
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        digest = hashlib.sha256(token.strip().encode(errors="surrogateescape")).digest()
        if hmac.compare_digest(digest, self._admin) and scheme.lower() == "bearer":
            return None
        if token:
            self._failures.failed(address, now)
        return problem(401, "an administrator's token is needed: send it as Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})

    def told(self, request: web.BaseRequest) -> web.Response | None:
        """The same, where without a token who is on this machine may know, if nobody else can reach it."""
        return None if self._admin is None and self._open else self.admin(request)

    def may_know(self, request: web.BaseRequest) -> bool:
        """Whether the request may see why something is wrong, which may name files and hosts."""
        if self._admin is None:
            return self._open
        return "Authorization" in request.headers and self.admin(request) is None

    async def _api_key(self, event: Event, captures: Mapping[str, str]) -> dict[str, Any] | web.Response:
        name = self._keys.named(event.attributes["headers"].get("x-api-key", ""))
        if name is None:
            return problem(403, "an API key is needed: send it as x-api-key")
        if wait := self._keys.wait(name, self._router.clock.monotonic()):
            return problem(429, "the API key is used too fast", {"Retry-After": str(math.ceil(wait))})
        return {"apiKey": {"name": name}}

    def _jwt(self, wanted: Jwt) -> Guard:
        from eventrouter_http.tokens import BadToken, KeySet, MissingScope, NoKeys, claims_of  # noqa: PLC0415 - few need cryptography

        place = (wanted.issuer, wanted.jwks)
        if place not in self._issuers:
            self._issuers[place] = KeySet(*place, self._router.base, self._router.clock)
        keys = self._issuers[place]
        scope = f' scope="{" ".join(wanted.scopes)}"' if wanted.scopes else ""

        async def check(event: Event, captures: Mapping[str, str]) -> dict[str, Any] | web.Response:
            scheme, _, rest = event.attributes["headers"].get("authorization", "").partition(" ")
            token = rest.strip() if scheme.lower() == "bearer" else scheme
            if not token:
                return problem(401, "a token is needed: send it as Authorization: Bearer TOKEN", {"WWW-Authenticate": f"Bearer{scope}"})
            try:
                claims, scopes = await claims_of(token, wanted, keys)
            except BadToken as error:
                told = f'Bearer{scope and scope + ","} error="invalid_token", error_description="{str(error).replace(chr(34), "")}"'
                return problem(401, f"the token is refused: {error}", {"WWW-Authenticate": told})
            except MissingScope:
                told = f'Bearer{scope}, error="insufficient_scope"'
                return problem(403, f"the token has none of the scopes {', '.join(wanted.scopes)}", {"WWW-Authenticate": told})
            except NoKeys:
                return problem(503, "tokens can't be checked at present", {"Retry-After": "30"})
            return {"jwt": {"claims": claims, "scopes": scopes}}

        return check

    def _authorizer(self, auth: Authorizer, trigger: HttpTrigger) -> Guard:
        async def check(event: Event, captures: Mapping[str, str]) -> dict[str, Any] | web.Response:
            asked = event.attributes
            arn = f"arn:aws:execute-api:local:{ACCOUNT}:{API}/{asked.get('stage', '$default')}/{asked['method']}{event.subject}"
            made = authorizer_event(event, trigger.route, captures, arn, [])
            identity = identity_of(auth.identity, made, trigger.query(event))
            if identity is None:
                return problem(401, f"who asks is not known: send {', '.join(auth.identity)}", {"WWW-Authenticate": "Bearer"})
            found = await self._verdict(auth, {**made, "identitySource": identity})
            if isinstance(found, web.Response):
                return found
            if not found.allows(arn):
                return problem(403, "who asks may not call this")
            known: dict[str, Any] = {"lambda": found.context}
            return known if found.principal is None else {**known, "principalId": found.principal}

        return check

    async def _verdict(self, auth: Authorizer, made: dict[str, Any]) -> Verdict | web.Response:
        identity, now = made["identitySource"], self._router.clock.monotonic()
        # A digest: what callers sent is not kept.
        place = hashlib.sha256(msgspec.json.encode([auth.function, auth.identity, identity])).digest()
        keep = auth.ttl > 0 and auth.identity
        if keep and (kept := self._verdicts.get(place)) is not None and kept[0] > now:
            return kept[1]
        event = Event("invoke", "lambda.invoke", auth.function, msgspec.json.encode(made))
        try:
            outcome = await self._router.call(auth.function, event)
        except Throttled as error:
            return throttled(error)
        if isinstance(outcome, Interrupted):
            return problem(503, "the router is shutting down", {"Retry-After": "1"})
        if isinstance(outcome, Failed) and outcome.error_message == "Unauthorized":  # what AWS's own examples raise
            return problem(401, "who asks is not known", {"WWW-Authenticate": "Bearer"})
        if not isinstance(outcome, Succeeded):  # it is logged
            return problem(500, "whether the call is allowed can't be told")
        try:
            found = verdict(msgspec.to_builtins(outcome.result))  # it may be journalled
        except (TypeError, ValueError) as error:
            extra = {"action": "http.authorizer", "function": auth.function}
            self._router.log.error("authorizer %s: %s", auth.function, error, extra=extra)
            return problem(500, "whether the call is allowed can't be told")
        if keep:
            self._verdicts[place] = (now + auth.ttl, found)
            self._verdicts.move_to_end(place)
            if len(self._verdicts) > _KEPT:
                self._verdicts.popitem(last=False)
        return found


def _too_many(wait: float) -> web.Response:
    return problem(429, "too many wrong credentials came from this address", {"Retry-After": str(math.ceil(wait))})
