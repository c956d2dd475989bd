"""CloudEvents over HTTP, both ways, with the SDK of the CloudEvents project as the other side."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import ClientSession, web
from cloudevents.core.bindings import http as sdk
from cloudevents.core.v1.event import CloudEvent

from eventrouter import App, Event, on
from eventrouter.clock import ManualClock
from eventrouter.errors import ConfigError
from eventrouter.operations import Operations
from eventrouter.plugins import Plugins
from eventrouter_events import EventsTrigger, eventrouter_plugin, events
from eventrouter_http import eventrouter_plugin as http_plugin
from source_contract import Outside, SourceContract
from support import LOCAL, make_app, until

OPEN = '[http]\nport = 0\n[events]\npath = "/events"\n'
CE = "application/cloudevents+json"
MINIMAL = {"specversion": "1.0", "id": "1", "source": "/sensors", "type": "reading"}
ALL = events({"source": [{"exists": True}]})


def app_of(folder: Path, *handlers: Callable[..., Any], toml: str = OPEN, clock: ManualClock | None = None) -> App:
    return make_app(folder, *handlers, toml=toml, clock=clock, plugins=Plugins([LOCAL, eventrouter_plugin(), http_plugin()]))


async def post(app: App, body: bytes | str, headers: Any, path: str = "/events") -> tuple[int, Any]:
    url = app.sources["http"].url  # type: ignore[attr-defined]
    async with ClientSession() as client, client.post(url + path, data=body, headers=headers) as answer:
        kind = answer.content_type
        assert kind == ("application/problem+json" if answer.status >= 400 else kind)
        return answer.status, json.loads(await answer.read())


class TestContract(SourceContract):
    @pytest.fixture
    def outside(self) -> Outside:
        return Http()


class Http(Outside):
    """A client that posts CloudEvents."""

    source = "events"
    identified = True
    toml = OPEN

    def plugins(self) -> Plugins:
        return Plugins([LOCAL, eventrouter_plugin(), http_plugin()])

    def trigger(self) -> EventsTrigger:
        return events({"source": ["/outside"]})

    async def put(self, app: App, n: int, body: bytes | None = None) -> bool:
        headers = {"ce-specversion": "1.0", "ce-id": str(n), "ce-source": "/outside", "ce-type": "put", "Content-Type": "application/json"}
        try:
            status, _ = await post(app, body or b'{"n": %d}' % n, headers)
        except OSError:
            return False
        return status == 202


def collector() -> tuple[list[Event], list[Any], Callable[..., Any], Callable[..., Any]]:
    found: list[Event] = []
    shaped: list[Any] = []

    @on(ALL, events({"source": [{"exists": True}]}, bus="orders"))
    async def take(event: Event) -> None:
        found.append(event)

    @on(ALL)
    def lambda_handler(event, context):  # type: ignore[no-untyped-def]
        shaped.append(event)

    return found, shaped, take, lambda_handler


# In


@pytest.mark.parametrize("mode", ["structured", "binary"])
@pytest.mark.parametrize(
    ("data", "kind", "detail"),
    [
        ({"celsius": 21.5}, "application/json", {"celsius": 21.5}),
        (b'[1, "\xc3\xa4"]', "application/json", [1, "ä"]),
        ("<a>ü</a>", "text/xml", "<a>ü</a>"),
        (b"\x00\xff", "application/octet-stream", {"base64": "AP8="}),
        ({"v": 1}, "application/vnd.shop+json", {"v": 1}),
    ],
)
async def test_what_the_sdk_sends_arrives(tmp_path: Path, mode: str, data: Any, kind: str, detail: Any) -> None:
    found, shaped, take, handler = collector()
    attributes = {**MINIMAL, "subject": 'sensor/ä " %', "datacontenttype": kind, "site": "Köln"}
    event = CloudEvent(attributes={**attributes, "time": datetime.fromisoformat("2026-01-01T00:00:00.250+00:00")}, data=data)
    message = sdk.to_structured_event(event) if mode == "structured" else sdk.to_binary_event(event)
    async with app_of(tmp_path, take, handler) as app:
        status, answer = await post(app, message.body, message.headers)
        assert (status, answer) == (202, {"id": "/sensors 1"})
        await until(lambda: found and shaped)
    assert shaped[0] == {
        "version": "0",
        "id": "1",
        "detail-type": "reading",
        "source": "/sensors",
        "account": "000000000000",
        "time": "2026-01-01T00:00:00Z",
        "region": "local",
        "resources": ['sensor/ä " %'],
        "detail": detail,
    }
    assert found[0].time == 1767225600.25
    assert found[0].attributes["cloudevent"]["site"] == "Köln"
    assert found[0].content_type == kind


@pytest.mark.parametrize(
    ("data", "kind", "detail"),
    [("AP8=", "application/octet-stream", {"base64": "AP8="}), ("eyJhIjoxfQ==", "application/json", {"a": 1})],
)
async def test_binary_data_of_no_named_type_are_json_where_they_can_be(tmp_path: Path, data: str, kind: str, detail: Any) -> None:
    found, shaped, take, handler = collector()
    async with app_of(tmp_path, take, handler) as app:
        assert (await post(app, json.dumps({**MINIMAL, "data_base64": data}), {"Content-Type": CE}))[0] == 202
        await until(lambda: found and shaped)
    assert (found[0].content_type, shaped[0]["detail"]) == (kind, detail)


async def test_a_batch_is_taken_whole_or_not_at_all(tmp_path: Path) -> None:
    found, _, take, _ = collector()
    rows = [{**MINIMAL, "id": str(n), "data": {"n": n}} for n in range(3)]
    async with app_of(tmp_path, take) as app:
        kind = {"Content-Type": "application/cloudevents-batch+json; charset=utf-8"}
        status, problem = await post(app, json.dumps([*rows, {**MINIMAL, "id": ""}]), kind)
        assert (status, problem["detail"].partition(" ")[0]) == (400, "[3]:")
        assert await post(app, json.dumps(rows), kind) == (202, {"ids": ["/sensors 0", "/sensors 1", "/sensors 2"]})
        assert await post(app, "[]", kind) == (202, {"ids": []})
        await until(lambda: len(found) == 3)
    assert sorted(event.json()["n"] for event in found) == [0, 1, 2]


async def test_a_repeat_of_source_and_id_runs_once(tmp_path: Path) -> None:
    found, _, take, _ = collector()
    async with app_of(tmp_path, take) as app:
        for row in (MINIMAL, MINIMAL, {**MINIMAL, "source": "/others"}, {**MINIMAL, "id": "2"}):
            assert (await post(app, json.dumps(row), {"Content-Type": CE}))[0] == 202
        await until(lambda: len(found) == 3)
        assert app.engine.intake.repeats == 1
    assert {(event.attributes["source"], event.attributes["id"]) for event in found} == {
        ("/sensors", "1"),
        ("/others", "1"),
        ("/sensors", "2"),
    }


async def test_no_two_pairs_of_source_and_id_are_taken_for_one(tmp_path: Path) -> None:
    found, _, take, _ = collector()
    async with app_of(tmp_path, take) as app:
        for source, id in (("a b", "c"), ("a", "b c"), ("a%20b", "c")):
            status, answer = await post(app, json.dumps({**MINIMAL, "source": source, "id": id}), {"Content-Type": CE})
            assert status == 202
        await until(lambda: len(found) == 3)
        assert found[-1].id == answer["id"]
    assert [event.attributes["source"] for event in found] == ["a b", "a", "a%20b"]


async def test_each_bus_has_its_path(tmp_path: Path) -> None:
    found, shaped, take, handler = collector()
    async with app_of(tmp_path, take, handler) as app:
        assert (await post(app, json.dumps(MINIMAL), {"Content-Type": CE}, "/events/orders"))[0] == 202
        await until(lambda: found)
        assert (await post(app, json.dumps(MINIMAL), {"Content-Type": CE}, "/events/a%20b"))[0] == 400
    assert (found[0].subject, shaped) == ("orders", [])


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"id": None}, "id: missing"),
        ({"id": ""}, "id: missing"),
        ({"source": ""}, "source: missing"),
        ({"type": 3}, "type: missing"),
        ({"specversion": "0.3"}, "specversion: '0.3'"),
        ({"specversion": 1.0}, "specversion: an attribute is"),
        ({"specversion": None}, "specversion: None"),
        ({"time": "yesterday"}, "time: 'yesterday'"),
        ({"time": "2026-01-01T00:00:00"}, "time: "),
        ({"time": 5}, "time: it is a text"),
        ({"subject": ""}, "subject: empty"),
        ({"Upper": "x"}, "'Upper': an attribute's name"),
        ({"list": []}, "list: an attribute is"),
        ({"data": {}, "data_base64": "AA=="}, "data and data_base64"),
        ({"data_base64": "!"}, "data_base64: not base64"),
        ({"data_base64": 3}, "data_base64: not base64"),
        ({"data_base64": "ew==", "datacontenttype": "application/json"}, "data: no JSON"),
        ({"source": "eventrouter"}, "source: 'eventrouter' is the router's own"),
    ],
)
async def test_what_is_no_cloudevent_is_refused_by_name(tmp_path: Path, change: Any, fault: str) -> None:
    _, _, take, _ = collector()
    async with app_of(tmp_path, take) as app:
        status, problem = await post(app, json.dumps({**MINIMAL, **change}), {"Content-Type": CE})
        assert (status, problem["status"], problem["title"]) == (400, 400, "Bad Request")
        assert problem["detail"].startswith(fault)
        assert app.engine.lanes["take"].accepted == 0


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        ("{", {"Content-Type": CE}, 400),
        ("[" * 100_000, {"Content-Type": CE}, 400),
        ("3", {"Content-Type": CE}, 400),
        ("[3]", {"Content-Type": "application/cloudevents-batch+json"}, 400),
        (json.dumps(MINIMAL), {"Content-Type": "application/json"}, 415),
        (json.dumps(MINIMAL), {"Content-Type": "application/cloudevents+xml"}, 415),
        (json.dumps(MINIMAL), {"Content-Type": "application/cloudevents"}, 415),
        ("x", {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "s"}, 400),
        ("x", {"ce-specversion": "1.0", "ce-id": "%FF", "ce-source": "s", "ce-type": "t"}, 400),
        ("{", {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "s", "ce-type": "t", "Content-Type": "application/json"}, 400),
        ("x", [("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-id", "2"), ("ce-source", "s"), ("ce-type", "t")], 400),
    ],
)
async def test_bad_requests(tmp_path: Path, body: str, headers: Any, status: int) -> None:
    _, _, take, _ = collector()
    async with app_of(tmp_path, take) as app:
        assert (await post(app, body, headers))[0] == status
        assert app.engine.lanes["take"].accepted == 0


async def test_the_conformance_suites_requests(tmp_path: Path, cases: Path) -> None:
    found, shaped, take, handler = collector()
    for case in json.loads((cases / "webhooks" / "cloudevents_http_binding.json").read_text()):
        found.clear()
        shaped.clear()
        folder = tmp_path / str(abs(hash(case["id"])))
        folder.mkdir()
        async with app_of(folder, take, handler) as app:
            request = case["request"]
            assert await post(app, request["body"], request["headers"]) == (202, {"id": "/mycontext/subcontext 1234-1234-1234"})
            await until(lambda: found and shaped)
        want = case["attributes"]
        event = shaped[0]
        assert (event["id"], event["source"], event["detail-type"], event["time"]) == (
            want["id"],
            want["source"],
            want["type"],
            want["time"],
        )
        assert event["detail"] == case["data"]
        assert found[0].attributes["cloudevent"]["datacontenttype"] == want["datacontenttype"]


async def test_the_conformance_suites_events(tmp_path: Path, cases: Path) -> None:
    found, _, take, _ = collector()
    rows = json.loads((cases / "webhooks" / "cloudevents_yaml_events.json").read_text())
    async with app_of(tmp_path, take) as app:
        for number, case in enumerate(rows):
            attributes = {**case["ContextAttributes"], **case["ContextAttributes"].get("Extensions", {})}
            attributes.pop("Extensions", None)
            headers = {f"ce-{name}": quote(str(value), safe=" /:@") for name, value in attributes.items() if name != "datacontenttype"}
            headers["ce-id"] += f"-{number}"
            headers["Content-Type"] = attributes.get("datacontenttype", "application/json")
            status, answer = await post(app, case["Data"].encode(), headers)
            if str(attributes["specversion"]) != "1.0":  # 0.3 is none of ours
                assert (status, answer["detail"]) == (400, "specversion: '0.3'; 1.0 is taken")
                continue
            assert status == 202, answer
            await until(lambda: found)
            assert found.pop().data == case["Data"].encode()


async def test_put_events_of_aws_clients_is_answered_as_aws_does(tmp_path: Path) -> None:
    found, _, take, _ = collector()
    entries = [{"Source": "shop", "DetailType": "d", "Detail": "{}", "Time": 1767225600.0}, {"Source": "shop"}]
    headers = {"X-Amz-Target": "AWSEvents.PutEvents", "Content-Type": "application/x-amz-json-1.1"}
    async with app_of(tmp_path, take) as app:
        status, answer = await post(app, json.dumps({"Entries": entries}), headers, "/events/")
        await until(lambda: found)
        assert (status, answer["FailedEntryCount"], answer["Entries"][1]["ErrorCode"]) == (200, 1, "InvalidArgument")
        assert answer["Entries"][0]["EventId"] == found[0].attributes["id"]
        assert (await post(app, "{}", headers))[0] == 400
        assert (await post(app, "[", headers))[0] == 400


async def test_without_a_path_there_is_no_endpoint_and_with_a_token_it_must_be_shown(tmp_path: Path) -> None:
    found, _, take, _ = collector()
    async with app_of(tmp_path, take, toml="[http]\nport = 0\n") as app:
        assert (await post(app, json.dumps(MINIMAL), {"Content-Type": CE}))[0] == 404
    async with app_of(tmp_path, take, toml=OPEN + 'token = "s3cret"\n') as app:
        assert "s3cret" not in "".join(app.sources["events"].lines())
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}):
            status, problem = await post(app, json.dumps(MINIMAL), {"Content-Type": CE, **headers})
            assert (status, "s3cret" in json.dumps(problem)) == (401, False)
        assert (await post(app, json.dumps(MINIMAL), {"Content-Type": CE, "Authorization": "Bearer s3cret"}))[0] == 202
        await until(lambda: found)


@pytest.mark.parametrize("path", ["events", "/events/", "/{x}", "/e v"])
def test_a_path_that_is_none(tmp_path: Path, path: str) -> None:
    _, _, take, _ = collector()
    with pytest.raises(ConfigError, match=r"\[events\] path"):
        app_of(tmp_path, take, toml=f'[events]\npath = "{path}"\n')


# Out


class Receiver:
    """An endpoint that answers with what is in `answers`, then 204, and reads events with the SDK."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, str]]] = []
        self.got: list[Any] = []
        self.requests: list[Any] = []

    async def __aenter__(self) -> Receiver:
        application = web.Application()
        application.router.add_post("/hook", self._take)
        self._runner = web.AppRunner(application)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/hook?key=s3cret"
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        self.requests.append(request)
        self.got.append(sdk.from_http_event(sdk.HTTPMessage(headers=dict(request.headers), body=await request.read())))
        status, headers = self.answers.pop(0) if self.answers else (204, {})
        return web.Response(status=status, headers=headers)


def target(url: str, more: str = "") -> str:
    return f'{OPEN}[[events.targets]]\npattern = {{ detail-type = ["reading"] }}\nurl = "{url}"\n{more}\n'


@pytest.mark.parametrize("mode", ["structured", "binary"])
async def test_events_go_out_as_cloudevents(tmp_path: Path, mode: str) -> None:
    async with Receiver() as receiver:
        toml = target(receiver.url, f'mode = "{mode}"\nheaders = {{ Authorization = "Bearer x" }}')
        async with app_of(tmp_path, toml=toml) as app:
            put = {"Source": "shop", "DetailType": "reading", "Detail": '{"a": "ä"}', "Resources": ["order/ü 7"], "Time": 1767225600.5}
            answer = await Operations(app).send("events", [json.dumps(put)], {}, "/")
            await Operations(app).send("events", [json.dumps({**put, "DetailType": "other"})], {}, "/")
            await until(lambda: receiver.got)
            attributes = {
                **MINIMAL,
                "subject": 's " ö',
                "site": "Köln",
                "datacontenttype": "text/plain",
                "time": "2026-01-01T00:00:00.123456Z",
            }
            await post(app, json.dumps({**attributes, "data": "so"}), {"Content-Type": CE})
            await until(lambda: len(receiver.got) == 2)
            await post(app, json.dumps({**MINIMAL, "id": "2", "datacontenttype": "image/png", "data_base64": "AP8="}), {"Content-Type": CE})
            await until(lambda: len(receiver.got) == 3)
            await post(app, json.dumps({**MINIMAL, "id": "3"}), {"Content-Type": CE})
            await until(lambda: len(receiver.got) == 4)
            assert app.engine.lanes[next(name for name in app.functions)].accepted == 4
    own, foreign, binary, empty = receiver.got
    assert (own.get_id(), own.get_source(), own.get_type()) == (answer["Entries"][0]["EventId"], "shop", "reading")
    assert (own.get_subject(), own.get_data(), own.get_time().timestamp()) == ("order/ü 7", {"a": "ä"}, 1767225600.5)
    assert (foreign.get_id(), foreign.get_source(), foreign.get_subject(), foreign.get_extension("site")) == (
        "1",
        "/sensors",
        's " ö',
        "Köln",
    )
    assert (foreign.get_data(), foreign.get_datacontenttype(), foreign.get_time().microsecond) == ("so", "text/plain", 123456)
    assert (binary.get_data(), binary.get_datacontenttype()) == (b"\x00\xff", "image/png")
    assert not empty.get_data()
    first = receiver.requests[0]
    assert first.headers["Authorization"] == "Bearer x"
    assert first.content_type == (CE if mode == "structured" else "application/json")


async def test_deliveries_are_tried_again_when_that_may_help_and_are_dead_letters_else(tmp_path: Path) -> None:
    clock = ManualClock()
    async with Receiver() as receiver:
        receiver.answers = [(503, {}), (429, {"Retry-After": "120"}), (204, {}), (400, {})]
        async with app_of(tmp_path, toml=target(receiver.url), clock=clock) as app:
            (name,) = app.functions
            assert "s3cret" not in str(app.functions[name].policy)
            lane = app.engine.lanes[name]
            await post(app, json.dumps(MINIMAL), {"Content-Type": CE})
            await until(lambda: lane.failed == 1)
            await app.journal.flush()
            clock.advance(2)
            await until(lambda: lane.failed == 2)
            await app.journal.flush()
            clock.advance(119)
            await app.journal.flush()
            assert len(receiver.got) == 2
            clock.advance(2)
            await until(lambda: lane.succeeded == 1)
            await post(app, json.dumps({**MINIMAL, "id": "2"}), {"Content-Type": CE})
            await until(lambda: lane.dead == 1)
            (letter,) = await Operations(app).letters({})
        assert (letter["error_type"], letter["reason"]) == ("Reject", "Rejected")
        assert letter["error_message"] == f"{name}: HTTP 400"
        assert [event.get_id() for event in receiver.got] == ["1", "1", "1", "2"]


async def test_a_target_that_is_not_there_is_tried_again_and_its_secrets_are_not_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock()
    async with Receiver() as receiver:
        url = receiver.url
    async with app_of(tmp_path, toml=target(url), clock=clock) as app:
        (lane,) = app.engine.lanes.values()
        await post(app, json.dumps(MINIMAL), {"Content-Type": CE})
        await until(lambda: lane.failed == 1)
        await app.journal.flush()
    assert "attempt 1 of" in caplog.text
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize("url", ["ftp://x", "example.com", "http://"])
def test_a_targets_url(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match=r"\[\[events.targets\]\] url"):
        app_of(tmp_path, toml=target(url))


def test_two_targets_of_one_host_keep_their_names_when_one_is_taken_away(tmp_path: Path) -> None:
    both = target("https://a.example/x") + '[[events.targets]]\npattern = { source = ["s"] }\nurl = "https://a.example/y"\n'
    names = set(app_of(tmp_path, toml=both).functions)
    assert set(app_of(tmp_path, toml=target("https://a.example/x")).functions) < names
    assert all(name.startswith("events to a.example ") for name in names)
    (named,) = app_of(tmp_path, toml=target("https://a.example/x", 'name = "to a"')).functions
    assert named == "to a"
