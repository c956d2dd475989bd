"""Kill the router at random moments while it is fed from outside, then see that nothing is lost.

    python tests/crash/kill_loop.py --kills 300 --events 200000 --seed 1

Each event is a number that is sent once. accepted.txt has those whose 202 (HTTP) or PUBACK (MQTT, by a real mosquitto) was
read; the handlers append to handled.txt. At the end each number of the one is in the other, or is one dead letter.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import apsw
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from eventrouter.model import Event
from servers import Mosquitto, free_port
from support import in_segments

APP = """
import asyncio
import os
import random
from eventrouter import fixed, on
from eventrouter_http import http
from eventrouter_mqtt import mqtt

handled = os.open("handled.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def note(number: int) -> None:
    os.write(handled, b"%d\\n" % number)

@on(http("POST /good", mode="event"), mqtt("numbers/+"))
async def good(number: int) -> None:
    note(number)

@on(http("POST /flaky", mode="event"), retries=20, backoff=fixed(0))
async def flaky(number: int) -> None:
    if random.random() < 0.5:
        raise ValueError("this time")
    note(number)

@on(http("POST /slow", mode="event"))
async def slow(number: int) -> None:
    await asyncio.sleep(random.random() / 4)
    note(number)

@on(http("POST /bad", mode="event"), retries=1, backoff=fixed(0))
async def bad(number: int) -> None:
    raise ValueError("always")
"""
PATHS = ("good",) * 12 + ("flaky",) * 4 + ("slow",) * 3 + ("bad",)
CONNECTIONS = 16
MQTT_SHARE = 4  # one event in so many
STANDSTILL = 60.0  # seconds without a change, after which what is missing is lost


class Result(NamedTuple):
    """accepted: numbers. again: of them, handled more than once. letters, crashed: dead letters, and those of RouterCrashed.

    left: rows that are still waiting or running.
    """

    kills: int
    accepted: int
    lost: list[int]
    again: int
    letters: int
    twice_dead: int
    crashed: int
    left: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.kills} kills, {self.accepted} events accepted, {len(self.lost)} lost, {self.again} handled more than once, "
            f"{self.letters} dead letters ({self.twice_dead} of them twice, {self.crashed} RouterCrashed), {self.left} left over, "
            f"{self.seconds:.0f} s"
        )


class Feeder:
    """Sends numbers, each once, at `rate` a second while it may, and notes what was accepted."""

    def __init__(self, folder: Path, port: int, broker: Mosquitto | None, rate: float, dice: random.Random) -> None:
        self.accepted = 0
        self.flowing = asyncio.Event()
        self._ledger = os.open(folder / "accepted.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._port, self._rate, self._dice = port, rate, dice
        self._number = 0
        self._under_way: dict[int, int] = {}  # MQTT: numbers by message id
        self._mqtt: Client | None = None
        if broker is not None:
            self._mqtt = Client(CallbackAPIVersion.VERSION2)
            self._mqtt.max_inflight_messages_set(100)
            self._mqtt.on_publish = lambda client, data, mid, *rest: loop.call_soon_threadsafe(self._acknowledged, mid)
            loop = asyncio.get_running_loop()
            self._mqtt.connect("127.0.0.1", broker.port)
            self._mqtt.loop_start()

    async def run(self) -> None:
        """Until cancelled, or the ledger can't be written."""
        numbers: asyncio.Queue[tuple[str, int]] = asyncio.Queue()
        async with asyncio.TaskGroup() as group:
            for _ in range(CONNECTIONS):
                group.create_task(self._post(numbers))
            while True:
                await self.flowing.wait()
                if numbers.qsize() < CONNECTIONS:
                    for _ in range(int(self._rate / 100)):
                        self._number += 1
                        if self._mqtt is not None and self._number % MQTT_SHARE == 0:
                            self._under_way[self._mqtt.publish("numbers/all", str(self._number), 1).mid] = self._number
                        else:
                            numbers.put_nowait((self._dice.choice(PATHS), self._number))
                await asyncio.sleep(0.01)

    async def end(self) -> None:
        """Wait for the broker's acknowledgements."""
        while self._under_way:
            await asyncio.sleep(0.01)
        if self._mqtt is not None:
            self._mqtt.disconnect()
            self._mqtt.loop_stop()
        os.close(self._ledger)

    async def _post(self, numbers: asyncio.Queue[tuple[str, int]]) -> None:
        """One connection after another; a number whose answer did not come may have been accepted, and doesn't count."""
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            except OSError:
                await asyncio.sleep(0.02)
                continue
            try:
                while True:
                    path, number = await numbers.get()
                    writer.write(f"POST /{path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(str(number))}\r\n\r\n{number}".encode())
                    head = (await reader.readuntil(b"\r\n\r\n")).lower()
                    await reader.readexactly(int(head.partition(b"content-length:")[2].split()[0]))
                    if b" 202 " in head[:16]:
                        self._note(number)
                    else:
                        assert b" 503 " in head[:16], head  # it is shutting down
            except (OSError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

    def _acknowledged(self, mid: int) -> None:
        self._note(self._under_way.pop(mid))

    def _note(self, number: int) -> None:
        os.write(self._ledger, b"%d\n" % number)
        self.accepted += 1


class Router:
    """`eventrouter serve` in the folder, from one death to the next."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with (self._folder / "out.txt").open("wb") as out:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "eventrouter", "serve", cwd=self._folder, stdout=out, stderr=out
            )

    async def ready(self) -> None:
        assert self._process is not None
        while b"\nready\n" not in self._said():
            assert self._process.returncode is None, self._said().decode()
            await asyncio.sleep(0.01)

    def _said(self) -> bytes:
        return (self._folder / "out.txt").read_bytes()

    def signal(self, number: int) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(number)

    async def ended(self) -> int:
        assert self._process is not None
        return await self._process.wait()


async def run(folder: Path, kills: int, events: int, seed: int, *, rate: float = 1600, longest: float = 2.0) -> Result:
    """longest: seconds after it was ready that the router may live."""
    dice = random.Random(seed)
    began = time.monotonic()
    port = free_port()
    (folder / "mosquitto").mkdir()
    broker = Mosquitto(folder / "mosquitto")
    await broker.start()
    (folder / "app.py").write_text(APP)
    (folder / "eventrouter.toml").write_text(f'[http]\nport = {port}\n[mqtt]\nurl = "{broker.url}"\n')
    router = Router(folder)
    await router.start()
    await router.ready()  # once undisturbed: it subscribes, and the broker keeps messages from then on
    feeder = Feeder(folder, port, broker, rate, dice)
    feeding = asyncio.create_task(feeder.run())
    feeder.flowing.set()
    for _ in range(kills):
        moment = dice.random()
        if moment < 0.2:
            await asyncio.sleep(dice.uniform(0, 0.6))  # while it starts
        else:
            await router.ready()
            await asyncio.sleep(dice.uniform(0.05, longest))
        if moment > 0.8:
            router.signal(signal.SIGTERM)
            await asyncio.sleep(dice.uniform(0, 0.2))  # while it drains
        router.signal(signal.SIGKILL)
        await router.ended()
        await router.start()
    await router.ready()
    while feeder.accepted < events and not feeding.done():
        await asyncio.sleep(0.05)
    feeder.flowing.clear()
    await asyncio.sleep(0.5)  # answers that are on their way
    feeding.cancel()
    await asyncio.wait([feeding])
    if not feeding.cancelled():
        feeding.result()
    await feeder.end()
    accepted = numbers(folder, "accepted.txt")
    await settled(folder, set(accepted))
    router.signal(signal.SIGTERM)
    assert await router.ended() == 0
    await broker.stop()
    return judge(folder, accepted, kills, time.monotonic() - began)


async def settled(folder: Path, accepted: set[int]) -> None:
    """Wait until all is handled or dead and nothing is left, or nothing changes any more."""
    before, since = -1, time.monotonic()
    while time.monotonic() - since < STANDSTILL:
        letters, left = rows(folder)
        missing = len(accepted - set(numbers(folder, "handled.txt")) - {number for number, _ in letters}) + left
        if not missing:
            return
        if missing != before:
            before, since = missing, time.monotonic()
        await asyncio.sleep(0.2)


def judge(folder: Path, accepted: list[int], kills: int, seconds: float) -> Result:
    times = Counter(numbers(folder, "handled.txt"))
    letters, left = rows(folder)
    dead = Counter(number for number, _ in letters)
    return Result(
        kills=kills,
        accepted=len(accepted),
        lost=sorted(set(accepted) - set(times) - set(dead)),
        again=sum(count > 1 for count in times.values()),
        letters=len(letters),
        twice_dead=sum(count > 1 for count in dead.values()),
        crashed=sum(reason == "RouterCrashed" for _, reason in letters),
        left=left,
        seconds=seconds,
    )


def numbers(folder: Path, name: str) -> list[int]:
    return [int(line) for line in (folder / name).read_bytes().split()]


def rows(folder: Path) -> tuple[list[tuple[int, str]], int]:
    """(number, reason) of each dead letter; and how many rows wait or run."""
    reader = apsw.Connection(str(folder / ".eventrouter" / "journal.db"), flags=apsw.SQLITE_OPEN_READONLY)
    reader.set_busy_timeout(5000)
    try:
        dead = reader.execute("SELECT event, reason FROM invocation WHERE state = 2").fetchall()
        left = reader.execute("SELECT count(*) FROM invocation WHERE state IN (0, 1)").get + sum(1 for _ in in_segments(reader))
        return [(int(Event.unpack(packed).data), reason) for packed, reason in dead], left
    finally:
        reader.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--events", type=int, default=200_000, help="at least")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as folder:  # the disk that a journal would be on, not a RAM disk
        result = asyncio.run(run(Path(folder).resolve(), given.kills, given.events, given.seed))
    print(f"seed {given.seed}: {result}")
    return 1 if result.lost or result.left or result.twice_dead else 0


if __name__ == "__main__":
    sys.exit(main())
