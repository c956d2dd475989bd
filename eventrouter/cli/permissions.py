"""`permissions show|add|remove|simulate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from eventrouter.cli.common import Place, app_option, columns, dump, json_option, place_options
from eventrouter.errors import ConfigError


@click.group("permissions")
def permissions_command() -> None:
    """Who may start a function, and what it may do."""


@permissions_command.command("show")
@click.argument("function")
@json_option
@app_option
@place_options
def show_command(function: str, as_json: bool, apps: tuple[str, ...], config: Path | None, data: str | None) -> None:
    """Both sides of FUNCTION: what may start it, and each resource with what it may do there."""
    found = Place(config, data, apps).ask_or_do("permissions", function=function)
    click.echo(dump(found) if as_json else both_sides(found))


@permissions_command.command("add")
@click.argument("function")
@click.option("--principal", metavar="P", help="Who: s3.amazonaws.com, a function's name, the ARN of a role, an account, or '*'.")
@click.option("--action", default="lambda:InvokeFunction", metavar="A", help="[default: lambda:InvokeFunction]")
@click.option("--source", default="", metavar="ARN", help="Only what comes from there; '*' and '?' are wildcards.")
@click.option("--sid", default="", metavar="SID", help="The statement's name [default: made up].")
@click.option("--deny", is_flag=True, help="It may not, whatever else says that it may.")
@json_option
@app_option
@place_options
def add_command(
    function: str,
    principal: str | None,
    action: str,
    source: str,
    sid: str,
    deny: bool,
    as_json: bool,
    apps: tuple[str, ...],
    config: Path | None,
    data: str | None,
) -> None:
    """Let somebody start FUNCTION, from now on and after restarts.

    With --sid alone, the statement of a trigger that was removed is there again.
    """
    if principal is None and (not sid or source or deny):
        raise ConfigError("permissions add: who? Give --principal, or --sid alone for a trigger's statement that was removed")
    effect = "Deny" if deny else "Allow"
    done = Place(config, data, apps).ask_or_do(
        "add_permission", function=function, principal=principal, action=action, source=source, sid=sid, effect=effect
    )
    click.echo(dump(done) if as_json else f"{function}: statement {done['sid']} is added")


@permissions_command.command("remove")
@click.argument("function")
@click.argument("sid")
@json_option
@app_option
@place_options
def remove_command(function: str, sid: str, as_json: bool, apps: tuple[str, ...], config: Path | None, data: str | None) -> None:
    """Take the statement SID out of the function policy of FUNCTION, from now on and after restarts."""
    done = Place(config, data, apps).ask_or_do("remove_permission", function=function, sid=sid)
    click.echo(dump(done) if as_json else f"{function}: statement {sid} is removed; what was accepted before still runs")


@permissions_command.command("simulate")
@click.argument("function")
@click.argument("action", default="")
@click.argument("resource", default="")
@click.option("--context", "-c", "context", multiple=True, metavar="KEY=VALUE", help="A condition key; more than once: several values.")
@click.option("--principal", metavar="P", help="Ask whether P may start FUNCTION: s3.amazonaws.com, a function's name ...")
@click.option("--source", default="", metavar="ARN", help="With --principal: from there.")
@json_option
@app_option
@place_options
def simulate_command(
    function: str,
    action: str,
    resource: str,
    context: tuple[str, ...],
    principal: str | None,
    source: str,
    as_json: bool,
    apps: tuple[str, ...],
    config: Path | None,
    data: str | None,
) -> None:
    """Whether FUNCTION may do ACTION on RESOURCE, and the statement that decides it."""
    values: dict[str, list[str]] = {}
    for text in context:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--context {text!r}: write KEY=VALUE")
        values.setdefault(key, []).append(value)
    found = Place(config, data, apps).ask_or_do(
        "simulate", function=function, action=action, resource=resource, context=values, principal=principal, source=source
    )
    if as_json:
        click.echo(dump(found))
    elif found["by"] is None:
        click.echo(f"{found['decision']}: no statement says anything of it")
    else:
        click.echo(f"{found['decision']} by {found['by']}")
        if found["statement"] is not None:
            click.echo(dump(found["statement"]))


def both_sides(found: Mapping[str, Any]) -> str:
    """As `show` prints it."""
    starts = [(f"  {one['Effect'].lower()}", _who(one), one["Sid"], _conditions(one)) for one in found["policy"]["Statement"]]
    starts += [("  removed", "", sid, "") for sid in found["removed"]]
    lines = ["may be started by", columns(starts) if starts else "  the operator alone"]
    may = found["may"]
    if may["role"] is None:
        return "\n".join([*lines, "may do", "  everything within this app: it has no role"])
    rows = [
        (f"  {one['Effect'].lower()}", resource, _listed(one, "Action"), _conditions(one))
        for policy in may["policies"]
        for one in _many(policy["Statement"])
        for resource in _each(one, "Resource")
    ]
    return "\n".join([*lines, f"may do, as {may['arn']}", columns(rows) if rows else "  nothing"])


def _many(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]


def _each(statement: Mapping[str, Any], name: str) -> Sequence[str]:
    return _many(statement[name]) if name in statement else [f"not {' '.join(_many(statement[f'Not{name}']))}"]


def _listed(statement: Mapping[str, Any], name: str) -> str:
    return " ".join(_each(statement, name))


def _who(statement: Mapping[str, Any]) -> str:
    principal = statement["Principal"]
    return principal if isinstance(principal, str) else " ".join(str(one) for many in principal.values() for one in _many(many))


def _conditions(statement: Mapping[str, Any]) -> str:
    condition = statement.get("Condition")
    if not condition:
        return ""
    if list(condition) == ["ArnLike"] and list(condition["ArnLike"]) == ["aws:SourceArn"]:
        return f"from {condition['ArnLike']['aws:SourceArn']}"
    return f"if {msgspec.json.encode(condition).decode()}"
