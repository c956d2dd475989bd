"""What every source must do. Its tests subclass `SourceContract` and say what its outside is like."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import namedtuple
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from eventrouter import App, Trigger, fixed, on
from eventrouter.journal import database
from eventrouter.journal.protocol import LetterQuery
from eventrouter.plugins import Plugins
from support import make_app, until


class Item(msgspec.Struct):
    """The payload of the events: `{"n": 1}`."""

    n: int


class Outside(ABC):
    """Who sends to the source. A fixture named `outside` makes one, in `tmp_path`.

    source: its name. keeps: what is put while the router is stopped, or refuses, comes by itself later; else `put` is refused then.
    identified: putting the same again is a repeat, and runs once. rejects: it can bring a payload that isn't an Item.
    """

    source: str
    keeps = False
    identified = False
    rejects = True

    @abstractmethod
    def plugins(self) -> Plugins: ...

    @abstractmethod
    def trigger(self) -> Trigger: ...

    @property
    def toml(self) -> str:
        return ""

    def number(self, payload: Any) -> int:
        """Which of the events that were put it is, by what the handler got."""
        return int(payload.n)

    @property
    def payload(self) -> Any:
        """The type of the handler's payload."""
        return Item

    @abstractmethod
    async def put(self, app: App, n: int, body: bytes | None = None) -> bool:
        """Bring about event number `n` with this body (None: `{"n": n}`). False: it was refused, and the outside knows it.

        A source that keeps returns at once; the others return when the source has acknowledged it.
        """


class SourceContract:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "app"
        folder.mkdir()
        return folder

    @asynccontextmanager
    async def serving(self, outside: Outside, folder: Path, handler: Callable[..., Any], **policy: Any) -> AsyncIterator[App]:
        marked = on(outside.trigger(), **policy)(_typed(handler, outside.payload))
        async with make_app(folder, marked, toml="[app]\ndrain = 0.2\n" + outside.toml, plugins=outside.plugins()) as app:
            await until(lambda: app.sources[outside.source].router.state == "live")
            yield app

    async def test_ready(self, outside: Outside, folder: Path) -> None:
        """Once it is live, what happens outside reaches the handler."""
        got: list[int] = []
        async with self.serving(outside, folder, lambda item: got.append(outside.number(item))) as app:
            assert app.supervisor is not None
            assert app.supervisor.health().ready
            assert await outside.put(app, 1)
            await until(lambda: got == [1])

    async def test_stop(self, outside: Outside, folder: Path) -> None:
        """What was accepted is handled; what comes after is refused, or comes when it runs again."""
        got: list[int] = []

        def handler(item: Any) -> None:
            got.append(outside.number(item))

        async with self.serving(outside, folder, handler) as app:
            assert await outside.put(app, 1)
            await until(lambda: got == [1])
        if outside.keeps:
            await outside.put(app, 2)
        else:
            assert not await outside.put(app, 2)
        async with self.serving(outside, folder, handler) as app:
            assert await outside.put(app, 3)
            await until(lambda: got == ([1, 2, 3] if outside.keeps else [1, 3]))

    async def test_redelivery(self, outside: Outside, folder: Path) -> None:
        """What failed is tried again; what ran when the router stopped runs again; a repeat runs once."""
        tries: list[int] = []
        hold = asyncio.Event()

        async def fails_then_waits(item: Any) -> None:
            tries.append(outside.number(item))
            if len(tries) == 1:
                raise OSError("the first attempt fails")
            await hold.wait()

        async with self.serving(outside, folder, fails_then_waits, retries=3, backoff=fixed(0), timeout=60) as app:
            assert await outside.put(app, 1)
            await until(lambda: tries == [1, 1])
        hold.set()
        async with self.serving(outside, folder, fails_then_waits, retries=3, backoff=fixed(0)) as app:
            await until(lambda: tries == [1, 1, 1])
            if outside.identified:
                await outside.put(app, 1)
            assert await outside.put(app, 2)
            await until(lambda: 2 in tries)
        assert tries == [1, 1, 1, 2]

    async def test_backpressure(self, outside: Outside, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """While the journal takes nothing, nothing is acknowledged; then all goes on by itself."""
        got: list[int] = []
        usage = namedtuple("usage", "total used free")
        free = 1 << 40
        monkeypatch.setattr(database.shutil, "disk_usage", lambda path: usage(0, 0, free))
        async with self.serving(outside, folder, lambda item: got.append(outside.number(item))) as app:
            assert await outside.put(app, 1)
            await until(lambda: got == [1])
            free = 0
            async with asyncio.timeout(20):
                while not app.journal.fault:  # it looks with a commit, once a second
                    await app.sources[outside.source].router.put("look", b"")
                    await asyncio.sleep(0.01)
            assert app.supervisor is not None
            assert not app.supervisor.health().ready
            accepted = await outside.put(app, 2)
            assert accepted == outside.keeps
            free = 1 << 40
            await until(lambda: not app.journal.fault)
            if not outside.keeps:
                assert await outside.put(app, 2)
            await until(lambda: got == [1, 2])
            assert await outside.put(app, 3)
            await until(lambda: got == [1, 2, 3])

    async def test_reject(self, outside: Outside, folder: Path) -> None:
        """What isn't what the handler takes is refused or a dead letter at once, and in nobody's way."""
        if not outside.rejects:
            pytest.skip(f"{outside.source} makes its payloads itself")
        got: list[int] = []
        async with self.serving(outside, folder, lambda item: got.append(outside.number(item))) as app:
            taken = await outside.put(app, 1, b'{"n": "one"}')
            assert await outside.put(app, 2)
            await until(lambda: got == [2])
            if taken:
                lanes = [*app.engine.lanes.values(), *filter(None, app.engine.intake.queues.values())]
                await until(lambda: sum(lane.dead for lane in lanes) == 1)
            letters = await app.journal.dead(LetterQuery())
        assert [letter.error_type for letter in letters] == ["InvalidPayload"] * taken
        assert all("$.n: " in letter.error_message for letter in letters)


def _typed(handler: Callable[..., Any], payload: Any) -> Callable[..., Any]:
    async def wrapper(item: Any) -> None:
        result = handler(item)
        if result is not None:
            await result

    wrapper.__name__ = "handler"
    wrapper.__annotations__["item"] = payload
    return wrapper
