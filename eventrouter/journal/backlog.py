"""One function's work as the writer hands it out: what waits in the file, rows and segments, in the order in which it is due."""

from __future__ import annotations

from math import inf
from operator import attrgetter
from typing import Final

from eventrouter.journal import segments
from eventrouter.journal.database import START, Database
from eventrouter.journal.protocol import Claim

FIRST_REFILL: Final = 64  # claims: few, so that the first work of a long backlog starts at once
_REFILL: Final = 1024
_SIZE: Final = attrgetter("size")

State = tuple[int, int, int, list[Claim]]


class Backlog:
    """credit: claims that the function may still get. held: bytes handed out since the start.

    waits: due work may be in the file, and nothing may overtake it; until it is known otherwise it is assumed.
    reached: the latest due time that a timer announced. after: the place in the file up to which all rows that wait are handed out;
    passed: the last segment that has been read, spare: what was read with it and is not handed out yet.
    """

    __slots__ = ("after", "credit", "function", "held", "passed", "reached", "size", "spare", "waits")

    def __init__(self, function: str) -> None:
        self.function = function
        self.credit = 0
        self.waits = True
        self.reached = 0.0
        self.size = FIRST_REFILL
        self.held = 0
        self.after = START
        self.passed = -1
        self.spare: list[Claim] = []

    def state(self) -> State:
        """What has to be as before when a transaction fails."""
        return self.credit, self.held, self.passed, self.spare

    def restore(self, state: State) -> None:
        self.credit, self.held, self.passed, self.spare = state
        for claim in self.spare:
            claim.segment.spare = 0
        for claim in self.spare:
            claim.segment.spare += 1

    def take(self, database: Database, now: float, born: float, room: int) -> tuple[list[Claim], float | None]:
        """Claims that are due, as the credit goes; when there are no more for now, when the next is due.

        born, room: as of `Database.take`.
        """
        limit = min(self.credit, self.size)
        self.size = min(self.size * 4, _REFILL)
        now = max(now, self.reached)  # a timer may be a hair early by the wall clock; what it announced is due
        found: list[Claim] = []
        later: float | None = None
        self.waits = True
        while self.waits and len(found) < limit and (room > 0 or not found):
            if self.spare:
                room = self._use_spare(limit, room, found)
                continue
            first = segments.first(database, self.function, self.passed)
            bound = now if first is None else min(now, first)
            rows, after, later = database.take(self.function, self.after, bound, born, limit - len(found), room)
            found += rows
            room -= sum(map(_SIZE, rows))
            if after is not None:
                self.after = after
            elif first is None:
                self.waits = False
                self.size = FIRST_REFILL
            elif room > 0 or not found:
                until = inf if later is None else max(later, first)
                self.spare, self.passed = segments.take(database, self.function, self.passed, born, limit - len(found), room, until)
        self.credit -= len(found)
        self.held += sum(map(_SIZE, found))
        return found, None if self.waits else later

    def _use_spare(self, limit: int, room: int, found: list[Claim]) -> int:
        """What room is left."""
        used = 0
        for claim in self.spare:
            if len(found) == limit or (found and claim.size > room):
                break
            room -= claim.size
            claim.segment.spare -= 1
            found.append(claim)
            used += 1
        else:
            self.spare = []
            return room
        self.spare = self.spare[used:]
        return 0 if len(found) < limit else room
