"""The JSON that Lambda functions get is AWS's, field for field."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

import pytest

from buckets import bucket, watching
from eventrouter import App, Event, Trigger, on
from eventrouter.cli import cli
from eventrouter.errors import ConfigError
from eventrouter.plugins import Plugins
from eventrouter_s3 import S3Object, eventrouter_plugin, s3, sample
from eventrouter_s3.notifications import event_of
from source_contract import Outside, SourceContract
from support import LOCAL, until

__all__ = ["bucket"]

# What a sample has that a folder has not.
ABSENT = {
    "s3.object.versionId": "a folder keeps no versions",
    "s3.object.urlDecodedKey": "added by the Go library when it decodes, not by AWS",
    "glacierEventData": "nothing is archived",
    "restoreEventData": "nothing is archived",
    "replicationEventData": "nothing is replicated",
    "lifecycleEventData": "there are no lifecycle rules",
    "intelligentTieringEventData": "there are no storage classes",
}


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, type]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}".lstrip("."))
    else:
        yield path, type(value)


def samples(cases: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (cases / "events" / "events.jsonl").read_text().splitlines()]
    lines += [json.loads(line) for line in (cases / "events" / "sam_generate_event_rendered.jsonl").read_text().splitlines()]
    found: list[dict[str, Any]] = []
    for line in lines:
        event = line.get("rendered", line.get("event"))
        if isinstance(event, dict) and isinstance(event.get("Records"), list):
            found += [record for record in event["Records"] if record.get("eventSource") == "aws:s3"]
    return found


def test_every_field_of_the_samples_is_there_and_of_the_same_type(cases: Path) -> None:
    records = samples(cases)
    assert len(records) >= 11
    for record in records:
        removed = record["eventName"].startswith("ObjectRemoved")
        ours = dict(leaves(sample(event="ObjectRemoved:Delete" if removed else "ObjectCreated:Put")["Records"][0]))
        theirs = dict(leaves(record))
        if removed:
            theirs = {path: kind for path, kind in theirs.items() if path not in ("s3.object.size", "s3.object.eTag")}
        missing = {path: kind for path, kind in theirs.items() if ours.get(path) is not kind}
        assert all(path.startswith(tuple(ABSENT)) for path in missing), missing
        assert ours.keys() <= theirs.keys() | ABSENT.keys()


def test_keys_are_form_encoded() -> None:
    for key, encoded in {
        "a folder/may 2026.csv": "a+folder/may+2026.csv",
        "grüezi+100%.txt": "gr%C3%BCezi%2B100%25.txt",
        'it\'s "quoted" & (so).txt': "it%27s+%22quoted%22+%26+%28so%29.txt",
        "日本/語": "%E6%97%A5%E6%9C%AC/%E8%AA%9E",
    }.items():
        (record,) = sample("b", key)["Records"]
        assert record["s3"]["object"]["key"] == encoded
        assert unquote_plus(encoded) == key


async def test_an_aws_function_runs_unmodified(tmp_path: Path, bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written for AWS alone, with nothing but the standard library."""
    (tmp_path / "s3_lambda_function.py").write_text(
        "import json\nfrom urllib.parse import unquote_plus\n\n\ndef lambda_handler(event, context):\n"
        "    for record in event['Records']:\n"
        "        s3 = record['s3']\n"
        "        line = [record['eventName'], s3['bucket']['name'], unquote_plus(s3['object']['key']), s3['object'].get('size')]\n"
        "        got.append((json.dumps(line), len(context.aws_request_id), context.get_remaining_time_in_millis() > 0))\n\n\ngot = []\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from s3_lambda_function import got, lambda_handler  # type: ignore[import-not-found]

    got.clear()
    on(s3("uploads", "s3:ObjectCreated:*", "s3:ObjectRemoved:*"))(lambda_handler)
    keys = ['a folder/it\'s "q" (1)&+%.txt', "grüße/日本.txt", "new\nline"]
    async with watching(tmp_path, lambda_handler):
        for key in keys:
            path = bucket / key
            path.parent.mkdir(exist_ok=True)
            path.write_text("four")
            await until(lambda: len(got) == 1)
            path.unlink()
            await until(lambda: len(got) == 2)
            assert [(json.loads(line), length, left) for line, length, left in got] == [
                (["ObjectCreated:Put", "uploads", key, 4], 36, True),
                (["ObjectRemoved:Delete", "uploads", key, None], 36, True),
            ]
            got.clear()
    del lambda_handler.__eventrouter_on__


@pytest.mark.parametrize(
    ("events", "wanted"),
    [
        ((), {"ObjectCreated:Put", "ObjectCreated:Copy"}),
        (("s3:ObjectCreated:*",), {"ObjectCreated:Put", "ObjectCreated:Copy"}),
        (("ObjectCreated:Put",), {"ObjectCreated:Put"}),
        (("ObjectCreated:CompleteMultipartUpload", "ObjectCreated:Copy"), {"ObjectCreated:Copy"}),
        (("ObjectRemoved:*",), {"ObjectRemoved:Delete"}),
        (("s3:ObjectRemoved:Delete", "ObjectRestore:*"), {"ObjectRemoved:Delete"}),
    ],
)
def test_event_types(events: tuple[str, ...], wanted: set[str]) -> None:
    def made(name: str) -> Event:
        return event_of(S3Object(bucket="b", key="k", event=name, sequencer="0"), 0.0)

    trigger = s3("b", *events)
    happen = ("ObjectCreated:Put", "ObjectCreated:Copy", "ObjectRemoved:Delete")
    assert {name for name in happen if trigger.matches(made(name)) is not None} == wanted


def run(*words: str, capsys: pytest.CaptureFixture[str]) -> Any:
    cli.main(["sample", "s3", *words], standalone_mode=False)
    return json.loads(capsys.readouterr().out)


def test_sample(capsys: pytest.CaptureFixture[str]) -> None:
    (record,) = run("uploads", "a b.txt", "--event", "s3:ObjectCreated:Copy", "--size", "7", capsys=capsys)["Records"]
    assert (record["eventName"], record["s3"]["bucket"]["arn"]) == ("ObjectCreated:Copy", "arn:aws:s3:::uploads")
    assert (record["s3"]["object"]["key"], record["s3"]["object"]["size"]) == ("a+b.txt", 7)
    (record,) = run("--event", "ObjectRemoved:Delete", capsys=capsys)["Records"]
    assert record["s3"]["object"].keys() == {"key", "sequencer"}
    test = run("uploads", "--event", "s3:TestEvent", capsys=capsys)
    assert test.keys() == {"Service", "Event", "Time", "Bucket", "RequestId", "HostId"}
    assert (test["Service"], test["Event"], test["Bucket"]) == ("Amazon S3", "s3:TestEvent", "uploads")
    with pytest.raises(ConfigError, match=r"--event 'ObjectCreated:Pot'.*did you mean 'ObjectCreated:Put'"):
        sample(event="ObjectCreated:Pot")


class Files(Outside):
    source = "s3"
    keeps = True
    rejects = False  # the payload is made by the source

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def plugins(self) -> Plugins:
        return Plugins([LOCAL, eventrouter_plugin()])

    def trigger(self) -> Trigger:
        return s3("uploads", key="{n}.json")

    @property
    def payload(self) -> Any:
        return S3Object

    def number(self, payload: S3Object) -> int:
        return int(payload.key.removesuffix(".json"))

    async def put(self, app: App, n: int, body: bytes | None = None) -> bool:
        (self.folder / f"{n}.json").write_bytes(body or b"%d" % n)
        return True


class TestS3IsASource(SourceContract):
    @pytest.fixture
    def outside(self, folder: Path) -> Files:
        made = folder / "buckets" / "uploads"
        made.mkdir(parents=True)
        return Files(made)
