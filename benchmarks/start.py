"""From `eventrouter serve` to the first request served, and what it then keeps in memory."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.harness import Result, compare
from benchmarks.served import first_answer, ours, plain, settle

PATH = "/readings/kitchen"


def start_ours() -> float:
    with ours() as server:
        return first_answer(server, PATH)


def start_plain() -> float:
    with plain() as server:
        return first_answer(server, PATH)


def memory_ours() -> float:
    with ours() as server:
        settle()
        return server.resident()


def memory_plain() -> float:
    with plain() as server:
        settle()
        return server.resident()


def run(rounds: int) -> Iterator[Result]:
    yield compare("start", "s", start_ours, start_plain, rounds=rounds, against="plain aiohttp")
    yield compare("memory", "MB", memory_ours, memory_plain, rounds=rounds, against="plain aiohttp")
