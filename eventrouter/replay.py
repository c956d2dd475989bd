"""Runs again what was accepted before, out of the journal's archive."""

from __future__ import annotations

from typing import NamedTuple

from eventrouter.errors import JournalError
from eventrouter.intake import Intake
from eventrouter.journal.protocol import Archived, Journal
from eventrouter.lineage import ATTRIBUTE as LINEAGE
from eventrouter.model import Event


class Replay(NamedTuple):
    """replayed: how many run again. unwanted: those that no trigger of the function wants any more."""

    replayed: int
    unwanted: int


async def replay(intake: Intake, journal: Journal, name: str, function: str, since: float, until: float) -> Replay:
    """Accept anew, in order, what was accepted for the function between two times, under the policy and code of today.

    name: goes with each as its attribute `replay`; they have fresh ids, so none is taken for a repeat.
    function: or a queue that was archived; a function gets what it takes from queues, too.
    Raises JournalError that says how many were accepted before.
    """
    count = unwanted = 0
    for owner in await journal.archived_functions():
        if owner != function and not _takes_from(intake, function, owner):
            continue
        after: Archived | None = None
        while page := await journal.archived(owner, since, until, after):
            after = page[-1]
            accepted, not_wanted = intake.accept_again(owner, [_again(kept.event, name) for kept in page])
            try:
                count += await accepted
            except JournalError as error:
                raise JournalError(f"{count} were replayed as {name}, then it failed: {error}") from error
            unwanted += not_wanted
    return Replay(count, unwanted)


def _takes_from(intake: Intake, function: str, owner: str) -> bool:
    source, _, subject = owner.partition(":")
    lane = intake.queue(source, subject) if source in intake.queueing else None
    return lane is not None and lane.function.name == function


def _again(event: Event, name: str) -> Event:
    attributes = {**event.attributes, "replay": name}
    attributes.pop(LINEAGE, None)  # what led to it led to it once; it begins anew, as what is redriven does
    return Event(event.source, event.type, event.subject, event.data, event.content_type, time=event.time, attributes=attributes)
