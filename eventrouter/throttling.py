"""What an operator does to a function while it runs: throttle it, let it go on, change its concurrency. It outlives the router."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from eventrouter.errors import ConfigError
from eventrouter.intake import Intake
from eventrouter.journal.protocol import Claim, Journal
from eventrouter.lanes import Lane
from eventrouter.limits import Account
from eventrouter.model import Release
from eventrouter.settlement import Settlement

log = logging.getLogger("eventrouter")

_PREFIX: Final = "throttling/"  # of keys in the journal
_RELEASE: Final = Release()


class Setting(msgspec.Struct, frozen=True):
    """throttled: nothing of it runs. concurrency: instead of the policy's, None: as the policy has it."""

    throttled: bool = False
    concurrency: int | None = None


NOTHING_SET: Final = Setting()


class Throttling:
    """account: the pools. start: begins to work off a lane, if it may be. credit: called for each claim that a lane is rid of."""

    def __init__(
        self,
        journal: Journal,
        intake: Intake,
        settlement: Settlement,
        account: Account,
        start: Callable[[Lane], object],
        credit: Callable[[Lane], None],
    ) -> None:
        self._journal = journal
        self._intake = intake
        self._settlement = settlement
        self._account = account
        self._start = start
        self._credit = credit
        self._settings: dict[str, Setting] = {}

    async def restore(self) -> None:
        """Have what was set before the router was stopped."""
        found = await read_settings(self._journal)
        self._settings = {name: setting for name, setting in found.items() if name in self._intake.lanes}
        counts = {name: setting.concurrency for name, setting in self._settings.items() if setting.concurrency is not None}
        try:
            self._account.reserve(counts)
        except ConfigError as error:  # the account has become smaller, or the policies reserve more; it must start all the same
            log.error("the concurrency that was set by hand is left out: %s", error, extra={"action": "concurrency.refused"})
            self._settings.update({name: msgspec.structs.replace(self._settings[name], concurrency=None) for name in counts})
        for name in self._settings:
            self._changed(name)

    async def throttle(self, name: str, throttled: bool) -> Setting:
        """Pause a function, or let it go on: events wait, and requests are refused."""
        return await self._set(name, msgspec.structs.replace(self.setting(name), throttled=throttled))

    async def reserve(self, name: str, count: int | None) -> Setting:
        """Another concurrency; None: the policy's. Raises ConfigError when less than 100 would be left for the others."""
        wanted = self._intake.lanes[name].function.policy.concurrency if count is None else count
        self._account.reserve({name: wanted})
        return await self._set(name, msgspec.structs.replace(self.setting(name), concurrency=count))

    def setting(self, name: str) -> Setting:
        return self._settings.get(name, NOTHING_SET)

    async def _set(self, name: str, setting: Setting) -> Setting:
        self._settings[name] = setting
        self._changed(name)
        value = None if setting == NOTHING_SET else msgspec.json.encode(setting)
        await self._journal.put(_PREFIX + name, value)
        log.info(
            "%s: set by hand: %sthrottled, concurrency %s", name, "" if setting.throttled else "not ",
            "of its policy" if setting.concurrency is None else setting.concurrency,
            extra={"action": "throttling.set", "function": name},
        )  # fmt: skip
        return setting

    def _changed(self, name: str) -> None:
        pool = self._account.pool(name)
        for lane in (self._intake.lanes[name], *self._intake.queues.values()):
            if lane is None or lane.function.name != name:
                continue
            lane.paused = self.setting(name).throttled
            if lane.pool is not pool:  # its slots go with it
                lane.pool.free += lane.active
                pool.free -= lane.active
                former, lane.pool = lane.pool, pool
                former.rouse()
            self._look_again(lane)
        for other in {id(lane.pool): lane.pool for lane in self._intake.lanes.values()}.values():
            other.rouse()

    def opened(self, lane: Lane) -> None:
        """A queue's lane is there: it is to be handed messages if it may run."""
        lane.paused = self.setting(lane.function.name).throttled
        lane.withheld = lane.window
        self._look_again(lane)

    def gates_changed(self) -> None:
        """Function policies have: queues' messages may have to wait, or need not any more."""
        self._intake.gates_changed()
        for lane in filter(None, self._intake.queues.values()):
            self._look_again(lane)

    def _look_again(self, lane: Lane) -> None:
        # A queue keeps what nobody may take.
        lane.shut = lane.pool.size == 0 or ((lane.paused or lane.gated) and lane.trigger is not None)
        if lane.shut:
            for claim in lane.drain():
                self.turn_away(lane, claim)
            return
        if lane.withheld:
            self._journal.want(lane.name, lane.withheld)
            lane.withheld = 0
        self._start(lane)

    def turn_away(self, lane: Lane, claim: Claim) -> None:
        """Of a lane that is shut: as in Lambda an event of a closed function is a dead letter, and a message stays in its queue."""
        if lane.trigger is None:
            self._settlement.give_up(lane, claim, "ConcurrencyZero", "its reserved concurrency is 0")
            self._credit(lane)
        else:
            lane.withheld += 1
            self._journal.settle(claim, _RELEASE)


async def read_settings(journal: Journal) -> Mapping[str, Setting]:
    """What was set by hand, by function."""
    found: dict[str, Setting] = {}
    for key in await journal.keys(_PREFIX):
        value = await journal.get(key)
        if value is not None:
            found[key.removeprefix(_PREFIX)] = msgspec.json.decode(value, type=Setting)
    return found
