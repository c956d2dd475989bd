"""The error tree. Every error names the culprit and the remedy in one or two lines."""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec


class EventRouterError(Exception):
    """Base of everything eventrouter raises on purpose; its text is fit for a user's eyes."""


class ConfigError(EventRouterError):
    """The user's app or configuration is wrong: found at load, never while events run."""


class BadOption(ConfigError, ValueError):
    """A value such as `Batch(0)` that can't be one: an error of the user's app, and a ValueError to who made it."""


class PluginError(EventRouterError):
    """A plugin could not be loaded or does not keep the contract."""


class JournalError(EventRouterError):
    """The journal cannot do what was asked; nothing that was accepted is lost by it."""


class FolderTaken(JournalError):
    """Another process has the data folder: a router, or a command that is about to end."""


class NotRunning(EventRouterError):
    """The call needs a running router (or a running handler) and there is none."""


def not_running(what: str) -> NotRunning:
    """What a client says that finds no router."""
    if _isolated:
        return NotRunning(
            f"{what}: in a process of its own a function reaches the router by clients alone; the plugin names them in Plugin(clients=...)"
        )
    return NotRunning(f"{what}: no router is running here; call this inside a handler that eventrouter runs")


_isolated = False


def set_isolated() -> None:
    """Said once, in an environment."""
    global _isolated
    _isolated = True


class InvalidPayload(EventRouterError):
    """An event's data does not fit the handler: `$.celsius: expected float, got str`. Never retried."""


class SecretError(EventRouterError):
    """A value can't be encrypted or decrypted. The text never has the value in it."""


class Throttled(EventRouterError):
    """No concurrency is left for the function, or it is over its rate; costs no attempt. after: seconds until it is worth another try."""

    def __init__(self, message: str, after: float = 1.0) -> None:
        super().__init__(message)
        self.after = after


class AccessDenied(EventRouterError):
    """The function's role does not allow what it asked for, or its function policy does not let somebody start it."""


class Retry(EventRouterError):
    """Raise in a handler to choose when the next attempt runs; it still uses up an attempt.

    after: seconds from now, 0 or more.
    """

    def __init__(self, after: float, why: str = "") -> None:
        if not after >= 0:
            raise ValueError(f"Retry(after={after!r}): seconds must be 0 or more")
        super().__init__(why or f"the handler asked for a retry after {after:g} s")
        self.after = after


class Reject(EventRouterError):
    """Raise in a handler to dead-letter the event at once, whatever attempts are left."""


def explain(error: msgspec.ValidationError) -> tuple[str, str]:
    """A validation error as (path, what is wrong): `("$.celsius", "expected float, got str")`."""
    text, _, path = str(error).partition(" - at `")
    text = re.sub(r"`([^`]*)`", r"\1", text)
    return path.rstrip("`") or "$", text[:1].lower() + text[1:]


def suggest(wrong: str, known: Iterable[str]) -> str:
    """`; did you mean 'retries'?` when a known name is near, else the known names."""
    import difflib  # noqa: PLC0415 - only those who err wait for it

    known = sorted(known)
    near = difflib.get_close_matches(wrong, known, 1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""
