"""`[sqs]`, and what it says of each queue."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from eventrouter import Queue, QueueDepth, seconds
from eventrouter.errors import ConfigError, explain, suggest
from eventrouter_sqs.messages import MOST_BYTES, MOST_DELAY, MOST_SECONDS, check_name, is_fifo, queue_arn


class Defaults(msgspec.Struct, kw_only=True):
    """visibility: seconds until a message that was received, or failed, is there again.
    max_receives: how often it is received, then it is a dead letter.
    retention: seconds, or "4d" and the like, that it may stay (60 s to 14 days); what gets older is a dead letter, too.
    delay: seconds until what is sent is there, unless the sender says otherwise.
    """

    visibility: Annotated[float, Meta(ge=0, le=MOST_SECONDS)] = 30.0
    max_receives: Annotated[int, Meta(ge=1, le=1000)] = 10
    retention: str | float = "4d"
    delay: Annotated[float, Meta(ge=0, le=MOST_DELAY)] = 0.0


class SqsConfig(Defaults, kw_only=True):
    """`[sqs]`: what holds for every queue. queues: by name, `[sqs.queues.NAME]`, what holds for that one, and its `dlq`."""

    queues: dict[str, dict[str, Any]] = {}  # each is read by itself, so that an error names its queue


class QueueConfig(Defaults, kw_only=True):
    """`[sqs.queues.NAME]`. dlq: the queue that a copy of each dead letter goes to.

    content_dedupe: of a FIFO queue: messages of the same body are repeats, unless the sender says otherwise.
    """

    dlq: str | None = None
    content_dedupe: bool = False


class Settings(Queue, frozen=True):
    """How a queue is treated."""

    delay: float = 0
    content_dedupe: bool = False


class Queues:
    """How each queue is treated: `Queues(config)("jobs")`. Raises ConfigError naming table, key and remedy."""

    def __init__(self, config: SqsConfig) -> None:
        shared = {key: getattr(config, key) for key in Defaults.__struct_fields__}
        self._others = _queue(QueueConfig(**shared), "[sqs]", "")
        self._named = {name: _read(name, {**shared, **table}) for name, table in config.queues.items()}
        for name in self._named:
            self._follow(name)

    def __call__(self, name: str) -> Settings:
        return self._named.get(name, self._others)

    @property
    def look(self) -> float:
        """Seconds between two looks for what has stayed too long."""
        shortest = min(queue.keep for queue in (self._others, *self._named.values()))
        return min(3600.0, max(10.0, shortest / 60))

    def _follow(self, name: str) -> None:
        way = [name]
        while (dlq := self(way[-1]).dlq) is not None:
            way.append(dlq.partition(":")[2])
            if way.count(way[-1]) > 1:
                raise ConfigError(
                    f"[sqs.queues.{name}] dlq: dead messages would go round, {' -> '.join(way)}; one of them must have no dlq"
                )


def attributes(name: str, queue: Settings, depth: QueueDepth) -> dict[str, str]:
    """As GetQueueAttributes of SQS answers."""
    found = {
        "QueueArn": queue_arn(name),
        "ApproximateNumberOfMessages": str(depth.available),
        "ApproximateNumberOfMessagesNotVisible": str(depth.held),
        "ApproximateNumberOfMessagesDelayed": str(depth.delayed),
        "VisibilityTimeout": f"{queue.hide:g}",
        "DelaySeconds": f"{queue.delay:g}",
        "MessageRetentionPeriod": f"{queue.keep:.0f}",
        "MaximumMessageSize": str(MOST_BYTES),
        "ReceiveMessageWaitTimeSeconds": "0",
    }
    if queue.dlq is not None:
        policy = {"deadLetterTargetArn": queue_arn(queue.dlq.partition(":")[2]), "maxReceiveCount": queue.receives}
        found["RedrivePolicy"] = msgspec.json.encode(policy).decode()
    if is_fifo(name):
        found |= {"FifoQueue": "true", "ContentBasedDeduplication": str(queue.content_dedupe).lower()}
    return found


def _read(name: str, table: dict[str, Any]) -> Settings:
    place = f"[sqs.queues.{name}]"
    check_name(name, "[sqs.queues]")
    for key in table:
        if key not in QueueConfig.__struct_fields__:
            raise ConfigError(f"{place} unknown key {key!r}{suggest(key, QueueConfig.__struct_fields__)}")
    try:
        return _queue(msgspec.convert(table, QueueConfig, strict=False), place, name)  # environment variables are text
    except msgspec.ValidationError as error:
        path, fault = explain(error)
        raise ConfigError(f"{place} {path.removeprefix('$.')}: {fault}") from None


def _queue(config: QueueConfig, place: str, name: str) -> Settings:
    keep = seconds(config.retention, f"{place} retention")
    if not 60 <= keep <= 14 * 86_400:
        raise ConfigError(f"{place} retention={config.retention!r}: from 60 seconds to 14 days")
    dlq = None if config.dlq is None else f"sqs:{check_name(config.dlq, f'{place} dlq')}"
    if config.dlq is not None and is_fifo(config.dlq) != is_fifo(name):
        raise ConfigError(f"{place} dlq={config.dlq!r}: the dead-letter queue of a FIFO queue is a FIFO queue, and of no other")
    if config.content_dedupe and not is_fifo(name):
        raise ConfigError(f"{place} content_dedupe: only FIFO queues know repeats; their names end in .fifo")
    return Settings(config.max_receives, config.visibility, keep, dlq, config.delay, config.content_dedupe)
