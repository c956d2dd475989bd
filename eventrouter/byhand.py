"""What is done by hand: letters are sent again, messages of queues are received, moved and ended."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from eventrouter.clock import Clock
from eventrouter.intake import Intake
from eventrouter.journal.protocol import Claim, Journal, LetterQuery, Received
from eventrouter.model import Done, Event, Release
from eventrouter.settlement import Settlement

_MOST: Final = 16_384  # messages in memory
_PAGE: Final = 256  # messages of a queue that are ended or moved at a time
_DONE: Final = Done()
_RELEASE: Final = Release()


class ByHand:
    """adopt: to be called when there is work of whomever."""

    def __init__(
        self, journal: Journal, clock: Clock, intake: Intake, settlement: Settlement, adopt: Callable[[], Awaitable[None]]
    ) -> None:
        self._journal = journal
        self._clock = clock
        self._intake = intake
        self._settlement = settlement
        self._adopt = adopt

    async def redrive(self, ids: Sequence[str]) -> int:
        """Send letters again, with today's code. How many there were."""
        count = await self._journal.redrive(ids)
        await self._adopt()
        return count

    async def letters(self, query: LetterQuery, each: Callable[[list[str]], Awaitable[int]]) -> int:
        """Apply `each` to the ids of all letters that match now, a page at a time."""
        total, after = 0, ""
        ids: list[str] = []
        while page := await self._journal.dead(query, after, 1000):
            after = page[-1].id
            ids.extend(letter.id for letter in page)
        for start in range(0, len(ids), 1000):
            total += await each(ids[start : start + 1000])
        return total

    async def receive(self, source: str, subject: str, count: int, hide: float, wait: float = 0) -> list[Received]:
        """Take messages of a queue; what was taken too often is a dead letter now. See `Router.receive`."""
        queue, lane, name = self._intake.queueing[source](subject), self._intake.queue(source, subject), f"{source}:{subject}"
        received: list[Received] = []
        end = self._clock.monotonic() + wait
        while True:
            rest = 0 if received else max(0, end - self._clock.monotonic())
            some, spent = await self._journal.receive(name, count - len(received), hide, queue.receives, queue.keep, rest)
            received += some
            for claim in spent:
                self._settlement.bury_unread(claim, queue, lane)
            if not spent or len(received) == count:  # else there may be some behind those that are dead
                return received

    async def move(self, source: str, subject: str, count: int, becomes: Callable[[Event], Event | None]) -> int:
        """See `Router.move`."""
        moved, left = 0, dict[str, Claim]()
        try:
            while moved < count and len(left) < _MOST:  # what stays is in memory until the end
                _, claims = await self._journal.receive(f"{source}:{subject}", min(count - moved, _PAGE), 0, 0)
                if not claims:
                    break
                left |= {claim.id: claim for claim in claims}
                for claim in claims:
                    event = becomes(claim.event)
                    if event is None:
                        continue
                    event.time = self._clock.time()
                    self._journal.settle(left.pop(claim.id), _DONE, [self._intake.queued(event)])
                    moved += 1
        finally:
            for claim in left.values():
                self._journal.settle(claim, _RELEASE)
        await self._journal.flush()
        return moved

    async def expire(self, source: str, subject: str) -> int:
        """See `Router.expire`."""
        queue, lane = self._intake.queueing[source](subject), self._intake.queue(source, subject)
        total = 0
        while claims := await self._journal.expired(f"{source}:{subject}", queue.keep, _PAGE):
            total += len(claims)
            for claim in claims:
                self._settlement.bury_unread(claim, queue, lane)
        return total
