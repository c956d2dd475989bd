"""An event bus as Amazon EventBridge is one: put events, and rules choose by their content which functions get them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from eventrouter import Event, Plugin, Trigger, call_from_thread, hookimpl, patterns, permissions
from eventrouter.errors import ConfigError
from eventrouter_events import targets
from eventrouter_events.shapes import bus_arn, buses_of, check_bus, make, shape

__all__ = ["Bus", "EventsTrigger", "events"]


class Target(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`[[events.targets]]`: where events go that match. name: as `eventrouter list` has it. headers: of the request, a credential say."""

    url: str
    pattern: dict[str, Any]
    bus: str = "default"
    mode: Literal["structured", "binary"] = "structured"
    name: str = ""
    headers: dict[str, str] = {}
    timeout: Annotated[float, Meta(gt=0, le=900)] = 30.0


class EventsConfig(msgspec.Struct, kw_only=True):
    """`[events]`. path: where CloudEvents are taken over HTTP, "/events" say; empty: nowhere. token: what their senders
    have to show (`Authorization: Bearer TOKEN`); empty: anyone may put."""

    path: str = ""
    token: str = ""
    targets: list[Target] = []


class EventsTrigger(Trigger):
    """`events(...)` makes it."""

    source = "events"
    service = "events.amazonaws.com"
    view = staticmethod(shape)

    def __init__(self, pattern: Mapping[str, Any] | str, bus: str) -> None:
        try:
            self.content_pattern = patterns.compile(pattern)
        except patterns.PatternError as error:
            raise ConfigError(f"events: {error}") from None
        self.bus = check_bus(bus)
        self.path = (bus,)
        text = pattern if isinstance(pattern, str) else msgspec.json.encode(pattern).decode()
        self._text = f"events {text}{'' if bus == 'default' else f' on {bus}'}"

    def captures(self, subject: str) -> Mapping[str, str] | None:
        return {} if subject == self.bus else None

    def aws_event(self, events: Sequence[Event]) -> Any:
        return shape(events[0]) if len(events) == 1 else [shape(event) for event in events]

    def arn(self, function: str, subject: str | None = None) -> str:
        rule = function if self.bus == "default" else f"{self.bus}/{function}"
        return f"arn:aws:events:local:000000000000:rule/{rule}"

    def __str__(self) -> str:
        return self._text


def events(pattern: Mapping[str, Any] | str, bus: str = "default") -> EventsTrigger:
    """Start the function with every event on the bus that matches the EventBridge pattern.

    pattern: over the whole event: `{"source": ["shop"], "detail": {"total": [{"numeric": [">", 100]}]}}`.
    The payload is `detail`; `Event` has the rest: `type` is the detail-type, `attributes` have `source` and `resources`. A Lambda
    function gets AWS's event.
    """
    return EventsTrigger(pattern, bus)


class Bus:
    """A bus to put events on, from handlers; making one does nothing yet, and it needs no declaration."""

    def __init__(self, name: str = "default") -> None:
        self.name = check_bus(name)
        self.sync = SyncBus(self)

    async def put(
        self, detail_type: str, detail: Any, source: str = "app", resources: Sequence[str] = (), time: datetime | float | None = None
    ) -> str:
        """Put an event; returns its id once it is on disk for every function that wants it.

        detail: a dict, or what becomes a JSON object (a msgspec.Struct, a dataclass). time: when it happened; None: now.
        Raises AccessDenied when the function's role does not allow it, NotRunning outside a handler, JournalError when it can't be
        written, ValueError for what EventBridge would refuse.
        """
        from eventrouter_events.source import EventsSource  # noqa: PLC0415 - sources load when they are needed

        permissions.require("events:PutEvents", bus_arn(self.name))
        text = msgspec.json.encode(detail).decode()
        entry = {"Source": source, "DetailType": detail_type, "Detail": text, "Resources": list(resources), "Time": time}
        return await EventsSource.current().put(entry, self.name)

    async def put_events(self, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """As boto3's `put_events`: up to 10 entries `{"Source", "DetailType", "Detail" (JSON text), "Resources", "Time", "EventBusName"}`.

        Returns `{"FailedEntryCount", "Entries": [{"EventId"} | {"ErrorCode", "ErrorMessage"}]}`; those that failed are not put, the
        others are. Raises ValueError where AWS refuses all of them: no entry, more than 10, more than 1 MiB; else as `put`.
        """
        from eventrouter_events.source import EventsSource  # noqa: PLC0415

        for bus in buses_of(entries, self.name):
            permissions.require("events:PutEvents", bus_arn(bus))
        return await EventsSource.current().put_events(entries, self.name)

    def __repr__(self) -> str:
        return f"Bus({self.name!r})"


class SyncBus:
    """`Bus.sync`: the same for `def` handlers."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def put(
        self, detail_type: str, detail: Any, source: str = "app", resources: Sequence[str] = (), time: datetime | float | None = None
    ) -> str:
        """As `Bus.put`."""
        return call_from_thread(f"{self._bus!r}.sync", lambda: self._bus.put(detail_type, detail, source, resources, time))

    def put_events(self, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """As `Bus.put_events`."""
        return call_from_thread(f"{self._bus!r}.sync", lambda: self._bus.put_events(entries))


def sample(detail_type: str = "Order Placed", detail: str = '{"id": "7", "total": 120}', *, source: str = "shop") -> Any:
    """An event as a function gets it."""
    event = make("default", source, detail_type, detail.encode(), resources=["order/7"], time=1767225600.0)
    return events({"source": [source]}).aws_event([event])


def handlers(config: EventsConfig) -> list[Callable[..., Any]]:
    """What delivers to each of the targets."""
    return [targets.handler(target, events(target.pattern, target.bus)) for target in config.targets]


def check(config: EventsConfig, pairs: Sequence[tuple[str, EventsTrigger]]) -> None:
    """The path can be one."""
    if config.path and (not config.path.startswith("/") or config.path != "/" + config.path.strip("/") or set(config.path) & set("{}?# ")):
        raise ConfigError(f'[events] path = {config.path!r}: write a path such as "/events"')


@hookimpl
def eventrouter_plugin() -> Plugin:
    # Always there: handlers started by any source put events, records come, and `eventrouter send events` too.
    return Plugin(
        name="events",
        source="eventrouter_events.source:EventsSource",
        always=True,
        destination=check_bus,
        sends=("events:PutEvents", bus_arn("{}")),
        config=EventsConfig,
        clients=[Bus],
        triggers={"events": events},
        check=check,  # type: ignore[arg-type]  # it is only given triggers of its own
        handlers=handlers,
        sample=sample,
    )
