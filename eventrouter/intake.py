"""From events to what the journal keeps of them: who wants each, in which order, and in which queue it waits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

import msgspec

from eventrouter.clock import Clock
from eventrouter.crashpoints import crash_point
from eventrouter.destinations import Message, parse_destination
from eventrouter.errors import ConfigError, suggest
from eventrouter.functions import Policy
from eventrouter.journal.protocol import Entry, Journal, Note
from eventrouter.lanes import Lane
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
                self._indexes.setdefault(trigger.source, Index()).add(trigger.path, (lane, trigger))

    def deliver(self, events: Sequence[Event]) -> asyncio.Future[int]:
        """Journal each event once for every function that wants it; see `Router.deliver`."""
        entries: list[Entry] = []
        now = self._clock.time()
        for event in events:
            if event.time is None:
                event.time = now
            if not self._add(event, entries):
                self.unmatched += 1
                log.debug("no function wants %r", event, extra={"action": "event.unmatched"})
        return self._accept(entries)

    def _add(self, event: Event, entries: list[Entry]) -> bool:
        """Add an entry for each that wants the event; whether there is one."""
        if event.source in self.queueing:
            self.enqueue(event, entries)
            return True
        before = len(entries)
        index = self._indexes.get(event.source)
        for lane, trigger in index.find(event.subject) if index is not None else ():
            captures = trigger.matches(event)
            if captures is None:
                continue
            name = lane.name
            # Two triggers of one function that both match are still one event for it.
            if len(entries) == before or all(entry.function != name for entry in entries[before:]):
                key = lane.function.order_key(event, trigger, captures) if lane.function.ordered else None
                entries.append(Entry(name, event, (trigger, captures), key))
        return len(entries) > before

    def deliver_to(self, binding: Binding, event: Event) -> asyncio.Future[int]:
        return self.accept_for(binding.function.name, binding.trigger, event)

    def accept_for(
        self, name: str, trigger: Trigger | None, event: Event, captures: Mapping[str, str] | None = None
    ) -> asyncio.Future[int]:
        """Journal an event for one function. trigger: None for a direct invocation."""
        if event.time is None:
            event.time = self._clock.time()
        if captures is None and trigger is not None:
            captures = trigger.matches(event)
        captures, function = captures or NOTHING, self.lanes[name].function
        return self._accept([Entry(name, event, (trigger, captures), function.order_key(event, trigger, captures))])

    def enqueue(self, event: Event, entries: list[Entry]) -> None:
        """Add an entry for an event of a source with queues, unless the function that takes from its queue does not want it."""
        lane = self.queue(event.source, event.subject)
        terms = self.terms[event.source](event)
        key, hint = terms.key, None
        if lane is not None and lane.trigger is not None:
            if not lane.trigger.wants(event):
                self.filtered(lane, event)
                return
            captures = lane.trigger.matches(event) or NOTHING
            hint = lane.trigger, captures
            if key is None:
                key = lane.function.order_key(event, lane.trigger, captures)
        note = None if terms.once is None else Note(f"{event.source}/{terms.once}", event.id.encode(), terms.window)
        entries.append(Entry(f"{event.source}:{event.subject}", event, hint, key, terms.delay, note))

    @staticmethod
    def filtered(lane: Lane, event: Event) -> None:
        lane.filtered += 1
        log.debug("%s: %s does not want %r; it is deleted", lane.name, lane.trigger, event, extra={"action": "event.filtered"})

    def queue(self, source: str, subject: str) -> Lane | None:
        """The lane of a queue; None: no function takes from it."""
        name = f"{source}:{subject}"
        if name not in self.queues:
            self.queues[name] = None
            index = self._indexes.get(source)
            probe = Event(source, "", subject)
            for of, trigger in index.find(subject) if index is not None else ():
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
        return self._accept(self.addressed(target, message))

    def addressed(self, target: str, message: Message) -> list[Entry]:
        """What is to be journalled for a message to go to a destination such as `"sqs:NAME"`."""
        to = parse_destination(target, "destination")
        if to.scheme not in self.senders:
            raise ConfigError(f"{target!r}: nothing can be sent to {to.scheme!r}{suggest(to.scheme, self.senders)}")
        event = self.senders[to.scheme](to.name, message)
        if event.time is None:
            event.time = self._clock.time()
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
            if trigger.source == event.source and (captures := trigger.matches(event)) is not None:
                return trigger, captures
        return None


def _queue_policy(policy: Policy, queue: Queue) -> Policy:
    """A function's policy for what it takes from a queue: retries, delays and age are the queue's."""
    return msgspec.structs.replace(
        policy, retries=queue.receives - 1, backoff=fixed(queue.hide), max_age=queue.keep, dlq=queue.dlq or policy.dlq
    )
