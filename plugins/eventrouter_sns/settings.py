"""`[sns]`: topics, and who is subscribed to them beside functions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from eventrouter.errors import ConfigError
from eventrouter_sns.filters import Scope
from eventrouter_sns.messages import FIFO, check_name

MOST_SECONDS: Final = 3600  # of all delays together
Count = Annotated[int, Meta(ge=0, le=100)]
Delay = Annotated[float, Meta(ge=1, le=MOST_SECONDS)]


class RetryConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What happens when an HTTP endpoint fails: `retries` in all, in SNS's four phases.

    First `immediate` ones without a delay, then `pre` ones `min_delay` seconds apart, then, by `function`, from `min_delay` to
    `max_delay`, and at last `post` ones `max_delay` seconds apart. All delays together are at most an hour.
    """

    retries: Count = 3
    immediate: Count = 0
    pre: Count = 0
    post: Count = 0
    min_delay: Delay = 20.0
    max_delay: Delay = 20.0
    function: Literal["linear", "arithmetic", "geometric", "exponential"] = "linear"

    def delays(self) -> list[float]:
        """Seconds before each retry. Raises ValueError."""
        growing = self.retries - self.immediate - self.pre - self.post
        if growing < 0:
            raise ValueError(f"retries = {self.retries} is less than immediate, pre and post together; raise it")
        if self.min_delay > self.max_delay:
            raise ValueError(f"min_delay = {self.min_delay:g} is more than max_delay = {self.max_delay:g}; swap them")
        made = [
            *[0.0] * self.immediate,
            *[self.min_delay] * self.pre,
            *(self._grown(step / max(growing - 1, 1), growing) for step in range(growing)),
            *[self.max_delay] * self.post,
        ]
        if sum(made) > MOST_SECONDS:
            raise ValueError(f"the delays come to {sum(made):g} s, more than {MOST_SECONDS}; retry less often, or sooner")
        return made

    def _grown(self, part: float, steps: int) -> float:
        """part: 0 for the first delay of the phase, 1 for its last."""
        low, high = self.min_delay, self.max_delay
        if self.function == "geometric":
            return float(low * (high / low) ** part)
        if self.function == "exponential" and steps > 1:  # each step is twice the one before it
            part = (2 ** (part * (steps - 1)) - 1) / (2 ** (steps - 1) - 1)
        elif self.function == "arithmetic":  # each step is longer than the one before it by the same
            part = part * (part * (steps - 1) + 1) / steps
        return low + (high - low) * part


class SubscriptionConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[sns.subscriptions]]`. endpoint: "https://...", "sqs:NAME" or "lambda:NAME". filter, scope: which messages it wants.

    raw: the message alone, without the notification round it. confirmed: an HTTP endpoint that isn't asked whether it wants them.
    retry: of an HTTP endpoint. dlq: where a copy of what could not be delivered goes. name: in lists and dead letters.
    """

    topic: str
    endpoint: str
    filter: dict[str, Any] | None = None
    scope: Scope = "MessageAttributes"
    raw: bool = False
    confirmed: bool = False
    retry: RetryConfig | None = None
    dlq: str | None = None
    name: str | None = None


class TopicConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[sns.topics."NAME.fifo"]`. content_dedupe: messages without `dedupe=` are repeats when they are equal."""

    content_dedupe: bool = False


class SnsConfig(msgspec.Struct, kw_only=True):
    """`[sns]`. url: where endpoints reach this router, when not where it listens: "https://events.example.com".

    signature_version: of what goes to endpoints: 1 signs with SHA-1, 2 with SHA-256.
    """

    url: str = ""
    signature_version: Literal[1, 2] = 1
    topics: dict[str, TopicConfig] = {}
    subscriptions: list[SubscriptionConfig] = []


class Subscription(msgspec.Struct, frozen=True):
    """A checked one. place: in the config. name: what tells it from others, fit for all eyes.

    protocol: "http", "https", "sqs" or "lambda". delays: seconds before each retry.
    """

    place: str
    name: str
    protocol: str
    config: SubscriptionConfig
    delays: tuple[float, ...]

    @property
    def is_http(self) -> bool:
        return self.protocol.startswith("http")


def subscriptions(config: SnsConfig) -> Iterator[Subscription]:
    """Raises ConfigError."""
    for name in config.topics:
        if not check_name(name, "[sns.topics]").endswith(FIFO):
            raise ConfigError(f"[sns.topics] {name!r}: only topics that end in '.fifo' have settings")
    seen: set[tuple[str, str]] = set()
    for number, one in enumerate(config.subscriptions, 1):
        place = f"[[sns.subscriptions]] number {number}"
        check_name(one.topic, f"{place}: topic")
        protocol, shown = _endpoint(one.endpoint, place)
        if (one.topic, one.endpoint) in seen:
            raise ConfigError(f'{place}: {shown} is subscribed to {one.topic!r} twice; remove one, and join their filters with "$or"')
        seen.add((one.topic, one.endpoint))
        try:
            delays = _delays(one, protocol)
        except ValueError as error:
            raise ConfigError(f"{place}: {error}") from None
        yield Subscription(place, one.name or f"sns {one.topic} to {shown}", protocol, one, delays)


def _endpoint(endpoint: str, place: str) -> tuple[str, str]:
    """Its protocol, and the endpoint without what may be secret."""
    protocol, _, name = endpoint.partition(":")
    if protocol in ("sqs", "lambda") and name:
        return protocol, endpoint
    try:
        url = urlsplit(endpoint)
        host, port = url.hostname, url.port
    except ValueError:
        host = None
    if protocol not in ("http", "https") or not host:
        raise ConfigError(f'{place}: endpoint: write "https://host/path", "sqs:NAME" or "lambda:NAME"')
    shown = f"[{host}]" if ":" in host else host
    return protocol, f"{protocol}://{shown}{f':{port}' if port else ''}{url.path}"


def _delays(one: SubscriptionConfig, protocol: str) -> tuple[float, ...]:
    """Seconds before each retry. Raises ValueError for what can't stand together."""
    is_http, fifo = protocol.startswith("http"), one.topic.endswith(FIFO)
    if fifo and protocol != "sqs":
        raise ValueError(f"a topic that keeps order goes to queues, and to functions that have sns({one.topic!r}); {protocol} keeps none")
    if protocol == "sqs" and one.endpoint.endswith(FIFO) and not fifo:
        raise ValueError("a queue that keeps order takes messages of a topic that does; name both '.fifo', or neither")
    if protocol == "lambda" and one.raw:
        raise ValueError("raw: a function gets AWS's event; sns(...) on a typed function hands it the message alone")
    if not is_http and (one.confirmed or one.retry is not None):
        raise ValueError(f"confirmed and retry are for HTTP endpoints, not for {protocol}")
    if is_http:
        return tuple((one.retry or RetryConfig()).delays())
    return (*[0.0] * 3, 1.0, 1.0, *(1 + 19 * step / 9 for step in range(10)))  # those of SNS; then every 20 s
