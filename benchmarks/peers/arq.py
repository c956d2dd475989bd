"""arq on Redis: 64 enqueues under way, 256 jobs at a time, no results kept, uvloop."""

from __future__ import annotations

import asyncio
from typing import Any

import uvloop
from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import func

from benchmarks.peers import work

UNDER_WAY = 64
asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())  # arq's command has no option for it
COMMAND = ["arq", f"{__name__}.WorkerSettings"]


async def handler(context: dict[str, Any], data: str) -> None:
    work.handle(data)


class WorkerSettings:
    functions = (func(handler, name="handler", keep_result=0),)
    redis_settings = RedisSettings.from_dsn(work.URL)
    max_jobs = 256
    poll_delay = 0.01
    keep_result = 0


def send(count: int) -> None:
    uvloop.run(_send(count))


async def _send(count: int) -> None:
    pool = await create_pool(WorkerSettings.redis_settings)
    for start in range(0, count, UNDER_WAY):
        await asyncio.gather(*(pool.enqueue_job("handler", work.TEXT) for _ in range(min(UNDER_WAY, count - start))))
    await pool.aclose()
