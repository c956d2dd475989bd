"""`doctor`: what works here, what doesn't, and what to do about it."""

from __future__ import annotations

import importlib.util
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from eventrouter.app import lock
from eventrouter.cli.common import Place, app_option, dump, json_option, place_options
from eventrouter.errors import EventRouterError, NotRunning
from eventrouter.hookspecs import Finding
from eventrouter.runtimes.netns import mechanism

_MARKS = {"ok": "ok      ", "note": "note    ", "problem": "PROBLEM "}


@click.command("doctor")
@click.option("--salvage", "salvages", is_flag=True, help="Copy what can be read of a damaged journal into a new one.")
@json_option
@app_option
@place_options
def doctor_command(salvages: bool, as_json: bool, apps: tuple[str, ...], config: Path | None, data: str | None) -> int:
    """What this machine can enforce, which plugins loaded, what is wrong with the configuration."""
    if salvages:
        _salvage(Place(config, data, apps), as_json)
        return 0
    findings: list[Finding] = list(_machine())
    try:
        place = Place(config, data, apps)
    except EventRouterError as error:
        findings.append(Finding("problem", str(error)))
    else:
        findings += _configured(place)
    if as_json:
        click.echo(dump(findings))
    else:
        for finding in findings:
            click.echo(_MARKS[finding.level] + finding.text)
    return int(any(finding.level == "problem" for finding in findings))


def _salvage(place: Place, as_json: bool) -> None:
    from eventrouter.journal.salvage import salvage  # noqa: PLC0415

    path = place.config.data / "journal.db"
    if not path.parent.is_dir():
        raise EventRouterError(f"{path.parent}: no such folder; give --data the one that the journal is in")
    with lock(path.parent):
        found = salvage(path)
    if as_json:
        click.echo(dump({**msgspec.structs.asdict(found), "aside": str(found.aside)}))
        return
    click.echo("copied: " + ", ".join(f"{count:,} {state}" for state, count in found.invocations.items()))
    click.echo("besides: " + ", ".join(f"{count:,} of {table}" for table, count in found.others.items()))
    if found.damaged:
        click.echo(
            f"damaged: {len(found.damaged):,} of {found.pages:,} pages; {found.unread:,} sequence numbers are known and could not be read"
            " (of running and done events there may have been more)"
        )
    else:
        click.echo(f"damaged: none of {found.pages:,} pages")
    click.echo(f"the former journal is {found.aside}")


def _machine() -> Iterator[Finding]:
    import apsw  # noqa: PLC0415

    yield Finding("ok", f"Python {platform.python_version()} on {platform.system()} {platform.machine()}")
    yield Finding("ok", f"SQLite {apsw.sqlite_lib_version()}: the journal is fsynced before an event counts as accepted")
    if importlib.util.find_spec("uvloop"):
        yield Finding("ok", "uvloop is installed and used by serve")
    else:
        yield Finding("note", 'uvloop is not installed; pip install "eventrouter[uvloop]" makes serve faster')
    yield Finding(
        "note",
        "`def` handlers run in threads: their time-out answers the caller and takes up an attempt, but can't stop the code; "
        "it keeps its concurrency until it ends. `async def` handlers are cancelled",
    )
    yield Finding("note", "memory, CPU and file limits are not enforced by this version")
    enforced, words = mechanism()
    yield Finding("ok" if enforced else "note", words)
    if sys.platform == "darwin":
        yield Finding("note", "macOS is for development: its kernel can not hold functions to limits of memory, CPU, files, network")


def _configured(place: Place) -> Iterator[Finding]:
    for name, plugin in place.plugins.by_name.items():
        yield Finding("ok", f"plugin {name} {place.plugins.versions.get(name, '')}".rstrip())
        if plugin.doctor is not None:
            yield from plugin.doctor(place.config.plugins.get(name))
    yield Finding("ok", f"configuration: {place.config.file or 'no eventrouter.toml, all defaults'}")
    try:
        app = place.app()
        yield Finding("ok", f"{len(app.functions)} functions: {', '.join(app.functions)}")
    except EventRouterError as error:
        yield Finding("problem", str(error))
    try:
        status = place.ask("status")
    except NotRunning:
        yield Finding("note", f"no router is running on {place.config.data}")
        return
    yield Finding("ok", f"a router is running on {place.config.data} (pid {status['pid']})")
    for source, state in status["health"]["sources"].items():
        yield Finding("ok" if state == "live" else "problem", f"source {source}: {state}")
    for name, function in status["functions"].items():
        if function["journal"].get("dead"):
            yield Finding("note", f"{name}: {function['journal']['dead']} dead letters; `eventrouter dlq list --function {name}`")
