"""dramatiq on Redis: two worker processes of four threads, 256 prefetched."""

from __future__ import annotations

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from benchmarks.peers import work

os.environ["dramatiq_queue_prefetch"] = "256"  # noqa: SIM112  dramatiq spells it so
app = RedisBroker(url=work.URL)
dramatiq.set_broker(app)
COMMAND = ["dramatiq", __name__, "--processes", "2", "--threads", "4"]


@dramatiq.actor
def handler(data: str) -> None:
    work.handle(data)


def send(count: int) -> None:
    for _ in range(count):
        handler.send(work.TEXT)
