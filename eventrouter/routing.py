"""The index from an event's subject to the triggers that may want it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from eventrouter.model import Part, Segment, Wild

T = TypeVar("T")
V = TypeVar("V")
_CACHED_SUBJECTS = 4096


class _Ends(Generic[V]):
    """Values filed by how a text begins and ends."""

    __slots__ = ("_lengths", "filed")

    def __init__(self) -> None:
        self.filed: dict[tuple[str, str], V] = {}
        self._lengths: set[tuple[int, int]] = set()  # few in practice, however much is filed

    def file(self, begins: str, ends: str, value: V) -> V:
        """The value that is filed there, this one if there was none."""
        self._lengths.add((len(begins), len(ends)))
        return self.filed.setdefault((begins, ends), value)

    def find(self, text: str) -> Iterator[V]:
        size = len(text)
        for first, last in self._lengths:
            if first <= size >= last and (value := self.filed.get((text[:first], text[size - last :]))) is not None:
                yield value


class _Node(Generic[T]):
    __slots__ = ("children", "here", "parts", "rests")

    def __init__(self) -> None:
        self.children: dict[str, _Node[T]] = {}
        self.parts: _Ends[_Node[T]] = _Ends()
        self.rests: _Ends[list[T]] = _Ends()
        self.here: list[T] = []


class Index(Generic[T]):
    """A trie over "/"-separated subjects, so that looking up costs the same with ten entries and ten thousand."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()
        self._cache: dict[str, tuple[T, ...]] = {}

    def add(self, path: tuple[Segment, ...], value: T) -> None:
        """path: as `Trigger.path`; the rest may only come last."""
        node = self._root
        for place, segment in enumerate(path):
            if isinstance(segment, str):
                node = node.children.setdefault(segment, _Node())
                continue
            part = _PARTS[segment] if isinstance(segment, Wild) else segment
            if not part.rest:
                node = node.parts.file(part.begins, part.ends, _Node())
            elif place == len(path) - 1:
                node.rests.file(part.begins, part.ends, []).append(value)
                break
            else:
                raise ValueError(f"the rest must be the last segment of a trigger's path: {path}")
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
        if node.rests.filed:
            for values in node.rests.find("/".join(segments[at:])):
                yield from values
        if at == len(segments):
            yield from node.here
            return
        child = node.children.get(segments[at])
        if child is not None:
            yield from self._walk(child, segments, at + 1)
        if node.parts.filed:
            for child in node.parts.find(segments[at]):
                yield from self._walk(child, segments, at + 1)


_PARTS = {Wild.ONE: Part("", ""), Wild.REST: Part("", "", rest=True)}
