"""HTTP through real sockets: requests are made by aiohttp's client, and by curl where the bytes matter."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import ClientConnectionError, ClientSession

from eventrouter import App, Batch, Endpoint, Event, HttpRequest, Plugin, Response, Source, on
from eventrouter.errors import ConfigError, EventRouterError
from eventrouter.operations import Operations
from eventrouter.plugins import Plugins
from eventrouter_http import HttpTrigger, eventrouter_plugin, http
from http_support import Client, app_of, raw, serving, url_of
from source_contract import Outside, SourceContract
from support import LOCAL, LocalSource, local, make_app, put, until


class Order(msgspec.Struct):
    item: str
    count: int = 1


class Caller(Outside):
    """A client of an event-mode route, which has no ids."""

    source = "http"
    toml = "[http]\nport = 0\n"

    def plugins(self) -> Plugins:
        return Plugins([eventrouter_plugin()])

    def trigger(self) -> HttpTrigger:
        return http("POST /items", mode="event")

    async def put(self, app: App, n: int, body: bytes | None = None) -> bool:
        async with ClientSession() as session:
            try:
                answer = await Client(session, app)("POST /items", {"n": n} if body is None else body)
            except ClientConnectionError:
                return False
        assert answer.status in (202, 400, 503)
        return answer.status == 202


class TestHttpIsASource(SourceContract):
    @pytest.fixture
    def outside(self) -> Caller:
        return Caller()


async def test_typed_answers(tmp_path: Path) -> None:
    answers: dict[str, Any] = {
        "none": None,
        "text": "grüezi",
        "bytes": b"\x00\xff",
        "json": {"statusCode": 404, "body": "a mere field"},
        "struct": Order("lamp"),
        "response": Response({"x": 1}, 201, {"X-Own": "yes"}),
        "empty": Response(status=304),
        "typed": Response("<p>", headers={"content-type": "text/html"}),
    }

    @on(http("GET /{which}"))
    async def handler(which: str) -> Any:
        return answers[which]

    async with serving(tmp_path, handler) as ask:
        got = {which: await ask(f"GET /{which}") for which in answers}
    shown = {which: (a.status, a.headers.get("Content-Type"), a.body) for which, a in got.items()}
    assert shown == {
        "none": (204, None, b""),
        "text": (200, "text/plain; charset=utf-8", "grüezi".encode()),
        "bytes": (200, "application/octet-stream", b"\x00\xff"),
        "json": (200, "application/json", b'{"statusCode":404,"body":"a mere field"}'),
        "struct": (200, "application/json", b'{"item":"lamp","count":1}'),
        "response": (201, "application/json", b'{"x":1}'),
        "empty": (304, None, b"") if got["empty"].headers.get("Content-Type") is None else (304, "application/octet-stream", b""),
        "typed": (200, "text/html", b"<p>"),
    }
    assert got["response"].headers["X-Own"] == "yes"


async def test_payload_wildcards_and_query_reach_the_handler(tmp_path: Path) -> None:
    @on(http("POST /devices/{device}/orders"))
    async def handler(order: Order, device: int, event: Event, verbose: bool = False, tags: list[str] = []) -> Any:  # noqa: B006
        return [order.item, device, verbose, tags, event.subject]

    async with serving(tmp_path, handler) as ask:
        answer = await ask("POST /devices/7/orders?verbose=true&tags=a&tags=b", {"item": "lamp"})
        assert answer.json == ["lamp", 7, True, ["a", "b"], "/devices/7/orders"]


async def test_precedence(tmp_path: Path) -> None:
    def route(name: str, key: str) -> Callable[..., Any]:
        async def handler() -> str:
            return name

        handler.__name__ = name
        return on(http(key))(handler)

    handlers = [
        route("rest", "ANY /{proxy+}"),
        route("default", "$default"),
        route("one", "GET /users/{id}"),
        route("any", "ANY /users/me"),
        route("exact", "GET /users/me"),
        route("deeper", "GET /{a}/me/{b}"),
        route("part", "GET /users/{id}.csv"),
        route("below", "GET /users/{rest+}"),
    ]
    async with serving(tmp_path, *handlers) as ask:
        asked = [
            "GET /users/me", "DELETE /users/me", "GET /users/7", "GET /users/7.csv", "PUT /users/7", "GET /x/me/y",
            "GET /users/7/more", "GET /", "GET /elsewhere",
        ]  # fmt: skip
        got = [(await ask(request)).body.decode() for request in asked]
    assert got == ["exact", "any", "one", "part", "rest", "deeper", "below", "default", "rest"]


@pytest.mark.parametrize(("path", "captured"), [("a%20b", "a b"), ("a%2Fb", "a/b"), ("a%252Fb", "a%2Fb"), ("%C3%A9", "é"), ("a+b", "a+b")])
async def test_wildcards_are_decoded_once(tmp_path: Path, path: str, captured: str) -> None:
    @on(http("GET /now/{name}"))
    async def now(name: str) -> str:
        return name

    got = []

    @on(http("PUT /later/{name}", mode="event"))
    async def later(name: str) -> None:
        got.append(name)

    from yarl import URL

    async with serving(tmp_path, now, later) as ask:
        async with ask.session.get(URL(f"{url_of(ask.app)}/now/{path}", encoded=True)) as answer:
            assert await answer.text() == captured
        async with ask.session.put(URL(f"{url_of(ask.app)}/later/{path}", encoded=True)):
            await until(lambda: got)
    assert got == [captured]


async def test_what_is_not_there(tmp_path: Path) -> None:
    @on(http("POST /orders"), http("PUT /orders"))
    async def handler() -> None: ...

    async with serving(tmp_path, handler) as ask:
        absent = await ask("GET /nothing")
        wrong = await ask("GET /orders")
    assert (absent.status, absent.headers["Content-Type"]) == (404, "application/problem+json")
    assert absent.json == {
        "type": "about:blank", "title": "Not Found", "status": 404, "detail": "no function answers GET /nothing",
    }  # fmt: skip
    assert (wrong.status, wrong.headers["Allow"]) == (405, "POST, PUT")
    assert wrong.json["detail"] == "/orders answers POST, PUT"


async def test_faults(tmp_path: Path) -> None:
    busy, go = asyncio.Event(), asyncio.Event()

    @on(http("POST /orders"))
    async def orders(order: Order) -> None: ...

    @on(http("GET /fails"))
    async def fails() -> None:
        raise LookupError("secret detail")

    @on(http("GET /slow"), timeout=0.05)
    async def slow() -> None:
        await asyncio.sleep(30)

    @on(http("GET /full"), concurrency=1)
    async def full() -> None:
        busy.set()
        await go.wait()

    @on(http("GET /unsayable"))
    async def unsayable() -> Any:
        return object()

    async with serving(tmp_path, orders, fails, slow, full, unsayable, toml="body_limit = 1000") as ask:
        assert (await ask("POST /orders", {"item": 3})).json["detail"] == "$.item: expected str, got int"
        assert (await ask("POST /orders", b"{")).status == 400
        assert (await ask("POST /orders", b"x" * 1001)).status == 413
        failed = await ask("GET /fails")
        assert failed.status == 500
        assert b"secret" not in failed.body
        assert (await ask("GET /slow")).status == 504
        assert (await ask("GET /unsayable")).status == 500
        first = asyncio.create_task(ask("GET /full"))
        await busy.wait()
        throttled = await ask("GET /full")
        assert (throttled.status, throttled.headers["Retry-After"]) == (429, "1")
        go.set()
        assert (await first).status == 204


async def test_event_mode_answers_once_it_is_on_disk_and_retries(tmp_path: Path) -> None:
    got: list[Any] = []

    @on(http("POST /orders/{shop}", mode="event"), retries=1, backoff="fixed(0)")
    async def handler(order: Order, shop: str, event: Event) -> None:
        got.append((order.item, shop, event.id))
        if len(got) == 1:
            raise RuntimeError("once")

    async with serving(tmp_path, handler) as ask:
        refused = await ask("POST /orders/north", {"item": None})
        assert (refused.status, refused.json["detail"]) == (400, "$.item: expected str, got null")
        answer = await ask("POST /orders/north", {"item": "lamp"})
        assert answer.status == 202
        await until(lambda: len(got) == 2)
    assert got == [("lamp", "north", answer.json["id"])] * 2


async def test_an_event_that_waited_in_the_journal_runs_after_a_restart(tmp_path: Path) -> None:
    got: list[Any] = []

    @on(http("ANY /in/{name}", mode="event"))
    def handler(event, context):  # type: ignore[no-untyped-def]
        got.append(event)

    app = app_of(tmp_path, handler)
    await app.start(sources=False)
    source = app.sources["http"]
    await source.start()
    async with ClientSession() as session, session.post(f"{url_of(app)}/in/a%20b?x=1", json={"y": 2}) as answer:
        assert answer.status == 202
    await app.stop()
    assert not got
    async with app_of(tmp_path, handler):
        await until(lambda: got)
    assert (got[0]["pathParameters"], got[0]["rawQueryString"], got[0]["body"]) == ({"name": "a b"}, "x=1", '{"y": 2}')


async def test_a_lambda_function_gets_payload_2(tmp_path: Path, cases: Path) -> None:
    """Requests recorded on AWS give the recorded event, apart from what only AWS's front adds."""

    @on(http("$default"))
    def handler(event, context):  # type: ignore[no-untyped-def]
        return {"statusCode": 200, "body": json.dumps(event)}

    theirs = ("x-amz", "x-forwarded", "accept", "host", "user-agent", "content-length")
    async with serving(tmp_path, handler) as ask:
        for case in json.loads((cases / "http" / "function_url_v2_request_to_event.json").read_text()):
            want, request = case["event"], case["request"]
            headers = {**request["headers"], **{k: v for k, v in want["headers"].items() if k in ("content-type", "user-agent")}}
            body = request.get("body")
            got = (await ask(f"{request['method']} {request['url']}", body and body.encode(), headers)).json
            assert got.keys() == want.keys(), case["id"]
            assert got["requestContext"].keys() == want["requestContext"].keys() - {"authorizer"}
            assert got["requestContext"]["http"].keys() == want["requestContext"]["http"].keys()
            for event in (want, got):
                event["headers"] = {k: v for k, v in event["headers"].items() if not k.startswith(theirs)}
                event["http"] = {**event.pop("requestContext")["http"], "sourceIp": ""}
            assert got == want, case["id"]


async def test_payload_2s_lists_and_parameters(tmp_path: Path) -> None:
    @on(http("GET /items/{id}"))
    def handler(event, context):  # type: ignore[no-untyped-def]
        return event

    async with serving(tmp_path, handler) as ask:
        got = (await ask("GET /items/7?a=1&a=2&b=", headers=[("X-A", "1"), ("X-A", "2"), ("Cookie", "c=1; d=2")])).json
    assert got["routeKey"] == "GET /items/{id}"
    assert got["pathParameters"] == {"id": "7"}
    assert got["queryStringParameters"] == {"a": "1,2", "b": ""}
    assert got["headers"]["x-a"] == "1,2"
    assert got["cookies"] == ["c=1", "d=2"]
    assert "body" not in got


@pytest.mark.parametrize(
    ("result", "status", "kind", "body"),
    [
        ({"a": 1}, 200, "application/json", b'{"a":1}'),
        ("hello", 200, "application/json", b"hello"),
        (None, 200, "application/json", b"null"),
        ({"statusCode": 201, "headers": {"Content-Type": "text/html", "X-N": 3}, "body": "<p>"}, 201, "text/html", b"<p>"),
        ({"statusCode": "204"}, 204, None, b""),
        ({"statusCode": 200, "body": base64.b64encode(b"\xff").decode(), "isBase64Encoded": True, "headers": {"content-type": "a/b"}},
         200, "a/b", b"\xff"),
        ({"statusCode": 200, "body": {"not": "text"}}, 500, "application/problem+json", None),
        ({"statusCode": "many"}, 500, "application/problem+json", None),
    ],
)  # fmt: skip
async def test_a_lambda_functions_answer(tmp_path: Path, result: Any, status: int, kind: str | None, body: bytes | None) -> None:
    @on(http("GET /"))
    def handler(event, context):  # type: ignore[no-untyped-def]
        return result

    async with serving(tmp_path, handler) as ask:
        answer = await ask("GET /")
    assert (answer.status, answer.headers.get("Content-Type") if answer.body else kind) == (status, kind)
    assert body is None or answer.body == body


async def test_a_lambda_function_sets_cookies(tmp_path: Path) -> None:
    @on(http("GET /"))
    def handler(event, context):  # type: ignore[no-untyped-def]
        return {"statusCode": 200, "cookies": ["a=1; Path=/", "b=2"]}

    async with serving(tmp_path, handler) as ask:
        assert (await ask("GET /")).headers.getall("Set-Cookie") == ["a=1; Path=/", "b=2"]


async def test_health(tmp_path: Path) -> None:
    @on(local("x"))
    async def handler(payload: Any) -> None: ...

    async with serving(tmp_path, handler) as ask:
        await until(lambda: ask.app.supervisor and ask.app.supervisor.ready.is_set())
        assert (await ask("GET /healthz")).body == b"ok"
        ready = await ask("GET /readyz")
        assert (ready.status, ready.json) == (200, {"ready": True, "journal": "accepting", "sources": {"local": "live", "http": "live"}})
        ask.app.sources["local"].router.lost("the cable is out")
        assert (await ask("GET /readyz")).json["sources"]["local"] == "the cable is out"
        ask.app.sources["local"].router.was_live = False
        assert (await ask("GET /readyz")).status == 503


async def test_a_source_that_crashed_is_named_until_it_lives_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash, lives = asyncio.Event(), []

    async def run(self: LocalSource) -> None:
        self.router.live()
        lives.append(1)
        if len(lives) == 1:
            await crash.wait()
            raise ValueError("a bug")
        await asyncio.get_running_loop().create_future()

    @on(local("x"))
    async def handler(payload: Any) -> None: ...

    monkeypatch.setattr(LocalSource, "run", run)
    async with serving(tmp_path, handler) as ask:
        await until(lambda: lives)
        crash.set()
        await until(lambda: ask.app.sources["local"].router.state != "live")
        answer = await ask("GET /readyz")
        assert (answer.status, answer.json["sources"]["local"]) == (200, "ValueError: a bug; starting again in 1 s")
        await until(lambda: len(lives) == 2)
        assert (await ask("GET /readyz")).json["sources"]["local"] == "live"


async def test_a_handler_that_blocks_the_loop_is_a_time_out(tmp_path: Path) -> None:
    @on(http("GET /"), timeout=0.2)
    async def blocks() -> None:
        while True:
            pass

    async with serving(tmp_path, blocks) as ask:
        assert (await ask("GET /")).status == 504
        assert (await ask("GET /healthz")).status == 200


async def test_a_request_under_way_is_answered_when_the_router_stops(tmp_path: Path) -> None:
    running, go = asyncio.Event(), asyncio.Event()

    @on(http("GET /"))
    async def handler() -> str:
        running.set()
        await go.wait()
        return "done"

    app = app_of(tmp_path, handler)
    await app.start()
    async with ClientSession() as session:
        asked = asyncio.create_task(Client(session, app)("GET /"))
        await running.wait()
        stopping = asyncio.create_task(app.stop())
        asyncio.get_running_loop().call_later(0.05, go.set)
        assert (await asked).body == b"done"
        await stopping


async def test_curl(tmp_path: Path) -> None:
    @on(http("POST /orders"))
    async def handler(order: Order) -> Order:
        return order

    async with serving(tmp_path, handler) as ask:
        curl = await asyncio.create_subprocess_exec(
            "curl", "-si", "-X", "POST", f"{url_of(ask.app)}/orders", "-d", '{"item": "lamp"}', stdout=asyncio.subprocess.PIPE
        )
        out, _ = await curl.communicate()
    head, _, body = out.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert body == b'{"item":"lamp","count":1}'


async def test_send(tmp_path: Path) -> None:
    @on(http("POST /orders"))
    async def handler(order: Order, event: Event) -> Any:
        return [order.item, event.attributes["headers"]["x-own"]]

    async with serving(tmp_path, handler) as ask:
        answer = await Operations(ask.app).send("http", ["POST /orders", '{"item": "lamp"}'], {"header": ["X-Own: yes"]}, str(tmp_path))
        for bad in ("/orders", "POST", "POST orders", "/ POST"):
            with pytest.raises(ConfigError, match="write the method and the path, as in 'POST /path'"):
                await Operations(ask.app).send("http", [bad], {}, str(tmp_path))
    assert (answer["status"], answer["body"]) == (200, '["lamp","yes"]')


async def test_open_routes_on_a_public_address_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    @on(http("POST /orders"))
    async def handler() -> None: ...

    async with serving(tmp_path, handler, toml='host = "0.0.0.0"'):
        pass
    assert any("can call http POST /orders" in record.message for record in caplog.records)


async def test_a_port_that_is_taken(tmp_path: Path) -> None:
    @on(http("GET /"))
    async def handler() -> None: ...

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(EventRouterError, match=f"http: can't listen on 127.0.0.1:{port}: .*; choose another with --port"):
            async with app_of(tmp_path, handler, toml=f"[http]\nport = {port}"):
                pass


@pytest.mark.parametrize("routes", [("GET /a/{x}", "GET /a/{y}"), ("ANY /a", "ANY /a"), ("$default", "$default")])
def test_two_functions_on_one_route(tmp_path: Path, routes: tuple[str, str]) -> None:
    @on(http(routes[0]))
    def one(event, context): ...  # type: ignore[no-untyped-def]

    @on(http(routes[1]))
    def two(event, context): ...  # type: ignore[no-untyped-def]

    with pytest.raises(ConfigError, match="functions 'one' and 'two' both answer"):
        app_of(tmp_path, one, two)


@pytest.mark.parametrize(
    ("route", "fault"),
    [
        ("/orders", 'write "METHOD /path"'),
        ("get /orders", 'write "METHOD /path"'),
        ("GET orders", "must start with '/'"),
        ("GET /a b", "no space"),
        ("GET /a?b=1", "no space, '?', '#' or '%'"),
        ("GET /{a+}/b", "nothing can follow it"),
        ("GET /healthz", "answered by the router itself"),
    ],
)
def test_what_is_no_route(route: str, fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        http(route)
    assert fault in str(caught.value)


def test_what_is_no_mode() -> None:
    with pytest.raises(ConfigError, match='write "request"'):
        http("GET /", mode="later")  # type: ignore[arg-type]


async def test_the_journal_being_away_is_503(tmp_path: Path) -> None:
    @on(http("POST /", mode="event"))
    async def handler() -> None: ...

    async with serving(tmp_path, handler) as ask:
        await ask.app.journal.close()
        answer = await ask("POST /", {})
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")


async def test_put_still_works_beside_it(tmp_path: Path) -> None:
    """An app with HTTP takes other sources' events too."""
    got = []

    @on(local("a"), http("GET /a"))
    async def handler(payload: Any = None) -> None:
        got.append(payload)

    async with serving(tmp_path, handler) as ask:
        await put(ask.app, "a", 1)
        await until(lambda: got)
        assert (await ask("GET /a")).status == 204


class Greeter(Source[None]):
    """Has an HTTP endpoint of its own."""

    name = "greeter"

    def endpoints(self) -> list[Endpoint]:
        return [Endpoint("POST", "/greet/{whom}", self.greet), Endpoint("GET", "/broken", self.broken)]

    async def greet(self, request: HttpRequest) -> Response:
        return Response([request.parameters["whom"], request.query, request.header("X-Tone"), request.body.decode()], 201)

    async def broken(self, request: HttpRequest) -> Response:
        raise OSError("secret")


async def test_endpoints_of_other_sources_are_served(tmp_path: Path) -> None:
    @on(http("POST /greet/{other+}"))
    async def function() -> str:
        return "function"

    greeter = Plugin(name="greeter", source="plugins.test_http:Greeter", always=True)
    plugins = Plugins([LOCAL, eventrouter_plugin(), greeter])
    async with make_app(tmp_path, function, toml="[http]\nport = 0\n", plugins=plugins) as app, ClientSession() as session:
        client = Client(session, app)
        answer = await client("POST /greet/ann%20b?loud=1", b"hi", {"x-tone": "soft"})
        assert (answer.status, answer.json) == (201, ["ann b", "loud=1", "soft", "hi"])
        assert (await client("POST /greet/ann/lee")).body == b"function"
        answer = await client("GET /broken")
        assert answer.status == 500
        assert b"secret" not in answer.body


async def test_a_function_and_a_source_can_not_answer_one_route(tmp_path: Path) -> None:
    @on(http("POST /greet/{other}"))
    async def function() -> str:
        return "function"

    greeter = Plugin(name="greeter", source="plugins.test_http:Greeter", always=True)
    app = make_app(tmp_path, function, toml="[http]\nport = 0\n", plugins=Plugins([LOCAL, eventrouter_plugin(), greeter]))
    with pytest.raises(EventRouterError, match="http: POST /greet/{whom} is answered twice"):
        await app.start()


async def test_requests_that_are_no_paths(tmp_path: Path) -> None:
    @on(http("GET /a"))
    async def handler() -> str:
        return "a"

    async with serving(tmp_path, handler) as ask:
        end = b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        assert b" 404 " in await raw(ask.app, b"OPTIONS *" + end)
        assert (await raw(ask.app, b"CONNECT a:80" + end)).split(b" ")[1] in (b"404", b"400")
        assert (await raw(ask.app, b"GET http://elsewhere.example/a" + end)).endswith(b"\r\n\r\na")


async def test_triggers_in_the_config_have_all_options(tmp_path: Path) -> None:
    toml = """
[http]
port = 0
[http.api_keys.me]
key = "0123456789abcdef"
[functions.handler]
on = [{ http = "GET /b", auth = "api-key", payload = "1.0", cors = { allow_origins = ["https://a.example"] } },
      { http = "GET /c", auth = { type = "authorizer", function = "handler", identity = "$request.querystring.x" } }]
"""

    @on(http("GET /a"))
    def handler(event, context):  # type: ignore[no-untyped-def]
        return {"statusCode": 200, "body": event["version"]}

    async with serving(tmp_path, handler, toml=toml) as ask:
        assert (await ask("GET /b", headers={"x-api-key": "0123456789abcdef"})).body == b"1.0"
        assert (await ask("GET /b", headers={"Origin": "https://a.example"})).headers["Access-Control-Allow-Origin"] == "https://a.example"
        assert (await ask("GET /c")).status == 401


async def test_event_mode_takes_batches(tmp_path: Path) -> None:
    got: list[list[int]] = []

    @on(http("POST /numbers/{shop}", mode="event"), batch=Batch(2, window=60))
    async def handler(numbers: list[int], shop: list[str]) -> None:
        got.append(numbers)

    async with serving(tmp_path, handler) as call:
        assert [(await call("POST /numbers/a", n)).status for n in (1, "x", 2)] == [202, 400, 202]
        await until(lambda: got == [[1, 2]])
        body = (await call("GET /openapi.json")).json["paths"]["/numbers/{shop}"]["post"]["requestBody"]
        assert body["content"]["application/json"]["schema"] == {"type": "integer"}
