"""Which route a request is for, in API Gateway's order: a full match, then `{name+}`; in each, segment by segment, literal text first."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from eventrouter import Wildcards

T = TypeVar("T")
Leaf = dict[str, tuple[T, Wildcards]]  # by method
_NAME = re.compile(r"\{\w+\}")
_NONE: Mapping[str, str] = {}


def captured(wildcards: Wildcards, path: str) -> Mapping[str, str] | None:
    """What a route's wildcards stand for in a path, decoded; None: it is not for this route.

    path: decoded but for slashes and percent signs inside a segment. A slash at its end counts for `{name+}` alone.
    """
    greedy = wildcards.text.endswith("+}")
    found = wildcards.match(path if greedy else bare(path))
    if found is None or (greedy and not found[wildcards.names[-1]].strip("/")):
        return None
    return {name: value.replace("%2F", "/").replace("%25", "%") if "%" in value else value for name, value in found.items()}


def bare(path: str) -> str:
    """Without the slash at its end."""
    return path[:-1] if path[-1:] == "/" and len(path) > 1 else path


class _Node(Generic[T]):
    __slots__ = ("here", "literals", "partly", "rest", "whole")

    def __init__(self) -> None:
        self.literals: dict[str, _Node[T]] = {}
        self.partly: dict[str, tuple[Wildcards, _Node[T]]] = {}  # `{id}.csv`
        self.whole: _Node[T] | None = None  # `{id}`
        self.here: Leaf[T] = {}
        self.rest: dict[str, Leaf[T]] = {}  # `{path+}`, by what stands before it in its segment


class Routes(Generic[T]):
    """Routes with what answers them. A method comes before "ANY", on one path."""

    def __init__(self) -> None:
        self._exact: dict[str, Leaf[T]] = {}
        self._root: _Node[T] = _Node()

    def add(self, method: str, pattern: str, value: T) -> bool:
        """pattern: `/devices/{device}`, `/files/{path+}`. False: there is one of that method and path, and it stays."""
        pattern = bare(pattern)
        wildcards = Wildcards(pattern, "http path")
        leaf = self._leaf(pattern) if wildcards.names else self._exact.setdefault(pattern, {})
        return leaf.setdefault(method, (value, wildcards))[1] is wildcards

    def _leaf(self, pattern: str) -> Leaf[T]:
        node = self._root
        for segment in pattern[1:].split("/"):
            if segment.endswith("+}"):
                return node.rest.setdefault(segment.partition("{")[0], {})
            if "{" not in segment:
                node = node.literals.setdefault(segment, _Node())
            elif _NAME.fullmatch(segment):
                node.whole = node.whole or _Node()
                node = node.whole
            else:
                text = _NAME.sub("{}", segment)
                node.partly.setdefault(text, (Wildcards(segment, "http path"), _Node()))
                node = node.partly[text][1]
        return node.here

    def find(self, method: str, path: str) -> tuple[T, Mapping[str, str]] | None:
        """What answers a request, and the wildcards' values; None: no route does. path: as `captured` wants it."""
        exact = self._exact.get(path) or self._exact.get(bare(path))
        if exact is not None and (found := exact.get(method) or exact.get("ANY")):
            return found[0], _NONE
        for leaf in self._leaves(path):
            for value, wildcards in filter(None, (leaf.get(method), leaf.get("ANY"))):
                captures = captured(wildcards, path)
                if captures is not None:
                    return value, captures
        return None

    def methods(self, path: str) -> set[str]:
        """The methods that a path has routes for."""
        known = set(self._exact.get(bare(path), ()))
        for leaf in self._leaves(path):
            known.update(method for method, (_, wildcards) in leaf.items() if captured(wildcards, path) is not None)
        return known

    def _leaves(self, path: str) -> Iterator[Leaf[T]]:
        yield from _full(self._root, bare(path)[1:].split("/"), 0)
        yield from _greedy(self._root, path[1:].split("/"), 0)


def _full(node: _Node[T], segments: list[str], at: int) -> Iterator[Leaf[T]]:
    if at == len(segments):
        if node.here:
            yield node.here
        return
    for child in _children(node, segments[at]):
        yield from _full(child, segments, at + 1)


def _greedy(node: _Node[T], segments: list[str], at: int) -> Iterator[Leaf[T]]:
    if at == len(segments):
        return
    for child in _children(node, segments[at]):
        yield from _greedy(child, segments, at + 1)
    yield from (node.rest[segment] for segment in sorted(node.rest, key=len, reverse=True))


def _children(node: _Node[T], segment: str) -> Iterator[_Node[T]]:
    if (literal := node.literals.get(segment)) is not None:
        yield literal
    for wildcards, child in node.partly.values():
        if wildcards.match(segment) is not None:
            yield child
    if node.whole is not None and segment:
        yield node.whole
