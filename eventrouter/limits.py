"""Concurrency: the account's pool, what functions reserve of it, and the floor that stays for the rest."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

from eventrouter.errors import ConfigError

UNRESERVED_FLOOR = 100


class Pool:
    """Slots for running attempts: a function's reserved ones, or those that all others share."""

    __slots__ = ("_waiting", "free", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.free = size
        self._waiting: deque[Callable[[], object]] = deque()

    def take(self) -> bool:
        if self.free <= 0:
            return False
        self.free -= 1
        return True

    def give(self) -> None:
        """Return a slot; who waited longest for one is called first."""
        self.free += 1
        if self._waiting:
            self._waiting.popleft()()

    @property
    def contended(self) -> bool:
        """Somebody else waits for a slot."""
        return bool(self._waiting)

    def wait(self, wake: Callable[[], object]) -> None:
        """Call `wake` once when a slot has come free; it may find it taken again."""
        self._waiting.append(wake)


def share_out(total: int, reserved: Mapping[str, int]) -> tuple[Pool, dict[str, Pool]]:
    """The shared pool and each reserving function's own.

    Raises ConfigError when less than 100 would stay unreserved, as AWS Lambda refuses it.
    """
    rest = total - sum(reserved.values())
    if any(reserved.values()) and rest < UNRESERVED_FLOOR:
        names = ", ".join(f"{name} ({count})" for name, count in reserved.items())
        raise ConfigError(
            f"reserved concurrency leaves {rest} of {total} for other functions, {UNRESERVED_FLOOR} must stay: {names}; "
            "lower a `concurrency=` or raise `[app] concurrency`"
        )
    return Pool(rest), {name: Pool(count) for name, count in reserved.items()}
