"""From events to what the journal keeps of them: who wants each, in which order, and in which queue it waits."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import compress
from operator import attrgetter
from typing import Final

import msgspec

from eventrouter.clock import Clock
from eventrouter.contents import Contents, filter_out, looks_into_events
from eventrouter.crashpoints import crash_point
from eventrouter.destinations import Message, parse_destination
from eventrouter.errors import ConfigError, suggest
from eventrouter.functions import Function, Policy
from eventrouter.journal.protocol import Claim, Journal, Note
from eventrouter.lanes import Found, Lane
from eventrouter.lineage import ATTRIBUTE, Cause, Lineage, cause, exhausted, extend, inherit
from eventrouter.model import NOTHING, Event, Trigger
from eventrouter.retry import fixed
from eventrouter.routing import Index
from eventrouter.sources import Binding, Queue, Standing, Terms

log = logging.getLogger("eventrouter")

_PLANS: Final = 4096  # subjects of a source
Plan = tuple[
    tuple[str, Found, Callable[[Event], bool] | None], ...
]  # of each function that wants a subject: what for, and what it asks besides
_NO_PLANS: Final[Mapping[str, Plan]] = {}
Known = tuple[str, Found | None, Function | None]  # of a queue: its name, what its events are for, the function to ask for their order
_UNKNOWN: Final[Mapping[str, Known]] = {}
_FUNCTION: Final = attrgetter("function")
_COUNTED: Final = Standing.__struct_fields__[4:]  # which a lane has by these names, too


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
        self._known: dict[str, dict[str, Known]] = {}  # of queues, by source and subject
        self.queueing: dict[str, Callable[[str], Queue]] = {}
        self.terms: dict[str, Callable[[Event], Terms]] = {}
        self.senders: dict[str, Callable[[str, Message], Event]] = {
            "lambda": lambda name, message: Event("invoke", "lambda.invoke", name, message.body)
        }
        self._journal = journal
        self._clock = clock
        self._opened = opened
        self._indexes: dict[str, Index[tuple[Lane, Trigger]]] = {}
        self._plans: dict[str, dict[str, Plan]] = {}
        self._sure: dict[str, dict[str, Plan]] = {}  # those where nobody asks for more than the subject
        for lane in lanes.values():
            for trigger in lane.function.triggers:
                if not looks_into_events(lane, trigger):
                    self._indexes.setdefault(trigger.source, Index()).add(trigger.path, (lane, trigger))
        self._contents = Contents(lanes.values())

    def deliver(self, events: Sequence[Event]) -> asyncio.Future[int]:
        """Journal each event once for every function that wants it; see `Router.deliver`."""
        claims: list[Claim] = []
        now = self._clock.time()
        if cause.get() is not None and (lineage := self.lineage()) is not None:
            for event in events:
                inherit(event, lineage)
        source, sure = "", _NO_PLANS
        for event in events:
            if event.time is None:
                event.time = now
            if event.source != source:
                source = event.source
                sure = self._sure.get(source, _NO_PLANS)
            found = sure.get(event.subject)
            if found is None or ((attributes := event.attributes) is not NOTHING and ATTRIBUTE in attributes):
                self._add_wanted(event, claims)
                continue
            for name, hint, _ in found:
                claims.append(Claim(name, event, hint))
        if len(claims) > len(events):
            claims.sort(key=_FUNCTION)  # of each function one after another, in the order in which they came: they are written together
        return self._accept(claims)

    def _add_wanted(self, event: Event, claims: list[Claim]) -> None:
        """As `_add`, and count it if there is none."""
        before = len(claims)
        plan = self._plans.get(event.source, _NO_PLANS).get(event.subject)
        if plan is None or ATTRIBUTE in event.attributes:
            self._add(event, claims)
        else:
            claims += [Claim(name, event, hint) for name, hint, accepts in plan if accepts is None or accepts(event)]
        if len(claims) == before:
            self.unmatched += 1
            log.debug("no function wants %r", event, extra={"action": "event.unmatched"})

    def _plan(self, source: str, subject: str, found: Sequence[tuple[Lane, Trigger]]) -> None:
        """Keep who gets events of this subject, if that depends on nothing else."""
        if source in self.queueing or any(self._contents.at(source, subject)) or any(lane.gate is not None for lane, _ in found):
            return
        plan: dict[str, tuple[str, Found, Callable[[Event], bool] | None]] = {}
        for lane, trigger in found:
            captures = trigger.captures(subject)
            if captures is None:
                continue
            accepts = None if type(trigger).accepts is Trigger.accepts else trigger.accepts
            if lane.function.ordered or (lane.name in plan and (accepts or plan[lane.name][2])):
                return
            plan.setdefault(lane.name, (lane.name, (trigger, captures), accepts))
        if not plan:
            return
        plans, sure = self._plans.setdefault(source, {}), self._sure.setdefault(source, {})
        if len(plans) >= _PLANS:  # bounded: subjects come from outside
            plans.clear()
            sure.clear()
        plans[subject] = tuple(plan.values())
        if all(accepts is None for _, _, accepts in plans[subject]):
            sure[subject] = plans[subject]

    def _add(self, event: Event, entries: list[Claim]) -> None:
        """Add an entry for each that wants the event."""
        before = len(entries)
        if event.source in self.queueing:
            entries.append(self.queued(event))
        else:
            index = self._indexes.get(event.source)
            found = index.find(event.subject) if index is not None else ()
            self._plan(event.source, event.subject, found)
            for lane, trigger, captures in self._allowed(event, found):
                # Two triggers of one function that both match are still one event for it.
                name, function = lane.name, lane.function
                if len(entries) == before or all(entry.function != name for entry in entries[before:]):
                    key = function.order_key(event, trigger, captures) if function.ordered else None
                    entries.append(Claim(name, event, (trigger, captures), key))
        if event.attributes is not NOTHING and ATTRIBUTE in event.attributes:
            self._look_closer(entries[before:])

    def _allowed(self, event: Event, found: Sequence[tuple[Lane, Trigger]]) -> Iterator[tuple[Lane, Trigger, Mapping[str, str]]]:
        for lane, trigger, captures in self._wanting(event, found):
            if lane.gate is None or self.may_start(lane, trigger, event):
                yield lane, trigger, captures

    def may_start(self, lane: Lane, trigger: Trigger, event: Event) -> bool:
        """Whether the function policy lets the event start the function by this trigger; counts and tells what it doesn't."""
        if lane.gate is None or lane.gate(trigger, event.subject):
            return True
        lane.barred += 1
        told = log.warning if lane.barred.bit_count() == 1 else log.debug  # the first, the second, the fourth ...: a flood fills no disk
        told(
            "%s: its function policy does not let %s start it: %s %r is not its (%d so far); `eventrouter permissions show %s`",
            lane.name, trigger.principal, event.source, event.subject, lane.barred, lane.name,
            extra={"action": "event.barred", "function": lane.name},
        )  # fmt: skip
        return False

    def standings(self, waiting: Mapping[str, int]) -> list[Standing]:
        """waiting: how many wait in the journal, by function and queue."""
        found: dict[str, Standing] = {}
        for lane in (*self.lanes.values(), *filter(None, self.queues.values())):
            function = lane.function
            before = found.get(function.name) or Standing(function.name, function.policy.tags)
            more = {name: getattr(before, name) + getattr(lane, name) for name in _COUNTED}
            queued = waiting.get(lane.name, 0) + lane.count
            found[function.name] = Standing(
                function.name, function.policy.tags, before.running + lane.active, before.waiting + queued, **more
            )  # fmt: skip
        return list(found.values())

    def gates_changed(self) -> None:
        """Forget who gets what, as functions may be started by others now."""
        self._plans.clear()
        self._sure.clear()
        for lane in filter(None, self.queues.values()):
            self._follow_gate(lane)

    def _follow_gate(self, lane: Lane) -> None:
        gate = self.lanes[lane.function.name].gate
        assert lane.trigger is not None
        lane.gated = gate is not None and not gate(lane.trigger, lane.name.partition(":")[2])

    def _wanting(self, event: Event, found: Sequence[tuple[Lane, Trigger]]) -> Iterator[tuple[Lane, Trigger, Mapping[str, str]]]:
        for lane, trigger in found:
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

    def deliver_to(self, binding: Binding, event: Event, captures: Mapping[str, str] | None = None) -> asyncio.Future[int]:
        if not self.wants(binding, event) or not self.may_start(self.lanes[binding.function.name], binding.trigger, event):
            return self._accept([])
        return self.accept_for(binding.function.name, binding.trigger, event, captures)

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
        entries = [Claim(name, event, (trigger, captures), function.order_key(event, trigger, captures))]
        self._look_closer(entries)
        return self._accept(entries)

    def _look_closer(self, entries: Sequence[Claim]) -> None:
        """Have the engine look at those that may not run before it runs them: it does at what has no hint."""
        for entry in entries:
            lane = self.lanes.get(entry.function) or self.queues.get(entry.function)
            if lane is not None and exhausted(entry.event, lane.function.name):
                entry.hint = None

    def lineage(self) -> Lineage | None:
        """What an event inherits that is brought about here; None outside of handlers."""
        of = cause.get()
        if isinstance(of, tuple):
            return extend(of[0], (of[1],)) if isinstance(of[1], Event) else of[1]
        return None if of is None else self.lineage_after(of)

    def running(self, of: Cause) -> str:
        """The function that runs for a cause."""
        if isinstance(of, tuple):
            return of[0]
        if of is None:
            return ""
        lane = self.lanes.get(of.function) or self.queues.get(of.function)
        return of.function if lane is None else lane.function.name

    def lineage_after(self, claim: Claim) -> Lineage:
        """What is inherited from an attempt at the claim; what was redriven begins anew."""
        return extend(self.running(claim), () if claim.redriven else (claim.event,))

    def accept_again(self, name: str, events: Sequence[Event]) -> tuple[asyncio.Future[int], int]:
        """Journal events for a function, or a queue, that had them before; and of how many none of its triggers wants anything any more."""
        lane = self.lanes.get(name) or self.queues.get(name)
        entries: list[Claim] = []
        for event in events:
            found = None if lane is None else self.rebind(lane, event)
            if event.source in self.queueing and name not in self.lanes:  # a queue keeps what nobody takes from it; it was sent before
                entry = self.queued(event)
                entries.append(Claim(name, event, entry.hint, entry.key))
            elif lane is not None and found is not None and (found[0] is None or lane.function.lets_in(found[0], event)):
                entries.append(Claim(name, event, found, lane.function.order_key(event, *found)))
        return self._accept(entries), len(events) - len(entries)

    def queued(self, event: Event) -> Claim:
        """The entry for an event of a source with queues."""
        source, subject = event.source, event.subject
        name, hint, ordered = self._known.get(source, _UNKNOWN).get(subject) or self._know(source, subject)
        terms = self.terms[source](event)
        key = terms.key
        if key is None and ordered is not None and hint is not None:
            key = ordered.order_key(event, *hint)
        note = None if terms.once is None else Note(f"{source}/{terms.once}", event.id.encode(), terms.window)
        return Claim(name, event, hint, key, terms.delay, note)

    def _know(self, source: str, subject: str) -> Known:
        lane, hint, ordered = self.queue(source, subject), None, None
        if lane is not None and lane.trigger is not None:
            hint = lane.trigger, lane.trigger.captures(subject) or NOTHING
            ordered = lane.function if lane.function.ordered else None
        known = self._known.setdefault(source, {})[subject] = f"{source}:{subject}", hint, ordered
        return known

    def queue(self, source: str, subject: str) -> Lane | None:
        """The lane of a queue; None: no function takes from it."""
        name = f"{source}:{subject}"
        if name not in self.queues:
            self.queues[name] = None
            index = self._indexes.get(source)
            for of, trigger in (*(index.find(subject) if index is not None else ()), *self._contents.at(source, subject)):
                if trigger.captures(subject) is None:
                    continue
                lane = Lane(
                    name, of.function, _queue_policy(of.policy, self.queueing[source](subject)), of.pool, of.window, trigger, of.rate
                )
                self.queues[name] = lane
                self._follow_gate(lane)
                self._opened(lane)
                break
        return self.queues[name]

    def _accept(self, entries: list[Claim]) -> asyncio.Future[int]:
        if not entries:
            receipt: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            receipt.set_result(0)
            return receipt
        names = [*map(_FUNCTION, entries)]  # not the entries, which may be in the file alone soon

        def accepted(fresh: list[bool]) -> int:
            crash_point("receipt.before")
            new = sum(fresh)
            self.repeats += len(fresh) - new
            counts = {names[0]: new} if len(names) == 1 else Counter(compress(names, fresh))
            for name, count in counts.items():
                lane = self.lanes.get(name) or self.queues.get(name)
                if lane is not None:
                    lane.accepted += count
            return new

        crash_point("accept.before")
        return self._journal.accept(entries, accepted)

    def forward(self, target: str, message: Message) -> asyncio.Future[int]:
        """Journal what goes to a destination; see `Router.forward`."""
        return self._accept(self.addressed(target, message, self.lineage()))

    def addressed(self, target: str, message: Message, lineage: Lineage | None) -> list[Claim]:
        """What is to be journalled for a message to go to a destination such as `"sqs:NAME"`, and what it inherits."""
        to = parse_destination(target, "destination")
        if to.scheme not in self.senders:
            raise ConfigError(f"{target!r}: nothing can be sent to {to.scheme!r}{suggest(to.scheme, self.senders)}")
        event = self.senders[to.scheme](to.name, message)
        if event.time is None:
            event.time = self._clock.time()
        if lineage is not None:
            inherit(event, lineage)
        entries: list[Claim] = []
        if to.scheme == "lambda":
            entries.append(Claim(to.name, event))
        else:
            self._add(event, entries)
        if not entries:
            log.warning("nobody takes what is sent to %s; the dead letter itself stays", target, extra={"action": "destination.unheard"})
        return entries

    def recall(self, lane: Lane, claims: Sequence[Claim]) -> None:
        """Say of those that come from the file what they are for, if it is known what all events of their subject are for."""
        name, source, plans = lane.name, "", _NO_PLANS
        alike: dict[str, Found] = {}  # subjects, whatever else their events say
        for claim in claims:
            event = claim.event
            if claim.hint is not None or claim.deaths or ((of := event.attributes) and ATTRIBUTE in of):
                continue
            if event.source != source:
                source, alike = event.source, {}
                plans = self._plans.get(source, _NO_PLANS)
            claim.hint = alike.get(event.subject)
            if claim.hint is not None:
                continue
            try:
                for of_name, found, accepts in plans.get(event.subject, ()):
                    if of_name == name and (accepts is None or accepts(event)):
                        claim.hint = found
                        if accepts is None:
                            alike[event.subject] = found
            except Exception:  # noqa: S112 - of a plugin's trigger: `rebind` meets it again, and the event ends of it
                continue

    def rebind(self, lane: Lane, event: Event) -> Found | None:
        """Which of the lane's triggers an event is for, and its captures, when the journal has forgotten; None: none any more."""
        if event.source == "invoke":
            return None, event.attributes.get("parameters", NOTHING)
        for name, found, accepts in self._plans.get(event.source, _NO_PLANS).get(event.subject, ()):
            if name == lane.name and (accepts is None or accepts(event)):
                return found
        if (index := self._indexes.get(event.source)) is not None:
            self._plan(event.source, event.subject, index.find(event.subject))  # there may be more of it
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
