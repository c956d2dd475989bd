"""What Lambda functions get of a request, and what becomes of what they return: API Gateway's formats 2.0 and 1.0."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eventrouter import Response, on
from eventrouter.errors import ConfigError
from eventrouter_http import http
from http_support import raw, serving
from served import Place


def echo(key: str, **options: Any) -> Callable[..., Any]:
    def handler(event, context):  # type: ignore[no-untyped-def]
        return {"statusCode": 200, "body": json.dumps(event)}

    return on(http(key, **options))(handler)


def shape(value: Any) -> Any:
    return {name: shape(inner) for name, inner in value.items()} if isinstance(value, dict) else type(value).__name__


def samples(cases: Path, *parts: str) -> dict[str, Any]:
    lines = [json.loads(line) for line in (cases / "events" / "events.jsonl").read_text().splitlines()]
    return {line["path"]: line["event"] for line in lines if line["path"].rpartition("/")[2] in parts}


HOST = ("Host", "id.execute-api.us-east-1.amazonaws.com")
QUERY = "parameter1=value1&parameter1=value2&parameter2=value"


async def test_payload_1_is_the_documented_sample(tmp_path: Path, cases: Path) -> None:
    ((_, want),) = samples(cases, "apiGatewayProxyEvent.json").items()
    headers = [("Header1", "value1"), ("Header2", "value1"), ("Header2", "value2"), ("Origin", "https://aws.amazon.com"),
               ("Content-Type", "text/plain"), ("User-Agent", "user-agent"), HOST]  # fmt: skip
    async with serving(tmp_path, echo("GET /my/path", payload="1.0")) as ask:
        got = (await ask(f"GET /my/path?{QUERY}", b"Hello from Lambda!", headers)).json
    want["headers"] = {name.lower(): value for name, value in want["headers"].items()}  # as the text around the sample says
    want["multiValueHeaders"] = {name.lower(): value for name, value in want["multiValueHeaders"].items()}
    for event in (want, got):
        event["headers"] = {name: value for name, value in event["headers"].items() if name in want["headers"]}
        event["multiValueHeaders"] = {name: value for name, value in event["multiValueHeaders"].items() if name in want["headers"]}
        context = event["requestContext"]
        assert context["identity"].pop("clientCert", None) is None or event is want  # mutual TLS is not spoken
        assert len(context["requestTime"]) == 26
        assert context["requestTimeEpoch"] > 1e12
        assert context["requestId"]
        for name in ("requestTime", "requestTimeEpoch", "requestId", "extendedRequestId", "accountId", "apiId", "resourceId"):
            assert name in context
            context.pop(name)
        context["identity"]["sourceIp"] = ""
    assert got == want


async def test_payload_1s_nulls_and_parameters(tmp_path: Path) -> None:
    async with serving(tmp_path, echo("ANY /items/{id}", payload="1.0"), echo2("$default")) as ask:
        got = (await ask("GET /items/a%2Fb?a=&b")).json
        default = (await ask("GET /else")).json
    assert (got["resource"], got["path"], got["pathParameters"]) == ("/items/{id}", "/items/a%2Fb", {"id": "a/b"})
    assert (got["queryStringParameters"], got["multiValueQueryStringParameters"]) == ({"a": "", "b": ""}, {"a": [""], "b": [""]})
    assert (got["body"], got["isBase64Encoded"], got["stageVariables"]) == (None, False, None)
    assert got["requestContext"]["resourceId"] == "ANY /items/{id}"
    nulls = ("pathParameters", "queryStringParameters", "multiValueQueryStringParameters")
    assert [default[name] for name in nulls] == [None] * 3
    assert (default["resource"], default["requestContext"]["resourcePath"]) == ("$default", "$default")


def echo2(key: str) -> Callable[..., Any]:
    handler = echo(key, payload="1.0")
    handler.__name__ = "second"
    return handler


async def test_payload_2_has_the_fields_of_the_samples(tmp_path: Path, cases: Path) -> None:
    found = samples(cases, "apiGatewayProxyV2Event.json", "apiGatewayProxyV2EventPathTrailingSlash.json")
    assert len(found) == 2
    toml = '[http.stage_variables]\nstageVariable1 = "value1"\nstageVariable2 = "value2"\n'
    async with serving(tmp_path, echo("$default"), toml=toml) as ask:
        for name, want in found.items():
            headers = [("Header1", "value1"), ("Header2", "value1"), ("Header2", "value2"), ("Cookie", "cookie1; cookie2"),
                       ("Content-Type", "application/json"), ("User-Agent", "agent"), HOST]  # fmt: skip
            got = (await ask(f"POST {want['rawPath']}?{want['rawQueryString']}", want["body"].encode(), headers)).json
            for absent in ("authentication", "authorizer"):
                want["requestContext"].pop(absent)
            want.pop("pathParameters")  # $default has none
            assert shape(got["requestContext"]) == shape(want["requestContext"]), name
            same = (
                "rawPath",
                "rawQueryString",
                "cookies",
                "queryStringParameters",
                "body",
                "isBase64Encoded",
                "stageVariables",
                "routeKey",
            )
            assert {field: got[field] for field in same} == {field: want[field] for field in same}
            assert got["headers"]["header2"] == want["headers"]["Header2"]
            context = ("domainName", "domainPrefix", "stage", "routeKey")
            assert [got["requestContext"][field] for field in context] == [want["requestContext"][field] for field in context]
            assert got.keys() == want.keys()


@pytest.mark.parametrize(
    ("kind", "body", "text"),
    [
        ("text/plain", b"a", True),
        ("application/json; charset=utf-8", b"{}", True),
        ("application/cloudevents+json", b"{}", True),
        ("application/xml", b"<a/>", True),
        ("application/javascript", b"1", True),
        ("text/plain", b"\xff", False),
        ("application/x-www-form-urlencoded", b"a=1", False),
        ("multipart/form-data; boundary=x", b"--x--", False),
        ("image/png", b"\x89PNG", False),
        ("", b"a", False),
    ],
)
@pytest.mark.parametrize("payload", ["1.0", "2.0"])
async def test_bodies_that_are_no_text_are_base64(tmp_path: Path, kind: str, body: bytes, text: bool, payload: str) -> None:
    """Which are is as measured on AWS."""
    async with serving(tmp_path, echo("POST /", payload=payload)) as ask:
        answer = await ask("POST /", body, {"Content-Type": kind})
        got = answer.json
    assert (got["body"], got["isBase64Encoded"]) == ((body.decode(), False) if text else (base64.b64encode(body).decode(), True))


async def test_several_cookie_headers(tmp_path: Path) -> None:
    async with serving(tmp_path, echo("GET /")) as ask:
        answer = await raw(ask.app, b"GET / HTTP/1.1\r\nHost: [::1]:80\r\nCookie: a=1;b=2\r\nCookie: c=3\r\nConnection: close\r\n\r\n")
    got = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert got["cookies"] == ["a=1", "b=2", "c=3"]
    assert got["requestContext"]["domainName"] == "[::1]"


async def test_strange_queries(tmp_path: Path) -> None:
    async with serving(tmp_path, echo("GET /")) as ask:
        got = (await ask("GET /?a%5B%5D=1+2&=x&b=%E2%82%AC&&c")).json
        assert got["rawQueryString"] == "a%5B%5D=1+2&=x&b=%E2%82%AC&&c"
        assert got["queryStringParameters"] == {"a[]": "1 2", "": "x", "b": "€", "c": ""}
        assert "queryStringParameters" not in (await ask("GET /?")).json


def returning(result: Any, **options: Any) -> Callable[..., Any]:
    @on(http("ANY /", **options))
    def handler(event, context):  # type: ignore[no-untyped-def]
        return result

    return handler


GOOD: dict[str, Any] = {
    "status as text": ({"statusCode": "201", "body": "a"}, 201, {"Content-Type": "text/plain; charset=utf-8"}, b"a"),
    "numbers and truths": ({"statusCode": 200, "headers": {"X-N": 3, "X-T": True, "X-0": None}}, 200, {"X-N": "3", "X-T": "true"}, b""),
    "many": ({"statusCode": 200, "headers": {"X-A": "0", "X-B": "1"}, "multiValueHeaders": {"x-a": ["1", "2"]}},
             200, {"X-A": "1", "X-B": "1"}, b""),
    "base64": ({"statusCode": 200, "isBase64Encoded": True, "body": "/w=="}, 200, {}, b"\xff"),
    "null body": ({"statusCode": 204, "body": None}, 204, {}, b""),
    "body of a 204": ({"statusCode": 204, "body": "gone"}, 204, {}, b""),
    "body of a 304": ({"statusCode": 304, "headers": {"ETag": '"1"'}, "body": "gone"}, 304, {"ETag": '"1"'}, b""),
    "length that is wrong": ({"statusCode": 200, "headers": {"content-length": "99"}, "body": "a"}, 200, {"Content-Length": "1"}, b"a"),
}  # fmt: skip


@pytest.mark.parametrize("payload", ["2.0", "1.0"])
@pytest.mark.parametrize("which", GOOD)
async def test_answers_with_a_status(tmp_path: Path, which: str, payload: str) -> None:
    result, status, headers, body = GOOD[which]
    async with serving(tmp_path, returning(result, payload=payload)) as ask:
        answer = await ask("GET /")
        again = await ask("GET /")  # the connection has survived
    assert (answer.status, answer.body) == (status, body) == (again.status, again.body)
    assert {name: answer.headers[name] for name in headers} == headers
    assert "X-0" not in answer.headers
    if which == "many":
        assert answer.headers.getall("x-a") == ["1", "2"]


BAD: dict[str, Any] = {
    "body is an object": {"statusCode": 200, "body": {"not": "text"}},
    "body is a number": {"statusCode": 200, "body": 5},
    "no status": {"statusCode": "many"},
    "status null": {"statusCode": None},
    "status is true": {"statusCode": True},
    "status of nobody": {"statusCode": 99},
    "headers are a list": {"statusCode": 200, "headers": ["a"]},
    "values are no list": {"statusCode": 200, "multiValueHeaders": {"a": "b"}},
    "a line break": {"statusCode": 200, "headers": {"X-A": "1\r\nX-B: 2"}},
    "a name of two words": {"statusCode": 200, "headers": {"X A": "1"}},
    "no base64": {"statusCode": 200, "isBase64Encoded": True, "body": "%"},
}


@pytest.mark.parametrize("payload", ["2.0", "1.0"])
@pytest.mark.parametrize("which", BAD)
async def test_answers_that_can_not_be_sent(tmp_path: Path, which: str, payload: str, caplog: pytest.LogCaptureFixture) -> None:
    """500 under both formats, as HTTP APIs do it; 502 is what REST APIs say."""
    async with serving(tmp_path, returning(BAD[which], payload=payload)) as ask:
        answer = await ask("GET /")
    assert (answer.status, answer.json["detail"]) == (500, "the function's answer can't be sent")
    assert any("handler: its answer can't be sent: " in record.message for record in caplog.records)


@pytest.mark.parametrize("result", [{"a": 1}, "hello", None, [1]])
async def test_payload_1_infers_nothing(tmp_path: Path, result: Any) -> None:
    async with serving(tmp_path, returning(result, payload="1.0")) as ask:
        assert (await ask("GET /")).status == 500


async def test_head_has_the_headers_of_an_answer_and_no_body(tmp_path: Path) -> None:
    async with serving(tmp_path, returning({"statusCode": 200, "body": "hello"})) as ask:
        answer = await ask("HEAD /")
    assert (answer.status, answer.headers["Content-Length"], answer.body) == (200, "5", b"")


async def test_a_typed_answer_can_not_break_the_head(tmp_path: Path) -> None:
    @on(http("GET /"))
    async def handler(to: str = "") -> Response:
        return Response(status=302, headers={"Location": to})

    async with serving(tmp_path, handler) as ask:
        assert (await ask("GET /?to=a%0d%0aSet-Cookie:%20b")).status == 500


async def test_a_header_that_is_a_list_is_sent_several_times(tmp_path: Path) -> None:
    @on(http("GET /"))
    async def handler() -> Response:
        return Response("made", headers={"Set-Cookie": ["a=1", "b=2"], "X-One": "1"})

    async with serving(tmp_path, handler) as ask:
        answer = await ask("GET /")
    assert (answer.headers.getall("Set-Cookie"), answer.headers["X-One"]) == (["a=1", "b=2"], "1")


def test_what_is_no_payload() -> None:
    with pytest.raises(ConfigError, match='payload=\'3\'; API Gateway knows "2.0" and "1.0"'):
        http("GET /", payload="3")  # type: ignore[arg-type]


UNMODIFIED = '''
import base64
import json
from http import cookies


def lambda_handler(event, context):
    """As it runs on AWS: nothing but the standard library."""
    method = event["requestContext"]["http"]["method"]
    body = base64.b64decode(event["body"]).decode() if event.get("isBase64Encoded") else event.get("body", "")
    jar = cookies.SimpleCookie("; ".join(event.get("cookies", [])))
    seen = {name: morsel.value for name, morsel in jar.items()}
    return {
        "statusCode": 201 if method == "POST" else 200,
        "headers": {"Content-Type": "application/json"},
        "cookies": ["visits=2; Path=/"],
        "body": json.dumps({
            "id": event["pathParameters"]["id"], "body": body, "cookies": seen,
            "left": context.get_remaining_time_in_millis() > 0,
        }),
    }
'''


def test_a_function_written_for_aws_runs_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "lambda_function.py").write_text(UNMODIFIED)
    (tmp_path / "app.py").write_text(
        "from eventrouter import on\nfrom eventrouter_http import http\nfrom lambda_function import lambda_handler\n\n"
        'on(http("ANY /things/{id}"))(lambda_handler)\n'
    )
    with Place(tmp_path) as place:
        place.serve("--port", "0")
        answer = place.curl("/things/7", "-i", "-d", "a=1", "-b", "visits=1")
        assert "HTTP/1.1 201" in answer
        assert "Set-Cookie: visits=2; Path=/" in answer
        got = json.loads(answer.partition("\n\n")[2])
        assert got == {"id": "7", "body": "a=1", "cookies": {"visits": "1"}, "left": True}


def test_samples(tmp_path: Path) -> None:
    place = Place(tmp_path)
    made = json.loads(place.run("sample", "http"))
    assert (made["version"], made["routeKey"], json.loads(made["body"])) == ("2.0", "POST /devices/{device}", {"celsius": 21.5})
    assert made["pathParameters"] == {"device": "oven"}
    assert json.loads(place.run("sample", "http", "GET /a"))["rawPath"] == "/a"
    one = json.loads(place.run("sample", "http", "GET /a/b?c=1&c=2", "", "--payload", "1.0", "--route", "GET /a/{x}"))
    assert (one["version"], one["pathParameters"], one["multiValueQueryStringParameters"]) == ("1.0", {"x": "b"}, {"c": ["1", "2"]})
    assert "'GET /a' is not for the route 'GET /b'" in place.run("sample", "http", "GET /a", "--route", "GET /b", code=2)
