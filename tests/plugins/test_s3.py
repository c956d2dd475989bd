"""Buckets are real folders; files are written as people and programs write them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buckets import ALL, Seen, app_of, bucket, watching
from eventrouter import Event, on
from eventrouter.errors import ConfigError, EventRouterError
from eventrouter.operations import Operations
from eventrouter.routing import Index
from eventrouter_s3 import Bucket, S3Object, changes, files, s3, source
from eventrouter_s3.manifest import Change, Manifest
from eventrouter_s3.manifest import Seen as Version
from eventrouter_s3.source import S3Source
from support import local, put, until

__all__ = ["bucket"]


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


async def test_what_is_moved_within_the_bucket_is_a_copy(tmp_path: Path, bucket: Path) -> None:
    """As `aws s3 mv` does it: a copy is made, and the original deleted. What comes from elsewhere is an upload."""
    seen = Seen(s3("uploads", *ALL))
    (tmp_path / "new").write_text("new")
    async with watching(tmp_path, seen.handler):
        (bucket / "tree" / "deep").mkdir(parents=True)
        for name in ("tree/1", "tree/deep/2"):
            (bucket / name).write_text(name)
        (tmp_path / "new").rename(bucket / "from outside")
        await until(lambda: len(seen.objects) == 3)
        assert {it.event for it in seen.objects} == {"ObjectCreated:Put"}
        seen.objects.clear()
        (bucket / "tree").rename(bucket / "moved")
        await until(lambda: len(seen.objects) == 4)
        (bucket / "moved" / "1").replace(bucket / "moved" / "deep" / "2")
        await until(lambda: len(seen.objects) == 6)
        os.link(bucket / "from outside", bucket / "twice")
        await until(lambda: len(seen.objects) == 7)
    copied, removed = "ObjectCreated:Copy", "ObjectRemoved:Delete"
    assert sorted((it.event, it.key) for it in seen.objects) == sorted(
        [
            (copied, "moved/1"), (copied, "moved/deep/2"), (removed, "tree/1"), (removed, "tree/deep/2"),
            (copied, "moved/deep/2"), (removed, "moved/1"), (copied, "twice"),
        ]
    )  # fmt: skip


async def test_an_atomic_replace_is_a_copy_and_what_a_client_writes_is_put(tmp_path: Path, bucket: Path) -> None:
    puts, copies = Seen(s3("uploads", "ObjectCreated:Put")), Seen(s3("uploads", "ObjectCreated:Copy"))
    copies.handler.__name__ = "copies"
    async with watching(tmp_path, puts.handler, copies.handler) as app:
        (bucket / "a").write_text("one")
        await until(lambda: len(puts.objects) == 1)
        (bucket / ".a.tmp").write_text("two")
        (bucket / ".a.tmp").replace(bucket / "a")
        await until(lambda: len(copies.objects) == 1)
        (bucket / "a").write_text("three")
        await until(lambda: len(puts.objects) == 2)
        source = app.sources["s3"]
        assert isinstance(source, S3Source)
        await source.write("uploads", "a", b"four")
        await until(lambda: len(puts.objects) == 3)
    (tmp_path / "five").write_text("five5")
    (tmp_path / "five").replace(bucket / "a")
    async with watching(tmp_path, puts.handler, copies.handler):
        await until(lambda: len(copies.objects) == 2)
    assert [it.size for it in copies.objects] == [3, 5]


async def test_a_move_while_the_router_was_down_is_a_copy_too(tmp_path: Path, bucket: Path) -> None:
    puts, copies = Seen(s3("uploads", "ObjectCreated:Put")), Seen(s3("uploads", "ObjectCreated:Copy", "ObjectRemoved:Delete"))
    copies.handler.__name__ = "copies"
    async with watching(tmp_path, puts.handler, copies.handler):
        (bucket / "a").write_text("x")
        await until(lambda: puts.objects)
    (bucket / "a").rename(bucket / "b")
    async with watching(tmp_path, puts.handler, copies.handler):
        await until(lambda: len(copies.objects) == 2)
    assert copies.changes == [("Created", "b"), ("Removed", "a")]
    assert puts.changes == [("Created", "a")]


async def test_files_with_names_of_unfinished_ones_are_no_objects(tmp_path: Path, bucket: Path) -> None:
    seen = Seen(s3("uploads", *ALL))
    async with watching(tmp_path, seen.handler):
        for name in ("a.csv.tmp", "b.part", "c.partial", "d.crdownload", "e~", ".f.swp"):
            (bucket / name).write_text("x")
        (bucket / "a.csv.tmp").rename(bucket / "a.csv")
        await until(lambda: seen.objects)
    assert [(it.event, it.key) for it in seen.objects] == [("ObjectCreated:Put", "a.csv")]
    async with watching(tmp_path, seen.handler, toml='[s3]\nignore = ["e*"]'):
        await until(lambda: len(seen.objects) == 4)
    assert seen.changes[1:] == [("Created", "b.part"), ("Created", "c.partial"), ("Created", "d.crdownload")]


async def test_a_trigger_for_files_that_are_ignored_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"seen: s3 uploads .* suffix=.tmp: files that end so count as unfinished"):
        app_of(tmp_path, Seen(s3("uploads", suffix=".tmp")).handler)
    with pytest.raises(ConfigError, match=r"\[s3\] ignore: 'a/b': patterns are of file names"):
        app_of(tmp_path, Seen(s3("uploads")).handler, toml='[s3]\nignore = ["a/b"]')
    app_of(tmp_path, Seen(s3("uploads", suffix=".tmp")).handler, toml="[s3]\nignore = []")


async def test_sequencers_order_the_events_of_a_key_across_restarts(tmp_path: Path, bucket: Path) -> None:
    seen = Seen(s3("uploads", *ALL))
    for round in range(3):
        async with watching(tmp_path, seen.handler):
            (bucket / "a").write_text("x" * round)
            await until(lambda: len(seen.objects) % 3 == 1)
            (bucket / "a").write_text("y" * round)
            await until(lambda: len(seen.objects) % 3 == 2)
        (bucket / "a").unlink()
        async with watching(tmp_path, seen.handler):
            await until(lambda: len(seen.objects) % 3 == 0)
    sequencers = [it.sequencer for it in seen.objects]
    assert len(sequencers) == 9
    assert sequencers == sorted(set(sequencers))
    assert all(len(it) == 18 and int(it, 16) for it in sequencers)


def test_sequencers_grow_though_the_clock_is_set_back(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path / "m.db")
    version = manifest.next_version("k", 1000)
    put = Change("k", "ObjectCreated:Put", Version(1, 2, 3, version), 0.0, "e")
    manifest.report([put])
    later = manifest.next_version("k", 500)
    manifest.report([put._replace(seen=Version(2, 2, 3, later))])
    gone = Change("k", "ObjectRemoved:Delete", Version(2, 2, 3, later), 0.0)
    manifest.report([gone])
    again = Change("k", "ObjectCreated:Put", Version(1, 2, 3, manifest.next_version("k", 10)), 0.0, "e")
    assert put.sequencer < f"{later:016X}00" < gone.sequencer < again.sequencer
    manifest.close()


async def test_a_disk_that_is_unmounted_while_it_runs_is_no_mass_removal(
    tmp_path: Path, bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "_RESCAN", 0.1)
    seen = Seen(s3("uploads", *ALL))
    async with watching(tmp_path, seen.handler) as app:
        (bucket / "a").write_text("x")
        await until(lambda: seen.objects)
        bucket.rename(tmp_path / "unmounted")
        await until(lambda: "bring it back" in app.sources["s3"].router.state)
        (tmp_path / "unmounted").rename(bucket)
        await until(lambda: app.sources["s3"].router.state == "live")
        (bucket / "b").write_text("x")
        await until(lambda: len(seen.objects) == 2)
    assert seen.changes == [("Created", "a"), ("Created", "b")]


async def test_a_folder_that_cannot_be_read_has_not_gone(
    tmp_path: Path, bucket: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Seen(s3("uploads", *ALL))
    async with watching(tmp_path, seen.handler):
        (bucket / "shut").mkdir()
        (bucket / "shut" / "a").write_text("x")
        await until(lambda: seen.objects)
    opened = files.opened

    def refuses(folder: Path, inside: str = "", **more: Any) -> Any:
        if inside.startswith("shut/"):
            raise PermissionError(13, "Permission denied", inside)
        return opened(folder, inside, **more)

    with monkeypatch.context() as patched:  # the tests may be root's, who may read everything
        patched.setattr(files, "opened", refuses)
        async with watching(tmp_path, seen.handler):
            (bucket / "b").write_text("x")
            await until(lambda: len(seen.objects) == 2)
    assert "can't look into 'shut/', so nothing of it is reported: Permission denied" in caplog.text
    async with watching(tmp_path, seen.handler):
        (bucket / "c").write_text("x")
        await until(lambda: len(seen.objects) == 3)
    assert seen.changes == [("Created", "shut/a"), ("Created", "b"), ("Created", "c")]


async def test_a_damaged_manifest_is_named(tmp_path: Path, bucket: Path) -> None:
    seen = Seen(s3("uploads"))
    async with watching(tmp_path, seen.handler) as app:
        (file,) = (tmp_path / ".eventrouter" / "s3").glob("*.db")
    file.write_bytes(b"no database at all, but long enough to look at" * 50)
    async with app_of(tmp_path, seen.handler) as app:
        await until(lambda: f"{file}: file is not a database; delete it" in app.sources["s3"].router.state)


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


async def test_what_was_delivered_but_not_noted_down_runs_once(tmp_path: Path, bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a crash between the journal's commit and the manifest's."""
    seen = Seen(s3("uploads", *ALL))
    async with watching(tmp_path, seen.handler):
        (bucket / "goes").write_text("x")
        await until(lambda: seen.objects)
    with monkeypatch.context() as patched:
        patched.setattr(Manifest, "report", lambda self, changes: None)
        async with watching(tmp_path, seen.handler):
            (bucket / "a").write_text("x")
            (bucket / "goes").unlink()
            await until(lambda: len(seen.objects) == 3)
    async with watching(tmp_path, seen.handler) as app:
        await until(lambda: app.engine.intake.repeats == 2)
        (bucket / "b").write_text("x")
        await until(lambda: len(seen.objects) == 4)
    assert sorted(seen.changes) == [("Created", "a"), ("Created", "b"), ("Created", "goes"), ("Removed", "goes")]


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
    monkeypatch.setattr(changes, "_leases_work", lambda folder: False)
    monkeypatch.setattr(changes, "_STILL", 0.1)
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
        (lambda: s3("up", "ObjectMoved:*"), "S3 has no event 'ObjectMoved:*'; did you mean 'ObjectRemoved:*'?"),
        (lambda: s3("up", "s3:ObjectRestore:*"), "ObjectRestore:* never happens in a folder, which has no archive"),
        (lambda: Bucket("a\0b"), "a bucket's name is a folder's"),
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


TEXTS = st.text("ab/.", max_size=5)


@given(prefix=TEXTS, suffix=TEXTS, key=st.text("ab/.", min_size=1, max_size=8))
def test_the_index_hides_no_key_that_is_wanted(prefix: str, suffix: str, key: str) -> None:
    trigger = s3("bucket", prefix=prefix, suffix=suffix)
    index: Index[str] = Index()
    index.add(trigger.path, "it")
    if trigger.matches(Event("s3", "s3.ObjectCreated:Put", f"bucket/{key}")) is not None:
        assert index.find(f"bucket/{key}") == ("it",)
