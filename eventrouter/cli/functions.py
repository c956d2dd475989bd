"""`list`, `show`, `invoke`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from eventrouter.cli.common import Place, app_option, columns, dump, json_option, pair, place_options
from eventrouter.control import describe_function
from eventrouter.errors import ConfigError, NotRunning, suggest
from eventrouter.network import Network


def _functions(place: Place) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = place.ask("functions")
    except NotRunning:  # listing needs no data folder, so no lock either
        found = [describe_function(function) for function in place.app().functions.values()]
    return found


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
        rows = [("FUNCTION", "TRIGGERS", "RUNS", "TIMEOUT", "RETRIES", "TAGS")]
        for f in found:
            for place, trigger in enumerate(f["triggers"] or ["(none)"]):
                policy, labels = f["policy"], " ".join(f"{k}={v}" for k, v in f["tags"].items())
                foreign = policy["runtime"] != "python" or policy["handler"] or policy["command"]
                runs = " ".join(filter(None, (policy["runtime"], policy["handler"]))) if foreign else policy["isolation"]
                row = (f["name"], trigger, runs, f"{policy['timeout']:g} s", str(policy["retries"]), labels)
                rows.append(row if place == 0 else ("", trigger, "", "", "", ""))
        click.echo(columns(rows))


@click.command("show")
@click.argument("function")
@json_option
@app_option
@place_options
def show_command(function: str, as_json: bool, apps: tuple[str, ...], config: Path | None, data: str | None) -> None:
    """One function: what starts it and how its events are treated."""
    found = {f["name"]: f for f in _functions(Place(config, data, apps))}
    if function not in found:
        raise ConfigError(f"no function is named {function!r}{suggest(function, found)}")
    it = found[function]
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
        elif key != "description" and value not in (None, {}, []):
            shown = " ".join(value) if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else str(value)
            if isinstance(value, dict):
                shown = msgspec.json.encode(value).decode()
            rows.append((key, shown + units.get(key, "")))
    rows += [(f"tag {k}", v) for k, v in it["tags"].items()]
    click.echo(columns([(f"  {key}", value) for key, value in rows]))


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
