"""The contract between the router and its plugins: one hook that hands over one value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import msgspec
import pluggy

from eventrouter.model import Trigger
from eventrouter.secrets import MasterKeys

hookspec = pluggy.HookspecMarker("eventrouter")
hookimpl = pluggy.HookimplMarker("eventrouter")


class Finding(msgspec.Struct, frozen=True):
    """One line of `eventrouter doctor`."""

    level: Literal["ok", "note", "problem"]
    text: str


class Plugin(msgspec.Struct, frozen=True, kw_only=True):
    """What a plugin brings.

    name: of the plugin, of its config table `[name]`, and `Event.source` of what it delivers.
    source: `"package.module:Class"` of its `Source`, imported only when it is needed; None: it has none.
    always: start the source even when no function has one of its triggers.
    destination: its source takes messages for `dlq="NAME:..."` and the like; see `Source`. A function is called at load with what
        follows the colon, and raises ConfigError when nothing can have that name.
    sends: the action and the resource, with `{}` for that name, that a function's role must allow for it to send there:
        `("sns:Publish", "arn:aws:sns:local:000000000000:{}")`.
    config: a msgspec.Struct class of its config table; every field has a default.
    triggers: for config files: `on = [{ mqtt = "a/b", qos = 1 }]` calls `triggers["mqtt"]("a/b", qos=1)`.
    check: given the config and all (function name, trigger) pairs of the plugin, raises ConfigError for what
        can't stand together (two functions on one route).
    handlers: given the config, handlers of the plugin's own, marked with `@on` as a user's are: deliveries to be retried, say.
    clients: classes by which handlers use the source, such as `Bucket`; isolated functions may call their public coroutine methods.
    forwards: given the config, where its handlers forward to, as (place in the config, destination); checked at load as `dlq` is.
    sample: makes the AWS-shaped JSON that `eventrouter sample NAME` prints. Positional parameters are the command's arguments,
        keyword-only ones its options, all with defaults. A mapping has several: `{"NAME": ...}`.
    doctor: given the config, what this machine can and can't do for the plugin.
    keys: given the config, a key service for `[secrets] provider = "NAME"`. It has `wrap(key, context) -> (which master key, wrapped)` and
        `unwrap(which, wrapped, context) -> key`; both raise EventRouterError, and are called where a handler asks, so they must be quick.
    """

    name: str
    source: str | None = None
    always: bool = False
    destination: bool | Callable[[str], object] = False
    sends: tuple[str, str] | None = None
    config: type[msgspec.Struct] | None = None
    triggers: Mapping[str, Callable[..., Trigger]] = {}
    check: Callable[[Any, Sequence[tuple[str, Trigger]]], None] | None = None
    handlers: Callable[[Any], Sequence[Callable[..., Any]]] | None = None
    sample: Callable[..., Any] | Mapping[str, Callable[..., Any]] | None = None
    clients: Sequence[type] = ()
    forwards: Callable[[Any], Sequence[tuple[str, str]]] | None = None
    doctor: Callable[[Any], list[Finding]] | None = None
    keys: Callable[[Any], MasterKeys] | None = None


@hookspec
def eventrouter_plugin() -> Plugin:  # type: ignore[empty-body]
    """Called once at start: describe the plugin."""
