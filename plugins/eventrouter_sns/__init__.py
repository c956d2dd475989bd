"""SNS-like topics: publish a message, and every function, queue and endpoint subscribed to the topic gets it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from eventrouter import Event, Plugin, call_from_thread, hookimpl, permissions
from eventrouter.errors import ConfigError
from eventrouter_sns.deliveries import forwards, handlers
from eventrouter_sns.filters import Scope
from eventrouter_sns.messages import FIFO, check_name, topic_arn, typed
from eventrouter_sns.settings import SnsConfig
from eventrouter_sns.triggers import TopicTrigger, topic_trigger

__all__ = ["Topic", "TopicTrigger", "sns"]


def sns(topic: str, filter: Mapping[str, Any] | None = None, scope: Scope = "MessageAttributes") -> TopicTrigger:
    """Start the function with every message published to `topic`, at least once.

    topic: a name, or a pattern of names: `"{team}-alerts"` hands `team` to the parameter of that name.
    filter: an SNS filter policy: `{"celsius": [{"numeric": [">", 90]}]}`; only messages that match start the function.
    scope: what it is about, "MessageAttributes" or "MessageBody".
    The payload is the message; a Lambda function gets AWS's SNS event with one record. Messages of one group of a topic that
    ends in `.fifo` come one after another, in their order. Raises ConfigError.
    """
    return topic_trigger(topic, filter, scope, f"sns({topic!r})")


class Topic:
    """A topic to publish to, from handlers; making one does nothing yet."""

    def __init__(self, name: str) -> None:
        self.name = check_name(name, "Topic")
        self.sync = SyncTopic(self)

    async def publish(
        self,
        message: Any,
        *,
        subject: str | None = None,
        attributes: Mapping[str, Any] | None = None,
        group: str | None = None,
        dedupe: str | None = None,
    ) -> str:
        """Hand a message to everyone subscribed to the topic; returns its id once it is on disk.

        message: text goes out as it is, anything else as JSON; up to 256 KB with the attributes.
        attributes: texts, numbers, bytes and lists become SNS message attributes of their type; so does
            `{"DataType": "String", "StringValue": "x"}`.
        group, dedupe: for topics that end in `.fifo`: messages of one group keep their order, and one with the `dedupe` of
            another of the last five minutes is a repeat: nobody gets it, and the other's id is returned.
        Raises AccessDenied when the function's role does not allow it, NotRunning outside a handler, JournalError when it can't be
        written, ValueError for what SNS would refuse.
        """
        from eventrouter_sns.source import SnsSource  # noqa: PLC0415 - sources load when they are needed

        permissions.require("sns:Publish", topic_arn(self.name))
        data = message.encode() if isinstance(message, str) else msgspec.json.encode(message)
        return await SnsSource.current().publish(self.name, data, subject, attributes or {}, group, dedupe)

    def __repr__(self) -> str:
        return f"Topic({self.name!r})"


class SyncTopic:
    """`Topic.sync`: the same for `def` handlers."""

    def __init__(self, topic: Topic) -> None:
        self._topic = topic

    def publish(
        self,
        message: Any,
        *,
        subject: str | None = None,
        attributes: Mapping[str, Any] | None = None,
        group: str | None = None,
        dedupe: str | None = None,
    ) -> str:
        """As `Topic.publish`."""
        topic = self._topic
        return call_from_thread(
            f"{topic!r}.sync",
            lambda: topic.publish(message, subject=subject, attributes=attributes, group=group, dedupe=dedupe),
        )


def check_destination(name: str) -> None:
    """A topic that takes dead letters and records. Raises ConfigError."""
    if check_name(name).endswith(FIFO):
        raise ConfigError(f"{name!r} keeps order, and a letter or record has no group; choose a topic that doesn't end in {FIFO!r}")


def sample(
    topic: str = "orders",
    message: str = '{"id": "7"}',
    *,
    subject: str = "a subject",
    attribute: dict[str, str] = {"color": "red"},  # noqa: B006 - read only
) -> Any:
    """The event of a message that is published to TOPIC."""
    kept = {"subject": subject or None, "messageAttributes": typed(attribute)}
    return sns(topic).aws_event([Event("sns", "sns.notification", topic, message.encode(), time=1767225600.0, attributes=kept)])


@hookimpl
def eventrouter_plugin() -> Plugin:
    # Always there: handlers started by any source publish, dead letters come, and `eventrouter send sns` too.
    return Plugin(
        name="sns",
        source="eventrouter_sns.source:SnsSource",
        always=True,
        destination=check_destination,
        sends=("sns:Publish", topic_arn("{}")),
        config=SnsConfig,
        clients=[Topic],
        triggers={"sns": sns},
        handlers=handlers,
        forwards=forwards,
        sample=sample,
    )
