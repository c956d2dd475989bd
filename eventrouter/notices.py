"""Who is told what happens to the router itself."""

from __future__ import annotations

import logging
from collections.abc import Callable

from eventrouter.model import Event, Notice

log = logging.getLogger("eventrouter")
_MARK = "notice"


class Notices:
    """listeners: each hears every notice, on the loop, while what it is about is going on: they return at once."""

    def __init__(self) -> None:
        self.listeners: list[Callable[[Notice], None]] = []

    def tell(self, notice: Notice) -> None:
        for listener in self.listeners:
            try:
                listener(notice)
            except Exception:  # a plugin's; what it is about goes on
                log.exception("a notice (%s, %s) was not heard", notice.kind, notice.about, extra={"action": "notice.failed"})


def of_notice(event: Event) -> bool:
    """Whether it comes from a notice. Nothing that happens to such an event makes another one, else there would be no end."""
    return _MARK in event.attributes


def inherit(event: Event, cause: Event) -> None:
    """What follows from an event of a notice is one, too."""
    if of_notice(cause):
        event.attributes = {**event.attributes, _MARK: True}
