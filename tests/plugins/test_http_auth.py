"""Who may call a route: API keys, JSON Web Tokens, authorizer functions."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jwt as pyjwt
import pytest
from aiohttp import ClientSession, web
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from eventrouter import Event, on
from eventrouter.clock import ManualClock
from eventrouter.errors import ConfigError, EventRouterError
from eventrouter.plugins import Plugins
from eventrouter_http import authorizer, eventrouter_plugin, http, jwt
from eventrouter_http.auth import read_auth, verdict
from http_support import Client, app_of, raw, serving
from support import make_app

KEY, HASHED = "a-key-of-the-plant", "another-key-of-the-plant"
KEYS = f"""
auth = "api-key"
[http.api_keys.plant]
key = "{KEY}"
rate = 2
burst = 3
[http.api_keys.office]
hash = "{hashlib.sha256(HASHED.encode()).hexdigest()}"
"""


@on(http("POST /who"))
async def who(event: Event, body: bytes) -> Any:
    return [event.attributes["authorizer"], len(body)]


@on(http("GET /open", auth="none"))
async def open_() -> str:
    return "open"


@asynccontextmanager
async def at(clock: ManualClock, folder: Path, *handlers: Callable[..., Any], toml: str) -> AsyncIterator[Client]:
    """Served on a clock that stands still."""
    plugins = Plugins([eventrouter_plugin()])
    async with (
        make_app(folder, *handlers, clock=clock, toml=f"[http]\nport = 0\n{toml}", plugins=plugins) as app,
        ClientSession() as session,
    ):
        yield Client(session, app)


# API keys


async def test_api_keys(tmp_path: Path) -> None:
    @on(http("GET /v1", payload="1.0"))
    def v1(event, context):  # type: ignore[no-untyped-def]
        return {"statusCode": 200, "body": json.dumps(event["requestContext"]["identity"])}

    async with serving(tmp_path, who, open_, v1, toml=KEYS) as ask:
        for headers in ({}, {"x-api-key": "wrong"}, {"x-api-key": ""}, {"Authorization": KEY}, {"x-api-key": KEY + "x"}):
            refused = await ask("POST /who", b"", headers)
            assert (refused.status, refused.headers["Content-Type"]) == (403, "application/problem+json")
        assert (await ask("POST /who", b"abc", {"X-API-Key": KEY})).json == [{"apiKey": {"name": "plant"}}, 3]
        assert (await ask("POST /who", b"", {"x-api-key": HASHED})).json == [{"apiKey": {"name": "office"}}, 0]
        assert (await ask("GET /open")).body == b"open"
        identity = (await ask("GET /v1", headers={"x-api-key": HASHED})).json
        assert (identity["apiKey"], identity["apiKeyId"]) == (HASHED, "office")
        assert (await ask("GET /healthz")).status == 200


async def test_the_body_of_somebody_who_may_not_call_is_not_read(tmp_path: Path) -> None:
    async with serving(tmp_path, who, toml=KEYS) as ask:
        head = b"POST /who HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
        answer = await raw(ask.app, head)
    assert answer.startswith(b"HTTP/1.1 403")


async def test_a_key_has_a_rate(tmp_path: Path) -> None:
    clock = ManualClock()
    async with at(clock, tmp_path, who, toml=KEYS) as ask:

        async def status(key: str) -> int:
            return (await ask("POST /who", b"", {"x-api-key": key})).status

        assert [await status(KEY) for _ in range(4)] == [200, 200, 200, 429]
        refused = await ask("POST /who", b"", {"x-api-key": KEY})
        assert (refused.headers["Retry-After"], await status(HASHED)) == ("1", 200)
        clock.advance(1)
        assert [await status(KEY) for _ in range(3)] == [200, 200, 429]


async def test_event_mode_and_cors_heed_it(tmp_path: Path) -> None:
    got: list[Any] = []

    @on(http("PUT /later", mode="event", auth="api-key", cors=True))
    async def later(event: Event) -> None:
        got.append(event.attributes["authorizer"])

    async with serving(tmp_path, later, toml=KEYS) as ask:
        refused = await ask("PUT /later", b"", {"Origin": "https://a.example"})
        assert (refused.status, refused.headers["Access-Control-Allow-Origin"]) == (403, "*")
        assert (await ask("PUT /later", b"", {"x-api-key": KEY})).status == 202
        preflight = {"Origin": "https://a.example", "Access-Control-Request-Method": "PUT"}
        assert (await ask("OPTIONS /later", headers=preflight)).status == 204
    assert got == [{"apiKey": {"name": "plant"}}]


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        ("", "write either key or hash"),
        ('key = "short"', "less than 16 characters"),
        ('hash = "abc"', "64 hexadecimal digits"),
        (f'key = "{KEY}"\nrate = 0', "rate is more than 0"),
        (f'key = "{KEY}"\nburst = 2', "goes with a rate"),
    ],
)
def test_keys_that_are_none(tmp_path: Path, table: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault) as caught:
        app_of(tmp_path, who, toml=f"[http]\nport = 0\n[http.api_keys.plant]\n{table}\n")
    assert KEY not in str(caught.value)


def test_keys_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'who' wants API keys and there are none"):
        app_of(tmp_path, who, toml='auth = "api-key"')


@pytest.mark.parametrize("auth", ["api_key", 5, {"type": "jwt"}, {"type": "magic"}, {"type": "authorizer", "function": "f", "tll": 3}])
def test_what_is_no_auth(auth: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"http\('GET /'\): auth"):
        http("GET /", auth=auth)
    with pytest.raises(ConfigError, match=r"\[http\]: auth"):
        read_auth(auth, "[http]")


async def test_only_open_routes_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(tmp_path, who, open_, toml=f'host = "0.0.0.0"\n{KEYS}'):
        pass
    (warning,) = [record.message for record in caplog.records if "can call" in record.message]
    assert "GET /open" in warning
    assert "POST /who" not in warning


# JSON Web Tokens

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())


def public(key: Any, kid: str, alg: str) -> dict[str, Any]:
    algorithm: Any = ECAlgorithm if alg.startswith("ES") else RSAAlgorithm
    return {**json.loads(algorithm.to_jwk(key.public_key())), "kid": kid, "alg": alg, "use": "sig"}


class Issuer:
    """Serves its keys, and counts who asks for them."""

    def __init__(self) -> None:
        self.keys = [public(RSA, "one", "RS256"), public(EC, "two", "ES256")]
        self.asked: list[str] = []
        self.status = 200
        self.url = ""

    async def answer(self, request: web.BaseRequest) -> web.Response:
        self.asked.append(request.path)
        if request.path.endswith("openid-configuration"):
            return web.json_response({"issuer": self.url, "jwks_uri": f"{self.url}/keys"})
        return web.json_response({"keys": self.keys}, status=self.status)

    def token(self, key: Any = RSA, kid: str | None = "one", alg: str = "RS256", **claims: Any) -> str:
        said = {"iss": self.url, "aud": "plant", "sub": "ann", "exp": int(time.time()) + 600, **claims}
        headers = {} if kid is None else {"kid": kid}
        return pyjwt.encode({name: value for name, value in said.items() if value is not None}, key, alg, headers)


@asynccontextmanager
async def issuing() -> AsyncIterator[Issuer]:
    issuer = Issuer()
    runner = web.ServerRunner(web.Server(issuer.answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    issuer.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield issuer
    finally:
        await runner.cleanup()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def guarded(issuer: Issuer, **more: Any) -> Callable[..., Any]:
    @on(http("GET /me", auth=jwt(issuer=issuer.url, audience=["plant", "office"], **more)))
    async def me(event: Event) -> Any:
        return event.attributes["authorizer"]["jwt"]["claims"]["sub"]

    return me


async def test_tokens(tmp_path: Path) -> None:
    async with issuing() as issuer, serving(tmp_path, guarded(issuer)) as ask:
        missing = await ask("GET /me")
        assert (missing.status, missing.headers["WWW-Authenticate"]) == (401, "Bearer")
        good = {
            "rsa": issuer.token(), "ec": issuer.token(EC, "two", "ES256"), "one of several": issuer.token(aud=["x", "office"]),
            "client": issuer.token(aud=None, client_id="plant"), "clocks differ": issuer.token(exp=int(time.time()) - 5),
        }  # fmt: skip
        for name, token in good.items():
            assert (await ask("GET /me", headers=bearer(token))).body == b"ann", name
        assert (await ask("GET /me", headers={"Authorization": issuer.token()})).status == 200  # as AWS takes it
        assert issuer.asked == ["/.well-known/openid-configuration", "/keys"]


async def test_tokens_that_are_refused(tmp_path: Path) -> None:
    secret = base64.urlsafe_b64encode(b"x" * 40).decode()
    async with issuing() as issuer, serving(tmp_path, guarded(issuer)) as ask:
        now = int(time.time())
        bad = {
            "garbage": ("abc", "can't be read"),
            "no key of the issuer": (issuer.token(OTHER), "signature is wrong"),
            "expired": (issuer.token(exp=now - 100), "has expired"),
            "early": (issuer.token(nbf=now + 100), "not valid yet"),
            "no end": (issuer.token(exp=None), "no exp or iss"),
            "another issuer": (issuer.token(iss="https://evil.example"), "another issuer"),
            "another audience": (issuer.token(aud="others"), "somebody else"),
            "no audience": (issuer.token(aud=None), "somebody else"),
            "strange audience": (issuer.token(client_id=[{"a": 1}], aud=None), "somebody else"),
            "unsigned": (issuer.token(None, "one", "none"), "algorithm is not accepted"),
            "shared secret": (issuer.token(secret, "one", "HS256"), "algorithm is not accepted"),
            "another algorithm": (issuer.token(RSA, "one", "RS512"), "algorithm is not the key's"),
            "no key named": (issuer.token(kid=None), "not among the issuer's"),
            "unknown key": (issuer.token(kid="three"), "not among the issuer's"),
        }
        for name, (token, why) in bad.items():
            refused = await ask("GET /me", headers=bearer(token))
            assert (refused.status, why in refused.json["detail"]) == (401, True), (name, refused.json)
            assert refused.headers["WWW-Authenticate"].startswith('Bearer error="invalid_token", error_description="'), name


async def test_scopes(tmp_path: Path) -> None:
    async with issuing() as issuer, serving(tmp_path, guarded(issuer, scopes=["read", "admin"])) as ask:
        for claims in ({"scope": "read write"}, {"scp": ["admin"]}):
            assert (await ask("GET /me", headers=bearer(issuer.token(**claims)))).status == 200
        for claims in ({}, {"scope": "write"}, {"scope": {"read": 1}}, {"scp": [["read"]]}):
            refused = await ask("GET /me", headers=bearer(issuer.token(**claims)))
            assert refused.status == 403
            assert refused.headers["WWW-Authenticate"] == 'Bearer scope="read admin", error="insufficient_scope"'


async def test_keys_are_fetched_again_when_they_change_but_not_at_anybodys_will(tmp_path: Path) -> None:
    clock = ManualClock()
    async with issuing() as issuer, at(clock, tmp_path, guarded(issuer, jwks=f"{issuer.url}/keys"), toml="") as ask:

        async def status(**token: Any) -> int:
            return (await ask("GET /me", headers=bearer(issuer.token(**token)))).status

        assert await asyncio.gather(*(status() for _ in range(10))) == [200] * 10
        assert len(issuer.asked) == 1
        issuer.keys = [public(OTHER, "three", "RS256")]
        assert await status(key=OTHER, kid="three") == 401  # too soon
        assert len(issuer.asked) == 1
        clock.advance(31)
        assert await status(key=OTHER, kid="three") == 200
        assert await status() == 401  # withdrawn
        assert len(issuer.asked) == 2
        issuer.status = 500
        clock.advance(3601)
        assert await status(key=OTHER, kid="three") == 200  # the keys it has are better than none
        assert len(issuer.asked) == 3


async def test_an_issuer_that_is_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with issuing() as issuer, serving(tmp_path, guarded(issuer)) as ask:
        issuer.status = 500
        answer = await ask("GET /me", headers=bearer(issuer.token()))
        assert (answer.status, answer.headers["Retry-After"]) == (503, "30")
    assert any(f"the keys of {issuer.url} can't be had: {issuer.url}/keys answers 500" in record.message for record in caplog.records)


async def test_keys_in_a_file_and_claims_for_lambda_functions(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [public(RSA, "one", "RS256")]}))
    issuer = Issuer()
    issuer.url = "https://issuer.example"

    @on(http("GET /two"))
    def two(event, context):  # type: ignore[no-untyped-def]
        return event["requestContext"]["authorizer"]

    @on(http("GET /one", payload="1.0"))
    def one(event, context):  # type: ignore[no-untyped-def]
        return {"statusCode": 200, "body": json.dumps(event["requestContext"]["authorizer"])}

    toml = 'auth = {type = "jwt", issuer = "https://issuer.example", audience = "plant", jwks = "keys.json", scopes = ["a"]}\n'
    async with serving(tmp_path, two, one, toml=toml) as ask:
        token = issuer.token(exp=4102444800, scope="a b", groups=["x", "y"], admin=True)
        claims = {"iss": issuer.url, "aud": "plant", "sub": "ann", "exp": "4102444800", "scope": "a b", "groups": "[x y]", "admin": "true"}
        assert (await ask("GET /two", headers=bearer(token))).json == {"jwt": {"claims": claims, "scopes": ["a", "b"]}}
        assert (await ask("GET /one", headers=bearer(token))).json == {"claims": claims, "scopes": ["a", "b"]}


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"issuer": "plant", "audience": "a"}, "no URL that could tell its keys"),
        ({"issuer": "http://plant.example", "audience": "a"}, "could be anybody's on the way"),
        ({"issuer": "x", "audience": "a", "jwks": "http://plant.example/keys"}, "could be anybody's on the way"),
        ({"issuer": "https://plant.example", "audience": []}, "audience is empty"),
    ],
)
def test_tokens_that_could_not_be_trusted(given: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        jwt(**given)


# Authorizer functions

ASKED: list[Any] = []


@on()
def gate(event, context):  # type: ignore[no-untyped-def]
    ASKED.append(event)
    token = event["headers"].get("authorization", "")
    if token == "fail":
        raise RuntimeError("broken")
    if token == "unauthorized":
        raise Exception("Unauthorized")
    if token == "nonsense":
        return "yes"
    if token.startswith("policy "):
        effect = token.removeprefix("policy ")
        statement = {"Action": "execute-api:Invoke", "Effect": effect, "Resource": event["routeArn"].rpartition("/")[0] + "/*"}
        return {"principalId": "ann", "policyDocument": {"Version": "2012-10-17", "Statement": [statement]}, "context": {"n": 1}}
    return {"isAuthorized": token == "open sesame", "context": {"tenant": "north"}}


def behind(key: str, name: str, **options: Any) -> Callable[..., Any]:
    @on(http(key, auth=authorizer("gate", **options)))
    def handler(event, context):  # type: ignore[no-untyped-def]
        return event["requestContext"]["authorizer"]

    handler.__name__ = name
    return handler


async def test_an_authorizer_function_decides(tmp_path: Path) -> None:
    ASKED.clear()

    @on(http("GET /typed/{id}", auth=authorizer("gate")))
    async def typed(id: int, event: Event) -> Any:
        return event.attributes["authorizer"]["lambda"]["tenant"]

    async with serving(tmp_path, gate, typed, behind("GET /me", "me"), toml='[http.stage_variables]\nv = "1"\n') as ask:

        async def get(token: str, path: str = "/me") -> Any:
            return await ask(f"GET {path}", headers={"Authorization": token})

        assert (await get("open sesame")).json == {"lambda": {"tenant": "north"}}
        assert (await get("open sesame", "/typed/7?q=1")).body == b"north"
        statuses = {
            token: (await get(token)).status for token in ("shut", "fail", "unauthorized", "nonsense", "policy Allow", "policy Deny")
        }
        assert statuses == {"shut": 403, "fail": 500, "unauthorized": 401, "nonsense": 500, "policy Allow": 200, "policy Deny": 403}
        assert (await get("policy Allow")).json == {"lambda": {"n": 1}}
        before = len(ASKED)
        assert (await ask("GET /me")).status == 401  # nothing to go by: it isn't even asked
        assert len(ASKED) == before


async def test_what_it_is_asked(tmp_path: Path, cases: Path) -> None:
    ASKED.clear()
    lines = [json.loads(line) for line in (cases / "events" / "events.jsonl").read_text().splitlines()]
    (want,) = [line["event"] for line in lines if line["path"].endswith("/apiGatewayAuthorizerV2Event.json")]
    sources = ["$request.header.User", "$request.querystring.n"]
    toml = '[http.stage_variables]\nstageVariable1 = "value1"\nstageVariable2 = "value2"\n'
    async with serving(tmp_path, gate, behind("POST /merchants/{parameter1}", "me", identity=sources), toml=toml) as ask:
        headers = {"User": "user1", "Cookie": "cookie1; cookie2", "Authorization": "open sesame"}
        answer = await ask("POST /merchants/value1?n=123&parameter1=value1&parameter1=value2", b"body", headers)
        assert answer.status == 200
    (got,) = ASKED
    want["requestContext"].pop("authentication")  # mutual TLS is not spoken
    assert got.keys() == want.keys()
    assert got["requestContext"].keys() == want["requestContext"].keys()
    for field in ("version", "type", "identitySource", "cookies", "pathParameters", "stageVariables"):
        assert got[field] == want[field], field
    assert got["routeArn"] == "arn:aws:execute-api:local:000000000000:local/$default/POST/merchants/value1"


async def test_its_answer_counts_for_a_while(tmp_path: Path) -> None:
    ASKED.clear()
    clock = ManualClock()
    handlers = (gate, behind("GET /a", "a", ttl=60), behind("GET /b", "b", ttl=60), behind("GET /c", "c", ttl=0))
    async with at(clock, tmp_path, *handlers, toml="") as ask:

        async def get(path: str, token: str) -> int:
            return (await ask(f"GET {path}", headers={"Authorization": token})).status

        assert [await get("/a", "open sesame"), await get("/a", "open sesame"), await get("/b", "open sesame")] == [200] * 3
        assert len(ASKED) == 1
        assert await get("/a", "shut") == 403
        assert len(ASKED) == 2
        clock.advance(61)
        assert await get("/a", "open sesame") == 200
        assert len(ASKED) == 3
        assert [await get("/c", "open sesame"), await get("/c", "open sesame")] == [200] * 2
        assert len(ASKED) == 5
        assert await get("/a", "policy Deny") == 403
        assert await get("/b", "policy Deny") == 403


@pytest.mark.parametrize(
    ("statements", "allowed"),
    [
        ([("Allow", "execute-api:Invoke", "*")], True),
        ([("Allow", "execute-api:*", ["arn:aws:execute-api:*:*:local/$default/GET/a*"])], True),
        ([("Allow", "*", "*"), ("Deny", "execute-api:Invoke", "*/GET/a?c")], False),
        ([("Allow", "*", "*"), ("Deny", "execute-api:Invoke", "*/GET/x")], True),
        ([("Allow", "s3:GetObject", "*")], False),
        ([("Allow", "execute-api:Invoke", "*/POST/*")], False),
        ([], False),
    ],
)
def test_policies(statements: list[tuple[Any, Any, Any]], allowed: bool) -> None:
    policy = {"Statement": [{"Effect": effect, "Action": action, "Resource": resource} for effect, action, resource in statements]}
    found = verdict({"principalId": "ann", "policyDocument": policy})
    assert found.allows("arn:aws:execute-api:local:000000000000:local/$default/GET/abc") is allowed


async def test_an_authorizer_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EventRouterError, match=r"authorizer\('gate'\): no function has that name; mark one with @on"):
        async with serving(tmp_path, behind("GET /", "me")):
            pass


@pytest.mark.parametrize(("options", "fault"), [({"identity": ["$request.body"]}, "write \\$request.header"), ({"ttl": 4000}, "0 to 3600")])
def test_authorizers_that_can_not_be(options: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        authorizer("gate", **options)


async def test_the_document_tells_how_callers_say_who_they_are(tmp_path: Path) -> None:
    @on(http("GET /me", auth=jwt(issuer="https://issuer.example", audience="a", scopes=["read"])))
    async def me() -> None: ...

    async with serving(tmp_path, who, me, gate, open_, behind("GET /gate", "gated"), toml=KEYS) as ask:
        made = (await ask("GET /openapi.json")).json
    paths = made["paths"]
    asked = {"/who": "post", "/me": "get", "/gate": "get", "/open": "get"}
    security = [paths[path][method].get("security") for path, method in asked.items()]
    assert security == [[{"api-key": []}], [{"jwt": ["read"]}], [{"gate": []}], None]
    assert made["components"]["securitySchemes"]["gate"] == {"type": "apiKey", "in": "header", "name": "Authorization"}
