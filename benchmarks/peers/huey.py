"""huey on SQLite with fsync, which is off as it comes. Results are off; four threads take from the file."""

from __future__ import annotations

import huey

from benchmarks.peers import work

app = huey.SqliteHuey(filename=work.URL, fsync=True, strict_fifo=True, results=False)
COMMAND = ["huey.bin.huey_consumer", f"{__name__}.app", "--workers=4", "--delay=0.001", "--max-delay=0.01", "--no-periodic", "--quiet"]


@app.task()
def handler(data: str) -> None:
    work.handle(data)


def send(count: int) -> None:
    for _ in range(count):
        handler(work.TEXT)
