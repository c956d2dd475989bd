"""Concurrency: the account's pool, what functions reserve of it, and the floor that stays for the rest. And rates."""

from __future__ import annotations

import heapq
import re
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from eventrouter.errors import BadOption, ConfigError

UNRESERVED_FLOOR = 100


class Pool:
    """Slots for running attempts: a function's reserved ones, or those that `sharers` others share.

    waiting: who waits for a slot.
    The last tenth is for functions that have less than an equal part of it: one that is slow and busy can't take all.
    """

    __slots__ = ("_part", "_spare", "free", "size", "waiting")

    def __init__(self, size: int, sharers: int = 1) -> None:
        self.size = self.free = 0
        self.waiting: deque[Callable[[], bool]] = deque()
        self.resize(size, sharers)

    def resize(self, size: int, sharers: int = 1) -> None:
        """What is taken stays so: of a smaller pool none is free until enough have been given back."""
        self.free += size - self.size
        self.size = size
        self._spare = size // 10 if sharers > 1 else 0
        self._part = max(1, self._spare // max(1, sharers))

    def take(self, active: int = 0) -> bool:
        """active: how many slots the function has."""
        if self.free <= self._spare and (self.free <= 0 or active >= self._part):
            return False
        self.free -= 1
        return True

    def give(self) -> None:
        """Return a slot; who waited longest for one is called first, until one takes it."""
        self.free += 1
        if not self.waiting:
            return
        for _ in range(len(self.waiting)):
            if self.waiting.popleft()():
                break

    def wait(self, wake: Callable[[], bool]) -> None:
        """Call `wake` once when a slot has come free; it says whether it took one."""
        self.waiting.append(wake)

    def rouse(self) -> None:
        """Call all who wait: there may be slots for them now, or they are to wait elsewhere."""
        roused = list(self.waiting)
        self.waiting.clear()
        for wake in roused:
            wake()


def unreserved(total: int, reserved: Mapping[str, int]) -> int:
    """What is left for the other functions. Raises ConfigError when it is less than 100, as AWS Lambda refuses it."""
    rest = total - sum(reserved.values())
    if any(reserved.values()) and rest < UNRESERVED_FLOOR:
        names = ", ".join(f"{name} ({count})" for name, count in reserved.items())
        raise ConfigError(
            f"reserved concurrency leaves {rest} of {total} for other functions, {UNRESERVED_FLOOR} must stay: {names}; "
            "lower a `concurrency=` or raise `[app] concurrency`"
        )
    return rest


class Account:
    """All concurrency there is: what functions reserve of it, and what the others share.

    functions: how many there are. Raises ConfigError when less than 100 would stay unreserved, as AWS Lambda refuses it.
    """

    def __init__(self, total: int, reserved: Mapping[str, int], functions: int) -> None:
        self._total = total
        self._functions = functions
        self._own: dict[str, Pool] = {}
        self._shared = Pool(0)
        self.reserve(reserved)

    def pool(self, name: str) -> Pool:
        return self._own.get(name, self._shared)

    def reserve(self, changes: Mapping[str, int | None]) -> None:
        """Reserve so many for each of these functions; None: it shares. All or none of it is done."""
        wanted: dict[str, int | None] = {name: pool.size for name, pool in self._own.items()}
        wanted.update(changes)
        reserved = {name: count for name, count in wanted.items() if count is not None}
        rest = unreserved(self._total, reserved)
        self._shared.resize(rest, self._functions - len(reserved))
        for name in changes:
            if name not in reserved:
                self._own.pop(name, None)
            elif name in self._own:
                self._own[name].resize(reserved[name])
            else:
                self._own[name] = Pool(reserved[name])


_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_MOST_KEYS: Final = 100_000  # that a function's rate remembers at once
_AHEAD: Final = 900.0  # seconds; what waits longer for its turn has none yet
_EARLY: Final = 0.01  # seconds that one may be too early: timers are, and sums are rounded


def parse_rate(text: str) -> tuple[int, float]:
    """`"100/s"` as (100, 1.0): so many in so many seconds. Raises ValueError naming the text."""
    match = re.fullmatch(r"\s*([1-9]\d{0,8})\s*/\s*([smhd])\s*", text)
    if match is None:
        raise BadOption(f'rate={text!r}: write a whole number a second, minute, hour or day: "100/s", "30/m", "500/h", "1/d"')
    return int(match[1]), _UNITS[match[2]]


class Rate:
    """So many in so many seconds, for each key by itself; so many at once, and then as they become free, evenly.

    Of a key that is at rest nothing is kept. Times are monotonic seconds.
    """

    __slots__ = ("_burst", "_keys", "_sweep_at", "_turn")

    def __init__(self, count: int, seconds: float) -> None:
        self._turn = seconds / count
        self._burst = seconds - self._turn
        # Of each key: when its next turn would be if none were had in advance, and how many that have been told theirs are not back yet.
        self._keys: dict[str | None, tuple[float, int]] = {}
        self._sweep_at = 1024

    def take(self, key: str | None, now: float) -> float:
        """Have a turn: 0; or, when there is none, seconds until there may be one."""
        following, booked = self._keys.get(key, (now, 0))
        wait = following - self._burst - now
        if wait > _EARLY:
            return wait
        self._keep(key, max(following, now) + self._turn, 0 if following <= now else booked, now)
        return 0.0

    def book(self, key: str | None, now: float, patience: float) -> float:
        """As `take`, for one who comes back: its turn is its own then. patience: seconds that it may wait at all.

        Who would have to wait too long has none, and asks again.
        """
        following, booked = self._keys.get(key, (now, 0))
        if booked and following - self._burst - booked * self._turn <= now + _EARLY:  # the earliest that was told
            self._keep(key, following, booked - 1, now)
            return 0.0
        wait = self.take(key, now)
        if wait <= 0 or wait > patience:
            return min(wait, patience)
        if wait > _AHEAD:
            return _AHEAD
        self._keep(key, following + self._turn, booked + 1, now)
        return wait

    def __len__(self) -> int:
        """Keys that are not at rest, and some that are."""
        return len(self._keys)

    def _keep(self, key: str | None, following: float, booked: int, now: float) -> None:
        keys = self._keys
        keys[key] = following, booked
        if len(keys) >= self._sweep_at:
            for idle in [each for each, (at, _) in keys.items() if at <= now]:
                del keys[idle]
            if len(keys) > _MOST_KEYS:  # they are forgotten that would be at rest soonest
                for soon in heapq.nsmallest(len(keys) - _MOST_KEYS * 9 // 10, keys, key=lambda each: keys[each][0]):
                    del keys[soon]
            self._sweep_at = min(max(1024, 2 * len(keys)), _MOST_KEYS + 1)
