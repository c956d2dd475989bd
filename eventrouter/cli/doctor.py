"""`doctor`: what works here, what doesn't, and what to do about it."""

from __future__ import annotations

import importlib.util
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import click
import msgspec

from eventrouter.app import App, lock
from eventrouter.cli.common import Place, app_option, dump, json_option, place_options
from eventrouter.errors import EventRouterError, NotRunning
from eventrouter.hookspecs import Finding
from eventrouter.runtimes.cgroups import CORE, FEW, PROCESSES
from eventrouter.runtimes.confine import AS_SERVICE, FILES, PROCESS, Confinement, Means, confinement, lacking, look
from eventrouter.runtimes.kernel import LINUX, SCOPES_SINCE
from eventrouter.runtimes.netns import mechanism
from eventrouter.secrets import KeyRing

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
    means = look(Path(sys.prefix), Path(sys.base_prefix), Path())
    findings: list[Finding] = [*_machine(), *_isolation(means)]
    try:
        place = Place(config, data, apps)
    except EventRouterError as error:
        findings.append(Finding("problem", str(error)))
    else:
        findings += _configured(place, means)
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
        '`def` handlers run in processes, which a time-out ends; `async def` handlers are cancelled. With isolation="thread" a time-out '
        "answers the caller and takes up an attempt, but can't stop the code; it keeps its concurrency until it ends",
    )
    enforced, words = mechanism()
    yield Finding("ok" if enforced else "note", words)


def _isolation(means: Means) -> Iterator[Finding]:
    """By which mechanism each limit of isolated functions is kept here."""
    if not LINUX:
        system = platform.system().replace("Darwin", "macOS")
        yield Finding("note", f"{system} is for development: its kernel can not hold functions to limits of memory, CPU, files, network")
        return
    groups = {name: f"cgroup v{version}" for name, version in means.groups.items()}
    without = f"no cgroup: {means.without}; {AS_SERVICE}"
    if "memory" in groups:
        yield Finding("ok", f"memory=: {groups['memory']}; the peak of each environment is measured there")
    else:
        yield Finding(
            "note", f"memory=: what processes have is looked at 20 times a second (RLIMIT_DATA bounds what comes between); {without}"
        )
    if "cpu" in groups:
        yield Finding("ok", f"CPU: {groups['cpu']}; memory= comes with its share, {CORE} MB = one core")
    else:
        yield Finding("note", f'CPU: memory= is refused unless enforce is "best-effort", as its share can\'t be enforced; {without}')
    if "pids" in groups:
        yield Finding("ok", f"processes: {groups['pids']}; {PROCESSES} of each environment")
    else:
        yield Finding("note", f"processes: {FEW} more of the router's user than at its start, by RLIMIT_NPROC; {without}")
    yield Finding("ok", f"files: {FILES} open at once in each process, by RLIMIT_NOFILE")
    if means.mounts:
        yield Finding("ok", f"data folder: out of isolated functions' sight, by a mount namespace ({means.mounts})")
    elif means.landlock:
        yield Finding("ok", "data folder: closed to isolated functions by Landlock; they can make no files in the folders that lead to it")
    if means.landlock >= SCOPES_SINCE:
        yield Finding("ok", f"other processes: out of isolated functions' reach, signals included, by Landlock (version {means.landlock})")
    elif means.landlock:
        yield Finding(
            "note", "other processes: isolated functions can't look into them (Landlock), but send signals; that takes Linux 6.12"
        )
    else:
        yield Finding(
            "note", "other processes: isolated functions can send signals to those of the router's user; this kernel has no Landlock"
        )
    if means.seccomp:
        yield Finding("ok", "calls: what changes other processes is refused by seccomp; in a sandbox ptrace, mount, bpf and the like, too")
    else:
        yield Finding("note", "calls: none are refused, as the kernel has no seccomp, or its architecture isn't known")
    missing = next((f"{what}; {remedy}" for option, what, remedy in lacking(means, Confinement(sandbox=True)) if option != PROCESS), None)
    if missing is None:
        how = "read-only mounts, a /tmp of 512 MB" if means.mounts else "Landlock, a /tmp of its own without a quota"
        yield Finding("ok", f"sandbox=True: {how}, " + ("a user id of its own" if means.uids else "the router's user id"))
    else:
        yield Finding("note", f"sandbox=True is refused: {missing}")


def _kept(app: App, means: Means) -> Iterator[Finding]:
    for function in app.functions.values():
        if function.isolation == "process":
            for option, missing, remedy in lacking(means, confinement(function)):
                level: Literal["note", "problem"] = "problem" if function.policy.enforce == "strict" else "note"
                yield Finding(level, f"{function.name}: {option}: {missing}; {remedy}")


def _secrets(app: App) -> Iterator[Finding]:
    used, keys = any(function.env != function.policy.env for function in app.functions.values()), app.vault.keys
    if not isinstance(keys, KeyRing):
        yield Finding("ok", f"master keys: those of {app.config.secrets.provider}, which are not asked for here")
    elif used or keys.exists:
        ids = keys.ids()
        yield Finding("ok", f"master keys: {len(ids)} in {keys.where}, {ids[0]} is the present one")
        app.check_secrets()
        if used:
            yield Finding("ok", "secrets: each of the configured ones can be decrypted")


def _configured(place: Place, means: Means) -> Iterator[Finding]:
    for name, plugin in place.plugins.by_name.items():
        yield Finding("ok", f"plugin {name} {place.plugins.version(name)}".rstrip())
        if plugin.doctor is not None:
            yield from plugin.doctor(place.config.plugins.get(name))
    yield Finding("ok", f"configuration: {place.config.file or 'no eventrouter.toml, all defaults'}")
    try:
        app = place.app()
        yield Finding("ok", f"{len(app.functions)} functions: {', '.join(app.functions)}")
        yield from _kept(app, means)
        yield from _secrets(app)
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
