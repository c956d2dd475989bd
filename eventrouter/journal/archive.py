"""What was accepted, kept for a while in the journal's own file, so that it can run again."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Final

import apsw

from eventrouter.journal.protocol import Archived, claim_id, claim_seq
from eventrouter.journal.schema import readable

_TRIM: Final = 64  # rows that a commit lets go of besides two for each new one
_PAGE: Final = 4 << 20  # bytes of events that are read at once
_AHEAD: Final = 1.0  # seconds; what is later than this is of a clock that was set back since

_ADD: Final = "INSERT INTO archive VALUES (?, ?, ?, ?)"
_READ: Final = """SELECT seq, at, event FROM archive INDEXED BY archived
    WHERE function = ? AND at BETWEEN ? AND ? AND (at, seq) > (?, ?) ORDER BY at, seq LIMIT ?"""
_FORGET: Final = "DELETE FROM archive WHERE seq IN (SELECT seq FROM (SELECT seq, at FROM archive ORDER BY seq LIMIT ?) WHERE at <= ?)"
_BRING_BACK: Final = """UPDATE archive SET at = ?1
    WHERE seq IN (SELECT seq FROM (SELECT seq, at FROM archive ORDER BY seq LIMIT ?2) WHERE at > ?1)"""
_FUNCTIONS: Final = """WITH RECURSIVE each(function) AS (SELECT min(function) FROM archive UNION ALL
    SELECT (SELECT min(function) FROM archive WHERE function > each.function) FROM each WHERE function IS NOT NULL)
    SELECT function FROM each WHERE function IS NOT NULL"""  # a look for each function; DISTINCT would read every row


class Archive:
    """keep: seconds; 0 keeps nothing, and lets go of what was kept before.

    on: whether there is anything to do; without an archive that is all that it costs.
    """

    def __init__(self, keep: float) -> None:
        self.keep = keep
        self.on = False

    def open(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self.on = bool(self.keep) or connection.execute("SELECT EXISTS (SELECT 1 FROM archive)").get == 1

    def add(self, rows: Sequence[tuple[int, float, str, bytes]]) -> None:
        """rows: seq, when it was accepted, function, packed event."""
        if self.keep:
            self._connection.executemany(_ADD, rows)

    def trim(self, new: int, now: float) -> None:
        """Let go of some of what is too old: each newcomer pays for two, so that the table stays in bounds without a timer."""
        execute, count = self._connection.execute, 2 * new + _TRIM
        oldest = execute("SELECT at FROM archive ORDER BY seq LIMIT 1").get
        horizon = now - self.keep if self.keep else inf
        if oldest is None:
            self.on = bool(self.keep)
        elif oldest <= horizon:
            execute(_FORGET, (count, horizon))
        elif oldest > now + _AHEAD:  # else it would stay for as long as the clock was ahead, and all behind it
            execute(_BRING_BACK, (now, count))

    def read(self, function: str, since: float, until: float, after: Archived | None, limit: int, now: float) -> list[Archived]:
        """In order, those past `after`: up to so many, and not many bytes."""
        past = (-1.0, -1) if after is None else (after.at, claim_seq(after.id))
        rows = self._connection.execute(_READ, (function, max(since, now - self.keep), until, *past, limit))
        found: list[Archived] = []
        room = _PAGE
        for seq, at, packed in rows:
            found.append(Archived(claim_id(seq), at, readable(packed)))
            room -= len(packed)
            if room <= 0:
                break
        rows.close()
        return found

    def functions(self) -> list[str]:
        return [function for (function,) in self._connection.execute(_FUNCTIONS)]
