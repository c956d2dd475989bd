"""`[webhook.NAME]` and `[webhook.polls.NAME]`: read by themselves, so that an error names its table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from eventrouter import json_path
from eventrouter.errors import ConfigError, explain, suggest
from eventrouter_webhook.signatures import PROVIDERS, Provider, Scheme, key_of

S = TypeVar("S", bound=msgspec.Struct)
_GENERIC = ("header", "algorithm", "encoding", "prefix", "timestamp_header", "template", "id", "type")


class WebhookConfig(msgspec.Struct, kw_only=True):
    """`[webhook]`. Its tables are webhooks by name, but for `polls`, whose tables are polls by name."""

    polls: dict[str, dict[str, Any]] = {}
    named: dict[str, dict[str, Any]] = msgspec.field(name="*", default_factory=dict)


class WebhookSettings(msgspec.Struct, kw_only=True):
    """`[webhook.NAME]`.

    provider: "github", "stripe", "slack", "standard" or "hmac"; NAME when not given.
    secrets: one, or several while they are changed; the first one signs what `eventrouter send` sends.
    unsigned: take what anyone sends. tolerance: seconds that a signed time may be off; 0: any age.
    verify_token: answers `GET ?hub.challenge=...` when `hub.verify_token` is this.
    header, algorithm, encoding, prefix, timestamp_header, template: how "hmac" signs, see `Scheme`.
    id, type: of "hmac", where a delivery's id and type are: a header's name, or a JSON path (`$.id`) of the body.
    """

    provider: Provider | None = None
    secrets: list[str] | str = []
    unsigned: bool = False
    tolerance: Annotated[float, Meta(ge=0)] = 300.0
    verify_token: str | None = None
    header: str | None = None
    algorithm: str | None = None
    encoding: str | None = None
    prefix: str | None = None
    timestamp_header: str | None = None
    template: str | None = None
    id: str | None = None
    type: str | None = None


class PollSettings(msgspec.Struct, kw_only=True):
    """`[webhook.polls.NAME]`. headers: sent along. timeout: seconds for an answer. limit: bytes of it. pages: at most, in a row."""

    headers: dict[str, str] = {}
    timeout: Annotated[float, Meta(gt=0, le=3600)] = 30.0
    limit: Annotated[int, Meta(ge=1)] = 16 * 1024 * 1024
    pages: Annotated[int, Meta(ge=1)] = 100


class Webhook(msgspec.Struct, frozen=True):
    """A webhook as configured, checked. label: what its events' types begin with."""

    name: str
    provider: Provider
    secrets: tuple[str, ...]
    tolerance: float | None
    verify_token: str | None
    scheme: Scheme | None
    id: str
    type: str

    @property
    def label(self) -> str:
        return self.name if self.provider in ("standard", "hmac") else self.provider


def webhook_of(config: WebhookConfig, name: str) -> Webhook:
    """Raises ConfigError that names the table, the fault and the remedy; secrets are never in it."""
    place = f"[webhook.{name}]"
    table = next((table for key, table in config.named.items() if key.lower() == name.lower()), {})
    settings = _read(WebhookSettings, table, place)
    provider = settings.provider or name
    if provider not in PROVIDERS:
        known = "" if table else suggest(name, [*config.named, *PROVIDERS])
        raise ConfigError(f"{place} provider: {name!r} is none; write provider = one of {', '.join(map(repr, PROVIDERS))}{known}")
    secrets = [settings.secrets] if isinstance(settings.secrets, str) else settings.secrets
    if settings.unsigned and secrets:
        raise ConfigError(f"{place}: unsigned = true and secrets don't go together; drop one of the two")
    if not secrets and not settings.unsigned:
        variable = f"EVENTROUTER_WEBHOOK__{name.upper()}__SECRETS"
        raise ConfigError(
            f'{place} has no secret: write secrets = ["..."] there, or set {variable}; unsigned = true takes what anyone sends'
        )
    for number, secret in enumerate(secrets, 1):
        try:
            key_of(provider, secret)
        except ValueError as error:
            raise ConfigError(f"{place} secrets: number {number}: {error}") from None
    if settings.verify_token == "":
        raise ConfigError(f"{place} verify_token: it is empty, so anyone knows it")
    generic = {key: value for key in _GENERIC if (value := getattr(settings, key)) is not None}
    if generic and provider != "hmac":
        raise ConfigError(f'{place} {next(iter(generic))}: {provider} has its own; it is for provider = "hmac"')
    id, type = _place(generic.pop("id", ""), f"{place} id"), _place(generic.pop("type", ""), f"{place} type")
    scheme = _scheme(generic, id, place) if provider == "hmac" and not settings.unsigned else None
    return Webhook(name, provider, tuple(secrets), settings.tolerance or None, settings.verify_token, scheme, id, type)


def poll_of(config: WebhookConfig, name: str) -> PollSettings:
    """Raises ConfigError naming the table."""
    table = next((table for key, table in config.polls.items() if key.lower() == name.lower()), {})
    return _read(PollSettings, table, f"[webhook.polls.{name}]")


def _scheme(generic: dict[str, str], id: str, place: str) -> Scheme:
    if "header" not in generic:
        raise ConfigError(f'{place} header: which one has the signature? header = "X-Signature"')
    generic.setdefault("template", "{timestamp}.{body}" if "timestamp_header" in generic else "{body}")
    scheme = _read(Scheme, {**generic, "id_header": "" if id.startswith("$") else id}, place)
    if scheme.template.count("{body}") != 1:
        raise ConfigError(f"{place} template: {scheme.template!r} must have {{body}} once, else the body isn't signed")
    if ("{timestamp}" in scheme.template) != bool(scheme.timestamp_header):
        raise ConfigError(f"{place}: timestamp_header and {{timestamp}} in template go together: a time that isn't signed proves nothing")
    if "{id}" in scheme.template and not scheme.id_header:
        raise ConfigError(f'{place} template: {{id}} is a header\'s value; name it: id = "X-Request-Id"')
    return scheme


def _place(text: str, place: str) -> str:
    if text.startswith("$"):
        try:
            json_path(text)
        except ValueError as error:
            raise ConfigError(f"{place}: {error}") from None
    return text


def _read(kind: type[S], table: Mapping[str, Any], place: str) -> S:
    if not isinstance(table, Mapping):
        raise ConfigError(f"{place} must be a table")
    for key in table:
        if key not in kind.__struct_fields__:
            raise ConfigError(f"{place} unknown key {key!r}{suggest(key, kind.__struct_fields__)}")
    try:
        return msgspec.convert(table, kind, strict=False)  # environment variables are text
    except msgspec.ValidationError as error:
        where, fault = explain(error)
        raise ConfigError(f"{place} {where.removeprefix('$.')}: {fault}") from None
