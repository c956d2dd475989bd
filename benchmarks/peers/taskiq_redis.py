"""taskiq on a Redis stream: 256 messages a read; 64 sends under way; one worker process, uvloop."""

from __future__ import annotations

import asyncio

import uvloop
from taskiq_redis import RedisStreamBroker

from benchmarks.peers import work

UNDER_WAY = 64
COMMAND = ["taskiq", "worker", f"{__name__}:app", "--workers", "1", "--max-async-tasks", "256", "--log-level", "ERROR"]
app = RedisStreamBroker(work.URL, consumer_id="0", xread_count=256)


@app.task
async def handler(data: str) -> None:
    work.handle(data)


def send(count: int) -> None:
    uvloop.run(_send(count))


async def _send(count: int) -> None:
    await app.startup()
    for start in range(0, count, UNDER_WAY):
        await asyncio.gather(*(handler.kiq(work.TEXT) for _ in range(min(UNDER_WAY, count - start))))
    await app.shutdown()
