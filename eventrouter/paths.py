"""`$.order.id`: where in a payload a key is found."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

from eventrouter.errors import BadOption

_STEP = re.compile(r"\.(\w+)|\[(\d+)\]|\['([^']*)'\]")


def json_path(text: str) -> Callable[[Any], Any]:
    """A function that takes a decoded payload and returns what stands at the path, None where there is nothing.

    `$` is all of it; `$.order.id`, `$.items[0]`, `$['two words']`. Raises ValueError naming the fault.
    """
    steps: list[str | int] = []
    at = 1
    while at < len(text):
        match = _STEP.match(text, at)
        if match is None:
            raise BadOption(f"JSON path {text!r}: {text[at:]!r} is not understood; write $.name, [0] or ['any name']")
        name, index, quoted = match.groups()
        steps.append(int(index) if index is not None else name if name is not None else quoted)
        at = match.end()
    if not text.startswith("$"):
        raise BadOption(f"JSON path {text!r}: write $.name")

    def find(payload: Any) -> Any:
        for step in steps:
            try:
                payload = payload[step]
            except (LookupError, TypeError):
                return None
        return payload

    return find


def parse_path(text: str) -> Callable[[Any], str | None]:
    """As `json_path`, for a key: the text of what stands there, None where there is nothing (or null).

    What is no text is written as JSON. Raises ValueError naming the fault, `$` alone included.
    """
    find = json_path(text)
    if text == "$":
        raise BadOption(f"JSON path {text!r}: write $.name")

    def key(payload: Any) -> str | None:
        found = find(payload)
        if found is None or isinstance(found, str):
            return found
        return msgspec.json.encode(found, order="sorted").decode()

    return key
