"""Batches: how many events a handler gets at once, and which of them it says have failed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from eventrouter.errors import BadOption, EventRouterError


class Batch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Hand over up to `size` events at once (1 to 10,000; fewer when they come to 6 MB).

    window: seconds (0 to 300) that the first may wait for more; 0: what is there now.
    bisect: a batch that fails is halved, and each half run, without using up an attempt, until one event alone has failed.
    """

    size: int
    window: float = 0.0
    bisect: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.size <= 10_000:
            raise BadOption(f"Batch: size={self.size!r}: 1 to 10000")
        if not 0 <= self.window <= 300:
            raise BadOption(f"Batch: window={self.window!r}: 0 to 300 seconds")

    def __str__(self) -> str:
        return f"{self.size}, window {self.window:g} s{', bisect' if self.bisect else ''}"


class PartialFailure(EventRouterError):
    """Raise in a handler of batches to have just some events tried again: their positions in the batch (0 is the first), or their ids."""

    def __init__(self, items: Iterable[int | str], why: str = "") -> None:
        self.items = list(items)
        super().__init__(why or f"{len(self.items)} events of the batch failed")


class Malformed(ValueError):
    """The answer is no partial failure: read leniently, it would have events deleted that were never handled."""


def failed_items(result: Any, ids: Sequence[str]) -> set[int]:
    """The positions of the events that a handler's result, or PartialFailure, says have failed. ids: of the batch's events.

    Reads `{"batchItemFailures": [{"itemIdentifier": "..."}]}` as AWS does: nothing, an empty list and null mean that all are good.
    Raises Malformed.
    """
    if isinstance(result, PartialFailure):
        items: Any = result.items
    else:
        failures = result.get("batchItemFailures") if isinstance(result, dict) else None
        if failures is None:
            return set()
        if not isinstance(failures, list):
            raise Malformed(f"batchItemFailures is no list: {failures!r}")
        items = []
        for failure in failures:
            id = failure.get("itemIdentifier") if isinstance(failure, dict) else None
            if not isinstance(id, str) or not id:
                raise Malformed(f"batchItemFailures: {failure!r} has no itemIdentifier")
            items.append(id)
    places = {id: place for place, id in enumerate(ids)}
    found = set()
    for item in items:
        place = places.get(item) if isinstance(item, str) else item
        if place is None or isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < len(ids):
            raise Malformed(f"{item!r} is no event of this batch")
        found.add(place)
    return found
