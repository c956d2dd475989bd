"""One function's, or one queue's, share of the engine: its waiting claims in their order, its slots, its counters."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from operator import attrgetter
from typing import Any

from eventrouter.clock import Timer
from eventrouter.functions import Function, Policy
from eventrouter.journal.protocol import Claim
from eventrouter.limits import Pool, Rate
from eventrouter.model import Event, Trigger

Found = tuple[Trigger | None, Mapping[str, str]]  # which of a function's triggers an event is for, and what that captured
Callers = Mapping[Trigger | None, Callable[[Event, Mapping[str, str]], Coroutine[Any, Any, Any]]]
_KEY = attrgetter("key")
_BATCH_BYTES = 6 * 1024 * 1024  # of one batch's events together, as in Lambda


class Tally:
    """Of events; lanes share one where each must not be touched for every event."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class Lane:
    """name: the journal's for its claims. policy: the function's, or for a queue's lane what the queue makes of it.

    filters: whether not all that comes to a queue's lane is for its function.
    plain: the handler's coroutine is all there is to an attempt. forgets: what it returns is of no use to anybody who doesn't wait for it.
    callers: what calls the handler for events of each trigger, where that is all there is to it; None: not made yet.
    window: how many claims it may hold. triggers: that its events may be for; trigger: of a queue's lane, the one.
    queue: claims that may run now; count: all that wait here. active: slots in use. taken: claims worked off since credit was last given.
    paused: an operator has throttled it. shut: nothing is to be handed to it. withheld: credit that it gets when that has changed.
    rate: of its function, if it has one.
    told: when there was a notice of its throttles, untold: how many there had been.
    The counters count attempts (succeeded, failed, timed_out) and invocations (accepted, dead, throttled; delayed: put off by the rate);
    refused: events that `where` kept out; barred: starts that its function policy did; denied: calls that its role did not allow. came,
    let_in: where many functions are asked at once, what came to where its triggers stand, and what of it `where` let in.
    gate: whether a trigger may start it with what is about a subject; None: all may. gated: of a queue's lane: it may not take from it.
    """

    __slots__ = (
        "_chained",
        "_chains",
        "accepted",
        "active",
        "barred",
        "callers",
        "came",
        "dead",
        "delayed",
        "denied",
        "expiry",
        "failed",
        "filters",
        "forgets",
        "function",
        "gate",
        "gated",
        "let_in",
        "name",
        "paused",
        "plain",
        "policy",
        "pool",
        "queue",
        "rate",
        "refused",
        "ripe",
        "ripening",
        "shut",
        "starting",
        "succeeded",
        "suspended",
        "taken",
        "throttled",
        "timed_out",
        "told",
        "trigger",
        "triggers",
        "untold",
        "waiting",
        "window",
        "withheld",
    )

    def __init__(
        self,
        name: str,
        function: Function,
        policy: Policy,
        pool: Pool,
        window: int,
        trigger: Trigger | None = None,
        rate: Rate | None = None,
    ) -> None:
        self.name = name
        self.function = function
        self.policy = policy
        self.pool = pool
        self.window = window if policy.batch is None else max(window, 2 * policy.batch.size)
        self.trigger = trigger
        self.triggers = function.triggers if trigger is None else (trigger,)
        self.filters = trigger is not None and (function.where is not None or trigger.content_pattern is not None)
        self.callers: Callers | None = None
        self.plain = function.isolation == "inline" and function.is_async and not function.streams and not function.binders[None].depends
        self.plain = self.plain and not function.logs
        self.forgets = policy.on_success is None and policy.idempotent is None and policy.batch is None
        self.taken = self.withheld = 0
        self.active = 0
        self.paused = False
        self.shut = pool.size == 0
        self.rate = rate
        self.starting = False
        self.waiting = False  # for a slot
        self.ripe = False  # what is there is to be run though it fills no batch
        self.ripening: Timer | None = None
        self.expiry: Timer | None = None
        self.suspended: Callable[[], object] = lambda: None  # called when a handler begins to wait
        self.gate: Callable[[Trigger, str], bool] | None = None
        self.gated = False
        self.barred = self.denied = 0
        self.came: list[Tally] = []
        self.refused = self.let_in = self.accepted = self.succeeded = self.failed = self.timed_out = self.dead = self.throttled = (
            self.delayed
        ) = 0
        self.told, self.untold = float("-inf"), 0
        self.queue: deque[Claim] = deque()
        self._chained = 0
        self._chains: dict[str, deque[Claim]] = {}  # of each key that is queued or runs: what comes after it

    @property
    def filtered(self) -> int:
        """How many events `where` kept out."""
        return self.refused + sum(place.count for place in self.came) - self.let_in

    @property
    def ready(self) -> bool:
        """A worker would find something to run."""
        batch = self.policy.batch
        return bool(self.queue) and (batch is None or self.ripe or not batch.window or self.count >= batch.size)

    @property
    def count(self) -> int:
        return len(self.queue) + self._chained

    def push(self, claims: Sequence[Claim]) -> None:
        keys = [*map(_KEY, claims)]
        if keys.count(None) == len(keys):  # the usual case
            self.queue.extend(claims)
            return
        for key, claim in zip(keys, claims, strict=True):
            if key is None:
                self.queue.append(claim)
            elif (chain := self._chains.get(key)) is None:
                self._chains[key] = deque()
                self.queue.append(claim)
            else:
                chain.append(claim)
                self._chained += 1

    def pop_batch(self, size: int) -> list[Claim]:
        """As many as there are, up to size and 6 MB; of one key several, in their order."""
        found: list[Claim] = []
        total = 0
        while self.queue and len(found) < size:
            source = self.queue
            while source and len(found) < size:
                total += len(source[0].event.data)
                if found and total > _BATCH_BYTES:
                    return found
                claim = source.popleft()
                self._chained -= source is not self.queue
                found.append(claim)
                if source is self.queue and claim.key is None:
                    break
                assert claim.key is not None
                source = self._chains[claim.key]
        return found

    def put_back(self, key: str, claims: Sequence[Claim]) -> None:
        """Those of the key that were popped last are not run yet: they are the next of it."""
        self._chained += len(claims)
        self._chains[key].extendleft(reversed(claims))

    def pass_on(self, key: str) -> None:
        """What ran under the key has ended: the next may run."""
        chain = self._chains.get(key)
        if chain:
            self._chained -= 1
            self.queue.append(chain.popleft())
        elif chain is not None:
            del self._chains[key]

    def take_back(self, key: str) -> deque[Claim]:
        """What ran under the key goes back to the journal, and what waited behind it must, too."""
        behind = self._chains.pop(key, deque())
        self._chained -= len(behind)
        return behind

    def drain(self) -> list[Claim]:
        """Take away all that waits, in its order; of keys that run it is still known that they do."""
        found: list[Claim] = []
        for claim in self.queue:
            found.append(claim)
            if claim.key is not None:
                found += self._chains.pop(claim.key)
        for chain in self._chains.values():
            found += chain
            chain.clear()
        self.queue.clear()
        self._chained = 0
        return found

    def clear(self) -> None:
        self.queue.clear()
        self._chains.clear()
        self._chained = 0
        for timer in (self.ripening, self.expiry):
            if timer is not None:
                timer.cancel()
