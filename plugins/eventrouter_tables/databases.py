"""Where tables are: URLs of databases, and how they are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

import msgspec

from eventrouter.errors import ConfigError

_REMEDY = 'write "sqlite:///shop.db" (beside the config; four slashes for an absolute path) or "postgresql://user@host/shop"'


class Database(msgspec.Struct, frozen=True):
    """name: the URL without its secrets, with an absolute path. url: as it was written; of SQLite, the file's path."""

    kind: Literal["sqlite", "postgresql"]
    name: str
    url: str


def resolve(url: str, base: Path) -> Database:
    """base: where relative paths start. Raises ConfigError."""
    check(url)
    if not url.startswith("sqlite:"):
        return Database("postgresql", shown(url), url)
    path = (base / unquote(urlsplit(url).path[1:])).resolve()
    return Database("sqlite", f"sqlite:///{path}", str(path))


def check(url: str) -> str:
    """The URL itself. Raises ConfigError, without the URL's secrets."""
    try:
        parts = urlsplit(url)
        fault = _fault(parts.scheme, parts.netloc, parts.path)
    except ValueError:  # its text may hold the password
        raise ConfigError(
            f"database: the URL can't be read; {_REMEDY}, with what is no letter or digit in a password written as %XX"
        ) from None
    if fault:
        raise ConfigError(f"database {shown(url)!r}: {fault}; {_REMEDY}")
    return url


def _fault(scheme: str, host: str, path: str) -> str:
    if scheme == "sqlite":
        if host:
            return "three slashes before a file's name"
        if path in ("", "/", "/:memory:"):
            return "a file's name is missing: other programs write to it"
        return ""
    if scheme not in ("postgresql", "postgres"):
        return f"no kind of database is named {scheme!r}" if scheme else "it is no URL"
    return "" if len(path) > 1 else "the database's name is missing"


def shown(url: str) -> str:
    """The URL without passwords."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    query = urlencode([(name, value) for name, value in parse_qsl(parts.query) if "password" not in name])
    text = urlunsplit((parts.scheme, user.partition(":")[0] + at + host, parts.path, query, ""))
    return text.replace(f"{parts.scheme}:/", f"{parts.scheme}:///", 1) if not parts.netloc and ":///" not in text else text
