"""The App: wires functions, journal, engine and sources together, and owns their lifecycle."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import importlib
import logging
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from types import ModuleType, TracebackType
from typing import IO, Any, Self

import msgspec
from msgspec.structs import replace

from eventrouter import crashpoints
from eventrouter.access import SENDS_TO_FUNCTIONS, Access
from eventrouter.accounts import Accounts
from eventrouter.audit import Trail, Who, read_key
from eventrouter.clock import Clock, SystemClock
from eventrouter.config import Config, backlog, byte_size, load_config, seconds
from eventrouter.destinations import Destination, parse_destination
from eventrouter.engine import Engine
from eventrouter.errors import ConfigError, FolderTaken, JournalError, SecretError, suggest
from eventrouter.functions import Collected, Function, collect, is_foreign, load
from eventrouter.invoking import Here, invoke, make_here
from eventrouter.journal.protocol import Journal
from eventrouter.lineage import cause
from eventrouter.logs import captured
from eventrouter.model import ACCOUNT, REGION, Event, Notice, Outcome
from eventrouter.network import Network
from eventrouter.permissions import Role, require
from eventrouter.plugins import Plugins, load_plugins, make_trigger
from eventrouter.runtimes.calls import Clients
from eventrouter.runtimes.frames import Recipe
from eventrouter.runtimes.netns import refusal
from eventrouter.runtimes.process import ProcessRuntime
from eventrouter.runtimes.programs import find_program
from eventrouter.secrets import FILE as KEY_FILE
from eventrouter.secrets import KeyRing, MasterKeys, Secret, Vault
from eventrouter.sources import Binding, Router, Source, Supervisor, Terms, make_current

log = logging.getLogger("eventrouter")


KEY_ARN = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/eventrouter"  # of all master keys, whichever is the present one


class App:
    """Functions, and what it takes to run them.

    modules: files, folders, dotted names or module objects; none means what `[app] modules` says.
    config: as `load_config` gives it; None reads `eventrouter.toml` of the current folder and the environment.

    `async with App("app.py") as app:` runs it until the block ends. Making an App imports the user's
    modules and checks everything that can be checked without starting; raises ConfigError.
    """

    def __init__(
        self,
        *modules: str | ModuleType,
        config: Config | None = None,
        plugins: Plugins | None = None,
        clock: Clock | None = None,
        folder: Path | None = None,
    ) -> None:
        crashpoints.check()
        self.plugins = plugins or load_plugins()
        self.config = config or load_config(self.plugins.by_name, folder=folder or Path(), environ=os.environ)
        self.clock = clock or SystemClock()
        self._named: list[tuple[str, Path]] = []  # of the modules, those that another process can import: by which name, from where
        self._importable: list[ModuleType] = []
        self.modules = self._import(modules, folder or Path())
        self.collected = self._collect()
        self.functions = self.collected.functions
        self.roles = self._find_roles()
        self._check()
        self.vault = Vault(open_keys(self.config, self.plugins))
        for function in self.functions.values():
            function.decrypt = partial(self.decrypt, function)
        self._place_in_networks()
        self.journal, self.trail = _make_books(self.config, self.clock)
        self._processes = self._make_processes(folder or Path())
        metering, records = self.config.metering, self.config.audit.invocations
        accounts = Accounts(self.functions, self.journal, self.clock, metering.step if metering.enabled else 0, records=records)
        self.engine: Engine = Engine(self.functions, self.journal, self.clock, self.config.app.concurrency, self._processes, accounts)
        self.access = Access(self.functions, self.roles, self._sends, self.engine, self.journal, self.clock)
        self._check_rights()
        self.sources: dict[str, Source[Any]] = {}
        self.supervisor: Supervisor | None = None
        self._stack: AsyncExitStack | None = None

    # Load

    def _import(self, modules: Iterable[str | ModuleType], folder: Path) -> list[ModuleType]:
        found: list[ModuleType] = []
        base = folder
        if not modules:
            modules, base = self._usual_modules(), self.config.base
        for module in modules:
            if isinstance(module, str):
                self._named.append((module, base))
                self._importable += (loaded := load(module, base))
                found += loaded
            else:
                found.append(module)
        return found

    def _usual_modules(self) -> tuple[str, ...]:
        if self.config.app.modules is not None:
            return self.config.app.modules
        # An app may be of other languages alone.
        needed = (self.config.base / "app.py").exists() or not any(map(is_foreign, self.config.functions.values()))
        return ("app.py",) if needed else ()

    def _collect(self) -> Collected:
        overrides: dict[str, dict[str, Any]] = {}
        for name, table in self.config.functions.items():
            overrides[name] = dict(table)
            if "on" in table:
                overrides[name]["on"] = [make_trigger(self.plugins.triggers, entry, f"[functions.{name}]") for entry in _list(table["on"])]
        plugins = [plugin for plugin in self.plugins.by_name.values() if plugin.handlers is not None]
        theirs = [handler for plugin in plugins for handler in plugin.handlers(self.config.plugins.get(plugin.name))]  # type: ignore[misc]
        collected = collect(self.modules, overrides, theirs)
        self._plugins_own = {id(handler) for handler in theirs}
        if not collected.functions:
            names = ", ".join(getattr(module, "__file__", None) or module.__name__ for module in self.modules)
            raise ConfigError(f"no handlers in {names}; mark a function with @on(...)")
        return collected

    def _check(self) -> None:
        for function in self.functions.values():
            for trigger in function.triggers:
                if trigger.source not in self.plugins.by_name:
                    raise ConfigError(f"{function.place}: {function.name}: no plugin is installed for {trigger.source!r} triggers")
            for what in ("dlq", "on_success", "on_failure"):
                self._check_policy_destination(function, what)
        for plugin in self.plugins.by_name.values():
            for place, target in plugin.forwards(self.config.plugins.get(plugin.name)) if plugin.forwards is not None else ():
                self._check_destination(place, target)
            if plugin.check is not None:
                pairs = [(binding.function.name, binding.trigger) for binding in self._bindings(plugin.name)]
                plugin.check(self.config.plugins.get(plugin.name), pairs)

    def _place_in_networks(self) -> None:
        known = dict(self.config.networks)
        for function in self.functions.values():
            wanted = function.policy.network
            place = f"{function.place}: {function.name}: network"
            if isinstance(wanted, Network) and wanted.name not in self.config.networks:
                if known.setdefault(wanted.name, wanted) != wanted:
                    raise ConfigError(f"{place}: two networks are named {wanted.name!r}; give one another name")
            elif wanted is not None:
                name = wanted if isinstance(wanted, str) else wanted.name
                if name not in self.config.networks:
                    raise ConfigError(f"{place}={name!r}: there is no [networks.{name}]{suggest(name, self.config.networks)}")
                function.network = self.config.networks[name]
            if function.network is not None and (refused := refusal(function.network)):
                raise ConfigError(f"{place} {function.network.name!r} can't be enforced: {refused}")

    def _find_roles(self) -> dict[str, Role]:
        """Of the functions that have one; those of plugins need none."""
        nothing = Role("none") if self.config.app.default_role == "none" else None
        roles = {
            name: function.policy.role or (None if id(function.handler) in self._plugins_own else nothing)
            for name, function in self.functions.items()
        }
        return {name: role for name, role in roles.items() if role is not None}

    def _check_rights(self) -> None:
        """A function's role must let it send where its dead letters and records go, as in Lambda."""
        for name in self.roles:
            function = self.functions[name]
            for what in ("dlq", "on_success", "on_failure"):
                target = getattr(function.policy, what)
                if target is not None:
                    self.access.check_destination(name, f"{function.place}: {name}: {what}={target!r}", *parse_destination(target, what))

    @property
    def _sends(self) -> dict[str, tuple[str, str]]:
        return {"lambda": SENDS_TO_FUNCTIONS} | {name: plugin.sends for name, plugin in self.plugins.by_name.items() if plugin.sends}

    def _check_policy_destination(self, function: Function, what: str) -> None:
        target = getattr(function.policy, what)
        if target is None:
            return
        place = f"{function.place}: {function.name}: {what}"
        to = self._check_destination(place, target)
        probe = Event(to.scheme, "", to.name)
        # Of those with a pattern it can't be told here.
        mine = [trigger for trigger in function.triggers if trigger.source == to.scheme and trigger.content_pattern is None]
        if any(trigger.matches(probe) is not None for trigger in mine) or (to.scheme, to.name) == ("lambda", function.name):
            raise ConfigError(f"{place}={target!r}: that starts {function.name} itself, and it would never end; send it elsewhere")

    def _check_destination(self, place: str, target: str) -> Destination:
        """Raises ConfigError that begins with `place` when nothing can be sent there."""
        to = parse_destination(target, place)
        known = {"lambda", *(name for name, plugin in self.plugins.by_name.items() if plugin.destination)}
        if to.scheme not in known:
            raise ConfigError(f"{place}={target!r}: nothing can be sent to {to.scheme!r}{suggest(to.scheme, known)}")
        if to.scheme == "lambda" and to.name not in self.functions:
            raise ConfigError(f"{place}={target!r}: no function is named {to.name!r}{suggest(to.name, self.functions)}")
        check = to.scheme != "lambda" and self.plugins.by_name[to.scheme].destination
        if callable(check):
            try:
                check(to.name)
            except ConfigError as error:
                raise ConfigError(f"{place}={target!r}: {error}") from None
        return to

    def _bindings(self, source: str) -> list[Binding]:
        return [Binding(f, trigger) for f in self.functions.values() for trigger in f.triggers if trigger.source == source]

    def _make_processes(self, folder: Path) -> ProcessRuntime | None:
        importable = {id(value) for module in self._importable for value in vars(module).values()}
        for function in self.functions.values():
            if function.isolation == "process" and id(function.handler) not in importable and not function.foreign:
                function.run_in_threads()
        isolated = {name: function for name, function in self.functions.items() if function.isolation == "process"}
        if not isolated:
            return None
        overrides: dict[str, dict[str, Any]] = {}
        for name, table in self.config.functions.items():
            function = self.functions[name]
            if function.foreign or id(function.handler) in importable:
                overrides[name] = {key: value for key, value in table.items() if key != "env"}
            if function.foreign:
                find_program(function.policy, self.config.base, function.place)
                overrides[name]["code"] = str(self.config.base / (function.policy.code or ""))
        data = self.config.data.resolve()
        for _, base in self._named:
            if base.resolve().is_relative_to(data):
                raise ConfigError(f"{data} holds the app, and isolated functions don't see the data folder; give --data one of its own")
        hidden = [str(path.resolve()) for path in (data, self.config.file) if path is not None]
        key = hashlib.sha256(os.fsencode(data)).hexdigest()[:16]
        clients = Clients(
            [cls for plugin in self.plugins.by_name.values() for cls in plugin.clients],
            {"invoke": invoke.__call__, "decrypt": self._decrypt},
        )
        recipe = Recipe([(name, str(base.resolve())) for name, base in self._named], list(sys.path), overrides, hidden, key, clients.names)
        limit = self.config.app.processes or 4 * (os.cpu_count() or 1)
        return ProcessRuntime(self.clock, isolated, recipe, folder.resolve(), limit, clients)

    # Life

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop()

    async def start(self, *, sources: bool = True) -> None:
        """Lock the data folder, open the journal, run `@on_start`, work off the journal, make every source live.

        sources: False starts no source and works nothing off, for commands without a server; what handlers
            publish or write then is journalled for the next server.
        Raises EventRouterError; what had been started is stopped again.
        """
        async with AsyncExitStack() as stack:
            stack.enter_context(lock(self.config.data))
            await self.journal.open()
            stack.push_async_callback(self.journal.close)
            self.journal.on_fault(self._journal_changed)
            if sources:
                await self.trail.asked(Who.me(), "start_router", self._inventory())
                stack.push_async_callback(self._stopped)
                self.trail.start()
                stack.push_async_callback(self.trail.close)
            else:
                stack.callback(self.engine.accounts.flush)
            if self._processes is not None:
                stack.push_async_callback(self._processes.close)
                if sources:  # else only if a command needs it
                    await self._processes.load()
            await self.access.load()
            make_here(Here(asyncio.get_running_loop(), self))
            self.sources = self._make_sources()
            make_current(self.sources)
            if self._processes is not None:
                self._processes.start()
            if any(function.logs and function.isolation != "process" for function in self.functions.values()):
                stack.enter_context(captured())
            self.supervisor = Supervisor(self.sources, self.clock, lambda: self.journal.fault, self.engine.notices)
            stack.push_async_callback(self.supervisor.close)
            stack.push_async_callback(self._run_stops)
            await self.engine.throttling.restore()
            for function in self.collected.starts:
                await _call(function)
            # From here on in this order at stop: intake ends, handlers drain, then what they share is closed.
            stack.push_async_callback(self._drain)
            self.engine.watch()
            if sources:
                self.check_secrets()
                await self.engine.start()
                stack.push_async_callback(self.supervisor.stop)
                await self.supervisor.start()
            if self._processes is not None:
                await self._processes.ready()
            self._stack = stack.pop_all()

    async def stop(self) -> None:
        """End intake, drain for up to `[app] drain` seconds, put the rest back uncharged, close everything."""
        if self._stack is not None:
            stack, self._stack = self._stack, None
            await stack.aclose()

    def run_now(self, name: str, event: Event, parameters: Mapping[str, str]) -> Coroutine[Any, Any, Outcome]:
        """Invoke a function directly. Raises ConfigError when there is none of that name, Throttled."""
        return self.engine.invoke(self.lane(name), None, event, parameters)

    def decrypt(self, function: Function, value: str) -> str:
        """What `context.decrypt` gives a function. Raises SecretError, AccessDenied."""
        require("kms:Decrypt", KEY_ARN)
        return self.vault.decrypt(function.name, function.policy.env, value)

    async def _decrypt(self, value: str) -> str:
        """The same for who calls from a process: the function that runs here."""
        return self.decrypt(self.functions[self.engine.intake.running(cause.get())], value)

    def check_secrets(self) -> None:
        """See at once whether each can be decrypted; key services may be slow, and are not asked. Raises ConfigError."""
        if isinstance(self.vault.keys, KeyRing):
            for function in self.functions.values():
                for name, value in function.policy.env.items():
                    if isinstance(value, Secret):
                        try:
                            self.decrypt(function, value.secret)
                        except SecretError as error:
                            raise ConfigError(f"{function.place}: {function.name}: env {name}: {error}") from None

    def lane(self, name: str) -> Any:
        try:
            return self.engine.lanes[name]
        except KeyError:
            raise ConfigError(f"no function is named {name!r}{suggest(name, self.functions)}") from None

    def _make_sources(self) -> dict[str, Source[Any]]:
        found: dict[str, Source[Any]] = {}
        for name, plugin in self.plugins.by_name.items():
            bindings = self._bindings(name)
            if plugin.source is None or not (bindings or plugin.always):
                continue
            module, _, cls = plugin.source.partition(":")
            router = Router(name, bindings, self.engine, self.journal, self.clock, self.config.data, self.config.base)
            source = found[name] = getattr(importlib.import_module(module), cls)(self.config.plugins.get(name), router)
            if hasattr(source, "queue"):
                self.engine.intake.queueing[name] = source.queue
                self.engine.intake.terms[name] = getattr(source, "terms", _as_it_comes)
            if hasattr(source, "heard"):
                self.engine.notices.listeners.append(source.heard)
            if plugin.destination:
                self.engine.intake.senders[name] = source.message
        return found

    def _inventory(self) -> dict[str, Any]:
        """What the audit log says of a start: the functions, and a digest of what starts them and how they are treated."""
        policies = [(name, list(map(str, f.triggers)), replace(f.policy, env={})) for name, f in self.functions.items()]
        digest = hashlib.sha256(msgspec.json.encode(policies, order="sorted", enc_hook=_shown)).hexdigest()
        return {"pid": os.getpid(), "functions": sorted(self.functions), "policiesSha256": digest}

    async def _stopped(self) -> None:
        """The last words, once everything has drained."""
        self.engine.accounts.flush()
        with suppress(JournalError):  # it tells of that itself, and what is to be closed must be closed
            await self.trail.asked(Who.me(), "stop_router", {"pid": os.getpid()})

    def _journal_changed(self, fault: str) -> None:
        self.engine.notices.tell(Notice("journal", "", {"state": "refusing" if fault else "accepting", "reason": fault}))

    async def _drain(self) -> None:
        await self.engine.stop(self.config.app.drain)

    async def _run_stops(self) -> None:
        for function in reversed(self.collected.stops):
            try:
                await _call(function)
            except Exception:
                log.exception("on_stop %s failed", function.__name__, extra={"action": "stop.failed"})


def _make_books(config: Config, clock: Clock) -> tuple[Journal, Trail]:
    from eventrouter.journal.sqlite import SqliteJournal  # noqa: PLC0415 - apsw is not needed to list functions
    from eventrouter.journal.writer import Limits  # noqa: PLC0415

    asked = config.journal
    known = {"sqlite": config.data / "journal.db", "memory": None}
    if asked.url not in known:
        raise ConfigError(f"[journal] url: {asked.url!r} is no journal{suggest(asked.url, known)}")
    dedupe, history = seconds(asked.dedupe, "[journal] dedupe"), seconds(asked.history, "[journal] history")
    archive = seconds(asked.archive, "[journal] archive")
    rows, size = backlog(asked.max_backlog)
    limits = Limits(rows, size, byte_size(asked.min_free, "[journal] min_free"))
    path = known[asked.url]
    folder = None if path is None else config.data / "audit"
    key = bytes if folder is None else partial(read_key, folder)
    journal = SqliteJournal(path, clock=clock, dedupe=dedupe, history=history, archive=archive, limits=limits, key=key)
    return journal, Trail(journal.books, clock, folder, config.audit.segment)


@asynccontextmanager
async def open_trail(config: Config) -> AsyncIterator[Trail]:
    """The audit log, for who records without an app. Raises EventRouterError when a router has it, or it can't be written."""
    journal, trail = _make_books(config, SystemClock())
    with lock(config.data):
        await journal.open()
        try:
            yield trail
        finally:
            await journal.close()


def open_keys(config: Config, plugins: Plugins) -> MasterKeys:
    """The master keys that the configuration names; whether there are any is seen when they are used. Raises ConfigError."""
    provider, file = config.secrets.provider, config.secrets.key_file
    if provider is None:
        return KeyRing(config.base / file if file is not None else config.data / KEY_FILE, os.environ)
    known = {name for name, plugin in plugins.by_name.items() if plugin.keys is not None}
    if provider not in known:
        raise ConfigError(f"[secrets] provider: no plugin {provider!r} keeps keys{suggest(provider, known)}")
    make = plugins.by_name[provider].keys
    assert make is not None
    return make(config.plugins.get(provider))


def _shown(value: Any) -> Any:
    return value.policies if isinstance(value, Role) else str(value)


async def _call(function: Callable[[], Any]) -> None:
    result = function()
    if isinstance(result, Awaitable):
        await result


def _as_it_comes(event: Event) -> Terms:
    return Terms()


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


class lock:  # noqa: N801 - a context manager that reads as a verb
    """Holds DIR, made if missing, for one process. Raises FolderTaken with the pid of who has it, JournalError."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "lock"
        self._file: IO[str] | None = None

    def __enter__(self) -> None:
        folder = self._path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a+")
        except OSError as error:
            raise JournalError(f"{folder} can't be written ({error.strerror}); mend that, or give --data another folder") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.seek(0)
            pid = self._file.read().strip() or "unknown"
            self._file.close()
            raise FolderTaken(
                f"{self._path.parent}: another eventrouter (pid {pid}) has this folder; stop it, or give --data another folder"
            ) from None
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def __exit__(self, *exc: object) -> None:
        if self._file is not None:
            self._file.close()
