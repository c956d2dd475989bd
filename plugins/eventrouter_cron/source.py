"""Fires what is due, each tick once, and remembers how far it came."""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from datetime import UTC, datetime, timedelta

import msgspec

from eventrouter import Binding, Event, Router, Source
from eventrouter.errors import ConfigError, JournalError, suggest
from eventrouter_cron import CronTrigger

_LOOK_UP = 60.0  # seconds: a machine that slept, or whose clock was set, is noticed within it
_CATCH_UP = 1000  # ticks of one schedule
_CLOCK_FAULT = timedelta(days=1)  # a last tick further in the future than this was made by a wrong clock
_IDS = uuid.UUID("6f0f3f7e-6a59-4c1f-9d0c-3c0b7f4f7a52")  # of Amazon's kind, made from ours; never change it
_LOOK_BACK = [timedelta(days=days) for days in (1 / 24, 1, 7, 31, 366, 3660)]


def tick_event(trigger: CronTrigger, function: str, tick: datetime) -> Event:
    """A tick of one function's schedule. Its id is the same whenever it is made, so that it runs once."""
    moment = tick.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    id = f"{function} {trigger} {moment}"
    data = {
        "version": "0",
        "id": str(uuid.uuid5(_IDS, id)),
        "detail-type": "Scheduled Event",
        "source": "aws.events",
        "account": "000000000000",
        "time": moment,
        "region": "local",
        "resources": [f"arn:aws:events:local:000000000000:rule/{function}"],
        "detail": {},
    }
    return Event("cron", "cron.tick", str(trigger), msgspec.json.encode(data), id=id, time=tick.timestamp())


class Timetable:
    """One function's schedule. last: the tick up to which all is done."""

    def __init__(self, binding: Binding) -> None:
        assert isinstance(binding.trigger, CronTrigger)
        self.binding = binding
        self.trigger = binding.trigger
        self.function = binding.function.name
        self.key = f"{self.function} {self.trigger}"
        self.last = datetime.fromtimestamp(0, UTC)
        self.next: datetime | None = None

    def move_on(self, last: datetime) -> None:
        self.last = last
        self.next = self.trigger.schedule.next(last)

    async def missed(self, now: datetime) -> tuple[list[datetime], int]:
        """The ticks past `last` up to now that are to be caught up with, and how many there were beyond the most."""
        if self.trigger.catch_up == "none":
            return [], 0
        start = self.last
        if self.trigger.catch_up == "last":
            # From as near as there is one: a rate of a minute has half a million in a year.
            for back in _LOOK_BACK:
                nearer = max(self.last, now - back)
                tick = self.trigger.schedule.next(nearer)
                if tick is not None and tick <= now:
                    start = nearer
                    break
        found: deque[datetime] = deque(maxlen=1 if self.trigger.catch_up == "last" else _CATCH_UP)
        count = 0
        tick = self.trigger.schedule.next(start)
        while tick is not None and tick <= now:
            found.append(tick)
            count += 1
            if count % 100 == 0:
                await asyncio.sleep(0)  # others want the loop, too
            tick = self.trigger.schedule.next(tick)
        return list(found), 0 if self.trigger.catch_up == "last" else count - len(found)


class CronSource(Source[None]):
    name = "cron"

    def __init__(self, config: None, router: Router) -> None:
        super().__init__(config, router)
        self._tables = [Timetable(binding) for binding in router.bindings]

    def lines(self) -> list[str]:
        coming = [(table.next, table) for table in self._tables if table.next is not None]
        if not coming:
            return []
        moment, table = min(coming, key=lambda pair: pair[0])
        return [f"cron next at {moment.isoformat()}: {table.function}"]

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self.router.clock.time(), UTC)

    async def send(self, function: str) -> dict[str, str]:
        """Fire FUNCTION's schedule now, beside its ticks."""
        table = next((table for table in self._tables if table.function == function), None)
        if table is None:
            names = [table.function for table in self._tables]
            raise ConfigError(f"send cron: no function named {function!r} has a schedule{suggest(function, names)}")
        tick = tick_event(table.trigger, function, self._now())
        # With an id of its own: a real tick of this second is another one.
        event = Event(tick.source, tick.type, tick.subject, tick.data, time=tick.time)
        await self.router.deliver_to(table.binding, event)
        return {"id": event.id, "function": function}

    async def start(self) -> None:
        now = self._now()
        for table in self._tables:
            stored = await self.router.get(table.key)
            if stored is None:
                table.move_on(now)
                await self.router.put(table.key, now.isoformat().encode())  # so that a tick missed from now on is known
                if table.next is None:
                    if not table.trigger.expression.startswith("at("):
                        raise ConfigError(f"{table.function}: {table.trigger} will never fire again: all its years are past")
                    self.router.log.warning(
                        "%s: %s will not fire: this time is past", table.function, table.trigger, extra={"action": "cron.past"}
                    )
                continue
            last = datetime.fromisoformat(stored.decode())
            table.move_on(now if last > now + _CLOCK_FAULT else last)

    async def run(self) -> None:
        now = self._now()
        for table in self._tables:
            if table.next is None or table.next > now:
                continue
            ticks, left_out = await table.missed(now)
            if left_out:
                self.router.log.warning(
                    "%s: %d missed ticks of %s are left out, the newest %d run",
                    table.function, left_out, table.trigger, len(ticks), extra={"action": "cron.left_out", "count": left_out},
                )  # fmt: skip
            for tick in ticks:
                await self._fire(table, tick)
            await self._reached(table, now)
        self.router.live()
        while True:
            coming = [(table.next, table) for table in self._tables if table.next is not None]
            now = self._now()
            due = [(tick, table) for tick, table in coming if tick <= now]
            for tick, table in sorted(due, key=lambda pair: pair[0]):
                await self._fire(table, tick)
                await self._reached(table, tick)
            if not due:
                wait = min([(tick - now).total_seconds() for tick, _ in coming], default=_LOOK_UP)
                await self.router.clock.sleep(min(wait, _LOOK_UP))

    async def _fire(self, table: Timetable, tick: datetime) -> None:
        event = tick_event(table.trigger, table.function, tick)
        while True:
            try:
                await self.router.deliver_to(table.binding, event)
            except JournalError as error:
                self.router.lost(str(error))
                await self.router.clock.sleep(1)
            else:
                if self.router.was_live:
                    self.router.live()
                return

    async def _reached(self, table: Timetable, moment: datetime) -> None:
        # A crash before this is on disk fires the tick again, under the same id: it runs once.
        table.move_on(moment)
        self.router.crash_point("ack.before")
        try:
            await self.router.put(table.key, moment.astimezone(UTC).isoformat().encode())
        except JournalError as error:
            self.router.log.warning("cron: %s", error, extra={"action": "cron.state"})
