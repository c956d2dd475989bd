"""FastStream on JetStream: 256 publishes under way, pulled 256 at a time, 64 handlers at a time, uvloop."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import nats
import uvloop
from faststream import FastStream
from faststream.nats import JStream, NatsBroker, PullSub

from benchmarks.payload import PAYLOAD
from benchmarks.peers import work

UNDER_WAY = 256
COMMAND = ["faststream", "run", f"{__name__}:app", "--loop", "uvloop:new_event_loop"]


async def body(message: Any) -> bytes:
    """A decoder of its own: msgspec's decodes and validates in one step, FastStream's json and pydantic in two."""
    return cast("bytes", message.body)


broker = NatsBroker(work.URL, decoder=body, apply_types=False, logger=None)
app = FastStream(broker, logger=None)


@broker.subscriber("readings", stream=JStream("bench"), durable="bench", pull_sub=PullSub(batch_size=256, timeout=0.02), max_workers=64)
async def handler(data: bytes) -> None:
    work.handle(data)


def send(count: int) -> None:
    uvloop.run(_send(count))


async def _send(count: int) -> None:
    async with NatsBroker(work.URL, logger=None) as sender, await nats.connect(work.URL) as connection:
        await connection.jetstream().add_stream(name="bench", subjects=["readings"])  # as the worker does, whoever is first
        for start in range(0, count, UNDER_WAY):
            await asyncio.gather(
                *(sender.publish(PAYLOAD, "readings", stream="bench", timeout=10) for _ in range(min(UNDER_WAY, count - start)))
            )
