"""Topics live inside the router: publishing journals the message for every subscribed function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eventrouter import Event, Message, Source
from eventrouter.errors import ConfigError
from eventrouter_sns.messages import notification


class SnsSource(Source[None]):
    name = "sns"

    async def publish(self, topic: str, message: bytes, subject: str | None, attributes: Mapping[str, Any]) -> str:
        event = self._notification(topic, message, subject, attributes)
        await self.router.deliver([event])
        return event.id

    def message(self, name: str, message: Message) -> Event:
        return self._notification(name, message.body, None, message.attributes)

    def _notification(self, topic: str, message: bytes, subject: str | None, attributes: Mapping[str, Any]) -> Event:
        # The id is made here and now, so no repeat of it can come: nothing to deduplicate.
        event = Event("sns", "sns.notification", topic, message, time=(now := self.router.clock.time()))
        event.attributes = {"sns": notification(topic, event.id, now, subject, attributes)}
        return event

    async def send(self, topic: str, message: str, *, attribute: list[str] = [], subject: str = "") -> dict[str, str]:  # noqa: B006 - read only
        """Publish `message`; each attribute is K=V."""
        attributes = {}
        for text in attribute:
            key, equals, value = text.partition("=")
            if not equals:
                raise ConfigError(f"send sns: --attribute {text!r}: write NAME=VALUE")
            attributes[key] = value
        return {"MessageId": await self.publish(topic, message.encode(), subject or None, attributes)}
