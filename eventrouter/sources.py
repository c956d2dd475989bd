"""Sources turn the outside world into Events; this module is their contract and keeps them alive."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, Self, TypeVar

import msgspec

from eventrouter.clock import Clock
from eventrouter.crashpoints import crash_point
from eventrouter.destinations import Message
from eventrouter.errors import EventRouterError, not_running
from eventrouter.functions import Function
from eventrouter.journal.protocol import Journal, QueueDepth, Received
from eventrouter.model import NOTHING, Event, HttpRequest, Notice, Outcome, Response, Stream, Trigger
from eventrouter.notices import Notices

log = logging.getLogger("eventrouter.sources")
_RESTART_AFTER = (1.0, 2.0, 5.0, 10.0, 30.0)
ConfigT = TypeVar("ConfigT")


class Binding(NamedTuple):
    """A function that one of this source's triggers may start."""

    function: Function
    trigger: Trigger


class Queue(msgspec.Struct, frozen=True):
    """How the router treats a queue of a source.

    receives: how often a message is handed to somebody, then it is a dead letter. hide: seconds until it is handed out
    again, unless it was removed. keep: seconds it may stay. dlq: where a copy of the dead letter goes (`"sqs:NAME"`).
    """

    receives: int
    hide: float
    keep: float
    dlq: str | None = None


class Endpoint(NamedTuple):
    """An HTTP endpoint of a source's own, on the router's port. method: "ANY" too. path: `/hooks/{name}`, `/files/{rest+}`.

    admin: it tells, or does, what is an administrator's business: only with the token of `[http] admin_token_hash`. tells: the same, but
    where there is no such token, whoever is on this machine is told, if it listens to nobody else.
    """

    method: str
    path: str
    answer: Callable[[HttpRequest], Awaitable[Response]]
    admin: bool = False
    tells: bool = False


class Terms(msgspec.Struct, frozen=True):
    """How one message of a queue waits. key: those with the same one come in order, one batch of them at a time. delay: seconds until
    it is there. once: for `window` seconds another with the same one is a repeat of it, and not kept; `Router.get(once)` gives its id.
    """

    key: str | None = None
    delay: float = 0
    once: str | None = None
    window: float = 300


class Standing(msgspec.Struct, frozen=True):
    """A function's figures. running: attempts under way; waiting: events that wait for one. The others count since the router started:
    accepted: invocations; succeeded, failed, timed_out: attempts; dead: dead letters; throttled: requests that were turned away; delayed:
    events that were put off by the rate; filtered: kept out by `where`; barred: starts that the function policy did not allow; denied:
    calls that the role did not.
    """

    function: str
    tags: Mapping[str, str]
    running: int = 0
    waiting: int = 0
    accepted: int = 0
    succeeded: int = 0
    failed: int = 0
    timed_out: int = 0
    dead: int = 0
    throttled: int = 0
    delayed: int = 0
    filtered: int = 0
    barred: int = 0
    denied: int = 0


class Intake(Protocol):
    """The engine, as sources see it."""

    def deliver(self, events: Sequence[Event]) -> asyncio.Future[int]: ...

    def deliver_to(self, binding: Binding, event: Event, captures: Mapping[str, str] | None) -> asyncio.Future[int]: ...

    def wants(self, binding: Binding, event: Event) -> bool: ...

    def forward(self, target: str, message: Message) -> asyncio.Future[int]: ...

    def lineage(self) -> Mapping[str, int] | None: ...

    def request(self, binding: Binding, event: Event, captures: Mapping[str, str], stream: Stream | None) -> Awaitable[Outcome]: ...

    async def receive(self, source: str, subject: str, count: int, hide: float, wait: float) -> list[Received]: ...

    async def move(self, source: str, subject: str, count: int, becomes: Callable[[Event], Event | None]) -> int: ...

    async def expire(self, source: str, subject: str) -> int: ...

    def has(self, name: str) -> bool: ...

    def standings(self, waiting: Mapping[str, int]) -> list[Standing]: ...

    def call(self, name: str, event: Event) -> Awaitable[Outcome]: ...


class Health(msgspec.Struct, frozen=True):
    """What `/readyz` says. sources: by name, "live", "starting", or why it is lost; journal:
    "accepting", or why it is not."""

    ready: bool
    journal: str
    sources: dict[str, str]


class Router:
    """What a source may ask of the router. One per source.

    bindings: the functions with triggers of this source, in order of definition.
    folder: a folder of the source's own in the data folder, made when asked for.
    crash_point: call it with "ack.before" and "ack.after" around acknowledging; tests make the process die there.
    """

    def __init__(
        self, name: str, bindings: Sequence[Binding], intake: Intake, journal: Journal, clock: Clock, home: Path, base: Path
    ) -> None:
        self.name = name
        self.bindings = tuple(bindings)
        self.clock = clock
        self.base = base
        self.log = logging.getLogger(f"eventrouter.{name}")
        self.state = "starting"
        self.was_live = False
        self._intake = intake
        self._journal = journal
        self._home = home
        self._health: Supervisor | None = None

    @property
    def folder(self) -> Path:
        path = self._home / self.name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def deliver(self, events: Sequence[Event]) -> asyncio.Future[int]:
        """Hand events to every function whose trigger matches. Never blocks.

        The future (a receipt) resolves once all of them are on disk, with the number of new invocations
        (0 for repeats and for events that no trigger wants); acknowledge to the outside only then.
        It fails with JournalError when they could not be written: then none was.
        """
        return self._intake.deliver(events)

    def deliver_to(self, binding: Binding, event: Event, captures: Mapping[str, str] | None = None) -> asyncio.Future[int]:
        """As `deliver`, for a source that has picked the function itself. Check the payload first.

        0 of an event that is no repeat: the function's `where` or its function policy keeps it out.

        captures: what the trigger's wildcards stand for; None: it is asked.
        """
        return self._intake.deliver_to(binding, event, captures)

    def wants(self, binding: Binding, event: Event) -> bool:
        """Whether the function's `where` lets an event through. A source that picks functions itself asks before `request`."""
        return self._intake.wants(binding, event)

    @property
    def lineage(self) -> Mapping[str, int] | None:
        """What an event inherits from the handler that this is called in; None outside of one.

        `deliver` hands it on by itself. A source that hears of its event later, from outside, puts it into `attributes["lineage"]`, so that
        functions that start each other without end are found out.
        """
        return self._intake.lineage()

    def forward(self, target: str, message: Message) -> asyncio.Future[int]:
        """Journal what goes to a destination such as `"sqs:NAME"`; a receipt as of `deliver`.

        Raises ConfigError when `target` is no destination, or nothing can be sent there.
        """
        return self._intake.forward(target, message)

    def check(self, binding: Binding, event: Event, captures: Mapping[str, str] = NOTHING) -> None:
        """Raise InvalidPayload when the function's handler can't be given this event."""
        binding.function.binders[binding.trigger].check(event, captures)

    def request(
        self, binding: Binding, event: Event, captures: Mapping[str, str] = NOTHING, stream: Stream | None = None
    ) -> Awaitable[Outcome]:
        """Run the function now and await its outcome; nothing is journalled or retried.

        stream: awaited with what the handler gave when that is an iterator, or a Response with one as its body, while time-out and
            concurrency still hold; what it returns is the result. Whatever the handler is, the iterator is an async one.
        Raises Throttled when no concurrency is left, AccessDenied when the function policy does not let the trigger start it. A payload
        that does not validate is `Failed(error_type="InvalidPayload")`.
        """
        return self._intake.request(binding, event, captures, stream)

    def has(self, function: str) -> bool:
        """Whether the app has a function of that name."""
        return self._intake.has(function)

    def call(self, function: str, event: Event) -> Awaitable[Outcome]:
        """As `request`, for any function of the app, by its name: the event's data is its payload."""
        return self._intake.call(function, event)

    async def standings(self) -> list[Standing]:
        """Of every function of the app. It is counted in the journal what waits: not for every event."""
        depth = await self._journal.depth()
        return self._intake.standings({name: counts["waiting"] for name, counts in depth.items()})

    @property
    def endpoints(self) -> list[Endpoint]:
        """The HTTP endpoints of all sources, for the source that listens."""
        assert self._health is not None
        return [endpoint for source in self._health.sources.values() for endpoint in source.endpoints()]

    @property
    def url(self) -> str:
        """Where the endpoints are, such as `http://127.0.0.1:8080`, once every source has started; empty: nothing listens."""
        return "" if self._health is None else self._health.url

    def listens(self, url: str) -> None:
        """The source that serves the endpoints says where it does."""
        assert self._health is not None
        self._health.url = url

    @property
    def fault(self) -> str:
        """Why the journal takes no events at present (a full backlog, a full disk); empty while it does.

        Leave them where they are until it is empty again; what is delivered meanwhile fails with JournalError.
        """
        return self._journal.fault

    async def receive(self, subject: str, count: int, hide: float, wait: float = 0) -> list[Received]:
        """Up to `count` messages of a queue of this source, unseen by others for `hide` seconds; see `Source.queue`.

        wait: seconds to wait for the first, if there is none.
        """
        return await self._intake.receive(self.name, subject, count, hide, wait)

    async def remove(self, subject: str, id: str, receives: int) -> bool:
        """Delete a message of a queue by what `receive` said of it. False: it had been removed, or received again."""
        return await self._journal.remove(f"{self.name}:{subject}", id, receives)

    async def hide(self, subject: str, id: str, receives: int, seconds: float) -> bool:
        """Change how long it is unseen from now on; 0: it can be received at once."""
        return await self._journal.hide(f"{self.name}:{subject}", id, receives, seconds)

    async def move(self, subject: str, count: int, becomes: Callable[[Event], Event | None]) -> int:
        """Up to `count` messages of a queue that nobody holds become others, each in one transaction. How many were moved.

        becomes: the event that takes its place, of any queue of this source; None leaves the message where it is. It ends early
        when some 16,000 are left.
        """
        return await self._intake.move(self.name, subject, count, becomes)

    async def expire(self, subject: str) -> int:
        """Messages that have stayed in a queue for longer than it keeps them are dead letters now. How many there were."""
        return await self._intake.expire(self.name, subject)

    async def clear(self, subject: str) -> int:
        """Delete what waits in a queue, what is held by hand included. How many there were."""
        return await self._journal.clear(f"{self.name}:{subject}")

    async def depth(self, subject: str) -> QueueDepth:
        return await self._journal.queue_depth(f"{self.name}:{subject}")

    async def queues(self) -> list[str]:
        """The queues of this source in which something waits."""
        found = await self._journal.depth()
        return [name.partition(":")[2] for name, counts in found.items() if name.startswith(f"{self.name}:") and counts["waiting"]]

    async def get(self, key: str) -> bytes | None:
        """Small durable state of this source's own."""
        return await self._journal.get(f"{self.name}/{key}")

    async def put(self, key: str, value: bytes | None, ttl: float | None = None) -> None:
        """Return when it is on disk; None deletes. ttl: seconds that it is kept."""
        await self._journal.put(f"{self.name}/{key}", value, ttl=ttl)

    async def keys(self, prefix: str) -> list[str]:
        """Those that begin so and have a value."""
        own = len(self.name) + 1
        return [key[own:] for key in await self._journal.keys(f"{self.name}/{prefix}")]

    crash_point = staticmethod(crash_point)

    def live(self) -> None:
        """The source takes events now."""
        if self.state != "live":
            quiet = self.state == "starting" and not self.bindings  # nobody waits for it
            self.log.log(
                logging.DEBUG if quiet else logging.INFO, "%s is live", self.name, extra={"action": "source.live", "source": self.name}
            )
            if self.state != "starting":
                self._tell("live", "")
        self.state = "live"
        self.was_live = True
        if self._health is not None and self._health.health().ready:
            self._health.ready.set()

    def lost(self, why: str) -> None:
        """The source takes no events for now; it goes on trying by itself."""
        if self.state != why:
            self.log.warning("%s: %s", self.name, why, extra={"action": "source.lost", "source": self.name})
            if self.state in ("live", "starting"):
                self._tell("lost", why)
        self.state = why

    def _tell(self, state: str, reason: str) -> None:
        if self._health is not None:
            self._health.notices.tell(Notice("source", self.name, {"state": state, "reason": reason}))

    def health(self) -> Health:
        assert self._health is not None
        return self._health.health()


_current: ContextVar[Mapping[str, Source[Any]]] = ContextVar("eventrouter_sources")


class Source(Generic[ConfigT]):
    """Base of every source: `start`, then `run` under supervision, then `stop`, drain, `close`.

    A source that also has `async def send(self, ...)` is offered as `eventrouter send NAME ...`: it puts a real
    event in. Positional parameters are the command's arguments, keyword-only ones with defaults its options,
    converted to their annotations (a `Path` is relative to the caller's folder, a list takes an option more than once, a dict takes it
    as NAME=VALUE); what it returns is printed as JSON.

    A source with `def message(self, name, message) -> Event` takes what is sent to the destination `"SOURCE:NAME"` (its
    plugin says `destination=True`). One with `def queue(self, subject) -> Queue` has queues: an event stays, under its subject, until
    a function that has a trigger for it has handled it, or somebody has received and removed it; `def terms(self, event) -> Terms`
    says how each waits.
    """

    name: ClassVar[str]

    def __init__(self, config: ConfigT, router: Router) -> None:
        self.config = config
        self.router = router

    async def start(self) -> None:
        """Take what must be there (bind a port, make a folder). EventRouterError stops `serve` with its text."""

    async def run(self) -> None:
        """Live until cancelled. An exception is logged and `run` is called again after a growing pause."""
        self.router.live()
        await asyncio.get_running_loop().create_future()

    def endpoints(self) -> Sequence[Endpoint]:
        """HTTP endpoints of its own (webhooks, say), served on the router's port from start to stop."""
        return ()

    async def stop(self) -> None:
        """Take no more events. What was accepted is still acknowledged; requests under way still get answers."""

    async def close(self) -> None:
        """The handlers have drained: let go of everything."""

    def lines(self) -> list[str]:
        """What `eventrouter serve` prints of it: addresses, folders."""
        return []

    @classmethod
    def current(cls) -> Self:
        """The running instance of this source, inside a handler; for resource clients such as `Topic`.

        Raises NotRunning outside a router.
        """
        found = _current.get({}).get(cls.name)
        if not isinstance(found, cls):
            raise not_running(cls.name)
        return found


def make_current(sources: Mapping[str, Source[Any]]) -> None:
    """What `Source.current` finds, in this context and those copied from it."""
    _current.set(sources)


class Supervisor:
    """Starts sources, restarts what crashes, and knows who is live."""

    def __init__(self, sources: Mapping[str, Source[Any]], clock: Clock, journal_fault: Callable[[], str], notices: Notices) -> None:
        self.sources = sources
        self._clock = clock
        self._tasks: list[asyncio.Task[None]] = []
        self._journal_fault = journal_fault
        self.notices = notices
        self.ready = asyncio.Event()  # every source has been live
        self.url = ""  # of the endpoints
        for source in sources.values():
            source.router._health = self

    async def start(self) -> None:
        # All to their end, whatever becomes of the others: nothing half started is left behind, and `close` finds the rest.
        for result in await asyncio.gather(*(source.start() for source in self.sources.values()), return_exceptions=True):
            if isinstance(result, BaseException):
                raise result
        if not self.sources:
            self.ready.set()
        self._tasks = [asyncio.create_task(self._keep(source), name=f"source {source.name}") for source in self.sources.values()]

    async def stop(self) -> None:
        """End the intake of every source; each is asked even when another fails."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._each("stop")

    async def close(self) -> None:
        await self._each("close")

    def health(self) -> Health:
        states = {name: source.router.state for name, source in self.sources.items()}
        fault = self._journal_fault()
        ready = not fault and all(source.router.was_live for source in self.sources.values())
        return Health(ready, fault or "accepting", states)

    async def _each(self, step: str) -> None:
        for source in self.sources.values():
            try:
                await getattr(source, step)()
            except Exception:
                log.exception("%s: %s failed", source.name, step, extra={"action": f"source.{step}", "source": source.name})

    async def _keep(self, source: Source[Any]) -> None:
        crashes = 0
        while True:
            began = self._clock.monotonic()
            try:
                await source.run()
                why = "it ended by itself"
            except EventRouterError as error:
                why = str(error)
            except Exception as error:
                log.exception("%s crashed", source.name, extra={"action": "source.crash", "source": source.name})
                why = f"{type(error).__name__}: {error}"
            if self._clock.monotonic() - began > 60:
                crashes = 0
            pause = _RESTART_AFTER[min(crashes, len(_RESTART_AFTER) - 1)]
            crashes += 1
            source.router.lost(f"{why}; starting again in {pause:g} s")
            await self._clock.sleep(pause)
