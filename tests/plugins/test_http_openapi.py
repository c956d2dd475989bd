"""The routes as an OpenAPI document, and the page to try them on."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pydantic
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from browser import dom
from eventrouter import Context, Depends, Event, Response, on
from eventrouter_http import http
from http_support import serving, url_of


class Item(msgspec.Struct):
    """Something to buy."""

    name: Annotated[str, msgspec.Meta(min_length=1)]
    tags: list[str] = []
    parts: list[Item] = []


@dataclasses.dataclass
class Order:
    item: Item
    count: int = 1


class Model(pydantic.BaseModel):
    inner: Inner | None = None


class Inner(pydantic.BaseModel):
    n: int


def database() -> str:
    return "db"


async def document(folder: Path, *handlers: Any, toml: str = "") -> dict[str, Any]:
    async with serving(folder, *handlers, toml=toml) as ask:
        answer = await ask("GET /openapi.json")
        assert answer.headers["Content-Type"] == "application/json"
        OpenAPIV31SpecValidator(answer.json).validate()
        return answer.json


@on(http("POST /shops/{shop}/orders"))
async def order(
    body: Order,
    shop: int,
    event: Event,
    context: Context,
    db: Annotated[str, Depends(database)],
    express: bool = False,
    tags: list[str] = [],  # noqa: B006
) -> Item | None:
    """Order something.

    It is sent at once."""


@on(http("GET /files/{path+}"))
async def file(path: str) -> bytes: ...


@on(http("PUT /later", mode="event"))
async def later(model: Model) -> None: ...


@on(http("DELETE /orders/{id}"))
async def remove(id: str) -> None: ...


@on(http("GET /ticks"))
async def ticks() -> AsyncIterator[Order]:
    yield Order(Item("a"))


@on(http("ANY /lambda/{x}"))
def plain(event, context):  # type: ignore[no-untyped-def]
    return event


@on(http("GET /lambda/{y}"))
async def own(y: str) -> Response: ...


@on(http("$default"))
async def default() -> str: ...


async def test_the_document(tmp_path: Path) -> None:
    made = await document(tmp_path, order, file, later, remove, ticks, own, plain, default)
    assert made["openapi"].startswith("3.1")
    assert made["info"]["title"] == tmp_path.name
    paths = made["paths"]
    assert sorted(paths) == ["/files/{path}", "/lambda/{y}", "/later", "/orders/{id}", "/shops/{shop}/orders", "/ticks"]
    post = paths["/shops/{shop}/orders"]["post"]
    assert (post["operationId"], post["summary"], post["description"]) == ("order", "Order something.", "It is sent at once.")
    assert {p["name"]: (p["in"], p.get("required", False), p["schema"]) for p in post["parameters"]} == {
        "shop": ("path", True, {"type": "integer"}),
        "express": ("query", False, {"type": "boolean", "default": False}),
        "tags": ("query", False, {"type": "array", "items": {"type": "string"}, "default": []}),
    }
    assert post["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Order"}
    assert {"$ref": "#/components/schemas/Item"} in post["responses"]["200"]["content"]["application/json"]["schema"]["anyOf"]
    assert "400" in post["responses"]
    assert paths["/files/{path}"]["get"]["responses"]["200"]["content"] == {"application/octet-stream": {}}
    assert list(paths["/later"]["put"]["responses"]) == ["202", "400", "default"]
    assert paths["/orders/{id}"]["delete"]["responses"]["204"]
    stream = paths["/ticks"]["get"]["responses"]["200"]["content"]
    assert stream == {"application/jsonl": {"schema": {"$ref": "#/components/schemas/Order"}}}
    assert {method: told["operationId"] for method, told in paths["/lambda/{y}"].items()} == {
        "get": "own", "post": "plain", "put": "plain_put", "patch": "plain_patch", "delete": "plain_delete",
    }  # fmt: skip
    assert paths["/lambda/{y}"]["post"]["parameters"] == [{"name": "y", "in": "path", "required": True, "schema": {"type": "string"}}]
    schemas = made["components"]["schemas"]
    assert set(schemas) == {"Item", "Order", "Model", "Inner", "Problem"}
    assert schemas["Item"]["properties"]["name"] == {"type": "string", "minLength": 1}


async def test_a_stage_is_the_server(tmp_path: Path) -> None:
    assert (await document(tmp_path, file, toml='stage = "prod"'))["servers"] == [{"url": "/prod"}]


async def test_it_can_be_off_and_an_apps_own_routes_come_first(tmp_path: Path) -> None:
    @on(http("GET /docs"))
    async def docs() -> str:
        return "my own"

    async with serving(tmp_path, docs, toml="openapi = false") as ask:
        assert (await ask("GET /openapi.json")).status == 404
    async with serving(tmp_path, docs) as ask:
        assert (await ask("GET /docs")).body == b"my own"
        assert (await ask("GET /openapi.json")).status == 200


@pytest.mark.parametrize(
    ("asked", "detail"),
    [
        ("/shops/x/orders", "shop: expected int, got str"),
        ("/shops/1/orders?express=perhaps", "express: expected bool, got str"),
    ],
)
async def test_what_does_not_fit_the_signature_is_named(tmp_path: Path, asked: str, detail: str) -> None:
    async with serving(tmp_path, order) as ask:
        answer = await ask(f"POST {asked}", {"item": {"name": "a"}})
        assert (answer.status, answer.json["detail"]) == (400, detail)
        answer = await ask("POST /shops/1/orders", {"item": {"name": "a", "parts": [{"name": ""}]}})
        assert (answer.status, answer.json["detail"]) == (400, "$.item.parts[0].name: expected str of length >= 1")


DRIVER = """<iframe src="/docs#greet"></iframe><pre></pre><script>
const frame = document.querySelector("iframe")
const soon = check => new Promise(done => {
  const timer = setInterval(() => { const it = check(); if (it) { clearInterval(timer); done(it) } }, 20)
})
const drive = async () => {
  const form = await soon(() => frame.contentDocument.querySelector("#greet[open] form"))
  const [name, loud] = form.querySelectorAll("input")
  name.value = "ann/lee"
  loud.value = "true"
  form.querySelector("textarea").value = '{"item": {"name": "lamp"}}'
  form.querySelector("button").click()
  const out = form.querySelector("pre")
  document.querySelector("pre").textContent = await soon(() => out.textContent.includes("}") && out.textContent)
}
frame.onload = drive
</script>"""


async def test_a_browser_tries_a_route_on_the_page(tmp_path: Path) -> None:
    @on(http("POST /greet/{name}"))
    async def greet(body: Order, name: str, loud: bool = False) -> dict[str, Any]:
        return {"name": name, "loud": loud, "item": body.item.name}

    @on(http("GET /drive"))
    async def drive() -> Response:
        return Response(DRIVER, headers={"Content-Type": "text/html"})

    async with serving(tmp_path, greet, drive, toml="body_limit = 1000") as ask:
        shown = await dom(f"{url_of(ask.app)}/drive", tmp_path)
    found = re.search(r"<pre>(.*?)</pre>", shown, re.DOTALL)
    assert found, shown
    assert found[1].startswith("200 OK")
    assert found[1].endswith('{"name":"ann/lee","loud":true,"item":"lamp"}')
