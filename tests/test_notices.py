"""Sources that want to hear what happens to the router itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from eventrouter import App, Event, Message, Notice, Reject, on
from eventrouter.clock import ManualClock
from eventrouter.errors import JournalError, Throttled
from eventrouter.journal.protocol import LetterQuery
from eventrouter.plugins import Plugins
from support import LOCAL, LocalSource, advance, local, make_app, put, until


class Hearing(LocalSource):
    """Makes an event of each notice, as a source of such events does."""

    name = "local"
    heard_of: list[Notice]
    fails = False

    async def run(self) -> None:
        self.heard_of = []
        await super().run()

    def heard(self, notice: Notice) -> None:
        self.heard_of.append(notice)
        if self.fails:
            raise RuntimeError
        self.router.deliver([Event("local", "local.notice", f"notices/{notice.kind}", b"null", attributes={"notice": True})])

    def message(self, name: str, message: Message) -> Event:
        return Event("local", "local.message", name, message.body)


def app_of(folder: Path, *handlers: Callable[..., Any], clock: ManualClock | None = None, toml: str = "") -> App:
    plugin = msgspec.structs.replace(LOCAL, source="test_notices:Hearing", destination=True)
    return make_app(folder, *handlers, clock=clock, toml=toml, plugins=Plugins([plugin]))


def hearing(app: App) -> Any:
    return app.sources["local"]


async def test_a_dead_letter_is_told_and_what_comes_of_that_is_not(tmp_path: Path) -> None:
    tried: list[str] = []

    @on(local("work"))
    async def work(event: Event) -> None:
        raise Reject("no such device")

    @on(local("notices/{kind}"), on_failure="local:failures", dlq="local:letters")
    async def watch(kind: str) -> None:
        tried.append(kind)
        raise Reject("not this either")

    @on(local("{what}"))
    async def last(event: Event, what: str) -> None:
        if what != "work":
            tried.append(what)
            raise Reject("nor that")

    async with app_of(tmp_path, work, watch, last) as app:
        await put(app, "work", id="event 1")
        await until(lambda: len(tried) == 3)
        await until(lambda: app.engine.lanes["last"].dead == 2)
        (notice,) = hearing(app).heard_of
        (letter,) = await app.journal.dead(LetterQuery("work"))
    assert sorted(tried) == ["dead", "failures", "letters"]
    assert (notice.kind, notice.about) == ("dead", "work")
    assert notice.detail == {
        "id": letter.id,
        "reason": "Rejected",
        "error_type": "Reject",
        "error_message": "no such device",
        "attempts": 1,
        "event": {"id": "event 1", "source": "local", "type": "local.put", "subject": "work"},
    }


async def test_throttles_are_told_at_most_once_a_minute(tmp_path: Path) -> None:
    clock = ManualClock()

    @on(local("r", mode="request"), concurrency=0)
    async def closed(event: Event) -> None: ...

    async with app_of(tmp_path, closed, clock=clock) as app:
        await until(lambda: hasattr(hearing(app), "heard_of"))

        async def ask() -> None:
            with pytest.raises(Throttled):
                await app.run_now("closed", Event("invoke", "x", "closed"), {})

        for _ in range(5):
            await ask()
        clock.advance(59)
        await ask()
        assert [(n.kind, n.about, n.detail) for n in hearing(app).heard_of] == [("throttled", "closed", {"throttles": 1, "concurrency": 0})]
        clock.advance(1)
        await ask()
        assert [n.detail["throttles"] for n in hearing(app).heard_of] == [1, 6]


async def test_sources_that_are_lost_and_live_again_are_told_once_each(tmp_path: Path) -> None:
    @on(local("x"))
    async def work(event: Event) -> None: ...

    async with app_of(tmp_path, work) as app:
        await until(lambda: hasattr(hearing(app), "heard_of"))
        router = hearing(app).router
        router.lost("no answer")
        router.lost("still none")
        router.live()
        router.live()
        assert [(n.kind, n.about, n.detail) for n in hearing(app).heard_of] == [
            ("source", "local", {"state": "lost", "reason": "no answer"}),
            ("source", "local", {"state": "live", "reason": ""}),
        ]


async def test_a_journal_that_refuses_and_accepts_again_is_told(tmp_path: Path) -> None:
    clock = ManualClock()
    go = asyncio.Event()

    @on(local("x"), concurrency=1, timeout=900)
    async def work(event: Event) -> None:
        await go.wait()

    async with app_of(tmp_path, work, clock=clock, toml="[journal]\nmax_backlog = 3\n") as app:
        await until(lambda: hasattr(hearing(app), "heard_of"))
        for _ in range(3):
            await put(app, "x")
        with pytest.raises(JournalError):
            await put(app, "x")
        (notice,) = hearing(app).heard_of
        assert (notice.kind, notice.about, notice.detail["state"]) == ("journal", "", "refusing")
        assert "the backlog is full" in notice.detail["reason"]
        go.set()
        await until(lambda: app.engine.lanes["work"].succeeded == 3)
        await advance(clock, 1.1, lambda: len(hearing(app).heard_of) == 2)
        assert hearing(app).heard_of[1].detail == {"state": "accepting", "reason": ""}


async def test_a_listener_that_fails_is_logged_and_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    @on(local("work"))
    async def work(event: Event) -> None:
        raise Reject("no")

    async with app_of(tmp_path, work) as app:
        await until(lambda: hasattr(hearing(app), "heard_of"))
        hearing(app).fails = True
        await put(app, "work")
        await until(lambda: app.engine.lanes["work"].dead == 1)
        await app.journal.flush()
        assert (await app.journal.depth())["work"]["dead"] == 1
    assert "a notice (dead, work) was not heard" in caplog.text
