"""Which functions led to an event, one after another, so that functions that start each other without end are stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import Final

from eventrouter.journal.protocol import Claim
from eventrouter.model import Event

Lineage = Mapping[str, int]  # by function, in the order in which they first came: how often it was started

LIMIT: Final = 16  # starts of one function, as in AWS Lambda
ATTRIBUTE: Final = "lineage"

# What the handler of this context runs for: a claim, or a function's name with the event of a request, or, for a batch, with what its
# events inherit. To set the former two costs every event 40 ns, and to make a lineage of them costs only what a handler brings about.
Cause = Claim | tuple[str, Event | Lineage] | None
cause: ContextVar[Cause] = ContextVar("eventrouter_cause", default=None)
set_cause: Callable[[Cause], object] = cause.set


def extend(function: str, events: Iterable[Event]) -> Lineage:
    """What is inherited from a function that runs for these events (none: a chain begins)."""
    lineage: dict[str, int] = {}
    for event in events:
        for name, starts in event.attributes.get(ATTRIBUTE, {}).items():
            lineage[name] = max(starts, lineage.get(name, 0))
    lineage[function] = lineage.get(function, 0) + 1
    return lineage


def inherit(event: Event, lineage: Lineage) -> None:
    event.attributes = {**event.attributes, ATTRIBUTE: lineage}


def exhausted(event: Event, function: str) -> bool:
    """The function was started as often as it may be by what led to the event."""
    return event.attributes.get(ATTRIBUTE, {}).get(function, 0) >= LIMIT  # type: ignore[no-any-return]


def tell(event: Event, function: str) -> str:
    """Why the function is not started, for people."""
    chain = ", ".join(f"{name} {starts}x" for name, starts in event.attributes[ATTRIBUTE].items())
    return (
        f'{function} started itself again and again, by way of: {chain}; end the loop, or say recursive_loop="allow" if it ends by itself'
    )
