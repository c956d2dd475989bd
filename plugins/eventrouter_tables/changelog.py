"""The triggers that write a SQLite table's changes down, as SQL. Whoever changes the table runs them, in his own transaction.

`eventrouter_changes` has a row for each change: old and new image as SQL literals, which lose nothing (JSON would: large numbers,
bytes, which of 1 and 1.0 it was). Names and order of the columns are in `eventrouter_shapes`.

A row that REPLACE removes fires no DELETE trigger, unless that connection has `recursive_triggers` on. So the rows in the way
are noted in `eventrouter_replaced` before each change, and looked at again after it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

KEEP = 86_400  # seconds, as DynamoDB Streams does

SCHEMA = """
CREATE TABLE IF NOT EXISTS eventrouter_changes (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, shape INTEGER NOT NULL, at REAL NOT NULL, old TEXT, new TEXT
);
CREATE TABLE IF NOT EXISTS eventrouter_shapes (shape INTEGER PRIMARY KEY, name TEXT NOT NULL, columns TEXT NOT NULL, key TEXT NOT NULL,
    UNIQUE (name, columns, key));
CREATE TABLE IF NOT EXISTS eventrouter_replaced (shape INTEGER NOT NULL, key TEXT NOT NULL, old TEXT NOT NULL, seq INTEGER);
CREATE TABLE IF NOT EXISTS eventrouter_stream (prefix INTEGER NOT NULL, created REAL NOT NULL);
"""
_NOW = "(julianday('now') - 2440587.5) * 86400.0"


class Shape(msgspec.Struct, frozen=True):
    """A table as its triggers see it. key: its primary key's columns, else the row's number.

    unique: what no two rows have in common: columns with their collations. numbered: the key is a number that SQLite makes up.
    """

    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    unique: tuple[tuple[tuple[str, str], ...], ...]
    numbered: bool


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def triggers(shape: Shape, number: int) -> dict[str, str]:
    """By name, the statements that make them. number: the shape's in `eventrouter_shapes`."""
    table = quoted(shape.name)
    log = "INSERT INTO eventrouter_changes (shape, at, old, new)"
    forget = f"DELETE FROM eventrouter_replaced WHERE shape = {number}"
    unseen = f"{log} SELECT shape, {_NOW}, old, NULL FROM eventrouter_replaced WHERE shape = {number} AND seq IS NULL"
    trim = (
        f"DELETE FROM eventrouter_changes WHERE seq IN (SELECT seq FROM eventrouter_changes ORDER BY seq LIMIT 2) AND at < {_NOW} - {KEEP}"
    )
    old, new, old_key, new_key = (_literals(row, names) for names in (shape.columns, shape.key) for row in ("OLD", "NEW"))
    mine = f"shape = {number} AND key = {new_key}"
    # Before a row has got its number, it is -1.
    spared = f" AND NOT (key = '-1' AND EXISTS (SELECT 1 FROM {table} WHERE {quoted(shape.key[0])} = -1))" if shape.numbered else ""
    bodies = {
        "BEFORE INSERT": [forget, *_note(shape, number, "")],
        "AFTER INSERT": [
            # With recursive_triggers, the row that gave way has been logged as deleted.
            f"DELETE FROM eventrouter_changes WHERE seq IN (SELECT seq FROM eventrouter_replaced WHERE {mine})",
            f"{unseen} AND key <> {new_key}{spared}",
            f"{log} VALUES ({number}, {_NOW}, (SELECT old FROM eventrouter_replaced WHERE {mine}), {new})",
            forget,
            trim,
        ],
        "BEFORE UPDATE": [forget, *_note(shape, number, old_key)],
        "AFTER UPDATE": [unseen, forget, f"{log} VALUES ({number}, {_NOW}, {old}, {new})", trim],
        "AFTER DELETE": [
            f"{log} VALUES ({number}, {_NOW}, {old}, NULL)",
            f"UPDATE eventrouter_replaced SET seq = last_insert_rowid() WHERE shape = {number} AND key = {old_key}",
            trim,
        ],
    }
    made = {}
    for when, statements in bodies.items():
        name = f"eventrouter_{shape.name}_{when.lower().replace(' ', '_')}"
        body = "".join(f"\n  {statement};" for statement in statements)
        made[name] = f"CREATE TRIGGER {quoted(name)} {when} ON {table} BEGIN{body}\nEND"
    return made


def _note(shape: Shape, number: int, own: str) -> list[str]:
    """Statements that note the rows that NEW can't stand beside. own: the key of the row that becomes NEW; empty for an INSERT."""
    rows = []
    for columns in shape.unique:
        where = " AND ".join(f"r.{quoted(name)} = NEW.{quoted(name)} COLLATE {quoted(collation)}" for name, collation in columns)
        if own:
            moved = " OR ".join(f"OLD.{quoted(name)} IS NOT NEW.{quoted(name)}" for name, _ in columns)
            where = f"({moved}) AND {where} AND {_literals('r', shape.key)} <> {own}"
        rows.append(
            f"SELECT {number}, {_literals('r', shape.key)}, {_literals('r', shape.columns)} FROM {quoted(shape.name)} AS r WHERE {where}"
        )
    return ["INSERT INTO eventrouter_replaced (shape, key, old) " + " UNION ".join(rows)]


def _literals(row: str, names: Sequence[str]) -> str:
    """An expression: the row's values as SQL literals, with commas between."""
    if len(names) > 1:  # halved, because the depth of an expression is limited
        half = len(names) // 2
        return f"({_literals(row, names[:half])} || ',' || {_literals(row, names[half:])})"
    value = f"{row}.{quoted(names[0])}"
    # quote() ends at a NUL.
    return (
        f"CASE WHEN typeof({value}) = 'text' AND instr({value}, char(0)) THEN 'T' || quote(CAST({value} AS BLOB)) ELSE quote({value}) END"
    )


_LITERAL = re.compile(r"(?:'((?:[^']|'')*)'|(T?)X'([0-9A-F]*)'|(NULL)|([^,]+))(?:,|$)", re.DOTALL)


def read(literals: str, encoding: str) -> list[int | float | str | bytes | None]:
    """The values of a row that the triggers wrote. encoding: of the database."""
    values: list[int | float | str | bytes | None] = []
    for match in _LITERAL.finditer(literals):
        string, is_text, hexadecimal, null, number = match.groups()
        if string is not None:
            values.append(string.replace("''", "'"))
        elif hexadecimal is not None:
            blob = bytes.fromhex(hexadecimal)
            values.append(blob.decode(encoding, "replace") if is_text else blob)
        elif null:
            values.append(None)
        else:
            values.append(_number(number))
    return values


def _number(literal: str) -> int | float | str:
    if literal.lstrip("-").isdecimal():
        return int(literal)
    value = float(literal)
    if value in (float("inf"), float("-inf")):
        return "Infinity" if value > 0 else "-Infinity"  # no number in JSON, and none in DynamoDB
    return value
