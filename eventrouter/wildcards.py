"""Named wildcards, the same in every trigger: `{name}` is one segment or part of it, `{name+}` the rest."""

from __future__ import annotations

import re

from eventrouter.errors import ConfigError
from eventrouter.model import Part, Segment, Wild

_PART = re.compile(r"\{(\w+)(\+?)\}")


class Wildcards:
    """`Wildcards("reports/{year}/{name}.csv")`: what a pattern of "/"-separated segments matches and captures.

    names: of its wildcards, in order. path: its place in the router's index, as `Trigger.path` wants it.
    Raises ConfigError that names `what` (an S3 key, say) and the fault.
    """

    __slots__ = ("_match", "names", "path", "text")

    def __init__(self, text: str, what: str) -> None:
        self.text = text
        self.names = tuple(match[1] for match in _PART.finditer(text))
        path: list[Segment] = []
        for segment in text.split("/"):
            literal, found = _PART.sub("", segment), list(_PART.finditer(segment))
            if found:
                part = Part(segment[: found[0].start()], segment[found[-1].end() :], rest="+}" in segment)
                path.append(part if part.begins or part.ends else Wild.REST if part.rest else Wild.ONE)
            else:
                path.append(segment)
            if "{" in literal or "}" in literal:
                raise ConfigError(f"{what} {text!r}: a wildcard is written {{name}}, or {{name+}} for the rest; see {segment!r}")
        if any("+}" in segment for segment in text.split("/")[:-1]):
            raise ConfigError(f"{what} {text!r}: {{name+}} takes the rest, so nothing can follow it")
        for name in self.names:
            if self.names.count(name) > 1 or not name.isidentifier():
                raise ConfigError(f"{what} {text!r}: wildcard {name!r} must be a Python name that comes once")
        self.path = tuple(path)
        pattern, end = "", 0
        for match in _PART.finditer(text):
            pattern += re.escape(text[end : match.start()]) + f"(?P<{match[1]}>{'.+' if match[2] else '[^/]+'})"
            end = match.end()
        # No backtracking without bounds: a segment's wildcards can't cross a "/", and the rest comes once, last.
        self._match = re.compile(pattern + re.escape(text[end:]), re.DOTALL).fullmatch

    def match(self, subject: str) -> dict[str, str] | None:
        """What the wildcards stand for in `subject`; None when it does not match."""
        if not self.names:
            return {} if subject == self.text else None
        found = self._match(subject)
        return None if found is None else found.groupdict()
