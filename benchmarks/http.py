"""HTTP request mode (parse, route, validate, run under a time-out, answer) and event mode (202 after the fsync).

The value is answers a second to 32 connections that each have one request under way; the latencies are at 100 requests a second.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.harness import Measure, Result, compare
from benchmarks.measure import Measured, Watch
from benchmarks.served import Server, answer_times, load, ours, plain

COUNT = 10_000
CONNECTIONS = 32
LATENCIES = 100


def run(rounds: int) -> Iterator[Result]:
    with ours() as mine, plain() as theirs:

        def measure(server: Server, path: str, status: int) -> Measure:
            def measured() -> Measured:
                with Watch(server.process.pid) as watch:
                    rate = load(server.port, path, status, COUNT, CONNECTIONS)
                measured = watch.rate(COUNT)
                measured.value = rate  # from the moment when all are connected
                measured.latencies = answer_times(server.port, path, status, LATENCIES)
                return measured

            return measured

        limit = measure(theirs, "/readings/kitchen", 200)
        for name, path, status in (("http", "/readings/kitchen", 200), ("http-202", "/journal/kitchen", 202)):
            yield compare(
                name,
                "requests/s",
                measure(mine, path, status),
                limit,
                rounds=rounds,
                against="plain aiohttp, the same codec and validation",
            )
