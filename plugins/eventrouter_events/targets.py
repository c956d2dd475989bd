"""Rules that send events on to HTTP endpoints, as CloudEvents; each is a function as any other, with retries and dead letters."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from eventrouter import Event, Reject, Retry, Trigger, exponential, on
from eventrouter.errors import ConfigError

if TYPE_CHECKING:
    from eventrouter_events import Target

# What EventBridge tries again; any other 4xx would be the same the next time.
_AGAIN: Final = frozenset({401, 407, 408, 409, 425, 429})


def handler(target: Target, trigger: Trigger) -> Callable[..., Any]:
    """The function that delivers to a target."""
    parts = urlsplit(target.url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"[[events.targets]] url: {parts.scheme}://{parts.hostname or ''}: write http:// or https:// and a host")
    # The rest of an URL may be secret, but two targets of one host must not take each other's events after a restart.
    name = target.name or f"events to {parts.hostname} {hashlib.sha256(target.url.encode()).hexdigest()[:8]}"

    async def deliver(event: Event) -> None:
        from eventrouter_events.source import EventsSource  # noqa: PLC0415 - sources load when they are needed

        status, after = await EventsSource.current().post(target.url, event, target.mode, target.headers)
        if 200 <= status < 300:
            return
        why = f"{name}: HTTP {status}"
        if 400 <= status < 500 and status not in _AGAIN:
            raise Reject(why)
        if after is not None:
            raise Retry(after, why)
        raise OSError(why)

    description = f"delivers to {parts.scheme}://{parts.hostname}"
    mark = on(
        trigger, name=name, description=description, timeout=target.timeout,
        retries=185, backoff=exponential(1, 2, 600), max_age=86_400,
    )  # fmt: skip
    return mark(deliver)
