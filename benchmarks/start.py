"""From the command to ready, with the tour of examples/, against Python that imports aiohttp; and what a server keeps in memory, idle."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from time import perf_counter, sleep

from benchmarks.harness import Result, compare
from benchmarks.measure import ROOT, Measured, memory, tree
from benchmarks.served import get, ours, plain
from benchmarks.servers import folder

# Installed packages are compiled, which this would keep an editable install from.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
SETTLE = 1.0  # seconds until a server that has just started is idle


def start_ours() -> Measured:
    """Seconds until /readyz says 200."""
    with folder() as place:
        shutil.copy(ROOT / "examples" / "tour.py", place)
        settings = (ROOT / "examples" / "eventrouter.toml").read_text()
        (place / "eventrouter.toml").write_text(re.sub(r"^port = \d+", "port = 0", settings, flags=re.MULTILINE))
        began = perf_counter()
        command = [sys.executable, "-m", "eventrouter", "serve", "--port", "0"]
        process = subprocess.Popen(command, cwd=place, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            assert process.stdout is not None
            said = ""
            for line in process.stdout:
                said += line
                if line == "ready\n":
                    break
            took = perf_counter() - began
            found = re.search(r"http on http://127\.0\.0\.1:(\d+)", said)
            if found is None or get(int(found[1]), "/readyz") != 200:
                raise RuntimeError(f"the tour does not get ready: {said}")
            return Measured(took, rss=sum(memory(pid, "VmHWM") for pid in tree(process.pid)))
        finally:
            process.terminate()
            process.communicate()


def start_python() -> Measured:
    began = perf_counter()
    subprocess.run([sys.executable, "-c", "import aiohttp"], env=ENVIRONMENT, check=True)
    return Measured(perf_counter() - began)


def memory_ours() -> float:
    with ours() as server:
        sleep(SETTLE)
        return server.resident()


def memory_plain() -> float:
    with plain() as server:
        sleep(SETTLE)
        return server.resident()


def run(rounds: int) -> Iterator[Result]:
    against = "python -c 'import aiohttp'; ours is the tour of examples/, until it is ready"
    yield compare("start", "s", start_ours, start_python, rounds=rounds, against=against)
    yield compare("memory", "MB", memory_ours, memory_plain, rounds=rounds, against="plain aiohttp, idle")
