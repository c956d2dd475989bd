"""A source that tests drive by hand, and apps made of functions defined in a test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import apsw
import msgspec

from eventrouter import App, Event, Plugin, Source, Trigger, Wild, new_id
from eventrouter.clock import Clock, ManualClock
from eventrouter.config import load_config
from eventrouter.model import unpack_many
from eventrouter.plugins import Plugins


class LocalTrigger(Trigger):
    """`local("a/{x}")`: subjects of that shape."""

    source = "local"

    def __init__(self, pattern: str, mode: str = "event") -> None:
        self.pattern = pattern
        self.mode = mode  # type: ignore[assignment]
        self.same = pattern, mode
        self._parts = pattern.split("/")
        self.path = tuple(Wild.ONE if part.startswith("{") else part for part in self._parts)
        self.names = tuple(part[1:-1] for part in self._parts if part.startswith("{"))

    def captures(self, subject: str) -> Mapping[str, str] | None:
        parts = subject.split("/")
        if len(parts) != len(self._parts):
            return None
        captures = {}
        for want, got in zip(self._parts, parts, strict=True):
            if want.startswith("{"):
                captures[want[1:-1]] = got
            elif want != got:
                return None
        return captures

    def aws_event(self, events: Any) -> Any:
        return {"Records": [event.json() for event in events]}

    def __str__(self) -> str:
        return f"local {self.pattern}"


def local(pattern: str, *, mode: str = "event") -> LocalTrigger:
    return LocalTrigger(pattern, mode)


class LocalConfig(msgspec.Struct):
    greeting: str = "hello"
    port: int = 1
    rooms: dict[str, str] = {}


class LocalSource(Source[LocalConfig]):
    name = "local"

    def put(self, subject: str, data: Any = None, id: str | None = None) -> asyncio.Future[int]:
        return self.router.deliver([event(subject, data, id)])

    async def send(self, subject: str, data: str = "null", *, times: int = 1) -> dict[str, int]:
        new = await self.router.deliver([Event("local", "local.sent", subject, data.encode()) for _ in range(times)])
        return {"new": new}


def event(subject: str, data: Any = None, id: str | None = None) -> Event:
    return Event("local", "local.put", subject, msgspec.json.encode(data), id=id or new_id())


LOCAL = Plugin(name="local", source="support:LocalSource", always=True, config=LocalConfig, triggers={"local": local})


def module(*functions: Callable[..., Any]) -> ModuleType:
    made = ModuleType("handlers")
    for function in functions:
        setattr(made, function.__name__, function)
    return made


def make_app(
    folder: Path, *functions: Callable[..., Any], clock: Clock | None = None, toml: str = "", plugins: Plugins | None = None
) -> App:
    file = folder / "eventrouter.toml"
    file.write_text(toml)
    plugins = plugins or Plugins([LOCAL])
    return App(module(*functions), config=load_config(plugins.by_name, file=file), plugins=plugins, clock=clock)


@asynccontextmanager
async def running(folder: Path, *functions: Callable[..., Any], clock: Clock | None = None, toml: str = "") -> AsyncIterator[App]:
    async with make_app(folder, *functions, clock=clock, toml=toml) as app:
        yield app


def in_segments(reader: apsw.Connection) -> Iterator[tuple[int, float, str, Event]]:
    """Of each event in a journal's segments that is not done: its number, when it was accepted, whose it is."""
    found = reader.execute("SELECT seq, accepted, function, count, events, done FROM segment LEFT JOIN progress USING (seq) ORDER BY seq")
    for first, accepted, function, count, packed, done in found:
        for place, event in enumerate(unpack_many(packed, count)):
            if done is None or not done[place]:
                yield first + place, accepted, function, event


def put(app: App, subject: str, data: Any = None, id: str | None = None) -> asyncio.Future[int]:
    source = app.sources["local"]
    assert isinstance(source, LocalSource)
    return source.put(subject, data, id)


async def until(condition: Callable[[], Any], seconds: float = 20) -> None:
    """Wait for a condition that other tasks, threads or processes bring about."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def advance(clock: ManualClock, seconds: float, condition: Callable[[], Any]) -> None:
    """Move the clock on, then wait until what was due has had its effect."""
    clock.advance(seconds)
    await until(condition)
