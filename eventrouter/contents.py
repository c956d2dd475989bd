"""Functions that look into events, by a pattern of their trigger's or by `where`: many are asked at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any

from eventrouter.lanes import Lane, Tally
from eventrouter.model import Event, Trigger, viewed
from eventrouter.patterns import Rules
from eventrouter.routing import Index

log = logging.getLogger("eventrouter")

Member = tuple[Lane, Trigger]
View = Callable[[Event], Any]
Views = dict[View, dict[str, Any] | None]  # of one event, each made once


class Contents:
    """The triggers that have a `content_pattern`, or whose function has a `where`, of each source."""

    def __init__(self, lanes: Iterable[Lane]) -> None:
        self._indexes: dict[str, Index[_ByPattern | _ByWhere]] = {}
        groups: dict[Hashable, _ByPattern | _ByWhere] = {}
        for lane in lanes:
            for trigger in lane.function.triggers:
                if not looks_into_events(lane, trigger):
                    continue
                place: Hashable
                if trigger.content_pattern is not None:
                    place = (trigger.source, trigger.path, trigger.view)
                else:
                    place = (trigger.source, type(trigger), id(trigger) if trigger.same is None else trigger.same)
                if place not in groups:
                    groups[place] = _ByWhere(trigger) if trigger.content_pattern is None else _ByPattern(trigger.view)
                    self._indexes.setdefault(trigger.source, Index()).add(trigger.path, groups[place])
                groups[place].add(lane, trigger)

    def find(self, event: Event) -> Iterator[tuple[Lane, Trigger, Mapping[str, str]]]:
        """Those that want the event, and what their triggers capture; counts what `where` keeps out."""
        index = self._indexes.get(event.source)
        if index is not None:
            views: Views = {}
            for group in index.find(event.subject):
                yield from group.find(event, views)

    def at(self, source: str, subject: str) -> Iterator[Member]:
        """All that stand where events of this subject are looked for, whatever is in them."""
        if source in self._indexes:
            for group in self._indexes[source].find(subject):
                yield from group.members


def looks_into_events(lane: Lane, trigger: Trigger) -> bool:
    return trigger.content_pattern is not None or lane.function.where is not None


def filter_out(lane: Lane, event: Event) -> None:
    lane.refused += 1
    _tell(lane, event)


def _tell(lane: Lane, event: Event) -> None:
    log.debug("%s does not want %r", lane.name, event, extra={"action": "event.filtered", "function": lane.name})


class _ByPattern:
    """Triggers whose patterns are held against the same view of an event."""

    __slots__ = ("_rules", "_view", "members")

    def __init__(self, view: View) -> None:
        self.members: list[Member] = []
        self._view = view
        self._rules: Rules[Member] = Rules()

    def add(self, lane: Lane, trigger: Trigger) -> None:
        assert trigger.content_pattern is not None
        self.members.append((lane, trigger))
        self._rules.add(trigger.content_pattern, (lane, trigger))

    def find(self, event: Event, views: Views) -> Iterator[tuple[Lane, Trigger, Mapping[str, str]]]:
        if self._view not in views:
            views[self._view] = viewed(self._view, event)
        seen = views[self._view]
        for lane, trigger in () if seen is None else self._rules.find(seen):
            captures = trigger.matches(event)
            if captures is None:
                continue
            if lane.function.lets_in(trigger, event):
                yield lane, trigger, captures
            else:
                filter_out(lane, event)


class _ByWhere:
    """Functions with `where` whose triggers are the same: what one of them matches, captures and shows, all do."""

    __slots__ = ("_came", "_rules", "_trigger", "members")

    def __init__(self, trigger: Trigger) -> None:
        self.members: list[Member] = []
        self._trigger = trigger
        self._rules: Rules[Member] = Rules(in_texts=True)
        self._came = Tally()

    def add(self, lane: Lane, trigger: Trigger) -> None:
        assert lane.function.where is not None
        self.members.append((lane, trigger))
        self._rules.add(lane.function.where, (lane, trigger))
        lane.came.append(self._came)

    def find(self, event: Event, views: Views) -> Iterator[tuple[Lane, Trigger, Mapping[str, str]]]:
        captures = self._trigger.matches(event)
        if captures is None:
            return
        seen = viewed(self._as_aws, event)
        wanted = [] if seen is None else self._rules.find(seen)
        self._came.count += 1
        for lane, trigger in wanted:
            lane.let_in += 1
            yield lane, trigger, captures
        if log.isEnabledFor(logging.DEBUG):
            for lane, trigger in self.members:
                if (lane, trigger) not in wanted:
                    _tell(lane, event)

    def _as_aws(self, event: Event) -> Any:
        return self._trigger.aws_event((event,))
