"""MQTT's topic names and filters, by section 4.7 of the standard."""

from __future__ import annotations

from collections.abc import Sequence

_LONGEST = 65_535  # bytes in UTF-8


def matches(filter: str, topic: str) -> bool:
    """Whether a subscription to `filter` gets messages of `topic`. Raises ValueError when one of them is none.

    `$share/GROUP/FILTER` matches as FILTER does.
    """
    check_filter(filter)
    check_topic(topic)
    levels = filter.split("/")
    return levels_match(levels[2:] if levels[0] == "$share" else levels, topic.split("/"))


def levels_match(wanted: Sequence[str], topic: Sequence[str]) -> bool:
    """The same for what is known to be valid, split at "/"."""
    if wanted[0] in ("+", "#") and topic[0].startswith("$"):
        return False  # $SYS and its like are only for those who ask for them
    for place, level in enumerate(wanted):
        if level == "#":
            return True  # the level above it, too
        if place == len(topic) or level not in ("+", topic[place]):
            return False
    return len(wanted) == len(topic)


def check_topic(topic: str) -> None:
    """Raise ValueError for what can't be published to."""
    _check_text("topic", topic)
    for wildcard in "+#":
        if wildcard in topic:
            raise ValueError(f"topic {topic!r}: {wildcard!r} is for filters only")


def check_filter(filter: str) -> None:
    """Raise ValueError that names the level at fault."""
    _check_text("filter", filter)
    levels = filter.split("/")
    if levels[0] == "$share":
        group, rest = levels[1] if len(levels) > 1 else "", levels[2:]
        if not group or "+" in group or "#" in group or rest in ([], [""]) or rest[0] == "$share":
            raise ValueError(f"filter {filter!r}: a shared one is $share/GROUP/FILTER, neither empty, no wildcard in GROUP")
        levels = rest
    for place, level in enumerate(levels):
        if "#" in level and (level != "#" or place != len(levels) - 1):
            raise ValueError(f"filter {filter!r}: '#' must be the whole of the last level; see {level!r}")
        if "+" in level and level != "+":
            raise ValueError(f"filter {filter!r}: '+' must be the whole of a level; see {level!r}")


def may_overlap(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether some topic may match both filters, given as levels. Rather yes than no."""
    for mine, theirs in zip(one, other, strict=False):
        if "#" in (mine, theirs):
            return True
        if mine != theirs and "+" not in (mine, theirs):
            return False
    longer = max(one, other, key=len)
    return len(one) == len(other) or longer[min(len(one), len(other))] == "#"


def _check_text(what: str, text: str) -> None:
    if not text or "\0" in text or len(text.encode(errors="replace")) > _LONGEST:
        raise ValueError(f"{what} {text[:40]!r}: it must have 1 to {_LONGEST} bytes, none of them zero")
