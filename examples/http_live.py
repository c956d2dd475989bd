"""A job that tells how it goes: an answer in chunks as server-sent events, for callers with an API key, from any page.

curl -N -H "x-api-key: only-for-the-example" http://127.0.0.1:8080/jobs/7/progress
"""

import asyncio
from collections.abc import AsyncIterator

import msgspec

from eventrouter import Response, on
from eventrouter_http import http


class Step(msgspec.Struct):
    job: int
    percent: int


@on(http("GET /jobs/{job}/progress", auth="api-key", cors=True), timeout=60)
async def progress(job: int, pause: float = 0.1) -> Response:
    async def steps() -> AsyncIterator[Step | str]:
        for percent in range(0, 101, 25):
            yield Step(job, percent)  # sent as `data: {"job":7,"percent":25}`
            await asyncio.sleep(pause)
        yield "event: done\ndata: bye\n\n"  # text is sent as it is

    return Response(steps(), headers={"Content-Type": "text/event-stream"})


@on(http("GET /primes"), timeout=60)
async def primes(below: int = 100) -> AsyncIterator[str]:
    """A generator is streamed, too; a caller that goes away ends it."""
    for number in range(2, below):
        if all(number % divisor for divisor in range(2, int(number**0.5) + 1)):
            yield f"{number}\n"
        await asyncio.sleep(0)
