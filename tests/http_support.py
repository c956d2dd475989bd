"""Apps served over HTTP within a test, and who asks them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import ClientSession
from yarl import URL

from eventrouter import App
from eventrouter.plugins import Plugins
from eventrouter_http import eventrouter_plugin
from eventrouter_http.source import HttpSource
from support import LOCAL, make_app


def app_of(folder: Path, *handlers: Callable[..., Any], toml: str = "") -> App:
    toml = toml if "port" in toml else f"[http]\nport = 0\n{toml}"
    return make_app(folder, *handlers, toml=toml, plugins=Plugins([LOCAL, eventrouter_plugin()]))


def url_of(app: App) -> str:
    source = app.sources["http"]
    assert isinstance(source, HttpSource)
    return source.url


class Answer(msgspec.Struct):
    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    def __init__(self, session: ClientSession, app: App) -> None:
        self.session, self.app = session, app

    async def __call__(self, request: str, body: Any = None, headers: Any = None) -> Answer:
        method, _, path = request.partition(" ")
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session.request(method, URL(url_of(self.app) + path, encoded=True), data=data, headers=headers) as answer:
            return Answer(answer.status, answer.headers, await answer.read())


@asynccontextmanager
async def serving(folder: Path, *handlers: Callable[..., Any], toml: str = "") -> AsyncIterator[Client]:
    async with app_of(folder, *handlers, toml=toml) as app, ClientSession() as session:
        yield Client(session, app)


async def raw(app: App, request: bytes) -> bytes:
    """What comes back for exactly these bytes, until the connection ends."""
    url = URL(url_of(app))
    assert url.host
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(request)
    try:
        return await reader.read()
    finally:
        writer.close()
