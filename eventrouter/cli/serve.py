"""`serve`: run an app until a signal ends it."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import sys
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from eventrouter.cli.common import columns, configure, loaded, place_options
from eventrouter.clock import SystemClock
from eventrouter.errors import EventRouterError
from eventrouter.logs import label
from eventrouter.secrets import Secret

if TYPE_CHECKING:
    from eventrouter.app import App

log = logging.getLogger("eventrouter")


@click.command("serve")
@click.argument("apps", nargs=-1, metavar="[APP]...")
@click.option("--host", metavar="H", help="Where HTTP listens [default: 127.0.0.1].")
@click.option("--port", type=click.IntRange(0, 65535), metavar="P", help="0 picks a free one [default: 8080].")
@click.option("--reload", is_flag=True, help="Start again when a Python file or the config changes.")
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@place_options
def serve_command(
    apps: tuple[str, ...], host: str | None, port: int | None, reload: bool, log_format: str, config: Path | None, data: str | None
) -> int:
    """Run the handlers of APP: modules, files or folders [default: app.py].

    SIGTERM or Ctrl-C ends intake, lets running handlers finish, and puts the rest back; a second one ends at once.
    """
    _configure_logging(log_format)
    began = SystemClock.time()
    flags: dict[str, dict[str, Any]] = {"app": {"data": data}, "http": {"host": host, "port": port}}
    try:
        plugins, settings = configure(config, flags)
        from eventrouter.app import App  # noqa: PLC0415

        app = App(*apps, config=settings, plugins=plugins)
        changed = _run(_serve(app, began if reload else None))
    except EventRouterError as error:
        if not reload:
            raise
        from eventrouter.cli import report  # noqa: PLC0415

        report(error, debug=False)
        click.echo("waiting for a change", err=True)
        changed = _run(_wait_for_change(Path.cwd(), began))
    if changed:
        os.execv(sys.executable, [sys.executable, "-m", "eventrouter", *sys.argv[1:]])  # noqa: S606 - itself
    return 0


def _run(main: Coroutine[Any, Any, bool]) -> bool:
    try:
        import uvloop  # noqa: PLC0415
    except ImportError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


async def _serve(app: App, reload_since: float | None) -> bool:
    """Serve until a signal comes (False) or a file has changed since that Unix time (True)."""
    from eventrouter.control import ControlServer  # noqa: PLC0415
    from eventrouter.operations import Operations  # noqa: PLC0415

    if any(isinstance(value, Secret) for function in app.functions.values() for value in function.policy.env.values()):
        # A crash must not write out what handlers have decrypted; 1 is also heard where cores go to a program's pipe.
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, stopping, number)
    folders = {app.config.base, *(Path(module.__file__).parent for module in app.modules if module.__file__)}
    async with AsyncExitStack() as stack:
        changed = asyncio.Event() if reload_since is None else stack.enter_context(_changes(folders, reload_since))
        _print_functions(app)
        await stack.enter_async_context(app)
        await stack.enter_async_context(ControlServer(Operations(app), app.config.data))
        loaded()
        for source in app.sources.values():
            for line in source.lines():
                click.echo(line)
        click.echo(f"data in {app.config.data}; Ctrl-C stops")
        ready = asyncio.create_task(_say_ready(app))
        waiting = [asyncio.create_task(event.wait()) for event in (stopping, changed)]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in (ready, *waiting):
            task.cancel()
        click.echo(f"stopping: running handlers have {app.config.app.drain:g} s")
    return not stopping.is_set()


def _stop(stopping: asyncio.Event, number: int) -> None:
    if stopping.is_set():
        click.echo("ended at once; what was running will run again", err=True)
        os._exit(128 + number)  # the journal needs no goodbye: unsettled work is recovered at the next start
    stopping.set()


async def _say_ready(app: App) -> None:
    assert app.supervisor is not None
    await app.supervisor.ready.wait()
    click.echo("ready")


def _print_functions(app: App) -> None:
    files = [Path(module.__file__).name if module.__file__ else module.__name__ for module in app.modules]
    names = ", ".join(dict.fromkeys([*files, *(function.module for function in app.functions.values() if function.foreign)]))
    count = len(app.functions)
    click.echo(f"eventrouter: {count} function{'s' if count > 1 else ''} of {names}")
    rows = [(f"  {f.name}", "; ".join(map(str, f.triggers)) or "invoke alone") for f in app.functions.values()]
    click.echo(columns(rows))


async def _wait_for_change(folder: Path, since: float) -> bool:
    with _changes([folder], since) as changed:
        return await changed.wait()


@contextmanager
def _changes(folders: Iterable[Path], since: float) -> Iterator[asyncio.Event]:
    """An event that is set once a Python or TOML file below these folders has changed since that Unix time."""
    from watchdog.events import FileSystemEvent, PatternMatchingEventHandler  # noqa: PLC0415
    from watchdog.observers import Observer  # noqa: PLC0415

    loop, changed = asyncio.get_running_loop(), asyncio.Event()

    class Handler(PatternMatchingEventHandler):
        def on_any_event(self, event: FileSystemEvent) -> None:
            if event.event_type not in ("opened", "closed_no_write"):
                loop.call_soon_threadsafe(changed.set)

    observer = Observer()
    handler = Handler(patterns=["**/*.py", "**/*.toml"], ignore_patterns=["**/.*/**"], ignore_directories=True)
    for folder in folders:
        observer.schedule(handler, str(folder), recursive=True)
    observer.start()
    if any(_newer(folder, since) for folder in folders):  # between the start of the process and the watch's
        changed.set()
    try:
        yield changed
    finally:
        observer.stop()
        observer.join()


def _newer(folder: Path, since: float) -> bool:
    for top, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            with suppress(OSError):
                if name.endswith((".py", ".toml")) and since < (Path(top) / name).stat().st_mtime <= SystemClock.time():
                    return True
    return False


class _Json(logging.Formatter):
    """One JSON object a line; what a record carries as `extra` are fields of it."""

    _STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "label"}

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {key: value for key, value in vars(record).items() if key not in self._STANDARD}
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(entry, enc_hook=repr).decode()


def _configure_logging(form: str) -> None:
    handler = logging.StreamHandler()
    handler.addFilter(label)
    handler.setFormatter(_Json() if form == "json" else logging.Formatter("%(asctime)s %(levelname)s %(label)s%(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("eventrouter").setLevel(logging.INFO)
    logging.getLogger("watchdog").setLevel(logging.CRITICAL)  # it reports each stop as an error; sources rescan by themselves
