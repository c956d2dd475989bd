"""What a statement asks of a request's context: `{"StringLike": {"s3:prefix": "home/*"}}`."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, NamedTuple, Protocol

from eventrouter.errors import suggest
from eventrouter.permissions.texts import Arn, PolicyError, Request, Text, parse, read_values, shown

Condition = Callable[[Request], bool]


class Value(Protocol):
    """One of a policy's values."""

    def matches(self, value: str, request: Request) -> bool: ...

    def resolves(self, request: Request) -> bool: ...


class _Fixed:
    """A value that asks nothing of the request."""

    def __init__(self, test: Callable[[str], bool]) -> None:
        self._test = test

    def matches(self, value: str, request: Request) -> bool:
        return self._test(value)

    def resolves(self, request: Request) -> bool:
        return True


Read = Callable[[str, str, bool], Value]  # a policy's text, where it stands, whether it may have variables


def _string(text: str, path: str, variables: bool) -> Value:
    return Text(parse(text, path, variables=variables, wild=False))


def _string_ignoring_case(text: str, path: str, variables: bool) -> Value:
    return Text(parse(text, path, variables=variables, wild=False), fold=True)


def _like(text: str, path: str, variables: bool) -> Value:
    return Text(parse(text, path, variables=variables, wild=True))


def _arn(text: str, path: str, variables: bool) -> Value:
    return Arn(parse(text, path, variables=variables, wild=True), path)


def _bool(text: str, path: str, variables: bool) -> Value:
    if not (variables and "${" in text) and text.lower() not in ("true", "false"):
        raise PolicyError(path, f'{text!r} is neither "true" nor "false"')
    return Text(parse(text, path, variables=variables, wild=False), fold=True)


def _binary(text: str, path: str, variables: bool) -> Value:
    wanted = _bytes(text)
    if wanted is None:
        raise PolicyError(path, f"{text!r} is not base64")
    return _Fixed(lambda value: _bytes(value) == wanted)


def _bytes(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


_NUMBER = re.compile(r"[+-]?(?:\d{1,40}(?:\.\d{0,40})?|\.\d{1,40})(?:[eE][+-]?\d{1,3})?", re.ASCII)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}([T ].+)?", re.ASCII)


def _number_of(text: str) -> Decimal | None:
    return Decimal(text) if _NUMBER.fullmatch(text) else None


def _time_of(text: str) -> float | None:
    """Seconds since 1970, of ISO 8601 or of just those."""
    if _NUMBER.fullmatch(text):
        return float(text)
    if not _DATE.fullmatch(text):
        return None
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def _compared(of: Callable[[str], Any], compare: Callable[[Any, Any], bool], kind: str) -> Read:
    def read(text: str, path: str, variables: bool) -> Value:
        wanted = of(text)
        if wanted is None:
            raise PolicyError(path, f"{text!r} is no {kind}")

        def test(value: str) -> bool:
            found = of(value)
            return found is not None and compare(found, wanted)

        return _Fixed(test)

    return read


def _address(text: str, path: str, variables: bool) -> Value:
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise PolicyError(path, f"{text!r} is no IP address or range; write 203.0.113.0/24 or 2001:db8::/32") from None

    def test(value: str) -> bool:
        try:
            return ipaddress.ip_address(value) in network
        except ValueError:
            return False

    return _Fixed(test)


class _Operator(NamedTuple):
    read: Read
    negated: bool = False


_ORDERED: Final = {
    "Equals": operator.eq,
    "LessThan": operator.lt,
    "LessThanEquals": operator.le,
    "GreaterThan": operator.gt,
    "GreaterThanEquals": operator.ge,
}
OPERATORS: Final[dict[str, _Operator]] = {
    "StringEquals": _Operator(_string),
    "StringNotEquals": _Operator(_string, negated=True),
    "StringEqualsIgnoreCase": _Operator(_string_ignoring_case),
    "StringNotEqualsIgnoreCase": _Operator(_string_ignoring_case, negated=True),
    "StringLike": _Operator(_like),
    "StringNotLike": _Operator(_like, negated=True),
    **{f"Numeric{name}": _Operator(_compared(_number_of, compare, "number")) for name, compare in _ORDERED.items()},
    "NumericNotEquals": _Operator(_compared(_number_of, operator.eq, "number"), negated=True),
    **{f"Date{name}": _Operator(_compared(_time_of, compare, "date of ISO 8601")) for name, compare in _ORDERED.items()},
    "DateNotEquals": _Operator(_compared(_time_of, operator.eq, "date of ISO 8601"), negated=True),
    "Bool": _Operator(_bool),
    "BinaryEquals": _Operator(_binary),
    "IpAddress": _Operator(_address),
    "NotIpAddress": _Operator(_address, negated=True),
    "ArnEquals": _Operator(_arn),
    "ArnLike": _Operator(_arn),
    "ArnNotEquals": _Operator(_arn, negated=True),
    "ArnNotLike": _Operator(_arn, negated=True),
}
_SETS: Final = ("ForAnyValue", "ForAllValues")


def read_conditions(block: Any, path: str, *, variables: bool, allows: bool) -> list[Condition]:
    """All that must hold. allows: of a statement that does: it does not where a variable has no value. Raises PolicyError."""
    if not isinstance(block, Mapping):
        raise PolicyError(path, f'must be an object such as {{"StringEquals": {{"aws:SourceAccount": "..."}}}}, not {shown(block)}')
    found: list[Condition] = []
    for name, keys in block.items():
        place = f"{path}.{name}"
        if not isinstance(keys, Mapping) or not keys:
            raise PolicyError(place, f"must be an object of condition keys and their values, not {shown(keys)}")
        for key, given in keys.items():
            if not isinstance(key, str) or not re.fullmatch(r"[^:\s]+:\S(.*\S)?", key):
                raise PolicyError(f"{place}.{key}", 'condition keys must be prefaced by a vendor, as in "aws:SourceArn"')
            values = read_values(given, f"{place}.{key}")
            found.append(_condition(str(name), key.lower(), values, place, variables=variables, allows=allows))
    return found


def _condition(name: str, key: str, given: Sequence[tuple[str, str]], path: str, *, variables: bool, allows: bool) -> Condition:
    if name == "Null":
        return _null(key, given)
    of_set, colon, base = name.rpartition(":")
    if_exists = base.endswith("IfExists")
    found = OPERATORS.get(base.removesuffix("IfExists"))
    if found is None or (colon and of_set not in _SETS):
        raise PolicyError(path, f"invalid condition type{suggest(name, [*OPERATORS, 'Null'])}")
    values = [found.read(text, place, variables) for text, place in given]
    negated = found.negated

    def fits(value: str, request: Request) -> bool:
        return any(one.matches(value, request) for one in values) is not negated

    def holds(request: Request) -> bool:
        there = request.values(key)
        if not there:
            return if_exists or (negated if not of_set else of_set == "ForAllValues")
        if negated and allows and not all(one.resolves(request) for one in values):
            return False
        if of_set == "ForAllValues" or (negated and not of_set):
            return all(fits(value, request) for value in there)
        return any(fits(value, request) for value in there)

    return holds


def _null(key: str, given: Sequence[tuple[str, str]]) -> Condition:
    wanted = set()
    for text, place in given:
        if text.lower() not in ("true", "false"):
            raise PolicyError(place, f'{text!r} is neither "true" (the key is not there) nor "false"')
        wanted.add(text.lower() == "true")
    return lambda request: (not request.values(key)) in wanted
