"""The router's end of the template process, and what is to be known of environments: their variables, what they died of."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from eventrouter.functions import Function
from eventrouter.model import REGION, new_id
from eventrouter.runtimes import cgroups, kernel
from eventrouter.runtimes.frames import Frames, Order, Recipe, Told, frame

GRACE: Final = 1.0  # seconds between SIGTERM and SIGKILL; they are the machine's, whatever the router's clock says
_LAST: Final = 10.0  # seconds that a template may take to end what environments have left: nobody else can
_CHUNK: Final = 256 * 1024
_KEPT_VARIABLES: Final = (
    "HOME", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "LOGNAME", "PATH", "PYTHONPATH", "SHELL", "TMPDIR", "TZ", "USER", "VIRTUAL_ENV",
)  # fmt: skip
_told = msgspec.msgpack.Decoder(Told).decode


class Template:
    """The router's end of the template process."""

    def __init__(self, died: Callable[[Told], None], lost: Callable[[], None]) -> None:
        self._died = died
        self._lost = lost
        self._frames = Frames()
        self._groups = ""
        self.notes: list[str] = []  # which limits are not kept
        if kernel.LINUX and not kernel.landlock():
            kernel.prctl(kernel.DUMPABLE, 0)  # or functions could look into this process
        self._control, theirs = socket.socketpair()
        self._control.setblocking(False)
        names = [name for name in os.environ if name in _KEPT_VARIABLES or name.startswith("LC_")]
        with theirs:
            # -P: else a file of the user's could pass for a standard module.
            self._process = subprocess.Popen(  # noqa: S603 - itself
                [sys.executable, "-P", "-m", "eventrouter.runtimes.template", str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env={name: os.environ[name] for name in names},
            )

    async def load(self, recipe: Recipe) -> str:
        """Why it can't be loaded, or nothing."""
        loop = asyncio.get_running_loop()
        with suppress(ConnectionError):
            await loop.sock_sendall(self._control, frame(recipe))
            while chunk := await loop.sock_recv(self._control, _CHUNK):
                for data in self._frames.feed(chunk):
                    loop.add_reader(self._control, self._readable)
                    told = _told(data)
                    self.notes, self._groups = told.notes, told.groups
                    return told.fault
        code = await asyncio.to_thread(self._process.wait)
        _, message = cause_of_death(-code if code < 0 else code << 8)
        return f"the process that imports it ended: {message}"

    def peak(self, number: int) -> int | None:
        """MB that an environment, with what it started, has had at most; None: nobody counts."""
        return cgroups.peak(self._groups, number) if self._groups else None

    def order(self, order: Order, *descriptors: int) -> None:
        try:
            socket.send_fds(self._control, [frame(order)], descriptors)
        except OSError:  # it has died, or takes no orders any more
            self._process.kill()

    def _readable(self) -> None:
        try:
            chunk = self._control.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            asyncio.get_running_loop().remove_reader(self._control)
            self._lost()
        for data in self._frames.feed(chunk):
            self._died(_told(data))

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._control.close()

    async def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._control)
        self._control.close()  # it ends by that
        try:
            await asyncio.to_thread(self._process.wait, _LAST)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def lambda_variables(function: Function, folder: Path) -> dict[str, str]:
    return {
        "AWS_DEFAULT_REGION": REGION,
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(function.memory),
        "AWS_LAMBDA_FUNCTION_NAME": function.name,
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_INITIALIZATION_TYPE": "provisioned-concurrency" if function.policy.min_environments else "on-demand",
        "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{function.name}",
        "AWS_LAMBDA_LOG_STREAM_NAME": f"[$LATEST]{new_id().replace('-', '')}",
        "AWS_REGION": REGION,
        "LAMBDA_TASK_ROOT": str(folder),
        "_HANDLER": f"{function.module}.{function.handler.__name__}",
    }


def cause_of_death(status: int, *, out_of_memory: bool = False) -> tuple[str, str]:
    """Lambda's error type and words for a process that ended with this wait status. out_of_memory: it was killed for that."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        kind = "Runtime.OutOfMemory" if number == signal.SIGKILL and out_of_memory else "Runtime.ExitError"
        return kind, f"Runtime exited with error: signal: {(signal.strsignal(number) or str(number)).lower()}"
    code = os.WEXITSTATUS(status)
    return "Runtime.ExitError", f"Runtime exited with error: exit status {code}" if code else "Runtime exited without providing a reason"
