"""What makes a message of a topic start a function."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from eventrouter import Event, Trigger, Wildcards
from eventrouter.errors import ConfigError
from eventrouter_sns import filters
from eventrouter_sns.messages import FIFO, attributes_of, check_name, notification, record, topic_arn


class TopicTrigger(Trigger):
    """`sns(...)` makes it. filter: a compiled policy. delivers: for an endpoint, whose dead letters are notifications."""

    source = "sns"
    service = "sns.amazonaws.com"

    def __init__(self, topic: str, filter: filters.FilterPolicy, *, delivers: bool = False) -> None:
        self._wildcards = Wildcards(topic, "sns topic")
        self.content_pattern = filter.pattern
        self.view = _body if filter.scope == "MessageBody" else _attributes  # type: ignore[method-assign]  # by scope, not by class
        self._delivers = delivers
        self.same = topic, delivers
        self.path = self._wildcards.path
        self.names = self._wildcards.names

    def captures(self, subject: str) -> Mapping[str, str] | None:
        return self._wildcards.match(subject)

    def aws_event(self, events: Sequence[Event]) -> Any:
        if self._delivers:
            return notification(events[0])
        return {"Records": [record(event, self.subscription_arn(event.subject)) for event in events]}

    def subscription_arn(self, topic: str) -> str:
        """The same for as long as the function asks for the same topics."""
        arn = topic_arn(topic)
        return f"{arn}:{uuid.uuid5(uuid.NAMESPACE_URL, arn + self._wildcards.text)}"

    def arn(self, function: str, subject: str | None = None) -> str:
        return topic_arn(re.sub(r"\{.*?\}", "*", self._wildcards.text) if subject is None else subject)

    def __str__(self) -> str:
        return f"sns {self._wildcards.text}{' filtered' if self.content_pattern is not None else ''}"


def _attributes(event: Event) -> Any:
    return filters.plain(attributes_of(event))


def _body(event: Event) -> Any:
    return event.json()


class FifoTopicTrigger(TopicTrigger):
    """Of topics that may keep order."""

    def order_key(self, event: Event) -> str | None:
        group = event.attributes.get("group")
        return None if group is None else f"{event.subject}/{group}"


def topic_trigger(
    topic: str, filter: Mapping[str, Any] | None, scope: filters.Scope, place: str, *, delivers: bool = False
) -> TopicTrigger:
    """Raises ConfigError that begins with `place`."""
    kind = FifoTopicTrigger if topic.endswith((FIFO, "}")) else TopicTrigger
    try:
        policy = filters.compile(filter or {}, scope)
    except ValueError as error:
        raise ConfigError(f"{place}: {error}") from None
    made = kind(topic, policy, delivers=delivers)
    check_name(re.sub(r"\{.*?\}", "x", topic), f"{place}:")
    return made
