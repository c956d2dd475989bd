"""Clients reach what is in the bucket, whole, and nothing else; and what handlers write starts no endless loop."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from buckets import ALL, Seen, app_of, bucket, watching
from eventrouter import on
from eventrouter.errors import ConfigError, NotRunning
from eventrouter.journal.protocol import LetterQuery
from eventrouter.operations import Operations
from eventrouter_s3 import Bucket, S3Object, s3
from support import local, put, until

__all__ = ["bucket"]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_text("secret")
    return folder


async def refused(call: Any) -> str:
    with pytest.raises((ValueError, OSError)) as caught:
        await call
    return str(caught.value)


async def test_keys_that_are_none(tmp_path: Path, bucket: Path) -> None:
    async with watching(tmp_path, Seen(s3("uploads")).handler):
        out = Bucket("uploads")
        for key in ("", "/", "/etc/passwd", "../x", "a/../../x", "a/./b", "a//b", "a/", ".x", "a/.x/b", "a\0b", ".."):
            for call in (out.read(key), out.write(key, b""), out.delete(key)):
                assert "parts between '/' can't be empty, begin with a dot or hold NUL" in await refused(call)
        assert "taken for unfinished ones, see [s3] ignore" in await refused(out.write("a.tmp", b""))
        assert await refused(out.write("\udcff", b""))
        assert await out.list("../") == await out.list("/etc/") == await out.list(".") == []
    assert list(bucket.iterdir()) == []


async def test_links_lead_nowhere(tmp_path: Path, bucket: Path, outside: Path) -> None:
    (bucket / "to folder").symlink_to(outside)
    (bucket / "to file").symlink_to(outside / "secret")
    (bucket / "real").mkdir()
    (bucket / "real" / "inner").symlink_to(outside)
    async with watching(tmp_path, Seen(s3("uploads")).handler):
        out = Bucket("uploads")
        for key in ("to folder/secret", "real/inner/secret", "to folder/new/deep"):
            for call in (out.read(key), out.write(key, b"x"), out.delete(key)):
                assert "is a link, and links are no" in await refused(call)
        assert "is a link, and links are no objects" in await refused(out.read("to file"))
        await out.delete("to file")
        assert (bucket / "to file").is_symlink()
        assert await out.list() == await out.list("to folder/") == []
        await out.write("to file", b"an object now")
        assert await out.read("to file") == b"an object now"
    assert [(path.name, path.read_text()) for path in outside.iterdir()] == [("secret", "secret")]


async def test_a_folder_that_a_link_takes_the_place_of(tmp_path: Path, bucket: Path, outside: Path) -> None:
    seen = Seen(s3("uploads", *ALL))
    async with watching(tmp_path, seen.handler):
        (bucket / "sub").mkdir()
        (bucket / "sub" / "a").write_text("x")
        await until(lambda: seen.objects)
        (bucket / "sub").rename(tmp_path / "away")
        (bucket / "sub").symlink_to(outside)
        (outside / "later").write_text("x")
        await until(lambda: len(seen.objects) == 2)
        (bucket / "z").write_text("x")
        await until(lambda: len(seen.objects) == 3)
    assert seen.changes == [("Created", "sub/a"), ("Removed", "sub/a"), ("Created", "z")]


async def test_errors_that_teach(tmp_path: Path, bucket: Path) -> None:
    out = Bucket("uploads")
    with pytest.raises(NotRunning, match="call this inside a handler"):
        await out.read("a")
    async with watching(tmp_path, Seen(s3("uploads")).handler):
        with pytest.raises(FileNotFoundError, match="no such object: 'uploads/a/b'"):
            await out.read("a/b")
        with pytest.raises(TypeError, match="data is bytes or str, not dict; encode it first"):
            await out.write("a", {"x": 1})  # type: ignore[arg-type]
        await out.write("a/b", "x")
        assert "a file can't have the name of a folder" in await refused(out.write("a", "x"))
        assert "a file can't have the name of a folder" in await refused(out.write("a/b/c", "x"))
        with pytest.raises(FileNotFoundError, match="no such object"):
            await out.read("a")
        await out.delete("a")
        await out.delete("a/b/c")
        os.mkfifo(bucket / "pipe")
        with pytest.raises(FileNotFoundError, match="no such object"):
            await out.read("pipe")
        assert await out.list() == ["a/b"]
    assert sorted(path.name for path in (bucket / "a").iterdir()) == ["b"]


async def test_readers_never_see_a_part(tmp_path: Path, bucket: Path) -> None:
    out = Bucket("uploads")
    versions = [bytes([n]) * 2_000_000 for n in range(2)]
    async with watching(tmp_path, Seen(s3("others")).handler):
        await out.write("big", versions[0])

        async def write() -> None:
            for n in range(20):
                await out.write("big", versions[n % 2])

        writer = asyncio.create_task(write())
        while not writer.done():
            assert await out.read("big") in versions
        await writer
    assert [path.name for path in bucket.iterdir()] == ["big"]


async def test_a_handler_that_writes_into_the_bucket_that_starts_it_is_stopped(tmp_path: Path, bucket: Path) -> None:
    runs: list[str] = []

    @on(s3("uploads"))
    async def copy(it: S3Object) -> None:
        runs.append(it.key)
        await Bucket("uploads").write(f"{it.key}-copy", b"x")

    @on(s3("threads"))
    def rewrite(it: S3Object) -> None:
        runs.append("threads")
        Bucket("threads").sync.write(it.key, str(len(runs)))

    async with watching(tmp_path, copy, rewrite) as app:
        (bucket / "a").write_text("x")
        (tmp_path / "buckets" / "threads" / "b").write_text("x")
        await until(lambda: all(lane.dead == 1 for lane in app.engine.lanes.values()))
        await app.journal.flush()
        letters = await app.journal.dead(LetterQuery())
        assert not app.sources["s3"]._written  # type: ignore[attr-defined]
        runs.clear()
        (bucket / "b").write_text("x")  # by somebody else: a new chain
        await until(lambda: runs)
    assert {(letter.function, letter.reason) for letter in letters} == {("copy", "RecursiveLoop"), ("rewrite", "RecursiveLoop")}
    (copied,) = (letter for letter in letters if letter.function == "copy")
    assert copied.event.subject == "uploads/a" + 16 * "-copy"


async def test_deleting_and_writing_again_is_a_loop_too(tmp_path: Path, bucket: Path) -> None:
    runs: list[str] = []

    @on(s3("uploads", "ObjectCreated:*"))
    async def remove(it: S3Object) -> None:
        runs.append(it.event)
        await Bucket("uploads").delete(it.key)

    @on(s3("uploads", "ObjectRemoved:*"))
    async def restore(it: S3Object) -> None:
        runs.append(it.event)
        await Bucket("uploads").write(it.key, b"x")

    async with watching(tmp_path, remove, restore) as app:
        (bucket / "a").write_text("x")
        await until(lambda: sum(lane.dead for lane in app.engine.lanes.values()) == 1)
    assert len(runs) == 32


async def test_what_one_function_writes_starts_another(tmp_path: Path, bucket: Path) -> None:
    seen = Seen(s3("uploads", key="{folder}/{rest+}"))

    @on(local("go"))
    async def handler(payload: Any) -> None:
        await Bucket("uploads").write("a/b/c d.txt", "x")
        await Bucket("uploads").write("not this", "x")

    async with watching(tmp_path, handler, seen.handler) as app:
        for _ in range(20):  # often, but each by itself
            await put(app, "go")
        await until(lambda: app.engine.lanes["handler"].succeeded == 20)
        await until(lambda: seen.objects)
        assert not app.engine.lanes["seen"].dead
    assert seen.objects[0].key == "a/b/c d.txt"


async def test_send_names_what_is_wrong(tmp_path: Path, bucket: Path) -> None:
    (tmp_path / "here").write_text("x")
    (bucket / "folder").mkdir()
    async with app_of(tmp_path, Seen(s3("uploads")).handler) as app:
        send = Operations(app).send
        for words, fault in (
            (["uploads", "folder", "here"], "a file can't have the name of a folder"),
            (["uploads", "a", "folder"], "folder: No such file or directory"),
            (["up/loads", "a", "here"], "a bucket's name is a folder's"),
        ):
            with pytest.raises(ConfigError, match=fault):
                await send("s3", words, {}, str(tmp_path))
