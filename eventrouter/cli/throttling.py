"""`throttle`, `unthrottle`, `concurrency`: on the running router, and remembered for the next one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from eventrouter.cli.common import Place, app_option, dump, json_option, place_options
from eventrouter.errors import ConfigError


@click.command("throttle")
@click.argument("function")
@json_option
@app_option
@place_options
def throttle_command(function: str, as_json: bool, apps: tuple[str, ...], config: Path | None, data: str | None) -> None:
    """Pause FUNCTION: what runs goes on, events wait until their max_age, requests get 429; until `unthrottle`, restarts or not."""
    _tell(Place(config, data, apps).ask_or_do("throttle", function=function), as_json)


@click.command("unthrottle")
@click.argument("function")
@json_option
@app_option
@place_options
def unthrottle_command(function: str, as_json: bool, apps: tuple[str, ...], config: Path | None, data: str | None) -> None:
    """Let FUNCTION run again, first what has waited."""
    _tell(Place(config, data, apps).ask_or_do("unthrottle", function=function), as_json)


@click.command("concurrency")
@click.argument("function")
@click.argument("count", type=click.IntRange(0), required=False, metavar="N")
@click.option("--reset", is_flag=True, help="What the code and the configuration say.")
@json_option
@app_option
@place_options
def concurrency_command(
    function: str, count: int | None, reset: bool, as_json: bool, apps: tuple[str, ...], config: Path | None, data: str | None
) -> None:
    """Reserve N of the concurrency for FUNCTION, which is its limit, too; 0 closes it: its events are dead letters at once.

    It stays so, restarts or not, until --reset.
    """
    if (count is None) is not reset:
        raise ConfigError("concurrency: give N, or --reset")
    _tell(Place(config, data, apps).ask_or_do("concurrency", function=function, count=count), as_json)


def _tell(it: dict[str, Any], as_json: bool) -> None:
    click.echo(dump(it) if as_json else f"{it['name']}: {describe_limits(it['policy']) or 'no limits of its own'}")


def describe_limits(policy: dict[str, Any]) -> str:
    """In words, what keeps a function from running as often as it could."""
    found = ["throttled"] if policy["throttled"] else []
    if policy["concurrency"] is not None:
        found.append(f"concurrency {policy['concurrency']}" if policy["concurrency"] else "closed")
    if policy["rate"] is not None:
        found.append(policy["rate"] + (f" per {policy['per']}" if policy["per"] else ""))
    return ", ".join(found)
