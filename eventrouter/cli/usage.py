"""`usage`."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import click

from eventrouter.cli.common import Place, app_option, columns, dump, json_option, pair, place_options


@click.command("usage")
@click.option("--by", multiple=True, metavar="WHAT", help="function, day, month or tag:NAME; more than once: each [default: function].")
@click.option("--since", metavar="DAY", help="From this day on, as 2026-01-31, in UTC [default: this month's first].")
@click.option("--until", metavar="DAY", help="Up to this day, which is included [default: today].")
@click.option("--tag", "tags", multiple=True, metavar="K=V", help="Only functions with this tag.")
@click.option("--csv", "as_csv", is_flag=True, help="Comma-separated, with a header.")
@json_option
@app_option
@place_options
def usage_command(
    by: tuple[str, ...],
    since: str | None,
    until: str | None,
    tags: tuple[str, ...],
    as_csv: bool,
    as_json: bool,
    apps: tuple[str, ...],
    config: Path | None,
    data: str | None,
) -> None:
    """What functions have used: invocations, errors, throttles, billed time, GB-seconds, and the cost at [metering]'s prices."""
    wanted = dict(pair(tag, "--tag") for tag in tags)
    place = Place(config, data, apps)
    found = place.ask_or_do("usage", by=list(by or ("function",)), since=since, until=until, tags=wanted)
    if as_json:
        click.echo(dump(found))
    elif as_csv:
        click.echo(_csv(found), nl=False)
    else:
        _print(found)


def _csv(found: dict[str, Any]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    figures = [name for name in found["total"] if name != "group"]
    writer.writerow([*found["by"], *figures, "currency"])
    for row in found["rows"]:
        writer.writerow([*row["group"], *(row[name] for name in figures), found["currency"]])
    return text.getvalue()


def _print(found: dict[str, Any]) -> None:
    heads = (name.removeprefix("tag:").upper() for name in found["by"])
    rows = [(*heads, "INVOCATIONS", "ERRORS", "THROTTLES", "BILLED", "GB-SECONDS", "INIT", f"COST {found['currency']}")]
    total = {**found["total"], "group": ["total", *[""] * (len(found["by"]) - 1)]}
    for row in (*found["rows"], total):
        counts = (f"{row[name]:,}" for name in ("invocations", "errors", "throttles"))
        times = (f"{row['billed_seconds']:,.1f} s", f"{row['gb_seconds']:,.3f}", f"{row['init_seconds']:,.1f} s")
        rows.append((*(value or "-" if row is not total else value for value in row["group"]), *counts, *times, f"{row['cost']:,.4f}"))
    click.echo(columns(rows))
    click.echo(f"{found['since']} to {found['until']}, UTC")
