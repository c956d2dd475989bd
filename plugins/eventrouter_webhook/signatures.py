"""How webhooks are signed: pure rules over headers, the raw body, secrets and the time."""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

import msgspec

Provider = Literal["github", "stripe", "slack", "standard", "hmac"]


class SignatureError(ValueError):
    """The request is not signed as it must be. Its text says why: for the log, never for the sender."""


class Scheme(msgspec.Struct, frozen=True, kw_only=True):
    """How a provider of the kind `hmac` signs.

    header: where the signature is. prefix: what stands before it (`sha256=`). template: what is signed, with `{body}`, and perhaps
    `{timestamp}` and `{id}`. timestamp_header: seconds since 1970. id_header: what `{id}` stands for.
    """

    header: str
    algorithm: Literal["sha1", "sha256", "sha512"] = "sha256"
    encoding: Literal["hex", "base64"] = "hex"
    prefix: str = ""
    template: str = "{body}"
    timestamp_header: str = ""
    id_header: str = ""


class _Claim(msgspec.Struct, frozen=True):
    """What a request says of itself. signatures: as texts of `encoding`."""

    signed: bytes
    signatures: Sequence[str]
    timestamp: str | None = None
    algorithm: str = "sha256"
    encoding: str = "hex"


def verify(
    provider: Provider,
    headers: Mapping[str, str],
    body: bytes,
    secrets: Sequence[str],
    *,
    now: float,
    tolerance: float | None = 300.0,
    scheme: Scheme | None = None,
) -> None:
    """Raise SignatureError unless one of `secrets` signed this body, within `tolerance` seconds of `now` where the time is signed.

    provider: "github" (`X-Hub-Signature-256`), "stripe" (`Stripe-Signature`), "slack" (`X-Slack-Signature`), "standard" (Standard
        Webhooks: `webhook-signature`, or `svix-signature`), "hmac" (as `scheme` says).
    headers: names in any case. tolerance: None accepts any age. Raises ValueError for a secret that can't be one.
    """
    claim = _CLAIMS[provider]({name.lower(): value for name, value in headers.items()}, body, scheme)
    keys = [key_of(provider, secret) for secret in secrets]
    sent = [signature.encode("utf-8", "surrogateescape") for signature in claim.signatures]
    good = False
    for key in keys:
        made = _digest(claim, key)
        for signature in sent:
            good |= hmac.compare_digest(made, signature)  # no early end: which one fits is nobody's business
    if not good:
        raise SignatureError(f"no signature of {len(sent)} fits any of {len(keys)} secrets")
    if claim.timestamp is None or tolerance is None:
        return
    age = now - int(claim.timestamp)
    if abs(age) > tolerance:
        raise SignatureError(f"signed {abs(age):.0f} s {'ago' if age > 0 else 'in the future'}; the tolerance is {tolerance:g} s")


def sign(provider: Provider, body: bytes, secret: str, *, now: float, id: str, scheme: Scheme | None = None) -> dict[str, str]:
    """The headers with which `verify` accepts this body at `now` (seconds since 1970). id: of the delivery, where it is signed."""
    time = str(int(now))
    if provider == "hmac":
        assert scheme is not None
        headers = {scheme.header: scheme.prefix}
        headers |= {scheme.timestamp_header: time} if scheme.timestamp_header else {}
        headers |= {scheme.id_header: id} if scheme.id_header else {}
        name, lead = scheme.header, scheme.prefix
    else:
        name, lead, more = _SIGNED[provider]
        lead = lead.format(time=time)
        headers = {name: lead, **{key: value.format(time=time, id=id) for key, value in more.items()}}
    claim = _CLAIMS[provider]({key.lower(): value for key, value in headers.items()}, body, scheme)
    return {**headers, name: lead + _digest(claim, key_of(provider, secret)).decode()}


def key_of(provider: Provider, secret: str) -> bytes:
    """The bytes that sign. Raises ValueError, without the secret in it, when it can't be one."""
    key = secret.encode()
    if provider == "standard":
        text = secret.removeprefix("whsec_").rstrip("=")
        try:
            key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        except (binascii.Error, ValueError):
            raise ValueError('a secret of Standard Webhooks is base64, with or without "whsec_" before it') from None
    if not key:
        raise ValueError("the secret is empty")
    return key


def _digest(claim: _Claim, key: bytes) -> bytes:
    raw = hmac.digest(key, claim.signed, claim.algorithm)
    return raw.hex().encode() if claim.encoding == "hex" else base64.b64encode(raw)


def _need(headers: Mapping[str, str], name: str) -> str:
    value = headers.get(name.lower())
    if not value:
        raise SignatureError(f"there is no header {name}")
    return value


def _seconds(text: str, where: str) -> str:
    if not re.fullmatch(r"[0-9]{1,12}", text):
        raise SignatureError(f"{where} is no time in seconds: {text[:40]!r}")
    return text


def _after(prefix: str, value: str, where: str) -> str:
    if not value.startswith(prefix):
        raise SignatureError(f"{where} does not begin with {prefix!r}")
    return value[len(prefix) :]


def _github(headers: Mapping[str, str], body: bytes, scheme: Scheme | None) -> _Claim:
    # X-Hub-Signature is SHA-1 and for the old; GitHub sends both, so nothing is lost by not looking at it.
    name = "X-Hub-Signature-256"
    return _Claim(body, [_after("sha256=", _need(headers, name), name)])


def _stripe(headers: Mapping[str, str], body: bytes, scheme: Scheme | None) -> _Claim:
    name = "Stripe-Signature"
    parts = [part.strip().partition("=") for part in _need(headers, name).split(",")]
    times = [value for key, _, value in parts if key == "t"]
    if len(times) != 1:
        raise SignatureError(f"{name} has no time, or several")
    time = _seconds(times[0], f"t of {name}")
    signatures = [value for key, _, value in parts if key == "v1"]
    if not signatures:
        raise SignatureError(f"{name} has no v1 signature")
    return _Claim(f"{time}.".encode() + body, signatures, time)


def _slack(headers: Mapping[str, str], body: bytes, scheme: Scheme | None) -> _Claim:
    time = _seconds(_need(headers, "X-Slack-Request-Timestamp"), "X-Slack-Request-Timestamp")
    signature = _after("v0=", _need(headers, "X-Slack-Signature"), "X-Slack-Signature")
    return _Claim(f"v0:{time}:".encode() + body, [signature], time)


def _standard(headers: Mapping[str, str], body: bytes, scheme: Scheme | None) -> _Claim:
    family = "svix" if "svix-signature" in headers and "webhook-signature" not in headers else "webhook"
    id = _need(headers, f"{family}-id")
    time = _seconds(_need(headers, f"{family}-timestamp"), f"{family}-timestamp")
    parts = [part.partition(",") for part in _need(headers, f"{family}-signature").split()]
    signatures = [value for version, _, value in parts if version == "v1"]
    if not signatures:
        raise SignatureError(f"{family}-signature has no v1 signature")
    return _Claim(f"{id}.{time}.".encode("utf-8", "surrogateescape") + body, signatures, time, encoding="base64")


def _hmac(headers: Mapping[str, str], body: bytes, scheme: Scheme | None) -> _Claim:
    assert scheme is not None
    signature = _after(scheme.prefix, _need(headers, scheme.header), scheme.header)
    time = _seconds(_need(headers, scheme.timestamp_header), scheme.timestamp_header) if scheme.timestamp_header else None
    values = {"{timestamp}": time or "", "{id}": _need(headers, scheme.id_header) if "{id}" in scheme.template else ""}
    parts = re.split(r"(\{(?:body|timestamp|id)\})", scheme.template)
    signed = b"".join(body if part == "{body}" else values.get(part, part).encode("utf-8", "surrogateescape") for part in parts)
    return _Claim(signed, [signature], time, scheme.algorithm, scheme.encoding)


_CLAIMS: Final[Mapping[Provider, Callable[[Mapping[str, str], bytes, Scheme | None], _Claim]]] = {
    "github": _github,
    "stripe": _stripe,
    "slack": _slack,
    "standard": _standard,
    "hmac": _hmac,
}

# For each, the header of the signature, what stands before the signature, and the other headers that are signed.
_SIGNED: Final[Mapping[Provider, tuple[str, str, Mapping[str, str]]]] = {
    "github": ("X-Hub-Signature-256", "sha256=", {}),
    "stripe": ("Stripe-Signature", "t={time},v1=", {}),
    "slack": ("X-Slack-Signature", "v0=", {"X-Slack-Request-Timestamp": "{time}"}),
    "standard": ("webhook-signature", "v1,", {"webhook-id": "{id}", "webhook-timestamp": "{time}"}),
}

PROVIDERS: Final = tuple(_CLAIMS)
