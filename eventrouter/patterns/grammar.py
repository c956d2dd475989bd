"""The grammar of EventBridge patterns: from JSON to what each field must be."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

from eventrouter.errors import EventRouterError, suggest
from eventrouter.patterns.values import (
    AnythingBut,
    Cidr,
    Exact,
    Exists,
    IgnoreCase,
    Leaf,
    Numeric,
    Prefix,
    Suffix,
    Test,
    Wildcard,
    address,
    comparable,
)

COMBINATIONS: Final = 1000  # of "$or" branches, as many as EventBridge takes
OR: Final = "$or"
# "$or" with one of these inside is a field of that name, as it was before there was an "$or".
RESERVED: Final = frozenset((
    "exactly", "equals-ignore-case", "prefix", "suffix", "anything-but", "exists", "wildcard", "numeric", "cidr",
    "=", "<", "<=", ">", ">=", "regex", "not-wildcard", "not-equals-ignore-case",
    "date-after", "date-on-or-after", "date-before", "date-on-or-before", "in-date-range",
    "ip-address-in-range", "ip-address-not-in-range",
))  # fmt: skip
_NO_JOIN: Final = '"$or" joins two or more objects, none of whose fields is named like an operator, or else it is a field itself'

Fields = dict[str, Leaf]


class PatternError(EventRouterError, ValueError):
    """A pattern that can't be understood. path: where the fault is (`$.detail.state[0].prefix`); why: what it is."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path = path
        self.why = why


class _Object(list[tuple[str, Any]]):
    """A JSON object as its pairs: a text may have a key twice, and then the later value adds to or replaces the earlier."""


def read(pattern: Mapping[str, Any] | str) -> _Object:
    """A pattern as JSON text or decoded, its objects as pairs. Raises PatternError."""
    if isinstance(pattern, str):
        try:
            read = json.loads(pattern, object_pairs_hook=_Object, parse_float=Decimal, parse_constant=_no_constant)
        except json.JSONDecodeError as error:
            raise PatternError("$", f"is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
        except (ValueError, ArithmeticError) as error:
            raise PatternError("$", f"is not JSON: {error}") from None
    else:
        read = _pairs(pattern, "$")
    if not isinstance(read, _Object):
        raise PatternError("$", f"must be an object of fields, not {_kind(read)}")
    return read


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _pairs(value: Any, path: str) -> Any:
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise PatternError(path, f"field names must be strings, not {name!r}")
        return _Object((name, _pairs(inner, f"{path}.{name}")) for name, inner in value.items())
    if isinstance(value, list | tuple):
        return [_pairs(inner, f"{path}[{place}]") for place, inner in enumerate(value)]
    if value is None or isinstance(value, str | int | float | Decimal):
        return value
    raise PatternError(path, f"must be JSON, not {type(value).__name__}")


def parse(pattern: _Object) -> list[Fields]:
    """The combinations of fields, one of which must match. Raises PatternError."""
    return _Parser(joins=_all_join(pattern)).fields(pattern, "$", "", [{}])


def _all_join(value: _Object) -> bool:
    """Whether each "$or" in a pattern joins branches; if one can't, all are fields, so that no pattern means both."""
    return all(_joins(inner) if name == OR else not isinstance(inner, _Object) or _all_join(inner) for name, inner in value)


def _joins(branches: Any) -> bool:
    return (
        isinstance(branches, list)
        and not isinstance(branches, _Object)
        and len(branches) > 1
        and all(isinstance(branch, _Object) and _all_join(branch) and not _reserved(branch) for branch in branches)
    )


def _reserved(branch: _Object) -> bool:
    return any(name in RESERVED or (isinstance(inner, _Object) and _reserved(inner)) for name, inner in branch)


class _Parser:
    def __init__(self, joins: bool) -> None:
        self.joins = joins

    def fields(self, pattern: _Object, path: str, prefix: str, combinations: list[Fields]) -> list[Fields]:
        """Each of `combinations` with what `pattern` asks for besides. prefix: of the fields' names, with its dot."""
        if not pattern:
            raise PatternError(path, "an empty object matches nothing; name a field, or leave it out")
        for name, value in pattern:
            place = f"{path}.{name}"
            if self.joins and name == OR:
                joined: list[Fields] = []
                for at, branch in enumerate(value):
                    joined += self.fields(branch, f"{place}[{at}]", prefix, combinations)
                    if len(joined) > COMBINATIONS:
                        raise PatternError(place, f"more than {COMBINATIONS} combinations of branches")
                combinations = joined
            elif isinstance(value, _Object):
                combinations = self.fields(value, place, f"{prefix}{name}.", combinations)
            elif isinstance(value, list):
                leaf = self.leaf(value, place, name)
                combinations = [{**fields, prefix + name: leaf} for fields in combinations]
            else:
                raise PatternError(place, f"must be an array of values or an object of fields; write [{json.dumps(value, default=str)}]")
        return combinations

    def leaf(self, alternatives: Sequence[Any], path: str, name: str) -> Leaf:
        if not alternatives:
            raise PatternError(path, "an empty array matches nothing; give a value, or leave the field out")
        exact: list[Any] = []
        tests: list[Test] = []
        absent = False
        for at, alternative in enumerate(alternatives):
            place = f"{path}[{at}]"
            if isinstance(alternative, _Object):
                try:
                    test = match(alternative, place)
                except PatternError as error:
                    if name != OR or self.joins:
                        raise
                    raise PatternError(error.path, f"{error.why}; {_NO_JOIN}") from None
                if test is None:
                    absent = True
                else:
                    tests.append(test)
            elif isinstance(alternative, list):
                raise PatternError(place, "must be a string, number, true, false, null or an operator, not an array")
            else:
                exact.append(alternative)
        if exact:
            tests.insert(0, Exact(exact))
        return Leaf(tests, absent)


def match(expression: _Object, path: str) -> Test | None:
    """`{"prefix": "a"}` as a test; None is `{"exists": false}`. Raises PatternError."""
    name, value, place = _only(expression, path)
    make = _OPERATORS.get(name)
    if make is None:
        raise PatternError(path, f"unknown operator {name!r}{suggest(name, _OPERATORS)}")
    return make(value, place)


def _only(expression: _Object, path: str) -> tuple[str, Any, str]:
    if len(expression) != 1:
        raise PatternError(path, f"must have one key, an operator, not {len(expression)}")
    name, value = expression[0]
    return name, value, f"{path}.{name}"


def _text(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise PatternError(path, f"must be a string, not {_kind(value)}")
    return value


def _ends(plain: Callable[[str], Test], at_start: bool, at_end: bool) -> Callable[[Any, str], Test]:
    def make(value: Any, path: str) -> Test:
        if not isinstance(value, _Object):
            return plain(_text(value, path))
        name, text, place = _only(value, path)
        if name != "equals-ignore-case":
            raise PatternError(path, f"takes a string or equals-ignore-case, not {name!r}")
        return IgnoreCase(_text(text, place), at_start, at_end)

    return make


def _exists(value: Any, path: str) -> Test | None:
    if not isinstance(value, bool):
        raise PatternError(path, f"must be true or false, not {_kind(value)}")
    return Exists() if value else None


def _wildcard(value: Any, path: str) -> Test:
    text = _text(value, path)
    parts = [""]
    at = 0
    while at < len(text):
        letter = text[at]
        if letter == "*":
            if text[at + 1 : at + 2] == "*":
                raise PatternError(path, f"two wildcards in a row at character {at}")
            parts.append("")
        elif letter == "\\":
            at += 1
            if text[at : at + 1] not in ("*", "\\"):
                raise PatternError(path, f"a backslash at character {at - 1} that escapes neither * nor \\")
            parts[-1] += text[at]
        else:
            parts[-1] += letter
        at += 1
    return Wildcard(parts)


def _cidr(value: Any, path: str) -> Test:
    base, slash, bits = _text(value, path).partition("/")
    found = address(base)
    if found is None or not slash:
        raise PatternError(path, f"must be an IP address, a slash and the bits of the mask, such as 10.0.0.0/24, not {value!r}")
    version, number = found
    width = 32 if version == 4 else 128
    if not (bits.isascii() and bits.isdigit() and int(bits[:5]) <= width):
        raise PatternError(path, f"the mask of {value!r} must be 0 to {width} bits")
    rest = (1 << (width - int(bits))) - 1
    return Cidr(version, number & ~rest, number | rest)


def _number(value: Any, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise PatternError(path, f"must be a number, not {_kind(value)}")
    number = comparable(value)
    if number is None:
        raise PatternError(path, f"{value} can't be compared: it has more digits than a double-precision number keeps")
    return number


def _numeric(value: Any, path: str) -> Test:
    if not isinstance(value, list) or isinstance(value, _Object) or not value:
        raise PatternError(path, 'must be an array such as [">=", 0, "<", 10]')
    operator = value[0]
    if operator not in ("=", "<", "<=", ">", ">="):
        raise PatternError(f"{path}[0]", f"must be =, <, <=, > or >=, not {_kind(operator)}")
    if len(value) < 2:
        raise PatternError(path, f"{operator} needs a number after it")
    first = _number(value[1], f"{path}[1]")
    if len(value) == 2:
        if operator == "=":
            return Numeric(first, True, first, True)
        if operator in ("<", "<="):
            return Numeric(None, False, first, operator == "<=")
        return Numeric(first, operator == ">=", None, False)
    if operator not in (">", ">=") or value[2] not in ("<", "<="):
        raise PatternError(f"{path}[2]", "a range is > or >= with its number, then < or <= with its number")
    if len(value) != 4:
        raise PatternError(path, f"a range has two operators with a number each, not {len(value)} elements")
    second = _number(value[3], f"{path}[3]")
    if not first < second:
        raise PatternError(path, f"the range is empty: {value[1]} is not below {value[3]}")
    return Numeric(first, operator == ">=", second, value[2] == "<=")


def _anything_but(value: Any, path: str) -> Test:
    if isinstance(value, _Object):
        name, inner, place = _only(value, path)
        make = _BUT.get(name)
        if make is None:
            raise PatternError(path, f"anything-but takes no {name!r}{suggest(name, _BUT)}")
        tests = []
        for text, at in _each(inner, place):
            if not _text(text, at) and name in ("prefix", "suffix"):
                raise PatternError(at, f"an empty {name} leaves nothing to match")
            tests.append(make(text, at))
        return AnythingBut(tests)
    values = list(_each(value, path))
    for each, at in values:
        if isinstance(each, bool) or not isinstance(each, str | int | float | Decimal):
            raise PatternError(at, f"must be a string or a number, not {_kind(each)}")
        if isinstance(each, str) != isinstance(values[0][0], str):
            raise PatternError(path, "strings and numbers can't be mixed")
        if not isinstance(each, str):
            _number(each, at)
    test = Exact(each for each, _ in values)
    test.addresses = frozenset()  # here a text is a text
    return AnythingBut([test])


def _each(value: Any, path: str) -> Iterator[tuple[Any, str]]:
    """A value, or each of a list, with its place."""
    if not isinstance(value, list) or isinstance(value, _Object):
        yield value, path
        return
    if not value:
        raise PatternError(path, "an empty array excludes nothing; give a value")
    for at, each in enumerate(value):
        yield each, f"{path}[{at}]"


def _ignore_case(value: Any, path: str) -> Test:
    return IgnoreCase(_text(value, path))


_BUT: Final[Mapping[str, Callable[[Any, str], Test]]] = {
    "prefix": lambda value, path: Prefix(value),
    "suffix": lambda value, path: Suffix(value),
    "equals-ignore-case": _ignore_case,
    "wildcard": _wildcard,
}
_OPERATORS: Final[Mapping[str, Callable[[Any, str], Test | None]]] = {
    "exactly": lambda value, path: Exact([_text(value, path)]),
    "prefix": _ends(Prefix, True, False),
    "suffix": _ends(Suffix, False, True),
    "equals-ignore-case": _ignore_case,
    "wildcard": _wildcard,
    "anything-but": _anything_but,
    "numeric": _numeric,
    "cidr": _cidr,
    "exists": _exists,
}


def _kind(value: Any) -> str:
    if isinstance(value, _Object):
        return "an object"
    if isinstance(value, list):
        return "an array"
    return json.dumps(value, default=str, ensure_ascii=False)
