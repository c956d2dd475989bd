"""Which route a request is for, in API Gateway's order: a full match, then `{name+}`; in each, segment by segment, literal text first."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Generic, TypeVar

from eventrouter import Wildcards

T = TypeVar("T")
R = TypeVar("R")
_NAME = re.compile(r"\{\w+\}")
_NONE: Mapping[str, str] = {}
_CACHED_PATHS = 4096
_CACHED_LENGTH = 256  # characters


def captured(wildcards: Wildcards, path: str) -> Mapping[str, str] | None:
    """What a route's wildcards stand for in a path, decoded; None: it is not for this route.

    path: decoded but for slashes and percent signs inside a segment. A slash at its end counts for `{name+}` alone.
    """
    greedy = wildcards.text.endswith("+}")
    found = wildcards.match(path if greedy else bare(path))
    if found is None or (greedy and not found[wildcards.names[-1]].strip("/")):
        return None
    return {name: _decoded(value) for name, value in found.items()}


def _decoded(value: str) -> str:
    return value.replace("%2F", "/").replace("%25", "%") if "%" in value else value


def bare(path: str) -> str:
    """Without the slash at its end."""
    return path[:-1] if path[-1:] == "/" and len(path) > 1 else path


class _Route(Generic[T]):
    """places: which segments its wildcards stand for, where each is a whole one."""

    __slots__ = ("places", "value", "wildcards")

    def __init__(self, wildcards: Wildcards, value: T) -> None:
        self.value = value
        self.wildcards = wildcards
        segments = wildcards.text[1:].split("/")
        whole = [(segment[1:-1], at) for at, segment in enumerate(segments) if _NAME.fullmatch(segment)]
        self.places = whole if len(whole) == len(wildcards.names) else None

    def captures(self, path: str, segments: list[str]) -> Mapping[str, str] | None:
        if self.places is None:
            return captured(self.wildcards, path)
        return {name: _decoded(segments[at]) for name, at in self.places}  # no expression of its own, which is cold among thousands


Leaf = dict[str, _Route[T]]  # by method
Take = Callable[[Leaf[T], list[str]], R | None]


class _Partly(Generic[T]):
    """Segments such as `{id}.csv`, by the text around their wildcards, so that many cost no more than their different lengths."""

    __slots__ = ("_around", "_children", "_lengths")

    def __init__(self) -> None:
        self._children: dict[str, tuple[int, Wildcards, _Node[T]]] = {}
        self._around: dict[tuple[str, str], list[tuple[int, Wildcards, _Node[T]]]] = {}
        self._lengths: list[tuple[int, int]] = []

    def child(self, segment: str) -> _Node[T]:
        text = _NAME.sub("{}", segment)
        if text not in self._children:
            made = self._children[text] = len(self._children), Wildcards(segment, "http path"), _Node[T]()
            before, after = text[: text.index("{")], text[text.rindex("}") + 1 :]
            self._around.setdefault((before, after), []).append(made)
            if (len(before), len(after)) not in self._lengths:
                self._lengths.append((len(before), len(after)))
        return self._children[text][2]

    def matching(self, segment: str) -> list[_Node[T]]:
        """In the order in which they were added."""
        size = len(segment)
        found: list[tuple[int, Wildcards, _Node[T]]] = []
        for before, after in self._lengths:
            if before + after < size:
                found += self._around.get((segment[:before], segment[size - after :]), ())
        found.sort(key=itemgetter(0))
        return [child for _, wildcards, child in found if wildcards.match(segment) is not None]


class _Node(Generic[T]):
    __slots__ = ("here", "literals", "partly", "rest", "whole")

    def __init__(self) -> None:
        # Nothing for what it does not have: of thousands of nodes few would stay in the processor's caches.
        self.literals: dict[str, _Node[T]] | None = None
        self.partly: _Partly[T] | None = None  # `{id}.csv`
        self.whole: _Node[T] | None = None  # `{id}`
        self.here: Leaf[T] | None = None
        self.rest: dict[int, dict[str, Leaf[T]]] | None = None  # `{path+}`, by what stands before it in its segment, the longest first


class Routes(Generic[T]):
    """Routes with what answers them. A method comes before "ANY", on one path."""

    def __init__(self) -> None:
        self._exact: dict[str, Leaf[T]] = {}
        self._root: _Node[T] = _Node()
        self._cache: dict[tuple[str, str], tuple[T, Mapping[str, str]]] = {}

    def add(self, method: str, pattern: str, value: T) -> bool:
        """pattern: `/devices/{device}`, `/files/{path+}`. False: there is one of that method and path, and it stays."""
        pattern = bare(pattern)
        wildcards = Wildcards(pattern, "http path")
        leaf = self._leaf(pattern) if wildcards.names else self._exact.setdefault(pattern, {})
        self._cache.clear()
        return leaf.setdefault(method, _Route(wildcards, value)).wildcards is wildcards

    def _leaf(self, pattern: str) -> Leaf[T]:
        node = self._root
        for segment in pattern[1:].split("/"):
            if segment.endswith("+}"):
                before = segment.partition("{")[0]
                rest = node.rest or {}
                leaf = rest.setdefault(len(before), {}).setdefault(before, {})
                node.rest = dict(sorted(rest.items(), reverse=True))
                return leaf
            if "{" not in segment:
                node.literals = node.literals or {}
                node = node.literals.setdefault(segment, _Node())
            elif _NAME.fullmatch(segment):
                node.whole = node.whole or _Node()
                node = node.whole
            else:
                node.partly = node.partly or _Partly()
                node = node.partly.child(segment)
        if node.here is None:
            node.here = {}
        return node.here

    def find(self, method: str, path: str) -> tuple[T, Mapping[str, str]] | None:
        """What answers a request, and the wildcards' values; None: no route does. path: as `captured` wants it."""
        exact = self._exact.get(path) or self._exact.get(bare(path))
        if exact is not None and (found := exact.get(method) or exact.get("ANY")):
            return found.value, _NONE
        hit = self._cache.get((method, path))
        if hit is not None:
            return hit

        def answer(leaf: Leaf[T], segments: list[str]) -> tuple[T, Mapping[str, str]] | None:
            for route in filter(None, (leaf.get(method), leaf.get("ANY"))):
                captures = route.captures(path, segments)
                if captures is not None:
                    return route.value, captures
            return None

        hit = self._walk(path, answer)
        if hit is not None and len(path) <= _CACHED_LENGTH:
            if len(self._cache) >= _CACHED_PATHS:
                self._cache.clear()  # bounded: paths come from outside
            self._cache[method, path] = hit
        return hit

    def methods(self, path: str) -> set[str]:
        """The methods that a path has routes for."""
        known = set(self._exact.get(bare(path), ()))

        def note(leaf: Leaf[T], segments: list[str]) -> None:
            known.update(method for method, route in leaf.items() if route.captures(path, segments) is not None)

        self._walk(path, note)
        return known

    def _walk(self, path: str, take: Take[T, R]) -> R | None:
        """What `take` first makes of a place that the path may be for."""
        found = _full(self._root, bare(path)[1:].split("/"), 0, take)
        return _greedy(self._root, path[1:].split("/"), 0, take) if found is None else found


def _full(node: _Node[T], segments: list[str], at: int, take: Take[T, R]) -> R | None:
    if at == len(segments):
        return take(node.here, segments) if node.here else None
    for child in _children(node, segments[at]):
        found = _full(child, segments, at + 1, take)
        if found is not None:
            return found
    return None


def _greedy(node: _Node[T], segments: list[str], at: int, take: Take[T, R]) -> R | None:
    if at == len(segments):
        return None
    segment = segments[at]
    for child in _children(node, segment):
        found = _greedy(child, segments, at + 1, take)
        if found is not None:
            return found
    for length, leaves in node.rest.items() if node.rest else ():
        leaf = leaves.get(segment[:length])
        if leaf is not None and (found := take(leaf, segments)) is not None:
            return found
    return None


def _children(node: _Node[T], segment: str) -> list[_Node[T]]:
    children = []
    if node.literals and (literal := node.literals.get(segment)) is not None:
        children.append(literal)
    if node.partly is not None:
        children += node.partly.matching(segment)
    if node.whole is not None and segment:
        children.append(node.whole)
    return children
