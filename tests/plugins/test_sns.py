from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from eventrouter import App, EventRouterError, on
from eventrouter.control import Operations
from eventrouter.errors import ConfigError, NotRunning
from eventrouter.plugins import Plugins
from eventrouter_sns import Topic, eventrouter_plugin, sns
from support import LOCAL, local, make_app, put, until


class Alert(msgspec.Struct):
    celsius: float


def app_of(folder: Path, *handlers: Any) -> App:
    return make_app(folder, *handlers, plugins=Plugins([LOCAL, eventrouter_plugin()]))


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
        await Topic("t").publish("x", attributes={"s": "a", "n": 1.5, "b": b"\x00", "l": ["a", 1]})

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


@pytest.mark.parametrize("name", ["", "a/b", "{x}"])
def test_a_topics_name(name: str) -> None:
    with pytest.raises(ConfigError, match="a topic's name"):
        Topic(name)


def test_a_pattern_that_is_none() -> None:
    with pytest.raises(ConfigError, match="a wildcard is written"):
        sns("{x")
