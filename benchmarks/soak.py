"""Every source at once, at half of what the machine can take, for minutes: does memory or a file descriptor leak, is an event lost?"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks.apps import PAYLOAD
from benchmarks.served import MODEL, Server
from benchmarks.servers import mosquitto

APP = (
    MODEL
    + """
from collections import Counter
from eventrouter import on
from eventrouter_cron import rate
from eventrouter_http import http
from eventrouter_mqtt import mqtt
from eventrouter_s3 import S3Object, s3
from eventrouter_sns import Topic, sns

counts = Counter()
readings = Topic("readings")

@on(http("POST /request"))
async def request(reading: Reading) -> dict[str, str]:
    counts["http"] += 1
    return {"device": reading.device}

@on(http("POST /event", mode="event"))
async def event(reading: Reading) -> None:
    await readings.publish({"celsius": reading.celsius})
    counts["http-event"] += 1

@on(sns("readings"))
async def published(reading: dict) -> None:
    counts["sns"] += 1

@on(mqtt("sensors/{device}/temperature"))
async def message(reading: Reading, device: str) -> None:
    counts["mqtt"] += 1

@on(s3("box"))
async def file(it: S3Object) -> None:
    counts["s3"] += 1

@on(rate("1 minute"))
async def tick() -> None:
    counts["cron"] += 1

@on(http("GET /counts"))
async def told() -> dict[str, int]:
    return dict(counts)
"""
)
CONNECTIONS = 8
CALIBRATION = 10.0  # seconds
SAMPLE = 10.0
WARM_UP = 60.0  # before it, caches fill; it doesn't count for the slopes
HEAD = "{} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"


class Sample(msgspec.Struct):
    """at: seconds. resident: MB. sent, handled: events so far."""

    at: float
    resident: float
    fds: int
    sent: int
    handled: int

    def line(self) -> str:
        return f"{self.at:7.0f} s  {self.resident:6.1f} MB  {self.fds:4} fds  {self.sent:,} events in, {self.handled:,} handled"


class Soaked(msgspec.Struct):
    """rate: events a second. Slopes are least-squares, after the warm-up. lost: by source; what came more than once is below zero."""

    minutes: float
    capacity: float
    rate: float
    sent: dict[str, int]
    handled: dict[str, int]
    lost: dict[str, int]
    resident_per_hour: float
    fds_per_hour: float
    samples: list[Sample]

    def line(self) -> str:
        lost = {name: count for name, count in self.lost.items() if count} or "nothing"
        return (
            f"soak           {self.minutes:.1f} min at {self.rate:,.0f} of {self.capacity:,.0f} events/s: "
            f"{sum(self.sent.values()):,} events in, {sum(self.handled.values()):,} handled, lost {lost}; "
            f"{self.resident_per_hour:+.2f} MB and {self.fds_per_hour:+.2f} file descriptors an hour"
        )


class Load:
    """Turns of one request, one event by HTTP (which publishes another), and two by MQTT; now and then a file."""

    def __init__(self, server: Server, mqtt: int, bucket: Path) -> None:
        self.sent: Counter[str] = Counter()
        self._server, self._bucket = server, bucket
        self._acknowledged = 0
        self._client = Client(CallbackAPIVersion.VERSION2)
        self._client.max_inflight_messages_set(1000)
        self._client.on_publish = self._published
        self._client.connect("127.0.0.1", mqtt)
        self._client.loop_start()

    def _published(self, *rest: Any) -> None:
        self._acknowledged += 1

    async def turns(self, seconds: float, pause: float) -> None:
        """pause: seconds from the beginning of a turn to that of the next, on each connection."""
        end = perf_counter() + seconds
        await asyncio.gather(*(self._turns(end, pause) for _ in range(CONNECTIONS)), self._files(end))

    async def _turns(self, end: float, pause: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._server.port)
        due = perf_counter()
        while due < end and perf_counter() < end:
            for path, status in (("/request", b"200"), ("/event", b"202")):
                await post(reader, writer, f"POST {path}", status)
            self.sent.update({"http": 1, "http-event": 1, "sns": 1, "mqtt": 2})
            for _ in range(2):
                self._client.publish("sensors/kitchen/temperature", PAYLOAD, 1)
            while self.sent["mqtt"] - self._acknowledged > 500:
                await asyncio.sleep(0.001)
            due += pause
            await asyncio.sleep(max(0, due - perf_counter()))
        writer.close()

    async def _files(self, end: float) -> None:
        number = self.sent["s3"]
        while perf_counter() < end:
            number += 1
            (self._bucket / f"{number % 100}.json").write_bytes(PAYLOAD)  # what is in a bucket is known, at 0.6 KB a file
            self.sent["s3"] = number
            await asyncio.sleep(0.5)

    async def handled(self) -> Counter[str]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._server.port)
        body = await post(reader, writer, "GET /counts", b"200")
        writer.close()
        return Counter(msgspec.json.decode(body, type=dict[str, int]))

    async def settled(self) -> Counter[str]:
        """What is handled, once that is all or nothing more happens."""
        before: Counter[str] = Counter()
        while True:
            handled = await self.handled()
            if handled == before or not self.sent - handled:
                return handled
            before = handled
            await asyncio.sleep(3)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


async def post(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, what: str, status: bytes) -> bytes:
    body = PAYLOAD if what.startswith("POST") else b""
    writer.write(HEAD.format(what, len(body)).encode() + body)
    head = await reader.readuntil(b"\r\n\r\n")
    if status not in head[:16]:
        raise RuntimeError(f"{what}: unexpected answer {head!r}")
    return await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split()[0]))


async def soak(server: Server, mqtt: int, bucket: Path, minutes: float) -> Soaked:
    load = Load(server, mqtt, bucket)
    began = perf_counter()
    await load.turns(CALIBRATION, 0)
    handled = await load.settled()
    capacity = handled.total() / (perf_counter() - began)
    per_turn = 5
    pause = per_turn * CONNECTIONS / (capacity / 2)
    start, before = perf_counter(), load.sent.total()
    samples: list[Sample] = []

    async def watch() -> None:
        while True:
            handled = await load.handled()
            samples.append(Sample(perf_counter() - start, server.resident(), server.fds(), load.sent.total(), handled.total()))
            print(samples[-1].line(), file=sys.stderr, flush=True)
            await asyncio.sleep(SAMPLE)

    watching = asyncio.create_task(watch())
    await load.turns(minutes * 60, pause)
    took, sent = perf_counter() - start, load.sent.total() - before
    watching.cancel()
    await asyncio.wait([watching])
    if not watching.cancelled():
        watching.result()
    handled = await load.settled()
    load.close()
    counted = [sample for sample in samples if min(WARM_UP, took / 3) <= sample.at < minutes * 60]
    hours = [sample.at / 3600 for sample in counted]
    return Soaked(
        minutes=took / 60,
        capacity=capacity,
        rate=sent / took,
        sent=dict(load.sent),
        handled=dict(handled),
        lost={name: count - handled[name] for name, count in load.sent.items()},
        resident_per_hour=statistics.linear_regression(hours, [sample.resident for sample in counted]).slope,
        fds_per_hour=statistics.linear_regression(hours, [sample.fds for sample in counted]).slope,
        samples=samples,
    )


def run(minutes: float) -> Iterator[Soaked]:
    with mosquitto() as mqtt, tempfile.TemporaryDirectory(dir=".") as folder:  # the disk that a journal would be on, not a RAM disk
        place = Path(folder)
        (place / "app.py").write_text(APP)
        (place / "eventrouter.toml").write_text(f'[mqtt]\nurl = "mqtt://127.0.0.1:{mqtt}"\n')
        began = perf_counter()
        with (place / "log.txt").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "eventrouter", "serve", "--port", "0"], cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True
            )
        try:
            server = Server(process, began)
            assert process.stdout is not None
            for line in process.stdout:
                if line == "ready\n":
                    break
            soaked = asyncio.run(soak(server, mqtt, place / "buckets" / "box", minutes))
        finally:
            process.terminate()
            process.communicate()
    yield soaked
