"""MQTT QoS 1 ingestion: what a broker has queued for a session is read, journalled, acknowledged and handled."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, sleep
from types import ModuleType

import msgspec
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks.apps import PAYLOAD, Reading, per_second
from benchmarks.harness import Result, compare
from eventrouter import App, on
from eventrouter.config import load_config
from eventrouter.plugins import load_plugins
from eventrouter_mqtt import mqtt

COUNT = 20_000


@contextmanager
def broker() -> Iterator[int]:
    """A mosquitto that throws nothing away; its port."""
    program = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        raise SystemExit("the mqtt benchmark needs mosquitto: apt-get install mosquitto")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "mosquitto.conf")
        config.write_text(
            f"listener {port} 127.0.0.1\nallow_anonymous true\nuser {pwd.getpwuid(os.getuid()).pw_name}\n"
            "max_queued_messages 0\nmax_inflight_messages 1000\nset_tcp_nodelay true\n"
        )
        process = subprocess.Popen([program, "-c", str(config)], stderr=subprocess.DEVNULL)
        try:
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError:
                    sleep(0.01)
            yield port
        finally:
            process.terminate()
            process.wait()


def publish(port: int, topic: str) -> None:
    """Queue COUNT messages at the broker."""
    client = Client(CallbackAPIVersion.VERSION2)
    client.max_inflight_messages_set(1000)
    client.connect("127.0.0.1", port)
    client.loop_start()
    infos = [client.publish(topic, PAYLOAD, 1) for _ in range(COUNT)]
    for info in infos:
        info.wait_for_publish()
    client.disconnect()
    client.loop_stop()


def ours(port: int) -> float:
    plugins = load_plugins()
    done = asyncio.Event()
    seen = 0

    @on(mqtt("ours/{device}/temperature", qos=1))  # each side its topic: sessions go on to queue
    async def handler(reading: Reading, device: str) -> None:
        nonlocal seen
        seen += 1
        if seen == COUNT:
            done.set()

    with tempfile.TemporaryDirectory(dir=".") as folder:  # the disk that a journal would be on, not a RAM disk
        module = ModuleType("handlers")
        vars(module)["handler"] = handler
        Path(folder, "eventrouter.toml").write_text(f'[mqtt]\nurl = "mqtt://127.0.0.1:{port}"\nclient_id = "ours"\n[http]\nport = 0\n')

        def app() -> App:
            return App(module, config=load_config(plugins.by_name, folder=Path(folder)), plugins=plugins)

        async def subscribe() -> None:
            async with app() as running:
                assert running.supervisor is not None
                await running.supervisor.ready.wait()

        async def ingest() -> None:
            async with app() as running:
                await done.wait()
                await running.journal.flush()

        per_second(0, subscribe)
        publish(port, "ours/kitchen/temperature")
        return per_second(COUNT, ingest)


def plain(port: int) -> float:
    decode = msgspec.json.Decoder(Reading).decode
    subscribed, done = threading.Event(), threading.Event()
    seen = 0

    def on_message(client: Client, data: object, message: object) -> None:
        nonlocal seen
        decode(message.payload)  # type: ignore[attr-defined]
        seen += 1
        if seen == COUNT:
            done.set()

    def connect(client: Client, *rest: object) -> None:
        client.subscribe("plain/+/temperature", 1)

    def session() -> Client:
        client = Client(CallbackAPIVersion.VERSION2, "plain", clean_session=False)
        client.on_connect = connect
        client.on_subscribe = lambda *rest: subscribed.set()
        client.on_message = on_message
        client.connect("127.0.0.1", port)
        client.loop_start()
        return client

    client = session()
    subscribed.wait()
    client.disconnect()
    client.loop_stop()
    publish(port, "plain/kitchen/temperature")
    began = perf_counter()
    client = session()
    done.wait()
    rate = COUNT / (perf_counter() - began)
    client.disconnect()
    client.loop_stop()
    return rate


def run(rounds: int) -> Iterator[Result]:
    with broker() as port:
        yield compare(
            "mqtt", "messages/s", lambda: ours(port), lambda: plain(port),
            rounds=rounds, against="plain paho, which acknowledges without a journal",
        )  # fmt: skip
