"""Sources are started, kept alive, and stopped, whatever they do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from eventrouter import Event, EventRouterError, Message, Plugin, Source, fixed, on
from eventrouter.clock import ManualClock
from eventrouter.errors import ConfigError, NotRunning
from eventrouter.plugins import Plugins
from support import LOCAL, LocalConfig, LocalTrigger, advance, local, make_app, put, until


class Fickle(Source[None]):
    """Does what its test tells it to, once for each life."""

    name = "fickle"
    lives: list[Exception | None]  # how each ends; None: it stays
    calls: list[str]

    async def start(self) -> None:
        self.calls.append("start")

    async def run(self) -> None:
        self.calls.append("run")
        self.router.live()
        end = self.lives.pop(0) if self.lives else None
        if end is not None:
            raise end
        await asyncio.get_running_loop().create_future()

    async def stop(self) -> None:
        self.calls.append("stop")
        raise OSError("stop fails")

    async def close(self) -> None:
        self.calls.append("close")
        raise OSError("close fails")


class Steady(Fickle):
    name = "steady"


class Silent(Source[None]):
    """Never comes to live."""

    name = "silent"

    async def run(self) -> None:
        self.router.lost("nobody answers")
        await asyncio.get_running_loop().create_future()


@on(local("a"))
async def handler(payload: int) -> None: ...


def make(tmp_path: Path, clock: ManualClock, *sources: type[Source[Any]]) -> Any:
    for source in sources:
        if issubclass(source, Fickle):
            source.lives, source.calls = [], []
    plugins = [Plugin(name=source.name, source=f"test_sources:{source.__name__}", always=True) for source in sources]
    plugins.append(Plugin(name="local", source="support:LocalSource"))
    return make_app(tmp_path, handler, clock=clock, plugins=Plugins(plugins))


async def test_what_crashes_is_started_again_after_growing_pauses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    app = make(tmp_path, clock, Fickle)
    Fickle.lives = [ValueError("a bug"), EventRouterError("the device is gone"), None]
    async with app:
        state = lambda: app.supervisor.health().sources["fickle"]  # noqa: E731
        await until(lambda: "a bug" in state())
        assert state() == "ValueError: a bug; starting again in 1 s"
        await advance(clock, 0.9, lambda: Fickle.calls.count("run") == 1)
        await advance(clock, 0.2, lambda: "gone" in state())
        assert state() == "the device is gone; starting again in 2 s"
        await advance(clock, 2.1, lambda: state() == "live")
        assert Fickle.calls == ["start", "run", "run", "run"]
    assert Fickle.calls[4:] == ["stop", "close"]
    crash = next(record for record in caplog.records if record.message == "fickle crashed")
    assert crash.exc_info is not None
    assert not any("device" in record.message and record.exc_info for record in caplog.records), "told in one line"


async def test_a_run_that_returns_is_no_end(tmp_path: Path) -> None:
    clock = ManualClock()
    app = make(tmp_path, clock, Fickle)

    async def run(self: Fickle) -> None:
        self.calls.append("run")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fickle, "run", run)
        async with app:
            await until(lambda: app.supervisor.health().sources["fickle"] == "it ended by itself; starting again in 1 s")
            await advance(clock, 1.1, lambda: Fickle.calls.count("run") == 2)


async def test_long_life_forgives_earlier_crashes(tmp_path: Path) -> None:
    clock = ManualClock()
    app = make(tmp_path, clock, Fickle)
    gate = asyncio.Event()

    async def run(self: Fickle) -> None:
        self.calls.append("run")
        if len(self.calls) == 4:
            await gate.wait()
        raise ValueError("again")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fickle, "run", run)
        async with app:
            await until(lambda: app.supervisor.health().sources["fickle"].endswith("in 1 s"))
            await advance(clock, 1.1, lambda: app.supervisor.health().sources["fickle"].endswith("in 2 s"))
            await advance(clock, 2.1, lambda: Fickle.calls.count("run") == 3)
            clock.advance(61)
            gate.set()
            await until(lambda: app.supervisor.health().sources["fickle"].endswith("in 1 s"))


async def test_each_source_is_stopped_even_when_another_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with make(tmp_path, ManualClock(), Fickle, Steady):
        pass
    for source in (Fickle, Steady):
        assert source.calls[-2:] == ["stop", "close"]
    assert {record.message for record in caplog.records if record.levelno == logging.ERROR} == {
        f"{name}: {step} failed" for name in ("fickle", "steady") for step in ("stop", "close")
    }


async def test_ready_once_all_have_been_live_and_lost_later_is_named(tmp_path: Path) -> None:
    app = make(tmp_path, ManualClock(), Steady, Silent)
    async with app:
        await until(lambda: app.supervisor.health().sources["silent"] == "nobody answers")
        assert app.supervisor.health().sources["steady"] == "live"
        assert not app.supervisor.health().ready
        assert not app.supervisor.ready.is_set()
        app.sources["silent"].router.live()
        assert app.supervisor.health().ready
        assert app.supervisor.ready.is_set()
        app.sources["silent"].router.lost("the line is cut")
        assert app.supervisor.health().ready, "it has been live, and takes up again by itself"
        assert app.supervisor.health().sources["silent"] == "the line is cut"


async def test_a_start_that_fails_stops_all_that_had_started(tmp_path: Path) -> None:
    app = make(tmp_path, ManualClock(), Steady, Fickle)

    async def start(self: Fickle) -> None:
        raise EventRouterError("port 80 is taken")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fickle, "start", start)
        with pytest.raises(EventRouterError, match="port 80 is taken"):
            async with app:
                pass
    assert Steady.calls[-1] == "close"
    async with make(tmp_path, ManualClock(), Steady):
        pass  # the folder is free again


async def test_state_is_the_sources_own_and_lasts(tmp_path: Path) -> None:
    async with make(tmp_path, ManualClock(), Fickle, Steady) as app:
        await app.sources["fickle"].router.put("place", b"7")
        assert await app.sources["fickle"].router.get("place") == b"7"
        assert await app.sources["steady"].router.get("place") is None
    async with make(tmp_path, ManualClock(), Fickle) as app:
        assert await app.sources["fickle"].router.get("place") == b"7"
        await app.sources["fickle"].router.put("place", None)
        assert await app.sources["fickle"].router.get("place") is None


async def test_a_source_has_a_folder_of_its_own(tmp_path: Path) -> None:
    async with make(tmp_path, ManualClock(), Fickle) as app:
        folder = app.sources["fickle"].router.folder
        assert folder.is_dir()
        assert folder == tmp_path / ".eventrouter" / "fickle"


def test_clients_outside_a_router_say_so() -> None:
    with pytest.raises(NotRunning, match="fickle: no router is running here; call this inside a handler"):
        Fickle.current()


class Bell(LocalTrigger):
    """Events of one subject come in their order."""

    def order_key(self, event: Event) -> str:
        return event.subject


async def test_a_trigger_may_order_its_events(tmp_path: Path) -> None:
    got: list[Any] = []
    failed = False

    @on(Bell("{which}"), backoff=fixed(0))
    async def ring(payload: int, which: str) -> None:
        nonlocal failed
        if not failed:
            failed = True
            raise OSError("once")
        got.append((which, payload))

    async with make_app(tmp_path, ring) as app:
        await asyncio.gather(*(put(app, "a", n) for n in range(5)))
        await until(lambda: len(got) == 5)
    assert got == [("a", n) for n in range(5)]


async def test_a_plugin_may_bring_handlers(tmp_path: Path) -> None:
    got: list[Any] = []

    def handlers(config: LocalConfig) -> list[Callable[..., Any]]:
        @on(local("a"), name=f"to {config.greeting} -> http://x")
        async def deliver(payload: int) -> None:
            got.append(payload)

        return [deliver]

    plugins = Plugins([msgspec.structs.replace(LOCAL, handlers=handlers)])
    async with make_app(tmp_path, toml='[local]\ngreeting = "ann"\n', plugins=plugins) as app:
        assert list(app.functions) == ["to ann -> http://x"]
        await put(app, "a", 7)
        await until(lambda: got == [7])


async def test_a_source_may_send_to_a_destination(tmp_path: Path) -> None:
    got: list[Any] = []

    @on(local("a"))
    async def handler(payload: dict[str, int]) -> None:
        got.append(payload)

    async with make_app(tmp_path, handler) as app:
        router = app.sources["local"].router
        assert await router.forward("lambda:handler", Message(b'{"n": 1}', {})) == 1
        await until(lambda: got == [{"n": 1}])
        with pytest.raises(ConfigError, match="nothing can be sent to 'nowhere'"):
            router.forward("nowhere:x", Message(b"", {}))


async def test_small_state_has_names_and_may_expire(tmp_path: Path) -> None:
    clock = ManualClock()

    @on(local("a"))
    async def handler() -> None: ...

    async with make_app(tmp_path, handler, clock=clock) as app:
        router = app.sources["local"].router
        await router.put("pages/a", b"1")
        await router.put("pages/b", b"2", ttl=60)
        await router.put("other", b"3")
        assert await router.keys("pages/") == ["pages/a", "pages/b"]
        clock.advance(61)
        assert await router.get("pages/a") == b"1"
        assert await router.get("pages/b") is None
        assert router.url == ""
        router.listens("http://127.0.0.1:1")
        assert router.url == "http://127.0.0.1:1"


@pytest.mark.parametrize(("target", "why"), [("nowhere:x", "nothing can be sent to 'nowhere'"), ("lambda:x", "no function is named 'x'")])
def test_where_a_plugin_forwards_to_is_checked_at_load(tmp_path: Path, target: str, why: str) -> None:
    @on(local("a"))
    async def handler() -> None: ...

    forwarding = Plugin(name="forwarding", forwards=lambda config: [("[forwarding] to", target)])
    with pytest.raises(ConfigError, match=rf"^\[forwarding\] to='{target}': {why}"):
        make_app(tmp_path, handler, plugins=Plugins([LOCAL, forwarding]))
