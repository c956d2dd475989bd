"""JSON Web Tokens, checked by PyJWT against keys that are fetched, kept, and fetched again."""

from __future__ import annotations

import asyncio
import logging
from math import inf
from pathlib import Path
from typing import Any

import jwt
import msgspec
from aiohttp import ClientError, ClientSession, ClientTimeout

from eventrouter import Clock
from eventrouter_http.auth import Jwt

log = logging.getLogger("eventrouter.http")
# None with a shared secret: anybody who may check such a token could make one.
ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
_LEEWAY = 30  # seconds that clocks may differ
_FRESH = 3600.0  # seconds until keys are fetched again though nobody asks for another
_AGAIN = 30.0  # seconds between two fetches, whatever key is asked for
_LARGEST = 1 << 20  # bytes
_PATIENCE = ClientTimeout(total=10)

_FAULTS = {
    jwt.ExpiredSignatureError: "it has expired",
    jwt.ImmatureSignatureError: "it is not valid yet",
    jwt.InvalidIssuerError: "it is of another issuer",
    jwt.InvalidSignatureError: "its signature is wrong",
    jwt.InvalidAlgorithmError: "its algorithm is not the key's",
    jwt.MissingRequiredClaimError: "it has no exp or iss",
}


class BadToken(Exception):
    """Why, in words for the caller."""


class NoKeys(Exception):
    """They can't be had."""


class MissingScope(Exception):
    """The token is good, but not for this."""


class KeySet:
    """The keys of one issuer. source: a URL, a file, or None to ask the issuer where they are."""

    def __init__(self, issuer: str, source: str | None, base: Path, clock: Clock) -> None:
        self._issuer, self._source, self._base, self._clock = issuer, source, base, clock
        self._keys: list[jwt.PyJWK] = []
        self._fetched = self._tried = -inf
        self._fetching = asyncio.Lock()

    async def find(self, kid: str | None) -> jwt.PyJWK:
        """Raises BadToken when there is no such key, NoKeys."""
        if self._clock.monotonic() - self._fetched > _FRESH or self._known(kid) is None:
            await self._fetch()
        key = self._known(kid)
        if key is None:
            raise BadToken("its key is not among the issuer's")
        return key

    def _known(self, kid: str | None) -> jwt.PyJWK | None:
        if kid is None:
            return self._keys[0] if len(self._keys) == 1 else None
        return next((key for key in self._keys if key.key_id == kid), None)

    async def _fetch(self) -> None:
        async with self._fetching:
            if self._clock.monotonic() - self._tried < _AGAIN:  # made-up keys must not make the issuer our victim
                if not self._keys:
                    raise NoKeys
                return
            self._tried = self._clock.monotonic()
            try:
                found = jwt.PyJWKSet.from_dict(msgspec.json.decode(await self._read(), type=dict[str, Any]))
            except (OSError, ClientError, TimeoutError, msgspec.MsgspecError, jwt.PyJWTError, KeyError, ValueError) as error:
                log.error("the keys of %s can't be had: %s", self._issuer, error or type(error).__name__, extra={"action": "http.jwks"})
                if not self._keys:
                    raise NoKeys from None
                return
            self._keys, self._fetched = found.keys, self._tried

    async def _read(self) -> bytes:
        source = self._source
        if source is None:
            told = await _get(f"{self._issuer.rstrip('/')}/.well-known/openid-configuration")
            return await _get(msgspec.json.decode(told, type=dict[str, Any])["jwks_uri"])
        if source.startswith(("http://", "https://")):
            return await _get(source)
        return await asyncio.to_thread((self._base / source).read_bytes)


async def _get(url: str) -> bytes:
    # A redirect could lead from https to anywhere.
    async with ClientSession(timeout=_PATIENCE) as client, client.get(url, allow_redirects=False) as answer:
        if answer.status != 200:
            raise ValueError(f"{url} answers {answer.status}")
        body = await answer.content.read(_LARGEST + 1)
        while len(body) <= _LARGEST and (more := await answer.content.read(_LARGEST)):
            body += more
        if len(body) > _LARGEST:
            raise ValueError(f"{url} is longer than {_LARGEST} bytes")
        return body


async def claims_of(token: str, wanted: Jwt, keys: KeySet) -> tuple[dict[str, Any], list[str] | None]:
    """The token's claims; its scopes, if any are wanted. Raises BadToken, MissingScope, NoKeys."""
    try:
        head = jwt.get_unverified_header(token)
        if head.get("alg") not in ALGORITHMS:
            raise BadToken("its algorithm is not accepted")
        key = await keys.find(head.get("kid"))
        options: Any = {"require": ["exp", "iss"], "verify_aud": False}
        claims = jwt.decode(token, key, algorithms=ALGORITHMS, issuer=wanted.issuer, leeway=_LEEWAY, options=options)
    except jwt.PyJWTError as error:  # its text may hold what the caller sent
        raise BadToken(next((why for kind, why in _FAULTS.items() if isinstance(error, kind)), "it can't be read")) from None
    audience = claims.get("aud", claims.get("client_id"))
    if not any(one in wanted.audience for one in (audience if isinstance(audience, list) else [audience])):
        raise BadToken("it is made for somebody else")
    if not wanted.scopes:
        return claims, None
    said = claims.get("scope", claims.get("scp", ""))
    scopes = said.split() if isinstance(said, str) else said if isinstance(said, list) else []
    if not any(scope in wanted.scopes for scope in scopes):
        raise MissingScope
    return claims, scopes
