"""The tests that a pattern makes of one value of an event: all that stands in the brackets of `"state": [...]`."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Iterable
from decimal import Decimal
from typing import Any, Protocol

Number = int | float | Decimal
Address = tuple[int, int]  # version, number
_EXACT = 2**53  # whole numbers up to here are doubles without loss
_V4 = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+")
_V6 = re.compile(r"[0-9a-fA-F:]*:[0-9a-fA-F:]*")


def comparable(number: Number) -> float | None:
    """The number as the double that numbers are compared by; None where its digits don't fit into one."""
    if isinstance(number, float):
        return number if math.isfinite(number) else None
    if isinstance(number, int) and -_EXACT <= number <= _EXACT:
        return float(number)
    try:
        double = float(number)
    except OverflowError:
        return None
    # The shortest spelling of the double must be the number: two long numbers that share a double aren't equal.
    return double if math.isfinite(double) and Decimal(repr(double)) == number else None


def key(value: object) -> object:
    """What a value is looked up by. Python's own equality won't do: there True is 1, and long numbers share a double."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bool):
        return (value, "literal")
    if isinstance(value, int | float | Decimal):
        double = comparable(value)
        if double is not None:
            return double
        return (value,) if isinstance(value, int) else float(value)
    return ()


def address(text: str) -> Address | None:
    """The IP address that a text spells, as (version, number); an IPv4 address inside IPv6 is the IPv4 address."""
    if _V4.fullmatch(text):
        octets = [int(octet) for octet in text.split(".") if len(octet) < 20]
        if len(octets) != 4 or max(octets) > 255:
            return None
        return 4, int.from_bytes(bytes(octets), "big")
    if not _V6.fullmatch(text):
        return None
    try:
        found = ipaddress.IPv6Address(text)
    except ValueError:
        return None
    mapped = found.ipv4_mapped
    return (6, int(found)) if mapped is None else (4, int(mapped))


class Test(Protocol):
    """One alternative in the brackets."""

    def matches(self, value: Any) -> bool: ...


class Exact:
    """One of some values. A text that spells an IP address stands for the address, however it is spelt."""

    __slots__ = ("addresses", "keys")

    def __init__(self, values: Iterable[object]) -> None:
        values = list(values)
        self.keys = frozenset(key(value) for value in values)
        spelt = (address(value) for value in values if isinstance(value, str))
        self.addresses = frozenset(found for found in spelt if found is not None)

    def matches(self, value: Any) -> bool:
        if (value if type(value) is str else key(value)) in self.keys:
            return True
        return bool(self.addresses) and isinstance(value, str) and address(value) in self.addresses


class Prefix:
    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def matches(self, value: Any) -> bool:
        return isinstance(value, str) and value.startswith(self.text)


class Suffix:
    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def matches(self, value: Any) -> bool:
        return isinstance(value, str) and value.endswith(self.text)


class IgnoreCase:
    """Each character in upper or lower case, as event-ruler compares: one by one, so that "SS" is no "ß".

    at_start, at_end: whether the text must begin and end the value.
    """

    __slots__ = ("_search", "text", "whole")

    def __init__(self, text: str, at_start: bool = True, at_end: bool = True) -> None:
        self.text = text
        self.whole = at_start and at_end
        start, end = r"\A" if at_start else "", r"\Z" if at_end else ""
        either = "".join(f"(?:{re.escape(letter.lower())}|{re.escape(letter.upper())})" for letter in text)
        self._search = re.compile(start + either + end).search

    def matches(self, value: Any) -> bool:
        return isinstance(value, str) and self._search(value) is not None


class Wildcard:
    """parts: the texts around each `*`."""

    __slots__ = ("_ends", "parts")

    def __init__(self, parts: Iterable[str]) -> None:
        self.parts = tuple(parts)
        self._ends = len(self.parts[0]) + len(self.parts[-1])

    def matches(self, value: Any) -> bool:
        if not isinstance(value, str):
            return False
        first, *middle = self.parts
        if not middle:
            return value == first
        last = middle.pop()
        if len(value) < self._ends or not (value.startswith(first) and value.endswith(last)):
            return False
        at, end = len(first), len(value) - len(last)
        for part in middle:
            found = value.find(part, at, end)
            if found < 0:
                return False
            at = found + len(part)
        return True


class Numeric:
    """A range of numbers; None: no limit on that side."""

    __slots__ = ("high", "low", "with_high", "with_low")

    def __init__(self, low: float | None, with_low: bool, high: float | None, with_high: bool) -> None:
        self.low = low
        self.with_low = with_low
        self.high = high
        self.with_high = with_high

    def matches(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
            return False
        number = comparable(value)
        if number is None:
            return False
        if self.low is not None and not (number >= self.low if self.with_low else number > self.low):
            return False
        return self.high is None or (number <= self.high if self.with_high else number < self.high)


class Cidr:
    """The addresses of `version` from `low` to `high`."""

    __slots__ = ("high", "low", "version")

    def __init__(self, version: int, low: int, high: int) -> None:
        self.version = version
        self.low = low
        self.high = high

    def matches(self, value: Any) -> bool:
        found = address(value) if isinstance(value, str) else None
        return found is not None and found[0] == self.version and self.low <= found[1] <= self.high


class Exists:
    """Any value at all; that there is none is the leaf's affair."""

    __slots__ = ()

    def matches(self, value: Any) -> bool:
        return True


class AnythingBut:
    """A value that none of the tests matches, of whatever type."""

    __slots__ = ("tests",)

    def __init__(self, tests: Iterable[Test]) -> None:
        self.tests = tuple(tests)

    def matches(self, value: Any) -> bool:
        return not any(test.matches(value) for test in self.tests)


class Leaf:
    """What one field must be: one of `tests`, or, where `absent`, not there."""

    __slots__ = ("absent", "matches", "tests")

    def __init__(self, tests: Iterable[Test], absent: bool) -> None:
        self.tests = tuple(tests)
        self.absent = absent
        # One alternative is by far the most common: no loop for it.
        self.matches = self.tests[0].matches if len(self.tests) == 1 else self._any

    def _any(self, value: Any) -> bool:
        return any(test.matches(value) for test in self.tests)
