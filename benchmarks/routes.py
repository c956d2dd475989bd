"""What an event costs on its way in, with 10,000 functions and with 10 of which it is for one or two: each kind of trigger, and `where`.

hot: for one of eight functions, of subjects that come again and again, so that what was found out about them may be remembered.
fresh: for one of eight functions, each of a subject that never came before. spread: besides, each for another of all functions, so that
none of what belongs to it is in the processor's caches.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count, islice
from time import perf_counter
from typing import Any, Literal, NamedTuple

import msgspec

from benchmarks.harness import Result, compare
from benchmarks.patterns import event as bus_shape
from benchmarks.patterns import rule as bus_rule
from eventrouter import Event, Queue, Terms, Trigger
from eventrouter.clock import SystemClock
from eventrouter.engine import Engine
from eventrouter.functions import Function, Policy
from eventrouter.journal.protocol import Claim, Fresh
from eventrouter_events import events as bus
from eventrouter_http.routes import Routes
from eventrouter_mqtt import mqtt
from eventrouter_s3 import S3Object, s3
from eventrouter_s3.notifications import event_of
from eventrouter_sns import sns
from eventrouter_sqs import sqs

FEW, MANY = 10, 10_000
EVENTS = 4096
SUBJECTS = 8  # hot ones
BATCH = 64
Mode = Literal["hot", "fresh", "spread"]
READING = msgspec.json.encode({"celsius": 21.5, "humidity": 40.25, "state": "running"})


class Kind(NamedTuple):
    """trigger, where: of the nth function. event: one for the nth, `new` a text that comes once. wanted: the least and most functions
    that an event is for."""

    trigger: Callable[[int], Trigger]
    event: Callable[[int, str], Event]
    where: Callable[[int], Mapping[str, Any] | None] = lambda n: None
    wanted: tuple[float, float] = (1, 2)


def _mqtt(n: int) -> Trigger:
    shapes = (f"plant/{n}/{{reading}}", f"plant/{n}/#", f"+/{n}/{{rest+}}")
    return mqtt(shapes[n % len(shapes)])


def _s3(n: int) -> Trigger:
    """Folders, names that begin or end so, and patterns of keys: all in one bucket."""
    shapes: Sequence[dict[str, Any]] = (
        {"prefix": f"in/{n}/"},
        {"prefix": f"in/{n}/", "suffix": ".csv"},
        {"key": f"in/{n}/{{name}}.csv"},
        {"prefix": f"flat-{n}-", "suffix": ".csv"},
        {"key": f"flat-{n}-{{name}}.csv"},
        {"suffix": f"-{n}.csv"},
    )
    return s3("plant", **shapes[n % len(shapes)])


def _s3_event(n: int, new: str) -> Event:
    key = (f"in/{n}/{new}.csv", f"flat-{n}-{new}.csv", f"end/{new}-{n}.csv")[(0, 0, 0, 1, 1, 2)[n % 6]]
    return event_of(S3Object(bucket="plant", key=key, event="ObjectCreated:Put", sequencer="1", size=1, etag="e"), 0.0, None)


def _keys(n: int) -> dict[str, Any]:
    return {"Records": {"s3": {"object": {"key": [{"prefix": f"in/{n}/"}, {"prefix": f"flat-{n}-"}, {"suffix": f"-{n}.csv"}]}}}}


def _device(n: int) -> dict[str, Any]:
    """What a function asks of readings: a device, by name or by how its name begins, and a range besides."""
    wants: Sequence[dict[str, Any]] = (
        {"device": [f"device-{n}"]},
        {"device": [f"device-{n}"], "celsius": [{"numeric": [">", 20]}]},
        {"key": [{"prefix": f"in/{n}/"}], "state": [{"anything-but": ["stopped"]}]},
    )
    return wants[n % len(wants)]


def _reading(n: int) -> bytes:
    return msgspec.json.encode({"device": f"device-{n}", "celsius": 21.5, "key": f"in/{n}/a", "state": "running", "labels": ["a", "b"]})


def _bus_event(n: int, new: str) -> Event:
    shape = bus_shape(n)
    attributes = {"id": new, "source": shape["source"], "resources": shape["resources"]}
    return Event("events", shape["detail-type"], "default", msgspec.json.encode(shape["detail"]), attributes=attributes)


def _message(n: int, new: str) -> Event:
    attributes = {"device": {"Type": "String", "Value": f"device-{n}"}, "celsius": {"Type": "Number", "Value": "21.5"}}
    attributes |= {"key": {"Type": "String", "Value": f"in/{n}/{new}"}, "state": {"Type": "String", "Value": "running"}}
    return Event("sns", "sns.message", "readings", _reading(n), attributes={"messageAttributes": attributes})


KINDS = {
    "mqtt": Kind(_mqtt, lambda n, new: Event("mqtt", "mqtt.message", f"plant/{n}/{new}", READING)),
    "s3": Kind(_s3, _s3_event),
    "sqs": Kind(lambda n: sqs(f"jobs-{n}"), lambda n, new: Event("sqs", "sqs.message", f"jobs-{n}", READING)),
    "events": Kind(lambda n: bus(bus_rule(n)), _bus_event),
    "sns": Kind(lambda n: sns("readings", filter=_device(n)), _message),
    "sns body": Kind(lambda n: sns("readings", filter=_device(n), scope="MessageBody"), _message),
    "where": Kind(
        lambda n: mqtt("plant/{line}/reading"), lambda n, new: Event("mqtt", "mqtt.message", f"plant/{new}/reading", _reading(n)), _device
    ),
    "where s3": Kind(lambda n: s3("plant"), _s3_event, _keys),
}  # fmt: skip


class _Counting:
    """A journal that only counts, so that what comes before it is measured."""

    def __init__(self) -> None:
        self.taken = 0

    def accept(self, entries: Sequence[Claim], told: Fresh = list) -> asyncio.Future[Any]:
        self.taken += len(entries)
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        done.set_result(told([True] * len(entries)))
        return done


def _engine(kind: Kind, size: int) -> tuple[Engine, _Counting]:
    async def handler(payload: Any) -> None: ...

    functions = {
        name: Function(handler, [kind.trigger(n)], Policy(name=name, where=kind.where(n)))  # type: ignore[arg-type]
        for n in range(size)
        for name in [f"f{n}"]
    }
    journal: Any = _Counting()
    engine = Engine(functions, journal, SystemClock())
    engine.intake.queueing["sqs"] = lambda name: Queue(3, 30, 86400)
    engine.intake.terms["sqs"] = lambda event: Terms()
    for n in range(size):
        event = kind.event(n, "r")
        if event.source in engine.intake.queueing:
            engine.intake.queue(event.source, event.subject)  # once for each queue, whatever comes
    return engine, journal


def _intake(kind: Kind, size: int) -> Callable[[Mode], Callable[[], float]]:
    engine, journal = _engine(kind, size)

    async def deliver(made: Sequence[Event]) -> float:
        began = perf_counter()
        for start in range(0, len(made), BATCH):
            engine.deliver(made[start : start + BATCH])
            await asyncio.sleep(0)
        return (perf_counter() - began) / len(made) * 1e6

    def measure(mode: Mode) -> float:
        before = journal.taken
        cost = asyncio.run(deliver([kind.event(n, new) for n, new in _asked(mode, size)]))
        least, most = kind.wanted
        assert least <= (wanted := (journal.taken - before) / EVENTS) <= most, f"{wanted} functions want an event"
        return cost

    return lambda mode: lambda: measure(mode)


def _http(size: int) -> Callable[[Mode], Callable[[], float]]:
    """Routes are found by their source, before there is an event."""
    routes: Routes[int] = Routes()
    shapes = ("/plant/{}", "/plant/{}/{{reading}}", "/files/{}/{{rest+}}")
    for n in range(size):
        routes.add("GET", shapes[n % 3].format(n), n)

    def measure(mode: Mode) -> float:
        paths = [(f"/plant/{n}", f"/plant/{n}/{new}", f"/files/{n}/a/{new}")[n % 3] for n, new in _asked(mode, size)]
        began = perf_counter()
        for path in paths:
            assert routes.find("GET", path) is not None
        return (perf_counter() - began) / EVENTS * 1e6

    return lambda mode: lambda: measure(mode)


_numbers = count()


def _asked(mode: Mode, size: int) -> Iterator[tuple[int, str]]:
    """For which function each event is, and a text for its subject."""
    for n in islice(_numbers, EVENTS):
        yield (n if mode == "spread" else n % SUBJECTS) * 7919 % size, "r" if mode == "hot" else f"r{n}"


def run(rounds: int) -> Iterator[Result]:
    made: dict[str, Callable[[int], Callable[[Mode], Callable[[], float]]]] = {"http": _http}
    made |= {name: partial(_intake, kind) for name, kind in KINDS.items()}
    modes: tuple[Mode, ...] = ("hot", "fresh", "spread")
    for name, make in made.items():
        many, few = make(MANY), make(FEW)
        for mode in modes:
            yield compare(
                f"routes {name} {mode}", "µs/event", many(mode), few(mode),
                rounds=rounds, against=f"{FEW} functions instead of {MANY:,}",
            )  # fmt: skip
