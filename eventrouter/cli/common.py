"""What commands share: finding the app and its data folder, asking a running router or working without one."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from eventrouter.app import App
from eventrouter.audit import Who
from eventrouter.config import Config, load_config, seconds
from eventrouter.control import ask
from eventrouter.errors import ConfigError, EventRouterError, NotRunning
from eventrouter.operations import Operations, perform
from eventrouter.plugins import Plugins, load_plugins

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
