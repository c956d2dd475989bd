"""One measurement of one side, as a rule in a fresh process, so that its memory and its CPU time are its own.

`python -m benchmarks.measure MODULE:FUNCTION JSON` calls the function with those keywords and prints the Measured that it returns.
Peers run it with the Python of their environment: it needs nothing but msgspec.
"""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from time import perf_counter
from typing import Any, Self

import msgspec

ROOT = Path(__file__).parent.parent
PATIENCE = 300  # seconds of one measurement


class Measured(msgspec.Struct):
    """value: in the benchmark's unit. cpu: seconds per 100,000 events. rss: peak, MB. latencies: milliseconds."""

    value: float
    cpu: float | None = None
    rss: float | None = None
    latencies: list[float] = []


class Watch:
    """Times a block, and counts what processes do meanwhile: this one and all below it, or just those with the ids given."""

    def __init__(self, *pids: int) -> None:
        self._pids = pids

    def __enter__(self) -> Self:
        self._cpu = sum(cpu_seconds(pid) for pid in self._watched())
        self._began = perf_counter()
        return self

    def __exit__(self, *exc: object) -> None:
        self.seconds = perf_counter() - self._began
        watched = list(self._watched())
        self.cpu = sum(cpu_seconds(pid) for pid in watched) - self._cpu
        self.rss = sum(memory(pid, "VmHWM") for pid in watched)

    def _watched(self) -> Iterable[int]:
        return self._pids or tree(os.getpid())

    def rate(self, count: int) -> Measured:
        """Events a second, if there were so many of them."""
        return Measured(count / self.seconds, self.cpu / count * 100_000, self.rss)


def tree(pid: int) -> list[int]:
    """A process and those below it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += tree(int(child))
    return found


def cpu_seconds(pid: int) -> float:
    """Of a process, with those of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int, what: str = "VmRSS") -> float:
    """Megabytes resident now, or at most so far (VmHWM); 0 for one that has ended and is not waited for yet."""
    said = Path(f"/proc/{pid}/status").read_text().partition(f"{what}:")[2]
    return int(said.split()[0]) / 1024 if said else 0


def fresh(function: str, *, python: str = sys.executable, **arguments: Any) -> Callable[[], Measured]:
    """Call `MODULE:FUNCTION` in a process of its own, every time."""

    def measure() -> Measured:
        command = [python, "-m", "benchmarks.measure", function, msgspec.json.encode(arguments).decode()]
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": path}
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
            try:
                said, errors = process.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                raise RuntimeError(f"{function} takes more than {PATIENCE} s") from None
            finally:
                process.terminate()  # one that is still there ends its servers first
        if process.returncode:
            raise RuntimeError(f"{function} failed: {errors.strip()[-2000:]}")
        return msgspec.json.decode(said.splitlines()[-1], type=Measured)

    return measure


def end_in_order() -> None:
    """SIGTERM ends this process as an exception does, so that servers and workers are ended, too."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def main(function: str, arguments: str) -> None:
    end_in_order()
    module, _, name = function.partition(":")
    measured = getattr(importlib.import_module(module), name)(**msgspec.json.decode(arguments))
    print(msgspec.json.encode(measured).decode(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
