"""`[sqs]`, and what it says of each queue."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from eventrouter import Queue, seconds
from eventrouter.errors import ConfigError, explain, suggest
from eventrouter_sqs.messages import MOST_SECONDS, check_name


class Defaults(msgspec.Struct, kw_only=True):
    """visibility: seconds until a message that was received, or failed, is there again.
    max_receives: how often it is received, then it is a dead letter.
    retention: seconds, or "4d" and the like, that it may stay (60 s to 14 days); what gets older is a dead letter, too.
    """

    visibility: Annotated[float, Meta(ge=0, le=MOST_SECONDS)] = 30.0
    max_receives: Annotated[int, Meta(ge=1, le=1000)] = 10
    retention: str | float = "4d"


class SqsConfig(Defaults, kw_only=True):
    """`[sqs]`: what holds for every queue. queues: by name, `[sqs.queues.NAME]`, what holds for that one, and its `dlq`."""

    queues: dict[str, dict[str, Any]] = {}  # each is read by itself, so that an error names its queue


class QueueConfig(Defaults, kw_only=True):
    """`[sqs.queues.NAME]`. dlq: the queue that a copy of each dead letter goes to."""

    dlq: str | None = None


class Queues:
    """How each queue is treated: `Queues(config)("jobs")`. Raises ConfigError naming table, key and remedy."""

    def __init__(self, config: SqsConfig) -> None:
        shared = {key: getattr(config, key) for key in Defaults.__struct_fields__}
        self._others = _queue(QueueConfig(**shared), "[sqs]")
        self._named = {name: _read(name, {**shared, **table}) for name, table in config.queues.items()}
        for name in self._named:
            self._follow(name)

    def __call__(self, name: str) -> Queue:
        return self._named.get(name, self._others)

    def _follow(self, name: str) -> None:
        way = [name]
        while (dlq := self(way[-1]).dlq) is not None:
            way.append(dlq.partition(":")[2])
            if way.count(way[-1]) > 1:
                raise ConfigError(
                    f"[sqs.queues.{name}] dlq: dead messages would go round, {' -> '.join(way)}; one of them must have no dlq"
                )


def _read(name: str, table: dict[str, Any]) -> Queue:
    place = f"[sqs.queues.{name}]"
    check_name(name, "[sqs.queues]")
    for key in table:
        if key not in QueueConfig.__struct_fields__:
            raise ConfigError(f"{place} unknown key {key!r}{suggest(key, QueueConfig.__struct_fields__)}")
    try:
        return _queue(msgspec.convert(table, QueueConfig, strict=False), place)  # environment variables are text
    except msgspec.ValidationError as error:
        path, fault = explain(error)
        raise ConfigError(f"{place} {path.removeprefix('$.')}: {fault}") from None


def _queue(config: QueueConfig, place: str) -> Queue:
    keep = seconds(config.retention, f"{place} retention")
    if not 60 <= keep <= 14 * 86_400:
        raise ConfigError(f"{place} retention={config.retention!r}: from 60 seconds to 14 days")
    dlq = None if config.dlq is None else f"sqs:{check_name(config.dlq, f'{place} dlq')}"
    return Queue(config.max_receives, config.visibility, keep, dlq)
