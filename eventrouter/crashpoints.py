"""Named points at which a test makes the process die: `EVENTROUTER_CRASH_AT=commit.after:3 eventrouter serve` at the third time."""

from __future__ import annotations

import os
from typing import Final

from eventrouter.errors import ConfigError, suggest

VARIABLE: Final = "EVENTROUTER_CRASH_AT"
STATUS: Final = 86
POINTS: Final = {
    "accept.before": "a source has handed events over; nothing is written",
    "commit.before": "a transaction is written, not committed",
    "commit.after": "it is on disk; nobody has heard of it",
    "receipt.before": "the event loop has heard of it; the source has not",
    "ack.before": "the source is about to acknowledge, to note, or to answer",
    "ack.after": "the source has done so",
    "attempt.before": "a handler is about to run",
    "attempt.after": "it has run; its outcome is not settled",
    "settle.before": "it is decided what becomes of the invocation; the journal has not been told",
    "settle.after": "the journal has been told; it is not committed",
}


_name, _, _count = os.environ.get(VARIABLE, "").partition(":")
_left = int(_count) if _count.isdecimal() else 1


ARMED: Final = bool(_name)  # what happens for every event asks first: a call costs it 50 ns


def check() -> None:
    """Raise ConfigError for a point that is none."""
    if _name and _name not in POINTS:
        raise ConfigError(f"{VARIABLE}: no crash point is named {_name!r}{suggest(_name, POINTS)}")
    if _count and not _count.isdecimal():
        raise ConfigError(f"{VARIABLE}: {_count!r} is no number; write POINT or POINT:COUNT")


def crash_point(name: str) -> None:
    """End the process here, at once and without a word to anybody, if it is the point's turn."""
    if name == _name:
        _count_down()


def _count_down() -> None:
    global _left
    _left -= 1
    if _left == 0:
        os._exit(STATUS)
