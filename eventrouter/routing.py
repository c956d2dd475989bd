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

    __slots__ = ("_filed", "_lengths")

    def __init__(self) -> None:
        self._filed: dict[tuple[str, str], V] = {}
        self._lengths: set[tuple[int, int]] = set()  # few in practice, however much is filed

    def file(self, begins: str, ends: str, value: V) -> V:
        """The value that is filed there, this one if there was none."""
        self._lengths.add((len(begins), len(ends)))
        return self._filed.setdefault((begins, ends), value)

    def find(self, text: str) -> Iterator[V]:
        size = len(text)
        for first, last in self._lengths:
            if first <= size >= last and (value := self._filed.get((text[:first], text[size - last :]))) is not None:
                yield value


class _Node(Generic[T]):
    """Only what a node needs is made: of ten thousand nodes each further object is one more that no cache holds."""

    __slots__ = ("children", "here", "one", "parts", "rest", "rests")

    def __init__(self) -> None:
        self.children: dict[str, _Node[T]] | None = None
        self.one: _Node[T] | None = None
        self.parts: _Ends[_Node[T]] | None = None
        self.here: list[T] | None = None
        self.rest: list[T] | None = None
        self.rests: _Ends[list[T]] | None = None

    def below(self, segment: Segment) -> _Node[T]:
        if segment is Wild.ONE:
            self.one = self.one or _Node()
            return self.one
        if isinstance(segment, Part):
            self.parts = self.parts or _Ends()
            return self.parts.file(segment.begins, segment.ends, _Node())
        assert isinstance(segment, str)
        self.children = {} if self.children is None else self.children
        return self.children.setdefault(segment, _Node())

    def end(self, rest: Segment | None, value: T) -> None:
        if rest is None:
            self.here = self.here or []
            self.here.append(value)
        elif isinstance(rest, Part):
            self.rests = self.rests or _Ends()
            self.rests.file(rest.begins, rest.ends, []).append(value)
        else:
            self.rest = self.rest or []
            self.rest.append(value)


class Index(Generic[T]):
    """A trie over "/"-separated subjects, so that looking up costs the same with ten entries and ten thousand."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()
        self._cache: dict[str, tuple[T, ...]] = {}

    def add(self, path: tuple[Segment, ...], value: T) -> None:
        """path: as `Trigger.path`; the rest may only come last."""
        rests = [segment is Wild.REST or (isinstance(segment, Part) and segment.rest) for segment in path]
        if any(rests[:-1]):
            raise ValueError(f"the rest must be the last segment of a trigger's path: {path}")
        *above, rest = path if any(rests) else (*path, None)
        node = self._root
        for segment in above:
            assert segment is not None
            node = node.below(segment)
        node.end(rest, value)
        self._cache.clear()

    def find(self, subject: str) -> tuple[T, ...]:
        """Everything whose path lets `subject` through."""
        found = self._cache.get(subject)
        if found is None:
            if len(self._cache) >= _CACHED_SUBJECTS:
                self._cache.clear()  # bounded: subjects come from outside
            found = self._cache[subject] = tuple(self._walk(subject.split("/")))
        return found

    def _walk(self, segments: list[str]) -> list[T]:
        found: list[T] = []
        todo = [(self._root, 0)]
        while todo:
            node, at = todo.pop()
            if node.rest is not None:
                found += node.rest
            if node.rests is not None:
                for values in node.rests.find("/".join(segments[at:])):
                    found += values
            if at == len(segments):
                found += node.here or ()
                continue
            segment = segments[at]
            if node.children is not None and (child := node.children.get(segment)) is not None:
                todo.append((child, at + 1))
            if node.one is not None:
                todo.append((node.one, at + 1))
            if node.parts is not None:
                todo.extend((child, at + 1) for child in node.parts.find(segment))
        return found
