"""A plugin with a client, as anybody may write one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from eventrouter import Plugin, Source, call_from_thread
from support import LocalConfig, event, local


class Item(msgspec.Struct):
    name: str
    count: int


class Odd(Exception):
    def __init__(self, place: object) -> None:
        super().__init__(place)


class Box:
    def __init__(self, name: str) -> None:
        self.name = name
        self.sync = SyncBox(self)

    async def put(self, item: Item, *, tags: set[str]) -> list[Any]:
        source = BoxSource.current()
        source.items.append(item)
        return [self.name, type(item).__name__, item.count, sorted(tags)]

    async def get(self, name: str) -> Item:
        return Item(f"{self.name}/{name}", 5)

    async def start(self, subject: str, payload: Any) -> None:
        await BoxSource.current().router.deliver([event(subject, payload)])

    async def fail(self, how: str) -> Any:
        if how == "large":
            return bytes(70_000_000)
        if how == "not data":
            return object()
        raise Odd("an argument" if how == "own" else object())

    async def wait(self) -> None:
        source = BoxSource.current()
        source.waiting += 1
        try:
            await asyncio.Event().wait()
        finally:
            source.waiting -= 1

    async def items(self) -> AsyncIterator[int]:
        yield 1

    def label(self, text: str) -> str:
        return f"{self.name}: {text}"

    async def _private(self) -> str:
        return "private"


class SyncBox:
    def __init__(self, box: Box) -> None:
        self._box = box

    def put(self, item: Item, *, tags: set[str]) -> list[Any]:
        return call_from_thread("Box", lambda: self._box.put(item, tags=tags))

    def get(self, name: str) -> Item:
        return call_from_thread("Box", lambda: self._box.get(name))

    def start(self, subject: str, payload: Any) -> None:
        call_from_thread("Box", lambda: self._box.start(subject, payload))

    def wait(self) -> None:
        call_from_thread("Box", self._box.wait)


class BoxSource(Source[LocalConfig]):
    name = "local"

    def __init__(self, config: LocalConfig, router: Any) -> None:
        super().__init__(config, router)
        self.items: list[Item] = []
        self.waiting = 0

    def put(self, subject: str, data: Any = None) -> Any:
        return self.router.deliver([event(subject, data)])


BOX = Plugin(
    name="local",
    source="calling_clients:BoxSource",
    always=True,
    config=LocalConfig,
    triggers={"local": local},
    clients=[Box],
)
