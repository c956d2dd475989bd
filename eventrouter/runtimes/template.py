"""The template process: it imports the user's app once, and forks environments when the router says so.

A program of its own, `python -m eventrouter.runtimes.template DESCRIPTOR PID`, so that no environment has anything of the router's memory.
It ends, and all its environments with it, when the router does.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from eventrouter.errors import EventRouterError, set_isolated
from eventrouter.functions import Collected, UserImportError, collect, load
from eventrouter.logs import MAXRSS
from eventrouter.plugins import load_plugins, make_trigger
from eventrouter.runtimes.channel import Channel, install
from eventrouter.runtimes.confine import Confinement, Shelter, check
from eventrouter.runtimes.frames import Frames, Line, Order, Recipe, Setup, Told, frame
from eventrouter.runtimes.kernel import die_with_parent
from eventrouter.runtimes.netns import enter
from eventrouter.runtimes.worker import serve

_ORPHANED: Final = signal.SIGUSR2  # not SIGTERM, which a service manager sends to the whole group while the router drains
_PYTHON: Final = (sys.prefix, sys.base_prefix, sys.exec_prefix)
_DESCRIPTORS: Final = 5  # with each order to fork: an environment's ends of its jobs, tokens, answers, output and calls


def main(descriptor: int, router: int) -> None:
    die_with_parent(_ORPHANED)
    control = socket.socket(fileno=descriptor)
    line = Line(control)
    asked = line.take()
    if asked is None:
        return
    recipe = msgspec.msgpack.decode(asked, type=Recipe)
    code = [*recipe.path, *(each for name, base in recipe.modules for each in (base, Path(base, name).parent)), *_PYTHON]
    shelter = Shelter(recipe.hidden, code, recipe.key)  # first: once there are threads, the kernel lets none in
    die_with_parent(_ORPHANED)  # again: with another user namespace it is forgotten
    try:
        app = _make(recipe)
        notes = check(shelter.means, app.functions.values())
    except BaseException as error:  # whatever the user's code does when it is imported, the router is told
        shelter.close(())
        control.sendall(frame(Told(0, fault=_why(error))))
        return
    # What the root logger gets is printed, as the router prints it, unless the app has said otherwise.
    logging.basicConfig(level=logging.INFO, format="[%(levelname)s] %(name)s %(message)s")
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    gc.collect()
    gc.freeze()  # else each environment's collector would copy what they all share
    control.sendall(frame(Told(0, notes=notes, groups=shelter.memory)))
    _Template(control, router, app, shelter).run()


def _make(recipe: Recipe) -> Collected:
    sys.path[:] = recipe.path
    install(recipe.clients)
    modules = [module for name, folder in recipe.modules for module in load(name, Path(folder))]
    overrides = {name: dict(table) for name, table in recipe.overrides.items()}
    if any("on" in table for table in overrides.values()):
        triggers = load_plugins().triggers
        for name, table in overrides.items():
            if "on" in table:
                entries = table["on"] if isinstance(table["on"], list) else [table["on"]]
                table["on"] = [make_trigger(triggers, entry, f"[functions.{name}]") for entry in entries]
    app = collect(modules, overrides)
    if any(function.foreign for function in app.functions.values()):
        importlib.import_module("eventrouter.runtimes.foreign")  # here, once for all environments; others don't need it
    return app


def _why(error: BaseException) -> str:
    if isinstance(error, EventRouterError) and not isinstance(error, UserImportError):
        return str(error)
    return "".join(traceback.format_exception(error)).rstrip()


class _Template:
    def __init__(self, control: socket.socket, router: int, app: Collected, shelter: Shelter) -> None:
        self._control = control
        self._router = router
        self._shelter = shelter
        self._app = app
        self._pids: dict[int, int] = {}  # of living environments, by number
        self._woken, self._waker = socket.socketpair()  # a signal writes to it
        for end in (self._woken, self._waker):
            end.setblocking(False)

    def run(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for number in (signal.SIGCHLD, _ORPHANED):
            signal.signal(number, lambda number, frame: None)
        signal.set_wakeup_fd(self._waker.fileno())
        try:
            self._obey()
        finally:
            for pid in self._pids.values():
                _kill(pid, signal.SIGKILL)
            self._shelter.close(self._pids)

    def _obey(self) -> None:
        frames = Frames()
        descriptors: list[int] = []
        # What the router has forked may hold the other end of the line: so that need not end when the router does.
        while os.getppid() == self._router:
            ready, _, _ = select.select([self._control, self._woken], [], [], self._shelter.tidy(self._pids.values()))
            if self._woken in ready:
                with suppress(BlockingIOError):
                    self._woken.recv(4096)
                self._reap()
            if self._control in ready:
                data, fds, _, _ = socket.recv_fds(self._control, 4096, 64)
                if not data:
                    return
                descriptors += fds
                for order in (msgspec.msgpack.decode(each, type=Order) for each in frames.feed(data)):
                    if order.signal is None:
                        given, descriptors = descriptors[:_DESCRIPTORS], descriptors[_DESCRIPTORS:]
                        self._fork(order.number, order.confinement or Confinement(), *given)
                    elif (pid := self._pids.get(order.number)) is not None:
                        _kill(pid, order.signal)

    def _fork(self, number: int, asked: Confinement, *ends: int) -> None:
        try:
            self._shelter.renew()
            pid = os.fork()
        except OSError:  # out of processes or memory: as if it had died at once
            self._tell(Told(number, signal.SIGKILL))
        else:
            if pid == 0:
                self._become(number, asked, *ends)
            self._pids[number] = pid
            self._shelter.forked(pid, asked)
        for descriptor in ends:
            os.close(descriptor)

    def _become(self, number: int, asked: Confinement, jobs: int, tokens: int, answers: int, output: int, calls: int) -> NoReturn:
        """An environment, in the child."""
        code = 1
        try:
            os.setpgid(0, 0)  # so that what it starts ends with it
            die_with_parent(signal.SIGKILL)
            signal.set_wakeup_fd(-1)
            for each in (signal.SIGCHLD, signal.SIGTERM, _ORPHANED):
                signal.signal(each, signal.SIG_DFL)
            for end in (self._control, self._woken, self._waker):
                end.close()
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.close(output)
            line = Line(socket.socket(fileno=jobs))
            if (first := line.take()) is not None:
                setup = msgspec.msgpack.decode(first, type=Setup)
                set_isolated()
                if setup.network:
                    enter(setup.network)
                os.environ.update(setup.variables)
                os.environ.update(self._confine(number, asked))
                function = self._app.functions[setup.function]
                ends = line, socket.socket(fileno=tokens), answers, Channel(socket.socket(fileno=calls))
                if function.foreign:
                    from eventrouter.runtimes.foreign import serve as serve_foreign  # noqa: PLC0415 - the template has it when it's needed

                    serve_foreign(function, *ends)
                else:
                    serve(setup, self._app, *ends)
            code = 0
        except OSError:  # the router is gone
            pass
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def _confine(self, number: int, asked: Confinement) -> Mapping[str, str]:
        try:
            return self._shelter.confine(number, asked)
        except OSError as error:
            raise EventRouterError(f"this process can't be confined ({error}), so it runs nothing") from error

    def _reap(self) -> None:
        for number, pid in list(self._pids.items()):
            # Looked at before it is reaped: so long its number can't be another's, and what it started can be ended.
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            _kill(pid, signal.SIGKILL)
            _, status, usage = os.wait4(pid, 0)
            del self._pids[number]
            self._tell(Told(number, status, out_of_memory=self._shelter.ended(number, pid), peak=usage.ru_maxrss // MAXRSS))

    def _tell(self, told: Told) -> None:
        with suppress(OSError):  # the router is gone: `_obey` sees that next
            self._control.sendall(frame(told))


def _kill(pid: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
    with suppress(ProcessLookupError):
        os.kill(pid, number)  # it may not have made its group yet


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
