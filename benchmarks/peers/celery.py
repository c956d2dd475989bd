"""celery on Redis: two worker processes, 128 prefetched for each, acknowledged after they ran, no results, no gossip."""

from __future__ import annotations

import celery

from benchmarks.peers import work

app = celery.Celery("bench", broker=work.URL)
app.conf.update(task_ignore_result=True, task_acks_late=True, worker_prefetch_multiplier=128, worker_hijack_root_logger=False)
_QUIET = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
COMMAND = ["celery", "-A", f"{__name__}:app", "worker", "--concurrency=2", *_QUIET]


@app.task(name="handler")
def handler(data: str) -> None:
    work.handle(data)


def send(count: int) -> None:
    with app.producer_pool.acquire(block=True) as producer:
        for _ in range(count):
            handler.apply_async((work.TEXT,), producer=producer)
