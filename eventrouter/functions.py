"""`@on` marks, `collect` finds: plain functions become Functions with triggers and a policy."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, TypedDict, TypeVar, Unpack

import msgspec
from msgspec import Meta

from eventrouter.binding import Binder
from eventrouter.errors import ConfigError, explain, suggest
from eventrouter.model import Trigger
from eventrouter.retry import Backoff, exponential, parse_backoff

F = TypeVar("F", bound=Callable[..., Any])
_MARK = "__eventrouter_on__"
_LIFE = "__eventrouter_life__"

Isolation = Literal["inline", "thread"]


class PolicyKeywords(TypedDict, total=False):
    """The keywords of `on`; `Policy` says what each means."""

    name: str
    description: str
    timeout: float
    retries: int
    backoff: Backoff
    max_age: float
    concurrency: int
    isolation: Isolation
    env: Mapping[str, str]
    tags: Mapping[str, str]


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a function's events are treated.

    timeout: seconds per attempt; the clock starts when the handler starts.
    retries: more attempts after the first.
    backoff: how long to wait before each of them.
    max_age: seconds an event may wait before it is dead-lettered.
    concurrency: reserved concurrency, guaranteed and capped; None shares the pool.
    isolation: where the handler runs; None: `async def` on the event loop, `def` in a thread.
    env: what `context.env` holds.
    """

    name: str | None = None
    description: str = ""
    timeout: Annotated[float, Meta(gt=0, le=900)] = 3.0
    retries: Annotated[int, Meta(ge=0, le=185)] = 2
    backoff: Backoff = exponential(2, 10, 300)
    max_age: Annotated[float, Meta(ge=60, le=604800)] = 21600.0
    concurrency: Annotated[int, Meta(ge=0)] | None = None
    isolation: Isolation | None = None
    env: dict[str, str] = {}
    tags: dict[str, str] = {}


class _Mark(msgspec.Struct):
    triggers: list[Trigger]
    policy: dict[str, Any]
    place: str


def _place(depth: int) -> str:
    frame = sys._getframe(depth + 1)
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def on(*triggers: Trigger, **policy: Unpack[PolicyKeywords]) -> Callable[[F], F]:
    """Mark a function as a handler of these triggers, under this policy.

    It returns the very function it was given. Stacked, triggers add up and keywords merge.
    Raises ConfigError that names the line for an unknown keyword, a value out of range, a conflict.
    """
    place = _place(1)
    for trigger in triggers:
        if not isinstance(trigger, Trigger):
            raise ConfigError(f"{place}: @on takes triggers such as cron(...), not {trigger!r}")
    make_policy(dict(policy), place)

    def mark(function: F) -> F:
        if not inspect.isfunction(function):
            raise ConfigError(f"{place}: @on marks functions, not {function!r}")
        found: _Mark | None = getattr(function, _MARK, None)
        if found is None:
            setattr(function, _MARK, _Mark(list(triggers), dict(policy), place))
            return function
        for key, value in policy.items():
            if key in found.policy and found.policy[key] != value:
                raise ConfigError(
                    f"{place}: {function.__name__}: {key}={value!r} conflicts with {key}={found.policy[key]!r} at {found.place}"
                )
        found.triggers[:0] = triggers  # decorators run bottom up, people read top down
        found.policy.update(policy)
        return function

    return mark


def make_policy(keywords: Mapping[str, Any], place: str) -> Policy:
    """Check a policy's keywords. Raises ConfigError that begins with `place`."""
    for key in keywords:
        if key not in Policy.__struct_fields__:
            raise ConfigError(f"{place}: unknown keyword {key!r}{suggest(key, Policy.__struct_fields__)}")
    if isinstance(keywords.get("backoff"), str):
        try:
            keywords = {**keywords, "backoff": parse_backoff(keywords["backoff"])}
        except ValueError as error:
            raise ConfigError(f"{place}: {error}") from None
    try:
        return msgspec.convert(keywords, Policy)
    except msgspec.ValidationError as error:
        path, fault = explain(error)
        key = re.split(r"[.\[]", path)[1]
        raise ConfigError(f"{place}: {key}={keywords.get(key)!r}: {fault}") from None


def on_start(function: F) -> F:
    """Mark a function to run, in order of definition, before any source is live; `async def` or `def`."""
    setattr(function, _LIFE, "start")
    return function


def on_stop(function: F) -> F:
    """Mark a function to run, in reverse order, once the last handler has ended."""
    setattr(function, _LIFE, "stop")
    return function


class Function:
    """A named handler with its triggers and its policy.

    place: `file:line` of the handler. binders: per trigger, how an event becomes arguments.
    is_lambda: whether the handler is a plain `(event, context)` Lambda function.
    """

    __slots__ = ("binders", "handler", "is_async", "is_lambda", "isolation", "module", "name", "place", "policy", "triggers")

    def __init__(self, handler: Callable[..., Any], triggers: Sequence[Trigger], policy: Policy) -> None:
        code = handler.__code__
        self.handler = handler
        self.name = policy.name or handler.__name__
        self.module = handler.__module__
        self.place = f"{code.co_filename}:{code.co_firstlineno}"
        self.policy = policy
        self.triggers = tuple(triggers)
        self.is_async = inspect.iscoroutinefunction(handler)
        if inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler):
            raise ConfigError(f"{self.place}: {self.name} yields; a handler returns its answer")
        self.isolation: Isolation = policy.isolation or ("inline" if self.is_async else "thread")
        if self.is_async and self.isolation == "thread":
            raise ConfigError(f'{self.place}: {self.name} is async and runs on the event loop; drop isolation="thread"')
        self.is_lambda, self.binders = Binder.for_triggers(handler, self.name, self.place, self.triggers)

    def __repr__(self) -> str:
        return f"Function({self.name!r}, {', '.join(map(str, self.triggers))})"


class Collected(msgspec.Struct):
    """What was found in the user's modules."""

    functions: dict[str, Function]
    starts: list[Callable[[], Any]]
    stops: list[Callable[[], Any]]


def collect(modules: Iterable[ModuleType], overrides: Mapping[str, Mapping[str, Any]] | None = None) -> Collected:
    """Every marked function of these modules, once, in order of definition.

    overrides: per function name, policy keywords and `on` (more triggers) that win over the decorator's.
    Raises ConfigError for two functions of one name, a bad override, a signature that can't be bound.
    """
    overrides = overrides or {}
    found = Collected({}, [], [])
    seen: set[int] = set()
    for module in modules:
        for value in list(vars(module).values()):
            if not inspect.isfunction(value) or id(value) in seen:
                continue
            seen.add(id(value))
            life = getattr(value, _LIFE, None)
            if life:
                (found.starts if life == "start" else found.stops).append(value)
            mark: _Mark | None = getattr(value, _MARK, None)
            if mark is None:
                continue
            name = mark.policy.get("name", value.__name__)
            override = dict(overrides.get(name, {}))
            triggers = [*mark.triggers, *override.pop("on", ())]
            place = f"[functions.{name}]" if override else mark.place
            function = Function(value, triggers, make_policy({**mark.policy, **override}, place))
            twin = found.functions.get(name)
            if twin:
                raise ConfigError(f"two functions are named {name!r}: {twin.place} and {function.place}; give one a name=")
            found.functions[name] = function
    for name in overrides:
        if name not in found.functions:
            raise ConfigError(f"[functions.{name}]: no such function{suggest(name, found.functions)}")
    return found


class UserImportError(ConfigError):
    """The user's own module failed to import; `__cause__` is what it raised."""


def load(app: str, folder: Path) -> list[ModuleType]:
    """Import what an APP argument names: a file, a folder or a dotted module; relative to `folder`.

    Raises ConfigError when there is no such thing, UserImportError when its code fails.
    """
    path = folder / app
    if path.is_dir():
        files = sorted(p for p in path.rglob("*.py") if not _skipped(p.relative_to(path)))
        if not files:
            raise ConfigError(f"{path}: no Python files in this folder")
        if (path / "__init__.py").exists():
            return [_import(".".join((path.name, *_dotted(p.relative_to(path)))), path.resolve().parent) for p in files]
        return [_import(".".join(_dotted(p.relative_to(path))), path.resolve()) for p in files]
    if path.is_file():
        return [_import_file(path.resolve())]
    if app.endswith(".py") or "/" in app:
        raise ConfigError(f"{path}: no such file; name a Python file, a folder or a module, or write an app.py")
    return [_import(app, folder.resolve())]


def _skipped(path: Path) -> bool:
    return any(part.startswith((".", "test_", "__pycache__")) for part in path.parts) or path.name == "conftest.py"


def _dotted(path: Path) -> list[str]:
    parts = list(path.with_suffix("").parts)
    return parts[:-1] if parts[-1] == "__init__" else parts


def _import(name: str, folder: Path) -> ModuleType:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise ConfigError(f"no module named {error.name!r} in {folder} or on Python's path") from None
        raise UserImportError(f"{name} can't be imported: {error}") from error
    except ConfigError as error:
        raise _with_place(error) from error
    except Exception as error:
        raise UserImportError(f"{name} can't be imported: {type(error).__name__}: {error}") from error


def _import_file(path: Path) -> ModuleType:
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # a user's file imports its neighbours, as under `python app.py`
    name = path.stem
    present = sys.modules.get(name)
    if present is not None:
        if getattr(present, "__file__", None) == str(path):
            return present
        name = f"{path.stem}_{abs(hash(str(path))):x}"  # another module has that name: `types.py`, say
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, ConfigError):
            raise _with_place(error) from error
        if not isinstance(error, Exception):
            raise
        raise UserImportError(f"{path} can't be imported: {type(error).__name__}: {error}") from error
    return module


def _with_place(error: ConfigError) -> ConfigError:
    """The error of a trigger or decorator, with the line of the user's that made it."""
    place, trace = "", error.__traceback__
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        if not module.startswith(("eventrouter", "importlib", "_frozen_importlib")):  # plugins are named so, too
            place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
        trace = trace.tb_next
    if isinstance(error, UserImportError) or not place or str(error).startswith(place.rpartition(":")[0]):
        return error
    return type(error)(f"{place}: {error}")
