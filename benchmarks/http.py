"""HTTP request mode (parse, route, validate, run under a time-out, answer) and event mode (202 after the fsync)."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.harness import Measure, Result, compare
from benchmarks.served import Server, load, ours, plain

COUNT = 10_000
CONNECTIONS = 32


def run(rounds: int) -> Iterator[Result]:
    with ours() as mine, plain() as theirs:

        def measure(server: Server, path: str, status: int) -> Measure:
            return lambda: load(server.port, path, status, COUNT, CONNECTIONS)

        limit = measure(theirs, "/readings/kitchen", 200)
        for name, path, status in (("http", "/readings/kitchen", 200), ("http-202", "/journal/kitchen", 202)):
            yield compare(
                name, "requests/s", measure(mine, path, status), limit, rounds=rounds, against="plain aiohttp, the same validation"
            )
