"""Whether an event fits what its fields must be, with fields of one array element together.

As in event-ruler: an event is its leaf values under dotted names, and each knows in which element of which array it
stands. Values that match a pattern together must not come from different elements of the same array.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from eventrouter.patterns.grammar import Fields
from eventrouter.patterns.values import Leaf

Chain = tuple[tuple[int, int], ...]  # (array, element) from the outermost array inwards; arrays are numbered within an event
Found = dict[int, list[tuple[Any, Chain]]]  # by slot; what has no value is not there
Slotted = Sequence[tuple[int, Leaf]]


class Names:
    """The fields to look at, as a tree over the dotted parts of their names."""

    __slots__ = ("_slots", "children", "slot")

    def __init__(self) -> None:
        self.children: dict[str, Names] = {}
        self.slot: int | None = None
        self._slots = 0

    def slot_of(self, name: str) -> int:
        """To be called on the root: the field's own number, a new one for a new field."""
        node = self
        for part in name.split("."):
            node = node.children.setdefault(part, Names())
        if node.slot is None:
            node.slot = self._slots
            self._slots += 1
        return node.slot

    def below(self, key: str) -> Names | None:
        """Where a key of an event leads; `"a.b"` is the same as `"b"` inside `"a"`."""
        node: Names | None = self
        for part in key.split("."):
            if node is None:
                return None
            node = node.children.get(part)
        return node


def collect(event: Mapping[str, Any], names: Names, in_texts: bool = False) -> Found:
    """The values of each slot with the array elements that they stand in. in_texts: look into texts that are JSON objects."""
    # No recursion: how deep an event is nested is decided outside.
    found: Found = {}
    arrays = 0
    todo: list[tuple[Any, Names, Chain]] = [(event, names, ())]
    while todo:
        value, node, chain = todo.pop()
        if isinstance(value, dict):
            children = node.children
            for key in value:
                below = children.get(key)
                if below is None and ("." not in key or (below := node.below(key)) is None):
                    continue
                inner = value[key]
                if isinstance(inner, dict | list):
                    todo.append((inner, below, chain))
                    continue
                if below.slot is not None:
                    found.setdefault(below.slot, []).append((inner, chain))
                if in_texts and below.children and isinstance(inner, str) and inner.lstrip()[:1] == "{":
                    with suppress(msgspec.DecodeError, RecursionError):
                        todo.append((msgspec.json.decode(inner), below, chain))
        elif isinstance(value, list):
            array = arrays
            arrays += 1
            for element, inner in enumerate(value):
                if isinstance(inner, dict | list):
                    todo.append((inner, node, (*chain, (array, element))))
                elif node.slot is not None:
                    found.setdefault(node.slot, []).append((inner, chain))
    return found


class _Elements:
    """The array elements in which values of one field were found, as a tree from the outermost array inwards."""

    __slots__ = ("arrays", "here")

    def __init__(self) -> None:
        self.here = False
        self.arrays: dict[int, dict[int, _Elements]] = {}

    def add(self, chain: Chain) -> None:
        node = self
        for array, element in chain:
            node = node.arrays.setdefault(array, {}).setdefault(element, _Elements())
        node.here = True

    def beside(self, chosen: Mapping[int, int]) -> Iterator[Chain]:
        """The chains that name no other element of an array than the chosen one."""
        todo: list[tuple[_Elements, Chain]] = [(self, ())]
        while todo:
            node, chain = todo.pop()
            if node.here:
                yield chain
            for array, elements in node.arrays.items():
                if array not in chosen:
                    todo.extend((inner, (*chain, (array, element))) for element, inner in elements.items())
                elif (inner := elements.get(chosen[array])) is not None:
                    todo.append((inner, (*chain, (array, chosen[array]))))


class _Step:
    """One field of a combination.

    matching: the elements with a value that matches. present: those with any value; None where it may not be absent.
    """

    __slots__ = ("arrays", "matching", "present")

    def __init__(self, matching: Iterable[Chain], present: Iterable[Chain] | None) -> None:
        self.matching = _Elements()
        self.present = None if present is None else _Elements()
        self.arrays: set[int] = set()
        for tree, chains in ((self.matching, matching), (self.present, present)):
            if tree is not None and chains is not None:
                for chain in chains:
                    tree.add(chain)
                    self.arrays.update(array for array, _ in chain)


def _together(steps: Sequence[_Step]) -> bool:
    """Whether one element can be chosen of each array so that every step is satisfied."""
    later: list[set[int]] = [set()]  # the arrays that matter from each step on
    for step in reversed(steps):
        later.append(later[-1] | step.arrays)
    later.reverse()
    failed: set[tuple[int, tuple[tuple[int, int], ...]]] = set()  # else independent arrays would multiply

    def search(at: int, chosen: dict[int, int]) -> bool:
        if at == len(steps):
            return True
        state = (at, tuple(sorted(pair for pair in chosen.items() if pair[0] in later[at])))
        if state in failed:
            return False
        step = steps[at]
        if any(search(at + 1, {**chosen, **dict(chain)}) for chain in step.matching.beside(chosen)):
            return True
        if step.present is not None and not any(True for _ in step.present.beside(chosen)) and search(at + 1, chosen):
            return True
        failed.add(state)
        return False

    return search(0, {})


class Pattern:
    """A compiled pattern; `compile` makes it. source: the pattern as it was given, decoded."""

    __slots__ = ("_names", "_slotted", "combinations", "source")

    def __init__(self, source: Mapping[str, Any], combinations: Sequence[Fields]) -> None:
        self.source = source
        # In the order of names: where absence is asked for, it is held against the elements of the fields before it.
        self.combinations: tuple[Fields, ...] = tuple({name: fields[name] for name in sorted(fields)} for fields in combinations)
        self._names = Names()
        self._slotted = [[(self._names.slot_of(name), leaf) for name, leaf in fields.items()] for fields in self.combinations]

    def matches(self, event: Mapping[str, Any], *, in_texts: bool = False) -> bool:
        """Whether the pattern matches an event, a JSON object as decoded.

        in_texts: a text that is itself a JSON object has the fields of that object, too, as in Lambda's event filtering.
        """
        found = collect(event, self._names, in_texts)
        return any(fits(fields, found) for fields in self._slotted)

    def __repr__(self) -> str:
        return f"compile({json.dumps(self.source, default=str)!r})"


def fits(fields: Slotted, found: Found) -> bool:
    """Whether a combination of fields matches what was collected."""
    steps: list[_Step] | None = None
    for slot, leaf in fields:
        values = found.get(slot, ())
        matches = leaf.matches
        chains: list[Chain] = []
        for value, chain in values:
            if matches(value):
                if not chain:
                    chains = [()]  # it stands in no array: it fits beside anything
                    break
                chains.append(chain)
        if not chains:
            if not leaf.absent:
                return False
            if not values:
                continue
        elif not chains[0]:
            continue
        steps = steps or []
        steps.append(_Step(chains, (chain for _, chain in values) if leaf.absent else None))
    return steps is None or _together(steps)
