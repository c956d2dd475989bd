from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from eventrouter import App, EventRouterError, fixed, on
from eventrouter.clock import ManualClock
from eventrouter.errors import ConfigError, JournalError, NotRunning
from eventrouter.operations import Operations
from eventrouter.plugins import Plugins
from eventrouter_sns import Topic, TopicTrigger, eventrouter_plugin, sample, sns
from eventrouter_sns.source import SnsSource
from served import Place
from source_contract import Outside, SourceContract
from support import LOCAL, local, make_app, put, until


class Alert(msgspec.Struct):
    celsius: float


def app_of(folder: Path, *handlers: Any, toml: str = "", clock: Any = None) -> App:
    return make_app(folder, *handlers, plugins=Plugins([LOCAL, eventrouter_plugin()]), toml=toml, clock=clock)


def source(app: App) -> SnsSource:
    found = app.sources["sns"]
    assert isinstance(found, SnsSource)
    return found


class Publisher(Outside):
    """Whoever publishes; every message is one of its own."""

    source = "sns"

    def plugins(self) -> Plugins:
        return Plugins([eventrouter_plugin()])

    def trigger(self) -> TopicTrigger:
        return sns("items")

    async def put(self, app: App, n: int, body: bytes | None = None) -> bool:
        try:
            await source(app).publish("items", json.dumps({"n": n}).encode() if body is None else body)
        except JournalError:
            return False
        return True


class TestSnsIsASource(SourceContract):
    @pytest.fixture
    def outside(self) -> Publisher:
        return Publisher()


async def test_every_subscriber_gets_what_a_handler_publishes(tmp_path: Path) -> None:
    got: list[Any] = []

    @on(local("readings"))
    async def forward(reading: dict[str, float]) -> None:
        got.append(await Topic("ops-alerts").publish(Alert(reading["celsius"])))

    @on(sns("ops-alerts"))
    async def typed(alert: Alert) -> None:
        got.append(alert)

    @on(sns("{team}-alerts"))
    async def pattern(text: str, team: str) -> None:
        got.append((team, text))

    @on(sns("others"))
    async def other(text: str) -> None:
        got.append("wrong")

    async with app_of(tmp_path, forward, typed, pattern, other) as app:
        await put(app, "readings", {"celsius": 91.5})
        await until(lambda: len(got) == 3)
    assert Alert(91.5) in got
    assert ("ops", '{"celsius":91.5}') in got
    assert "wrong" not in got


async def test_a_lambda_function_gets_the_record(tmp_path: Path) -> None:
    got: list[Any] = []

    @on(sns("orders"))
    def handler(event, context):  # type: ignore[no-untyped-def]
        got.append(event)

    async with app_of(tmp_path, handler) as app:
        sent = await Operations(app).send("sns", ["orders", "hello"], {"attribute": ["color=red"], "subject": ["greeting"]}, str(tmp_path))
        await until(lambda: got)
    record = got[0]["Records"][0]
    assert record["EventSource"] == "aws:sns"
    assert record["EventSubscriptionArn"].startswith("arn:aws:sns:local:000000000000:orders:")
    message = record["Sns"]
    assert message["MessageId"] == sent["MessageId"]
    assert message["Timestamp"].endswith("Z")
    assert {key: message[key] for key in ("Type", "TopicArn", "Subject", "Message", "MessageAttributes")} == {
        "Type": "Notification",
        "TopicArn": "arn:aws:sns:local:000000000000:orders",
        "Subject": "greeting",
        "Message": "hello",
        "MessageAttributes": {"color": {"Type": "String", "Value": "red"}},
    }


async def test_the_record_has_every_field_of_amazons(tmp_path: Path, cases: Path) -> None:
    lines = map(json.loads, (cases / "events" / "sam_generate_event_rendered.jsonl").read_text().splitlines())
    sample = next(line["rendered"] for line in lines if line["service"] == "sns")["Records"][0]
    got: list[Any] = []

    @on(sns("orders"))
    def handler(event, context):  # type: ignore[no-untyped-def]
        got.append(event["Records"][0])

    async with app_of(tmp_path, handler) as app:
        await Operations(app).send("sns", ["orders", "hello"], {}, str(tmp_path))
        await until(lambda: got)
    assert got[0].keys() == sample.keys()
    assert got[0]["Sns"].keys() == sample["Sns"].keys()


async def test_attributes_have_the_types_of_sns(tmp_path: Path) -> None:
    got: list[Any] = []

    @on(local("go"))
    async def publish(_: str) -> None:
        given = {"DataType": "Number", "StringValue": "7"}
        await Topic("t").publish("x", attributes={"s": "a", "n": 1.5, "b": b"\x00", "l": ["a", 1], "boto": given})

    @on(sns("t"))
    def handler(event, context):  # type: ignore[no-untyped-def]
        got.append(event["Records"][0]["Sns"]["MessageAttributes"])

    async with app_of(tmp_path, publish, handler) as app:
        await put(app, "go")
        await until(lambda: got)
    assert got[0] == {
        "s": {"Type": "String", "Value": "a"},
        "n": {"Type": "Number", "Value": "1.5"},
        "b": {"Type": "Binary", "Value": "AA=="},
        "l": {"Type": "String.Array", "Value": '["a",1]'},
        "boto": {"Type": "Number", "Value": "7"},
    }


async def test_def_handlers_publish_with_sync(tmp_path: Path) -> None:
    got: list[str] = []

    @on(local("go"))
    def publish(payload: Any) -> None:
        Topic("t").sync.publish("from a thread")

    @on(sns("t"))
    async def handler(text: str) -> None:
        got.append(text)

    async with app_of(tmp_path, publish, handler) as app:
        await put(app, "go")
        await until(lambda: got)
    assert got == ["from a thread"]


async def test_sync_on_the_loop_is_refused_not_deadlocked(tmp_path: Path) -> None:
    got: list[str] = []

    @on(local("go"))
    async def publish(payload: Any) -> None:
        try:
            Topic("t").sync.publish("x")
        except EventRouterError as error:
            got.append(str(error))

    async with app_of(tmp_path, publish) as app:
        await put(app, "go")
        await until(lambda: got)
    assert "await the call without .sync" in got[0].replace("`", "")


async def test_what_is_published_while_the_router_drains_is_kept(tmp_path: Path) -> None:
    go = asyncio.Event()
    got: list[str] = []
    running = asyncio.Event()

    @on(local("go"))
    async def publish(payload: Any) -> None:
        running.set()
        await go.wait()
        await Topic("t").publish("late")

    @on(sns("t"))
    async def handler(text: str) -> None:
        got.append(text)

    app = app_of(tmp_path, publish, handler)
    await app.start()
    await put(app, "go")
    await running.wait()
    stopping = asyncio.create_task(app.stop())
    asyncio.get_running_loop().call_later(0.05, go.set)
    await stopping
    async with app_of(tmp_path, publish, handler):
        await until(lambda: got)
    assert got == ["late"]


async def test_publishing_outside_a_router_says_so() -> None:
    with pytest.raises(NotRunning, match="no router is running here"):
        await Topic("t").publish("x")


@pytest.mark.parametrize("name", ["", "a/b", "{x}", "a.b", ".fifo", "a.fifo.fifo", "x" * 257, "ü"])
def test_a_topics_name(name: str) -> None:
    with pytest.raises(ConfigError, match="a topic's name"):
        Topic(name)


def test_a_pattern_that_is_none() -> None:
    with pytest.raises(ConfigError, match="a wildcard is written"):
        sns("{x")


async def test_a_filter_says_which_messages_start_a_function(tmp_path: Path) -> None:
    got: list[str] = []

    @on(sns("t", filter={"kind": ["a", {"prefix": "b"}], "n": [{"numeric": [">", 1]}]}))
    async def by_attributes(text: str) -> None:
        got.append(f"attributes {text}")

    @on(sns("t", filter={"n": [{"numeric": ["<", 3]}]}, scope="MessageBody"))
    async def by_body(text: str) -> None:
        got.append(f"body {text}")

    async with app_of(tmp_path, by_attributes, by_body) as app:
        await source(app).publish("t", b'{"n": 1}', attributes={"kind": "a", "n": 1})
        await source(app).publish("t", b"two", attributes={"kind": "bb", "n": 2})
        await source(app).publish("t", b'{"n": 3}', attributes={"kind": "c", "n": 3})
        await until(lambda: len(got) == 2)
        assert app.engine.intake.unmatched == 1
    assert sorted(got) == ["attributes two", 'body {"n": 1}']


async def test_a_filter_in_the_config(tmp_path: Path) -> None:
    got: list[str] = []

    @on(local("nothing"))
    async def handler(text: str) -> None:
        got.append(text)

    toml = '[functions.handler]\non = [{ sns = "t", filter = { kind = ["a"] } }]\n'
    async with app_of(tmp_path, handler, toml=toml) as app:
        await source(app).publish("t", b"no", attributes={"kind": "b"})
        await source(app).publish("t", b"yes", attributes={"kind": "a"})
        await until(lambda: got)
    assert got == ["yes"]


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (
            lambda: sns("t", filter={"a": [{"sufix": "x"}]}),
            r"sns\('t'\): Invalid parameter: FilterPolicy: Unrecognized match type sufix at \$.a",
        ),
        (lambda: sns("t", filter={}, scope="Body"), "FilterPolicyScope: Invalid value"),  # type: ignore[arg-type]
    ],
)
def test_a_filter_that_is_none(make: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        make()


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"message": ""}, "Empty message"),
        ({"message": "x" * (256 * 1024 + 1)}, "Message too long: 262145 bytes"),
        ({"message": "x" * (256 * 1024 - 10), "attributes": {"name": "value"}}, "Message too long"),
        ({"subject": "two\nlines"}, "Subject"),
        ({"subject": "x" * 101}, "Subject"),
        ({"subject": " x"}, "Subject"),
        ({"attributes": {"AWS.x": "y"}}, "begins with no 'AWS.'"),
        ({"attributes": {"a..b": "y"}}, "its name is"),
        ({"attributes": {"x" * 257: "y"}}, "its name is"),
        ({"attributes": {"a": ""}}, "attribute 'a' is empty"),
        ({"attributes": {"a": True}}, "attribute 'a': True is no text"),
        ({"attributes": {"a": float("nan")}}, "attribute 'a'"),
        ({"attributes": {"a": {"DataType": "Number", "StringValue": "x"}}}, "'x' is no number"),
        ({"attributes": {"a": {"DataType": "Binary", "StringValue": "x"}}}, "attribute 'a'"),
        ({"group": "g"}, "keeps no order"),
        ({"topic": "t.fifo"}, "MessageGroupId parameter is required"),
        ({"topic": "t.fifo", "group": "g"}, "ContentBasedDeduplication"),
        ({"topic": "t.fifo", "group": "a b", "dedupe": "x"}, "group='a b'"),
        ({"topic": "t.fifo", "group": "g", "dedupe": "x" * 129}, "dedupe="),
    ],
)
async def test_what_sns_would_refuse(tmp_path: Path, given: dict[str, Any], why: str) -> None:
    told: list[str] = []
    keywords = dict(given)  # the other loop's test gets the same
    topic, message = keywords.pop("topic", "t"), keywords.pop("message", "x")

    @on(local("go"))
    async def publish(payload: Any) -> None:
        try:
            await Topic(topic).publish(message, **keywords)
        except ValueError as error:
            told.append(str(error))

    async with app_of(tmp_path, publish) as app:
        await put(app, "go")
        await until(lambda: told)
    assert why in told[0]


async def test_messages_of_a_group_come_in_order_through_retries(tmp_path: Path) -> None:
    got: list[str] = []
    failed: list[str] = []

    @on(sns("jobs.fifo"), retries=3, backoff=fixed(0.01), concurrency=10)
    async def handler(text: str) -> None:
        await asyncio.sleep(0)
        if text.endswith("0") and failed.count(text) < 2:
            failed.append(text)
            raise OSError("not yet")
        got.append(text)

    async with app_of(tmp_path, handler) as app:
        for n in range(6):
            for group in "ab":
                await source(app).publish("jobs.fifo", f"{group}{n}".encode(), group=group, dedupe=f"{group}{n}")
        await until(lambda: len(got) == 12)
    for group in "ab":
        assert [text for text in got if text.startswith(group)] == [f"{group}{n}" for n in range(6)]


async def test_a_repeat_of_the_last_five_minutes_is_no_message(tmp_path: Path) -> None:
    got: list[Any] = []
    clock = ManualClock()

    @on(sns("{name}.fifo"))
    def handler(event, context):  # type: ignore[no-untyped-def]
        got.append(event["Records"][0]["Sns"])

    toml = '[sns.topics."content.fifo"]\ncontent_dedupe = true\n'
    async with app_of(tmp_path, handler, toml=toml, clock=clock) as app:
        first = await source(app).publish("t.fifo", b"1", group="g", dedupe="x")
        assert await source(app).publish("t.fifo", b"2", group="other", dedupe="x") == first
        assert await source(app).publish("u.fifo", b"3", group="g", dedupe="x") != first
        await source(app).publish("content.fifo", b"4", group="g")
        await source(app).publish("content.fifo", b"4", group="g")
        await source(app).publish("content.fifo", b"5", group="g")
    clock.advance(290)
    async with app_of(tmp_path, handler, toml=toml, clock=clock) as app:  # it is known after a restart, too
        assert await source(app).publish("t.fifo", b"6", group="g", dedupe="x") == first
        clock.advance(11)
        assert await source(app).publish("t.fifo", b"7", group="g", dedupe="x") != first
        await until(lambda: len(got) == 5)
    assert sorted(message["Message"] for message in got) == ["1", "3", "4", "5", "7"]
    numbers = [message["SequenceNumber"] for message in sorted(got, key=lambda message: str(message["Message"]))]
    assert numbers == sorted(numbers)
    assert all(len(number) == 20 for number in numbers)


async def test_dying_before_a_repeat_is_noted_makes_no_second_message(tmp_path: Path) -> None:
    got: list[str] = []
    clock = ManualClock()

    @on(sns("t.fifo"))
    async def handler(text: str) -> None:
        got.append(text)

    async with app_of(tmp_path, handler, clock=clock) as app:
        first = await source(app).publish("t.fifo", b"1", group="g", dedupe="x")
        for key in await source(app).router.keys("repeat/"):
            await source(app).router.put(key, None)  # as if it had not come to that
        assert await source(app).publish("t.fifo", b"1", group="g", dedupe="x") == first
        await until(lambda: got)
        assert app.engine.intake.repeats == 1
    assert got == ["1"]


def test_letters_have_no_group_for_a_topic_that_keeps_order(tmp_path: Path) -> None:
    @on(local("a"), dlq="sns:t.fifo")
    async def handler() -> None: ...

    with pytest.raises(ConfigError, match=r"dlq='sns:t.fifo': .*has no group"):
        app_of(tmp_path, handler)


async def test_send_has_options_for_all_of_it(tmp_path: Path) -> None:
    got: list[Any] = []

    @on(sns("t.fifo"))
    def handler(event, context):  # type: ignore[no-untyped-def]
        got.append(event["Records"][0]["Sns"])

    async with app_of(tmp_path, handler) as app:
        send = Operations(app).send
        options = {"attribute": ["a=b=c"], "subject": ["Hi"], "group": ["g"], "dedupe": ["d"]}
        sent = await send("sns", ["t.fifo", "hello"], options, str(tmp_path))
        await until(lambda: got)
        with pytest.raises(ConfigError, match="^send sns: Invalid parameter: The MessageGroupId"):
            await send("sns", ["t.fifo", "hello"], {}, str(tmp_path))
        with pytest.raises(ConfigError, match="write NAME=VALUE"):
            await send("sns", ["t", "hello"], {"attribute": ["a"]}, str(tmp_path))
    assert (got[0]["MessageId"], got[0]["Subject"]) == (sent["MessageId"], "Hi")
    assert got[0]["MessageAttributes"] == {"a": {"Type": "String", "Value": "b=c"}}


def test_the_sample_is_what_a_function_gets(cases: Path) -> None:
    lines = map(json.loads, (cases / "events" / "sam_generate_event_rendered.jsonl").read_text().splitlines())
    theirs = next(line["rendered"] for line in lines if line["service"] == "sns")["Records"][0]
    (ours,) = sample("jobs", "hi", subject="", attribute={"a": "b"})["Records"]
    assert (ours.keys(), ours["Sns"].keys()) == (theirs.keys(), theirs["Sns"].keys())
    assert ours["Sns"]["TopicArn"] == "arn:aws:sns:local:000000000000:jobs"
    assert (ours["Sns"]["Message"], ours["Sns"]["Subject"]) == ("hi", None)
    assert ours["Sns"]["MessageAttributes"] == {"a": {"Type": "String", "Value": "b"}}


def test_a_function_written_for_aws_runs_unmodified(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "import json\n\n"
        "def lambda_handler(event, context):\n"
        "    for record in event['Records']:\n"
        "        assert record['EventSource'] == 'aws:sns'\n"
        "        message = json.loads(record['Sns']['Message'])\n"
        "        color = record['Sns']['MessageAttributes']['color']['Value']\n"
        "        print(context.aws_request_id, message['id'], color, record['Sns']['TopicArn'].rpartition(':')[2])\n"
        "    return 'done'\n\n\n"
        "from eventrouter import on\nfrom eventrouter_sns import sns\n\n"
        "on(sns('orders'))(lambda_handler)\n"
    )
    (tmp_path / "eventrouter.toml").write_text("[http]\nport = 0\n")
    with Place(tmp_path) as place:
        place.serve()
        place.run("send", "sns", "orders", '{"id": "o-7"}', "--attribute", "color=red")
        place.says("o-7 red orders")
        sampled = json.loads(place.run("sample", "sns", "orders", '{"id": "o-8"}'))
        assert '"done"' in place.run("invoke", "lambda_handler", json.dumps(sampled))
        place.says("o-8 red orders")
