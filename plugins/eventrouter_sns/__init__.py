"""SNS-like topics: publish a message, and every subscribed function gets it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from eventrouter import Event, Plugin, Trigger, Wildcards, call_from_thread, hookimpl
from eventrouter.errors import ConfigError
from eventrouter_sns.messages import check_name, topic_arn

__all__ = ["Topic", "TopicTrigger", "sns"]


class TopicTrigger(Trigger):
    """`sns(...)` makes it."""

    source = "sns"

    def __init__(self, topic: str) -> None:
        if not topic or "/" in topic:
            raise ConfigError(f"sns({topic!r}): a topic's name is 1 to 256 characters without '/'")
        self._wildcards = Wildcards(topic, "sns topic")
        self.path = self._wildcards.path
        self.names = self._wildcards.names

    def matches(self, event: Event) -> Mapping[str, str] | None:
        return self._wildcards.match(event.subject)

    def aws_event(self, events: Sequence[Event]) -> dict[str, Any]:
        return {"Records": [self._record(event) for event in events]}

    def _record(self, event: Event) -> dict[str, Any]:
        arn = topic_arn(event.subject)
        return {
            "EventSource": "aws:sns",
            "EventVersion": "1.0",
            "EventSubscriptionArn": f"{arn}:{uuid.uuid5(uuid.NAMESPACE_URL, arn + self._wildcards.text)}",
            "Sns": {**event.attributes["sns"], "Message": event.data.decode(errors="replace")},
        }

    def __str__(self) -> str:
        return f"sns {self._wildcards.text}"


def sns(topic: str) -> TopicTrigger:
    """Start the function with every message published to `topic`, at least once.

    topic: a name, or a pattern of names: `"{team}-alerts"` hands `team` to the parameter of that name.
    The payload is the message; a Lambda function gets AWS's SNS event with one record.
    """
    return TopicTrigger(topic)


class Topic:
    """A topic to publish to, from handlers; making one does nothing yet."""

    def __init__(self, name: str) -> None:
        self.name = check_name(name)
        self.sync = SyncTopic(self)

    async def publish(self, message: Any, *, subject: str | None = None, attributes: Mapping[str, Any] | None = None) -> str:
        """Hand a message to every function subscribed to the topic; returns its id once it is on disk.

        message: text goes out as it is, anything else as JSON.
        attributes: texts, numbers, bytes and lists become SNS message attributes of their type.
        Raises NotRunning outside a handler, JournalError when it can't be written, ValueError for what JSON can't say.
        """
        from eventrouter_sns.source import SnsSource  # noqa: PLC0415 - sources load when they are needed

        data = message.encode() if isinstance(message, str) else msgspec.json.encode(message)
        return await SnsSource.current().publish(self.name, data, subject, attributes or {})

    def __repr__(self) -> str:
        return f"Topic({self.name!r})"


class SyncTopic:
    """`Topic.sync`: the same for `def` handlers."""

    def __init__(self, topic: Topic) -> None:
        self._topic = topic

    def publish(self, message: Any, *, subject: str | None = None, attributes: Mapping[str, Any] | None = None) -> str:
        """As `Topic.publish`."""
        topic = self._topic
        return call_from_thread(f"{topic!r}.sync", lambda: topic.publish(message, subject=subject, attributes=attributes))


@hookimpl
def eventrouter_plugin() -> Plugin:
    # Always there: handlers started by any source publish, dead letters come, and `eventrouter send sns` too.
    return Plugin(name="sns", source="eventrouter_sns.source:SnsSource", always=True, destination=check_name, triggers={"sns": sns})
