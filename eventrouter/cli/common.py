"""What commands share: finding the app and its data folder, asking a running router or working without one."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from eventrouter.app import App, open_trail
from eventrouter.audit import Who
from eventrouter.config import Config, load_config, seconds
from eventrouter.control import ask
from eventrouter.errors import ConfigError, EventRouterError, FolderTaken, NotRunning
from eventrouter.operations import Operations, perform
from eventrouter.plugins import Plugins, load_plugins

_TRIES, _EVERY = 100, 0.1  # how often, and after how many seconds, it is seen whether a data folder is free or its router answers

C = TypeVar("C", bound=Callable[..., Any])


def place_options(command: C) -> C:
    """`--config` and `--data`, on every command."""
    command = click.option("--data", metavar="DIR", help="Where everything durable lives [default: .eventrouter].")(command)
    return click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="[default: eventrouter.toml, if there is one].")(
        command
    )


def app_option(command: C) -> C:
    return click.option(
        "--app", "apps", multiple=True, metavar="APP", help="Module, file or folder, when no router runs [default: app.py]."
    )(command)


def json_option(command: C) -> C:
    return click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")(command)


def configure(config: Path | None, flags: Mapping[str, Mapping[str, Any]]) -> tuple[Plugins, Config]:
    plugins = load_plugins()
    return plugins, load_config(plugins.by_name, file=config, environ=os.environ, flags=flags)


def loaded() -> None:
    """Collect garbage from here on, but not among what is there now: modules stay, and are most of it."""
    gc.freeze()
    gc.enable()


class Place:
    """An app and its data folder, as the command's options name them."""

    def __init__(self, config: Path | None, data: str | None, apps: tuple[str, ...] = ()) -> None:
        self.plugins, self.config = configure(config, {"app": {"data": data}})
        self._apps = apps

    def ask(self, command: str, **arguments: Any) -> Any:
        """The running router's answer. Raises NotRunning."""
        return ask(self.config.data, command, **arguments)

    def app(self) -> App:
        app = App(*self._apps, config=self.config, plugins=self.plugins)
        loaded()
        return app

    def ask_or_do(self, command: str, **arguments: Any) -> Any:
        """Ask the running router; without one, open the app here, under the data folder's lock."""
        try:
            return self.ask(command, **arguments)
        except NotRunning:
            pass

        async def do() -> Any:
            app = self.app()
            await app.start(sources=False)
            try:
                return await perform(Operations(app, echo=False), command, arguments, Who.me())
            finally:
                await app.stop()

        return asyncio.run(do())

    @contextmanager
    def recorded(self, command: str, **arguments: Any) -> Iterator[None]:
        """An act that the command does itself: it is in the audit log before the block begins, and what came of it when that has ended.

        The running router records it; without one it is done here, under the data folder's lock.
        Raises EventRouterError when it can't be recorded; the block is not run then.
        """
        with ExitStack() as stack:
            try:
                end = self._begin(stack, command, arguments)
            except EventRouterError as error:
                told = f"{command.replace('_', ' ')} was not done, as it can't be recorded in the audit log: {error}"
                raise EventRouterError(told) from None
            try:
                yield
            except BaseException as error:
                # Of errors that aren't ours nobody knows what is in them.
                end(type(error).__name__, str(error) if isinstance(error, EventRouterError) else "")
                raise
            end("", "")

    def _begin(self, stack: ExitStack, command: str, arguments: Mapping[str, Any]) -> Callable[[str, str], None]:
        run = stack.enter_context(asyncio.Runner()).run
        for wait in (*[_EVERY] * _TRIES, 0):
            with suppress(NotRunning):
                return partial(self._ended, self.ask(command, **arguments))
            opened = open_trail(self.config)
            try:
                trail = run(opened.__aenter__())
            except FolderTaken:  # by a router that doesn't answer yet, or by another command such as this
                if not wait:
                    raise
                time.sleep(wait)
            else:
                break
        stack.callback(lambda: run(opened.__aexit__(None, None, None)))
        id = run(trail.asked(Who.me(), command, dict(arguments)))
        return lambda error, message: run(trail.answered(id, error=error, message=message))

    def _ended(self, id: str, error: str, message: str) -> None:
        try:
            self.ask("ended", id=id, error=error, message=message)
        except (EventRouterError, OSError) as failed:  # it was done, and that it was asked for is on disk
            click.echo(f"what came of it is not in the audit log: {failed}", err=True)


def since(text: str | None, option: str = "--since") -> float | None:
    """`2h` ago, or `2026-01-31T08:00`, as seconds since 1970."""
    if text is None:
        return None
    from datetime import datetime  # noqa: PLC0415

    from eventrouter.clock import SystemClock  # noqa: PLC0415

    if text[:1].isdigit() and text[-1:] in "smhdw":
        return SystemClock.time() - seconds(text, option)
    try:
        return datetime.fromisoformat(text).astimezone().timestamp()
    except ValueError:
        raise ConfigError(f"{option}: {text!r} is no time; write 2h, 3d or 2026-01-31T08:00") from None


def pair(text: str, option: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"{option} {text!r}: write NAME=VALUE")
    return key, value


def columns(rows: Sequence[tuple[str, ...]]) -> str:
    """Left-aligned columns, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def dump(value: Any) -> str:
    import msgspec  # noqa: PLC0415

    try:
        return msgspec.json.format(msgspec.json.encode(value)).decode()
    except TypeError as error:
        raise EventRouterError(f"JSON can't say it: {error}") from None
