from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from eventrouter import App, Batch, Event, EventRouterError, PartialFailure, on
from eventrouter.clock import ManualClock
from eventrouter.errors import ConfigError, NotRunning
from eventrouter.journal.protocol import Letter, LetterQuery
from eventrouter.operations import Operations
from eventrouter.plugins import Plugins
from eventrouter_sns import eventrouter_plugin as sns_plugin
from eventrouter_sns import sns
from eventrouter_sqs import Message, Queue, eventrouter_plugin, sqs
from eventrouter_sqs.messages import md5_of_attributes, typed
from support import LOCAL, advance, local, make_app, put, until

jobs, bad = Queue("jobs"), Queue("bad")


@pytest.fixture
def clock() -> Iterator[ManualClock]:
    return ManualClock()


def app_of(folder: Path, *handlers: Any, clock: ManualClock | None = None, toml: str = "") -> App:
    return make_app(folder, *(handlers or (idle,)), clock=clock, toml=toml, plugins=Plugins([LOCAL, eventrouter_plugin(), sns_plugin()]))


@on(local("idle"))
async def idle(payload: Any) -> None: ...


async def letters(app: App) -> list[Letter]:
    await app.journal.flush()
    return await app.journal.dead(LetterQuery())


async def depth(app: App, queue: str) -> dict[str, int]:
    await app.journal.flush()
    return (await app.journal.depth()).get(queue, {})


# By hand


async def test_what_is_sent_is_received_and_deleted(tmp_path: Path, clock: ManualClock) -> None:
    async with app_of(tmp_path, clock=clock) as app:
        first = await jobs.send({"n": 1}, attributes={"color": "red", "count": 2, "part": 0.5, "raw": b"\x00\xff"})
        second = await jobs.send("two")
        one, two = await jobs.receive(10)
        assert (one.id, two.id) == (first, second)
        assert (one.body, one.json(), two.body) == ('{"n":1}', {"n": 1}, "two")
        assert one.attributes == {"color": "red", "count": 2, "part": 0.5, "raw": b"\x00\xff"}
        assert (one.receives, one.sent, two.attributes) == (1, clock.time(), {})
        assert await jobs.receive(10) == [], "somebody holds them"
        assert await jobs.delete(one)
        assert not await jobs.delete(one)
        assert await depth(app, "sqs:jobs") == {"waiting": 1, "running": 0, "dead": 0}


async def test_it_is_there_again_after_the_visibility_timeout(tmp_path: Path, clock: ManualClock) -> None:
    async with app_of(tmp_path, clock=clock, toml="[sqs.queues.jobs]\nvisibility = 20"):
        await jobs.send("x")
        (old,) = await jobs.receive()
        clock.advance(19.9)
        assert await jobs.receive() == []
        clock.advance(0.2)
        (new,) = await jobs.receive(visibility=100)
        assert (new.id, new.receives, new.sent) == (old.id, 2, old.sent)
        assert not await jobs.delete(old), "only the latest receipt deletes"
        assert not await jobs.change_visibility(old, 0)
        assert await jobs.change_visibility(new, 0)
        (newest,) = await jobs.receive()
        assert await jobs.change_visibility(newest, 5)
        clock.advance(4.9)
        assert await jobs.receive() == []
        clock.advance(0.2)
        assert [message.receives for message in await jobs.receive()] == [4]


async def test_a_message_is_received_so_often_then_it_is_dead_and_its_copy_in_the_dlq(tmp_path: Path, clock: ManualClock) -> None:
    toml = '[sqs]\nvisibility = 0\n[sqs.queues.jobs]\nmax_receives = 2\ndlq = "bad"'
    async with app_of(tmp_path, clock=clock, toml=toml) as app:
        await jobs.send("poison", attributes={"color": "red"})
        for receives in (1, 2):
            assert [message.receives for message in await jobs.receive()] == [receives]
        await jobs.send("good")
        assert [message.body for message in await jobs.receive()] == ["good"], "the dead one is not in the way of the next"
        (letter,) = await letters(app)
        assert (letter.function, letter.reason, letter.attempts) == ("sqs:jobs", "RetriesExhausted", 2)
        assert letter.error_message == "it was received 2 times and never deleted"
        (copy,) = await bad.receive()
        assert (copy.body, copy.attributes, copy.receives) == ("poison", {"color": "red"}, 1)
        assert await Operations(app).redrive([letter.id], {}) == 1
        assert "poison" in [message.body for message in await jobs.receive(10)]


async def test_what_stays_longer_than_the_retention_is_dead(tmp_path: Path, clock: ManualClock) -> None:
    async with app_of(tmp_path, clock=clock, toml='[sqs.queues.jobs]\nretention = "1h"\n') as app:
        await jobs.send("old")
        await bad.send("four days are the default")
        clock.advance(3601)
        await jobs.send("young")
        assert [message.body for message in await jobs.receive(10)] == ["young"]
        assert len(await bad.receive()) == 1
        (letter,) = await letters(app)
        assert (letter.reason, letter.error_message) == ("EventAgeExceeded", "it was in the queue for 3601 s, of 3600")


async def test_messages_survive_a_restart_and_a_kill(tmp_path: Path, clock: ManualClock) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    async with app_of(here, clock=clock):
        await jobs.send("held")
        (held,) = await jobs.receive(visibility=60)
        await jobs.send("free")
        shutil.copytree(here, there, ignore=shutil.ignore_patterns("lock"))  # what a SIGKILL would leave
    for folder in (here, there):
        async with app_of(folder, clock=clock):
            assert [message.body for message in await jobs.receive(10, visibility=0)] == ["free"]
            if folder == there:
                clock.advance(61)
                assert sorted(message.body for message in await jobs.receive(10)) == ["free", "held"]
            else:
                assert await jobs.delete(held), "its receipt is as good as before"


async def test_def_handlers_have_sync(tmp_path: Path) -> None:
    got: list[Any] = []

    @on(local("go"))
    def handler(payload: Any) -> None:
        jobs.sync.send("a")
        (message,) = jobs.sync.receive(visibility=0)
        assert jobs.sync.change_visibility(message, 1)
        got.append((message.body, jobs.sync.delete(message)))

    async with app_of(tmp_path, handler) as app:
        await put(app, "go")
        await until(lambda: got)
    assert got == [("a", True)]


async def test_a_receipt_is_of_its_queue(tmp_path: Path) -> None:
    async with app_of(tmp_path):
        await jobs.send("x")
        (message,) = await jobs.receive()
        with pytest.raises(EventRouterError, match=r"was received from Queue\('jobs'\); use that one"):
            await bad.delete(message)


@pytest.mark.parametrize(
    ("body", "attributes", "fault"),
    [
        ("", {}, "the body is empty"),
        ("x" * (1024 * 1024 + 1), {}, "1048577 bytes: a message has at most 1048576"),
        ("x" * (1024 * 1024 - 1), {"a": "b"}, "at most 1048576"),
        ("x", {str(n): 1 for n in range(11)}, "11 attributes: a message has at most 10"),
        ("x", {"AWS.x": 1}, "attribute 'AWS.x': its name"),
        ("x", {"": 1}, "attribute '': its name"),
        ("x", {".a": 1}, "attribute '.a': its name"),
        ("x", {"a.": 1}, "attribute 'a.': its name"),
        ("x", {"a..b": 1}, "attribute 'a..b': its name"),
        ("x", {"a": float("nan")}, "attribute 'a': nan is no text, number or bytes"),
        ("x", {"a": "\ud800"}, "has the character"),
        ("x", {"a": "\x1b"}, r"attribute 'a' has the character '\\x1b'"),
        ("x", {"a": ""}, "attribute 'a' is empty"),
        ("x", {"a": [1]}, r"attribute 'a': \[1\] is no text, number or bytes"),
        ("x", {"a": True}, "attribute 'a': True is no text"),
        ("x\x00", {}, r"the body has the character '\\x00'"),
    ],
)
async def test_what_is_refused(body: str, attributes: dict[str, Any], fault: str, tmp_path: Path) -> None:
    async with app_of(tmp_path) as app:
        with pytest.raises(ValueError, match=fault):
            await jobs.send(body, attributes=attributes)
        assert await depth(app, "sqs:jobs") == {}


async def test_figures_out_of_range(tmp_path: Path) -> None:
    async with app_of(tmp_path):
        await jobs.send("x")
        for count in (0, 11):
            with pytest.raises(ValueError, match="1 to 10"):
                await jobs.receive(count)
        (message,) = await jobs.receive()
        for seconds in (-1, 43_201):
            with pytest.raises(ValueError, match="0 to 43200 seconds"):
                await jobs.receive(visibility=seconds)
            with pytest.raises(ValueError, match="0 to 43200 seconds"):
                await jobs.change_visibility(message, seconds)


async def test_outside_a_router_it_says_so() -> None:
    with pytest.raises(NotRunning, match="no router is running here"):
        await jobs.send("x")


@pytest.mark.parametrize("name", ["", "a/b", "{x}", "x" * 81, ".fifo", "x" * 76 + ".fifo", "a.fifo.fifo", "ü"])
def test_a_queues_name(name: str) -> None:
    with pytest.raises(ConfigError, match="a queue's name is 1 to 80 letters"):
        Queue(name)


# Functions


class Job(msgspec.Struct):
    n: int


async def test_one_function_gets_each_message_and_names_come_from_the_pattern(tmp_path: Path) -> None:
    got: list[Any] = []

    @on(sqs("{team}-jobs"))
    async def work(job: Job, team: str, event: Event) -> None:
        got.append((team, job.n, event.attributes["messageAttributes"]["a"]["stringValue"]))

    @on(sqs("mail"))
    async def mail(text: str) -> None:
        got.append(text)

    async with app_of(tmp_path, work, mail) as app:
        await Queue("ops-jobs").send(Job(1), attributes={"a": "b"})
        await Queue("mail").send("hello")
        await jobs.send("nobody's")
        await until(lambda: len(got) == 2)
        assert sorted(got, key=str) == [("ops", 1, "b"), "hello"]
        await until(lambda: app.engine.intake.queues["sqs:mail"].succeeded == 1)  # type: ignore[union-attr]
        assert (await Operations(app).status())["functions"]["sqs:ops-jobs"]["accepted"] == 1
        assert await depth(app, "sqs:mail") == {}
        assert len(await jobs.receive()) == 1


async def test_a_lambda_function_gets_the_record(tmp_path: Path, clock: ManualClock) -> None:
    got: list[Any] = []

    @on(sqs("jobs"))
    def handler(event, context):  # type: ignore[no-untyped-def]
        got.append(event)

    async with app_of(tmp_path, handler, clock=clock) as app:
        sent = await Operations(app).send("sqs", ["jobs", "hello"], {"attribute": ["color=red", "size=a=b"]}, str(tmp_path))
        await until(lambda: got)
    assert sent.keys() == {"MessageId", "MD5OfMessageBody", "MD5OfMessageAttributes"}
    assert sent["MD5OfMessageBody"] == "5d41402abc4b2a76b9719d911017c592"
    lists: dict[str, Any] = {"stringListValues": [], "binaryListValues": [], "dataType": "String"}
    attributes = {"color": {"stringValue": "red", **lists}, "size": {"stringValue": "a=b", **lists}}
    (record,) = got[0]["Records"]
    assert record == {
        "messageId": sent["MessageId"],
        "receiptHandle": record["receiptHandle"],
        "body": "hello",
        "attributes": {
            "ApproximateReceiveCount": "1",
            "SentTimestamp": "1767225600000",
            "SenderId": "000000000000",
            "ApproximateFirstReceiveTimestamp": "1767225600000",
        },
        "messageAttributes": attributes,
        "md5OfBody": "5d41402abc4b2a76b9719d911017c592",
        "md5OfMessageAttributes": md5_of_attributes(attributes),
        "eventSource": "aws:sqs",
        "eventSourceARN": "arn:aws:sqs:local:000000000000:jobs",
        "awsRegion": "local",
    }
    assert record["receiptHandle"]


async def test_the_record_has_every_field_of_amazons(tmp_path: Path, cases: Path) -> None:
    lines = map(json.loads, (cases / "events" / "sam_generate_event_rendered.jsonl").read_text().splitlines())
    sample = next(line["rendered"] for line in lines if line["service"] == "sqs")["Records"][0]
    record = sqs("jobs").aws_event([Event("sqs", "sqs.message", "jobs", b"hello", time=0)])["Records"][0]
    assert record.keys() == sample.keys()
    assert record["attributes"].keys() == sample["attributes"].keys()


def test_the_digest_of_attributes_is_amazons() -> None:
    assert md5_of_attributes(typed({"timestamp": 1493147359900})) == "235c5c510d26fb653d073faed50ae77c"  # as boto3 checks it


async def test_a_failure_comes_back_after_the_visibility_timeout_then_it_is_dead(tmp_path: Path, clock: ManualClock) -> None:
    got: list[str] = []

    @on(sqs("jobs"), retries=0)  # the queue's to say
    def work(event, context):  # type: ignore[no-untyped-def]
        got.append(event["Records"][0]["attributes"]["ApproximateReceiveCount"])
        raise LookupError("not found")

    toml = '[sqs]\nmax_receives = 3\n[sqs.queues.jobs]\nvisibility = 12\ndlq = "bad"'
    async with app_of(tmp_path, work, clock=clock, toml=toml) as app:
        id = await jobs.send("x", attributes={"n": 1})
        await until(lambda: got == ["1"])
        for attempt in ("2", "3"):
            await until(lambda: app.engine.intake.queues["sqs:jobs"].failed == len(got))  # type: ignore[union-attr]
            await app.journal.flush()
            clock.advance(11.9)
            assert await jobs.receive() == [], "hidden"
            await advance(clock, 0.2, lambda: got[-1] == attempt)  # noqa: B023
        await until(lambda: app.engine.intake.queues["sqs:jobs"].dead == 1)  # type: ignore[union-attr]
        (letter,) = await letters(app)
        assert (letter.function, letter.reason, letter.error_type, letter.attempts) == ("sqs:jobs", "RetriesExhausted", "LookupError", 3)
        assert (letter.event.id, letter.event.data) == (id, b"x")
        (copy,) = await bad.receive()
        assert (copy.body, copy.attributes) == ("x", {"n": 1}), "as it was sent"
        assert got == ["1", "2", "3"]
        assert await Operations(app).redrive([], {"function": "sqs:jobs"}) == 1
        await until(lambda: got == ["1", "2", "3", "1"])


async def test_receipts_by_hand_count_for_the_function_too(tmp_path: Path, clock: ManualClock) -> None:
    async with app_of(tmp_path, clock=clock):
        await jobs.send("x")
        await jobs.receive()
    got: list[int] = []

    @on(sqs("jobs"))
    async def work(event: Event) -> None:
        got.append(event.attempt)

    async with app_of(tmp_path, work, clock=clock) as app:
        await depth(app, "sqs:jobs")
        assert not got
        await advance(clock, 30.1, lambda: got)
    assert got == [2]


@pytest.mark.parametrize("is_lambda", [True, False])
async def test_of_a_batch_only_what_failed_comes_back(is_lambda: bool, tmp_path: Path, clock: ManualClock) -> None:
    batches: list[list[tuple[str, str]]] = []

    @on(sqs("jobs"), batch=Batch(3, window=5))
    def plain(event, context):  # type: ignore[no-untyped-def]
        records = event["Records"]
        batches.append([(record["body"], record["attributes"]["ApproximateReceiveCount"]) for record in records])
        return {"batchItemFailures": [{"itemIdentifier": record["messageId"]} for record in records if record["body"] == "bad"]}

    @on(sqs("jobs"), batch=Batch(3, window=5))
    async def typed(texts: list[str], events: list[Event]) -> None:
        batches.append([(text, str(event.attempt)) for text, event in zip(texts, events, strict=True)])
        raise PartialFailure([place for place, text in enumerate(texts) if text == "bad"])

    async with app_of(tmp_path, plain if is_lambda else typed, clock=clock, toml="[sqs]\nvisibility = 10\nmax_receives = 2") as app:
        for text in ("a", "bad", "c"):
            await jobs.send(text)
        await until(lambda: len(batches) == 1)
        await until(lambda: app.engine.intake.queues["sqs:jobs"].failed == 1)  # type: ignore[union-attr]
        assert await depth(app, "sqs:jobs") == {"waiting": 1, "running": 0, "dead": 0}
        await advance(clock, 10.1, lambda: app.engine.intake.queues["sqs:jobs"].count == 1)  # type: ignore[union-attr]
        await advance(clock, 5.1, lambda: len(batches) == 2)
        await until(lambda: app.engine.intake.queues["sqs:jobs"].dead == 1)  # type: ignore[union-attr]
        assert batches == [[("a", "1"), ("bad", "1"), ("c", "1")], [("bad", "2")]]
        assert [letter.event.data for letter in await letters(app)] == [b"bad"]


async def test_a_closed_function_leaves_messages_in_the_queue(tmp_path: Path) -> None:
    @on(sqs("jobs"), concurrency=0)
    async def closed(text: str) -> None: ...

    async with app_of(tmp_path, closed) as app:
        await jobs.send("x")
        assert await depth(app, "sqs:jobs") == {"waiting": 1, "running": 0, "dead": 0}
    async with app_of(tmp_path, closed) as app:
        assert [message.body for message in await jobs.receive()] == ["x"]
        assert await letters(app) == []


async def test_waiting_for_concurrency_is_no_receipt(tmp_path: Path, clock: ManualClock) -> None:
    go = asyncio.Event()
    got: list[tuple[str, int]] = []

    @on(sqs("jobs"), concurrency=1, timeout=900)
    async def slow(text: str, event: Event) -> None:
        got.append((text, event.attempt))
        await go.wait()

    async with app_of(tmp_path, slow, clock=clock, toml="[sqs]\nmax_receives = 1\nvisibility = 1") as app:
        for text in ("a", "b"):
            await jobs.send(text)
        await until(lambda: got)
        clock.advance(600)
        go.set()
        await until(lambda: len(got) == 2)
        assert got == [("a", 1), ("b", 1)]
        assert await letters(app) == []


# Destinations


async def test_a_dead_letter_of_any_source_goes_to_a_queue_and_a_topic(tmp_path: Path) -> None:
    heard: list[Any] = []

    @on(local("{x}"), retries=0, dlq="sqs:bad")
    async def queued(event: Event, x: str) -> None:
        raise LookupError("no such thing: " + "é" * 600)

    @on(local("{x}"), retries=0, dlq="sns:alarms")
    def published(event, context):  # type: ignore[no-untyped-def]
        raise LookupError("no")

    @on(sns("alarms"))
    def hear(event, context):  # type: ignore[no-untyped-def]
        heard.append(event["Records"][0]["Sns"])

    async with app_of(tmp_path, queued, published, hear) as app:
        await put(app, "a", {"n": 1})
        await until(lambda: app.engine.lanes["queued"].dead and heard)
        ids = {letter.function: letter.id for letter in await letters(app)}
        (message,) = await bad.receive()
        assert message.json() == {"Records": [{"n": 1}]}, "what a Lambda function gets"
        assert message.attributes == {"RequestID": ids["queued"], "ErrorCode": 200, "ErrorMessage": message.attributes["ErrorMessage"]}
        assert len(str(message.attributes["ErrorMessage"]).encode()) <= 1024
        assert json.loads(heard[0]["Message"]) == {"Records": [{"n": 1}]}
        assert heard[0]["TopicArn"] == "arn:aws:sns:local:000000000000:alarms"
        assert heard[0]["MessageAttributes"] == {
            "RequestID": {"Type": "String", "Value": ids["published"]},
            "ErrorCode": {"Type": "Number", "Value": "200"},
            "ErrorMessage": {"Type": "String", "Value": "no"},
        }


async def test_records_of_outcomes_go_to_queues(tmp_path: Path, clock: ManualClock) -> None:
    @on(local("good"), on_success="sqs:done")
    async def good(payload: Any) -> dict[str, int]:
        return {"n": 1}

    @on(sqs("jobs"), on_failure="sqs:bad")
    async def fails(text: str) -> None:
        raise LookupError("no")

    async with app_of(tmp_path, good, fails, clock=clock, toml="[sqs]\nmax_receives = 1") as app:
        await put(app, "good", 5)
        await jobs.send("x")
        await until(lambda: app.engine.lanes["good"].succeeded and app.engine.intake.queues["sqs:jobs"].dead)  # type: ignore[union-attr]
        (done,) = await Queue("done").receive()
        (failed,) = await bad.receive()
    made = done.json()
    assert made["requestContext"] == {
        "requestId": made["requestContext"]["requestId"],
        "functionArn": "arn:aws:lambda:local:000000000000:function:good:$LATEST",
        "condition": "Success",
        "approximateInvokeCount": 1,
    }
    assert (made["version"], made["timestamp"]) == ("1.0", "2026-01-01T00:00:00.000Z")
    assert (made["requestPayload"], made["responsePayload"]) == ({"Records": [5]}, {"n": 1})
    assert done.attributes == {}
    record = failed.json()
    assert record["requestContext"]["condition"] == "RetriesExhausted"
    assert record["requestPayload"]["Records"][0]["body"] == "x"
    assert record["responsePayload"]["errorType"] == "LookupError"


async def test_a_dead_letter_that_is_no_text(tmp_path: Path) -> None:
    got: list[Any] = []

    @on(local("raw"), retries=0, dlq="sqs:bad")
    async def fails(data: str) -> None: ...

    @on(sqs("bad"))
    def sweep(event, context):  # type: ignore[no-untyped-def]
        got.append(event["Records"][0])

    async with app_of(tmp_path, fails, sweep) as app:
        await app.engine.deliver([Event("local", "local.put", "raw", b"\xff\x00")])
        await until(lambda: got)
    assert got[0]["body"] == "\ufffd\x00"
    assert got[0]["messageAttributes"]["ErrorMessage"]["stringValue"]


# Load


def refused(folder: Path, *handlers: Any, toml: str = "") -> str:
    with pytest.raises(ConfigError) as caught:
        app_of(folder, *handlers, toml=toml)
    return str(caught.value)


@pytest.mark.parametrize(
    ("toml", "fault"),
    [
        ("visibilty = 5", "[sqs] unknown key 'visibilty'; did you mean 'visibility'?"),
        ("visibility = 43201", "[sqs] visibility: expected float <= 43200.0"),
        ("max_receives = 0", "[sqs] max_receives: expected int >= 1"),
        ('retention = "15d"', "[sqs] retention='15d': from 60 seconds to 14 days"),
        ('retention = "long"', "[sqs] retention: 'long' is no duration"),
        ("[sqs.queues.jobs]\ndql = 'bad'", "[sqs.queues.jobs] unknown key 'dql'; did you mean 'dlq'?"),
        ("[sqs.queues.jobs]\nmax_receives = 'often'", "[sqs.queues.jobs] max_receives: expected int, got str"),
        ("[sqs.queues.jobs]\nretention = 59", "[sqs.queues.jobs] retention=59.0: from 60 seconds to 14 days"),
        ("[sqs.queues.'a b']\nvisibility = 5", "[sqs.queues] 'a b': a queue's name is"),
        ("[sqs.queues.jobs]\ndlq = 'sqs:bad'", "[sqs.queues.jobs] dlq 'sqs:bad': a queue's name is"),
        ("delay = 901", "[sqs] delay: expected float <= 900.0"),
        ("[sqs.queues.jobs]\ndlq = 'bad.fifo'", "the dead-letter queue of a FIFO queue is a FIFO queue, and of no other"),
        ("[sqs.queues.'jobs.fifo']\ndlq = 'bad'", "[sqs.queues.jobs.fifo] dlq='bad': the dead-letter queue of a FIFO queue is"),
        ("[sqs.queues.jobs]\ncontent_dedupe = true", "only FIFO queues know repeats; their names end in .fifo"),
        ("[sqs.queues.jobs]\ndlq = 'jobs'", "[sqs.queues.jobs] dlq: dead messages would go round, jobs -> jobs;"),
        (
            "[sqs.queues.a]\ndlq = 'b'\n[sqs.queues.b]\ndlq = 'c'\n[sqs.queues.c]\ndlq = 'b'",
            "a -> b -> c -> b; one of them must have no dlq",
        ),
    ],
)
def test_settings_that_are_refused(toml: str, fault: str, tmp_path: Path) -> None:
    assert fault in refused(tmp_path, toml=f"[sqs]\n{toml}")


@pytest.mark.parametrize(
    ("one", "two", "clash"),
    [
        ("jobs", "jobs", True),
        ("jobs", "mail", False),
        ("{x}", "jobs", True),
        ("ops-jobs", "{team}-jobs", True),
        ("-jobs", "{team}-jobs", False),
        ("{a}-jobs", "urgent-{b}", True),
        ("a{x}", "b{x}", False),
        ("{x}b", "a{y+}", True),
        ("{x}", "{y}", True),
        ("{x}", "jobs.fifo", False),
        ("{x}.fifo", "jobs.fifo", True),
    ],
)
def test_two_functions_on_one_queue(one: str, two: str, clash: bool, tmp_path: Path) -> None:
    @on(sqs(one))
    async def first(text: str) -> None: ...

    @on(sqs(two))
    async def second(text: str) -> None: ...

    if clash:
        said = refused(tmp_path, first, second)
        assert "functions 'second' and 'first' take from the queue" in said or "functions 'first' and 'second' take from the queue" in said
        assert f"{one!r}" in said
        assert f"{two!r}" in said
    else:
        app_of(tmp_path, first, second)


def test_one_function_may_have_several_queues(tmp_path: Path) -> None:
    @on(sqs("jobs"), sqs("jobs"), sqs("{team}-jobs"), sqs("ops-jobs"))
    async def work(text: str) -> None: ...

    app_of(tmp_path, work)


@pytest.mark.parametrize("queue", ["", "a/b", "a.txt", "{x", "x" * 81, "{a}/{b}"])
def test_a_trigger_that_is_none(queue: str) -> None:
    with pytest.raises(ConfigError, match=r"a queue's name is|a wildcard is written"):
        sqs(queue)


@pytest.mark.parametrize("keyword", ["dlq", "on_success", "on_failure"])
@pytest.mark.parametrize(
    ("target", "fault"),
    [
        ("sqs:a b", "'a b': a queue's name is 1 to 80 letters"),
        ("sns:a/b", "a topic's name is 1 to 256 letters"),
        ("sqs:jobs", "that starts work itself, and it would never end"),
        ("sns:own", "that starts work itself"),
        ("lambda:work", "that starts work itself"),
    ],
)
def test_a_destination_that_is_refused(keyword: str, target: str, fault: str, tmp_path: Path) -> None:
    @on(sqs("jobs"), sns("own"), **{keyword: target})  # type: ignore[arg-type]
    async def work(text: str) -> None: ...

    said = refused(tmp_path, work)
    assert f"work: {keyword}={target!r}: " in said
    assert fault in said


async def test_send_says_what_is_wrong(tmp_path: Path) -> None:
    async with app_of(tmp_path) as app:
        for arguments, options, fault in (
            (["a b", "x"], {}, "send sqs: 'a b': a queue's name is"),
            (["jobs", ""], {}, "send sqs: the body is empty"),
            (["jobs", "x"], {"attribute": ["color"]}, "write NAME=VALUE"),
            (["jobs", "x"], {"delay": ["901"]}, "send sqs: delay=901.0: 0 to 900 seconds"),
            (["jobs", "x"], {"group": ["a"]}, "send sqs: only FIFO queues have groups"),
            (["jobs.fifo", "x"], {}, "send sqs: a message of a FIFO queue needs a group"),
        ):
            with pytest.raises(ConfigError, match=fault):
                await Operations(app).send("sqs", arguments, options, str(tmp_path))


def test_a_message_is_what_tests_can_make() -> None:
    message = Message(id="1", body='{"n": 1}', attributes={}, receives=1, sent=0, receipt="jobs/1/1")
    assert message.json() == {"n": 1}


async def test_what_waits_in_order_behind_a_message_goes_on_when_that_is_deleted(tmp_path: Path, clock: ManualClock) -> None:
    got: list[str] = []

    @on(sqs("jobs"), order_by="$.key", concurrency=0)
    async def closed(job: dict[str, str]) -> None: ...

    async with app_of(tmp_path, closed, clock=clock):
        for text in ("first", "second"):
            await jobs.send({"key": "k", "text": text})
        (head,) = await jobs.receive(1, visibility=1000)
        assert head.json()["text"] == "first"

    @on(sqs("jobs"), order_by="$.key")
    async def work(job: dict[str, str]) -> None:
        got.append(job["text"])

    async with app_of(tmp_path, work, clock=clock) as app:
        assert await depth(app, "sqs:jobs") == {"waiting": 2, "running": 0, "dead": 0}
        assert await jobs.delete(head)
        await until(lambda: got == ["second"])
