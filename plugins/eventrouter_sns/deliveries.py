"""Subscriptions of queues, HTTP endpoints and functions by name: each is a handler, journalled and retried as any."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from eventrouter import Event, delays, on
from eventrouter_sns.settings import SnsConfig, Subscription, subscriptions
from eventrouter_sns.triggers import topic_trigger

ATTEMPT = 15.0  # seconds that SNS gives an endpoint


def handlers(config: SnsConfig) -> list[Callable[..., Any]]:
    """One for each subscription of the config. Raises ConfigError."""
    return [_handler(subscription) for subscription in subscriptions(config)]


def forwards(config: SnsConfig) -> list[tuple[str, str]]:
    """Where subscriptions send to."""
    return [(f"{one.place}: endpoint", one.config.endpoint) for one in subscriptions(config) if not one.is_http]


def _handler(subscription: Subscription) -> Callable[..., Any]:
    config = subscription.config
    trigger = topic_trigger(config.topic, config.filter, config.scope, f"{subscription.place}: filter", delivers=True)

    async def deliver(event: Event) -> None:
        from eventrouter_sns.source import SnsSource  # noqa: PLC0415 - sources load when they are needed

        await SnsSource.current().hand_over(subscription, event)

    mark = on(
        trigger,
        name=subscription.name,
        description=f"hands messages of {config.topic} to {subscription.protocol}",
        timeout=ATTEMPT + 5,
        retries=len(subscription.delays) if subscription.is_http else 185,
        backoff=delays(*subscription.delays or (0.0,)) if subscription.is_http else delays(*subscription.delays, 20.0),
    )
    return on(dlq=config.dlq)(mark(deliver)) if config.dlq is not None else mark(deliver)
