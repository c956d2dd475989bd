"""The texts of policies: `*` and `?` stand for any characters, `${...}` for what the request says."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from eventrouter.errors import EventRouterError


class PolicyError(EventRouterError, ValueError):
    """A policy that IAM would refuse. path: where the fault is (`Statement[0].Action`); why: what it is."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path}: {why}" if path else why)
        self.path = path
        self.why = why


class Request:
    """What somebody wants to do. action: in small letters."""

    __slots__ = ("_context", "action", "resource")

    def __init__(self, action: str, resource: str, context: Mapping[str, Any]) -> None:
        self.action = action.lower()
        self.resource = resource
        self._context = {key.lower(): value for key, value in context.items()}

    def values(self, key: str) -> Sequence[str]:
        """Those of a key in small letters, as texts; none: it is not there."""
        value = self._context.get(key)
        return () if value is None else _texts(value)

    def one(self, key: str) -> str | None:
        """The value of a key that has one; None where there is none, or are several."""
        values = self.values(key)
        return values[0] if len(values) == 1 else None


def _texts(value: Any) -> Sequence[str]:
    if isinstance(value, list | tuple | set | frozenset):
        return [_text(one) for one in value if one is not None]
    return (_text(value),)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return value.isoformat()
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


class Variable(NamedTuple):
    """`${aws:PrincipalTag/team, 'none'}`."""

    key: str
    default: str | None

    def value(self, request: Request) -> str | None:
        found = request.one(self.key)
        return self.default if found is None else found


ANY: Final = object()  # `*`
ONE: Final = object()  # `?`
Part = str | Variable | object
Match = Callable[[str], object]

_SPECIAL = re.compile(r"\$\{([^{}]*)\}|[*?]|\$\{")
_VARIABLE = re.compile(r"\s*([A-Za-z0-9_-]+:[^\s,']+)\s*(?:,\s*'([^']*)'\s*)?")


def parse(text: str, path: str, *, variables: bool, wild: bool) -> list[Part]:
    """Raises PolicyError that names `path`. variables, wild: whether there are any; else those characters are themselves."""
    parts: list[Part] = []
    at = 0
    for found in _SPECIAL.finditer(text):
        if found[0] in ("*", "?"):
            if not wild:
                continue
            part: Part = ANY if found[0] == "*" else ONE
        elif not variables:
            continue
        else:
            part = _variable(found, text, path)
        parts += (text[at : found.start()], part)
        at = found.end()
    parts.append(text[at:])
    return [part for part in parts if part != ""]


def _variable(found: re.Match[str], text: str, path: str) -> Part:
    inside = found[1]
    if inside is None:
        raise PolicyError(path, f"{text!r}: a variable has no end; write '${{aws:username}}', or '${{$}}' for the character itself")
    if inside in ("*", "?", "$"):
        return inside
    match = _VARIABLE.fullmatch(inside)
    if match is None:
        raise PolicyError(path, f"{text!r}: {found[0]!r} is no policy variable; write '${{aws:username}}', or with a default in quotes")
    return Variable(match[1].lower(), match[2])


class Text:
    """A text to be matched as a whole. fold: in whatever letters."""

    __slots__ = ("_fold", "_match", "_parts")

    def __init__(self, parts: Sequence[Part], *, fold: bool = False) -> None:
        self._parts = parts
        self._fold = fold
        self._match = None if any(isinstance(part, Variable) for part in parts) else matcher(self._folded(parts))

    @property
    def fixed(self) -> bool:
        """It asks nothing of the request's context."""
        return self._match is not None

    def resolves(self, request: Request) -> bool:
        """All its variables have a value."""
        return self._match is not None or all(part.value(request) is not None for part in self._parts if isinstance(part, Variable))

    def matches(self, value: str, request: Request) -> bool:
        """Not where a variable has no value."""
        match = self._match
        if match is None:
            parts = resolved(self._parts, request)
            if parts is None:
                return False
            match = matcher(self._folded(parts))
        return match(value.lower() if self._fold else value) is not None

    def _folded(self, parts: Sequence[Part]) -> Sequence[Part]:
        return [part.lower() if isinstance(part, str) else part for part in parts] if self._fold else parts


def resolved(parts: Iterable[Part], request: Request) -> list[Part] | None:
    """With the variables' values, in which `*` and `?` are themselves; None: one has none."""
    found: list[Part] = []
    for part in parts:
        value = part.value(request) if isinstance(part, Variable) else part
        if value is None:
            return None
        found.append(value)
    return found


def matcher(parts: Sequence[Part]) -> Match:
    """None from it: no match. What a `*` takes is decided once and for all: no text can have it try for ever."""
    pieces = [""]
    for part in parts:
        if part is ANY:
            pieces.append("")
        else:
            pieces[-1] += "." if part is ONE else re.escape(str(part))
    first, *middle = pieces
    if middle:
        last = middle.pop()
        first += "".join(f"(?>.*?{piece})" for piece in middle if piece) + ".*" + last
    return re.compile(first, re.DOTALL).fullmatch


class Arn:
    """A pattern of ARNs: each of the six parts is matched by itself; a `*` at the end of fewer stands for the rest."""

    __slots__ = ("_parts", "_text")

    def __init__(self, parts: Sequence[Part], path: str) -> None:
        split: list[list[Part]] = [[]]
        for part in parts:
            if not isinstance(part, str):
                split[-1].append(part)
                continue
            piece, *more = part.split(":", 6 - len(split))
            split[-1] += [piece] if piece else []
            split += [[piece] if piece else [] for piece in more]
        if len(split) < 6 and not (split[-1] and split[-1][-1] is ANY):
            raise PolicyError(path, "must be an ARN, which has six parts: arn:aws:s3:::bucket; a '*' at the end stands for the rest")
        self._parts = [Text(piece) for piece in split]
        self._text = Text(parts)

    def resolves(self, request: Request) -> bool:
        return self._text.resolves(request)

    def matches(self, value: str, request: Request) -> bool:
        pieces = value.split(":", 5)
        if len(pieces) < 6 or pieces[0] != "arn":
            return False
        return all(part.matches(piece, request) for part, piece in zip(self._parts, pieces, strict=False))


def read_values(given: Any, path: str) -> list[tuple[str, str]]:
    """One value or a list of them, as texts, each with where it stands. Raises PolicyError."""
    many = isinstance(given, list | tuple)
    if many and not given:
        raise PolicyError(path, "has no value")
    found: list[tuple[str, str]] = []
    for place, value in enumerate(given if many else (given,)):
        here = f"{path}[{place}]" if many else path
        if isinstance(value, bool):
            found.append(("true" if value else "false", here))
        elif isinstance(value, str | int | float):
            found.append((str(value), here))
        else:
            raise PolicyError(here, f"must be a string, a number or a truth value, not {shown(value)}")
    return found


def shown(value: Any) -> str:
    return "null" if value is None else f"{type(value).__name__} {value!r}"[:60]
