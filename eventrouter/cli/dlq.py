"""`dlq list|show|redrive|purge`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from eventrouter.cli.common import Place, app_option, columns, dump, json_option, place_options, since
from eventrouter.errors import ConfigError, EventRouterError

C = TypeVar("C", bound=Callable[..., Any])


def _filters(command: C) -> C:
    command = click.option("--since", "after", metavar="T", help="Died since: 2h, 3d, 2026-01-31T08:00.")(command)
    command = click.option("--error", metavar="E", help="Of this error type or reason.")(command)
    return click.option("--function", metavar="F", help="Of this function.")(command)


def _query(function: str | None, error: str | None, after: str | None) -> dict[str, Any]:
    return {"function": function, "error": error, "since": since(after)}


@click.group("dlq")
def dlq_command() -> None:
    """Dead letters: events that failed for good, kept until you redrive or purge them."""


@dlq_command.command("list")
@_filters
@json_option
@app_option
@place_options
def list_command(
    function: str | None, error: str | None, after: str | None, as_json: bool, apps: tuple[str, ...], config: Path | None, data: str | None
) -> None:
    """Dead letters, oldest first."""
    found = Place(config, data, apps).ask_or_do("letters", query=_query(function, error, after))
    if as_json:
        click.echo(dump(found))
    elif not found:
        click.echo("no dead letters")
    else:
        rows = [("ID", "FUNCTION", "DIED", "ATTEMPTS", "REASON", "ERROR")]
        for f in found:
            message = " ".join(f"{f['error_type']}: {f['error_message']}".split())
            shown = message if len(message) <= 80 else message[:79] + "…"
            rows.append((f["id"], f["function"], f["died_at"], str(f["attempts"]), f["reason"], shown))
        click.echo(columns(rows))


@dlq_command.command("show")
@click.argument("id")
@app_option
@place_options
def show_command(id: str, apps: tuple[str, ...], config: Path | None, data: str | None) -> None:
    """One dead letter with its event, as JSON."""
    letter = Place(config, data, apps).ask_or_do("letter", id=id)
    if letter is None:
        raise EventRouterError(f"no dead letter {id}; `eventrouter dlq list` shows them")
    click.echo(dump(letter))


@dlq_command.command("redrive")
@click.argument("ids", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All dead letters.")
@_filters
@app_option
@place_options
def redrive_command(
    ids: tuple[str, ...],
    everything: bool,
    function: str | None,
    error: str | None,
    after: str | None,
    apps: tuple[str, ...],
    config: Path | None,
    data: str | None,
) -> int:
    """Send dead letters again, by ID or by filter, with fresh attempts and today's code."""
    return _apply("redrive", "redriven", ids, everything, _query(function, error, after), Place(config, data, apps))


@dlq_command.command("purge")
@click.argument("ids", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All dead letters.")
@_filters
@app_option
@place_options
def purge_command(
    ids: tuple[str, ...],
    everything: bool,
    function: str | None,
    error: str | None,
    after: str | None,
    apps: tuple[str, ...],
    config: Path | None,
    data: str | None,
) -> int:
    """Delete dead letters for good, by ID or by filter."""
    return _apply("purge", "purged", ids, everything, _query(function, error, after), Place(config, data, apps))


def _apply(command: str, done: str, ids: tuple[str, ...], everything: bool, query: dict[str, Any], place: Place) -> int:
    filtered = any(value is not None for value in query.values())
    if sum((bool(ids), filtered, everything)) != 1:
        raise ConfigError(f"dlq {command}: name IDs, or a filter (--function, --error, --since), or --all")
    count = place.ask_or_do(command, ids=list(ids), query=query)
    click.echo(f"{count} {done}")
    return int(bool(ids) and count < len(ids))
