"""What a client's call costs a function in a process of its own: one after another, against the same bytes over a bare socket pair."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from benchmarks.apps import PAYLOAD, on_loop
from benchmarks.harness import Result, compare
from benchmarks.measure import ROOT, Measured, fresh
from eventrouter import App, Event, Plugin, call_from_thread, on
from eventrouter.config import load_config
from eventrouter.model import Succeeded
from eventrouter.plugins import Plugins

COUNT = 10_000
AT_ONCE = 64


class Probe:
    """A client that gives back what it gets."""

    async def echo(self, data: bytes) -> bytes:
        return data


PROBE = Probe()


@on(timeout=60)
def one_by_one(count: int) -> float:
    """Calls a second."""
    began = perf_counter()
    for _ in range(count):
        assert call_from_thread("Probe", lambda: PROBE.echo(PAYLOAD)) == PAYLOAD
    return count / (perf_counter() - began)


@on(timeout=60, isolation="process")
async def at_once(count: int) -> float:
    began = perf_counter()
    for _ in range(count // AT_ONCE):
        await asyncio.gather(*(PROBE.echo(PAYLOAD) for _ in range(AT_ONCE)))
    return count / (perf_counter() - began)


def ours(count: int, name: str) -> Measured:
    async def main() -> Measured:
        with TemporaryDirectory() as folder:
            file = Path(folder) / "eventrouter.toml"
            file.write_text("[app]\nprocesses = 1\n[journal]\nurl = 'memory'\n")
            plugins = Plugins([Plugin(name="probe", clients=[Probe])])
            async with App("benchmarks.calls", config=load_config(plugins.by_name, file=file), plugins=plugins, folder=ROOT) as app:
                for many in (AT_ONCE, count):  # the first time it is not warm
                    outcome = await app.run_now(name, Event("invoke", "lambda.invoke", name, str(many).encode()), {})
                assert isinstance(outcome, Succeeded), outcome
                return Measured(outcome.result)

    return on_loop(main)


def limit(count: int) -> Measured:
    mine, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        mine.close()
        while data := theirs.recv(65536):
            theirs.sendall(data)
        os._exit(0)
    theirs.close()
    began = perf_counter()
    for _ in range(count):
        mine.sendall(PAYLOAD)
        assert mine.recv(65536) == PAYLOAD
    taken = perf_counter() - began
    mine.close()
    os.waitpid(pid, 0)
    return Measured(count / taken)


def run(rounds: int) -> Iterator[Result]:
    for name, words in (("one_by_one", "one after another"), ("at_once", f"{AT_ONCE} at once")):
        yield compare(
            f"calls-{name.replace('_', '-')}", "calls/s",
            fresh(f"{__name__}:ours", count=COUNT, name=name), fresh(f"{__name__}:limit", count=COUNT),
            rounds=rounds, against=f"the same bytes to and fro over a socket pair, one after another; ours {words}",
        )  # fmt: skip
