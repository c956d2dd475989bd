"""Messages of queues, in the SQLite journal's file: taken by hand, hidden, counted, ended. Run on the journal's thread."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from eventrouter.journal.database import _BEHIND, _DELETE, _DUE, _NEXT_DUE, _SLICE, _TAKE, START, Database, claimed
from eventrouter.journal.protocol import Claim, QueueDepth, Received, claim_id, claim_seq
from eventrouter.journal.schema import readable

_RECEIVE: Final = "UPDATE invocation SET attempts = attempts + 1, due = ? WHERE seq = ?"
# What was received behind another of its key is parked, as all behind the first; the attempts tell that it was.
_REMOVE: Final = "DELETE FROM invocation WHERE seq = ? AND function = ? AND attempts = ? AND state <= 0 RETURNING function, key"
_HIDE: Final = "UPDATE invocation SET due = ? WHERE seq = ? AND function = ? AND attempts = ? AND state <= 0"
_EXPIRED: Final = """SELECT seq, attempts, accepted, event, key, deaths, reason IS NOT NULL FROM invocation INDEXED BY waiting
    WHERE state = 0 AND function = ? AND due <= ? AND accepted < ? ORDER BY due, seq"""
# The parked first: else some would be there with nothing before them.
_WAITING: Final = "SELECT seq, key FROM invocation INDEXED BY waiting WHERE state = 0 AND function = ? AND seq < ? LIMIT ?"
_PARKED: Final = """SELECT seq, key FROM invocation INDEXED BY keyed
    WHERE key IS NOT NULL AND state < 2 AND state = -1 AND function = ? AND seq < ? LIMIT ?"""
_DEPTH: Final = """SELECT sum(due > ?1 AND attempts > 0), sum(due > ?1 AND attempts = 0), count(*) FROM invocation"""


def receive(
    database: Database, queue: str, now: float, born: float, count: int, hide: float, most: int, keep: float
) -> tuple[list[Received], list[Claim], float | None]:
    """The last is when there may be more, though nothing happens."""
    received: list[Received] = []
    spent: list[Claim] = []
    later = database._execute(_NEXT_DUE, (queue, now)).get
    rows = database._execute(_DUE, (queue, now, *START))
    for head in rows:
        room = count - len(received) - len(spent)
        if not room:
            break
        if head[0] in database.taken:
            continue
        chain = [head]
        if head[4] is not None:
            held = _behind(database, queue, chain, now, room)
            if held is not None:
                later = held if later is None else min(later, held)
                continue
        over = None
        for seq, attempts, accepted, packed, key, deaths, redriven, *_ in chain:
            ends = attempts >= most or now - accepted > keep
            if over is not None and ends != over:
                break  # those behind dead ones are looked at when these have ended
            over = ends
            event = readable(packed)
            if ends:
                spent.append(claimed(seq, queue, event, attempts, accepted + born, len(packed), key, deaths, bool(redriven)))
            else:
                received.append(Received(claim_id(seq), event, attempts + 1))
    rows.close()
    for message in received:
        database._execute(_RECEIVE, (now + hide, claim_seq(message.id)))
    database._run(_TAKE, 1, [claim.seq for claim in spent])
    return received, spent, later


def _behind(database: Database, queue: str, chain: list[Any], now: float, room: int) -> float | None:
    """Add to the first of a key what may be received with it; when one of those is held, until when."""
    rows = database._execute(_BEHIND, (queue, chain[0][4], chain[0][0], -1))
    held = None
    for row in rows:
        attempts, due = row[1], row[7]
        if due > now:
            held = due if attempts else None  # else it is a delay
            break
        if len(chain) < room:
            chain.append(row)
        elif not attempts:  # nor was any behind it received
            break
    rows.close()
    return held


def expired(database: Database, queue: str, now: float, born: float, keep: float, count: int) -> list[Claim]:
    found: list[Claim] = []
    rows = database._execute(_EXPIRED, (queue, now, now - keep))
    for seq, attempts, accepted, packed, key, deaths, redriven in rows:
        if len(found) == count:
            break
        if seq not in database.taken:
            found.append(claimed(seq, queue, readable(packed), attempts, accepted + born, len(packed), key, deaths, bool(redriven)))
    rows.close()
    database._run(_TAKE, 1, [claim.seq for claim in found])
    return found


def clear(database: Database, queue: str, before: int) -> int:
    """Delete some of what waits and came before that seq; 0: there is none left."""
    for statement in (_PARKED, _WAITING):
        rows = [row for row in database._rows(statement, (queue, before, _SLICE + len(database.taken))) if row[0] not in database.taken]
        if rows:
            database._run(_DELETE, 1, [seq for seq, _ in rows])
            database.live -= len(rows)
            database.promote(dict.fromkeys((queue, key) for _, key in rows if key is not None))
            return len(rows)
    return 0


def queue_depth(database: Database, queue: str, now: float) -> QueueDepth:
    held = delayed = count = 0
    for where in ("INDEXED BY waiting WHERE state = 0", "INDEXED BY keyed WHERE key IS NOT NULL AND state < 2 AND state = -1"):
        some = database._rows(f"{_DEPTH} {where} AND function = ?2", (now, queue))[0]
        held, delayed, count = held + (some[0] or 0), delayed + (some[1] or 0), count + some[2]
    run = "SELECT count(*) FROM invocation WHERE function = ? AND seq IN (SELECT value FROM json_each(?))"
    running: int = database._execute(run, (queue, msgspec.json.encode(list(database.taken)).decode())).get
    return QueueDepth(count - held - delayed - running, held, delayed)


def remove(database: Database, queue: str, seq: int, receives: int) -> tuple[bool, list[str]]:
    """Whether it was there, and the functions of which a row that was parked behind it waits now."""
    removed = database._rows(_REMOVE, (seq, queue, receives))
    database.live -= len(removed)
    return bool(removed), database.promote((function, key) for function, key in removed if key is not None)


def hide(database: Database, queue: str, seq: int, receives: int, until: float) -> bool:
    database._execute(_HIDE, (until, seq, queue, receives))
    return database._connection.changes() == 1
