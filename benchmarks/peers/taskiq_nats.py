"""taskiq on JetStream: pulled 32 at a time; 256 sends under way; two worker processes, uvloop."""

from __future__ import annotations

import asyncio

import uvloop
from taskiq_nats import PullBasedJetStreamBroker

from benchmarks.peers import work

UNDER_WAY = 256
COMMAND = ["taskiq", "worker", f"{__name__}:app", "--workers", "2", "--max-async-tasks", "256", "--log-level", "ERROR"]
app = PullBasedJetStreamBroker(work.URL, stream_name="bench", subject="readings", pull_consume_batch=32, pull_consume_timeout=0.2)


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
