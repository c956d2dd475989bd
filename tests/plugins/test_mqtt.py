"""MQTT against a real mosquitto, and a real nats-server where it is the embedded broker."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from eventrouter import App, Event, on
from eventrouter.errors import ConfigError, EventRouterError, JournalError, NotRunning
from eventrouter.journal.protocol import LetterQuery
from eventrouter.operations import Operations
from eventrouter.plugins import Plugins
from eventrouter_mqtt import Broker, MqttConfig, MqttTrigger, broker, doctor, eventrouter_plugin, mqtt, sample, topics
from eventrouter_mqtt.connection import Connection
from servers import Mosquitto
from source_contract import Outside, SourceContract
from support import LOCAL, local, make_app, put, until


class Reading(msgspec.Struct):
    celsius: float


@pytest_asyncio.fixture
async def mosquitto(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    folder = tmp_path / "mosquitto"
    folder.mkdir()
    server = Mosquitto(folder)
    await server.start()
    yield server
    await server.stop()


class Device(Outside):
    """A device and a broker between: what it sends while the router is away, or takes nothing, the broker keeps."""

    source = "mqtt"
    keeps = True

    def __init__(self, server: Mosquitto) -> None:
        self.server = server

    @property
    def toml(self) -> str:
        return f"[mqtt]\n{at(self.server)}\n"

    def plugins(self) -> Plugins:
        return Plugins([eventrouter_plugin()])

    def trigger(self) -> MqttTrigger:
        return mqtt("items/{shelf}")

    async def put(self, app: App, n: int, body: bytes | None = None) -> bool:
        await self.server.publish("items/1", json.dumps({"n": n}) if body is None else body.decode())
        return True


class TestMqttIsASource(SourceContract):
    @pytest.fixture
    def outside(self, mosquitto: Mosquitto) -> Device:
        return Device(mosquitto)


@asynccontextmanager
async def serving(folder: Path, *handlers: Callable[..., Any], toml: str) -> AsyncIterator[App]:
    async with make_app(folder, *handlers, toml=f"[mqtt]\n{toml}", plugins=Plugins([LOCAL, eventrouter_plugin()])) as app:
        await live(app)
        yield app


async def live(app: App) -> None:
    await until(lambda: app.sources["mqtt"].router.state == "live")


def at(server: Mosquitto, version: str = "5") -> str:
    return f'url = "{server.url}"\nversion = "{version}"'


@pytest.mark.parametrize("ours", ["3.1.1", "5"])
@pytest.mark.parametrize("theirs", ["mqttv311", "mqttv5"])
async def test_messages_reach_handlers(tmp_path: Path, mosquitto: Mosquitto, ours: str, theirs: str) -> None:
    got: list[Any] = []

    @on(mqtt("sensors/{device}/temperature"))
    async def record(reading: Reading, device: str, event: Event) -> None:
        got.append((device, reading.celsius, event.subject, event.attributes["qos"]))

    @on(mqtt("sensors/{rest+}"))
    async def everything(text: str, rest: str) -> None:
        got.append((rest, text))

    @on(mqtt("sensors/#"))
    def as_lambda(event, context):  # type: ignore[no-untyped-def]
        got.append(event)

    async with serving(tmp_path, record, everything, as_lambda, toml=at(mosquitto, ours)):
        await mosquitto.publish("sensors/kitchen/temperature", '{"celsius": 21.5}', version=theirs)
        await until(lambda: len(got) >= 3)
        await mosquitto.publish("sensors", '"top"', version=theirs)
        await until(lambda: len(got) >= 5)
    assert sorted(got, key=str) == sorted(
        [
            ("kitchen", 21.5, "sensors/kitchen/temperature", 1), ("kitchen/temperature", '{"celsius": 21.5}'), {"celsius": 21.5},
            ("", '"top"'), "top",
        ],
        key=str,
    )  # fmt: skip


async def test_qos_0_and_the_most_of_two_functions_qos(tmp_path: Path, mosquitto: Mosquitto) -> None:
    got: list[Any] = []

    @on(mqtt("a", qos=0))
    async def zero(event: Event) -> None:
        got.append(("zero", event.attributes["qos"]))

    @on(mqtt("b", qos=0))
    async def low(event: Event) -> None:
        got.append(("low", event.attributes["qos"]))

    @on(mqtt("b", qos=1))
    async def high(event: Event) -> None:
        got.append(("high", event.attributes["qos"]))

    async with serving(tmp_path, zero, low, high, toml=at(mosquitto)):
        await mosquitto.publish("a", "1")
        await mosquitto.publish("b", "1", qos=2)
        await until(lambda: len(got) == 3)
    assert sorted(got) == [("high", 1), ("low", 1), ("zero", 0)]


@pytest.mark.parametrize("version", ["3.1.1", "5"])
async def test_a_message_that_two_filters_match_starts_each_function_once(tmp_path: Path, mosquitto: Mosquitto, version: str) -> None:
    got: list[str] = []

    @on(mqtt("a/+"))
    async def one(text: str) -> None:
        got.append(f"one {text}")

    @on(mqtt("+/b", qos=0), mqtt("a/b"))
    async def two(text: str) -> None:
        got.append(f"two {text}")

    async with serving(tmp_path, one, two, toml=at(mosquitto, version)) as app:
        await mosquitto.publish("a/b", "x")
        await mosquitto.publish("c/b", "y")
        await mosquitto.publish("a/c", "end")
        await until(lambda: "one end" in got)
        await app.journal.flush()
        await until(lambda: len(got) >= 4)
    assert sorted(got) == ["one end", "one x", "two x", "two y"]


async def test_a_shared_subscription_divides_the_messages(tmp_path: Path, mosquitto: Mosquitto) -> None:
    got: list[tuple[str, str]] = []

    def member(name: str) -> Callable[..., Any]:
        async def handler(text: str) -> None:
            got.append((name, text))

        handler.__name__ = name
        return on(mqtt("jobs", share="workers"))(handler)

    @on(mqtt("jobs"))
    async def watcher(text: str) -> None:
        got.append(("watcher", text))

    wanted = [str(n) for n in range(40)]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with (
        serving(tmp_path / "a", member("first"), watcher, toml=at(mosquitto)),
        serving(tmp_path / "b", member("second"), toml=at(mosquitto)),
    ):
        await mosquitto.publish("jobs", *wanted)
        await until(lambda: len(got) >= 80)
    assert sorted((text for name, text in got if name == "watcher"), key=int) == wanted
    assert sorted((text for name, text in got if name != "watcher"), key=int) == wanted
    assert {name for name, _ in got} == {"first", "second", "watcher"}


async def test_messages_wait_at_the_broker_while_the_router_is_down(tmp_path: Path, mosquitto: Mosquitto) -> None:
    got: list[str] = []

    @on(mqtt("a"))
    async def handler(text: str) -> None:
        got.append(text)

    async with serving(tmp_path, handler, toml=at(mosquitto)):
        pass
    await mosquitto.publish("a", *[str(n) for n in range(300)])
    async with serving(tmp_path, handler, toml=at(mosquitto)):
        await until(lambda: len(got) >= 300)
    assert sorted(got, key=int) == [str(n) for n in range(300)]


async def test_what_no_function_wants_any_more_is_unsubscribed(tmp_path: Path, mosquitto: Mosquitto) -> None:
    got: list[str] = []

    @on(mqtt("old"))
    async def old(text: str) -> None:
        got.append(text)

    @on(mqtt("new"))
    async def new(text: str) -> None:
        got.append(text)

    async with serving(tmp_path, old, toml=at(mosquitto)):
        pass
    async with serving(tmp_path, new, toml=at(mosquitto)) as app:
        await mosquitto.publish("old", "x")
        await mosquitto.publish("new", "y")
        await until(lambda: got)
        assert (got, app.engine.intake.unmatched) == (["y"], 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_it_reconnects_and_subscribes_again(tmp_path: Path, mosquitto: Mosquitto, number: int) -> None:
    got: list[str] = []

    @on(mqtt("a"))
    async def handler(text: str) -> None:
        got.append(text)

    async with serving(tmp_path, handler, toml=at(mosquitto)) as app:
        await mosquitto.stop(number)
        await until(lambda: app.sources["mqtt"].router.state != "live")
        assert f"mqtt://127.0.0.1:{mosquitto.port}: " in app.sources["mqtt"].router.state
        assert "trying again" in app.sources["mqtt"].router.state
        await mosquitto.start()
        await live(app)
        await mosquitto.publish("a", "again")
        await until(lambda: got)


async def test_nothing_is_acknowledged_before_it_is_on_disk(tmp_path: Path, mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the journal fails nothing is acknowledged; it is asked again until it works."""
    got: list[str] = []

    @on(mqtt("a"))
    async def handler(text: str) -> None:
        got.append(text)

    async with serving(tmp_path, handler, toml=at(mosquitto)) as app:
        real, refused = app.journal.accept, 0

        def full(entries: Any, told: Any) -> asyncio.Future[list[bool]]:
            nonlocal refused
            refused += 1
            future: asyncio.Future[list[bool]] = asyncio.get_running_loop().create_future()
            future.set_exception(JournalError("the disk is full"))
            return future

        monkeypatch.setattr(app.journal, "accept", full)
        await mosquitto.publish("a", *[str(n) for n in range(50)])
        await until(lambda: refused >= 2)
        assert app.sources["mqtt"].router.state == "live"
        monkeypatch.setattr(app.journal, "accept", real)
        await until(lambda: len(got) == 50)
    assert sorted(got, key=int) == [str(n) for n in range(50)]


async def test_reading_rests_while_more_comes_but_not_where_the_broker_waits(
    tmp_path: Path, mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[int] = []
    rests: list[int] = []
    rested = Connection._rested

    def counted(self: Connection, unread: int) -> None:
        rests.append(self._unread() - unread)
        rested(self, unread)

    monkeypatch.setattr(Connection, "_rested", counted)

    @on(mqtt("a"))
    async def handler(number: int) -> None:
        got.append(number)

    async with serving(tmp_path, handler, toml=at(mosquitto)):
        await mosquitto.publish("a", *map(str, range(3000)))
        await until(lambda: len(got) == 3000)
    assert got == [*range(3000)]
    assert rests
    # A broker of a few bytes, which sends twenty, and the next when those are acknowledged.
    got.clear()
    rests.clear()
    windows = 40

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sent = acknowledged = 0
        while head := await reader.read(1):
            body = await reader.readexactly((await reader.readexactly(1))[0])
            if head[0] == 0x10:
                writer.write(b"\x20\x02\x00\x00")
            elif head[0] == 0x82:
                writer.write(b"\x90\x03" + body[:2] + b"\x01")
            acknowledged += head[0] == 0x40
            if head[0] in (0x82, 0x40) and acknowledged == sent < 20 * windows:
                for _ in range(20):
                    sent += 1
                    writer.write(b"\x32\x09\x00\x01a" + sent.to_bytes(2) + b"%4d" % sent)
        writer.close()
        ended.set()

    ended = asyncio.Event()
    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with serving(tmp_path, handler, toml=f'url = "mqtt://127.0.0.1:{port}"\nversion = "3.1.1"'):
        await until(lambda: len(got) == 20 * windows)
    await ended.wait()
    server.close()
    assert got == [*range(1, 20 * windows + 1)]
    assert 0 in rests
    assert len(rests) < windows, "it rests after each window though nothing comes"


async def test_acknowledgements_follow_the_order_of_receipt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker of a few bytes, to see the very packets; commits end in the wrong order."""
    acknowledged: list[int] = []
    connections: list[asyncio.StreamWriter] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        while head := await reader.read(1):
            size = (await reader.readexactly(1))[0]
            body = await reader.readexactly(size)
            if head[0] == 0x10:
                writer.write(b"\x20\x02\x00\x00")
            elif head[0] == 0x82:
                writer.write(b"\x90\x03" + body[:2] + b"\x01")
            elif head[0] == 0x40:
                acknowledged.append(int.from_bytes(body))

    @on(mqtt("a"))
    async def handler(text: str) -> None: ...

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with serving(tmp_path, handler, toml=f'url = "mqtt://127.0.0.1:{port}"\nversion = "3.1.1"') as app:
        receipts: list[asyncio.Future[int]] = []

        def deliver(events: Any) -> asyncio.Future[int]:
            receipts.append(asyncio.get_running_loop().create_future())
            return receipts[-1]

        monkeypatch.setattr(app.engine, "deliver", deliver)
        for mid in (1, 2, 3):
            connections[-1].write(b"\x32\x06\x00\x01a" + mid.to_bytes(2) + b"x")
            await until(lambda: len(receipts) == mid)  # noqa: B023 - called at once
        receipts[2].set_result(1)
        receipts[1].set_result(1)
        await asyncio.sleep(0.05)
        assert acknowledged == []
        receipts[0].set_result(1)
        await until(lambda: len(acknowledged) == 3)
    assert acknowledged == [1, 2, 3]
    connections[-1].close()
    server.close()


async def test_what_does_not_validate_is_a_dead_letter(tmp_path: Path, mosquitto: Mosquitto) -> None:
    got: list[float] = []

    @on(mqtt("a"))
    async def handler(reading: Reading) -> None:
        got.append(reading.celsius)

    async with serving(tmp_path, handler, toml=at(mosquitto)) as app:
        await mosquitto.publish("a", '{"celsius": "hot"}', "\\xff{", '{"celsius": 20}')
        await until(lambda: got and app.engine.lanes["handler"].dead == 2)
        await app.journal.flush()
        letters = await app.journal.dead(LetterQuery())
    assert [letter.error_type for letter in letters] == ["InvalidPayload"] * 2
    assert letters[0].error_message == "$.celsius: expected float, got str"


async def test_publish_and_send(tmp_path: Path, mosquitto: Mosquitto) -> None:
    got: list[tuple[str, str, bool]] = []

    @on(local("go"))
    async def publish(payload: Any) -> None:
        await Broker().publish("out/json", {"x": 1})
        await Broker().publish("out/zero", "text", qos=0)
        await Broker().publish("out/two", b"bytes", qos=2, retain=True)

    @on(local("threaded"))
    def threaded(payload: Any) -> None:
        Broker().sync.publish("out/thread", "t")

    @on(mqtt("out/{what}"))
    async def handler(text: str, what: str, event: Event) -> None:
        got.append((what, text, event.attributes["retain"]))

    async with serving(tmp_path, publish, threaded, handler, toml=at(mosquitto)) as app:
        await put(app, "go")
        await put(app, "threaded")
        assert await Operations(app).send("mqtt", ["out/sent", "s"], {"qos": ["0"]}, ".") == {"topic": "out/sent", "qos": 0}
        await until(lambda: len(got) == 5)
        with pytest.raises(ConfigError, match=r"send mqtt: topic 'a/\+': '\+' is for filters only"):
            await Operations(app).send("mqtt", ["a/+", "s"], {}, ".")
    assert sorted(got) == [
        ("json", '{"x":1}', False), ("sent", "s", False), ("thread", "t", False), ("two", "bytes", False), ("zero", "text", False),
    ]  # fmt: skip


async def test_publishing_waits_for_the_broker_to_come_back(tmp_path: Path, mosquitto: Mosquitto) -> None:
    done: list[str] = []

    @on(local("go"), timeout=60)
    async def publish(payload: Any) -> None:
        try:
            await Broker().publish("x", "lost", qos=0)
        except EventRouterError as error:
            done.append(str(error))
        await Broker().publish("x", "kept")
        done.append("acknowledged")

    async with serving(tmp_path, publish, toml=at(mosquitto)) as app:
        await mosquitto.stop()
        await until(lambda: app.sources["mqtt"].router.state != "live")
        await put(app, "go")
        await until(lambda: done)
        assert "not connected, and a message of QoS 0 does not wait" in done[0]
        await mosquitto.start()
        await until(lambda: len(done) == 2)


async def test_a_login_that_is_refused_is_told_without_the_password(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "passwords").write_text("")
    server = Mosquitto(folder, f"allow_anonymous false\npassword_file {folder}/passwords")
    await server.start()

    @on(mqtt("a"))
    async def handler(text: str) -> None: ...

    url = f"mqtt://joe:hunter2@127.0.0.1:{server.port}"
    app = make_app(tmp_path, handler, toml=f'[mqtt]\nurl = "{url}"', plugins=Plugins([eventrouter_plugin()]))
    async with app:
        router = app.sources["mqtt"].router
        await until(lambda: router.state != "starting")
        assert "refuses the connection: Not authorized" in router.state
        assert "hunter2" not in router.state + "".join(app.sources["mqtt"].lines())
        assert app.supervisor
        assert not app.supervisor.health().ready
    await server.stop()


@pytest.mark.parametrize("kind", ["mosquitto", "nats-server"])
async def test_an_embedded_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    got: list[str] = []

    @on(mqtt("a"))
    async def handler(text: str) -> None:
        got.append(text)

    path = str(Path(sys.executable).parent / "nats-server") if kind == "nats-server" else broker.find().path  # type: ignore[union-attr]
    monkeypatch.setattr(broker, "find", lambda: broker.Found(kind, path))
    async with serving(tmp_path, handler, toml='broker = "embedded"\nport = 0') as app:
        (line,) = app.sources["mqtt"].lines()
        assert f"embedded {kind}" in line
        assert ("MQTT 3.1.1 only" in line) == (kind == "nats-server")
        await Operations(app).send("mqtt", ["a", "one"], {}, ".")
        await until(lambda: len(got) == 1)
        source: Any = app.sources["mqtt"]
        child = source._broker._process.pid
        os.kill(child, signal.SIGKILL)
        await until(lambda: source.router.state != "live")
        await live(app)
        await Operations(app).send("mqtt", ["a", "two"], {}, ".")
        await until(lambda: len(got) == 2)
        child = source._broker._process.pid
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


async def test_an_embedded_broker_whose_port_is_taken(tmp_path: Path, mosquitto: Mosquitto) -> None:
    @on(mqtt("a"))
    async def handler(text: str) -> None: ...

    with pytest.raises(EventRouterError, match=rf"can't listen on 127.0.0.1:{mosquitto.port}: .*; choose another \[mqtt\] port"):
        async with serving(tmp_path, handler, toml=f'broker = "embedded"\nport = {mosquitto.port}'):
            pass


async def test_a_broker_of_3_1_1_only_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "find", lambda: broker.Found("nats-server", str(Path(sys.executable).parent / "nats-server")))
    embedded = broker.EmbeddedBroker(tmp_path, "127.0.0.1", 0)
    await embedded.start()

    @on(mqtt("a"))
    async def handler(text: str) -> None: ...

    toml = f'[mqtt]\nurl = "mqtt://127.0.0.1:{embedded.port}"'
    async with make_app(tmp_path, handler, toml=toml, plugins=Plugins([eventrouter_plugin()])) as app:
        router = app.sources["mqtt"].router
        await until(lambda: router.state != "starting")
        state = router.state
    await embedded.stop()
    assert 'set [mqtt] version = "3.1.1"' in state


async def test_without_a_broker_it_is_idle_and_publishing_says_so(tmp_path: Path) -> None:
    said: list[str] = []

    @on(local("go"))
    async def publish(payload: Any) -> None:
        try:
            await Broker().publish("x", "y")
        except EventRouterError as error:
            said.append(str(error))

    with pytest.raises(NotRunning):
        await Broker().publish("x", "y")
    async with serving(tmp_path, publish, toml="") as app:
        assert app.sources["mqtt"].lines() == []
        await put(app, "go")
        await until(lambda: said)
    assert 'no broker is configured; set [mqtt] url, or broker = "embedded"' in said[0]


def test_topics_matches(cases: Path) -> None:
    for line in (cases / "mqtt" / "match.jsonl").read_text().splitlines():
        case = json.loads(line)
        try:
            found = "match" if topics.matches(case["filter"], case["topic"]) else "no_match"
        except ValueError:
            found = "error"
        assert found == case["expected"], case


def test_topic_and_filter_validity(cases: Path) -> None:
    count = 0
    for line in (cases / "mqtt" / "validity.jsonl").read_text().splitlines():
        case = json.loads(line)
        unit, times = case.get("value_repeat") or (case["value"], 1)
        value = unit * times
        try:
            (topics.check_topic if case["kind"] == "topic_name" else topics.check_filter)(value)
            found = "valid"
        except ValueError:
            found = "invalid"
        assert found == case["expected"], case
        count += 1
    assert count >= 80


@pytest.mark.parametrize(
    ("filter", "topic", "found"),
    [
        ("#", "$SYS/load", False),
        ("+/load", "$SYS/load", False),
        ("$SYS/#", "$SYS/load", True),
        ("a/#", "a", True),
        ("$share/g/a/+", "a/b", True),
    ],
)
def test_topics_beginning_with_a_dollar_and_shared_ones(filter: str, topic: str, found: bool) -> None:
    assert topics.matches(filter, topic) is found


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [("a/+", "+/b", True), ("a/b", "a/c", False), ("a/#", "a/b/c", True), ("a", "a/b", False), ("a/+", "a/b/c", False), ("a", "a/#", True)],
)
def test_which_filters_overlap(one: str, other: str, overlap: bool) -> None:
    assert topics.may_overlap(one.split("/"), other.split("/")) is overlap
    assert topics.may_overlap(other.split("/"), one.split("/")) is overlap


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda: mqtt("a/b#"), "'#' must be the whole of the last level; see 'b#'"),
        (lambda: mqtt("a+/b"), "'+' must be the whole of a level; see 'a+'"),
        (lambda: mqtt("a/{b+}/c"), "'#' must be the whole of the last level"),
        (lambda: mqtt("a/x{b}"), "is the whole of a level; see 'x{b}'"),
        (lambda: mqtt("{a}/{a}"), "'a' must be a Python name that comes once"),
        (lambda: mqtt(""), "it must have 1 to 65535 bytes"),
        (lambda: mqtt("a", qos=2), "qos=2; it is 0 or 1"),
        (lambda: mqtt("$share/g/a"), 'write mqtt("a", share="g")'),
        (lambda: mqtt("a", share="g+"), "no wildcard in GROUP"),
    ],
)
def test_what_is_refused_at_load(make: Callable[[], Any], fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert fault in str(caught.value)


@pytest.mark.parametrize(
    ("toml", "fault"),
    [
        ('url = "http://x"', "http://x is no broker's; write mqtt://"),
        ('url = "mqtt://u:secret@/x"', "is no broker's"),
        ('url = "mqtt://h:port"', "write mqtt://user:password@host:1883"),
        ('url = "mqtt://h"\nbroker = "embedded"', "has both url and broker"),
        ('key_file = "k"', "key_file without cert_file"),
        ('broker = "none"', r"broker: invalid enum value 'none'"),
    ],
)
def test_what_is_no_configuration(tmp_path: Path, toml: str, fault: str) -> None:
    @on(mqtt("a"))
    async def handler(text: str) -> None: ...

    with pytest.raises(ConfigError) as caught:
        make_app(tmp_path, handler, toml=f"[mqtt]\n{toml}", plugins=Plugins([eventrouter_plugin()]))
    assert fault in str(caught.value)
    assert "secret" not in str(caught.value)


def test_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "mqtt://127.0.0.1:1883 (the default)" in doctor(MqttConfig())[0].text
    assert "hidden" not in doctor(MqttConfig(url="mqtt://u:hidden@h"))[0].text
    monkeypatch.setattr(broker, "find", lambda: None)
    assert doctor(MqttConfig(broker="embedded"))[0].level == "problem"
    monkeypatch.setattr(broker, "find", lambda: broker.Found("nats-server", "/x"))
    assert "MQTT 3.1.1 only" in doctor(MqttConfig(broker="embedded"))[0].text


AMAZONS = """
import json


def lambda_handler(event, context):
    celsius = float(event["reading"]["celsius"])
    with open("hot.json", "w") as out:
        json.dump({"hot": celsius > 90, "request": len(context.aws_request_id), "arn": context.invoked_function_arn}, out)
    return json.dumps(event)
"""


async def test_a_function_written_for_an_iot_rule_runs_unmodified(tmp_path: Path, mosquitto: Mosquitto, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    code: dict[str, Any] = {"__name__": "lambda_function"}
    exec(compile(AMAZONS, "lambda_function.py", "exec"), code)
    handler = on(mqtt("plant/+/reading"), where={"reading": {"celsius": [{"numeric": [">", 90]}]}})(code["lambda_handler"])
    async with serving(tmp_path, handler, toml=at(mosquitto)) as app:
        await mosquitto.publish("plant/oven/reading", "no JSON", '{"reading": {"celsius": 20}}', '{"reading": {"celsius": 91}}')
        await until(lambda: app.engine.lanes["lambda_handler"].succeeded == 1)
        assert app.engine.lanes["lambda_handler"].filtered == 2
    written = json.loads((tmp_path / "hot.json").read_text())
    assert written == {"hot": True, "request": 36, "arn": "arn:aws:lambda:local:000000000000:function:lambda_handler"}


def test_the_sample() -> None:
    assert sample() == {"celsius": 21.5}
    assert sample("a/b", "[1]") == [1]
    for topic, payload, fault in (("a/+", "1", "'\\+' is for filters only"), ("a", "hot", "gets JSON alone, and 'hot' is none")):
        with pytest.raises(ConfigError, match=f"sample mqtt: .*{fault}"):
            sample(topic, payload)
