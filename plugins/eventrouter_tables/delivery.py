"""From rows that have changed to functions: who gets what, from which change on, and how far it has come."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import msgspec

from eventrouter import Binding, Event, Router
from eventrouter.errors import JournalError
from eventrouter_tables.records import Feed, Row, Stream, events

_AGAIN = 0.5  # seconds until the journal is asked again whether it takes events


class Progress(msgspec.Struct):
    """position: of the last change that is journalled. prefix: of the log that it was in; 0: none was read yet.

    since: by function and feed, the change after which it gets them. generation: how often another log was in the place of the last.
    """

    position: int = 0
    prefix: int = 0
    since: dict[str, int] = {}
    generation: int = 0

    def apart(self, stream: Stream) -> Stream:
        """With sequence numbers that no former log had: an older copy of a database would give out the same for other changes."""
        prefix = 10_000_000 + (stream.prefix + self.generation * 7_654_321) % 90_000_000
        return msgspec.structs.replace(stream, prefix=prefix)


class Delivery:
    """Of one database. feeds: what its triggers ask for."""

    def __init__(self, router: Router, database: str, bindings: Sequence[tuple[Binding, Feed, bool]]) -> None:
        self.router = router
        self.feeds = list(dict.fromkeys(feed for _, feed, _ in bindings))
        self.progress = Progress()
        self._bindings = bindings
        self._key = f"at/{hashlib.sha256(database.encode()).hexdigest()[:16]}"
        self._all_after = 0  # every function gets what comes after this

    async def load(self) -> Progress:
        saved = await self.router.get(self._key)
        self.progress = msgspec.json.decode(saved, type=Progress) if saved is not None else Progress()
        return self.progress

    async def begin(self, head: int) -> None:
        """head: the position of the last change so far; functions that are here for the first time get what follows, or all."""
        known, position = self.progress.since, self.progress.position
        self.progress.since = {
            name: max(known[name], position) if name in known else 0 if oldest else head
            for name, oldest in ((_name(binding, feed), oldest) for binding, feed, oldest in self._bindings)
        }
        self.progress.position = min(self.progress.since.values())
        self._all_after = max(self.progress.since.values())
        await self.save()

    async def save(self) -> None:
        await self.router.put(self._key, msgspec.json.encode(self.progress))

    async def deliver(self, rows: Sequence[Row], wanted: Mapping[str, Sequence[Feed]], stream: Stream) -> None:
        """Return once they are on disk, however long the journal takes none. wanted: feeds by table."""
        for_all: list[Event] = []
        for_some: list[tuple[Binding, Event]] = []
        for row in rows:
            for feed in wanted.get(row.table, ()):
                made = events(row, feed, stream)
                if row.position > self._all_after:
                    for_all += made
                else:
                    for_some += [(binding, event) for binding in self._getting(feed, row.position) for event in made]
        while self.router.fault:
            await self.router.clock.sleep(_AGAIN)
        while True:
            try:
                for receipt in [self.router.deliver_to(binding, event) for binding, event in for_some]:
                    await receipt
                if for_all:
                    await self.router.deliver(for_all)
                return
            except JournalError as error:
                self.router.log.warning("%s; trying again", error, extra={"action": "source.refused", "source": self.router.name})
                await self.router.clock.sleep(_AGAIN)

    def _getting(self, feed: Feed, position: int) -> list[Binding]:
        return [binding for binding, its, _ in self._bindings if its == feed and position > self.progress.since[_name(binding, feed)]]


def _name(binding: Binding, feed: Feed) -> str:
    return " ".join((binding.function.name, *feed))
