from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from eventrouter import App, Event, Reject, on
from eventrouter.clock import ManualClock
from eventrouter.errors import ConfigError, JournalError, NotRunning, Throttled
from eventrouter.operations import Operations, arguments_for
from eventrouter.plugins import Plugins
from eventrouter_events import Bus, EventsTrigger, eventrouter_plugin, events, sample
from served import Place
from source_contract import Outside, SourceContract
from support import LOCAL, advance, local, make_app, put, until


class Order(msgspec.Struct):
    id: str
    total: float


def app_of(folder: Path, *handlers: Callable[..., Any], toml: str = "", clock: ManualClock | None = None) -> App:
    return make_app(folder, *handlers, toml=toml, clock=clock, plugins=Plugins([LOCAL, eventrouter_plugin()]))


async def send(app: App, *words: str, **options: list[str]) -> Any:
    return await Operations(app).send("events", list(words), options, "/")


class TestContract(SourceContract):
    @pytest.fixture
    def outside(self) -> Outside:
        return Handlers()


class Handlers(Outside):
    """What puts events: handlers, and the command line."""

    source = "events"

    def plugins(self) -> Plugins:
        return Plugins([LOCAL, eventrouter_plugin()])

    def trigger(self) -> EventsTrigger:
        return events({"source": ["outside"]})

    async def put(self, app: App, n: int, body: bytes | None = None) -> bool:
        detail = (body or b'{"n": %d}' % n).decode()
        try:
            await send(app, json.dumps({"Source": "outside", "DetailType": "Put", "Detail": detail}))
        except JournalError:
            return False
        return True


# Rules


async def test_rules_choose_by_the_whole_event_and_handlers_get_the_detail(tmp_path: Path) -> None:
    got: list[Any] = []

    @on(local("go"))
    async def place() -> None:
        got.append(await Bus().put("Order Placed", Order("7", 120), "shop", ["order/7"]))
        await Bus().put("Order Placed", {"id": "8", "total": 20}, "shop")
        await Bus("other").put("Order Placed", {"id": "9", "total": 200}, "shop")

    @on(events({"source": ["shop"], "detail-type": ["Order Placed"], "detail": {"total": [{"numeric": [">", 100]}]}}))
    async def large(order: Order, event: Event) -> None:
        got.append((order, event.type, event.attributes["source"], event.attributes["resources"]))

    @on(events({"resources": [{"prefix": "order/"}]}))
    async def by_resource(order: Order) -> None:
        got.append(("resource", order.id))

    @on(events({"source": ["shop"]}, bus="other"))
    async def other(order: Order) -> None:
        got.append(("other", order.id))

    async with app_of(tmp_path, place, large, by_resource, other) as app:
        await put(app, "go")
        await until(lambda: len(got) == 4)
        assert app.engine.intake.unmatched == 1
    assert (Order("7", 120), "Order Placed", "shop", ["order/7"]) in got
    assert ("resource", "7") in got
    assert ("other", "9") in got


async def test_a_lambda_function_written_for_aws_gets_eventbridges_event(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "import json\n\nseen = []\n\n\ndef lambda_handler(event, context):\n"
        '    seen.append(json.loads(json.dumps(event)))\n    return {"statusCode": 200, "id": context.aws_request_id}\n'
    )
    scope: dict[str, Any] = {"__name__": "aws"}
    exec((tmp_path / "app.py").read_text(), scope)
    handler = on(events({"source": ["shop"]}))(scope["lambda_handler"])

    async with app_of(tmp_path, handler) as app:
        entry = {"Source": "shop", "DetailType": "Order Placed", "Detail": '{"id": "7"}', "Resources": ["order/7"], "Time": 1767225600}
        answer = await send(app, json.dumps(entry))
        await until(lambda: scope["seen"])
    assert scope["seen"] == [
        {
            "version": "0",
            "id": answer["Entries"][0]["EventId"],
            "detail-type": "Order Placed",
            "source": "shop",
            "account": "000000000000",
            "time": "2026-01-01T00:00:00Z",
            "region": "local",
            "resources": ["order/7"],
            "detail": {"id": "7"},
        }
    ]


async def test_captured_events_of_amazons_come_through_as_they_are(tmp_path: Path, cases: Path) -> None:
    lines = map(json.loads, (cases / "events" / "events.jsonl").read_text().splitlines())
    fields = {"detail-type", "source", "time", "detail", "version"}
    captured = [line["event"] for line in lines if isinstance(line.get("event"), dict) and fields <= line["event"].keys()]
    captured = [event for event in captured if event["detail"] is not None]
    assert len(captured) >= 5
    got: dict[str, Any] = {}

    @on(events({"source": [{"exists": True}]}))
    def handler(event, context):  # type: ignore[no-untyped-def]
        got.setdefault(event["id"], []).append(event)

    async with app_of(tmp_path, handler) as app:
        for event in captured:
            await send(app, json.dumps(event))
        await until(lambda: sum(map(len, got.values())) == len(captured))
    for event in captured:
        (found, *_) = [one for one in got[event["id"]] if one["detail-type"] == event["detail-type"]]
        whole_seconds = {**event, "time": event["time"].partition(".")[0].rstrip("Z") + "Z"}
        assert {**found} == {"resources": [], **whole_seconds}


def test_a_pattern_that_is_none_is_refused_where_it_is_written() -> None:
    with pytest.raises(ConfigError, match=r"^events: .*detail"):
        events({"detail": "no list"})
    with pytest.raises(ConfigError, match="bus 'a/b'"):
        events({"source": ["x"]}, bus="a/b")


def test_rules_in_the_config(tmp_path: Path) -> None:
    @on(local("x"))
    async def work(payload: Any) -> None: ...

    toml = '[functions.work]\non = [{ events = { source = ["shop"] }, bus = "orders" }]\n'
    app = app_of(tmp_path, work, toml=toml)
    assert str(app.functions["work"].triggers[-1]) == 'events {"source":["shop"]} on orders'


# Putting


@pytest.mark.parametrize(
    ("entry", "code", "message"),
    [
        ({"DetailType": "d", "Detail": "{}"}, "InvalidArgument", "Parameter Source is not valid. Reason: Source is a required argument."),
        ({"Source": "s", "Detail": "{}"}, "InvalidArgument", "DetailType is a required argument."),
        ({"Source": "s", "DetailType": "d"}, "InvalidArgument", "Detail is a required argument."),
        ({"Source": "", "DetailType": "d", "Detail": "{}"}, "InvalidArgument", "Source"),
        ({"Source": "s", "DetailType": "d" * 129, "Detail": "{}"}, "InvalidArgument", "128"),
        ({"Source": "s", "DetailType": "d", "Detail": "{"}, "MalformedDetail", "Detail is malformed."),
        ({"Source": "s", "DetailType": "d", "Detail": "[1]"}, "MalformedDetail", "Detail is malformed."),
        ({"Source": "s", "DetailType": "d", "Detail": '"x"'}, "MalformedDetail", "Detail is malformed."),
        ({"Source": "s", "DetailType": "d", "Detail": "[" * 100_000}, "MalformedDetail", "Detail is malformed."),
        ({"Source": "s", "DetailType": "d", "Detail": "{}", "Resources": "r"}, "InvalidArgument", "Resources"),
        ({"Source": "s", "DetailType": "d", "Detail": "{}", "Time": "soon"}, "InvalidArgument", "Time"),
        ({"Source": "s", "DetailType": "d", "Detail": "{}", "EventBusName": "a/b"}, "InvalidArgument", "EventBusName"),
        ({"Source": "eventrouter", "DetailType": "d", "Detail": "{}"}, "NotAuthorizedForSourceException", "eventrouter"),
    ],
)
async def test_put_events_says_which_entries_failed_and_puts_the_others(tmp_path: Path, entry: Any, code: str, message: str) -> None:
    answers: list[Any] = []
    got: list[Any] = []
    good = {
        "Source": "s",
        "DetailType": "d",
        "Detail": '{"good": 1}',
        "EventBusName": "arn:aws:events:local:000000000000:event-bus/default",
    }

    @on(local("go"))
    async def place() -> None:
        answers.append(await Bus().put_events([good, entry]))

    @on(events({"source": ["s"]}))
    async def work(detail: dict[str, int], event: Event) -> None:
        got.append((detail, event.attributes["id"]))

    async with app_of(tmp_path, place, work) as app:
        await put(app, "go")
        await until(lambda: got and answers)
    (answer,) = answers
    assert answer["FailedEntryCount"] == 1
    assert answer["Entries"][1]["ErrorCode"] == code
    assert message in answer["Entries"][1]["ErrorMessage"]
    assert got == [({"good": 1}, answer["Entries"][0]["EventId"])]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "0 of them; there must be 1 to 10"),
        ([{}] * 11, "11 of them; there must be 1 to 10"),
        ([{"Source": "s", "DetailType": "d", "Detail": json.dumps({"x": "y" * 600_000})}] * 2, "1048576"),
        ("text", "a list of entries"),
    ],
)
async def test_what_aws_refuses_as_a_whole_puts_nothing(tmp_path: Path, entries: Any, message: str) -> None:
    errors: list[str] = []

    @on(local("go"))
    async def place() -> None:
        try:
            await Bus().put_events(entries)
        except ValueError as error:
            errors.append(str(error))

    async with app_of(tmp_path, place) as app:
        await put(app, "go")
        await until(lambda: errors)
    assert message in errors[0]


async def test_put_takes_times_and_def_handlers_put_with_sync(tmp_path: Path) -> None:
    got: list[Any] = []

    @on(local("go"))
    def place(payload: Any) -> None:
        Bus().sync.put("a", {}, time=datetime(2026, 1, 1, tzinfo=UTC))
        Bus().sync.put_events([{"Source": "app", "DetailType": "a", "Detail": "{}", "Time": "2026-01-01T01:00:00+01:00"}])

    @on(events({"source": ["app"]}))
    def work(event, context):  # type: ignore[no-untyped-def]
        got.append(event["time"])

    async with app_of(tmp_path, place, work) as app:
        await put(app, "go")
        await until(lambda: len(got) == 2)
    assert got == ["2026-01-01T00:00:00Z"] * 2


async def test_putting_outside_a_router_says_so() -> None:
    with pytest.raises(NotRunning, match="no router is running here"):
        await Bus().put("x", {})


async def test_what_is_put_twice_runs_twice(tmp_path: Path) -> None:
    got: list[str] = []

    @on(events({"source": ["s"]}))
    async def work(event: Event) -> None:
        got.append(event.id)

    async with app_of(tmp_path, work) as app:
        for _ in range(2):
            await send(app, '[{"Source": "s", "DetailType": "d", "Detail": "{}"}, {"source": "s", "detail-type": "d", "detail": {}}]')
        await until(lambda: len(got) == 4)
    assert len(set(got)) == 4


@pytest.mark.parametrize(
    "text", ["{", "3", "[3]", "{}", '{"source": "s", "detail-type": "d", "detail": 3}', '{"Source": "s", "DetailType": "d"}']
)
async def test_send_names_what_is_wrong(tmp_path: Path, text: str) -> None:
    @on(events({"source": ["s"]}))
    async def work(event: Event) -> None: ...

    async with app_of(tmp_path, work) as app:
        with pytest.raises(ConfigError, match="^send events: "):
            await send(app, text)


def test_the_sample_is_what_a_function_gets(tmp_path: Path) -> None:
    args, options = arguments_for(sample, "sample events", ["Order Shipped", '{"id": 1}'], {"source": ["shipping"]}, tmp_path)
    made = sample(*args, **options)
    assert (made["detail-type"], made["detail"], made["source"], made["time"]) == (
        "Order Shipped",
        {"id": 1},
        "shipping",
        "2026-01-01T00:00:00Z",
    )
    assert list(made) == ["version", "id", "detail-type", "source", "account", "time", "region", "resources", "detail"]


# Destinations


async def test_records_of_functions_come_as_lambda_sends_them(tmp_path: Path) -> None:
    got: list[Any] = []

    @on(local("{how}"), on_success="events:default", on_failure="events:failures", retries=0)
    async def work(how: str) -> str:
        if how == "bad":
            raise Reject("no")
        return "fine"

    @on(events({"source": ["lambda"], "detail": {"requestContext": {"condition": ["Success"]}}}))
    @on(events({"source": ["lambda"]}, bus="failures"))
    def record(event, context):  # type: ignore[no-untyped-def]
        got.append(event)

    async with app_of(tmp_path, work, record) as app:
        await put(app, "good")
        await until(lambda: len(got) == 1)
        await put(app, "bad")
        await until(lambda: len(got) == 2)
    good, bad = got
    arn = "arn:aws:lambda:local:000000000000:function:work:$LATEST"
    assert (good["source"], good["detail-type"], good["resources"]) == ("lambda", "Lambda Function Invocation Result – Success", [arn])
    assert (bad["source"], bad["detail-type"], bad["resources"]) == ("lambda", "Lambda Function Invocation Result – Failure", [arn])
    assert good["detail"]["responsePayload"] == "fine"
    assert bad["detail"]["responsePayload"]["errorMessage"] == "no"


async def test_dead_letters_may_go_to_a_bus(tmp_path: Path) -> None:
    got: list[Any] = []

    @on(local("work"), dlq="events:letters")
    async def work(payload: Any) -> None:
        raise Reject("no")

    @on(events({"detail": {"attributes": {"ErrorMessage": ["no"]}}}, bus="letters"))
    async def letter(detail: dict[str, Any]) -> None:
        got.append(detail["body"])

    async with app_of(tmp_path, work, letter) as app:
        await put(app, "work", {"n": 1})
        await until(lambda: got)
    assert got == [{"Records": [{"n": 1}]}]


def test_a_rule_may_choose_among_the_bus_that_failures_of_it_go_to(tmp_path: Path) -> None:
    @on(events({"source": ["shop"]}), on_failure="events:default")
    async def work(payload: Any) -> None: ...

    app_of(tmp_path, work)  # what it fails on is of source lambda, so it doesn't start itself


def test_a_bus_that_none_can_have_the_name_of(tmp_path: Path) -> None:
    @on(local("x"), on_failure="events:a b")
    async def work(payload: Any) -> None: ...

    with pytest.raises(ConfigError, match="bus 'a b'"):
        app_of(tmp_path, work)


# The router's own events


async def test_the_router_tells_of_itself_on_the_bus(tmp_path: Path) -> None:
    got: list[Any] = []

    @on(local("work"))
    async def work(payload: Any) -> None:
        raise Reject("no such device")

    @on(local("r", mode="request"), concurrency=0)
    async def closed(payload: Any) -> None: ...

    @on(events({"source": ["eventrouter"]}))
    def watch(event, context):  # type: ignore[no-untyped-def]
        got.append(event)
        raise RuntimeError("and this goes wrong, too")

    async with app_of(tmp_path, work, closed, watch, toml="[functions.watch]\nretries = 0\n") as app:
        await until(lambda: app.sources["local"].router.state == "live")
        await put(app, "work", id="event 1")
        await until(lambda: len(got) == 1)
        with pytest.raises(Throttled):
            await app.run_now("closed", Event("invoke", "x", "closed"), {})
        await until(lambda: len(got) == 2)
        app.sources["local"].router.lost("no answer")
        await until(lambda: len(got) == 3)
        app.sources["local"].router.live()
        await until(lambda: len(got) == 4)
        await until(lambda: app.engine.lanes["watch"].dead == 4)
        await app.journal.flush()
        assert app.engine.lanes["watch"].accepted == 4, "what goes wrong with them makes no others"
        (letter,) = await Operations(app).letters({"function": "work"})
    dead, throttled, lost, live = got
    assert dead["detail-type"] == "Function Invocation Dead Lettered"
    assert dead["resources"] == ["arn:aws:lambda:local:000000000000:function:work"]
    assert dead["detail"] == {
        "functionName": "work",
        "requestId": letter["id"],
        "reason": "Rejected",
        "errorType": "Reject",
        "errorMessage": "no such device",
        "attempts": 1,
        "event": {"id": "event 1", "source": "local", "type": "local.put", "subject": "work"},
    }
    assert (throttled["detail-type"], throttled["detail"]) == (
        "Function Throttled",
        {"functionName": "closed", "throttles": 1, "concurrency": 0},
    )
    assert (lost["detail-type"], lost["detail"]) == (
        "Source State Change", {"state": {"value": "LOST", "reason": "no answer"}, "sourceName": "local"},
    )  # fmt: skip
    assert live["detail"]["state"]["value"] == "LIVE"


async def test_what_is_told_while_the_journal_refuses_comes_when_it_accepts(tmp_path: Path) -> None:
    import asyncio

    clock = ManualClock()
    go = asyncio.Event()
    got: list[str] = []

    @on(local("x"), concurrency=1, timeout=900)
    async def work(payload: Any) -> None:
        await go.wait()

    @on(events({"source": ["eventrouter"], "detail-type": ["Journal State Change"]}))
    async def watch(detail: dict[str, Any]) -> None:
        got.append(detail["state"]["value"])

    async with app_of(tmp_path, work, watch, clock=clock, toml="[journal]\nmax_backlog = 3\n") as app:
        for _ in range(3):
            await put(app, "x")
        with pytest.raises(JournalError):
            await put(app, "x")
        go.set()
        await until(lambda: app.engine.lanes["work"].succeeded == 3)
        await advance(clock, 1.1, lambda: len(got) == 2)
    assert sorted(got) == ["ACCEPTING", "REFUSING"]


async def test_a_loop_by_way_of_the_routers_own_events_is_ended(tmp_path: Path) -> None:
    @on(events({"source": ["loop"]}))
    async def fails(payload: Any) -> None:
        raise Reject("no")

    @on(events({"source": ["eventrouter"]}))
    async def watch(payload: Any) -> None:
        await Bus().put("again", {}, source="loop")

    async with app_of(tmp_path, fails, watch) as app:
        await send(app, '{"Source": "loop", "DetailType": "d", "Detail": "{}"}')
        await until(lambda: app.engine.lanes["fails"].dead + app.engine.lanes["watch"].dead > app.engine.lanes["watch"].succeeded + 1)
        assert app.engine.lanes["watch"].succeeded <= 16


async def test_thousands_of_rules_are_not_asked_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[EventsTrigger] = []
    got: list[int] = []

    def rule(number: int) -> Callable[..., Any]:
        @on(events({"source": ["shop"], "detail": {"n": [number]}}), name=f"rule{number}")
        async def work(detail: dict[str, int]) -> None:
            got.append(number)

        work.__name__ = f"rule{number}"
        return work

    matches = EventsTrigger.matches
    monkeypatch.setattr(EventsTrigger, "matches", lambda trigger, event: asked.append(trigger) or matches(trigger, event))
    async with app_of(tmp_path, *map(rule, range(2000))) as app:
        await send(app, '{"Source": "shop", "DetailType": "d", "Detail": "{\\"n\\": 1234}"}')
        await until(lambda: got)
    assert got == [1234]
    assert len(asked) == 1


async def test_nobody_who_listens_costs_nothing(tmp_path: Path) -> None:
    @on(local("work"))
    async def work(payload: Any) -> None:
        raise Reject("no")

    @on(events({"source": ["shop"]}))
    async def other(payload: Any) -> None: ...

    async with app_of(tmp_path, work, other) as app:
        await put(app, "work")
        await until(lambda: app.engine.lanes["work"].dead == 1)
        assert app.engine.intake.unmatched == 0


# Replay


async def test_a_replayed_event_says_so_and_keeps_its_id(tmp_path: Path) -> None:
    got: list[Any] = []

    @on(events({"source": ["shop"]}))
    def work(event, context):  # type: ignore[no-untyped-def]
        got.append(event)

    async with app_of(tmp_path, work, toml='[journal]\narchive = "7d"\n') as app:
        await send(app, '{"Source": "shop", "DetailType": "d", "Detail": "{}"}')
        await until(lambda: got)
        answer = await Operations(app).replay("work", 0)
        await until(lambda: len(got) == 2)
    assert got[1] == {**got[0], "replay-name": answer["name"]}


def test_from_outside(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "from eventrouter import on\nfrom eventrouter_events import events\n\n\n"
        '@on(events({"source": ["shop"]}))\nasync def work(detail: dict) -> None:\n    print("got", detail["id"], flush=True)\n'
    )
    (tmp_path / "eventrouter.toml").write_text("[http]\nport = 0\n")
    with Place(tmp_path) as place:
        place.serve()
        answer = json.loads(place.run("send", "events", '{"Source": "shop", "DetailType": "Order Placed", "Detail": "{\\"id\\": 7}"}'))
        assert answer["FailedEntryCount"] == 0
        assert len(answer["Entries"][0]["EventId"]) == 36
        place.says("got 7")
        place.run("send", "events", place.run("sample", "events", "Order Placed", '{"id": 8}'))
        place.says("got 8")
        assert json.loads(place.curl("/events", "-d", "{}"))["status"] == 404
