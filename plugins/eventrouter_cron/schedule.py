"""When things fire: cron in AWS's six fields and in Unix's five, rates, and single moments."""

from __future__ import annotations

import calendar
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol
from zoneinfo import ZoneInfo

_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_LOCAL = "%Y-%m-%dT%H:%M:%S"
_UNITS = {"minute": 60, "hour": 3600, "day": 86400}


class Schedule(Protocol):
    def next(self, after: datetime) -> datetime | None:
        """The first moment past `after` (aware), in the schedule's zone; None: never again."""


def parse(expression: str, timezone: str = "UTC") -> Schedule:
    """Read `cron(0 7 ? * MON-FRI *)`, the same without `cron( )`, `0 7 * * MON-FRI`, `rate(5 minutes)` or `at(2026-12-01T08:00:00)`.

    timezone: an IANA name; cron and at mean its local time. Over daylight saving time six fields follow EventBridge
    Scheduler (a time that does not exist is skipped, one that comes twice fires once), five fields follow Vixie cron.
    A rate counts from 1970, so that a restart neither shifts nor repeats it.
    Raises ValueError that names the field at fault.
    """
    try:
        zone = ZoneInfo(timezone)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"timezone {timezone!r}: no such zone; use an IANA name as Europe/Berlin") from None
    called = re.fullmatch(r"(\w+)\((.*)\)", expression, re.DOTALL)
    kind, inside = (called[1], called[2]) if called else ("cron", expression)
    if kind == "rate":
        return _Rate(inside, zone)
    if kind == "at":
        return _At(inside, zone)
    fields = inside.split()
    if kind == "cron" and len(fields) == 6:
        return _AwsCron(fields, zone)
    if not called and len(fields) == 5:
        return _UnixCron(expression, zone)
    raise ValueError(f"{expression!r}: write cron with 5 fields, or AWS's 6 (minute hour day month weekday year), rate(...) or at(...)")


class _Rate:
    def __init__(self, text: str, zone: ZoneInfo) -> None:
        match = re.fullmatch(r"([1-9]\d{0,8}) (minute|hour|day)(s?)", text, re.ASCII)
        if not match:
            raise ValueError(f"rate({text}): write a number and minute(s), hour(s) or day(s): rate(5 minutes)")
        count, unit, plural = int(match[1]), match[2], match[3]
        if (count == 1) == bool(plural):
            raise ValueError(f"rate({text}): write rate({count} {unit}{'' if count == 1 else 's'})")
        self._seconds = count * _UNITS[unit]
        self._zone = zone

    def next(self, after: datetime) -> datetime | None:
        return datetime.fromtimestamp((int(after.timestamp() // self._seconds) + 1) * self._seconds, self._zone)


class _At:
    def __init__(self, text: str, zone: ZoneInfo) -> None:
        try:
            local = datetime.strptime(text, _LOCAL)
            if local.strftime(_LOCAL) != text:
                raise ValueError
        except ValueError:
            raise ValueError(f"at({text}): write a local time without zone: at(2026-12-01T08:00:00)") from None
        moment = _exists(local, zone)
        if moment is None:
            raise ValueError(f"at({text}): the clocks of {zone.key} skip this time")
        self._moment = moment

    def next(self, after: datetime) -> datetime | None:
        return self._moment if self._moment > after.astimezone(UTC) else None


class _UnixCron:
    def __init__(self, text: str, zone: ZoneInfo) -> None:
        from cronsim import CronSim, CronSimError  # noqa: PLC0415 - loaded when somebody has such a schedule

        minute, hour, day, month, weekday = text.split()
        # Quartz's "?" is common in five fields, too, where it says the same as "*".
        self._text = " ".join((minute, hour, "*" if day == "?" else day, month, "*" if weekday == "?" else weekday))
        self._make, self._zone = CronSim, zone
        try:
            self._make(self._text, datetime.fromtimestamp(0, zone))
        except CronSimError as error:
            raise ValueError(f"{text!r}: {error}; five fields are minute hour day month weekday") from None

    def next(self, after: datetime) -> datetime | None:
        past = after.astimezone(UTC)
        moments: Iterator[datetime] = self._make(self._text, after.astimezone(self._zone))
        # In an hour that comes twice it may begin with a moment of the first.
        return next((moment for moment in moments if moment > past), None)


class _AwsCron:
    """Every field as the sorted values it allows; the two day fields as a rule of which days of a month."""

    def __init__(self, fields: Sequence[str], zone: ZoneInfo) -> None:
        minute, hour, day, month, weekday, year = fields
        self._zone = zone
        self._minutes = _values("minute", minute, 0, 59)
        self._hours = _values("hour", hour, 0, 23)
        self._months = set(_values("month", month, 1, 12, _MONTHS))
        self._years = _values("year", year, 1970, 2199)
        if (day == "?") == (weekday == "?"):
            raise ValueError(f"{' '.join(fields)!r}: exactly one of day of month and day of week must be '?'")
        self._days = _days_of_month(day) if weekday == "?" else _days_of_week(weekday)

    def next(self, after: datetime) -> datetime | None:
        start = after.astimezone(self._zone).replace(tzinfo=None)
        after = after.astimezone(UTC)  # two times of one zone are compared by their wall clocks
        for day in self._dates(start):
            for hour in self._hours:
                for minute in self._minutes:
                    local = day.replace(hour=hour, minute=minute)
                    # Wall clocks go back and forth: only the moment itself tells what is past.
                    if local >= start - timedelta(minutes=1) and (moment := _exists(local, self._zone)) and moment > after:
                        return moment
        return None

    def _dates(self, start: datetime) -> Iterator[datetime]:
        first = (start.year, start.month, start.day)
        for year in self._years:
            if year < start.year:
                continue
            for month in sorted(self._months):
                for number in sorted(self._days.of(year, month)):
                    if (year, month, number) >= first:
                        yield datetime(year, month, number)


class _Days:
    """Which days of a month. numbers: plain days. weekdays: 1 = Sunday. Then what depends on the month."""

    def __init__(self) -> None:
        self.numbers: set[int] = set()
        self.nearest: set[int] = set()  # the weekday nearest to this day; 0: the last one
        self.from_last: set[int] = set()  # days before the last one
        self.weekdays: set[int] = set()
        self.last_weekdays: set[int] = set()
        self.nth_weekdays: set[tuple[int, int]] = set()

    def of(self, year: int, month: int) -> set[int]:
        first, length = calendar.monthrange(year, month)
        weekday = {day: (first + day) % 7 + 1 for day in range(1, length + 1)}
        found = {day for day in self.numbers if day <= length}
        found |= {length - back for back in self.from_last if back < length}
        working = [day for day in weekday if 2 <= weekday[day] <= 6]
        for day in self.nearest:
            if day <= length:
                found.add(working[-1] if day == 0 else min(working, key=lambda other: abs(other - day)))
        for day, its in weekday.items():
            nth = (day - 1) // 7 + 1
            if its in self.weekdays or (its, nth) in self.nth_weekdays or (its in self.last_weekdays and day > length - 7):
                found.add(day)
        return found


def _days_of_month(field: str) -> _Days:
    days = _Days()
    for part in field.split(","):
        if match := re.fullmatch(r"L(?:-(\d+))?", part):
            days.from_last.update(_values("day of month", match[1] or "0", 0, 30))
        elif part == "LW":
            days.nearest.add(0)
        elif match := re.fullmatch(r"(\d+)W", part):
            days.nearest.update(_values("day of month", match[1], 1, 31))
        else:
            days.numbers.update(_values("day of month", part, 1, 31))
    return days


def _days_of_week(field: str) -> _Days:
    days = _Days()
    for part in field.split(","):
        if part == "L":
            days.weekdays.add(7)
        elif match := re.fullmatch(r"(\w+)L", part):
            days.last_weekdays.update(_values("day of week", match[1], 1, 7, _DAYS))
        elif match := re.fullmatch(r"(\w+)#([1-5])", part):
            days.nth_weekdays.update((day, int(match[2])) for day in _values("day of week", match[1], 1, 7, _DAYS))
        else:
            days.weekdays.update(_values("day of week", part, 1, 7, _DAYS))
    return days


def _values(name: str, field: str, low: int, high: int, words: Sequence[str] = ()) -> list[int]:
    """`0/15`, `MON-FRI`, `20-2`, `1,5`: the values meant, sorted."""
    found: set[int] = set()
    for part in field.split(","):
        match = re.fullmatch(r"(\*|\w+)(?:-(\w+))?(?:/(\d+))?", part, re.ASCII)
        if not match or (match[1] == "*" and match[2]) or match[3] == "0":
            raise ValueError(f"{name} {field!r}: {part!r} is no value, range or step")

        def number(text: str) -> int:
            value = words.index(text.upper()) + low if text.upper() in words else int(text) if text.isdecimal() else -1
            if not low <= value <= high:
                named = f" or {words[0]} to {words[-1]}" if words else ""
                raise ValueError(f"{name} {field!r}: {text!r} must be {low} to {high}{named}")
            return value

        start = low if match[1] == "*" else number(match[1])
        end = number(match[2]) if match[2] else high if match[1] == "*" or match[3] else start
        span = range(start, end + 1) if start <= end else [*range(start, high + 1), *range(low, end + 1)]
        found.update(span[:: int(match[3] or 1)])
    return sorted(found)


def _exists(local: datetime, zone: ZoneInfo) -> datetime | None:
    """The local time as a moment, the first where it comes twice; None where the clocks skip it."""
    moment = local.replace(tzinfo=zone)
    return moment if moment.astimezone(UTC).astimezone(zone).replace(tzinfo=None) == local else None
