"""A router that dies by SIGKILL in the middle of a stream of messages loses none of them."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from servers import Mosquitto

COUNT = 10_000
APP = """
import os
from eventrouter import on
from eventrouter_mqtt import mqtt

got = os.open("got.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

@on(mqtt("numbers/{part}", qos=1))
async def note(number: int, part: str) -> None:
    os.write(got, b"%d\\n" % number)
"""


@pytest.mark.asyncio(loop_factories=["asyncio"])  # the test's own; what is killed serves on uvloop
async def test_ten_thousand_messages_and_a_sigkill(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mosquitto"
    folder.mkdir()
    broker = Mosquitto(folder)
    await broker.start()
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "eventrouter.toml").write_text(f'[http]\nport = 0\n[mqtt]\nurl = "{broker.url}"\n')
    router = await serve(tmp_path)
    publishing = asyncio.create_task(broker.publish("numbers/all", *map(str, range(COUNT))))
    while len(handled(tmp_path)) < COUNT // 4:
        await asyncio.sleep(0.01)
    router.send_signal(signal.SIGKILL)
    router.wait()
    before = len(handled(tmp_path))
    assert before < COUNT, "it was killed too late to tell anything"
    router = await serve(tmp_path)
    await publishing
    async with asyncio.timeout(60):
        while len(set(handled(tmp_path))) < COUNT:
            await asyncio.sleep(0.05)
    router.terminate()
    assert router.wait() == 0
    await broker.stop()
    times = Counter(handled(tmp_path))
    assert set(times) == set(range(COUNT))
    with capsys.disabled():
        print(f"\n{COUNT} messages, SIGKILL after {before}: none missing, {times.total() - COUNT} handled twice")


async def serve(folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "out.txt").open("wb") as out:
        router = subprocess.Popen([sys.executable, "-m", "eventrouter", "serve"], cwd=folder, stdout=out, stderr=out)  # noqa: ASYNC220
    while b"ready" not in (folder / "out.txt").read_bytes():
        assert router.poll() is None, (folder / "out.txt").read_text()
        await asyncio.sleep(0.02)
    return router


def handled(folder: Path) -> list[int]:
    file = folder / "got.txt"
    return [int(line) for line in file.read_bytes().splitlines()] if file.exists() else []
