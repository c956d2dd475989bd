"""FastStream on a Redis stream: published in pipelines of 64, read 256 at a time by a consumer group, acknowledged one by one, uvloop."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, cast

import uvloop
from faststream import FastStream
from faststream.redis import RedisBroker, StreamSub
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from benchmarks.payload import PAYLOAD
from benchmarks.peers import work

BATCH = 64
COMMAND = ["faststream", "run", f"{__name__}:app", "--loop", "uvloop:new_event_loop"]


async def body(message: Any) -> bytes:
    """A decoder of its own: msgspec's decodes and validates in one step, FastStream's json and pydantic in two."""
    return cast("bytes", message.body)


broker = RedisBroker(work.URL, decoder=body, apply_types=False, logger=None)
app = FastStream(broker, logger=None)


READINGS = StreamSub("readings", group="bench", consumer="one", max_records=256, polling_interval=10)


@broker.subscriber(stream=READINGS, max_workers=64)
async def handler(data: bytes) -> None:
    work.handle(data)


def send(count: int) -> None:
    uvloop.run(_send(count))


async def _send(count: int) -> None:
    async with RedisBroker(work.URL, logger=None) as sender, Redis.from_url(work.URL) as connection:
        with suppress(ResponseError):  # the worker was first
            await connection.xgroup_create("readings", "bench", id="0", mkstream=True)
        for start in range(0, count, BATCH):
            async with connection.pipeline(transaction=False) as pipe:
                for _ in range(min(BATCH, count - start)):
                    await sender.publish(PAYLOAD, stream="readings", pipeline=pipe)
                await pipe.execute()
