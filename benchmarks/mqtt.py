"""MQTT QoS 1: messages are read, journalled, acknowledged and handled; against a C subscriber that only acknowledges.

`mqtt`: live, from the first one published to the last one handled. `mqtt-backlog`: what the broker has queued for the session, from the
first one that arrives to the last. Each side has a broker of its own, and the same publisher (mosquitto_pub) shares the machine with it.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from types import ModuleType

import msgspec
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks.apps import PAYLOAD, Reading, on_loop
from benchmarks.harness import Result, compare
from benchmarks.measure import Measured, Watch, fresh
from benchmarks.servers import folder, mosquitto, program
from eventrouter import App, on
from eventrouter.config import load_config
from eventrouter.plugins import load_plugins
from eventrouter_mqtt import mqtt

COUNT = 40_000
TOPIC = "sensors/kitchen/temperature"


class Publisher:
    """Publishes `count` readings with QoS 1, as fast as the broker takes them."""

    def __init__(self, port: int, count: int) -> None:
        self._lines = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the publisher
        self._lines.write((PAYLOAD + b"\n") * count)
        path = program("mosquitto_pub", "apt-get install mosquitto-clients")
        self._command = [path, "-p", str(port), "-q", "1", "-t", TOPIC, "-l"]
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *exc: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        self._lines.close()

    def start(self) -> subprocess.Popen[bytes]:
        self._lines.seek(0)
        self._processes.append(subprocess.Popen(self._command, stdin=self._lines))
        return self._processes[-1]

    def publish(self) -> None:
        """Until all are acknowledged."""
        if self.start().wait():
            raise RuntimeError("mosquitto_pub failed")


def ours(count: int, live: bool) -> Measured:
    plugins = load_plugins()
    done = asyncio.Event()
    seen = 0
    first = 0.0

    @on(mqtt("sensors/{device}/temperature", qos=1))
    async def handler(reading: Reading, device: str) -> None:
        nonlocal seen, first
        if not seen:
            first = perf_counter()
        seen += 1
        if seen == count:
            done.set()

    module = ModuleType("handlers")
    vars(module)["handler"] = handler

    async def main(place: Path, publisher: Publisher) -> Measured:
        def app() -> App:
            return App(module, config=load_config(plugins.by_name, folder=place), plugins=plugins)

        async def subscribed(running: App) -> None:
            assert running.supervisor is not None
            await running.supervisor.ready.wait()

        if not live:
            async with app() as running:
                await subscribed(running)
            await asyncio.to_thread(publisher.publish)
        async with app() as running:
            with Watch(os.getpid()) as watch:
                if live:
                    await subscribed(running)
                    began = perf_counter()
                    process = publisher.start()
                await done.wait()
                await running.journal.flush()
                ended = perf_counter()
        watch.seconds = ended - (began if live else first)
        if live:
            process.wait()
        return watch.rate(count)

    with mosquitto() as port, folder() as place, Publisher(port, count) as publisher:
        (place / "eventrouter.toml").write_text(f'[mqtt]\nurl = "mqtt://127.0.0.1:{port}"\nclient_id = "ours"\n[http]\nport = 0\n')
        return on_loop(lambda: main(place, publisher))


def subscriber(count: int, live: bool, path: str) -> Measured:
    """path: of the compiled C program."""

    def say(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        if not (line := process.stdout.readline()):
            raise RuntimeError("the C subscriber ended")
        return line

    with mosquitto() as port, Publisher(port, count) as publisher:
        command = [path, str(port), "limit", TOPIC, str(count)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            say(process)
            if not live:
                process.kill()
                process.wait()
                publisher.publish()
                process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            with Watch(process.pid) as watch:
                if live:
                    publishing = publisher.start()
                while (line := say(process)) == "subscribed\n":
                    pass
            if live:
                publishing.wait()
            else:
                watch.seconds = float(line)
        finally:
            process.kill()
            process.wait()
    return watch.rate(count)


def paho(count: int, live: bool) -> Measured:
    """Paho as its documents have it, network thread and all: it decodes, and acknowledges without a journal."""
    decode = msgspec.json.Decoder(Reading).decode
    subscribed, done = threading.Event(), threading.Event()
    seen = 0
    first = 0.0

    def on_message(client: Client, data: object, message: object) -> None:
        nonlocal seen, first
        if not seen:
            first = perf_counter()
        decode(message.payload)  # type: ignore[attr-defined]
        seen += 1
        if seen == count:
            done.set()

    def connected(client: Client, *rest: object) -> None:
        client.subscribe("sensors/+/temperature", 1)

    def session(port: int) -> Client:
        client = Client(CallbackAPIVersion.VERSION2, "paho", clean_session=False)
        client.on_connect = connected
        client.on_subscribe = lambda *rest: subscribed.set()
        client.on_message = on_message
        client.connect("127.0.0.1", port)
        client.loop_start()
        return client

    with mosquitto() as port, Publisher(port, count) as publisher:
        client = session(port)
        subscribed.wait()
        if not live:
            client.disconnect()
            client.loop_stop()
            publisher.publish()
        with Watch(os.getpid()) as watch:
            if live:
                publishing = publisher.start()
            else:
                client = session(port)
            done.wait()
            ended = perf_counter()
        if live:
            publishing.wait()
        else:
            watch.seconds = ended - first
        client.disconnect()
        client.loop_stop()
    return watch.rate(count)


def compiled(place: Path) -> str:
    """The C subscriber, which needs gcc and libmosquitto-dev."""
    program("gcc", "apt-get install gcc")
    path = str(place / "subscriber")
    source = Path(__file__).with_name("subscriber.c")
    done = subprocess.run(["gcc", "-O2", "-o", path, source, "-lmosquitto"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the C subscriber can't be compiled; apt-get install libmosquitto-dev: {done.stderr}")
    return path


def run(rounds: int) -> Iterator[Result]:
    with folder() as place:
        path = compiled(place)
        for name, live in (("mqtt", True), ("mqtt-backlog", False)):
            yield compare(
                name, "messages/s",
                fresh(f"{__name__}:ours", count=COUNT, live=live), fresh(f"{__name__}:subscriber", count=COUNT, live=live, path=path),
                rounds=rounds, against="a C subscriber (libmosquitto) that only acknowledges",
                peers={"paho": fresh(f"{__name__}:paho", count=COUNT, live=live)},
            )  # fmt: skip
