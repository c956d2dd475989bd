"""Which function gets a request: API Gateway's order, and what paths may look like."""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventrouter import on
from eventrouter.errors import ConfigError
from eventrouter_http import http
from eventrouter_http.routes import Routes
from http_support import raw, serving


def table(*keys: str) -> Routes[str]:
    routes: Routes[str] = Routes()
    for key in keys:
        routes.add(*key.split(" "), key)
    return routes


def found(routes: Routes[str], request: str) -> Any:
    hit = routes.find(*request.split(" "))
    return hit and (hit[0], dict(hit[1]))


@pytest.mark.parametrize(
    ("request_", "key", "captures"),
    [
        ("GET /pets/dog/1", "GET /pets/dog/1", {}),
        ("GET /pets/dog/2", "GET /pets/dog/{id}", {"id": "2"}),
        ("GET /pets/cat/1", "GET /pets/{proxy+}", {"proxy": "cat/1"}),
        ("POST /test/5", "ANY /{proxy+}", {"proxy": "test/5"}),
        ("PUT /pets/dog/1", "ANY /{proxy+}", {"proxy": "pets/dog/1"}),  # no route of that path has the method
        ("GET /pets", "ANY /{proxy+}", {"proxy": "pets"}),
    ],
)
def test_the_order_of_api_gateways_documentation(request_: str, key: str, captures: dict[str, str]) -> None:
    routes = table("ANY /{proxy+}", "GET /pets/{proxy+}", "GET /pets/dog/{id}", "GET /pets/dog/1")
    assert found(routes, request_) == (key, captures)
    assert routes.find("GET", "/") is None


def test_a_full_match_comes_before_a_longer_greedy_one() -> None:
    routes = table("GET /users/{rest+}", "GET /{group}/me", "ANY /users/{id}/x")
    assert found(routes, "GET /users/me") == ("GET /{group}/me", {"group": "users"})
    assert found(routes, "GET /users/you") == ("GET /users/{rest+}", {"rest": "you"})
    assert found(routes, "GET /users/7/x") == ("ANY /users/{id}/x", {"id": "7"})


def test_segments_go_from_literal_to_partly_to_any() -> None:
    routes = table("GET /{a}/b", "GET /a/{b}", "GET /{name}.csv/{b}", "GET /a/v{rest+}", "GET /a/{rest+}")
    assert found(routes, "GET /a/b") == ("GET /a/{b}", {"b": "b"})
    assert found(routes, "GET /x.csv/b") == ("GET /{name}.csv/{b}", {"name": "x", "b": "b"})
    assert found(routes, "GET /x/b") == ("GET /{a}/b", {"a": "x"})
    assert found(routes, "GET /a/v1/2") == ("GET /a/v{rest+}", {"rest": "1/2"})
    assert found(routes, "GET /a/w1/2") == ("GET /a/{rest+}", {"rest": "w1/2"})


def test_methods_of_one_path_may_name_their_wildcards_differently() -> None:
    routes = table("GET /a/{x}", "POST /a/{y}", "ANY /a/{z}")
    assert [found(routes, f"{method} /a/1") for method in ("GET", "POST", "PUT")] == [
        ("GET /a/{x}", {"x": "1"}), ("POST /a/{y}", {"y": "1"}), ("ANY /a/{z}", {"z": "1"}),
    ]  # fmt: skip
    assert routes.methods("/a/1") == {"GET", "POST", "ANY"}
    assert routes.methods("/b") == set()


def test_the_first_of_a_route_stays() -> None:
    routes = table("GET /a", "GET /a/{x}", "GET /b/{x+}")
    assert [routes.add("GET", path, "") for path in ("/a", "/a/{y}", "/b/{y+}", "/b/v{y+}", "/c")] == [False, False, False, True, True]
    assert found(routes, "GET /a/1") == ("GET /a/{x}", {"x": "1"})


@pytest.mark.parametrize("path", ["/files", "/files/", "/files//", "/files///"])
def test_greedy_takes_at_least_one_segment(path: str) -> None:
    assert table("GET /files/{path+}").find("GET", path) is None


SEGMENT = st.text(string.ascii_letters + ".%é", min_size=1, max_size=4)


@given(st.lists(SEGMENT, min_size=1, max_size=4), st.data())
def test_a_route_made_from_a_path_finds_it(segments: list[str], data: st.DataObject) -> None:
    wild = data.draw(st.sets(st.integers(0, len(segments) - 1)))
    pattern = "/" + "/".join(f"{{w{place}}}" if place in wild else text for place, text in enumerate(segments))
    routes = table(f"GET {pattern}", "GET /{all+}")
    hit = routes.find("GET", "/" + "/".join(segments))
    assert hit is not None
    assert hit[0] == f"GET {pattern}"
    assert set(hit[1]) == {f"w{place}" for place in wild}


def test_of_thousands_the_right_one() -> None:
    """By what stands around the wildcards; what was found before is found again, until there is a better route."""
    keys = [f"GET /{n}/{{id}}.v{n}" for n in range(500)] + [f"GET /all/{{id}}.v{n}" for n in range(2500)]
    keys += [f"GET /all/p{n}-{{id}}" for n in range(2500)] + [f"GET /rest/p{n}-{{path+}}" for n in range(2500)]
    routes = table("GET /all/{year}-{id}.v7", *keys)
    for _ in range(2):  # more than are kept in mind
        for n in range(2500):
            assert found(routes, f"GET /all/x.v{n}") == (f"GET /all/{{id}}.v{n}", {"id": "x"})
            assert found(routes, f"GET /all/p{n}-x") == (f"GET /all/p{n}-{{id}}", {"id": "x"})
            assert found(routes, f"GET /rest/p{n}-x/y") == (f"GET /rest/p{n}-{{path+}}", {"path": "x/y"})
    assert found(routes, "GET /all/1-2.v7") == ("GET /all/{year}-{id}.v7", {"year": "1", "id": "2"})  # both fit: the one that came first
    assert found(routes, "GET /all/p1-2.v8") == ("GET /all/{id}.v8", {"id": "p1-2"})
    assert found(routes, "GET /all/.v8") is None
    assert found(routes, "POST /all/x.v8") is None
    routes.add("GET", "/all/x.v8", "exact")
    assert found(routes, "GET /all/x.v8") == ("exact", {})
    routes.add("POST", "/all/{id}", "POST /all/{id}")
    assert found(routes, "POST /all/x.v8") == ("POST /all/{id}", {"id": "x.v8"})


def echo(key: str, name: str, **options: Any) -> Callable[..., Any]:
    def handler(event, context):  # type: ignore[no-untyped-def]
        return {"by": name, "path": event["rawPath"], "parameters": event.get("pathParameters")}

    handler.__name__ = name
    return on(http(key, **options))(handler)


async def test_a_slash_at_the_end_is_the_same_route(tmp_path: Path) -> None:
    """As measured on AWS; the raw path keeps it."""
    handlers = [
        echo("GET /things", "things"),
        echo("GET /things/{id}", "thing"),
        echo("GET /files/{path+}", "files"),
        echo("GET /", "root"),
    ]
    async with serving(tmp_path, *handlers) as ask:
        got = [(await ask(f"GET {path}")).json for path in ("/things/", "/things/7/", "/files/a/", "/")]
    assert got == [
        {"by": "things", "path": "/things/", "parameters": None},
        {"by": "thing", "path": "/things/7/", "parameters": {"id": "7"}},
        {"by": "files", "path": "/files/a/", "parameters": {"path": "a/"}},
        {"by": "root", "path": "/", "parameters": None},
    ]


@pytest.mark.parametrize(
    ("asked", "path", "id"),
    [
        ("a%2fb", "/things/a%2fb", "a/b"),
        ("a%2Fb", "/things/a%2Fb", "a/b"),
        ("a%25b", "/things/a%25b", "a%b"),
        ("%E2%82%AC", "/things/%E2%82%AC", "€"),
        ("a+b", "/things/a+b", "a+b"),
        ("%FF", "/things/%FF", "%FF"),
    ],
)
async def test_the_raw_path_is_as_it_came_and_parameters_are_decoded(tmp_path: Path, asked: str, path: str, id: str) -> None:
    async with serving(tmp_path, echo("GET /things/{id}", "thing")) as ask:
        got = (await ask(f"GET /things/{asked}")).json
    assert (got["path"], got["parameters"]) == (path, {"id": id})


async def test_unicode(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(tmp_path, echo("GET /things/{id}", "thing"), echo("GET /straße", "street")) as ask:
        assert (await ask("GET /stra%C3%9Fe")).json["by"] == "street"
        for bad in ("GET /things/é HTTP/1.1".encode(), b"GET /things/\xff HTTP/1.1", b"\x16\x03\x01\x00", b"GET / HTTP/9.9"):
            answer = await raw(ask.app, bad + b"\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert b" 400 Bad Request" in answer
            assert b"the request can't be read: " in answer
    assert not [record for record in caplog.records if record.exc_info]  # a scanner must not fill the log


async def test_methods(tmp_path: Path) -> None:
    async with serving(
        tmp_path, echo("GET /a", "get"), echo("ANY /b", "any"), echo("OPTIONS /c", "options"), echo("HEAD /a", "head")
    ) as ask:
        assert (await ask("GET /a")).json["by"] == "get"
        head = await ask("HEAD /a")
        assert (head.status, head.body) == (200, b"")
        for method in ("GET", "PUT", "OPTIONS", "PROPFIND"):
            assert (await ask(f"{method} /b")).json["by"] == "any"
        assert (await ask("OPTIONS /c")).json["by"] == "options"
        refused = await ask("DELETE /a")
        assert (refused.status, refused.headers["Allow"], refused.headers["Content-Type"]) == (405, "GET, HEAD", "application/problem+json")
        assert (await ask("OPTIONS /a")).status == 405
        assert (await ask("HEAD /c")).status == 405
        assert (await ask("HEAD /healthz")).status == 200


async def test_a_stage_is_what_paths_begin_with(tmp_path: Path) -> None:
    @on(http("GET /things/{id}"))
    def thing(event, context):  # type: ignore[no-untyped-def]
        return event

    @on(http("GET /typed/{id}"))
    async def typed(id: int) -> int:
        return id

    toml = 'stage = "prod"\n[http.stage_variables]\nbackend = "blue"\n'
    async with serving(tmp_path, thing, typed, echo("$default", "default"), echo("GET /", "root"), toml=toml) as ask:
        got = (await ask("GET /prod/things/7")).json
        assert (got["rawPath"], got["requestContext"]["http"]["path"]) == ("/prod/things/7", "/prod/things/7")
        assert (got["routeKey"], got["pathParameters"]) == ("GET /things/{id}", {"id": "7"})
        assert (got["requestContext"]["stage"], got["stageVariables"]) == ("prod", {"backend": "blue"})
        assert (await ask("GET /prod/typed/7")).json == 7
        assert (await ask("GET /prod/else")).json["by"] == "default"
        assert (await ask("GET /prod")).json["by"] == "root"
        assert (await ask("GET /things/7")).status == 404
        assert (await ask("GET /production")).status == 404
        assert (await ask("GET /healthz")).status == 200


@pytest.mark.parametrize("route", ["GET /things/", "GET /a%20b"])
def test_paths_that_would_never_match_are_refused(route: str) -> None:
    with pytest.raises(ConfigError, match="drop the slash at the end; '/things' answers|decoded before they are matched"):
        http(route)
