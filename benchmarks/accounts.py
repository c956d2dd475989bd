"""What metering and auditing every invocation cost: durable accept, run, complete with them, against the same without."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.harness import Measure, Result, compare
from benchmarks.measure import fresh

COUNT = 40_960
NOTHING = "[metering]\nenabled = false\n"
METERED = ""
AUDITED = "[audit]\ninvocations = true\n"


def _durable(toml: str) -> Measure:
    return fresh("benchmarks.durable:ours", count=COUNT, toml=toml)


def run(rounds: int) -> Iterator[Result]:
    for name, toml, against in (("metering", METERED, "without it"), ("audit", AUDITED, "without it and without metering")):
        yield compare(name, "events/s", _durable(toml), _durable(NOTHING), rounds=rounds, against=f"the same {against}")
