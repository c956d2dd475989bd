"""Queues live in the router's journal: sending puts a message there, and there it stays until it was handled, deleted or is dead."""

from __future__ import annotations

from collections.abc import Mapping

import eventrouter
from eventrouter import Event, Router, Source
from eventrouter.errors import ConfigError
from eventrouter_sqs.messages import Message, Value, attributes_of, check, check_name, md5, text_of, typed, values
from eventrouter_sqs.settings import Queues, SqsConfig


class SqsSource(Source[SqsConfig]):
    name = "sqs"

    def __init__(self, config: SqsConfig, router: Router) -> None:
        super().__init__(config, router)
        self._queues = Queues(config)

    def queue(self, subject: str) -> eventrouter.Queue:
        return self._queues(subject)

    def message(self, name: str, message: eventrouter.Message) -> Event:
        """A dead message of another queue goes on as it is, as in AWS; anything else is the body."""
        about = message.about
        if about is not None and about.source == self.name:
            return Event("sqs", "sqs.message", name, about.data, about.content_type, attributes=about.attributes)
        return Event("sqs", "sqs.message", name, message.body, attributes={"messageAttributes": typed(message.attributes)})

    async def put(self, queue: str, body: bytes, attributes: Mapping[str, Value]) -> str:
        """The message's id. Raises ValueError."""
        written = typed(attributes)
        check(body, written)
        # The id is made here and now, so no repeat of it can come: nothing to deduplicate.
        event = Event("sqs", "sqs.message", queue, body, attributes={"messageAttributes": written})
        await self.router.deliver([event])
        return event.id

    async def receive(self, queue: str, count: int, visibility: float | None) -> list[Message]:
        found = await self.router.receive(queue, count, self._queues(queue).hide if visibility is None else visibility)
        return [
            Message(
                id=received.event.id,
                body=text_of(received.event),
                attributes=values(attributes_of(received.event)),
                receives=received.receives,
                sent=received.event.time or 0,
                receipt=f"{queue}/{received.id}/{received.receives}",
            )
            for received in found
        ]

    async def send(self, queue: str, body: str, *, attribute: list[str] = []) -> dict[str, str]:  # noqa: B006 - read only
        """Put a message with this body into the queue; each attribute is K=V."""
        attributes: dict[str, Value] = {}
        for text in attribute:
            key, equals, value = text.partition("=")
            if not equals:
                raise ConfigError(f"send sqs: --attribute {text!r}: write NAME=VALUE")
            attributes[key] = value
        try:
            id = await self.put(check_name(queue, "send sqs:"), body.encode(), attributes)
        except ValueError as error:
            raise ConfigError(f"send sqs: {error}") from None
        return {"MessageId": id, "MD5OfMessageBody": md5(body)}
