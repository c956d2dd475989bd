"""eventrouter as its users run it: commands in a folder, in processes of their own."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from servers import program


class Place:
    """A folder that commands run in, and the router that `serve` starts there."""

    def __init__(self, folder: Path, wrapper: Sequence[str] = ()) -> None:
        """wrapper: words before the router's command, which end in executing it."""
        self.folder = folder
        self._wrapper = wrapper
        self.router: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.router is not None:
            self.router.kill()
            self.router.wait()

    def run(self, *words: str, input: str | None = None, code: int = 0) -> str:
        done = self.result(*words, input=input)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def result(self, *words: str, input: str | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "eventrouter", *words]
        return subprocess.run(command, cwd=self.folder, input=input, capture_output=True, text=True, timeout=60, check=False)

    def start(self, *words: str) -> subprocess.Popen[str]:
        with (self.folder / "out.txt").open("w") as out:
            command = [*self._wrapper, sys.executable, "-m", "eventrouter", "serve", *words]
            self.router = subprocess.Popen(command, cwd=self.folder, stdout=out, stderr=subprocess.STDOUT, text=True)
        return self.router

    def serve(self, *words: str) -> str:
        """Start it, and return what it printed until it was ready."""
        router = self.start(*words)
        wait_for(lambda: re.search("^ready$", self.output, re.MULTILINE) or router.poll() is not None)
        assert router.poll() is None, self.output
        return self.output

    @property
    def output(self) -> str:
        return (self.folder / "out.txt").read_text()

    def says(self, text: str) -> None:
        """Wait until the router has printed it."""
        wait_for(lambda: text in self.output, lambda: f"{text!r} is not in {self.output}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.router is not None
        self.router.send_signal(number)
        return self.router.wait(30)

    def address(self, scheme: str) -> str:
        found = re.findall(rf"{scheme}://(\S+:\d+)", self.output)
        assert found, self.output
        return str(found[-1])

    def curl(self, path: str, *options: str, check: bool = True) -> str:
        """What curl prints for a path of the router's."""
        command = [program("curl", "curl"), "-sS", *options, f"http://{self.address('http')}{path}"]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=check).stdout

    @contextmanager
    def subscribed(self, filter: str) -> Iterator[Callable[[], str]]:
        """Yields what waits for the next message: `TOPIC PAYLOAD`."""
        host, port = self.address("mqtt").rsplit(":", 1)
        command = [program("mosquitto_sub", "mosquitto-clients"), "-h", host, "-p", port, "-t", filter, "-q", "1", "-v", "-d"]
        process = subprocess.Popen(["stdbuf", "-oL", *command], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        lines = (line.rstrip("\n") for line in process.stdout)
        assert any(line.startswith("Subscribed") for line in lines)
        try:
            yield lambda: next(line for line in lines if "/" in line and not line.startswith("Client"))
        finally:
            process.terminate()
            process.communicate()


def wait_for(condition: Callable[[], Any], told: Callable[[], str] = lambda: "it does not come about") -> None:
    """What another process brings about."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, told()
        time.sleep(0.02)
