"""Concurrency: the account's pool, what functions reserve of it, and the floor that stays for the rest."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

from eventrouter.errors import ConfigError

UNRESERVED_FLOOR = 100


class Pool:
    """Slots for running attempts: a function's reserved ones, or those that `sharers` others share.

    waiting: who waits for a slot.
    The last tenth is for functions that have less than an equal part of it: one that is slow and busy can't take all.
    """

    __slots__ = ("_part", "_spare", "free", "size", "waiting")

    def __init__(self, size: int, sharers: int = 1) -> None:
        self.size = size
        self.free = size
        self._spare = size // 10 if sharers > 1 else 0
        self._part = max(1, self._spare // max(1, sharers))
        self.waiting: deque[Callable[[], bool]] = deque()

    def take(self, active: int = 0) -> bool:
        """active: how many slots the function has."""
        if self.free <= 0 or (self.free <= self._spare and active >= self._part):
            return False
        self.free -= 1
        return True

    def give(self) -> None:
        """Return a slot; who waited longest for one is called first, until one takes it."""
        self.free += 1
        for _ in range(len(self.waiting)):
            if self.waiting.popleft()():
                break

    def wait(self, wake: Callable[[], bool]) -> None:
        """Call `wake` once when a slot has come free; it says whether it took one."""
        self.waiting.append(wake)


def share_out(total: int, reserved: Mapping[str, int], sharers: int = 1) -> tuple[Pool, dict[str, Pool]]:
    """The shared pool and each reserving function's own. sharers: how many functions share the first.

    Raises ConfigError when less than 100 would stay unreserved, as AWS Lambda refuses it.
    """
    rest = total - sum(reserved.values())
    if any(reserved.values()) and rest < UNRESERVED_FLOOR:
        names = ", ".join(f"{name} ({count})" for name, count in reserved.items())
        raise ConfigError(
            f"reserved concurrency leaves {rest} of {total} for other functions, {UNRESERVED_FLOOR} must stay: {names}; "
            "lower a `concurrency=` or raise `[app] concurrency`"
        )
    return Pool(rest, sharers), {name: Pool(count) for name, count in reserved.items()}
