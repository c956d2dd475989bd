"""`send`, `sample`, `event` and `replay`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from eventrouter.cli.common import Place, app_option, columns, dump, json_option, place_options, since
from eventrouter.errors import ConfigError, suggest
from eventrouter.operations import arguments_for, usage_of
from eventrouter.plugins import load_plugins


class _BySource(click.Command):
    """A command whose arguments are the source's to say: its help has the usage of each, or of the one that is named, with its text."""

    def __init__(self, *args: Any, offers: Callable[[], dict[str, Callable[..., Any]]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.context_settings.update(ignore_unknown_options=True, allow_interspersed_args=True)
        self._offers = offers

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["source"] = next((word for word in args if not word.startswith("-")), None)
        return super().parse_args(ctx, args)

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_help_text(ctx, formatter)
        offers = self._offers()
        named = ctx.meta.get("source")
        with formatter.section("Sources"), formatter.indentation():
            for name in [named] if named in offers else sorted(offers):
                formatter.write(f"  {usage_of(offers[name], f'{self.name} {name}')}\n")
        if named in offers:
            with formatter.indentation():
                formatter.write_paragraph()
                formatter.write_text(inspect.getdoc(offers[named]) or "")


def _senders() -> dict[str, Callable[..., Any]]:
    """By source: `Source.send` of those that have it."""
    found = {}
    for name, plugin in load_plugins().by_name.items():
        module, _, cls = (plugin.source or "").partition(":")
        send = getattr(getattr(importlib.import_module(module), cls), "send", None) if cls else None
        if send is not None:
            found[name] = send
    return found


def _samples() -> dict[str, Callable[..., Any]]:
    found: dict[str, Callable[..., Any]] = {}
    for name, plugin in load_plugins().by_name.items():
        found |= {name: plugin.sample} if callable(plugin.sample) else plugin.sample or {}
    return found


@click.command("send", cls=_BySource, offers=_senders)
@click.argument("source")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@place_options
def send_command(source: str, arguments: tuple[str, ...], config: Path | None, data: str | None) -> None:
    """Put a real event in through a source of the running router."""
    words, options = _split(f"send {source}", arguments)
    answer = Place(config, data).ask("send", source=source, arguments=words, options=options, folder=str(Path.cwd()))
    click.echo(dump(answer))


@click.command("sample", cls=_BySource, offers=_samples)
@click.argument("source")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def sample_command(source: str, arguments: tuple[str, ...]) -> None:
    """Print the JSON that a Lambda function gets from a source: for a test, or for `eventrouter invoke FUNCTION -`."""
    samples = _samples()
    if source not in samples:
        raise ConfigError(f"sample: no source is named {source!r}{suggest(source, samples)}")
    words, options = _split(f"sample {source}", arguments)
    args, kwargs = arguments_for(samples[source], f"sample {source}", words, options, Path.cwd())
    click.echo(dump(samples[source](*args, **kwargs)))


def _split(command: str, arguments: tuple[str, ...]) -> tuple[list[str], dict[str, list[str]]]:
    """Which options there are is the source's to say, so they are only told from the words here."""
    words: list[str] = []
    options: dict[str, list[str]] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--":
            words += rest
            break
        if not word.startswith("--"):
            words.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        if not equals:
            if not rest:
                raise ConfigError(f"{command}: --{name} needs a value")
            value = rest.pop(0)
        options.setdefault(name.replace("-", "_"), []).append(value)
    return words, options


@click.command("event")
@click.argument("id")
@json_option
@app_option
@place_options
def event_command(id: str, as_json: bool, apps: tuple[str, ...], config: Path | None, data: str | None) -> int:
    """Where the event ID is and what became of it, for each function that it started."""
    found = Place(config, data, apps).ask_or_do("event", id=id)
    if as_json:
        click.echo(dump(found))
    elif found:
        rows = [("FUNCTION", "STATE", "ATTEMPTS", "ACCEPTED", "DUE OR ENDED", "INVOCATION")]
        rows += [(f["function"], f["state"], str(f["attempts"]), f["accepted"], f["due"], f["id"]) for f in found]
        click.echo(columns(rows))
    else:
        click.echo(f"{id}: not in the journal: done, or never accepted ([journal] history keeps done events)", err=True)
    return int(not found)


@click.command("replay")
@click.option("--function", required=True, metavar="F", help="What was accepted for this function, or queue (sqs:NAME).")
@click.option("--since", "after", required=True, metavar="T", help="Accepted since: 2h, 3d, 2026-01-31T08:00.")
@click.option("--until", "before", metavar="T", help="... and until [default: now].")
@json_option
@app_option
@place_options
def replay_command(
    function: str, after: str, before: str | None, as_json: bool, apps: tuple[str, ...], config: Path | None, data: str | None
) -> None:
    """Run events again that were accepted before, with fresh ids and today's code; needs [journal] archive."""
    place = Place(config, data, apps)
    done = place.ask_or_do("replay", function=function, since=since(after), until=since(before, "--until"))
    if as_json:
        click.echo(dump(done))
        return
    click.echo(f"{done['replayed']} replayed")
    if done["unwanted"]:
        click.echo(f"{done['unwanted']} left out: no trigger of {function} wants them any more", err=True)
