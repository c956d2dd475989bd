"""`audit query|verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from eventrouter.cli.common import Place, app_option, columns, dump, json_option, place_options, since
from eventrouter.errors import ConfigError


@click.group("audit")
def audit_command() -> None:
    """Who did what: every administrative act, and with [audit] invocations = true every invocation."""


@audit_command.command("query")
@click.option("--function", metavar="F", help="About this function.")
@click.option("--since", "after", metavar="T", help="Since: 2h, 3d, 2026-01-31T08:00.")
@click.option("--until", "before", metavar="T", help="... and until.")
@click.option("--who", metavar="USER", help="Of this user, or started by this source (http, s3, ...).")
@click.option("--outcome", metavar="O", help="succeeded, failed, or an error code.")
@click.option("--limit", type=click.IntRange(0), default=100, show_default=True, help="The newest so many; 0: all.")
@json_option
@app_option
@place_options
def query_command(
    function: str | None,
    after: str | None,
    before: str | None,
    who: str | None,
    outcome: str | None,
    limit: int,
    as_json: bool,
    apps: tuple[str, ...],
    config: Path | None,
    data: str | None,
) -> None:
    """Records, oldest first; --json has them in CloudTrail's shape."""
    query = {
        "function": function, "since": since(after), "until": since(before, "--until"), "who": who, "outcome": outcome, "limit": limit,
    }  # fmt: skip
    found = Place(config, data, apps).ask_or_do("audit", query=query)
    if as_json:
        click.echo(dump(found))
    elif not found:
        click.echo("no records")
    else:
        rows = [("RECORD", "TIME", "WHO", "DID", "ABOUT", "OUTCOME")]
        rows += map(_row, found)
        click.echo(columns(rows))


def _row(record: dict[str, Any]) -> tuple[str, str, str, str, str, str]:
    who, about = record["userIdentity"], record["requestParameters"] or {}
    name = who.get("userName") or who["invokedBy"]
    target = about.get("functionName") or about.get("function") or ""
    outcome = record.get("errorCode") or str((record["responseElements"] or {}).get("result", "succeeded"))
    return (str(record["additionalEventData"]["record"]), record["eventTime"], name, record["eventName"], target, outcome)


@audit_command.command("verify")
@click.option("--known", metavar="N:HASH", help="A record's number and hash, as this command told them before.")
@json_option
@app_option
@place_options
def verify_command(known: str | None, as_json: bool, apps: tuple[str, ...], config: Path | None, data: str | None) -> int:
    """Find any record that was edited, removed, moved or cut off; exits with 1 and names it."""
    found = Place(config, data, apps).ask_or_do("verify", known=None if known is None else _known(known))
    if as_json:
        click.echo(dump(found))
    elif found["fault"] is not None:
        click.echo(f"NOT WHOLE: {found['fault']['what']}")
    else:
        click.echo(f"whole: {found['records']} records, {found['segments']} segment files; the last is {found['last']}:{found['hash']}")
    return int(found["fault"] is not None)


def _known(text: str) -> tuple[int, str]:
    number, colon, digest = text.partition(":")
    if not colon or not number.isdecimal():
        raise ConfigError(f"--known {text!r}: write N:HASH, as `eventrouter audit verify` prints it")
    return int(number), digest
