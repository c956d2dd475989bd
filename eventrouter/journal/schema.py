"""The SQLite journal's format: its tables, its versions, and how its rows are named."""

from __future__ import annotations

from typing import Final

import apsw
import msgspec

from eventrouter.model import Event

PARKED: Final = -1  # waits for others of its key that came before
WAITING: Final = 0
RUNNING: Final = 1
DONE: Final = 3
STATES: Final = ("waiting", "running", "dead", "done", "waiting")  # 2 is a dead letter; -1 is the last

APPLICATION: Final = 0x45565254  # "EVRT", in the file's header
VERSION: Final = 6

# In SQL the states are bare figures, as partial indexes are only used for those.
# Rows of the memory window (state 1) are in no index: what runs at once costs one insert and one delete.
# Rows that were taken from the file to run stay as they are (0), and are known in memory: the page of each would else be written
# twice. Of the live rows of one key only the first waits (0), or the first few run (1); the rest is parked (-1).
# What has no key, delay or note waits and runs in segments; progress is apart, as they are long, and SQLite writes rows anew as a whole.
# `seen` outlives the rows; its order by seq is the order of age in which it is trimmed.
SCHEMA: Final = """
CREATE TABLE invocation (
    seq INTEGER PRIMARY KEY, state INTEGER NOT NULL, attempts INTEGER NOT NULL, due REAL NOT NULL, accepted REAL NOT NULL,
    function TEXT NOT NULL, reason TEXT, error_type TEXT, error_message TEXT, event BLOB NOT NULL,
    deaths INTEGER NOT NULL DEFAULT 0, key TEXT) STRICT;
CREATE INDEX waiting ON invocation (function, due, seq) WHERE state = 0;
CREATE INDEX keyed ON invocation (function, key, seq) WHERE key IS NOT NULL AND state < 2;
CREATE INDEX dead ON invocation (seq, function) WHERE state = 2;
CREATE INDEX done ON invocation (due) WHERE state = 3;
CREATE TABLE seen (
    seq INTEGER PRIMARY KEY, source TEXT NOT NULL, event_id TEXT NOT NULL, function TEXT NOT NULL, at REAL NOT NULL,
    UNIQUE (source, event_id, function)) STRICT;
CREATE TABLE state (key TEXT PRIMARY KEY, value BLOB NOT NULL, expires REAL) STRICT, WITHOUT ROWID;
CREATE INDEX expiring ON state (expires) WHERE expires IS NOT NULL;
CREATE TABLE archive (seq INTEGER PRIMARY KEY, at REAL NOT NULL, function TEXT NOT NULL, event BLOB NOT NULL) STRICT;
CREATE INDEX archived ON archive (function, at);
CREATE TABLE segment (
    seq INTEGER PRIMARY KEY, function TEXT NOT NULL, count INTEGER NOT NULL, accepted REAL NOT NULL, events BLOB NOT NULL) STRICT;
CREATE INDEX segments ON segment (function, seq, count);
CREATE TABLE progress (seq INTEGER PRIMARY KEY, done BLOB NOT NULL) STRICT;
CREATE TABLE usage (
    day INTEGER NOT NULL, function TEXT NOT NULL, tags TEXT NOT NULL, invocations INTEGER NOT NULL, errors INTEGER NOT NULL,
    throttles INTEGER NOT NULL, billed INTEGER NOT NULL, memory INTEGER NOT NULL, init INTEGER NOT NULL,
    PRIMARY KEY (day, function, tags)) STRICT, WITHOUT ROWID;
CREATE TABLE audit (first INTEGER PRIMARY KEY, records BLOB NOT NULL, hashes BLOB NOT NULL, seal BLOB NOT NULL) STRICT;
CREATE TABLE audit_file (first INTEGER PRIMARY KEY, last INTEGER NOT NULL, digest BLOB NOT NULL) STRICT;
CREATE TABLE audit_head (last INTEGER NOT NULL, hash BLOB NOT NULL, seal BLOB NOT NULL) STRICT;
CREATE TABLE numbering (next INTEGER NOT NULL) STRICT;
INSERT INTO numbering VALUES (0);
"""
# What makes a file of that version one of the next.
UPGRADES: Final = {
    1: "ALTER TABLE invocation ADD COLUMN deaths INTEGER NOT NULL DEFAULT 0",
    2: """ALTER TABLE invocation ADD COLUMN key TEXT;
        CREATE INDEX keyed ON invocation (function, key, seq) WHERE key IS NOT NULL AND state < 2;
        ALTER TABLE state ADD COLUMN expires REAL;
        CREATE INDEX expiring ON state (expires) WHERE expires IS NOT NULL""",
    3: """CREATE TABLE archive (seq INTEGER PRIMARY KEY, at REAL NOT NULL, function TEXT NOT NULL, event BLOB NOT NULL) STRICT;
        CREATE INDEX archived ON archive (function, at)""",
    4: """CREATE TABLE segment (
        seq INTEGER PRIMARY KEY, function TEXT NOT NULL, count INTEGER NOT NULL, accepted REAL NOT NULL, events BLOB NOT NULL) STRICT;
        CREATE INDEX segments ON segment (function, seq, count);
        CREATE TABLE progress (seq INTEGER PRIMARY KEY, done BLOB NOT NULL) STRICT""",
    5: """CREATE TABLE usage (
        day INTEGER NOT NULL, function TEXT NOT NULL, tags TEXT NOT NULL, invocations INTEGER NOT NULL, errors INTEGER NOT NULL,
        throttles INTEGER NOT NULL, billed INTEGER NOT NULL, memory INTEGER NOT NULL, init INTEGER NOT NULL,
        PRIMARY KEY (day, function, tags)) STRICT, WITHOUT ROWID;
        CREATE TABLE audit (first INTEGER PRIMARY KEY, records BLOB NOT NULL, hashes BLOB NOT NULL, seal BLOB NOT NULL) STRICT;
        CREATE TABLE audit_file (first INTEGER PRIMARY KEY, last INTEGER NOT NULL, digest BLOB NOT NULL) STRICT;
        CREATE TABLE audit_head (last INTEGER NOT NULL, hash BLOB NOT NULL, seal BLOB NOT NULL) STRICT""",
}


def make(connection: apsw.Connection) -> None:
    """An empty journal out of an empty file; in a transaction of the caller's."""
    connection.execute(SCHEMA).fetchall()  # several statements run no further than they are read
    connection.pragma("application_id", APPLICATION)
    connection.pragma("user_version", VERSION)


def readable(packed: bytes) -> Event:
    """The event; one of source "journal" where it can't be read."""
    try:
        return Event.unpack(packed)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Event("journal", "journal.unreadable", "", packed, "application/octet-stream")
