"""Many patterns held against an event at once, at a cost that doesn't grow with those that can't match.

Each combination of a pattern is filed under one field that it requires, the one that fewest others share, by the values
that could satisfy it. An event then brings up few candidates, and each of those is held against the event in full.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

from eventrouter.patterns.matching import Names, Pattern, Slotted, collect, fits
from eventrouter.patterns.values import Cidr, Exact, IgnoreCase, Leaf, Numeric, Prefix, Suffix, Test, Wildcard, address, key

T = TypeVar("T")
Handle = tuple[str, object]  # which table of a field, and the key in it
_ANY: Handle = ("any", None)


def _handles(leaf: Leaf) -> tuple[Handle, ...]:
    """Where to file what requires this leaf: a value that matches is found at one of these places."""
    found = tuple(handle for test in leaf.tests for handle in _of(test))
    return (_ANY,) if _ANY in found else found


def _of(test: Test) -> Iterator[Handle]:
    if isinstance(test, Exact):
        for value in test.keys:
            yield "exact", value
        for spelt in test.addresses:
            yield "address", spelt
    elif isinstance(test, Numeric) and test.low == test.high:
        yield "exact", test.low
    elif isinstance(test, IgnoreCase) and test.whole and test.text.isascii():
        yield "folded", test.text.lower()
    elif isinstance(test, Cidr):
        spare = (test.high - test.low).bit_length()
        yield "network", (test.version, spare, test.low >> spare)
    elif isinstance(test, Prefix) and test.text:
        yield "prefix", test.text
    elif isinstance(test, Suffix) and test.text:
        yield "suffix", test.text
    elif isinstance(test, Wildcard):
        first, last = test.parts[0], test.parts[-1]
        if len(test.parts) == 1:
            yield "exact", first
        elif first or last:
            yield ("prefix", first) if len(first) >= len(last) else ("suffix", last)
        else:
            yield _ANY
    else:
        yield _ANY


class _Field:
    """Where rules are filed under the values of one field: a table of numbers of rules for each kind of key."""

    __slots__ = ("any", "networks", "prefixes", "suffixes", "tables")

    def __init__(self) -> None:
        self.any: list[int] = []
        self.tables: dict[str, dict[object, list[int]]] = {}
        self.prefixes: set[int] = set()  # the lengths that there are
        self.suffixes: set[int] = set()
        self.networks: set[tuple[int, int]] = set()  # the versions and sizes that there are

    def file(self, handle: Handle, rule: int) -> None:
        kind, value = handle
        if handle == _ANY:
            self.any.append(rule)
            return
        self.tables.setdefault(kind, {}).setdefault(value, []).append(rule)
        if kind == "prefix":
            self.prefixes.add(len(str(value)))
        elif kind == "suffix":
            self.suffixes.add(len(str(value)))
        elif kind == "network":
            assert isinstance(value, tuple)
            self.networks.add(value[:2])

    def gather(self, value: Any, found: set[int]) -> None:
        """Add the rules that this value may satisfy."""
        found.update(self.any)
        tables = self.tables
        if "exact" in tables:
            found.update(tables["exact"].get(key(value), ()))
        if not isinstance(value, str) or len(tables) == ("exact" in tables):
            return
        if "folded" in tables:
            found.update(tables["folded"].get(value.lower(), ()))
        for length in self.prefixes:
            found.update(tables["prefix"].get(value[:length], ()))
        for length in self.suffixes:
            found.update(tables["suffix"].get(value[-length:], ()))
        if ("address" in tables or self.networks) and (spelt := address(value)) is not None:
            found.update(tables.get("address", {}).get(spelt, ()))
            for version, spare in self.networks:
                if version == spelt[0]:
                    found.update(tables["network"].get((version, spare, spelt[1] >> spare), ()))


class Rules(Generic[T]):
    """`add(pattern, value)` many times, then `find(event)`: the values of all patterns that match it, in the order of adding.

    in_texts: as for `Pattern.matches`.
    """

    __slots__ = ("_always", "_fields", "_in_texts", "_names", "_patterns", "_slotted", "_stale", "_values")

    def __init__(self, *, in_texts: bool = False) -> None:
        self._in_texts = in_texts
        self._patterns: list[Pattern] = []
        self._values: list[T] = []
        self._stale = False
        self._always: list[int] = []  # what requires no field at all
        self._fields: dict[int, _Field] = {}
        self._names = Names()  # of all patterns, so that an event is gone through once
        self._slotted: list[list[Slotted]] = []

    def __len__(self) -> int:
        return len(self._patterns)

    def add(self, pattern: Pattern, value: T) -> None:
        self._patterns.append(pattern)
        self._values.append(value)
        self._stale = True

    def find(self, event: Mapping[str, Any]) -> list[T]:
        """The values of the patterns that match an event, a JSON object as decoded."""
        if self._stale:
            self._file()
        candidates = set(self._always)
        found = collect(event, self._names, self._in_texts)
        fields = self._fields
        for slot, values in found.items():
            if slot in fields:
                for value, _ in values:
                    fields[slot].gather(value, candidates)
        if not candidates:
            return []
        slotted = self._slotted
        return [self._values[number] for number in sorted(candidates) if any(fits(each, found) for each in slotted[number])]

    def _file(self) -> None:
        """File all rules anew: which field tells most depends on all of them."""
        required = [
            (number, [(name, _handles(leaf)) for name, leaf in fields.items() if not leaf.absent])
            for number, pattern in enumerate(self._patterns)
            for fields in pattern.combinations
        ]
        shared = Counter((name, handle) for _, leaves in required for name, handles in leaves for handle in handles)
        self._always, self._fields, self._names = [], {}, Names()
        for number, leaves in required:
            if not leaves:
                self._always.append(number)
                continue
            name, handles = min(leaves, key=lambda leaf: (sum(shared[leaf[0], handle] for handle in leaf[1]), _ANY in leaf[1]))
            field = self._fields.setdefault(self._names.slot_of(name), _Field())
            for handle in handles:
                field.file(handle, number)
        # What many ask for alike, such as a source, is one object: what is looked at with every event stays in the processor's caches.
        alike: dict[object, Leaf] = {}
        steps: dict[tuple[int, int], tuple[int, Leaf]] = {}
        self._slotted = []
        for pattern in self._patterns:
            rows: list[Slotted] = []
            for fields in pattern.combinations:
                row = [(self._names.slot_of(name), alike.setdefault(_same(leaf), leaf)) for name, leaf in fields.items()]
                rows.append([steps.setdefault((slot, id(leaf)), (slot, leaf)) for slot, leaf in row])
            self._slotted.append(rows)
        self._stale = False


def _same(leaf: Leaf) -> object:
    """Equal for leaves that are known to ask for the same."""
    (test,) = leaf.tests if len(leaf.tests) == 1 else (None,)
    return (test.keys, leaf.absent) if isinstance(test, Exact) else leaf
