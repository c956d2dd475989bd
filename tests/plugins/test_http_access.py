"""What of the router itself is told over HTTP, and to whom."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from aiohttp import ClientSession

from eventrouter import App, Endpoint, HttpRequest, Plugin, Response, on
from eventrouter.clock import ManualClock
from eventrouter.plugins import Plugins
from eventrouter_http import authorizer, eventrouter_plugin, http
from http_support import Client, serving
from support import LocalSource, make_app, until

TOKEN = "correct horse battery staple"
HASH = hashlib.sha256(TOKEN.encode()).hexdigest()
BEARER = {"Authorization": f"Bearer {TOKEN}"}


class Keeper(LocalSource):
    def endpoints(self) -> Sequence[Endpoint]:
        async def answer(request: HttpRequest) -> Response:
            return Response("the keys of the house")

        return [Endpoint("GET", "/admin/keys", answer, admin=True)]


def keeper(folder: Path, toml: str, clock: ManualClock | None = None) -> App:
    plugins = Plugins([Plugin(name="local", source="plugins.test_http_access:Keeper", always=True), eventrouter_plugin()])

    @on(http("GET /mine", auth="api-key"))
    async def mine() -> str:
        return "mine"

    @on(http("GET /open"))
    async def free() -> str:
        return "open"

    @on()
    async def decide(event, context):  # type: ignore[no-untyped-def]
        return {"isAuthorized": event["headers"]["authorization"] == "me"}

    @on(http("GET /decided", auth=authorizer("decide", ttl=0)))
    async def decided() -> str:
        return "decided"

    return make_app(folder, mine, free, decide, decided, toml=f"[http]\nport = 0\n{toml}\n{KEYS}", plugins=plugins, clock=clock)


KEYS = '[http.api_keys.me]\nkey = "0123456789abcdef"\n'


async def test_what_is_administrators_business_needs_the_token(tmp_path: Path) -> None:
    async with keeper(tmp_path, f'admin_token_hash = "{HASH}"') as app, ClientSession() as session:
        ask = Client(session, app)
        assert (await ask("GET /admin/keys", headers=BEARER)).body == b"the keys of the house"
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}, {"Authorization": f"Basic {TOKEN}"}):
            answer = await ask("GET /admin/keys", headers=headers)
            assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
            assert TOKEN.encode() not in answer.body


async def test_without_a_token_it_is_shut(tmp_path: Path) -> None:
    async with keeper(tmp_path, "") as app, ClientSession() as session:
        answer = await Client(session, app)("GET /admin/keys", headers=BEARER)
        assert answer.status == 403
        assert "[http] admin_token_hash is its SHA-256" in answer.json["detail"]


@pytest.mark.parametrize("given", ["secret", "ab" * 31])
async def test_only_a_hash_is_kept(tmp_path: Path, given: str) -> None:
    with pytest.raises(Exception, match="admin_token_hash"):
        keeper(tmp_path, f'admin_token_hash = "{given}"')


async def test_why_the_router_is_not_ready_is_told_to_those_who_may_know(tmp_path: Path) -> None:
    async with keeper(tmp_path, f'admin_token_hash = "{HASH}"') as app, ClientSession() as session:
        ask = Client(session, app)
        await until(lambda: app.sources["local"].router.state == "live")
        app.sources["local"].router.lost("the broker at 10.0.0.7 refuses the password")
        told = await ask("GET /readyz", headers=BEARER)
        assert told.json["sources"]["local"] == "the broker at 10.0.0.7 refuses the password"
        hidden = await ask("GET /readyz")
        assert hidden.status == told.status
        assert hidden.json["sources"] == {"http": "live", "local": "lost"}
        assert (await ask("GET /readyz", headers={"Authorization": "Bearer wrong"})).json == hidden.json
    for host, shown in (("127.0.0.1", "gone"), ("0.0.0.0", "lost")):
        async with keeper(tmp_path, f'host = "{host}"') as app, ClientSession() as session:
            await until(lambda: app.sources["local"].router.state == "live")
            app.sources["local"].router.lost("gone")
            async with session.get(app.sources["http"].router.url.replace("0.0.0.0", "127.0.0.1") + "/readyz") as answer:
                assert (await answer.json())["sources"]["local"] == shown


@pytest.mark.parametrize(
    ("path", "wrong", "right"),
    [
        ("/mine", {"x-api-key": "guess"}, {"x-api-key": "0123456789abcdef"}),
        ("/decided", {"Authorization": "guess"}, {"Authorization": "me"}),
        ("/admin/keys", {"Authorization": "Bearer guess"}, BEARER),
    ],
)
async def test_who_guesses_has_to_wait(tmp_path: Path, path: str, wrong: dict[str, str], right: dict[str, str]) -> None:
    clock = ManualClock()
    async with keeper(tmp_path, f'auth_failures = 5\nadmin_token_hash = "{HASH}"', clock) as app, ClientSession() as session:
        ask = Client(session, app)
        for _ in range(5):
            assert (await ask(f"GET {path}")).status in (401, 403)  # without credentials nothing is guessed
        for _ in range(5):
            assert (await ask(f"GET {path}", headers=right)).status == 200
            assert (await ask(f"GET {path}", headers=wrong)).status in (401, 403)
        refused = await ask(f"GET {path}", headers=right)
        assert (refused.status, refused.headers["Retry-After"]) == (429, "12")
        assert (await ask("GET /open")).status == 200
        clock.advance(12)
        assert (await ask(f"GET {path}", headers=right)).status == 200
    async with keeper(tmp_path, f'auth_failures = 0\nadmin_token_hash = "{HASH}"') as app, ClientSession() as session:
        ask = Client(session, app)
        assert {(await ask(f"GET {path}", headers=wrong)).status for _ in range(40)} <= {401, 403}


def test_an_ipv6_customer_is_one_address_and_memory_is_bounded() -> None:
    from eventrouter_http.auth import _ADDRESSES, Failures

    failures = Failures(2)
    failures.failed("2001:db8::1", 0)
    failures.failed("2001:db8::ffff:2", 0)
    assert failures.wait("2001:db8:0:0:1::", 0) > 0
    assert failures.wait("2001:db8:0:1::1", 0) == failures.wait("10.0.0.1", 0) == failures.wait("", 0) == 0
    for number in range(_ADDRESSES + 10):
        failures.failed(f"10.0.{number >> 8}.{number & 255}", 0)
    assert len(failures._buckets) == _ADDRESSES


async def test_the_routers_own_pages_and_errors_are_hardened_and_handlers_answers_are_theirs(tmp_path: Path) -> None:
    @on(http("GET /open"))
    async def free() -> Response:
        return Response("open")

    async with serving(tmp_path, free) as ask:
        for path in ("/healthz", "/readyz", "/openapi.json", "/docs", "/nothing", "/open?x"):
            answer = await ask(f"{'POST' if 'open?' in path else 'GET'} {path}")
            assert answer.headers["X-Content-Type-Options"] == "nosniff", path
            assert answer.headers["X-Frame-Options"] in ("DENY", "SAMEORIGIN")
            assert answer.headers["Referrer-Policy"] == "no-referrer"
            assert answer.headers["Cache-Control"] == "no-store"
            assert "frame-ancestors" in answer.headers["Content-Security-Policy"]
        assert "X-Frame-Options" not in (await ask("GET /open")).headers


async def test_open_routes_on_an_address_of_others_are_warned_of_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for host, warned in (("127.0.0.1", False), ("0.0.0.0", True)):
        caplog.clear()
        async with keeper(tmp_path, f'host = "{host}"'):
            told = [record.getMessage() for record in caplog.records if getattr(record, "action", "") == "http.open"]
        assert bool(told) == warned
        if warned:
            assert "can call http GET /open" in told[0]
            assert "/mine" not in told[0]
