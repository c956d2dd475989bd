"""Finds plugins by entry point and checks that each keeps the contract."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from eventrouter import hookspecs
from eventrouter.errors import ConfigError, PluginError, suggest
from eventrouter.hookspecs import Plugin
from eventrouter.model import Trigger

GROUP = "eventrouter"


class Plugins:
    """The loaded plugins by name, and whose trigger is whose. entries: where they were found."""

    def __init__(self, plugins: Iterable[Plugin], entries: Mapping[str, EntryPoint] = {}) -> None:
        self.by_name: dict[str, Plugin] = {}
        self.triggers: dict[str, Callable[..., Trigger]] = {}
        self._entries = entries
        for plugin in plugins:
            if plugin.name in self.by_name:
                raise PluginError(f"two plugins are named {plugin.name!r}; uninstall one")
            self.by_name[plugin.name] = plugin
            for name, make in plugin.triggers.items():
                if name in self.triggers:
                    raise PluginError(f"plugin {plugin.name!r} brings a trigger {name!r}, which another plugin has; uninstall one")
                self.triggers[name] = make

    def version(self, name: str) -> str:
        """Of the distribution that the plugin came from; empty: of none."""
        entry = self._entries.get(name)  # only now: to read its metadata takes a millisecond
        return entry.dist.version if entry is not None and entry.dist else ""


def load_plugins(found: Iterable[EntryPoint] | None = None) -> Plugins:
    """Import and ask every installed plugin.

    Raises PluginError that names the plugin which fails to import, misspells a hook or answers wrongly.
    """
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    entries: dict[str, EntryPoint] = {}
    plugins: list[Plugin] = []
    for entry in sorted(entry_points(group=GROUP) if found is None else found, key=lambda entry: entry.name):
        try:
            module = entry.load()
            manager.register(module, name=entry.name)
        except Exception as error:
            raise PluginError(f"{_origin(entry)} can't be loaded: {type(error).__name__}: {error}; fix or uninstall it") from error
        plugins.append(_ask(manager, module, entry))
        entries[plugins[-1].name] = entry
    return Plugins(plugins, entries)


def _origin(entry: EntryPoint) -> str:
    return f"plugin {entry.name!r} ({entry.value}{f' of {entry.dist.name}' if entry.dist else ''})"


def _ask(manager: pluggy.PluginManager, module: Any, entry: EntryPoint) -> Plugin:
    known = [name for name in vars(hookspecs) if name.startswith("eventrouter_")]
    for name, value in vars(module).items():
        if hasattr(value, "eventrouter_impl") and name not in known:
            raise PluginError(f"{_origin(entry)} implements a hook {name!r} that does not exist{suggest(name, known)}")
    caller = next((c for c in manager.get_hookcallers(module) or () if c.name == "eventrouter_plugin"), None)
    if caller is None:
        raise PluginError(f"{_origin(entry)} has no @hookimpl function named eventrouter_plugin")
    try:
        answer = module.eventrouter_plugin()
    except Exception as error:
        raise PluginError(f"{_origin(entry)}: eventrouter_plugin() failed: {type(error).__name__}: {error}") from error
    if not isinstance(answer, Plugin):
        raise PluginError(f"{_origin(entry)}: eventrouter_plugin() returned {answer!r}, not a Plugin")
    return answer


def make_trigger(triggers: Mapping[str, Callable[..., Trigger]], table: Any, place: str) -> Trigger:
    """`{ mqtt = "sensors/+/raw", qos = 1 }`: the first key names the trigger, its value is the first argument.

    Raises ConfigError that begins with `place`.
    """
    if not isinstance(table, dict) or not table:
        raise ConfigError(f'{place} on: {table!r} is no trigger; write {{ mqtt = "sensors/+/raw", qos = 1 }}')
    (name, first), *rest = table.items()
    make = triggers.get(name)
    if make is None:
        raise ConfigError(f"{place} on: no trigger is named {name!r}{suggest(name, triggers)}")
    keywords = dict(rest)
    parameters = inspect.signature(make).parameters
    starred = next((p.name for p in parameters.values() if p.kind is p.VAR_POSITIONAL), "")
    for key in keywords:
        if key not in parameters:
            raise ConfigError(f"{place} on: {name} has no option {key!r}{suggest(key, list(parameters)[1:])}")
    more = keywords.pop(starred, ())
    try:
        return make(first, *(more if isinstance(more, list | tuple) else [more]), **keywords)
    except (TypeError, ValueError, ConfigError) as error:
        raise ConfigError(f"{place} on: {error}") from None
