"""The clock as a source: cron, rates and single moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from eventrouter import Event, Plugin, Trigger, hookimpl
from eventrouter.errors import ConfigError
from eventrouter_cron import schedule

__all__ = ["CronTrigger", "at", "cron", "rate"]

CatchUp = Literal["last", "all", "none"]


class CronTrigger(Trigger):
    """`cron(...)`, `rate(...)` and `at(...)` make it."""

    source = "cron"
    service = "events.amazonaws.com"

    def __init__(self, expression: str, timezone: str, catch_up: CatchUp) -> None:
        if catch_up not in ("last", "all", "none"):
            raise ConfigError(f'cron({expression!r}): catch_up={catch_up!r}; it is "last", "all" or "none"')
        try:
            self.schedule = schedule.parse(expression, timezone)
        except ValueError as error:
            raise ConfigError(f"cron: {error}") from None
        if self.schedule.next(datetime(1970, 1, 1, tzinfo=UTC)) is None:
            raise ConfigError(f"cron: {expression!r} never fires: there is no such day")
        self.expression, self.timezone, self.catch_up = expression, timezone, catch_up

    def captures(self, subject: str) -> Mapping[str, str] | None:
        return {} if subject == str(self) else None

    def aws_event(self, events: Sequence[Event]) -> Any:
        return events[0].json()

    def arn(self, function: str, subject: str | None = None) -> str:
        return f"arn:aws:events:local:000000000000:rule/{function}"

    def __str__(self) -> str:
        zone = "" if self.timezone == "UTC" else f" {self.timezone}"
        return f"{'' if '(' in self.expression else 'cron '}{self.expression}{zone}"


def cron(expression: str, *, timezone: str = "UTC", catch_up: CatchUp = "last") -> CronTrigger:
    """Start the function by the clock: `cron("0 7 * * MON-FRI", timezone="Europe/Berlin")`.

    expression: Unix's five fields, or AWS's six (`"0 7 ? * MON-FRI *"`), whose rules over daylight saving time are AWS's.
    catch_up: of the ticks missed while the router was down, run the `"last"`, `"all"` (at most 1000) or `"none"`.

    Each tick runs once. The payload is AWS's scheduled event; a handler need not take it.
    """
    return CronTrigger(expression, timezone, catch_up)


def rate(interval: str, *, catch_up: CatchUp = "last") -> CronTrigger:
    """Start the function every so often: `rate("5 minutes")`; counted from 1970, so a restart does not shift it."""
    return CronTrigger(f"rate({interval})", "UTC", catch_up)


def at(moment: str, *, timezone: str = "UTC", catch_up: CatchUp = "last") -> CronTrigger:
    """Start the function once, at a local time: `at("2026-12-01T08:00:00", timezone="Europe/Berlin")`."""
    return CronTrigger(f"at({moment})", timezone, catch_up)


def sample(
    expression: str = "rate(5 minutes)", *, timezone: str = "UTC", function: str = "report", after: str = "2026-01-01T00:00:00"
) -> Any:
    """The scheduled event of the first tick of EXPRESSION past a time in UTC."""
    from eventrouter_cron.source import tick_event  # noqa: PLC0415 - sources load when they are needed

    trigger = CronTrigger(expression, timezone, "last")
    try:
        start = datetime.fromisoformat(after)
    except ValueError:
        raise ConfigError(f"sample cron: --after {after!r}: write a time in UTC: 2026-12-01T08:00:00") from None
    tick = trigger.schedule.next(start if start.tzinfo is not None else start.replace(tzinfo=UTC))
    if tick is None:
        raise ConfigError(f"sample cron: {trigger} has no tick after {after}; give an earlier --after")
    return trigger.aws_event([tick_event(trigger, function, tick)])


@hookimpl
def eventrouter_plugin() -> Plugin:
    return Plugin(name="cron", source="eventrouter_cron.source:CronSource", triggers={"cron": cron, "rate": rate, "at": at}, sample=sample)
