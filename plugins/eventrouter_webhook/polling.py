"""The rules of polling, apart from I/O: when, what to ask for, and what is new in an answer."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import msgspec

from eventrouter import Event, seconds
from eventrouter.errors import ConfigError

_KNOWN = 10_000  # items of a poll that are remembered
_LONGEST = 86_400.0  # seconds that a Retry-After is believed
CURSOR = "{cursor}"


class State(msgspec.Struct, kw_only=True):
    """What is known of a poll, on disk. at: when it was asked last.

    etag, modified: of the last answer to `asked`, a digest of its url. count, last: of changes, how many, and the last one's digest.
    known: digests of the items' ids, oldest first. cursor: where to go on.
    """

    at: float = 0.0
    asked: bytes = b""
    etag: str = ""
    modified: str = ""
    count: int = 0
    last: bytes = b""
    known: list[bytes] = []
    cursor: str | None = None


def parse_every(every: str | float, what: str) -> float:
    """`"5 minutes"`, `"90s"`, or a number of seconds; more than 0. Raises ConfigError naming `what`."""
    if isinstance(every, str):
        words = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(second|minute|hour|day)s?\s*", every)
        every = f"{words[1]}{words[2][0]}" if words else every
    found = seconds(every, what)
    if not 0 < found < float("inf"):
        raise ConfigError(f'{what}: {every!r}: write more than 0 seconds, or "5 minutes"')
    return found


def without_user(url: str) -> str:
    """The url as it may be printed: without `user:password@`."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def next_url(url: str, cursor: str | None) -> str:
    """The url with the cursor in its place; without one yet, a query parameter that would hold it is left out."""
    if cursor is not None:
        return url.replace(CURSOR, quote(cursor, safe=""))
    parts = urlsplit(url)
    query = "&".join(pair for pair in parts.query.split("&") if CURSOR not in pair)
    return urlunsplit(parts._replace(query=query)).replace(CURSOR, "")


def same_origin(one: str, other: str) -> bool:
    def origin(url: str) -> tuple[str, str | None, int | None]:
        parts = urlsplit(url)
        return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)

    return origin(one) == origin(other)


def retry_after(text: str | None, now: float) -> float | None:
    """Seconds that a Retry-After header asks for, as seconds or as a date; None when it asks for nothing that makes sense."""
    if text is None:
        return None
    if re.fullmatch(r"\s*\d{1,9}\s*", text):
        return min(float(text), _LONGEST)
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return min(max(0.0, date.timestamp() - now), _LONGEST)


def digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:16]


class Reader:
    """Turns answers into events. subject: the url as it may be printed. items, id, cursor: JSON paths, resolved.

    Each item has an id, `URL ID`: an answer that comes twice around a crash runs once.
    """

    def __init__(
        self,
        subject: str,
        items: Callable[[Any], Any] | None,
        id: Callable[[Any], Any] | None,
        cursor: Callable[[Any], Any] | None,
    ) -> None:
        self.subject = subject
        self.attributes = {"host": urlsplit(subject).hostname or ""}
        self._items, self._id, self._cursor = items, id, cursor

    def read(self, state: State, body: bytes, content_type: str) -> tuple[list[Event], State, str | None]:
        """The events of what is new, what is known then, and the cursor that the answer gives.

        Raises ValueError that says what is wrong with the answer.
        """
        answer: Any = None
        if self._items is not None or self._cursor is not None:
            try:
                answer = msgspec.json.decode(body)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                raise ValueError("its answer is no JSON") from None
        events, state = self._changes(state, body, content_type) if self._items is None else self._news(state, self._items(answer))
        cursor = None if self._cursor is None else self._cursor(answer)
        if isinstance(cursor, bool) or not (cursor is None or isinstance(cursor, str | int | float)):
            raise ValueError("its cursor is neither text nor a number")
        return events, state, None if cursor is None or cursor == "" else str(cursor)

    def _changes(self, state: State, body: bytes, content_type: str) -> tuple[list[Event], State]:
        found = digest(body)
        if state.count and found == state.last:
            return [], state
        # The count tells a change back from a repeat, the digest what came before a crash from what came after.
        count = state.count + 1
        event = self._event("poll.change", f"{count} {found.hex()}", body, content_type)
        return [event], msgspec.structs.replace(state, count=count, last=found)

    def _news(self, state: State, items: Any) -> tuple[list[Event], State]:
        if items is None:
            items = []
        if not isinstance(items, list):
            raise ValueError("what it has as items is no list")
        known = dict.fromkeys(state.known)
        events: list[Event] = []
        for item in items:
            data = msgspec.json.encode(item)
            id = self._name(item)
            key = digest(id.encode())
            if key not in known:
                events.append(self._event("poll.item", id, data, "application/json"))
            known.pop(key, None)
            known[key] = None  # seen last: forgotten last
        kept: Sequence[bytes] = list(known)[-max(_KNOWN, len(items)) :]
        return events, msgspec.structs.replace(state, known=list(kept))

    def _name(self, item: Any) -> str:
        """The item's id; of one without, what it is."""
        found = None if self._id is None else self._id(item)
        if found is None:
            return digest(msgspec.json.encode(item, order="sorted")).hex()
        return found if isinstance(found, str) else msgspec.json.encode(found, order="sorted").decode()

    def _event(self, type: str, id: str, data: bytes, content_type: str) -> Event:
        return Event("webhook", type, self.subject, data, content_type, id=f"{self.subject} {id}", attributes=self.attributes)
