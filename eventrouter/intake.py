"""From events to what the journal keeps of them: who wants each, in which order, and in which queue it waits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from eventrouter.clock import Clock
from eventrouter.contents import Contents, filter_out, looks_into_events
from eventrouter.crashpoints import crash_point
from eventrouter.destinations import Message, parse_destination
from eventrouter.errors import ConfigError, suggest
from eventrouter.functions import Policy
from eventrouter.journal.protocol import Claim, Entry, Journal, Note
from eventrouter.lanes import Lane
from eventrouter.lineage import ATTRIBUTE, Lineage, cause, exhausted, extend, inherit
from eventrouter.model import NOTHING, Event, Trigger
from eventrouter.retry import fixed
from eventrouter.routing import Index
from eventrouter.sources import Binding, Queue, Terms

log = logging.getLogger("eventrouter")

Found = tuple[Trigger | None, Mapping[str, str]]


class Intake:
    """lanes: of functions, by name; queues: of those queues that are known, None where no function takes from it.

    unmatched: events that no trigger wanted. repeats: events that had been accepted before.
    queueing: by source, what the router is to know of one of its queues; its events wait there until somebody takes them.
    terms: by source, how each of those waits.
    senders: by destination's scheme, what makes a message for a name there an event.
    opened: called with the lane of each queue that a function takes from.
    """

    def __init__(self, lanes: Mapping[str, Lane], journal: Journal, clock: Clock, opened: Callable[[Lane], None]) -> None:
        self.lanes = lanes
        self.queues: dict[str, Lane | None] = {}
        self.unmatched = 0
        self.repeats = 0
        self.queueing: dict[str, Callable[[str], Queue]] = {}
        self.terms: dict[str, Callable[[Event], Terms]] = {}
        self.senders: dict[str, Callable[[str, Message], Event]] = {
            "lambda": lambda name, message: Event("invoke", "lambda.invoke", name, message.body)
        }
        self._journal = journal
        self._clock = clock
        self._opened = opened
        self._indexes: dict[str, Index[tuple[Lane, Trigger]]] = {}
        for lane in lanes.values():
            for trigger in lane.function.triggers:
                if not looks_into_events(lane, trigger):
                    self._indexes.setdefault(trigger.source, Index()).add(trigger.path, (lane, trigger))
        self._contents = Contents(lanes.values())

    def deliver(self, events: Sequence[Event]) -> asyncio.Future[int]:
        """Journal each event once for every function that wants it; see `Router.deliver`."""
        entries: list[Entry] = []
        now = self._clock.time()
        lineage = None if cause.get() is None else self.lineage()  # the usual case needs no call
        for event in events:
            if event.time is None:
                event.time = now
            if lineage is not None:
                inherit(event, lineage)
            if not self._add(event, entries):
                self.unmatched += 1
                log.debug("no function wants %r", event, extra={"action": "event.unmatched"})
        return self._accept(entries)

    def _add(self, event: Event, entries: list[Entry]) -> bool:
        """Add an entry for each that wants the event; whether there is one."""
        before = len(entries)
        if event.source in self.queueing:
            entries.append(self.queued(event))
        else:
            for lane, trigger, captures in self._find(event):
                # Two triggers of one function that both match are still one event for it.
                name, function = lane.name, lane.function
                if len(entries) == before or all(entry.function != name for entry in entries[before:]):
                    key = function.order_key(event, trigger, captures) if function.ordered else None
                    entries.append(Entry(name, event, (trigger, captures), key))
        if event.attributes is not NOTHING and ATTRIBUTE in event.attributes:
            self._look_closer(entries[before:])
        return len(entries) > before

    def _find(self, event: Event) -> Iterator[tuple[Lane, Trigger, Mapping[str, str]]]:
        index = self._indexes.get(event.source)
        if index is not None:
            for lane, trigger in index.find(event.subject):
                captures = trigger.matches(event)
                if captures is not None:
                    yield lane, trigger, captures
        yield from self._contents.find(event)

    def wants(self, binding: Binding, event: Event) -> bool:
        """See `Router.wants`."""
        if binding.function.lets_in(binding.trigger, event):
            return True
        filter_out(self.lanes[binding.function.name], event)
        self.unmatched += 1
        return False

    def deliver_to(self, binding: Binding, event: Event) -> asyncio.Future[int]:
        if not self.wants(binding, event):
            return self._accept([])
        return self.accept_for(binding.function.name, binding.trigger, event)

    def accept_for(
        self, name: str, trigger: Trigger | None, event: Event, captures: Mapping[str, str] | None = None
    ) -> asyncio.Future[int]:
        """Journal an event for one function. trigger: None for a direct invocation."""
        if event.time is None:
            event.time = self._clock.time()
        if (lineage := self.lineage()) is not None:
            inherit(event, lineage)
        if captures is None and trigger is not None:
            captures = trigger.wants(event)
        captures, function = captures or NOTHING, self.lanes[name].function
        entries = [Entry(name, event, (trigger, captures), function.order_key(event, trigger, captures))]
        self._look_closer(entries)
        return self._accept(entries)

    def _look_closer(self, entries: Sequence[Entry]) -> None:
        """Have the engine look at those that may not run before it runs them: it does at what has no hint."""
        for entry in entries:
            lane = self.lanes.get(entry.function) or self.queues.get(entry.function)
            if lane is not None and exhausted(entry.event, lane.function.name):
                entry.hint = None

    def lineage(self) -> Lineage | None:
        """What an event inherits that is brought about here; None outside of handlers."""
        of = cause.get()
        return self.lineage_after(of) if isinstance(of, Claim) else of

    def lineage_after(self, claim: Claim) -> Lineage:
        """What is inherited from an attempt at the claim; what was redriven begins anew."""
        lane = self.lanes.get(claim.function) or self.queues.get(claim.function)
        return extend(claim.function if lane is None else lane.function.name, () if claim.redriven else (claim.event,))

    def accept_again(self, name: str, events: Sequence[Event]) -> tuple[asyncio.Future[int], int]:
        """Journal events for a function, or a queue, that had them before; and of how many none of its triggers wants anything any more."""
        lane = self.lanes.get(name) or self.queues.get(name)
        entries: list[Entry] = []
        for event in events:
            found = None if lane is None else self.rebind(lane, event)
            if event.source in self.queueing and name not in self.lanes:  # a queue keeps what nobody takes from it; it was sent before
                entry = self.queued(event)
                entries.append(Entry(name, event, entry.hint, entry.key))
            elif lane is not None and found is not None and (found[0] is None or lane.function.lets_in(found[0], event)):
                entries.append(Entry(name, event, found, lane.function.order_key(event, *found)))
        return self._accept(entries), len(events) - len(entries)

    def queued(self, event: Event) -> Entry:
        """The entry for an event of a source with queues."""
        lane = self.queue(event.source, event.subject)
        terms = self.terms[event.source](event)
        key, hint = terms.key, None
        if lane is not None and lane.trigger is not None:
            captures = lane.trigger.matches(event) or NOTHING
            hint = lane.trigger, captures
            if key is None:
                key = lane.function.order_key(event, lane.trigger, captures)
        note = None if terms.once is None else Note(f"{event.source}/{terms.once}", event.id.encode(), terms.window)
        return Entry(f"{event.source}:{event.subject}", event, hint, key, terms.delay, note)

    def queue(self, source: str, subject: str) -> Lane | None:
        """The lane of a queue; None: no function takes from it."""
        name = f"{source}:{subject}"
        if name not in self.queues:
            self.queues[name] = None
            index = self._indexes.get(source)
            probe = Event(source, "", subject)
            for of, trigger in (*(index.find(subject) if index is not None else ()), *self._contents.at(source, subject)):
                if trigger.matches(probe) is None:
                    continue
                lane = Lane(name, of.function, _queue_policy(of.policy, self.queueing[source](subject)), of.pool, of.window, trigger)
                self.queues[name] = lane
                self._opened(lane)
                break
        return self.queues[name]

    def _accept(self, entries: list[Entry]) -> asyncio.Future[int]:
        receipt: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if not entries:
            receipt.set_result(0)
            return receipt

        def accepted(written: asyncio.Future[list[bool]]) -> None:
            error = None if written.cancelled() else written.exception()
            if receipt.done():
                return
            if error is not None:
                receipt.set_exception(error)
                return
            crash_point("receipt.before")
            fresh = written.result()
            new = sum(fresh)
            self.repeats += len(fresh) - new
            for entry, is_new in zip(entries, fresh, strict=True):
                lane = self.lanes.get(entry.function) or self.queues.get(entry.function)
                if lane is not None:
                    lane.accepted += is_new
            receipt.set_result(new)

        crash_point("accept.before")
        self._journal.accept(entries).add_done_callback(accepted)
        return receipt

    def forward(self, target: str, message: Message) -> asyncio.Future[int]:
        """Journal what goes to a destination; see `Router.forward`."""
        return self._accept(self.addressed(target, message, self.lineage()))

    def addressed(self, target: str, message: Message, lineage: Lineage | None) -> list[Entry]:
        """What is to be journalled for a message to go to a destination such as `"sqs:NAME"`, and what it inherits."""
        to = parse_destination(target, "destination")
        if to.scheme not in self.senders:
            raise ConfigError(f"{target!r}: nothing can be sent to {to.scheme!r}{suggest(to.scheme, self.senders)}")
        event = self.senders[to.scheme](to.name, message)
        if event.time is None:
            event.time = self._clock.time()
        if lineage is not None:
            inherit(event, lineage)
        entries: list[Entry] = []
        if to.scheme == "lambda":
            entries.append(Entry(to.name, event))
        elif not self._add(event, entries):
            log.warning("nobody takes what is sent to %s; the dead letter itself stays", target, extra={"action": "destination.unheard"})
        return entries

    @staticmethod
    def rebind(lane: Lane, event: Event) -> Found | None:
        """Which of the lane's triggers an event is for, and its captures, when the journal has forgotten; None: none any more."""
        if event.source == "invoke":
            return None, event.attributes.get("parameters", NOTHING)
        for trigger in lane.triggers:
            if trigger.source == event.source:
                captures = trigger.matches(event) if trigger.content_pattern is None else trigger.wants(event)
                if captures is not None:
                    return trigger, captures
        return None


def _queue_policy(policy: Policy, queue: Queue) -> Policy:
    """A function's policy for what it takes from a queue: retries, delays and age are the queue's."""
    return msgspec.structs.replace(
        policy, retries=queue.receives - 1, backoff=fixed(queue.hide), max_age=queue.keep, dlq=queue.dlq or policy.dlq
    )
