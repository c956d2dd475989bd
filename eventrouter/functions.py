"""`@on` marks, `collect` finds: plain functions become Functions with triggers and a policy."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, TypedDict, TypeVar, Unpack

import msgspec
from msgspec import Meta

from eventrouter.batches import Batch
from eventrouter.binding import bind_triggers
from eventrouter.errors import BadOption, ConfigError, explain, suggest
from eventrouter.limits import parse_rate
from eventrouter.model import Event, Trigger, viewed
from eventrouter.network import Network
from eventrouter.paths import parse_path
from eventrouter.patterns import Pattern, PatternError
from eventrouter.patterns import compile as compile_pattern
from eventrouter.permissions import Role, role_of
from eventrouter.retry import Backoff, exponential, parse_backoff
from eventrouter.secrets import Secret

F = TypeVar("F", bound=Callable[..., Any])
_MARK = "__eventrouter_on__"
_LIFE = "__eventrouter_life__"

Isolation = Literal["inline", "thread", "process"]
RecursiveLoop = Literal["terminate", "allow"]
RUNTIMES = ("go", "java", "nodejs", "provided", "python")
_FOREIGN = ("runtime", "handler", "code", "command")  # one of them in `[functions.NAME]` makes a function without Python
Enforce = Literal["strict", "best-effort"]


class Idempotent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`Idempotent("$.id", ttl=3600)`: events with the same value at `path` of their payload are one piece of work.

    The first that succeeds runs; for `ttl` seconds the others get its result. While one runs, the others wait.
    """

    path: str
    ttl: float = 3600.0

    def __post_init__(self) -> None:
        parse_path(self.path)
        if not 0 < self.ttl < float("inf"):
            raise BadOption(f"Idempotent: ttl={self.ttl!r}: more than 0 seconds")

    def __str__(self) -> str:
        return f"{self.path}, ttl {self.ttl:g} s"


class PolicyKeywords(TypedDict, total=False):
    """The keywords of `on`; `Policy` says what each means."""

    name: str
    description: str
    timeout: float
    retries: int
    backoff: Backoff
    max_age: float
    dlq: str
    on_success: str
    on_failure: str
    concurrency: int
    rate: str
    per: str
    order_by: str
    batch: Batch
    where: Mapping[str, Any]
    idempotent: Idempotent
    isolation: Isolation
    min_environments: int
    network: Network | str
    memory: int
    sandbox: bool
    enforce: Enforce
    recursive_loop: RecursiveLoop
    env: Mapping[str, str | Secret]
    tags: Mapping[str, str]
    log_invocations: bool
    role: Role | Mapping[str, Any] | Sequence[Mapping[str, Any]] | Literal["none"]


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a function's events are treated.

    timeout: seconds per attempt; the clock starts when the handler starts.
    retries: more attempts after the first.
    backoff: how long to wait before each of them.
    max_age: seconds an event may wait before it is dead-lettered.
    dlq: where a copy of a dead letter goes, `"sqs:NAME"`, `"sns:NAME"`, `"lambda:NAME"`.
    on_success, on_failure: where Lambda's record of the outcome goes, likewise.
    concurrency: reserved concurrency, guaranteed and capped; None shares the pool.
    rate: how often it may run: `"100/s"`, `"30/m"`, `"500/h"`, `"1/d"`; events above it wait, requests are throttled.
    per: a wildcard's name, or a JSON path of the payload: each value there has the rate by itself.
    order_by: a wildcard's name, or a JSON path of the payload: events that are equal there run one after another.
    where: an EventBridge pattern; what a Lambda function would get of the event must match it, or it's none of the function's.
    batch: hand over lists of events. idempotent: one result for events that are one piece of work.
    isolation: where the handler runs; None: `async def` on the event loop, `def` in a process, or in a thread where no other process can
        import it.
    min_environments: of a function in processes, how many environments are kept warm.
    network: of a function in processes, the private network it runs in, or the name of one in the configuration; None: the host's.
    memory: with isolation="process", MB that an environment has at most; its share of the CPU is proportional, 1769 MB = one core.
    sandbox: with isolation="process", it can write nothing but a /tmp of its own.
    enforce: whether a limit that this machine can't keep is an error at start, or, with "best-effort", a warning.
    recursive_loop: what becomes of an event when what handlers did led from this function back to it 16 times: "terminate" makes a
        dead letter of it.
    env: what `context.env` holds; of a `Secret` what is encrypted.
    log_invocations: write Lambda's START, END and REPORT lines to the log, with what the function prints between them; None: for Lambda
        functions and in processes.
    runtime, handler, code, command: for functions without Python, in the configuration alone: one of `RUNTIMES`; what it is to run;
        the folder that is in; what speaks the Lambda Runtime API there, instead of what comes with the runtime.
    """

    name: str | None = None
    description: str = ""
    timeout: Annotated[float, Meta(gt=0, le=900)] = 3.0
    retries: Annotated[int, Meta(ge=0, le=185)] = 2
    backoff: Backoff = exponential(2, 10, 300)
    max_age: Annotated[float, Meta(ge=60, le=604800)] = 21600.0
    dlq: str | None = None
    on_success: str | None = None
    on_failure: str | None = None
    concurrency: Annotated[int, Meta(ge=0)] | None = None
    rate: str | None = None
    per: str | None = None
    order_by: str | None = None
    batch: Batch | None = None
    where: dict[str, Any] | None = None
    idempotent: Idempotent | None = None
    isolation: Isolation | None = None
    min_environments: Annotated[int, Meta(ge=0)] = 0
    network: Network | str | None = None
    memory: Annotated[int, Meta(ge=128, le=10240)] | None = None
    sandbox: bool = False
    enforce: Enforce = "strict"
    recursive_loop: RecursiveLoop = "terminate"
    env: dict[str, str | Secret] = {}
    tags: dict[str, str] = {}
    log_invocations: bool | None = None
    runtime: str = "python"
    handler: str | None = None
    code: str | None = None
    command: Annotated[tuple[str, ...], Meta(min_length=1)] | None = None
    role: Role | None = None


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
    if foreign := [key for key in _FOREIGN if key in policy]:
        raise ConfigError(f"{place}: {foreign[0]}= belongs into [functions.NAME] of the configuration; @on marks Python functions")
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
                    if key != "env"
                    else f"{place}: {function.__name__}: env= conflicts with env= at {found.place}"
                )
        found.triggers[:0] = triggers  # decorators run bottom up, people read top down
        found.policy.update(policy)
        return function

    return mark


def make_policy(keywords: Mapping[str, Any], place: str, function: str = "role") -> Policy:
    """Check a policy's keywords. function: whose it is, if it has no `name`. Raises ConfigError that begins with `place`."""
    for key in keywords:
        if key not in Policy.__struct_fields__:
            raise ConfigError(f"{place}: unknown keyword {key!r}{suggest(key, Policy.__struct_fields__)}")
    if isinstance(keywords.get("backoff"), str):
        try:
            keywords = {**keywords, "backoff": parse_backoff(keywords["backoff"])}
        except ValueError as error:
            raise ConfigError(f"{place}: {error}") from None
    if keywords.get("role") is not None:
        try:
            keywords = {**keywords, "role": role_of(keywords["role"], keywords.get("name") or function)}
        except ConfigError as error:
            raise ConfigError(f"{place}: role: {error}") from None
    try:
        return msgspec.convert(keywords, Policy)
    except msgspec.ValidationError as error:
        path, fault = explain(error)
        key = re.split(r"[.\[]", path)[1]
        shown = "" if key == "env" else f"={keywords.get(key)!r}"  # what stands there by mistake may be a secret
        raise ConfigError(f"{place}: {key}{shown}: {fault}") from None


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
    ordered: whether its events have keys. where: the policy's, compiled.
    is_lambda: whether the handler is a plain `(event, context)` Lambda function.
    network: the private network it runs in: the policy's, once an App has looked up the name.
    streams: whether the handler is an async generator, whose chunks are its answer.
    foreign: whether it has no Python in it; `handler` then has but its signature, that of a Lambda function.
    rate: the policy's as (so many, in so many seconds).
    env: the policy's, of secrets what is encrypted. decrypt: what `context.decrypt` calls; the App's to set, None: nobody does it.
    """

    __slots__ = (
        "_idempotency",
        "_path",
        "_per",
        "binders",
        "decrypt",
        "env",
        "foreign",
        "handler",
        "is_async",
        "is_lambda",
        "isolation",
        "memory",
        "module",
        "name",
        "network",
        "ordered",
        "place",
        "policy",
        "rate",
        "streams",
        "triggers",
        "where",
    )

    def __init__(self, handler: Callable[..., Any], triggers: Sequence[Trigger], policy: Policy) -> None:
        code = handler.__code__
        self.handler = handler
        self.foreign = handler is _elsewhere
        self.name = policy.name or handler.__name__
        self.module = (policy.code or ".") if self.foreign else handler.__module__
        self.place = f"[functions.{self.name}]" if self.foreign else f"{code.co_filename}:{code.co_firstlineno}"
        self.policy = policy
        self.triggers = tuple(triggers)
        self.streams = inspect.isasyncgenfunction(handler)
        self.is_async = self.streams or inspect.iscoroutinefunction(handler)
        self._check_yields()
        self.isolation: Isolation = policy.isolation or ("inline" if self.is_async else "process")
        if self.foreign and self.isolation != "process":
            raise ConfigError(f"{self.place}: isolation={self.isolation!r}: what is no Python runs in a process; drop it")
        if self.is_async and self.isolation == "thread":
            raise ConfigError(f'{self.place}: {self.name} is async and runs on the event loop; drop isolation="thread"')
        for keyword in ("min_environments", "memory", "sandbox", "network"):
            if getattr(policy, keyword) and self.isolation != "process":
                raise ConfigError(f'{self.place}: {self.name}: {keyword}= needs isolation="process"; add the one or drop the other')
        self.memory = policy.memory or 128  # MB; Lambda's default
        self.network = policy.network if isinstance(policy.network, Network) else None
        if re.match(r"\w*:", self.name):
            raise ConfigError(f"{self.place}: name={self.name!r}: names such as 'sqs:jobs' are those of queues; choose one without ':'")
        self._idempotency = parse_path(policy.idempotent.path) if policy.idempotent is not None else None
        self._path = self._read_key("order_by")
        self.rate = self._read_rate()
        self._per = self._read_key("per")
        self.where = _read_where(policy, f"{self.place}: {self.name}: where")
        self.ordered = policy.order_by is not None or any(type(t).order_key is not Trigger.order_key for t in self.triggers)
        self._check_batch()
        self.env = self._read_env()
        self.decrypt: Callable[[str], str] | None = None
        for trigger in self.triggers:
            try:
                trigger.check(policy)
            except ConfigError as error:
                raise ConfigError(f"{self.place}: {self.name}: {error}") from None
        self.is_lambda, self.binders = bind_triggers(handler, self.name, self.place, self.triggers, batch=policy.batch is not None)

    @property
    def logs(self) -> bool:
        """Whether its invocations have their lines in the log."""
        wanted = self.policy.log_invocations
        return (self.is_lambda or self.isolation == "process") if wanted is None else wanted

    def run_in_threads(self) -> None:
        """No other process can import it. Raises ConfigError when it has to run in one."""
        if self.policy.isolation == "process" or self.policy.min_environments or self.policy.network is not None:
            raise ConfigError(
                f"{self.place}: {self.name}: to run in a process of its own, a handler must be one that another process can import: at the "
                "top level of a module that the App is given by name or file"
            )
        self.isolation = "thread"

    def _check_yields(self) -> None:
        if inspect.isgeneratorfunction(self.handler):
            raise ConfigError(f"{self.place}: {self.name} yields; a handler returns its answer, or streams it as an `async def`")
        if not self.streams:
            return
        for trigger in self.triggers:
            if trigger.mode != "request":
                raise ConfigError(f"{self.place}: {self.name} yields, and nobody waits for what {trigger} starts; return the result")
        for keyword in ("batch", "idempotent"):
            if getattr(self.policy, keyword) is not None:
                raise ConfigError(f"{self.place}: {self.name} yields, so {keyword}= has no result to go by; drop one of the two")

    def _read_env(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for name, value in self.policy.env.items():
            if isinstance(value, Secret):
                try:
                    value.check(self.name, name)
                except ConfigError as error:
                    raise ConfigError(f"{self.place}: {self.name}: {error}") from None
            found[name] = value.secret if isinstance(value, Secret) else value
        return found

    def _read_key(self, option: str) -> Callable[[Any], str | None] | None:
        """Of an option that names a wildcard (None), or a JSON path."""
        key: str | None = getattr(self.policy, option)
        if key is None:
            return None
        if key.startswith("$"):
            try:
                return parse_path(key)
            except ValueError as error:
                raise ConfigError(f"{self.place}: {self.name}: {option}: {error}") from None
        names = {name for trigger in self.triggers for name in trigger.names}
        if key not in names:
            raise ConfigError(
                f"{self.place}: {self.name}: {option}={key!r} is no wildcard of its triggers{suggest(key, names)}; "
                "a JSON path begins with '$.'"
            )
        return None

    def _read_rate(self) -> tuple[int, float] | None:
        if self.policy.rate is None:
            if self.policy.per is not None:
                raise ConfigError(f"{self.place}: {self.name}: per= says for what each rate= is; give rate=, too")
            return None
        try:
            return parse_rate(self.policy.rate)
        except ValueError as error:
            raise ConfigError(f"{self.place}: {self.name}: {error}") from None

    def lets_in(self, trigger: Trigger, event: Event) -> bool:
        """Whether `where` matches what a Lambda function would get of an event by this trigger."""
        if self.where is None:
            return True
        seen = viewed(lambda event: trigger.aws_event((event,)), event)
        return seen is not None and self.where.matches(seen, in_texts=True)

    def _check_batch(self) -> None:
        if self.policy.batch is None:
            return
        for trigger in self.triggers:
            if trigger.mode == "request":
                raise ConfigError(f"{self.place}: {self.name}: batch= and {trigger}: a request has one answer; drop one of the two")
        if self.policy.idempotent is not None:
            raise ConfigError(f"{self.place}: {self.name}: batch= and idempotent= don't go together; drop one of the two")

    def order_key(self, event: Event, trigger: Trigger | None, captures: Mapping[str, str]) -> str | None:
        """Which order the event belongs to, by `order_by`, else by its trigger; None: it has none."""
        if self.policy.order_by is None:
            return trigger.order_key(event) if trigger is not None else None
        if self._path is None:
            return captures.get(self.policy.order_by)
        return self._at(self._path, event)

    def rate_key(self, event: Event, captures: Mapping[str, str]) -> str | None:
        """Whose rate the event counts for, by `per`; what has nothing there has one together."""
        if self.policy.per is None:
            return None
        return captures.get(self.policy.per) if self._per is None else self._at(self._per, event)

    def idempotency_key(self, event: Event) -> str | None:
        """What makes the event the same as another, by `idempotent`; None: nothing does."""
        return None if self._idempotency is None else self._at(self._idempotency, event)

    @staticmethod
    def _at(path: Callable[[Any], str | None], event: Event) -> str | None:
        try:
            return path(event.json())
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    def __repr__(self) -> str:
        return f"Function({self.name!r}, {', '.join(map(str, self.triggers))})"


def _read_where(policy: Policy, place: str) -> Pattern | None:
    if policy.where is None:
        return None
    try:
        return compile_pattern(policy.where)
    except PatternError as error:
        raise ConfigError(f"{place}: {error}") from None


class Collected(msgspec.Struct):
    """What was found in the user's modules."""

    functions: dict[str, Function]
    starts: list[Callable[[], Any]]
    stops: list[Callable[[], Any]]


def collect(
    modules: Iterable[ModuleType], overrides: Mapping[str, Mapping[str, Any]] | None = None, more: Iterable[Callable[..., Any]] = ()
) -> Collected:
    """Every marked function of these modules, once, in order of definition; then `more` of them.

    overrides: per function name, policy keywords and `on` (more triggers) that win over the decorator's.
    Raises ConfigError for two functions of one name, a bad override, a signature that can't be bound.
    """
    overrides = overrides or {}
    found = Collected({}, [], [])
    seen: set[int] = set()
    for value in chain(*(list(vars(module).values()) for module in modules), more):
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
        if foreign := [key for key in _FOREIGN if key in override]:
            raise ConfigError(f"{place} {foreign[0]}: {name} is a Python function, at {mark.place}; drop it, or rename one of the two")
        policy = make_policy({**mark.policy, **override}, place, name)
        if "where" in override:
            _read_where(policy, f"[functions.{name}] where")
        function = Function(value, triggers, policy)
        twin = found.functions.get(name)
        if twin:
            raise ConfigError(f"two functions are named {name!r}: {twin.place} and {function.place}; give one a name=")
        found.functions[name] = function
    for name, table in overrides.items():
        if name not in found.functions:
            if not is_foreign(table):
                raise ConfigError(f"[functions.{name}]: no such function{suggest(name, found.functions)}")
            found.functions[name] = _foreign(name, dict(table))
    return found


def is_foreign(table: Mapping[str, Any]) -> bool:
    """Whether a table of the configuration, of none of the Python functions, makes a function without Python."""
    return any(key in table for key in _FOREIGN)


def _foreign(name: str, table: dict[str, Any]) -> Function:
    """A function without Python, of a table of the configuration."""
    place = f"[functions.{name}]"
    if "name" in table:
        raise ConfigError(f"{place} name: the table's own name is the function's; rename that")
    triggers = table.pop("on", ())
    policy = make_policy({**table, "name": name}, place)
    if policy.runtime not in RUNTIMES:
        more = "; the version is that of what is installed, and with `provided` any command will do"
        raise ConfigError(f"{place} runtime={policy.runtime!r}: there is none of that name{suggest(policy.runtime, RUNTIMES)}{more}")
    return Function(_elsewhere, triggers, policy)


def _elsewhere(event: Any, context: Any) -> Any:
    raise NotImplementedError("it is no Python; its environment runs its program")


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
