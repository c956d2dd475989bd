"""A small HTTP service: routes, typed bodies, query parameters, answers with a status, a shared database."""

import sqlite3
from collections.abc import Iterator
from typing import Annotated

import msgspec

from eventrouter import Depends, Response, on
from eventrouter_http import http


class Note(msgspec.Struct):
    text: Annotated[str, msgspec.Meta(min_length=1, max_length=500)]
    done: bool = False


def database() -> Iterator[sqlite3.Connection]:
    """Made once, at its first use; closed when the router stops."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("CREATE TABLE note (id INTEGER PRIMARY KEY, text TEXT, done BOOLEAN)")
    yield connection
    connection.close()


Database = Annotated[sqlite3.Connection, Depends(database, scope="process")]


@on(http("POST /notes"))
async def add_note(note: Note, db: Database) -> Response:
    added = db.execute("INSERT INTO note (text, done) VALUES (?, ?)", (note.text, note.done)).lastrowid
    return Response({"id": added}, status=201, headers={"Location": f"/notes/{added}"})


@on(http("GET /notes/{id}"))
async def get_note(id: int, db: Database) -> Response:
    row = db.execute("SELECT text, done FROM note WHERE id = ?", (id,)).fetchone()
    return Response(Note(row[0], bool(row[1]))) if row else Response({"detail": f"there is no note {id}"}, status=404)


@on(http("GET /notes"))
async def list_notes(db: Database, done: bool = False, limit: int = 20) -> list[str]:
    """`done` and `limit` have defaults: they are query parameters, as in `/notes?done=true&limit=5`."""
    return [text for (text,) in db.execute("SELECT text FROM note WHERE done = ? LIMIT ?", (done, limit))]
