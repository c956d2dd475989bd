"""Finding, among many rules, those that an event matches: at 10, 1,000 and 10,000 rules, against each rule held in turn."""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter
from typing import Any

from benchmarks.harness import Result, compare
from eventrouter import patterns

EVENTS = 200
SIZES = (10, 1_000, 10_000)


def rule(number: int) -> dict[str, Any]:
    """Rules as people write them: of one source, most by an id, some by a prefix, an ending or a range besides."""
    detail: list[dict[str, Any]] = [
        {"device": [f"device-{number}"]},
        {"device": [f"device-{number}"], "celsius": [{"numeric": [">", 50]}]},
        {"key": [{"prefix": f"in/{number}/"}]},
        {"key": [{"wildcard": f"in/{number}/*.csv"}], "size": [{"exists": True}]},
        {"host": [{"suffix": f".{number}.example.com"}], "state": [{"anything-but": ["stopped"]}]},
    ]
    return {"source": ["plant"], "detail-type": ["Reading", "Alarm"], "detail": detail[number % len(detail)]}


def event(number: int) -> dict[str, Any]:
    detail = {"device": f"device-{number}", "celsius": 91.5, "key": f"in/{number}/a.csv", "size": 10, "host": f"h.{number}.example.com"}
    return {
        "version": "0", "id": f"id-{number}", "source": "plant", "detail-type": "Reading", "account": "000000000000", "region": "local",
        "time": "2026-01-01T00:00:00Z", "resources": ["arn:aws:local"], "detail": {**detail, "state": "running", "tags": ["a", "b"]},
    }  # fmt: skip


def run(rounds: int) -> Iterator[Result]:
    for size in SIZES:
        compiled = [patterns.compile(rule(number)) for number in range(size)]
        rules = patterns.Rules[int]()
        for number, pattern in enumerate(compiled):
            rules.add(pattern, number)
        events = [event(number * 7919 % size) for number in range(EVENTS)]
        few = events[: max(2, EVENTS * 10 // size)]
        assert all(rules.find(each) == [at for at, pattern in enumerate(compiled) if pattern.matches(each)] != [] for each in few)

        def found(rules: patterns.Rules[int] = rules, events: list[dict[str, Any]] = events) -> float:
            began = perf_counter()
            for each in events:
                rules.find(each)
            return (perf_counter() - began) / len(events) * 1e6

        def in_turn(compiled: list[patterns.Pattern] = compiled, events: list[dict[str, Any]] = few) -> float:
            began = perf_counter()
            for each in events:
                for pattern in compiled:
                    pattern.matches(each)
            return (perf_counter() - began) / len(events) * 1e6

        yield compare(f"patterns {size:,}", "µs/event", found, in_turn, rounds=rounds, against="each pattern in turn")
