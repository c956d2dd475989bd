"""Runs ours, the limit and the peers by turns, so that a noisy machine disturbs all alike; figures are medians of rounds."""

from __future__ import annotations

import gc
import os
import platform
import shutil
import statistics
import subprocess
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from benchmarks.measure import Measured

Measure = Callable[[], Measured | float]


class Side(msgspec.Struct, omit_defaults=True):
    """What was measured of one side, over all rounds.

    median, least, most: in the benchmark's unit. cpu: median CPU seconds per 100,000 events of the processes that do the work. rss:
    their peak, MB. latency: 50th and 99th percentile, ms. ratio: median, least and most of each round's ours / this.
    """

    median: float
    least: float
    most: float
    cpu: float | None = None
    rss: float | None = None
    latency: tuple[float, float] | None = None
    ratio: tuple[float, float, float] | None = None


class Result(msgspec.Struct):
    """ours, limit, peers: medians, in `unit`. ratio: the median of each round's ours / limit. spread: its least and most.

    sides: all that was measured, of "ours", "limit" and each peer. missing: peers that could not be measured, and why.
    versions: of the peers' packages. machine: what else the figures depend on.
    """

    name: str
    unit: str
    ours: float
    limit: float
    ratio: float
    peers: dict[str, float]
    rounds: int
    spread: tuple[float, float]
    against: str
    sides: dict[str, Side] = {}
    missing: dict[str, str] = {}
    versions: dict[str, str] = {}
    machine: str = ""

    def line(self) -> str:
        row = "  {:<32} {:>10} {:>10} {:>10}  {:>22} {:>10} {:>8} {:>7} {:>7}\n".format
        least, most = self.spread
        text = f"{self.name}: ratio {figure(self.ratio)} ({figure(least)} to {figure(most)}, {self.rounds} rounds) against {self.against}\n"
        text += row("", self.unit, "least", "most", "ours / it", "CPU s/100k", "peak MB", "p50 ms", "p99 ms")
        for name, side in self.sides.items():
            ratio = "" if side.ratio is None else "{} ({} to {})".format(*map(figure, side.ratio))
            cells = map(figure, (side.cpu, side.rss, *(side.latency or (None, None))))
            text += row(name, figure(side.median), figure(side.least), figure(side.most), ratio, *cells)
        return text + "".join(f"  {name:<32} MISSING: {why}\n" for name, why in self.missing.items())


def figure(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def once(name: str, unit: str, ours: float, limit: float, *, against: str) -> Result:
    """What does not vary from round to round."""
    return compare(name, unit, lambda: ours, lambda: limit, rounds=1, against=against)


def compare(
    name: str,
    unit: str,
    ours: Measure,
    limit: Measure,
    *,
    rounds: int,
    against: str,
    peers: Mapping[str, Measure] = {},
    missing: Mapping[str, str] = {},
    versions: Mapping[str, str] = {},
) -> Result:
    """Measure all by turns, each round in the reverse order of the one before.

    Before more than one round, there is one of ours and the limit that is not counted. A peer that fails is `missing`.
    """
    measures = {"ours": ours, "limit": limit, **peers}
    taken: dict[str, list[Measured]] = {side: [] for side in measures}
    absent = dict(missing)
    order = list(measures)
    for number in range(0 if rounds > 1 else 1, rounds + 1):
        order.reverse()
        for side in order:
            if side in absent or (number == 0 and side in peers):
                continue
            gc.collect()
            try:
                measured = measures[side]()
            except (RuntimeError, OSError) as error:
                if side not in peers:
                    raise
                absent[side] = str(error)  # told with the result: the others' figures stand without it
                continue
            if number:
                taken[side].append(measured if isinstance(measured, Measured) else Measured(measured))
    mine = taken["ours"]
    sides = {side: _side(mine, rows, side) for side, rows in taken.items() if side not in absent}
    ratio = sides["limit"].ratio
    assert ratio is not None
    return Result(
        name=name,
        unit=unit,
        ours=sides["ours"].median,
        limit=sides["limit"].median,
        ratio=ratio[0],
        peers={side: sides[side].median for side in peers if side in sides},
        rounds=rounds,
        spread=ratio[1:],
        against=against,
        sides=sides,
        missing=absent,
        versions=dict(versions),
        machine=machine(),
    )


def _side(mine: list[Measured], rows: list[Measured], name: str) -> Side:
    values = [row.value for row in rows]
    ratios = [our.value / value for our, value in zip(mine, values, strict=True)]
    cpu = [row.cpu for row in rows if row.cpu is not None]
    rss = [row.rss for row in rows if row.rss is not None]
    latencies = [each for row in rows for each in row.latencies]
    return Side(
        median=statistics.median(values),
        least=min(values),
        most=max(values),
        cpu=statistics.median(cpu) if cpu else None,
        rss=max(rss) if rss else None,
        latency=(percentile(latencies, 50), percentile(latencies, 99)) if latencies else None,
        ratio=None if name == "ours" else (statistics.median(ratios), min(ratios), max(ratios)),
    )


def percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else values[0]


@cache
def machine() -> str:
    """What it is, and the versions of what is measured."""
    info = Path("/proc/cpuinfo")
    models = [line.partition(": ")[2] for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    parts = [f"{os.cpu_count()} cores of {models[0] if models else platform.machine()}", f"{platform.system()} {platform.release()}"]
    parts.append(f"Python {platform.python_version()}")
    for package in ("uvloop", "apsw", "aiohttp", "msgspec", "paho-mqtt"):
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            parts.append(f"no {package}")
    for name, option in (("mosquitto", "-h"), ("redis-server", "--version")):
        if path := shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"):
            said = subprocess.run([path, option], capture_output=True, text=True, check=False).stdout
            parts.append(f"{name} {said.partition('v=' if 'v=' in said else 'version ')[2].split()[0]}")
    return ", ".join(parts)
