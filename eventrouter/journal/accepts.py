"""What is accepted at once, on its way into the file: numbered, packed, and divided into segments and single events. Run on the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence, Set
from typing import Any

from eventrouter.errors import JournalError
from eventrouter.journal.protocol import Claim, Fresh, is_queue
from eventrouter.journal.segments import MOST, Part, Segment, cut
from eventrouter.model import Event


class Accept:
    """New events. parts: of them, in their order; a segment that nobody will be handed soon has no claims.

    first: the sequence number of the first. natural: the claims, if any may be a repeat. born: when they came, in monotonic seconds.
    answer: after the commit, of each; told: makes of it what the future resolves to.
    """

    __slots__ = ("answer", "born", "first", "future", "natural", "parts", "told")

    def __init__(self, future: asyncio.Future[Any], told: Fresh, claims: Sequence[Claim], first: int, born: float) -> None:
        self.future = future
        self.told = told
        self.first = first
        self.born = born
        self.parts: list[Part] = []
        self.natural: Sequence[Claim] = ()
        self.answer = [True] * len(claims)

    def divide(self, claims: Sequence[Claim], most: Mapping[str, int] | None, behind: Set[str]) -> None:
        """most: of each function, how many a segment may have; None: there are to be none. behind: functions with a long backlog.

        Raises JournalError that names an event which can't be stored.
        """
        seq, born = self.first, self.born
        if len(claims) == 1 and most is not None and self._alone(claims[0], behind):  # as sources that answer each event deliver them
            return
        together: list[Claim] = []
        function, whole, natural = "", False, False
        for claim in claims:
            claim.seq = seq
            claim.born = born
            seq += 1
            natural = natural or claim.note is not None or claim.event.dedupe
            if claim.function != function:
                if together:
                    self.parts += _cut(together, most)
                    together = []
                function = claim.function
                whole = most is not None and not is_queue(function)  # messages of queues are received one by one
            if whole and claim.key is None and claim.note is None and not claim.delay:
                together.append(claim)
                continue
            if together:
                self.parts += _cut(together, most)
                together = []
            packed = pack(claim.event)
            claim.size = len(packed)
            self.parts.append((None, [claim], packed))
        if together:
            self.parts += _cut(together, most)
        if natural:
            self.natural = claims
        elif behind:
            self.parts = [part if part[0] is None or part[0].function not in behind else (part[0], [], b"") for part in self.parts]

    def _alone(self, claim: Claim, behind: Set[str]) -> bool:
        """As `divide`, unless it is to have a row, or may be a repeat."""
        event, function = claim.event, claim.function
        if claim.key is not None or claim.note is not None or claim.delay or event.dedupe or is_queue(function):
            return False
        packed = pack(event)
        claim.seq, claim.born, claim.size = self.first, self.born, len(packed)
        claim.segment = segment = Segment(self.first, function, packed, bytearray(1))
        self.parts.append((segment, [] if function in behind else [claim], b""))
        return True


def _cut(claims: list[Claim], most: Mapping[str, int] | None) -> list[Part]:
    assert most is not None
    try:
        return cut(claims, claims[0].seq, most.get(claims[0].function, MOST))
    except (TypeError, ValueError, OverflowError):
        for claim in claims:
            pack(claim.event)  # tells which it is
        raise


def pack(event: Event) -> bytes:
    """Raises JournalError that names it when it can't be stored."""
    try:
        return event.pack()
    except (TypeError, ValueError, OverflowError) as error:
        raise JournalError(f"{event!r} cannot be stored: {error}; attributes must be JSON types") from error
