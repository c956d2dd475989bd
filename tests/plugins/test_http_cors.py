"""Cross-origin requests: what the gateway answers, and what a real browser makes of it."""

from __future__ import annotations

import html
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from browser import dom
from eventrouter import Response, on
from eventrouter.errors import ConfigError
from eventrouter_http import Cors, http
from http_support import serving, url_of

PAGE = "https://page.example"


def ask_first(origin: str = PAGE, method: str = "PUT", headers: str = "content-type,x-own") -> dict[str, str]:
    return {"Origin": origin, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers}


def said(answer: Any) -> dict[str, str]:
    prefix = "access-control-"
    return {name.lower().removeprefix(prefix): value for name, value in answer.headers.items() if name.lower().startswith(prefix)}


@on(http("PUT /things/{id}"))
async def put(id: int, fail: bool = False) -> Response:
    if fail:
        raise LookupError
    return Response({"id": id}, headers={"Access-Control-Allow-Origin": "https://from.the.handler", "X-Own": "1"})


async def test_any_origin(tmp_path: Path) -> None:
    async with serving(tmp_path, put, toml="[http.cors]\n") as ask:
        first = await ask("OPTIONS /things/7", headers=ask_first())
        assert (first.status, first.body) == (204, b"")
        assert said(first) == {"allow-origin": "*", "allow-methods": "PUT", "allow-headers": "content-type,x-own"}
        for request, status in {"PUT /things/7": 200, "PUT /things/x": 400, "PUT /things/7?fail=1": 500, "GET /nowhere": 404}.items():
            answer = await ask(request, headers={"Origin": PAGE})
            assert (answer.status, said(answer)) == (status, {"allow-origin": "*"})
        assert said(await ask("PUT /things/7")) == {}  # asked by no page; what the handler says doesn't count


async def test_named_origins(tmp_path: Path) -> None:
    toml = """
[http.cors]
allow_origins = ["https://page.example", "http://*"]
allow_methods = ["GET", "PUT"]
allow_headers = ["content-type"]
expose_headers = ["x-own", "date"]
max_age = 300
allow_credentials = false
"""
    async with serving(tmp_path, put, toml=toml) as ask:
        assert said(await ask("OPTIONS /things/7", headers=ask_first())) == {
            "allow-origin": PAGE, "allow-methods": "GET,PUT", "allow-headers": "content-type", "max-age": "300",
        }  # fmt: skip
        answer = await ask("PUT /things/7", headers={"Origin": "http://localhost:3000"})
        assert said(answer) == {"allow-origin": "http://localhost:3000", "expose-headers": "x-own,date"}
        assert answer.headers["Vary"] == "Origin"
        refused = await ask("OPTIONS /things/7", headers=ask_first("https://evil.example"))
        assert (refused.status, said(refused), refused.headers["Vary"]) == (204, {}, "Origin")
        stranger = await ask("PUT /things/7", headers={"Origin": "https://evil.example"})
        assert (stranger.status, said(stranger)) == (200, {})


async def test_credentials(tmp_path: Path) -> None:
    cors = Cors(allow_origins=(PAGE,), allow_credentials=True)

    @on(http("GET /", cors=cors))
    async def handler() -> None: ...

    async with serving(tmp_path, handler) as ask:
        want = {"allow-origin": PAGE, "allow-credentials": "true"}
        assert said(await ask("GET /", headers={"Origin": PAGE})) == want
        first = await ask("OPTIONS /", headers=ask_first(method="GET"))
        assert said(first) == {**want, "allow-methods": "GET", "allow-headers": "content-type,x-own"}


async def test_a_route_has_the_last_word(tmp_path: Path) -> None:
    @on(http("GET /own", cors={"allow_origins": ["https://own.example"]}))
    async def own() -> None: ...

    @on(http("GET /shut", cors=False))
    async def shut() -> None: ...

    @on(http("ANY /any", cors=True))
    async def any_() -> None: ...

    async with serving(tmp_path, own, shut, any_, toml=f'[http.cors]\nallow_origins = ["{PAGE}"]\n') as ask:
        assert said(await ask("GET /own", headers={"Origin": PAGE})) == {}
        assert said(await ask("GET /shut", headers={"Origin": PAGE})) == {}
        assert (await ask("OPTIONS /shut", headers=ask_first(method="GET"))).status == 405
        assert said(await ask("OPTIONS /any", headers=ask_first("https://x.example", "DELETE")))["allow-origin"] == "*"
        assert (await ask("OPTIONS /any")).status == 204  # no page asks: it is a request as any other


@pytest.mark.parametrize(
    ("cors", "fault"),
    [
        ({"allow_origins": ["https://page.example/path"]}, "is no origin; write"),
        ({"allow_origins": ["page.example"]}, "is no origin; write"),
        ({"allow_origins": []}, "allow_origins is empty"),
        ({"allow_credentials": True}, "goes with named origins only"),
        ({"origins": ["*"]}, "unknown field `?origins"),
    ],
)
def test_settings_that_browsers_would_not_heed(cors: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        http("GET /", cors=cors)


# In a browser

SCRIPT = """
const results = {}
const tried = async (name, path, options) => {
    try {
        const answer = await fetch(API + path, options)
        results[name] = [answer.status, answer.headers.get("x-own"), await answer.text()]
    } catch (error) { results[name] = error.name }
}
const json = {method: "PUT", headers: {"content-type": "application/json", "x-asked": "1"}, body: "{}"}
Promise.all([
    tried("simple", "/simple"), tried("preflight", "/things/7", json), tried("invalid", "/things/seven", json),
    tried("shut", "/shut"), tried("shut preflight", "/shut", json), tried("missing", "/missing"),
    tried("stream", "/stream"), tried("cookies", "/simple", {credentials: "include"}),
    tried("cookies where allowed", "/me", {credentials: "include"}),
]).then(() => { document.body.textContent = JSON.stringify(results) })
"""


@asynccontextmanager
async def page(script: str) -> AsyncIterator[tuple[str, list[str]]]:
    """An origin with one page; its address, where to put its script."""
    scripts = [script]

    async def show(request: web.BaseRequest) -> web.Response:
        return web.Response(text=f"<html><body></body><script>{scripts[0]}</script></html>", content_type="text/html")

    runner = web.ServerRunner(web.Server(show))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", scripts
    finally:
        await runner.cleanup()


async def test_a_browser(tmp_path: Path) -> None:
    async with page("") as (origin, scripts):
        named = Cors(allow_origins=(origin,), allow_credentials=True)

        @on(http("GET /simple"))
        async def simple() -> Response:
            return Response("simple", headers={"X-Own": "1"})

        @on(http("ANY /shut", cors=False))
        async def shut() -> str:
            return "shut"

        @on(http("GET /stream"))
        async def stream() -> AsyncIterator[str]:
            yield "a"
            yield "b"

        @on(http("GET /me", cors=named))
        async def me() -> str:
            return "me"

        handlers = (put, simple, shut, stream, me)
        async with serving(tmp_path, *handlers, toml='[http.cors]\nexpose_headers = ["x-own"]\n') as ask:
            scripts[0] = f"const API = {json.dumps(url_of(ask.app))}\n{SCRIPT}"
            shown = await dom(origin, tmp_path)
    found = re.search(r"<body>(.*)</body>", shown, re.DOTALL)
    assert found, shown
    got = msgspec.json.decode(html.unescape(found[1]))
    assert got.pop("invalid")[0] == 400
    assert got.pop("missing")[0] == 404
    assert got == {
        "simple": [200, "1", "simple"],
        "preflight": [200, "1", '{"id":7}'],
        "shut": "TypeError",
        "shut preflight": "TypeError",
        "stream": [200, None, "ab"],
        "cookies": "TypeError",  # a page that is not named gets nothing with credentials
        "cookies where allowed": [200, None, "me"],
    }
