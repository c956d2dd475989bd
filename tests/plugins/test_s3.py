"""Buckets are real folders; files are written as people and programs write them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from eventrouter import App, on
from eventrouter.control import Operations
from eventrouter.errors import ConfigError, EventRouterError
from eventrouter.plugins import Plugins
from eventrouter_s3 import Bucket, S3Object, eventrouter_plugin, files, s3
from support import LOCAL, local, make_app, put, until


def app_of(folder: Path, *handlers: Callable[..., Any], toml: str = "") -> App:
    return make_app(folder, *handlers, toml=toml, plugins=Plugins([LOCAL, eventrouter_plugin()]))


@asynccontextmanager
async def watching(folder: Path, *handlers: Callable[..., Any], toml: str = "") -> AsyncIterator[App]:
    async with app_of(folder, *handlers, toml=toml) as app:
        await until(lambda: app.supervisor and app.supervisor.ready.is_set())
        yield app


class Seen:
    """A handler that notes down what it gets."""

    def __init__(self, *triggers: Any) -> None:
        self.objects: list[S3Object] = []

        @on(*triggers)
        async def seen(it: S3Object) -> None:
            self.objects.append(it)

        self.handler = seen

    @property
    def changes(self) -> list[tuple[str, str]]:
        return [(it.event.partition(":")[0].removeprefix("Object"), it.key) for it in self.objects]


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    folder = tmp_path / "buckets" / "uploads"
    folder.mkdir(parents=True)
    return folder


ALL = ("ObjectCreated:*", "ObjectRemoved:*")


async def test_created_replaced_and_removed(tmp_path: Path, bucket: Path) -> None:
    seen = Seen(s3("uploads", *ALL))
    async with watching(tmp_path, seen.handler):
        (bucket / "a.txt").write_text("one")
        await until(lambda: len(seen.objects) == 1)
        (bucket / "a.txt").write_text("two!")
        await until(lambda: len(seen.objects) == 2)
        (bucket / "a.txt").unlink()
        await until(lambda: len(seen.objects) == 3)
    assert seen.changes == [("Created", "a.txt"), ("Created", "a.txt"), ("Removed", "a.txt")]
    first, second, gone = seen.objects
    assert (second.size, second.etag) == (4, hashlib.md5(b"two!").hexdigest())
    assert first.sequencer < second.sequencer < gone.sequencer
    assert gone.size is None


async def test_only_finished_files(tmp_path: Path, bucket: Path) -> None:
    seen = Seen(s3("uploads"))
    async with watching(tmp_path, seen.handler):
        with (bucket / "slow").open("wb") as slow:
            slow.write(b"half")
            slow.flush()
            (bucket / "quick").write_text("x")
            await until(lambda: seen.objects)
            await asyncio.sleep(0.2)  # time in which a wrong router would report the half
            assert seen.changes == [("Created", "quick")]
            slow.write(b" and half")
        await until(lambda: len(seen.objects) == 2)
    assert (seen.objects[1].key, seen.objects[1].size) == ("slow", 13)


async def test_moves_folders_and_atomic_replacement(tmp_path: Path, bucket: Path) -> None:
    seen = Seen(s3("uploads", *ALL))
    outside = tmp_path / "outside"
    (outside / "deep" / "er").mkdir(parents=True)
    (outside / "deep" / "1").write_text("1")
    (outside / "deep" / "er" / "2").write_text("22")
    (outside / "new").write_text("new")
    async with watching(tmp_path, seen.handler):
        (outside / "deep").rename(bucket / "in")  # a whole folder, with files that nobody closes
        await until(lambda: len(seen.objects) == 2)
        assert sorted(seen.changes) == [("Created", "in/1"), ("Created", "in/er/2")]
        seen.objects.clear()
        (outside / "new").replace(bucket / "in" / "1")
        await until(lambda: len(seen.objects) == 1)
        assert (seen.changes, seen.objects[0].size) == ([("Created", "in/1")], 3)
        seen.objects.clear()
        (bucket / "in" / "1").rename(bucket / "moved")
        await until(lambda: len(seen.objects) == 2)
        assert sorted(seen.changes) == [("Created", "moved"), ("Removed", "in/1")]
        seen.objects.clear()
        (bucket / "in").rename(outside / "gone")
        await until(lambda: len(seen.objects) == 1)
        assert seen.changes == [("Removed", "in/er/2")]
        seen.objects.clear()
        shutil.copytree(outside / "gone", bucket / "copied" / "tree")
        await until(lambda: len(seen.objects) == 1)
        assert seen.changes == [("Created", "copied/tree/er/2")]


async def test_what_is_no_object(tmp_path: Path, bucket: Path, caplog: pytest.LogCaptureFixture) -> None:
    seen = Seen(s3("uploads"))
    async with watching(tmp_path, seen.handler):
        (bucket / ".hidden").write_text("x")
        (bucket / ".folder").mkdir()
        (bucket / ".folder" / "x").write_text("x")
        (bucket / "link").symlink_to("/etc/passwd")
        Path(os.fsdecode(bytes(bucket) + b"/\xff")).write_text("x")
        os.mkfifo(bucket / "pipe")
        (bucket / "last").write_text("x")
        await until(lambda: seen.objects and "is no object: its name is not UTF-8" in caplog.text)
    assert seen.changes == [("Created", "last")]


async def test_first_sight_is_the_baseline_and_a_restart_notices_what_changed_once(tmp_path: Path, bucket: Path) -> None:
    (bucket / "old").write_text("x")
    (bucket / "goes").write_text("x")
    (bucket / "changes").write_text("x")
    seen = Seen(s3("uploads", *ALL))
    async with watching(tmp_path, seen.handler):
        (bucket / "live").write_text("x")
        await until(lambda: seen.objects)
    assert seen.changes == [("Created", "live")]
    (bucket / "changes").write_text("other")
    (bucket / "goes").unlink()
    (bucket / "comes").write_text("x")
    for _ in range(2):
        async with watching(tmp_path, seen.handler) as app:
            await app.journal.flush()
            await until(lambda: len(seen.objects) == 4)
    assert sorted(seen.changes[1:]) == [("Created", "changes"), ("Created", "comes"), ("Removed", "goes")]


async def test_what_was_delivered_but_not_noted_down_runs_once(tmp_path: Path, bucket: Path) -> None:
    """As after a crash between the journal's commit and the manifest's line."""
    seen = Seen(s3("uploads"))
    async with watching(tmp_path, seen.handler):
        before = {path: path.read_bytes() for path in (tmp_path / ".eventrouter" / "s3").iterdir()}
        (bucket / "a").write_text("x")
        await until(lambda: seen.objects)
    for path, content in before.items():
        path.write_bytes(content + b'["torn')
    async with watching(tmp_path, seen.handler) as app:
        await until(lambda: app.engine.intake.repeats == 1)
        (bucket / "b").write_text("x")
        await until(lambda: len(seen.objects) == 2)
    assert seen.changes == [("Created", "a"), ("Created", "b")]


async def test_initial(tmp_path: Path, bucket: Path) -> None:
    (bucket / "old.csv").write_text("x")
    (bucket / "old.txt").write_text("x")
    wants, rests = Seen(s3("uploads", suffix=".csv", initial=True)), Seen(s3("uploads"))
    rests.handler.__name__ = "rests"
    for _ in range(2):
        async with watching(tmp_path, wants.handler, rests.handler):
            await until(lambda: wants.objects)
    assert (wants.changes, rests.changes) == ([("Created", "old.csv")], [])


async def test_a_folder_that_went_is_no_empty_bucket(tmp_path: Path, bucket: Path) -> None:
    seen = Seen(s3("uploads", *ALL))
    (bucket / "a").write_text("x")
    async with watching(tmp_path, seen.handler):
        pass
    bucket.rename(tmp_path / "unmounted")
    with pytest.raises(EventRouterError, match="bucket uploads had objects, but its folder .* is gone; bring it back, or delete"):
        async with watching(tmp_path, seen.handler):
            pass
    (tmp_path / "unmounted").rename(bucket)
    async with watching(tmp_path, seen.handler):
        pass
    assert not seen.objects


async def test_filters_and_wildcards(tmp_path: Path, bucket: Path) -> None:
    got: list[Any] = []

    @on(s3("uploads", key="reports/{year}/{name}.csv"))
    async def by_key(year: int, name: str, it: S3Object) -> None:
        got.append((year, name, it.key))

    @on(s3("uploads", prefix="reports/", suffix=".txt"))
    async def by_ends(it: dict[str, Any]) -> None:
        got.append(it["key"])

    @on(s3("others"))
    async def other(it: S3Object) -> None:
        got.append("wrong")

    async with watching(tmp_path, by_key, by_ends, other):
        assert (tmp_path / "buckets" / "others").is_dir()
        (bucket / "reports" / "2026").mkdir(parents=True)
        for name in ("reports/2026/may.csv", "reports/2026/may.txt", "reports/may.csv", "x.txt"):
            (bucket / name).write_text("x")
        await until(lambda: len(got) == 2)
    assert sorted(got, key=str) == [(2026, "may", "reports/2026/may.csv"), "reports/2026/may.txt"]


async def test_a_lambda_function_gets_amazons_record(tmp_path: Path, bucket: Path, cases: Path) -> None:
    lines = map(json.loads, (cases / "events" / "sam_generate_event_rendered.jsonl").read_text().splitlines())
    sample = next(line["rendered"] for line in lines if line["service"] == "s3" and line["event"] == "put")["Records"][0]
    got: list[Any] = []

    @on(s3("uploads"))
    def handler(event, context):  # type: ignore[no-untyped-def]
        got.append(event["Records"][0])

    async with watching(tmp_path, handler):
        (bucket / "a folder").mkdir()
        (bucket / "a folder" / "grüezi+.txt").write_text("x")
        await until(lambda: got)
    (record,) = got
    assert record.keys() == sample.keys()
    assert record["s3"].keys() == sample["s3"].keys()
    assert record["s3"]["object"].keys() == sample["s3"]["object"].keys()
    assert record["eventName"] == "ObjectCreated:Put"
    assert record["s3"]["object"]["key"] == "a+folder/gr%C3%BCezi%2B.txt"
    assert record["eventTime"].endswith("Z")


async def test_clients_read_write_list_and_delete(tmp_path: Path, bucket: Path) -> None:
    got: list[Any] = []

    @on(local("go"))
    async def handler(payload: Any) -> None:
        out = Bucket("uploads")
        await out.write("a/b.txt", "text")
        await out.write("a/c", b"\xff")
        got.append(await out.read("a/b.txt"))
        got.append(await out.list("a/"))
        await out.delete("a/c")
        await out.delete("a/c")
        got.append(await out.list())
        for key in ("../x", "a//b", "", ".x", "/etc/passwd", "out/passwd"):
            try:
                await out.read(key)
            except ValueError as error:
                got.append(str(error)[:4])

    @on(local("threaded"))
    def threaded(payload: Any) -> None:
        Bucket("made").sync.write("k", b"v")
        got.append((Bucket("made").sync.read("k"), Bucket("made").sync.list()))
        Bucket("made").sync.delete("k")

    (bucket / "out").symlink_to("/etc")
    seen = Seen(s3("uploads"))
    async with watching(tmp_path, handler, threaded, seen.handler) as app:
        await put(app, "go")
        await until(lambda: len(got) == 9)
        assert got == [b"text", ["a/b.txt", "a/c"], ["a/b.txt"], *["key "] * 6]
        await until(lambda: ("Created", "a/b.txt") in seen.changes)
        got.clear()
        await put(app, "threaded")
        await until(lambda: got)
    assert got == [(b"v", ["k"])]


async def test_send_copies_a_file(tmp_path: Path, bucket: Path) -> None:
    seen = Seen(s3("uploads"))
    (tmp_path / "here.csv").write_text("1,2")
    async with watching(tmp_path, seen.handler) as app:
        send = Operations(app).send
        assert await send("s3", ["uploads", "in/there.csv", "here.csv"], {}, str(tmp_path)) == {
            "bucket": "uploads", "key": "in/there.csv", "size": 3,
        }  # fmt: skip
        await until(lambda: seen.objects)
        with pytest.raises(ConfigError, match=r"send s3: .*absent: No such file or directory"):
            await send("s3", ["uploads", "x", "absent"], {}, str(tmp_path))
        with pytest.raises(ConfigError, match=r"key '../x'"):
            await send("s3", ["uploads", "../x", "here.csv"], {}, str(tmp_path))
    assert seen.changes == [("Created", "in/there.csv")]


async def test_a_burst_of_files_loses_none(tmp_path: Path, bucket: Path) -> None:
    seen = Seen(s3("uploads"))
    count = 3000
    code = f"""
import pathlib
for n in range({count}):
    folder = pathlib.Path({str(bucket)!r}, str(n % 7))
    folder.mkdir(exist_ok=True)
    (folder / str(n)).write_text("x")
"""
    async with watching(tmp_path, seen.handler):
        writer = await asyncio.create_subprocess_exec("python3", "-c", code)
        await writer.wait()
        await until(lambda: len(seen.objects) >= count, 60)
    assert Counter(key for _, key in seen.changes) == Counter(f"{n % 7}/{n}" for n in range(count))


async def test_where_the_kernel_has_no_leases_a_file_must_lie_still(tmp_path: Path, bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_leases_work", lambda folder: False)
    monkeypatch.setattr(files, "_STILL", 0.1)
    seen = Seen(s3("uploads"))
    async with watching(tmp_path, seen.handler):
        (bucket / "closed").write_text("x")
        await until(lambda: len(seen.objects) == 1)
        (bucket / "closed").rename(bucket / "moved")
        await until(lambda: len(seen.objects) == 2)
    assert seen.changes == [("Created", "closed"), ("Created", "moved")]


async def test_buckets_elsewhere(tmp_path: Path) -> None:
    seen = Seen(s3("uploads"))
    async with watching(tmp_path, seen.handler, toml='[s3.buckets]\nuploads = "elsewhere/here"') as app:
        assert app.sources["s3"].lines() == [f"s3 bucket uploads in {tmp_path / 'elsewhere' / 'here'}"]
        (tmp_path / "elsewhere" / "here" / "a").write_text("x")
        await until(lambda: seen.objects)


async def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "buckets").write_text("a file")
    with pytest.raises(EventRouterError, match=r"s3: bucket uploads: .*; choose its folder with \[s3.buckets\] uploads"):
        async with app_of(tmp_path, Seen(s3("uploads")).handler):
            pass


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda: s3("a/b"), "bucket 'a/b': a bucket's name"),
        (lambda: s3("up", "ObjectMoved:*"), "event 'ObjectMoved:*' never happens in a folder; did you mean"),
        (lambda: s3("up", key="{a+}/b"), "nothing can follow it"),
        (lambda: Bucket(".x"), "no dot in front"),
    ],
)
def test_what_is_refused_at_load(make: Callable[[], Any], fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert fault in str(caught.value)


def test_events_may_be_written_with_amazons_prefix() -> None:
    assert str(s3("up", "s3:ObjectRemoved:*", suffix=".csv")) == "s3 up ObjectRemoved:* suffix=.csv"


def test_a_manifest_is_compacted(tmp_path: Path) -> None:
    file = tmp_path / "m.jsonl"
    manifest = files.Manifest(file)
    version = files.Seen(1, 2, 3, "A")
    for n in range(2000):
        manifest.report([files.Change("k", version._replace(size=n), "A", 0.0)])
    manifest.complete()
    manifest.close()
    again = files.Manifest(file)
    assert again.seen == {"k": version._replace(size=1999)}
    assert not again.is_new
    again.close()
    assert len(file.read_bytes().split()) == 2
