"""`$.order.id`: where in a payload a key is found."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

_STEP = re.compile(r"\.(\w+)|\[(\d+)\]|\['([^']*)'\]")


def parse_path(text: str) -> Callable[[Any], str | None]:
    """A function that takes a decoded payload and returns the text of what stands at the path, None where there is nothing (or null).

    `$.order.id`, `$.items[0]`, `$['two words']`; what is no text is written as JSON. Raises ValueError naming the fault.
    """
    steps: list[str | int] = []
    at = 1
    while at < len(text):
        match = _STEP.match(text, at)
        if match is None:
            raise ValueError(f"JSON path {text!r}: {text[at:]!r} is not understood; write $.name, [0] or ['any name']")
        name, index, quoted = match.groups()
        steps.append(int(index) if index is not None else name if name is not None else quoted)
        at = match.end()
    if not text.startswith("$") or not steps:
        raise ValueError(f"JSON path {text!r}: write $.name")

    def find(payload: Any) -> str | None:
        for step in steps:
            try:
                payload = payload[step]
            except (LookupError, TypeError):
                return None
        if payload is None or isinstance(payload, str):
            return payload
        return msgspec.json.encode(payload, order="sorted").decode()

    return find
