"""What may be called of a client, and as what its arguments and results are read."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

import msgspec

Decode = Callable[[Any], Any]


class Methods:
    """The public methods of a client's class. made_of: its constructor's parameters, which are attributes of the same names."""

    def __init__(self, cls: type) -> None:
        parameters = inspect.signature(cls).parameters.values()
        self.made_of = tuple(p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
        public = {name: value for name, value in inspect.getmembers(cls, inspect.isfunction) if not name.startswith("_")}
        self.coroutines = [name for name, value in public.items() if inspect.iscoroutinefunction(value)]
        self.generators = [name for name, value in public.items() if inspect.isasyncgenfunction(value)]


def name_of(target: str) -> str:
    """`package.module:Class` -> `Class`."""
    return target.partition(":")[2] or target


def hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations, without those that can't be told."""
    try:
        return typing.get_type_hints(function)
    except NameError:  # of a name that is imported for type checkers alone
        return {}


def decoder(method: Callable[..., Any]) -> Decode:
    """Reads what the method returned from MessagePack."""
    annotation = hints(method).get("return", Any)
    if _is_data(annotation):
        return msgspec.msgpack.Decoder(annotation).decode
    read = reader(annotation)
    return lambda packed: read(msgspec.msgpack.decode(packed))


def reader(annotation: Any) -> Decode:
    """Makes of data what the annotation says, as far as it can be told; raises msgspec.ValidationError."""
    if annotation is Any:
        return _as_it_is
    if _is_data(annotation):
        return functools.partial(msgspec.convert, type=annotation)
    # msgspec knows no `str | bytes`, nor what has a part of such a type.
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is list:
        each = reader(parts[0])
        return lambda value: [each(item) for item in _is(list, value)]
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        fields = {name: reader(hint) for name, hint in hints(annotation).items()}
        of = {field.name: field.encode_name for field in msgspec.structs.fields(annotation)}
        return lambda value: annotation(**{name: fields[name](value[key]) for name, key in of.items() if key in _is(dict, value)})
    return _as_it_is


def _as_it_is(value: Any) -> Any:
    return value


def _is(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise msgspec.ValidationError(f"Expected `{kind.__name__}`, got `{type(value).__name__}`")
    return value


def _is_data(annotation: Any) -> bool:
    """Whether msgspec can make it of data."""
    try:
        return not isinstance(msgspec.inspect.type_info(annotation), msgspec.inspect.CustomType)
    except TypeError:
        return False


class Arguments:
    """Reads arguments as the parameters of a function say."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._signature = inspect.signature(function)
        told = hints(vars(function).get("__init__", function) if isinstance(function, type) else function)
        self._readers = {name: reader(hint) for name, hint in told.items() if name != "return"}

    def bind(self, what: str, *args: Any, **kwargs: Any) -> inspect.BoundArguments:
        """Raises TypeError for arguments that the function doesn't take, or that are of another type."""
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{what}: {error}") from None
        for name, value in bound.arguments.items():
            if (read := self._readers.get(name)) is not None:
                try:
                    bound.arguments[name] = self._read(name, value, read)
                except (msgspec.ValidationError, TypeError) as error:
                    raise TypeError(f"{what}: {name}: {error}") from None
        return bound

    def _read(self, name: str, value: Any, read: Decode) -> Any:
        kind = self._signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            return {key: read(each) for key, each in value.items()}
        if kind is inspect.Parameter.VAR_POSITIONAL:
            return tuple(map(read, value))
        return read(value)
