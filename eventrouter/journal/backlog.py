"""One function's work as the writer hands it out: what waits in the file, rows and segments, in the order in which it is due."""

from __future__ import annotations

from math import inf
from operator import attrgetter
from typing import Final

from eventrouter.journal import segments
from eventrouter.journal.database import START, Database
from eventrouter.journal.protocol import Claim
from eventrouter.journal.segments import Packed

FIRST_REFILL: Final = 64  # claims: few, so that the first work of a long backlog starts at once
_REFILL: Final = 1024
_SIZE: Final = attrgetter("size")

State = tuple[int, int, int, list[Claim], int]


class Backlog:
    """credit: claims that the function may still get. held: bytes handed out since the start.

    waits: due work may be in the file, and nothing may overtake it; until it is known otherwise it is assumed.
    reached: the latest due time that a timer announced. after: the place in the file up to which all rows that wait are handed out;
    passed: the last segment that has been read, spare: what was read with it and is not handed out yet.
    behind: how many are in segments and not handed out.
    """

    __slots__ = ("after", "behind", "credit", "function", "held", "passed", "reached", "size", "spare", "waits")

    def __init__(self, function: str) -> None:
        self.function = function
        self.credit = 0
        self.waits = True
        self.reached = 0.0
        self.size = FIRST_REFILL
        self.held = 0
        self.behind = 0
        self.after = START
        self.passed = -1
        self.spare: list[Claim] = []

    def state(self) -> State:
        """What has to be as before when a transaction fails."""
        return self.credit, self.held, self.passed, self.spare, self.behind

    def restore(self, state: State) -> None:
        self.credit, self.held, self.passed, self.spare, self.behind = state
        for claim in self.spare:
            claim.segment.spare = 0
        for claim in self.spare:
            claim.segment.spare += 1

    def take(self, database: Database, now: float, born: float, room: int) -> tuple[list[Claim | Packed], float | None]:
        """Claims that are due, as the credit goes; when there are no more for now, when the next is due.

        born, room: as of `Database.take`.
        """
        limit = min(self.credit, self.size)
        self.size = min(self.size * 4, _REFILL)
        now = max(now, self.reached)  # a timer may be a hair early by the wall clock; what it announced is due
        found: list[Claim | Packed] = []
        count = size = 0
        full = False
        later: float | None = None
        self.waits = True
        while self.waits and count < limit and not full:
            if self.spare:
                some = self._use_spare(limit - count, room - size, first=not found)
                found += some
                count += len(some)
                size += sum(map(_SIZE, some))
                full = bool(self.spare) or size >= room
                continue
            first = segments.first(database, self.function, self.passed)
            bound = now if first is None else min(now, first)
            rows, after, later = database.take(self.function, self.after, bound, born, limit - count, room - size)
            found += rows
            count += len(rows)
            size += sum(map(_SIZE, rows))
            full = bool(found) and size >= room
            if after is not None:
                self.after = after
            elif first is None:
                self.waits = False
                self.size = FIRST_REFILL
            elif not full:
                until = inf if later is None else max(later, first)
                packs, self.passed = segments.take(database, self.function, self.passed, born, limit - count, room - size, until)
                for pack in packs:
                    if count + pack.segment.spare > limit or size + pack.size > room:  # the last: it goes further than it may
                        self.spare = pack.claims()
                        break
                    found.append(pack)
                    count += pack.segment.spare
                    size += pack.size
                    self.behind -= pack.segment.spare
                    pack.segment.spare = 0
                    full = size >= room
        self.credit -= count
        self.held += size
        return found, None if self.waits else later

    def _use_spare(self, limit: int, room: int, *, first: bool) -> list[Claim]:
        """first: it is the first to be handed out, however large."""
        used = 0
        for claim in self.spare[:limit]:
            if claim.size > room and not (first and used == 0):
                break
            room -= claim.size
            claim.segment.spare -= 1
            used += 1
        some, self.spare = self.spare[:used], self.spare[used:]
        self.behind -= used
        return some
