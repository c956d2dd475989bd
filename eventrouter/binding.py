"""From an event to a handler's arguments. The signature is read once, at load."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec

from eventrouter.errors import ConfigError, InvalidPayload, explain
from eventrouter.model import Context, Event, Trigger

Captures = Mapping[str, str]
Getter = Callable[[Event, Captures, "Context | None"], Any]
_EMPTY = inspect.Parameter.empty
_INLINE = "inline"  # of a Getter: an expression that gives the same of what is in order, and the value in it


@functools.cache
def _compiled(expression: str) -> types.CodeType:
    return compile(expression, "<arguments>", "eval")


def _with_inline(get: Getter, inline: str, value: object = None) -> Getter:
    setattr(get, _INLINE, (inline, value))
    return get


@dataclasses.dataclass(frozen=True)
class Depends:
    """`Annotated[Pool, Depends(pool)]`: hand the handler what `make` makes, and close it after use.

    make: a function, a coroutine function, or a generator (sync or async) that yields it once; its own
        parameters may be `Event`, `Context` (per invocation only) or further Depends.
    scope: "invocation" makes it for each attempt; "process" once, closed when the router stops.
    """

    make: Callable[..., Any]
    scope: Literal["invocation", "process"] = "invocation"


class Binder:
    """Turns an event of one trigger into a handler's arguments.

    needs_context: whether `bind` wants a Context. depends: what to make first, by parameter.
    takes: what of the event goes into which parameter: a "wildcard", a "query" parameter, the "payload".
    number: its trigger's place among the function's, -1 for direct invocation's.
    """

    __slots__ = ("_getters", "_keywords", "depends", "needs_context", "number", "takes")

    def __init__(
        self,
        getters: Sequence[Getter],
        keywords: Mapping[str, Getter],
        depends: Mapping[str, Depends],
        needs_context: bool,
        takes: Mapping[str, tuple[str, inspect.Parameter]] = {},
    ) -> None:
        self.takes = dict(takes)
        self.number = -1
        self._getters = tuple(getters)
        self._keywords = dict(keywords)
        self.depends = dict(depends)
        self.needs_context = needs_context

    def bind(self, event: Event, captures: Captures, context: Context | None) -> tuple[Sequence[Any], dict[str, Any]]:
        """Positional and keyword arguments. Raises InvalidPayload with the path of the fault."""
        args = [get(event, captures, context) for get in self._getters]
        if not self._keywords:
            return args, {}
        return args, {name: get(event, captures, context) for name, get in self._keywords.items()}

    def caller(self, handler: Callable[..., Any]) -> Callable[[Event, Captures], Any]:
        """What calls the handler with what `bind` gives; what is wrong with an event only `bind` says.

        It needs one frame, not one for each parameter besides: made from source, as dataclasses make their methods.
        """
        names: dict[str, Any] = {"handler": handler}
        given = []
        for parameter, get in (*((None, get) for get in self._getters), *self._keywords.items()):
            inline, value = getattr(get, _INLINE, ("{}(event, captures, None)", get))
            name = f"_{len(names)}"
            names[name] = value
            given.append((f"{parameter}=" if parameter else "") + inline.format(name))
        code = _compiled(f"lambda event, captures: handler({', '.join(given)})")
        return eval(code, names)  # type: ignore[no-any-return]  # noqa: S307 - of names of ours, and of parameters

    def check(self, event: Event, captures: Captures) -> None:
        """Raise InvalidPayload if `bind` would."""
        for get in (*self._getters, *self._keywords.values()):
            get(event, captures, None)


class BatchBinder:
    """Turns events of one trigger into a handler's arguments: lists, each with a place for every event.

    needs_context, depends, takes, number: as Binder's. `one` reads an event, `all` makes the arguments of several that were read.
    """

    __slots__ = ("_columns", "_records", "depends", "needs_context", "number", "takes")

    def __init__(
        self,
        columns: Mapping[str, Getter],
        depends: Mapping[str, Depends],
        needs_context: bool,
        trigger: Trigger | None,
        is_lambda: bool,
        takes: Mapping[str, tuple[str, inspect.Parameter]] = {},
    ) -> None:
        self.takes = dict(takes)
        self.number = -1
        self._columns = dict(columns)
        self._records = (_aws_event(trigger) if trigger is not None else _decode_any) if is_lambda else None
        self.depends = dict(depends)
        self.needs_context = needs_context

    def one(self, event: Event, captures: Captures) -> Sequence[Any]:
        """Raises InvalidPayload with the path of the fault."""
        if self._records is not None:
            return (self._records(event),)
        return [get(event, captures, None) for get in self._columns.values()]

    def check(self, event: Event, captures: Captures) -> None:
        """Raise InvalidPayload if `one` would."""
        self.one(event, captures)

    def all(self, rows: Sequence[Sequence[Any]], context: Context | None) -> tuple[Sequence[Any], dict[str, Any]]:
        """Positional and keyword arguments."""
        if self._records is not None:
            records: list[Any] = []
            for (made,) in rows:
                found = made.get("Records") if isinstance(made, dict) else None
                records += found if isinstance(found, list) else [made]
            return ({"Records": records}, context), {}
        arguments: dict[str, Any] = {}
        for place, name in enumerate(self._columns):
            is_context = self._columns[name] is _context
            arguments[name] = context if is_context else [row[place] for row in rows]
        return (), arguments


def bind_triggers(
    handler: Callable[..., Any], name: str, place: str, triggers: Sequence[Trigger], *, batch: bool = False
) -> tuple[bool, dict[Trigger | None, Any]]:
    """Whether it is a Lambda function; one Binder (or BatchBinder) per trigger, and under None the one for direct invocation.

    Raises ConfigError naming function, place and each parameter that nothing can fill.
    """
    signature = _Signature(handler, name, place, batch)
    binders: dict[Trigger | None, Any] = {}
    unbound: dict[str, set[str]] = {}
    for number, trigger in enumerate(triggers):
        binders[trigger], left = signature.bind(trigger)
        binders[trigger].number = number
        for parameter in left:
            unbound.setdefault(parameter, set()).add(str(trigger))
    signature.report(unbound, triggers)
    binders[None] = signature.bind_direct(triggers)
    return signature.is_lambda, binders


class _Signature:
    """A handler's parameters, read once and bound per trigger."""

    def __init__(self, handler: Callable[..., Any], name: str, place: str, batch: bool) -> None:
        self.name, self.place, self.batch = name, place, batch
        hints, fault = _hints(handler)
        self.parameters = [p.replace(annotation=hints.get(p.name, _EMPTY)) for p in inspect.signature(handler).parameters.values()]
        starred = [str(p) for p in self.parameters if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        if starred:
            raise ConfigError(f"{place}: {name}: nothing can fill {', '.join(starred)}; name each parameter")
        self.is_lambda = _is_lambda(self.parameters)
        if fault is not None and not self.is_lambda:
            raise ConfigError(f"{place}: {name}: its annotations can't be read: {fault}")

    def bind(self, trigger: Trigger) -> tuple[Binder | BatchBinder, list[str]]:
        """The binder, and the parameters that this trigger can't fill."""
        if self.is_lambda and self.batch:
            return BatchBinder({}, {}, True, trigger, True), []
        if self.is_lambda:
            record = _aws_event(trigger)
            return Binder([lambda event, captures, context: record(event), _context], {}, {}, True), []
        return self._bind(trigger.names, trigger)

    def bind_direct(self, triggers: Sequence[Trigger]) -> Binder | BatchBinder:
        if self.is_lambda and self.batch:
            return BatchBinder({}, {}, True, None, True)
        if self.is_lambda:
            return Binder([lambda event, captures, context: _decode_any(event), _context], {}, {}, True)
        names = tuple(dict.fromkeys(name for trigger in triggers for name in trigger.names))
        return self._bind(names, None)[0]

    def report(self, unbound: Mapping[str, set[str]], triggers: Sequence[Trigger]) -> None:
        faults = []
        for parameter in self.parameters:
            where = unbound.get(parameter.name)
            # A parameter with a default may stay unfilled by some triggers, but not by all.
            if where and (parameter.default is _EMPTY or len(where) == len(triggers)):
                faults.append(f"{parameter.name!r} ({', '.join(sorted(where))})")
        if faults:
            raise ConfigError(
                f"{self.place}: {self.name}: nothing fills parameter {' or '.join(faults)}; a parameter is a wildcard's name, "
                "an Event, a Context, Annotated[..., Depends(...)], the one payload, or over HTTP a query parameter with a default"
            )

    def _bind(self, names: Sequence[str], trigger: Trigger | None) -> tuple[Binder | BatchBinder, list[str]]:
        query = trigger is not None and type(trigger).query is not Trigger.query
        getters: list[Getter] = []
        keywords: dict[str, Getter] = {}
        depends: dict[str, Depends] = {}
        takes: dict[str, tuple[str, inspect.Parameter]] = {}
        left: list[str] = []
        payload: str | None = None
        needs_context = False
        for given in self.parameters:
            dependency = _dependency(given.annotation)
            get: Getter | None = None
            p = self._element(given, given.name in names) if self.batch and dependency is None else given
            if p.name in names:
                get, takes[p.name] = _capture(p), ("wildcard", p)
            elif dependency is not None:
                depends[p.name] = dependency
                continue
            elif p.annotation is Event:
                get = _with_inline(_event, "event")
            elif p.annotation is Context:
                get, needs_context = _context, True
            elif p.default is _EMPTY and payload is None:
                payload, get = p.name, _payload(p, f"{self.place}: {self.name}")
                takes[p.name] = ("payload", p)
            elif p.default is not _EMPTY and query and trigger is not None:
                get, takes[p.name] = _query(p, trigger), ("query", p)
            elif p.default is _EMPTY:
                if payload is not None and payload not in left:
                    left.append(payload)  # which of the two is the payload can't be known: name both
                left.append(p.name)
                continue
            elif trigger is None:
                continue  # direct invocation: the default stands
            else:
                left.append(p.name)
                continue
            by_name = self.batch or depends or keywords or len(getters) != self.parameters.index(given)
            if p.kind is not p.KEYWORD_ONLY and not by_name:
                getters.append(get)
                continue
            if p.kind is p.POSITIONAL_ONLY:
                raise ConfigError(f"{self.place}: {self.name}: {p.name!r} is positional-only and can't be filled by its name; drop the `/`")
            keywords[p.name] = get
        if self.batch:
            return BatchBinder(keywords, depends, needs_context, trigger, False, takes), left
        return Binder(getters, keywords, depends, needs_context, takes), left

    def _element(self, p: inspect.Parameter, captured: bool) -> inspect.Parameter:
        """Of a batch's lists, what each element is to be."""
        if p.annotation is Context:
            return p
        if (get_origin(p.annotation) or p.annotation) in (list, Sequence):
            (element,) = get_args(p.annotation) or (_EMPTY,)
            return p.replace(annotation=element)
        if p.annotation is _EMPTY and not captured:
            return p
        if p.default is not _EMPTY and not captured:
            return p
        raise ConfigError(
            f"{self.place}: {self.name}: with batch=, {p.name!r} is a list with a place for each event; annotate it list[...]"
        )


def _hints(handler: Callable[..., Any]) -> tuple[dict[str, Any], Exception | None]:
    """A handler's annotations; one that can't be read stays a text, as the name of a class imported for type checkers alone does."""
    try:
        return typing.get_type_hints(handler, include_extras=True), None
    except Exception as error:
        fault = error
    hints: dict[str, Any] = {}
    for name, annotation in handler.__annotations__.items():
        alone = types.SimpleNamespace(__annotations__={name: annotation})
        try:
            hints |= typing.get_type_hints(alone, globalns=handler.__globals__, include_extras=True)
        except Exception:
            hints[name] = annotation
    return hints, fault


def _is_lambda(parameters: Sequence[inspect.Parameter]) -> bool:
    """Two positional parameters, the second a context by name or type, the first anything AWS would hand over."""
    if len(parameters) != 2 or any(p.kind is p.KEYWORD_ONLY for p in parameters):
        return False
    first, second = parameters
    if second.annotation is Context and second.name not in ("context", "ctx") and not second.name.startswith("_"):
        named = True
    else:
        named = second.name in ("context", "ctx") or second.name.startswith("_") or _class_name(second.annotation).endswith("Context")
    kind = get_origin(first.annotation) or first.annotation
    from_aws = getattr(kind, "__module__", "").split(".")[0].startswith("aws_lambda")
    return named and (kind in (_EMPTY, dict, Mapping, Any) or kind is typing.Mapping or from_aws)


def _class_name(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")


def _dependency(annotation: Any) -> Depends | None:
    if get_origin(annotation) is Annotated:
        for extra in get_args(annotation)[1:]:
            if isinstance(extra, Depends):
                return extra
    return None


def _event(event: Event, captures: Captures, context: Context | None) -> Event:
    return event


def _context(event: Event, captures: Captures, context: Context | None) -> Context | None:
    return context


def _capture(p: inspect.Parameter) -> Getter:
    name = p.name
    if p.annotation in (_EMPTY, str, Any):
        if p.default is _EMPTY:

            def text(event: Event, captures: Captures, context: Context | None) -> Any:
                return captures[name] if name in captures else _present(captures, name)

            return _with_inline(text, "captures[{}]", name)
        return lambda event, captures, context: captures.get(name, p.default)

    def get(event: Event, captures: Captures, context: Context | None) -> Any:
        if p.default is not _EMPTY and name not in captures:
            return p.default
        try:
            return msgspec.convert(_present(captures, name), p.annotation, strict=False)
        except msgspec.ValidationError as error:
            raise InvalidPayload(f"{name}: {explain(error)[1]}") from None

    return get


def _present(captures: Captures, name: str) -> str:
    try:
        return captures[name]
    except KeyError:
        raise InvalidPayload(f"{name}: missing; a direct invocation gives it as `--param {name}=VALUE`") from None


def _query(p: inspect.Parameter, trigger: Trigger) -> Getter:
    name, annotation = p.name, str if p.annotation is _EMPTY else p.annotation
    many = (get_origin(annotation) or annotation) in (list, set, tuple, frozenset)

    def get(event: Event, captures: Captures, context: Context | None) -> Any:
        values = (trigger.query(event) or {}).get(name)
        if not values:
            return p.default
        try:
            return msgspec.convert(list(values) if many else values[-1], annotation, strict=False)
        except msgspec.ValidationError as error:
            raise InvalidPayload(f"{name}: {explain(error)[1]}") from None

    return get


def _payload(p: inspect.Parameter, place: str) -> Getter:
    annotation = p.annotation
    if annotation in (_EMPTY, Any, object):
        return lambda event, captures, context: _decode_any(event)
    if annotation is bytes:
        return _with_inline(lambda event, captures, context: event.data, "event.data")
    if annotation is str:
        return _text
    if get_origin(annotation) is Mapping:
        annotation = dict.__class_getitem__(get_args(annotation))
    elif annotation is Mapping:
        annotation = dict
    pydantic = sys.modules.get("pydantic")
    if pydantic is not None and _mentions(annotation, pydantic.BaseModel):
        return _pydantic(pydantic, annotation)
    try:
        decode = msgspec.json.Decoder(annotation).decode
        fits = not isinstance(msgspec.inspect.type_info(annotation), msgspec.inspect.CustomType)
    except TypeError:
        fits = False
    if not fits:
        raise ConfigError(
            f"{place}: JSON can't fill the payload {p.name!r} of type {annotation!r}; "
            "use a msgspec.Struct, dataclass, TypedDict, pydantic model, dict, list, str or bytes"
        )

    def get(event: Event, captures: Captures, context: Context | None) -> Any:
        try:
            return decode(event.data)
        except msgspec.ValidationError as error:
            raise InvalidPayload(": ".join(explain(error))) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidPayload(f"$: not JSON: {error}") from None

    return _with_inline(get, "{}(event.data)", decode)


def _mentions(annotation: Any, base: type) -> bool:
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return issubclass(annotation, base)
    return any(_mentions(part, base) for part in get_args(annotation))


def _pydantic(pydantic: Any, annotation: Any) -> Getter:
    validate = pydantic.TypeAdapter(annotation).validate_json

    def get(event: Event, captures: Captures, context: Context | None) -> Any:
        try:
            return validate(event.data)
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            path = "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
            raise InvalidPayload(f"{path}: {first['msg'][0].lower()}{first['msg'][1:]}") from None

    return get


def _aws_event(trigger: Trigger) -> Callable[[Event], Any]:
    """What a Lambda function gets of an event; one that takes its payload as JSON may find that it is none."""

    def make(event: Event) -> Any:
        try:
            return trigger.aws_event((event,))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidPayload(f"$: not JSON, as {trigger} hands it to Lambda functions: {error}") from None

    return make


def _decode_any(event: Event) -> Any:
    try:
        return event.json()
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidPayload(f"$: not JSON: {error}; annotate the parameter `str` or `bytes` to get it as it is") from None


def _text(event: Event, captures: Captures, context: Context | None) -> str:
    try:
        return event.data.decode()
    except UnicodeDecodeError as error:
        raise InvalidPayload(f"$: not UTF-8 text: {error}; annotate the parameter `bytes`") from None


class Dependencies:
    """Makes what handlers depend on, and closes it. Per-process ones live until `close`."""

    def __init__(self) -> None:
        self.overrides: dict[Callable[..., Any], Callable[..., Any]] = {}
        self._stack = AsyncExitStack()
        self._made: dict[Callable[..., Any], Any] = {}
        self._making = asyncio.Lock()

    async def resolve(self, wanted: Mapping[str, Depends], stack: AsyncExitStack, event: Event, context: Context) -> dict[str, Any]:
        """The values by parameter; what lives for one invocation is closed by `stack`."""
        made: dict[Callable[..., Any], Any] = {}
        if all(d.scope == "process" and self._maker(d) in self._made for d in wanted.values()):
            return {name: self._made[self._maker(d)] for name, d in wanted.items()}
        lasting = any(d.scope == "process" for d in wanted.values())
        async with self._making if lasting else nullcontext():  # two first events must not make two pools
            return {name: await self._get(d, stack, made, event, context) for name, d in wanted.items()}

    def _maker(self, wanted: Depends) -> Callable[..., Any]:
        return self.overrides.get(wanted.make, wanted.make)

    async def close(self) -> None:
        await self._stack.aclose()
        self._made.clear()

    async def _get(
        self, wanted: Depends, stack: AsyncExitStack, made: dict[Callable[..., Any], Any], event: Event, context: Context
    ) -> Any:
        make = self._maker(wanted)
        lasting = wanted.scope == "process"
        cache = self._made if lasting else made
        if make not in cache:
            arguments: dict[str, Any] = {}
            for name, hint in typing.get_type_hints(make, include_extras=True).items():
                nested = _dependency(hint)
                if name == "return":
                    continue
                if nested is not None and not (lasting and nested.scope == "invocation"):
                    arguments[name] = await self._get(nested, stack, made, event, context)
                elif hint in (Event, Context) and not lasting:
                    arguments[name] = event if hint is Event else context
                elif hint in (Event, Context) or nested is not None:
                    raise ConfigError(f"{make.__qualname__} lives as long as the process: {name!r} belongs to one invocation")
            cache[make] = await _enter(make, arguments, self._stack if lasting else stack)
        return cache[make]


async def _enter(make: Callable[..., Any], arguments: dict[str, Any], stack: AsyncExitStack) -> Any:
    if inspect.isasyncgenfunction(make):
        return await stack.enter_async_context(asynccontextmanager(make)(**arguments))
    if inspect.isgeneratorfunction(make):
        return stack.enter_context(contextmanager(make)(**arguments))
    value = make(**arguments)
    if inspect.isawaitable(value):
        value = await value
    if hasattr(value, "__aenter__") and isinstance(getattr(make, "__wrapped__", None), Callable):  # type: ignore[arg-type]
        return await stack.enter_async_context(value)  # make is an @asynccontextmanager
    return value
