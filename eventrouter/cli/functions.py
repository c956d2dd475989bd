"""`list`, `show`, `invoke`, `tail`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import msgspec

from eventrouter.app import App, lock
from eventrouter.cli.common import Place, app_option, columns, dump, json_option, pair, place_options
from eventrouter.cli.permissions import both_sides
from eventrouter.cli.throttling import describe_limits
from eventrouter.errors import ConfigError, EventRouterError, NotRunning, suggest
from eventrouter.network import Network
from eventrouter.operations import describe_function
from eventrouter.throttling import NOTHING_SET, Setting, read_settings


def _functions(place: Place) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = place.ask("functions")
    except NotRunning:  # listing needs no data folder, so no lock either
        app = place.app()
        settings = asyncio.run(_set_by_hand(app))
        found = [describe_function(function, settings.get(name, NOTHING_SET)) for name, function in app.functions.items()]
    return found


async def _set_by_hand(app: App) -> Mapping[str, Setting]:
    """Where no router runs: what the journal says, if there is one that can be opened."""
    if not (app.config.data / "journal.db").exists():
        return {}
    with suppress(EventRouterError), lock(app.config.data):
        await app.journal.open()
        try:
            return await read_settings(app.journal)
        finally:
            await app.journal.close()
    return {}


def _permissions(place: Place, function: str) -> dict[str, Any]:
    if place.config.data.exists():
        return place.ask_or_do("permissions", function=function)  # type: ignore[no-any-return]
    return place.app().access.show(function)  # nothing was changed by anybody, and nothing need be made to say so


@click.command("list")
@click.option("--tag", "tags", multiple=True, metavar="K=V", help="Only functions with this tag.")
@json_option
@app_option
@place_options
def list_command(tags: tuple[str, ...], as_json: bool, apps: tuple[str, ...], config: Path | None, data: str | None) -> None:
    """Functions with their triggers, policy and tags."""
    wanted = dict(pair(tag, "--tag") for tag in tags)
    found = [f for f in _functions(Place(config, data, apps)) if all(f["tags"].get(k) == v for k, v in wanted.items())]
    if as_json:
        click.echo(dump(found))
    elif not found:
        click.echo("no function has these tags")
    else:
        rows = [("FUNCTION", "TRIGGERS", "RUNS", "TIMEOUT", "RETRIES", "LIMITS", "TAGS")]
        for f in found:
            for place, trigger in enumerate(f["triggers"] or ["(none)"]):
                policy, labels = f["policy"], " ".join(f"{k}={v}" for k, v in f["tags"].items())
                foreign = policy["runtime"] != "python" or policy["handler"] or policy["command"]
                runs = " ".join(filter(None, (policy["runtime"], policy["handler"]))) if foreign else policy["isolation"]
                row = (f["name"], trigger, runs, f"{policy['timeout']:g} s", str(policy["retries"]), describe_limits(policy), labels)
                rows.append(row if place == 0 else ("", trigger, "", "", "", "", ""))
        click.echo(columns(rows))


@click.command("show")
@click.argument("function")
@json_option
@app_option
@place_options
def show_command(function: str, as_json: bool, apps: tuple[str, ...], config: Path | None, data: str | None) -> None:
    """One function: what starts it, how its events are treated, who may start it and what it may do."""
    place = Place(config, data, apps)
    found = {f["name"]: f for f in _functions(place)}
    if function not in found:
        raise ConfigError(f"no function is named {function!r}{suggest(function, found)}")
    it = found[function] | {"permissions": _permissions(place, function)}
    if as_json:
        click.echo(dump(it))
        return
    click.echo(f"{it['name']}  ({it['module']})")
    if it["policy"]["description"]:
        click.echo(it["policy"]["description"])
    rows = [("started by", trigger) for trigger in it["triggers"]] or [("started by", "invoke alone")]
    units = {"timeout": " s", "max_age": " s"}
    for key, value in it["policy"].items():
        if key == "network" and value is not None:
            rows += _network(value)
        elif key != "description" and value not in (None, {}, []) and (key, value) != ("throttled", False):
            shown = " ".join(value) if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else str(value)
            if isinstance(value, dict):
                shown = msgspec.json.encode(value).decode()
            rows.append((key, shown + units.get(key, "")))
    rows += [(f"tag {k}", v) for k, v in it["tags"].items()]
    click.echo(columns([(f"  {key}", value) for key, value in rows]))
    click.echo(both_sides(it["permissions"]))


def _network(described: dict[str, Any]) -> Iterator[tuple[str, str]]:
    network = msgspec.convert(described, Network)
    yield "network", f"{network.name}: {', '.join(network.subnets)}{' and the outside' if network.nat else ''}"
    for rule in network.reachable() or ("nothing",):
        yield "  reaches", str(rule)


@click.command("invoke")
@click.argument("function")
@click.argument("payload", required=False)
@click.option("--async", "later", is_flag=True, help="Journal it and return; it runs under the function's retries.")
@click.option("--param", "-p", "parameters", multiple=True, metavar="NAME=VALUE", help="A value for a named wildcard of the triggers.")
@app_option
@place_options
def invoke_command(
    function: str,
    payload: str | None,
    later: bool,
    parameters: tuple[str, ...],
    apps: tuple[str, ...],
    config: Path | None,
    data: str | None,
) -> int:
    """Run FUNCTION with PAYLOAD: JSON, @FILE, or - for standard input [default: {}].

    The result goes to standard output, logs and the REPORT line to standard error.
    """
    given = dict(pair(text, "--param") for text in parameters)
    answer = Place(config, data, apps).ask_or_do("invoke", function=function, payload=_payload(payload), parameters=given, later=later)
    if later:
        click.echo(f"accepted as event {answer['id']}")
        return 0
    click.echo(answer["logs"], err=True, nl=False)
    failed = "error" in answer
    click.echo(dump(answer["error"] if failed else answer["result"]))
    click.echo(answer["report"], err=True)
    return int(failed)


@click.command("tail")
@click.argument("function", required=False)
@json_option
@place_options
def tail_command(function: str | None, as_json: bool, config: Path | None, data: str | None) -> None:
    """What invocations of FUNCTION, or of all, print from now on, with their START, END and REPORT lines. Ctrl-C ends it."""
    place, after = Place(config, data), None
    while True:
        answer = place.ask("tail", function=function, after=after)
        after = answer["after"]
        for name, invocation, line in answer["lines"]:
            if as_json:
                click.echo(msgspec.json.encode({"function": name, "invocation": invocation, "line": line}))
            else:
                click.echo(f"{name} {invocation}: {line}")


def _payload(text: str | None) -> str:
    if text is None:
        return "{}"
    if text == "-":
        return sys.stdin.read()
    if text.startswith("@"):
        try:
            return Path(text[1:]).read_text()
        except OSError as error:
            raise ConfigError(f"{text[1:]}: {error.strerror}; @FILE names a file with the payload") from None
    return text
