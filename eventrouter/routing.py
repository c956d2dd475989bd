"""The index from an event's subject to the triggers that may want it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from eventrouter.model import Wild

T = TypeVar("T")
_CACHED_SUBJECTS = 4096


class _Node(Generic[T]):
    __slots__ = ("children", "here", "one", "rest")

    def __init__(self) -> None:
        self.children: dict[str, _Node[T]] = {}
        self.one: _Node[T] | None = None
        self.rest: list[T] = []
        self.here: list[T] = []


class Index(Generic[T]):
    """A trie over "/"-separated subjects, so that looking up costs the same with ten entries and ten thousand."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()
        self._cache: dict[str, tuple[T, ...]] = {}

    def add(self, path: tuple[str | Wild, ...], value: T) -> None:
        """path: literal segments and wildcards; `Wild.REST` may only come last."""
        node = self._root
        for place, segment in enumerate(path):
            if segment is Wild.REST:
                if place != len(path) - 1:
                    raise ValueError(f"Wild.REST must be the last segment of a trigger's path: {path}")
                node.rest.append(value)
                break
            if segment is Wild.ONE:
                node.one = node.one or _Node()
                node = node.one
            else:
                assert isinstance(segment, str)
                node = node.children.setdefault(segment, _Node())
        else:
            node.here.append(value)
        self._cache.clear()

    def find(self, subject: str) -> tuple[T, ...]:
        """Everything whose path lets `subject` through."""
        found = self._cache.get(subject)
        if found is None:
            if len(self._cache) >= _CACHED_SUBJECTS:
                self._cache.clear()  # bounded: subjects come from outside
            found = self._cache[subject] = tuple(self._walk(self._root, subject.split("/"), 0))
        return found

    def _walk(self, node: _Node[T], segments: list[str], at: int) -> Iterator[T]:
        yield from node.rest
        if at == len(segments):
            yield from node.here
            return
        child = node.children.get(segments[at])
        if child is not None:
            yield from self._walk(child, segments, at + 1)
        if node.one is not None:
            yield from self._walk(node.one, segments, at + 1)
