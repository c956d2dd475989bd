"""procrastinate on PostgreSQL: deferred 64 at a time, 16 jobs at a time, deleted when done."""

from __future__ import annotations

import procrastinate
import uvloop

from benchmarks.peers import work

BATCH = 64
app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=work.URL, min_size=4, max_size=16))
COMMAND = ["procrastinate", f"--app={__name__}.app", "worker", "--concurrency=16", "--delete-jobs=always"]


@app.task(name="handler")
async def handler(data: str) -> None:
    work.handle(data)


def send(count: int) -> None:
    uvloop.run(_send(count))


async def _send(count: int) -> None:
    async with app.open_async():
        if not await app.check_connection_async():
            await app.schema_manager.apply_schema_async()
        for start in range(0, count, BATCH):
            await handler.batch_defer_async(*({"data": work.TEXT} for _ in range(min(BATCH, count - start))))
