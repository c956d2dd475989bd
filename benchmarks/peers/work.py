"""The course of a peer's measurement; and its handler's work, with the count of handled events across processes.

A peer is a module beside this one: its `app` and handler as its documents have them, COMMAND: the words after `python -m` that start its
worker, and `send(count)`, which returns once so many events are taken on. Both processes import it, with the server's address in URL.
"""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from select import select

import msgspec

from benchmarks import servers
from benchmarks.measure import ROOT, Measured, Watch
from benchmarks.payload import PAYLOAD, Reading

TEXT = PAYLOAD.decode()
URL = os.environ.get("BENCH_URL", "")
WARM_UP = 100
PATIENCE = 12  # seconds without any event handled

_decode = msgspec.json.Decoder(Reading).decode
_tally = -1


def handle(data: str | bytes) -> None:
    """A handler's work: decode and validate; and one byte into the pipe that the measurement reads, which takes a microsecond."""
    global _tally
    _decode(data)
    if _tally < 0:
        _tally = os.open(os.environ["BENCH_TALLY"], os.O_WRONLY)
    os.write(_tally, b".")


def measure(module: str, server: str, fsync: bool, count: int) -> Measured:
    """From the first event that `send` takes on to the last one handled. Some before them tell that the workers are there."""
    with ExitStack() as stack:
        url = stack.enter_context(_server(server, fsync))
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        os.mkfifo(place / "tally")
        pipe = os.open(place / "tally", os.O_RDWR)  # so that it is never at its end, whichever worker comes and goes
        os.environ.update(BENCH_URL=url, BENCH_TALLY=str(place / "tally"))
        global URL
        URL = url
        peer = importlib.import_module(f"benchmarks.peers.{module}")
        peer.send(1)  # which makes its stream or its tables, so that two workers don't both try to
        with _worker(peer.COMMAND, place / "worker.log"):
            _wait(pipe, 1)
            peer.send(WARM_UP)
            _wait(pipe, WARM_UP)
            with Watch() as watch:
                peer.send(count)
                _wait(pipe, count)
            return watch.rate(count)


@contextmanager
def _server(kind: str, fsync: bool) -> Iterator[str]:
    if kind == "file":
        with servers.folder() as place:
            yield str(place / "queue.db")
    elif kind == "postgres":
        with servers.postgres() as url:
            yield url
    else:
        with (servers.redis if kind == "redis" else servers.nats)(fsync) as url:
            yield url


@contextmanager
def _worker(command: Sequence[str], log: Path) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", *command], stdout=output, stderr=output, cwd=ROOT, start_new_session=True)
    try:
        yield
    except Exception as error:
        raise RuntimeError(f"{error!r}; its worker said: {log.read_text()[-1500:]}") from error
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has started
        process.wait()


def _wait(pipe: int, count: int) -> None:
    while count > 0:
        if not select([pipe], [], [], PATIENCE)[0]:
            raise RuntimeError(f"no event was handled for {PATIENCE} s, {count} are left")
        count -= len(os.read(pipe, min(count, 65_536)))
