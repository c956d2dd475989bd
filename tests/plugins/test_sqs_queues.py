"""Queues by hand and by function: delays, long polls, FIFO groups, redrive, filters, batches, retention."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from eventrouter import App, Batch, Event, Message, PartialFailure, QueueDepth, Reject, Trigger, on
from eventrouter.clock import ManualClock
from eventrouter.errors import ConfigError, JournalError
from eventrouter.journal import database
from eventrouter.journal.protocol import Letter, LetterQuery
from eventrouter.operations import Operations
from eventrouter.plugins import Plugins
from eventrouter_sqs import Message as Received
from eventrouter_sqs import Queue, eventrouter_plugin, sample, sqs
from source_contract import Outside, SourceContract
from support import LOCAL, advance, local, make_app, put, until

jobs, bad, orders, dead = Queue("jobs"), Queue("bad"), Queue("orders.fifo"), Queue("dead.fifo")
FIFO = "[sqs.queues.'orders.fifo']\ncontent_dedupe = true\nmax_receives = 2\ndlq = 'dead.fifo'\n"


@pytest.fixture
def clock() -> Iterator[ManualClock]:
    return ManualClock()


def app_of(folder: Path, *handlers: Any, clock: ManualClock | None = None, toml: str = "") -> App:
    return make_app(folder, *(handlers or (idle,)), clock=clock, toml=toml, plugins=Plugins([LOCAL, eventrouter_plugin()]))


@on(local("idle"))
async def idle(payload: Any) -> None: ...


async def letters(app: App) -> list[Letter]:
    await app.journal.flush()
    return await app.journal.dead(LetterQuery())


def lane(app: App, queue: str) -> Any:
    return app.engine.intake.queues[f"sqs:{queue}"]


def bodies(messages: list[Received]) -> list[str]:
    return [message.body for message in messages]


async def waiting(app: App, call: Awaitable[list[Received]]) -> asyncio.Future[list[Received]]:
    """A receiver that has found nothing and waits."""
    task = asyncio.ensure_future(call)
    for _ in range(3):
        await app.journal.flush()
    assert not task.done()
    return task


# Delays


async def test_a_delayed_message_is_there_when_its_delay_is_over_whatever_happens(tmp_path: Path, clock: ManualClock) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    async with app_of(here, clock=clock, toml="[sqs.queues.slow]\ndelay = 60"):
        await jobs.send("later", delay=30)
        await jobs.send("now", delay=0)
        await Queue("slow").send("a minute")
        await Queue("slow").send("at once", delay=0)
        assert bodies(await jobs.receive(10)) == ["now"]
        assert bodies(await Queue("slow").receive(10)) == ["at once"]
        shutil.copytree(here, there, ignore=shutil.ignore_patterns("lock"))  # what a SIGKILL would leave
    async with app_of(there, clock=clock):
        clock.advance(29)
        assert await jobs.receive(10) == []
        clock.advance(2)
        assert sorted(bodies(await jobs.receive(10))) == ["later", "now"]
        assert bodies(await Queue("slow").receive(10)) == ["at once"]
        clock.advance(30)
        assert bodies(await Queue("slow").receive(10)) == ["a minute", "at once"]


async def test_a_function_gets_a_delayed_message_when_its_delay_is_over(tmp_path: Path, clock: ManualClock) -> None:
    got: list[str] = []

    @on(sqs("jobs"))
    async def work(text: str) -> None:
        got.append(text)

    async with app_of(tmp_path, work, clock=clock) as app:
        await jobs.send("later", delay=900)
        await jobs.send("now")
        await until(lambda: got == ["now"])
        assert await jobs.depth() == QueueDepth(delayed=1)
        await app.journal.flush()
        clock.advance(899)
        await app.journal.flush()
        assert got == ["now"]
        await advance(clock, 1.1, lambda: got == ["now", "later"])


@pytest.mark.parametrize("delay", [-1, 900.5])
async def test_a_delay_out_of_range(delay: float, tmp_path: Path) -> None:
    async with app_of(tmp_path):
        with pytest.raises(ValueError, match="0 to 900 seconds"):
            await jobs.send("x", delay=delay)


# Long polls


async def test_a_receiver_that_waits_gets_what_is_sent(tmp_path: Path, clock: ManualClock) -> None:
    async with app_of(tmp_path, clock=clock) as app:
        receiver = await waiting(app, jobs.receive(10, wait=20))
        await bad.send("another queue's")
        await app.journal.flush()
        assert not receiver.done()
        await jobs.send("x")
        async with asyncio.timeout(20):
            assert bodies(await receiver) == ["x"]


async def test_a_receiver_that_waits_gets_what_comes_by_itself(tmp_path: Path, clock: ManualClock) -> None:
    toml = '[sqs.queues.jobs]\nmax_receives = 1\nvisibility = 5\ndlq = "bad"'
    async with app_of(tmp_path, clock=clock, toml=toml) as app:
        await jobs.send("x", delay=10)
        receiver = await waiting(app, jobs.receive(wait=20))
        clock.advance(10.1)
        async with asyncio.timeout(20):
            assert bodies(await receiver) == ["x"]
        copy = await waiting(app, bad.receive(wait=20))
        receiver = await waiting(app, jobs.receive(wait=20))
        clock.advance(5.1)
        async with asyncio.timeout(20):
            assert bodies(await copy) == ["x"], "its dead-letter copy"
        await app.journal.flush()
        assert not receiver.done()
        clock.advance(15)
        async with asyncio.timeout(20):
            assert await receiver == []


async def test_a_handler_that_is_ended_while_it_waits_loses_nothing(tmp_path: Path, clock: ManualClock) -> None:
    async with app_of(tmp_path, clock=clock, toml="[sqs]\nmax_receives = 1\nvisibility = 0") as app:
        await jobs.send("x")
        assert bodies(await jobs.receive()) == ["x"]
        task = asyncio.ensure_future(jobs.receive(wait=20))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await app.journal.flush()
        assert await jobs.receive() == []
        (letter,) = await letters(app)
        assert letter.event.data == b"x"


async def test_waiting_has_limits(tmp_path: Path) -> None:
    async with app_of(tmp_path):
        for wait in (-1, 20.5):
            with pytest.raises(ValueError, match="0 to 20 seconds"):
                await jobs.receive(wait=wait)


# FIFO


async def test_of_a_group_one_batch_is_held_at_a_time_and_in_order(tmp_path: Path, clock: ManualClock) -> None:
    async with app_of(tmp_path, clock=clock, toml=FIFO):
        for n in range(4):
            await orders.send(f"a{n}", group="a")
        await orders.send("b0", group="b")
        held = await orders.receive(2)
        assert bodies(held) == ["a0", "a1"]
        assert bodies(await orders.receive(10)) == ["b0"], "the group is held, and in nobody's way"
        assert await orders.delete(held[0])
        assert await orders.receive(10) == []
        clock.advance(30.1)
        again = await orders.receive(10)
        assert [(message.body, message.receives) for message in again] == [("a1", 2), ("a2", 1), ("a3", 1), ("b0", 2)]
        numbers = [message.system["SequenceNumber"] for message in again[:3]]
        assert numbers == sorted(numbers)
        assert len(set(numbers)) == 3
        assert [await orders.delete(message) for message in again] == [True] * 4
        assert await orders.depth() == QueueDepth()


async def test_a_failing_head_holds_its_group_until_it_is_dead(tmp_path: Path, clock: ManualClock) -> None:
    got: list[str] = []

    @on(sqs("orders.fifo"))
    async def work(text: str, event: Event) -> None:
        got.append(f"{text} {event.attempt}")
        if text == "bad":
            raise LookupError("no")

    async with app_of(tmp_path, work, clock=clock, toml=FIFO) as app:
        await orders.send("bad", group="a")
        await orders.send("next", group="a")
        await orders.send("other", group="b")
        await until(lambda: len(got) == 2)
        assert sorted(got) == ["bad 1", "other 1"]
        await app.journal.flush()
        await advance(clock, 30.1, lambda: len(got) == 4)
        assert got[2:] == ["bad 2", "next 1"]
        (copy,) = await dead.receive()
        assert (copy.body, copy.system["MessageGroupId"]) == ("bad", "a")
        assert copy.system["DeadLetterQueueSourceArn"] == "arn:aws:sqs:local:000000000000:orders.fifo"


async def test_a_function_works_off_groups_in_order_and_beside_each_other(tmp_path: Path) -> None:
    got: dict[str, list[int]] = {}
    at_once: list[set[str]] = []
    running: set[str] = set()

    @on(sqs("orders.fifo"), batch=Batch(10))
    async def work(numbers: list[int], events: list[Event]) -> None:
        groups = {event.attributes["fifo"]["MessageGroupId"] for event in events}
        assert not groups & running
        running.update(groups)
        at_once.append(set(running))
        await asyncio.sleep(0)
        for number, event in zip(numbers, events, strict=True):
            got.setdefault(event.attributes["fifo"]["MessageGroupId"], []).append(number)
        running.difference_update(groups)

    async with app_of(tmp_path, work):
        for n in range(60):
            await orders.send(n, group="abc"[n % 3], dedupe=str(n))
        await until(lambda: sum(map(len, got.values())) == 60)
    assert got == {group: list(range(place, 60, 3)) for place, group in enumerate("abc")}


async def test_a_repeat_within_five_minutes_is_not_kept_whatever_happens(tmp_path: Path, clock: ManualClock) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    async with app_of(here, clock=clock, toml=FIFO):
        first = await orders.send("x", group="a")
        assert await orders.send("x", group="b") == first
        second = await orders.send("x", group="a", dedupe="another")
        assert second != first
        assert await orders.send("y", group="a", dedupe="another") == second
        for message in await orders.receive(10):
            await orders.delete(message)
        assert await orders.send("x", group="a") == first, "though it has been handled"
        shutil.copytree(here, there, ignore=shutil.ignore_patterns("lock"))
    async with app_of(there, clock=clock, toml=FIFO):
        clock.advance(299)
        assert await orders.send("x", group="a") == first
        clock.advance(2)
        assert await orders.send("x", group="a") != first
        assert bodies(await orders.receive(10)) == ["x"]


async def test_many_are_sent_in_order_and_repeats_among_them_are_told(tmp_path: Path) -> None:
    async with app_of(tmp_path, toml=FIFO):
        ids = await orders.send_many(["a", "b", "a", "c"], group="g")
        assert ids[2] == ids[0]
        assert bodies(await orders.receive(10)) == ["a", "b", "c"]
        assert len(set(await jobs.send_many([1, {"n": 2}], delay=5, attributes={"k": "v"}))) == 2
        assert await jobs.depth() == QueueDepth(delayed=2)
        with pytest.raises(ValueError, match="the body is empty"):
            await jobs.send_many(["good", ""])
        assert (await jobs.depth()).available == 0


@pytest.mark.parametrize(
    ("queue", "keywords", "fault"),
    [
        ("orders.fifo", {}, "a message of a FIFO queue needs a group="),
        ("other.fifo", {"group": "a"}, "needs a dedupe=, unless the queue has content_dedupe = true"),
        ("orders.fifo", {"group": "a b"}, "group='a b': 1 to 128 letters"),
        ("orders.fifo", {"group": "a", "dedupe": "x" * 129}, "1 to 128 letters"),
        ("orders.fifo", {"group": "a", "delay": 5}, "have no delay of their own"),
        ("jobs", {"group": "a"}, "only FIFO queues have groups"),
        ("jobs", {"dedupe": "a"}, "only FIFO queues have groups"),
    ],
)
async def test_what_a_fifo_queue_refuses(queue: str, keywords: dict[str, Any], fault: str, tmp_path: Path) -> None:
    async with app_of(tmp_path, toml=FIFO):
        with pytest.raises(ValueError, match=fault):
            await Queue(queue).send("x", **keywords)


async def test_a_fifo_queues_own_delay_is_of_all_its_messages(tmp_path: Path, clock: ManualClock) -> None:
    async with app_of(tmp_path, clock=clock, toml="[sqs.queues.'orders.fifo']\ndelay = 10\ncontent_dedupe = true"):
        await orders.send("a", group="g")
        clock.advance(5)
        await orders.send("b", group="g")
        clock.advance(5.1)
        assert bodies(await orders.receive(10)) == ["a"]
        assert (await orders.depth()).delayed == 1


async def test_what_is_forwarded_to_a_fifo_queue_has_a_group(tmp_path: Path) -> None:
    async with app_of(tmp_path, toml=FIFO) as app:
        router = app.sources["local"].router
        assert await router.forward("sqs:orders.fifo", Message(b"x", {"k": "v"}, group="g", dedupe="1")) == 1
        assert await router.forward("sqs:orders.fifo", Message(b"y", {}, group="g", dedupe="1")) == 0
        (message,) = await orders.receive(10)
        assert (message.body, message.attributes, message.system["MessageGroupId"]) == ("x", {"k": "v"}, "g")
        for _ in range(2):
            assert await router.forward("sqs:orders.fifo", Message(b"dead", {})) == 1
        assert await router.forward("sqs:orders.fifo", Message(b"", {}, about=Event("sqs", "sqs.message", "jobs", b"dead"))) == 1
        messages = await orders.receive(10)
        assert [(message.body, message.system["MessageGroupId"]) for message in messages] == [("dead", "default")] * 3


@pytest.mark.parametrize(
    ("policy", "fault"),
    [
        ({"batch": Batch(11)}, "batches of a FIFO queue have at most 10 messages"),
        ({"batch": Batch(10, window=1)}, "and no window"),
        ({"order_by": "$.x"}, "a FIFO queue's order is that of its groups"),
    ],
)
def test_policies_that_a_fifo_queue_refuses(policy: dict[str, Any], fault: str, tmp_path: Path) -> None:
    @on(sqs("orders.fifo"), **policy)
    async def work(text: Any) -> None: ...

    with pytest.raises(ConfigError, match=f"test_sqs_queues.py:.* work: .*{fault}"):
        app_of(tmp_path, work)


def test_a_pattern_of_names_is_of_one_kind_of_queue() -> None:
    plain, fifo = sqs("{team}-jobs"), sqs("{team}.fifo")
    assert sqs("{x}").matches(Event("sqs", "", "a.fifo")) is None
    assert plain.matches(Event("sqs", "", "ops-jobs")) == {"team": "ops"}
    assert fifo.matches(Event("sqs", "", "ops.fifo")) == {"team": "ops"}


async def test_a_lambda_function_gets_fifo_records_with_every_field_of_amazons(tmp_path: Path, cases: Path) -> None:
    events = map(json.loads, (cases / "events" / "events.jsonl").read_text().splitlines())
    amazons = next(line["event"] for line in events if line["path"].endswith("snsSqsFifoEvent.json"))["Records"][0]
    got: list[Any] = []

    @on(sqs("orders.fifo"))
    def handler(event, context):  # type: ignore[no-untyped-def]
        got.append(event["Records"][0])

    async with app_of(tmp_path, handler, toml=FIFO):
        await orders.send("x", group="g")
        await until(lambda: got)
    assert got[0].keys() == amazons.keys()
    assert got[0]["attributes"].keys() == amazons["attributes"].keys()
    assert "AWSTraceHeader" not in got[0]["attributes"]
    assert got[0]["attributes"]["MessageDeduplicationId"] == "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    assert len(got[0]["attributes"]["SequenceNumber"]) == 20


# Dead-letter queues


async def test_a_dead_message_arrives_as_it_was(tmp_path: Path, clock: ManualClock, cases: Path) -> None:
    events = map(json.loads, (cases / "events" / "events.jsonl").read_text().splitlines())
    amazons = next(line["event"] for line in events if line["path"].endswith("sqsDlqTriggerEvent.json"))["Records"][0]
    got: list[Any] = []

    @on(sqs("bad"))
    def sweep(event, context):  # type: ignore[no-untyped-def]
        got.append(event["Records"][0])

    async with app_of(tmp_path, sweep, clock=clock, toml="[sqs.queues.jobs]\nmax_receives = 1\nvisibility = 0\ndlq = 'bad'"):
        id = await jobs.send("poison", attributes={"color": "red"}, delay=1)
        clock.advance(2)
        await jobs.receive()
        assert await jobs.receive() == []
        await until(lambda: got)
    assert got[0].keys() - {"md5OfMessageAttributes"} == amazons.keys()
    assert got[0]["attributes"].keys() == amazons["attributes"].keys()
    assert got[0]["messageId"] == id
    assert got[0]["attributes"]["SentTimestamp"] == "1767225600000"
    assert got[0]["attributes"]["DeadLetterQueueSourceArn"] == "arn:aws:sqs:local:000000000000:jobs"
    assert got[0]["messageAttributes"]["color"]["stringValue"] == "red"


async def test_redrive_moves_messages_back_to_where_they_came_from(tmp_path: Path, clock: ManualClock) -> None:
    toml = "[sqs]\nvisibility = 0\nmax_receives = 1\n[sqs.queues.jobs]\ndlq = 'bad'\n[sqs.queues.mails]\ndlq = 'bad'"
    async with app_of(tmp_path, clock=clock, toml=toml) as app:
        mails = Queue("mails")
        for queue in (jobs, mails):
            await queue.send(queue.name, attributes={"n": 1})
            await queue.receive()
            assert await queue.receive() == []
        await bad.send("nobody's")
        assert await bad.depth() == QueueDepth(available=3)
        assert await bad.redrive(max=1) == 1
        assert await bad.redrive() == 1
        assert await bad.depth() == QueueDepth(available=1), "what came from nowhere stays"
        for queue in (jobs, mails):
            (message,) = await queue.receive(visibility=50)
            assert (message.body, message.attributes, message.receives) == (queue.name, {"n": 1}, 1)
            assert "DeadLetterQueueSourceArn" not in message.system
        assert await bad.redrive(to="jobs") == 1
        assert bodies(await jobs.receive()) == ["nobody's"]
        assert await bad.redrive() == 0
        assert len(await letters(app)) == 2, "the letters themselves are for `eventrouter dlq`"
        for to, most in (("bad", None), ("x.fifo", None), (None, 0)):
            with pytest.raises(ValueError, match=r"Queue\('bad'\).redrive"):
                await bad.redrive(to=to, max=most)


async def test_a_redriven_fifo_message_is_no_repeat_of_itself(tmp_path: Path, clock: ManualClock) -> None:
    async with app_of(tmp_path, clock=clock, toml=FIFO + "visibility = 0\n") as app:
        for n in range(30):
            await orders.send(str(n), group="g")
        for _ in range(9):
            await orders.receive(10)
        assert await dead.depth() == QueueDepth(available=30)
        assert await dead.redrive() == 30
        assert bodies(await orders.receive(10)) == [str(n) for n in range(10)]
        assert len(await letters(app)) == 30


@contextmanager
def deaths(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Folders as a SIGKILL before and after each commit would leave this one."""
    left: list[Path] = []

    def die(point: str) -> None:
        left.append(folder.with_name(f"{folder.name}-{len(left)}-{point}"))
        shutil.copytree(folder, left[-1], ignore=shutil.ignore_patterns("lock"))

    with monkeypatch.context() as patch:
        patch.setattr(database, "crash_point", die)
        yield left
    assert len(left) >= 2


async def test_a_redriven_message_is_in_one_queue_whenever_the_router_dies(
    tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    toml = "[sqs.queues.jobs]\nvisibility = 0\nmax_receives = 1\ndlq = 'bad'"
    async with app_of(here, clock=clock, toml=toml):
        await jobs.send_many(["a", "b"])
        await jobs.receive(10)
        await jobs.receive(10)
        with deaths(here, monkeypatch) as left:
            assert await bad.redrive() == 2
    moved = set()
    for folder in left:
        async with app_of(folder, clock=clock, toml=toml):
            there, still = (await jobs.depth()).available, (await bad.depth()).available
            assert there + still == 2
            moved.add(there)
    assert {0, 2} <= moved


async def test_what_is_sent_again_after_a_death_is_kept_once(tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    async with app_of(here, clock=clock, toml=FIFO):
        with deaths(here, monkeypatch) as left:
            await orders.send("x", group="g")
    for folder in left:
        async with app_of(folder, clock=clock, toml=FIFO):
            await orders.send("x", group="g")
            assert (await orders.depth()).available == 1


async def test_letters_of_queues_are_redriven_from_the_command_line(tmp_path: Path, clock: ManualClock) -> None:
    async with app_of(tmp_path, clock=clock, toml=FIFO + "visibility = 0\n") as app:
        await orders.send("x", group="g")
        for _ in range(3):
            await orders.receive()
        operations = Operations(app)
        (letter,) = await operations.letters({"function": "sqs:orders.fifo"})
        assert await operations.redrive([], {"function": "sqs:orders.fifo"}) == 1
        (message,) = await orders.receive()
        assert (message.id, message.system["MessageGroupId"], message.receives) == (letter["event"]["id"], "g", 1)


# Filters


async def test_what_the_filter_does_not_want_is_deleted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "eventrouter")
    got: list[str] = []

    @on(
        sqs(
            "jobs",
            filter=[{"body": {"kind": ["order"], "n": [{"numeric": [">", 1]}]}}, {"messageAttributes": {"vip": {"stringValue": ["yes"]}}}],
        )
    )
    def work(event, context):  # type: ignore[no-untyped-def]
        got.append(event["Records"][0]["body"])

    async with app_of(tmp_path) as app:  # before there is the function
        await jobs.send({"kind": "mail"})
        await jobs.send({"kind": "order", "n": 5})
    async with app_of(tmp_path, work) as app:
        await jobs.send({"kind": "order", "n": 1})
        await jobs.send("no JSON")
        await jobs.send([1])
        await jobs.send("no JSON either", attributes={"vip": "yes"})
        await until(lambda: len(got) == 2 and lane(app, "jobs").filtered == 4)
        assert sorted(got) == ["no JSON either", '{"kind":"order","n":5}']
        await until(lambda: lane(app, "jobs").succeeded == 2)
        assert await jobs.depth() == QueueDepth()
        assert (await Operations(app).status())["functions"]["sqs:jobs"]["filtered"] == 4
        assert await letters(app) == []
    assert sum("does not want" in record.getMessage() and record.levelname == "DEBUG" for record in caplog.records) == 4


def test_a_filter_of_text(tmp_path: Path) -> None:
    trigger = sqs("jobs", filter='{"body": [{"prefix": "urgent"}]}')
    assert trigger.wants(Event("sqs", "", "jobs", b"urgent: mail")) == {}
    assert trigger.wants(Event("sqs", "", "jobs", b"mail")) is None
    assert trigger.wants(Event("sqs", "", "jobs", b'{"urgent": 1}')) is None
    assert trigger.wants(Event("sqs", "", "jobs", b"\xff")) is None
    assert str(trigger) == "sqs jobs (filtered)"


@pytest.mark.parametrize(
    ("filter", "fault"),
    [
        ({"body": "x"}, r"sqs\('jobs'\): filter: \$\.body"),
        ("{", r"sqs\('jobs'\): filter: "),
        ([], "filter has 0 patterns: 1 to 5"),
        ([{"body": ["x"]}] * 6, "filter has 6 patterns: 1 to 5"),
    ],
)
def test_a_filter_that_is_none(filter: Any, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        sqs("jobs", filter=filter)


def test_a_filter_in_the_config(tmp_path: Path) -> None:
    toml = "[functions.idle]\non = [{ sqs = 'jobs', filter = { body = { kind = ['order'] } } }]"
    app = app_of(tmp_path, toml=toml)
    trigger = app.functions["idle"].triggers[1]
    assert trigger.wants(Event("sqs", "", "jobs", b'{"kind": "order"}')) == {}
    assert trigger.wants(Event("sqs", "", "jobs", b"{}")) is None


# Batches


async def test_partial_failures_are_read_as_recorded_on_aws(tmp_path: Path, cases: Path) -> None:
    """Recorded with streams; queues read the answer by the same rules."""
    for case in json.loads((cases / "streams" / "partial_batch_responses.json").read_text()):
        assert await left_after(case["handler_returns"], tmp_path / case["id"]) == (
            QueueDepth(held=3) if case["expected"] == "batch_fails" else QueueDepth()
        ), case["id"]


async def left_after(answer: Any, folder: Path) -> QueueDepth:
    """What is left of a batch of three when the handler gives this answer."""

    @on(sqs("jobs"), batch=Batch(3, window=5))
    def work(event, context):  # type: ignore[no-untyped-def]
        assert len(event["Records"]) == 3
        if "__raises__" in (answer or ()):
            raise ZeroDivisionError
        return answer

    folder.mkdir()
    async with app_of(folder, work, clock=ManualClock()) as app:
        await jobs.send_many(["a", "b", "c"])
        await until(lambda: lane(app, "jobs").succeeded + lane(app, "jobs").failed == 3)
        await app.journal.flush()
        return await jobs.depth()


@pytest.mark.parametrize(
    ("named", "left"),
    [
        (lambda ids: [ids[1]], 1),
        (lambda ids: [ids[0], ids[0]], 1),
        (lambda ids: ["unknown"], 3),
        (lambda ids: [ids[0], "unknown"], 3),
        (lambda ids: [ids[0], ""], 3),
    ],
)
async def test_an_unknown_id_fails_the_whole_batch(named: Any, left: int, tmp_path: Path, clock: ManualClock) -> None:
    @on(sqs("jobs"), batch=Batch(3, window=5))
    def work(event, context):  # type: ignore[no-untyped-def]
        return {"batchItemFailures": [{"itemIdentifier": id} for id in named([record["messageId"] for record in event["Records"]])]}

    async with app_of(tmp_path, work, clock=clock) as app:
        await jobs.send_many(["a", "b", "c"])
        await until(lambda: lane(app, "jobs").succeeded + lane(app, "jobs").failed == 3)
        await app.journal.flush()
        assert await jobs.depth() == QueueDepth(held=left)


async def test_a_large_batch_waits_for_its_window(tmp_path: Path, clock: ManualClock) -> None:
    sizes: list[int] = []

    @on(sqs("jobs"), batch=Batch(10_000, window=300))
    async def work(texts: list[str]) -> None:
        sizes.append(len(texts))
        if len(sizes) == 1:
            raise PartialFailure([0])

    async with app_of(tmp_path, work, clock=clock) as app:
        await jobs.send_many(map(str, range(1500)))
        await until(lambda: lane(app, "jobs").count == 1500)
        await advance(clock, 300, lambda: sizes == [1500])
        await until(lambda: lane(app, "jobs").failed == 1)
        assert await jobs.depth() == QueueDepth(held=1)


# Operating


async def test_purge_empties_a_queue(tmp_path: Path, clock: ManualClock) -> None:
    async with app_of(tmp_path, clock=clock, toml=FIFO):
        await jobs.send_many(["held", "free"])
        await jobs.send("later", delay=5)
        (held,) = await jobs.receive()
        await orders.send_many(["a", "b"], group="g")
        assert await jobs.purge() == 3
        assert not await jobs.delete(held)
        assert await jobs.depth() == QueueDepth()
        assert await orders.purge() == 2
        await orders.send("c", group="g")
        assert bodies(await orders.receive()) == ["c"]


async def test_attributes_are_amazons(tmp_path: Path, clock: ManualClock) -> None:
    async with app_of(tmp_path, clock=clock, toml=FIFO + "[sqs.queues.jobs]\nvisibility = 12\nretention = '1h'\ndelay = 3\n"):
        await jobs.send_many(["a", "b"], delay=0)
        await jobs.send("c")
        await jobs.receive()
        assert await jobs.attributes() == {
            "QueueArn": "arn:aws:sqs:local:000000000000:jobs",
            "ApproximateNumberOfMessages": "1",
            "ApproximateNumberOfMessagesNotVisible": "1",
            "ApproximateNumberOfMessagesDelayed": "1",
            "VisibilityTimeout": "12",
            "DelaySeconds": "3",
            "MessageRetentionPeriod": "3600",
            "MaximumMessageSize": "1048576",
            "ReceiveMessageWaitTimeSeconds": "0",
        }
        fifo = await orders.attributes()
        assert json.loads(fifo["RedrivePolicy"]) == {
            "deadLetterTargetArn": "arn:aws:sqs:local:000000000000:dead.fifo",
            "maxReceiveCount": 2,
        }
        assert (fifo["FifoQueue"], fifo["ContentBasedDeduplication"]) == ("true", "true")


@pytest.mark.parametrize("closed", [True, False])
async def test_what_nobody_takes_ends_when_it_is_too_old(closed: bool, tmp_path: Path, clock: ManualClock) -> None:
    @on(sqs("jobs"), concurrency=0)
    async def work(text: str) -> None: ...

    toml = "[sqs.queues.jobs]\nretention = 3600\ndlq = 'bad'"
    async with app_of(tmp_path, *([work] if closed else ()), clock=clock, toml=toml) as app:
        await jobs.send_many(["a", "b"])
        await bad.send("stays")
        (held,) = await jobs.receive(visibility=40_000)
        async with asyncio.timeout(20):
            while len(await letters(app)) < 1:
                clock.advance(600)
                await asyncio.sleep(0.01)
            assert await jobs.depth() == QueueDepth(held=1), "what somebody holds is left to them"
            assert await jobs.delete(held)
        (letter,) = await letters(app)
        assert (letter.reason, letter.event.data) == ("EventAgeExceeded", b"b")
        assert sorted(bodies(await bad.receive(10))) == ["b", "stays"]
        if closed:
            assert lane(app, "jobs").dead == 1


async def test_send_has_options_for_delays_and_groups(tmp_path: Path, clock: ManualClock) -> None:
    async with app_of(tmp_path, clock=clock) as app:
        operations = Operations(app)
        await operations.send("sqs", ["jobs", "x"], {"delay": ["5"]}, str(tmp_path))
        assert await jobs.depth() == QueueDepth(delayed=1)
        options = {"group": ["g"], "dedupe": ["1"]}
        first = await operations.send("sqs", ["orders.fifo", "x"], options, str(tmp_path))
        assert len(first["SequenceNumber"]) == 20
        assert (await operations.send("sqs", ["orders.fifo", "x"], options, str(tmp_path)))["MessageId"] == first["MessageId"]


async def test_def_handlers_have_sync_for_all(tmp_path: Path) -> None:
    got: list[Any] = []

    @on(local("go"), timeout=60)
    def handler(payload: Any) -> None:
        orders.sync.send("a", group="g", dedupe="1")
        jobs.sync.send_many(["b", "c"], delay=0)
        got.extend([len(jobs.sync.receive(wait=1)), jobs.sync.depth(), jobs.sync.attributes()["ApproximateNumberOfMessages"]])
        got.extend([jobs.sync.redrive(to="bad"), jobs.sync.purge()])

    async with app_of(tmp_path, handler) as app:
        await put(app, "go")
        await until(lambda: len(got) == 5)
    assert got == [1, QueueDepth(available=1, held=1), "1", 1, 1]


def test_a_sample_is_a_record() -> None:
    plain = sample()["Records"][0]
    assert (plain["body"], plain["eventSourceARN"]) == ("Hello from SQS!", "arn:aws:sqs:local:000000000000:jobs")
    fifo = sample("orders.fifo", "x", attribute={"color": "red"}, group="g")["Records"][0]
    assert fifo["attributes"]["MessageGroupId"] == "g"
    assert fifo["messageAttributes"]["color"]["stringValue"] == "red"


# A function written for AWS, and the contract of sources

LAMBDA = """
import json
import os


def lambda_handler(event, context):
    failures = []
    for record in event["Records"]:
        try:
            order = json.loads(record["body"])
            line = f"{context.function_name} {record['messageAttributes']['shop']['stringValue']} {order['id']}"
            with open(os.environ["OUT"], "a") as out:
                out.write(line + "\\n")
        except (KeyError, ValueError):
            failures.append({"itemIdentifier": record["messageId"]})
    return {"batchItemFailures": failures}
"""


async def test_a_lambda_function_runs_unmodified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUT", str(tmp_path / "out.txt"))
    scope: dict[str, Any] = {"__name__": "lambda_function"}
    exec(compile(LAMBDA, "lambda_function.py", "exec"), scope)
    handler = on(sqs("orders"), batch=Batch(10, window=0.1))(scope["lambda_handler"])
    async with app_of(tmp_path, handler, toml="[sqs.queues.orders]\nmax_receives = 1\ndlq = 'bad'") as app:
        await Queue("orders").send({"id": 7}, attributes={"shop": "Berlin"})
        await Queue("orders").send("no order", attributes={"shop": "Berlin"})
        await until(lambda: lane(app, "orders").dead)
        assert (tmp_path / "out.txt").read_text() == "lambda_handler Berlin 7\n"
        assert bodies(await bad.receive(10)) == ["no order"]


async def test_a_rejected_message_is_dead_at_once(tmp_path: Path) -> None:
    @on(sqs("jobs"), dlq="sqs:bad")
    async def work(text: str) -> None:
        raise Reject("never")

    async with app_of(tmp_path, work):
        await jobs.send("x")
        async with asyncio.timeout(20):
            assert bodies(await bad.receive(wait=20)) == ["x"]


class Sender(Outside):
    source = "sqs"
    toml = "[sqs]\nvisibility = 0\n"

    def plugins(self) -> Plugins:
        return Plugins([eventrouter_plugin()])

    def trigger(self) -> Trigger:
        return sqs("jobs")

    async def put(self, app: App, n: int, body: bytes | None = None) -> bool:
        try:
            await app.sources["sqs"].put([app.sources["sqs"].make("jobs", body or b'{"n": %d}' % n, {})])  # type: ignore[attr-defined]
        except JournalError:
            return False
        return True


class TestContract(SourceContract):
    @pytest.fixture
    def outside(self) -> Sender:
        return Sender()
