"""What was used, and what it would cost at Lambda's prices."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Final

import msgspec

from eventrouter.config import MeteringConfig
from eventrouter.errors import ConfigError
from eventrouter.journal.protocol import Usage

BY: Final = ("function", "day", "month")
_EPOCH: Final = date(1970, 1, 1)
_MB_MS: Final = 1024 * 1000  # MB·ms of a GB-second


class Row(msgspec.Struct, frozen=True):
    """Usage of one group. billed: seconds. cost: its share of what the months cost, in `currency`; free tiers are shared by use."""

    group: list[str]
    invocations: int
    errors: int
    throttles: int
    billed_seconds: float
    gb_seconds: float
    init_seconds: float
    cost: float


class Report(msgspec.Struct, frozen=True):
    """by: what each row's `group` has. since, until: days, the last one included. total: of all rows."""

    by: list[str]
    since: str
    until: str
    currency: str
    rows: list[Row]
    total: Row


class _Sum:
    def __init__(self) -> None:
        self.invocations = self.errors = self.throttles = self.billed = self.memory = self.init = 0
        self.cost = 0.0

    def add(self, use: Usage, cost: float) -> None:
        for name in ("invocations", "errors", "throttles", "billed", "memory", "init"):
            setattr(self, name, getattr(self, name) + getattr(use, name))
        self.cost += cost

    def row(self, group: Sequence[str]) -> Row:
        seconds = (self.billed / 1000, self.memory / _MB_MS, self.init / 1000)
        return Row([*group], self.invocations, self.errors, self.throttles, *seconds, round(self.cost, 6))


def report(used: Iterable[Usage], config: MeteringConfig, by: Sequence[str], since: date, until: date, tags: dict[str, str]) -> Report:
    """used: of whole months, as the free tier is. by: "function", "day", "month" or "tag:NAME". tags: only functions with these.

    Raises ConfigError for another `by`.
    """
    for name in by:
        if name not in BY and not (name.startswith("tag:") and name != "tag:"):
            raise ConfigError(f"usage --by {name!r}: write {', '.join(BY)} or tag:NAME")
    months: dict[str, list[Usage]] = defaultdict(list)
    for use in used:
        months[day_of(use).strftime("%Y-%m")].append(use)
    groups: dict[tuple[str, ...], _Sum] = defaultdict(_Sum)
    total = _Sum()
    for month in months.values():
        per_request, per_memory = _prices(month, config)
        for use in month:
            known = msgspec.json.decode(use.tags, type=dict[str, str])
            if since <= day_of(use) <= until and all(known.get(name) == value for name, value in tags.items()):
                cost = use.invocations * per_request + use.memory * per_memory
                groups[tuple(_value(use, name, known) for name in by)].add(use, cost)
                total.add(use, cost)
    rows = [groups[group].row(group) for group in sorted(groups)]
    return Report([*by], since.isoformat(), until.isoformat(), config.currency, rows, total.row(["total"]))


def _prices(month: Sequence[Usage], config: MeteringConfig) -> tuple[float, float]:
    """Of an invocation, and of a MB for a millisecond: what is beyond the free tier, spread over all of the month."""
    requests, memory = sum(use.invocations for use in month), sum(use.memory for use in month)
    gb_seconds = memory / _MB_MS
    beyond = max(0.0, requests - config.free_requests) * config.request_price / 1e6
    beyond_memory = max(0.0, gb_seconds - config.free_gb_seconds) * config.gb_second_price
    return (beyond / requests if requests else 0.0), (beyond_memory / memory if memory else 0.0)


def _value(use: Usage, name: str, tags: dict[str, str]) -> str:
    if name.startswith("tag:"):
        return tags.get(name.removeprefix("tag:"), "")
    if name == "function":
        return use.function
    return day_of(use).isoformat() if name == "day" else day_of(use).strftime("%Y-%m")


def day_of(use: Usage) -> date:
    return _EPOCH + timedelta(days=use.day)


def number_of(day: date) -> int:
    return (day - _EPOCH).days


def months_around(since: date, until: date) -> tuple[int, int]:
    """The numbers of the first day of the first month, and of the first day after the last."""
    after = (until.replace(day=1) + timedelta(days=32)).replace(day=1)
    return number_of(since.replace(day=1)), number_of(after)


def day_at(seconds: float) -> date:
    return datetime.fromtimestamp(seconds, UTC).date()
