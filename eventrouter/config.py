"""`eventrouter.toml` and its kin: flag > environment > file > decorator > default."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from eventrouter.errors import ConfigError, explain, suggest
from eventrouter.hookspecs import Plugin
from eventrouter.network import Network, make_network

FILE = "eventrouter.toml"
_PREFIX = "EVENTROUTER_"
S = TypeVar("S", bound=msgspec.Struct)


class AppConfig(msgspec.Struct, kw_only=True):
    """`[app]`. modules: what `serve` collects when no APP is given; None: app.py, which need not be there if functions have no Python.
    data: DIR. drain: seconds.

    concurrency: how many attempts and requests run at once in all.
    processes: how many environments of isolated functions there are at most; None: 4 per CPU.
    default_role: what functions without `role` may do: "unrestricted", everything within this app, or "none", nothing."""

    modules: tuple[str, ...] | None = None
    data: str = ".eventrouter"
    drain: Annotated[float, Meta(ge=0)] = 30.0
    concurrency: Annotated[int, Meta(ge=1)] = 1000
    processes: Annotated[int, Meta(ge=1)] | None = None
    default_role: Literal["unrestricted", "none"] = "unrestricted"


class JournalConfig(msgspec.Struct, kw_only=True):
    """`[journal]`. url: "sqlite" (DIR/journal.db) or "memory". dedupe, history: seconds, or "24h" and the like:
    how long a repeat of an event is known, and how long done events are kept for `eventrouter event`.
    archive: the same, how long every accepted event is kept for `eventrouter replay`.
    max_backlog: events that may wait, or bytes that the journal may have ("20GB"); 0: no limit. min_free: what is to be left of the
    disk. Beyond either no more events are taken until there is room."""

    url: str = "sqlite"
    max_backlog: int | str = 10_000_000
    min_free: int | str = "256MB"
    dedupe: str | float = "24h"
    history: str | float = 0
    archive: str | float = 0


class SecretsConfig(msgspec.Struct, kw_only=True):
    """`[secrets]`. key_file: where the master keys are; None: DIR/master.keys. provider: a plugin that keeps them instead."""

    key_file: str | None = None
    provider: str | None = None


class MeteringConfig(msgspec.Struct, kw_only=True):
    """`[metering]`. step: milliseconds that a duration is rounded up to. free_requests, free_gb_seconds: of each calendar month (UTC).

    request_price: of a million requests, gb_second_price: of one GB-second, in `currency`; as Amazon charges them (us-east-1, x86)."""

    enabled: bool = True
    step: Annotated[int, Meta(ge=1, le=60_000)] = 100
    free_requests: Annotated[float, Meta(ge=0)] = 1_000_000
    free_gb_seconds: Annotated[float, Meta(ge=0)] = 400_000
    request_price: Annotated[float, Meta(ge=0)] = 0.20
    gb_second_price: Annotated[float, Meta(ge=0)] = 0.0000166667
    currency: str = "USD"


class AuditConfig(msgspec.Struct, kw_only=True):
    """`[audit]`. invocations: whether each one has a record, besides what operators do.

    segment: records of a file under DIR/audit; the last ones are in the journal."""

    invocations: bool = False
    segment: Annotated[int, Meta(ge=100)] = 50_000


class _Networks(msgspec.Struct):
    named: dict[str, Any] = msgspec.field(name="*", default_factory=dict)


class Config(msgspec.Struct, kw_only=True):
    """Everything configured. base: where relative paths start. networks: by their names. plugins: each plugin's own section."""

    app: AppConfig
    journal: JournalConfig
    secrets: SecretsConfig = msgspec.field(default_factory=SecretsConfig)
    metering: MeteringConfig
    audit: AuditConfig
    functions: dict[str, dict[str, Any]]
    networks: dict[str, Network]
    plugins: dict[str, msgspec.Struct]
    base: Path
    file: Path | None

    @property
    def data(self) -> Path:
        return self.base / self.app.data


_OWN: dict[str, type[msgspec.Struct] | None] = {
    "app": AppConfig,
    "journal": JournalConfig,
    "secrets": SecretsConfig,
    "metering": MeteringConfig,
    "audit": AuditConfig,
}


def load_config(
    plugins: Mapping[str, Plugin],
    *,
    file: Path | None = None,
    folder: Path = Path(),
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Mapping[str, Any]] | None = None,
) -> Config:
    """Read and check the configuration.

    A section's Struct may have a field that is encoded as `"*"`: a dict that takes the keys which are no fields, as they are.
    file: must exist when given; else `folder/eventrouter.toml` if there is one. flags: per section, what
    the command line said; None values count as not given.
    Raises ConfigError naming file or variable, key and remedy.
    """
    path = file or folder / FILE
    tables: dict[str, Any] = {}
    if file is not None or path.exists():
        try:
            tables = tomllib.loads(path.read_text())
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror or error}; name a config file that exists") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not valid TOML: {error}") from None
        found: Path | None = path
    else:
        path, found = Path(FILE), None
    sections: dict[str, type[msgspec.Struct] | None] = {"functions": None, "networks": _Networks, **_OWN}
    sections |= {name: plugin.config for name, plugin in plugins.items() if plugin.config is not None}
    for name, table in tables.items():
        if name not in sections:
            raise ConfigError(f"{path}: unknown section [{name}]{suggest(name, sections)}")
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: {name} must be a table: [{name}]")
    from_environ = _environ(environ or {}, sections)
    values: dict[str, Any] = {}
    for name, kind in sections.items():
        if kind is not None:
            flagged = {key: value for key, value in (flags or {}).get(name, {}).items() if value is not None}
            values[name] = _section(name, kind, path, tables.get(name, {}), from_environ.get(name, {}), flagged)
    functions = tables.get("functions", {})
    for name, table in from_environ.get("functions", {}).items():
        real = next((known for known in functions if known.lower() == name), name)
        functions[real] = {**functions.get(real, {}), **{key: _scalar(value) for key, value in table.items()}}
    for name, table in functions.items():
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: functions.{name} must be a table: [functions.{name}]")
    networks = {name: make_network(name, table, f"{path}: [networks.{name}]") for name, table in values.pop("networks").named.items()}
    base = found.parent.resolve() if found else folder.resolve()
    own = {name: values.pop(name) for name in _OWN}
    return Config(**own, functions=functions, networks=networks, plugins=values, base=base, file=found)


def seconds(value: str | float, what: str) -> float:
    """`"24h"`, `"7d"`, `"90s"`, `"15m"` or a number of seconds. Raises ConfigError naming `what`."""
    if isinstance(value, int | float):
        return float(value)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhdw]?)\s*", value)
    if not match:
        raise ConfigError(f'{what}: {value!r} is no duration; write "90s", "15m", "24h" or "7d"')
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}[match[2]]


def _section(name: str, kind: type[S], path: Path, table: dict[str, Any], environ: Mapping[str, Any], flags: Mapping[str, Any]) -> S:
    place = f"{path}: [{name}]"
    _known(table, kind, place)
    merged = {**table, **flags}
    for key, value in environ.items():
        if key in flags:
            continue
        _known({key: value}, kind, f"{_PREFIX}{name.upper()}__{key.upper()}")
        merged = _merge(merged, {key: value})
        place = f"{_PREFIX}{name.upper()}__{key.upper()}"
    names = [field.encode_name for field in msgspec.structs.fields(kind)]
    if "*" in names:
        merged = {key: value for key, value in merged.items() if key in names} | {
            "*": {key: value for key, value in merged.items() if key not in names}
        }
    try:
        return msgspec.convert(merged, kind, strict=not environ)  # environment variables are text
    except msgspec.ValidationError as error:
        where, fault = explain(error)
        raise ConfigError(f"{place} {where.removeprefix('$.')}: {fault}") from None


def _merge(table: dict[str, Any], environ: Mapping[str, Any]) -> dict[str, Any]:
    """The table with what variables say, whose names are in small letters, at any depth."""
    merged = dict(table)
    for key, value in environ.items():
        real = next((known for known in table if known.lower() == key), key)
        below = merged.get(real)
        merged[real] = _merge(below if isinstance(below, dict) else {}, value) if isinstance(value, dict) else value
    return merged


_UNITS = {"B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}


def byte_size(value: int | str, what: str) -> int:
    """`"512MB"`, `"20GB"`, or a number of bytes. Raises ConfigError naming `what`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B)?", str(value).strip(), re.IGNORECASE)
    if match is None:
        raise ConfigError(f'{what}={value!r}: write a size such as "512MB", or a number of bytes')
    return int(float(match[1]) * _UNITS[(match[2] or "B").upper()])


def backlog(value: int | str) -> tuple[int, int]:
    """`[journal] max_backlog` as (events, bytes); one of them is 0. Raises ConfigError."""
    if isinstance(value, str) and not value.strip().isdecimal():
        return 0, byte_size(value, "[journal] max_backlog")
    if (events := int(value)) < 0:
        raise ConfigError(f'[journal] max_backlog={value!r}: write a number of events, or a size such as "20GB"; 0 is no limit')
    return events, 0


def _known(table: Mapping[str, Any], kind: type[msgspec.Struct], place: str) -> None:
    names = [field.encode_name for field in msgspec.structs.fields(kind)]
    for key in table:
        if key not in names and "*" not in names:
            raise ConfigError(f"{place} unknown key {key!r}{suggest(key, names)}")


def _environ(environ: Mapping[str, str], sections: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`EVENTROUTER_MQTT__URL=x` -> `{"mqtt": {"url": "x"}}`; a third part reaches into a table."""
    found: dict[str, dict[str, Any]] = {}
    for variable, text in environ.items():
        if not variable.startswith(_PREFIX) or "__" not in variable:
            continue
        section, *keys = variable.removeprefix(_PREFIX).lower().split("__")
        if section not in sections:
            raise ConfigError(f"{variable}: unknown section {section!r}{suggest(section, sections)}")
        table = found.setdefault(section, {})
        for key in keys[:-1]:
            table = table.setdefault(key, {})
        try:
            table[keys[-1]] = tomllib.loads(f"x = {text}")["x"] if text[:1] in ("[", "{") else text
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{variable}: not valid TOML: {error}") from None
    return found


def _scalar(text: Any) -> Any:
    """A policy keyword's type is not known here: what reads as a number or a truth value is one."""
    try:
        return tomllib.loads(f"x = {text}")["x"] if isinstance(text, str) else text
    except tomllib.TOMLDecodeError:
        return text
