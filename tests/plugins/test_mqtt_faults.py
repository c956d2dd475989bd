"""MQTT over a network that fails, from a broker that is killed, into a journal that takes nothing."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from eventrouter import App, Router, on
from eventrouter.plugins import Plugins
from eventrouter_mqtt import Broker, client, connection, eventrouter_plugin, mqtt
from servers import CuttingProxy, Mosquitto
from support import LOCAL, local, make_app, put, until


@pytest_asyncio.fixture
async def mosquitto(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    folder = tmp_path / "mosquitto"
    folder.mkdir()
    server = Mosquitto(folder)
    await server.start()
    yield server
    await server.stop()


@pytest_asyncio.fixture
async def proxy(mosquitto: Mosquitto) -> AsyncIterator[CuttingProxy]:
    between = CuttingProxy(mosquitto.port)
    await between.start()
    yield between
    await between.stop()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults are noticed within two or three seconds."""
    monkeypatch.setattr(connection, "_BEAT", 0.1)
    monkeypatch.setattr(connection, "_PATIENCE", 1.0)
    monkeypatch.setattr(connection, "_PAUSES", (0.1,))


@asynccontextmanager
async def serving(folder: Path, *handlers: Callable[..., Any], port: int, wait: bool = True) -> AsyncIterator[App]:
    toml = f'[mqtt]\nurl = "mqtt://127.0.0.1:{port}"\n'
    app = make_app(folder, *handlers, toml=toml, plugins=Plugins([LOCAL, eventrouter_plugin()]))
    app.config.plugins["mqtt"].keepalive = 1  # type: ignore[attr-defined] - less than a user may ask for
    async with app:
        if wait:
            await live(app)
        yield app


async def live(app: App) -> None:
    await until(lambda: state(app) == "live")


def state(app: App) -> str:
    assert app.supervisor is not None
    return app.supervisor.health().sources["mqtt"]


def only(app: App) -> Any:
    source: Any = app.sources["mqtt"]
    return source._connections[""]


def held() -> tuple[int, int]:
    """File descriptors and tasks of this process; of workers one rests, once there was work."""
    return len(list(Path("/proc/self/fd").iterdir())), sum(task.get_name() != "worker" for task in asyncio.all_tasks())


def texts(count: int) -> list[str]:
    return [str(n) for n in range(count)]


async def test_a_partition_is_noticed_told_and_survived(tmp_path: Path, mosquitto: Mosquitto, proxy: CuttingProxy) -> None:
    got: list[str] = []

    @on(mqtt("a"))
    async def handler(text: str) -> None:
        got.append(text)

    async with serving(tmp_path, handler, port=proxy.port) as app:
        await mosquitto.publish("a", "before")
        await until(lambda: got == ["before"])
        before = held()
        proxy.cut()
        await mosquitto.publish("a", *texts(300))
        await until(lambda: state(app) != "live")
        assert f"mqtt://127.0.0.1:{proxy.port}: disconnected: Keep alive timeout; trying again" in state(app)
        await until(lambda: "did not answer CONNECT within 1 s" in state(app))
        proxy.heal()
        await live(app)
        await until(lambda: len(set(got)) == 301)
        await until(lambda: held() == before)


async def test_a_broker_that_says_nothing_to_connect(tmp_path: Path, mosquitto: Mosquitto, proxy: CuttingProxy) -> None:
    got: list[str] = []

    @on(mqtt("a"))
    async def handler(text: str) -> None:
        got.append(text)

    proxy.cut()
    async with serving(tmp_path, handler, port=proxy.port, wait=False) as app:
        await until(lambda: "the broker did not answer CONNECT within 1 s; trying again" in state(app))
        assert app.supervisor is not None
        assert not app.supervisor.health().ready
        proxy.heal()
        await live(app)
        await mosquitto.publish("a", "x")
        await until(lambda: got == ["x"])


async def test_a_broker_that_is_killed_again_and_again(tmp_path: Path, mosquitto: Mosquitto) -> None:
    got: list[str] = []

    @on(mqtt("a"))
    async def handler(text: str) -> None:
        got.append(text)

    async with serving(tmp_path, handler, port=mosquitto.port) as app:
        before = held()
        for name in ("one", "two", "three"):
            await mosquitto.stop(signal.SIGKILL)
            await until(lambda: state(app) != "live")
            await mosquitto.start()
            await live(app)
            await mosquitto.publish("a", name)
            await until(lambda: got[-1:] == [name])  # noqa: B023 - called at once
        await until(lambda: held() == before)


async def test_resets_in_midstream_lose_nothing(tmp_path: Path, mosquitto: Mosquitto, proxy: CuttingProxy) -> None:
    got: list[str] = []

    @on(mqtt("a"))
    async def handler(text: str) -> None:
        got.append(text)

    async with serving(tmp_path, handler, port=proxy.port) as app:
        before = held()
        for start in range(0, 2000, 200):
            publishing = asyncio.create_task(mosquitto.publish("a", *texts(2000)[start : start + 200]))
            await until(lambda: len(set(got)) >= start + 50)  # noqa: B023 - called at once
            proxy.reset()
            await publishing
        await until(lambda: len(set(got)) == 2000)
        await live(app)
        await until(lambda: held() == before)


async def test_while_the_journal_takes_nothing_messages_wait_at_the_broker(
    tmp_path: Path, mosquitto: Mosquitto, proxy: CuttingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it stays connected, past its keepalive, and through a reset."""
    got: list[str] = []
    said: list[str] = []

    @on(mqtt("a"))
    async def handler(text: str) -> None:
        got.append(text)

    @on(local("go"))
    async def publish(payload: Any) -> None:
        await Broker().publish("b", "x")
        said.append("acknowledged")

    async with serving(tmp_path, handler, publish, port=proxy.port) as app:
        pings = count_pings(app, monkeypatch)
        monkeypatch.setattr(Router, "fault", "the journal is full")
        await mosquitto.publish("a", *texts(300))
        await until(lambda: only(app)._held)
        await put(app, "go")
        await until(lambda: said)  # what would make room in the journal is not held up
        await until(lambda: len(pings) >= 3)
        assert (got, state(app), only(app)._session) == ([], "live", 1)
        proxy.reset()
        await until(lambda: only(app)._session == 2)
        await live(app)
        await until(lambda: only(app)._unacknowledged == 300)
        assert got == []
        monkeypatch.setattr(Router, "fault", "")
        await until(lambda: len(got) >= 300)
        await until(lambda: only(app)._unacknowledged == 0)
    assert sorted(got, key=int) == texts(300)


async def test_what_is_held_is_bounded_by_bytes(
    tmp_path: Path, mosquitto: Mosquitto, proxy: CuttingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond that it reads nothing, and goes on asking after the broker without hearing the answers: that it can't ask is noticed."""
    got: list[str] = []
    monkeypatch.setattr(connection, "_UNACKNOWLEDGED_BYTES", 100_000)

    @on(mqtt("a"))
    async def handler(text: str) -> None:
        got.append(text)

    async with serving(tmp_path, handler, port=proxy.port) as app:
        pings = count_pings(app, monkeypatch)
        monkeypatch.setattr(Router, "fault", "the journal is full")
        await mosquitto.publish("a", *(f"{n} {'x' * 5000}" for n in range(400)))
        await until(lambda: not only(app)._reading)
        before = len(pings)
        await until(lambda: len(pings) >= before + 3)
        assert (got, state(app), only(app)._session) == ([], "live", 1)
        assert only(app)._bytes < 100_000 + 2 * client._READ
        proxy.reset()
        await until(lambda: only(app)._session == 2 and only(app)._bytes > 0 and not only(app)._reading)
        before = len(pings)
        await until(lambda: len(pings) >= before + 3)
        assert (got, only(app)._session) == ([], 2)
        assert only(app)._bytes < 100_000 + 2 * client._READ
        monkeypatch.setattr(Router, "fault", "")
        await until(lambda: len(got) >= 400)
        await until(lambda: only(app)._bytes == 0)
    assert sorted(int(text.split()[0]) for text in got) == list(range(400))


def count_pings(app: App, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    pings: list[None] = []
    client = only(app)._client
    real = client._send_pingreq

    def ping() -> Any:
        pings.append(None)
        return real()

    monkeypatch.setattr(client, "_send_pingreq", ping)
    return pings


async def test_a_slow_handler_does_not_hold_up_a_stock_broker(tmp_path: Path) -> None:
    """Which would throw away what it has queued for us beyond 1,000 messages."""
    folder = tmp_path / "mosquitto"
    folder.mkdir()
    broker = Mosquitto(folder, stock=True)
    await broker.start()
    got: list[str] = []
    release = asyncio.Event()

    @on(mqtt("a"), concurrency=1, timeout=60)
    async def handler(text: str) -> None:
        await release.wait()
        got.append(text)

    async with serving(tmp_path, handler, port=broker.port) as app:
        await broker.publish("a", *texts(5000))
        await until(lambda: app.engine.lanes["handler"].accepted == 5000)
        await until(lambda: only(app)._unacknowledged == 0)
        assert got == []
        release.set()
        await until(lambda: len(got) == 5000)
    assert sorted(got, key=int) == texts(5000)
    await broker.stop()
