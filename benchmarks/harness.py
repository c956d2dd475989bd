"""Runs ours and the limit in turn, so that a noisy machine disturbs both alike; figures are medians of rounds."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable

import msgspec

Measure = Callable[[], float]


class Result(msgspec.Struct):
    """ours, limit: medians, in `unit`. ratio: the median of each round's ours / limit. spread: its least and most."""

    name: str
    unit: str
    ours: float
    limit: float
    ratio: float
    rounds: int
    spread: tuple[float, float]
    against: str

    def line(self) -> str:
        return (
            f"{self.name:<14} ours {_figure(self.ours):>9} {self.unit}  limit {_figure(self.limit):>9} {self.unit}  "
            f"ratio {self.ratio:.2f} ({self.spread[0]:.2f} to {self.spread[1]:.2f}, {self.rounds} rounds)  against {self.against}"
        )


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def once(name: str, unit: str, ours: float, limit: float, *, against: str) -> Result:
    """What does not vary from round to round."""
    return Result(name, unit, ours, limit, ours / limit, 1, (ours / limit, ours / limit), against)


def compare(name: str, unit: str, ours: Measure, limit: Measure, *, rounds: int, against: str) -> Result:
    """Measure both alternately, after one round that is not counted."""
    pairs: list[tuple[float, float]] = []
    for number in range(rounds + 1):
        gc.collect()
        first, second = (ours, limit) if number % 2 else (limit, ours)
        one, two = first(), second()
        if number:
            pairs.append((one, two) if number % 2 else (two, one))
    ratios = [mine / theirs for mine, theirs in pairs]
    return Result(
        name=name,
        unit=unit,
        ours=statistics.median(mine for mine, _ in pairs),
        limit=statistics.median(theirs for _, theirs in pairs),
        ratio=statistics.median(ratios),
        rounds=rounds,
        spread=(min(ratios), max(ratios)),
        against=against,
    )
