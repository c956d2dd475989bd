from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientConnectionError, ClientSession

from eventrouter import App, Event, on
from eventrouter.clock import Clock, ManualClock
from eventrouter.errors import ConfigError
from eventrouter.journal.protocol import LetterQuery
from eventrouter.operations import Operations
from eventrouter.plugins import Plugins, load_plugins
from eventrouter_webhook import WebhookTrigger, eventrouter_plugin, webhook
from eventrouter_webhook.signatures import sign
from served import Place, wait_for
from servers import program
from source_contract import Outside, SourceContract
from support import LOCAL, make_app, until

SECRET = "It's a Secret to Everybody"
TOML = f"""
[http]
port = 0
[webhook.github]
secrets = ["new", "{SECRET}"]
[webhook.stripe]
secrets = "whsec_test"
[webhook.slack]
secrets = ["slack"]
[webhook.acme]
provider = "standard"
secrets = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]
"""


def http_plugin() -> Any:
    return load_plugins().by_name["http"]


def app_of(folder: Path, *handlers: Callable[..., Any], toml: str = TOML, clock: Clock | None = None) -> App:
    return make_app(folder, *handlers, toml=toml, clock=clock, plugins=Plugins([LOCAL, http_plugin(), eventrouter_plugin()]))


def url_of(app: App) -> str:
    (line,) = app.sources["http"].lines()
    return line.removeprefix("http on ")


class Client:
    def __init__(self, session: ClientSession, app: App) -> None:
        self.session, self.app = session, app

    async def post(self, path: str, body: bytes, headers: Any = None) -> tuple[int, Any, Any]:
        async with self.session.post(url_of(self.app) + path, data=body, headers=headers) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if "json" in answer.content_type else text, answer.headers

    async def github(self, body: bytes, event: str = "push", id: str = "d-1", secret: str = SECRET, path: str = "") -> tuple[int, Any, Any]:
        headers = {"X-GitHub-Event": event, "X-GitHub-Delivery": id, "Content-Type": "application/json"}
        return await self.post(path or "/webhooks/github", body, {**headers, **sign("github", body, secret, now=0, id=id)})


@asynccontextmanager
async def serving(folder: Path, *handlers: Callable[..., Any], toml: str = TOML, clock: Clock | None = None) -> AsyncIterator[Client]:
    async with app_of(folder, *handlers, toml=toml, clock=clock) as app, ClientSession() as session:
        yield Client(session, app)


def openssl_sha512(text: bytes, key: str) -> str:
    command = [program("openssl", "openssl"), "dgst", "-sha512", "-hmac", key, "-binary"]
    return base64.b64encode(subprocess.run(command, input=text, capture_output=True, check=True).stdout).decode()


class GitHub(Outside):
    """A provider that signs, and knows by the answer whether it was taken."""

    source = "webhook"
    identified = True

    def plugins(self) -> Plugins:
        return Plugins([http_plugin(), eventrouter_plugin()])

    @property
    def toml(self) -> str:
        return TOML

    def trigger(self) -> WebhookTrigger:
        return webhook("github")

    async def put(self, app: App, n: int, body: bytes | None = None) -> bool:
        async with ClientSession() as session:
            try:
                status, _, headers = await Client(session, app).github(body or b'{"n": %d}' % n, id=f"d-{n}")
            except ClientConnectionError:
                return False
        assert status in (202, 503)
        assert (status == 503) == ("Retry-After" in headers)
        return status == 202


class TestWebhookIsASource(SourceContract):
    @pytest.fixture
    def outside(self) -> GitHub:
        return GitHub()


async def test_a_delivery_starts_what_wants_it(tmp_path: Path) -> None:
    got: list[Any] = []

    @on(webhook("github", events=["push", "pull_*"]))
    async def some(body: dict[str, Any], event: Event) -> None:
        got.append(("some", event.type, event.id, body))

    @on(webhook("github"))
    async def all(event: Event) -> None:
        got.append(("all", event.type))

    async with serving(tmp_path, some, all) as client:
        assert (await client.github(b'{"ref": "main"}'))[:2] == (202, {"id": "d-1"})
        await until(lambda: len(got) == 2)
        assert (await client.github(b'{"zen": "ping"}', event="ping", id="d-2"))[0] == 202
        assert (await client.github(b"{}", event="pull_request", id="d-3"))[0] == 202
        await until(lambda: len(got) == 5)
    assert ("some", "github.push", "d-1", {"ref": "main"}) in got
    assert ("some", "github.pull_request", "d-3", {}) in got
    assert sorted(kind for name, kind, *_ in got if name == "all") == ["github.ping", "github.pull_request", "github.push"]


async def test_githubs_actions_may_be_chosen(tmp_path: Path) -> None:
    got: list[str] = []

    @on(webhook("github", events=["push", "pull_request.opened", "issues.*"]))
    async def handler(event: Event) -> None:
        got.append(event.id)

    async with serving(tmp_path, handler) as client:
        for id, event, body in (
            ("1", "pull_request", b'{"action": "opened"}'),
            ("2", "pull_request", b'{"action": "closed"}'),
            ("3", "issues", b'{"action": "closed"}'),
            ("4", "push", b"{}"),
            ("5", "pushed", b"{}"),
        ):
            assert (await client.github(body, event=event, id=id))[0] == 202
        await until(lambda: len(got) == 3)
    assert sorted(got) == ["1", "3", "4"]
    assert client.app.engine.intake.unmatched == 2


async def test_where_looks_into_the_body(tmp_path: Path) -> None:
    got: list[str] = []

    @on(webhook("github"), where={"body": {"repository": {"name": [{"prefix": "lamp"}]}}, "headers": {"x-github-event": ["push"]}})
    async def handler(event: Event) -> None:
        got.append(event.id)

    async with serving(tmp_path, handler) as client:
        for id, name in (("1", "table"), ("2", "lamps")):
            assert (await client.github(b'{"repository": {"name": "%s"}}' % name.encode(), id=id))[0] == 202
        await until(lambda: got == ["2"])


async def test_a_delivery_runs_once_however_often_it_comes(tmp_path: Path) -> None:
    got: list[str] = []

    @on(webhook("github"))
    async def handler(event: Event) -> None:
        got.append(event.id)

    async with serving(tmp_path, handler) as client:
        for secret in (SECRET, "new", SECRET):
            assert (await client.github(b"{}", secret=secret))[0] == 202
        await client.github(b"{}", id="d-2")
        await until(lambda: "d-2" in got)
    assert got == ["d-1", "d-2"]


async def test_who_signs_wrongly_is_not_told_why_but_the_log_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    @on(webhook("github"))
    async def handler(event: Event) -> None: ...

    async with serving(tmp_path, handler) as client:
        answers = [await client.github(b"{}", secret="wrong"), await client.post("/webhooks/github", b"{}")]
        assert client.app.sources["webhook"].refused == 2  # type: ignore[attr-defined]
        assert client.app.engine.lanes["handler"].accepted == 0
    for status, body, headers in answers:
        assert (status, headers["Content-Type"]) == (401, "application/problem+json")
        assert body == {"type": "about:blank", "title": "Unauthorized", "status": 401, "detail": "the request is not signed as it must be"}
    said = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert said == ["webhook github: refused a request from 127.0.0.1: no signature of 1 fits any of 2 secrets"]
    assert SECRET not in caplog.text


async def test_what_refuses_is_told_again_with_how_much_was_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()

    @on(webhook("github"))
    async def handler(event: Event) -> None: ...

    async with serving(tmp_path, handler, clock=clock) as client:
        for _ in range(3):
            await client.github(b"{}", secret="wrong")
        clock.advance(2)
        await client.post("/webhooks/github", b"{}")
    assert [record.getMessage().partition("127.0.0.1: ")[2] for record in caplog.records if "refused" in record.getMessage()] == [
        "no signature of 1 fits any of 2 secrets",
        "there is no header X-Hub-Signature-256 (and 2 before it)",
    ]


async def test_what_is_signed_is_taken_whatever_it_holds(tmp_path: Path) -> None:
    got: list[Any] = []

    @on(webhook("github"))
    async def handler(body: bytes, event: Event) -> None:
        got.append((event.type, body))

    async with serving(tmp_path, handler) as client:
        docs = {"X-Hub-Signature-256": "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"}
        assert (await client.post("/webhooks/github", b"Hello, World!", docs))[0] == 202
        assert (await client.github(b"payload=%7B%7D"))[0] == 202
        await until(lambda: len(got) == 2)
        status, problem, _ = await client.github(b"{}", event="p" * 300)
        assert (status, problem["detail"]) == (400, "its type or its id is too long")
    assert sorted(got) == [("github.message", b"Hello, World!"), ("github.push", b"payload=%7B%7D")]


async def test_a_large_body_is_refused_and_other_methods_are_too(tmp_path: Path) -> None:
    @on(webhook("github"))
    async def handler(event: Event) -> None: ...

    async with serving(tmp_path, handler, toml=TOML.replace("port = 0", "port = 0\nbody_limit = 100")) as client:
        assert (await client.github(b'"%s"' % (b"x" * 200)))[0] == 413
        async with client.session.get(url_of(client.app) + "/webhooks/github") as answer:
            assert answer.status == 405


async def test_stripe(tmp_path: Path) -> None:
    got: list[Any] = []

    @on(webhook("stripe", "/pay/{tenant}", events=["invoice.*"]))
    async def handler(body: dict[str, Any], event: Event, tenant: str) -> None:
        got.append((tenant, event.type, event.id, body["data"]))

    clock = ManualClock()
    async with serving(tmp_path, handler, clock=clock) as client:
        body = b'{"id": "evt_1", "type": "invoice.paid", "data": 7}'
        headers = sign("stripe", body, "whsec_test", now=clock.time(), id="")
        assert (await client.post("/pay/lamps", body, headers))[:2] == (202, {"id": "evt_1"})
        await until(lambda: got)
        other = b'{"id": "evt_2", "type": "customer.created"}'
        assert (await client.post("/pay/lamps", other, sign("stripe", other, "whsec_test", now=clock.time(), id="")))[0] == 202
        assert (await client.post("/pay/a%2Fb", body, headers))[0] == 404
        clock.set(301)
        assert (await client.post("/pay/lamps", body, headers))[0] == 401
    assert got == [("lamps", "stripe.invoice.paid", "evt_1", 7)]
    assert client.app.engine.intake.unmatched == 1


async def test_a_tolerance_of_none_takes_any_time(tmp_path: Path) -> None:
    @on(webhook("stripe"))
    async def handler(event: Event) -> None: ...

    toml = '[http]\nport = 0\n[webhook.stripe]\nsecrets = "whsec_test"\ntolerance = 0\n'
    async with serving(tmp_path, handler, toml=toml) as client:
        body = b'{"id": "evt_1"}'
        assert (await client.post("/webhooks/stripe", body, sign("stripe", body, "whsec_test", now=12_345, id="")))[0] == 202


async def test_slack_gets_its_challenge_and_an_empty_200(tmp_path: Path) -> None:
    got: list[Any] = []

    @on(webhook("slack"))
    async def handler(body: bytes, event: Event) -> None:
        got.append((event.type, event.id))

    clock = ManualClock()
    async with serving(tmp_path, handler, clock=clock) as client:

        async def send(body: bytes, kind: str = "application/json", secret: str = "slack") -> tuple[int, Any]:
            headers = sign("slack", body, secret, now=clock.time(), id="")
            return (await client.post("/webhooks/slack", body, {**headers, "Content-Type": kind}))[:2]

        challenge = b'{"type": "url_verification", "challenge": "3eZbrw1aB", "token": "x"}'
        assert await send(challenge) == (200, "3eZbrw1aB")
        assert (await send(challenge, secret="wrong"))[0] == 401
        for _ in range(2):
            assert await send(b'{"type": "event_callback", "event_id": "Ev1", "event": {"type": "app_mention"}}') == (200, "")
        form = "application/x-www-form-urlencoded"
        for _ in range(2):
            assert await send(b"command=%2Fweather&text=94070", form) == (200, "")
        assert await send(b"payload=%7B%22type%22%3A%22block_actions%22%7D", form) == (200, "")
        assert await send(b"payload=x", form) == (200, "")
        await until(lambda: len(got) == 4)
    assert ("slack.app_mention", "Ev1") in got
    assert {kind for kind, _ in got} == {"slack.app_mention", "slack.command", "slack.block_actions", "slack.message"}


async def test_webhooks_of_one_kind_are_kept_apart(tmp_path: Path) -> None:
    got: list[Any] = []

    @on(webhook("acme", events=["user.created"]))
    @on(webhook("beta"))
    async def handler(event: Event) -> None:
        got.append((event.type, event.id))

    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    toml = TOML + f'[webhook.beta]\nprovider = "standard"\nsecrets = "{secret}"\n'
    clock = ManualClock()
    async with serving(tmp_path, handler, toml=toml, clock=clock) as client:
        body = b'{"type": "user.created"}'
        headers = sign("standard", body, secret, now=clock.time(), id="msg_1")
        assert (await client.post("/webhooks/acme", body, headers))[:2] == (202, {"id": "acme/msg_1"})
        assert (await client.post("/webhooks/beta", body, headers))[:2] == (202, {"id": "beta/msg_1"})
        await until(lambda: len(got) == 2)
    assert sorted(got) == [("acme.user.created", "acme/msg_1"), ("beta.user.created", "beta/msg_1")]


async def test_any_other_hmac_by_configuration(tmp_path: Path) -> None:
    got: list[Any] = []

    @on(webhook("shop", events=["orders/*"]))
    async def handler(event: Event) -> None:
        got.append((event.type, event.id))

    toml = """
    [http]
    port = 0
    [webhook.shop]
    provider = "hmac"
    secrets = ["hush"]
    header = "X-Shop-Hmac"
    algorithm = "sha512"
    encoding = "base64"
    timestamp_header = "X-Shop-Time"
    template = "{timestamp}|{body}"
    type = "X-Shop-Topic"
    id = "$.order.id"
    """
    clock = ManualClock()
    async with serving(tmp_path, handler, toml=toml, clock=clock) as client:
        now, body = str(int(clock.time())), b'{"order": {"id": 7}}'
        encoded = openssl_sha512(f"{now}|".encode() + body, "hush")
        headers = {"X-Shop-Hmac": encoded, "X-Shop-Time": now, "X-Shop-Topic": "orders/paid"}
        assert (await client.post("/webhooks/shop", body, headers))[:2] == (202, {"id": "shop/7"})
        assert (await client.post("/webhooks/shop", body, {**headers, "X-Shop-Time": str(int(now) + 1)}))[0] == 401
        await until(lambda: got)
    assert got == [("shop.orders/paid", "shop/7")]


async def test_a_verify_token_answers_how_meta_sets_up(tmp_path: Path) -> None:
    @on(webhook("meta"))
    async def handler(event: Event) -> None: ...

    toml = '[http]\nport = 0\n[webhook.meta]\nprovider = "hmac"\nsecrets = ["s"]\nheader = "X-Hub-Signature-256"\nverify_token = "tök"\n'
    async with serving(tmp_path, handler, toml=toml) as client:

        async def get(**query: str) -> tuple[int, str]:
            asked = {key.replace("_", ".", 1): value for key, value in query.items()}
            async with client.session.get(url_of(client.app) + "/webhooks/meta", params=asked) as answer:
                return answer.status, await answer.text()

        assert await get(hub_mode="subscribe", hub_verify_token="tök", hub_challenge="<b>1") == (200, "<b>1")
        assert (await get(hub_mode="subscribe", hub_verify_token="tok", hub_challenge="1"))[0] == 403
        assert (await get(hub_mode="subscribe", hub_challenge="1"))[0] == 403
        assert (await get(hub_verify_token="tök", hub_challenge="1"))[0] == 403


async def test_an_unmodified_lambda_function_checks_and_reads_the_request(tmp_path: Path) -> None:
    got: list[Any] = []

    @on(webhook("github", "/hooks/{org}"))
    def handler(event, context):  # type: ignore[no-untyped-def]
        raw = event["body"].encode()
        signature = "sha256=" + hmac.new(SECRET.encode(), raw, hashlib.sha256).hexdigest()
        assert hmac.compare_digest(signature, event["headers"]["x-hub-signature-256"])
        got.append(event)
        return {"statusCode": 200}

    async with serving(tmp_path, handler) as client:
        body = b'{"ref":  "refs/heads/main"}'
        assert (await client.github(body, path="/hooks/octo?a=1&a=2"))[0] == 202
        await until(lambda: got)
    made = got[0]
    assert (made["version"], made["routeKey"], made["rawPath"], made["rawQueryString"]) == (
        "2.0",
        "POST /hooks/{org}",
        "/hooks/octo",
        "a=1&a=2",
    )
    assert (made["body"], made["isBase64Encoded"]) == (body.decode(), False)
    assert made["pathParameters"] == {"org": "octo"}
    assert made["queryStringParameters"] == {"a": "1,2"}
    assert made["headers"]["x-github-event"] == "push"
    assert made["requestContext"]["requestId"] == "d-1"
    assert made["requestContext"]["http"]["method"] == "POST"
    assert made["requestContext"]["domainName"] == "127.0.0.1"


async def test_what_does_not_fit_the_handler_is_a_letter_and_not_the_providers_fault(tmp_path: Path) -> None:
    @on(webhook("github"))
    async def handler(body: dict[str, int]) -> None: ...

    async with serving(tmp_path, handler) as client:
        assert (await client.github(b'{"n": "x"}'))[0] == 202
        await until(lambda: client.app.engine.lanes["handler"].dead == 1)
        (letter,) = await client.app.journal.dead(LetterQuery())
    assert letter.error_type == "InvalidPayload"


async def test_headers_that_are_no_text_do_no_harm(tmp_path: Path) -> None:
    got: list[str] = []

    @on(webhook("github"))
    async def handler(event: Event) -> None:
        got.append(event.id)

    async with serving(tmp_path, handler) as client:
        host, port = url_of(client.app).removeprefix("http://").split(":")
        signature = sign("github", b"{}", SECRET, now=0, id="")["X-Hub-Signature-256"].encode()
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /webhooks/github HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\nX-GitHub-Event: push\r\n"
            b"X-GitHub-Delivery: d\xff1\r\nX-Hub-Signature-256: " + signature + b"\r\n\r\n{}"
        )
        assert b" 202 " in await reader.readline()
        writer.close()
        await until(lambda: got)
    assert got == ["d\ufffd1"]


@pytest.mark.parametrize(
    ("name", "toml", "fault"),
    [
        ("github", "", r"\[webhook.github\] has no secret: .*EVENTROUTER_WEBHOOK__GITHUB__SECRETS.*unsigned = true.*'handler'"),
        ("gihub", "[webhook.github]\nsecrets = 's'", r"\[webhook.gihub\] provider: 'gihub' is none; .*did you mean 'github'"),
        ("github", "[webhook.github]\nsecret = 's'", r"\[webhook.github\] unknown key 'secret'; did you mean 'secrets'"),
        ("github", "[webhook.github]\nsecrets = ['']", r"\[webhook.github\] secrets: number 1: the secret is empty"),
        ("github", "[webhook.github]\nsecrets = ['a']\nunsigned = true", "don't go together"),
        ("github", "[webhook.github]\nsecrets = ['a']\nheader = 'x'", r"github has its own"),
        ("github", "[webhook.github]\nsecrets = ['a']\ntolerance = -1", r"\[webhook.github\] tolerance: expected float >= 0"),
        ("github", "[webhook.github]\nsecrets = ['a']\nverify_token = ''", "it is empty"),
        ("github", "[webhook]\ngithub = 'x'", r"\[webhook\]"),
        ("acme", "[webhook.acme]\nprovider = 'svix'", r"\[webhook.acme\] provider: invalid enum value"),
        ("standard", "[webhook.standard]\nsecrets = ['whsec_']", "number 1: the secret is empty"),
        ("standard", "[webhook.standard]\nsecrets = ['ok==', 'whsec_!?']", "number 2: a secret of Standard Webhooks is base64"),
        ("hmac", "[webhook.hmac]\nsecrets = ['a']", "which one has the signature"),
        ("hmac", "[webhook.hmac]\nsecrets = ['a']\nheader = 'x'\nalgorithm = 'md5'", r"\[webhook.hmac\] algorithm"),
        ("hmac", "[webhook.hmac]\nsecrets = ['a']\nheader = 'x'\ntemplate = '{timestamp}.{body}'", "go together"),
        ("hmac", "[webhook.hmac]\nsecrets = ['a']\nheader = 'x'\ntimestamp_header = 't'\ntemplate = '{body}'", "go together"),
        ("hmac", "[webhook.hmac]\nsecrets = ['a']\nheader = 'x'\ntemplate = 'x'", r"must have \{body\} once"),
        ("hmac", "[webhook.hmac]\nsecrets = ['a']\nheader = 'x'\ntemplate = '{id}{body}'", r"name it: id ="),
        ("hmac", "[webhook.hmac]\nsecrets = ['a']\nheader = 'x'\nid = '$.['", "JSON path"),
    ],
)
def test_a_wrong_configuration_is_named_at_load(tmp_path: Path, name: str, toml: str, fault: str) -> None:
    @on(webhook(name))
    async def handler(event: Event) -> None: ...

    with pytest.raises(ConfigError, match=fault):
        app_of(tmp_path, handler, toml=toml)


def test_wrong_triggers_are_named_at_load(tmp_path: Path) -> None:
    for make, fault in (
        (lambda: webhook("polls"), r"webhook\('polls'\)"),
        (lambda: webhook("a b"), "letters, digits"),
        (lambda: webhook("github", "hooks"), "must start with '/'"),
        (lambda: webhook("github", events="push"), 'events=\\["push"\\]'),
    ):
        with pytest.raises(ConfigError, match=fault):
            make()

    @on(webhook("github", "/hooks/{a}"))
    @on(webhook("stripe", "/hooks/{b}"))
    async def handler(event: Event) -> None: ...

    with pytest.raises(ConfigError, match="'github' and 'stripe' both are at /hooks/{b}"):
        app_of(tmp_path, handler)


async def test_unsigned_takes_what_anyone_sends_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    got: list[str] = []

    @on(webhook("open"))
    async def handler(text: str) -> None:
        got.append(text)

    async with serving(tmp_path, handler, toml='[http]\nport = 0\n[webhook.open]\nprovider = "hmac"\nunsigned = true\n') as client:
        assert (await client.post("/webhooks/open", b"hello"))[0] == 202
        await until(lambda: got == ["hello"])
    assert "webhook open is unsigned: anyone who reaches /webhooks/open starts it" in caplog.text


async def test_send_signs_as_the_provider_does(tmp_path: Path) -> None:
    got: list[Any] = []

    @on(webhook("github"))
    @on(webhook("stripe", "/pay/{tenant}"))
    @on(webhook("slack"))
    @on(webhook("acme"))
    async def handler(event: Event) -> None:
        got.append((event.type, event.subject))

    async with app_of(tmp_path, handler) as app:

        async def send(*words: str, **options: list[str]) -> Any:
            return await Operations(app).send("webhook", list(words), options, str(tmp_path))

        assert await send("github", "{}", event=["issues"], id=["d-9"]) == {"status": 202, "body": {"id": "d-9"}}
        assert (await send("stripe", "{}", event=["invoice.paid"], path=["/pay/acme"]))["status"] == 202
        assert (await send("slack", '{"text": "hi"}', event=["app_mention"]))["status"] == 200
        assert (await send("acme", "{}", event=["user.created"]))["status"] == 202
        await until(lambda: len(got) == 4)
        with pytest.raises(ConfigError, match="say which path with --path"):
            await send("stripe", "{}")
        with pytest.raises(ConfigError, match="did you mean 'github'"):
            await send("gihub", "{}")
    assert sorted(got) == [
        ("acme.user.created", "/webhooks/acme"),
        ("github.issues", "/webhooks/github"),
        ("slack.app_mention", "/webhooks/slack"),
        ("stripe.invoice.paid", "/pay/acme"),
    ]


def test_curl_from_outside_with_the_secret_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "app.py").write_text(
        "from eventrouter import on\nfrom eventrouter_webhook import webhook\n\n"
        '@on(webhook("github"))\nasync def deploy(push: dict) -> None:\n    print("deploying", push["ref"], flush=True)\n'
    )
    (tmp_path / "eventrouter.toml").write_text("[http]\nport = 0\n")
    monkeypatch.setenv("EVENTROUTER_WEBHOOK__GITHUB__SECRETS", '["hush", "old"]')
    body = '{"ref": "main"}'
    command = [program("openssl", "openssl"), "dgst", "-sha256", "-hmac", "hush", "-r"]
    signature = subprocess.run(command, input=body, capture_output=True, text=True, check=True).stdout.split()[0]
    with Place(tmp_path) as place:
        place.serve()
        assert "webhook github at /webhooks/github" in place.output
        headers = ["-H", "X-GitHub-Event: push", "-H", "X-GitHub-Delivery: d-1", "-H", f"X-Hub-Signature-256: sha256={signature}"]
        assert json.loads(place.curl("/webhooks/github", *headers, "-d", body)) == {"id": "d-1"}
        place.says("deploying main")
        assert "202" in place.run("send", "webhook", "github", '{"ref": "next"}')
        place.says("deploying next")
        assert "hush" not in place.output
    sample = json.loads(place.run("sample", "webhook", "github", "--event", "issues"))
    assert (sample["version"], sample["headers"]["x-github-event"]) == ("2.0", "issues")
    assert json.loads(place.run("sample", "poll"))["detail-type"] == "Poll Item"
    assert "none of github" in place.run("sample", "webhook", "nope", code=2)


@pytest.mark.parametrize("point", ["accept.before", "receipt.before", "ack.before"])
def test_a_router_that_dies_before_it_answers_gets_it_again_and_runs_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    (tmp_path / "app.py").write_text(
        "import asyncio, os\nfrom pathlib import Path\nfrom eventrouter import Event, on\nfrom eventrouter_webhook import webhook\n\n"
        '@on(webhook("github"), timeout=60)\nasync def note(event: Event) -> None:\n'
        '    if "EVENTROUTER_CRASH_AT" in os.environ:\n        await asyncio.sleep(60)\n    with Path("got.txt").open("a") as file:\n'
        '        file.write(event.id + "\\n")\n'
    )
    (tmp_path / "eventrouter.toml").write_text(TOML)
    signature = sign("github", b"{}", SECRET, now=0, id="")["X-Hub-Signature-256"]

    def post(place: Place, id: str) -> str:
        headers = ["-H", "X-GitHub-Event: push", "-H", f"X-GitHub-Delivery: {id}", "-H", f"X-Hub-Signature-256: {signature}"]
        return place.curl("/webhooks/github", "-w", "%{http_code}", "-o", "/dev/null", *headers, "-d", "{}", check=False)

    with Place(tmp_path) as place:
        monkeypatch.setenv("EVENTROUTER_CRASH_AT", point)
        place.serve()
        assert post(place, "d-1") == "000"
        assert place.router is not None
        assert place.router.wait(20) == 86
        monkeypatch.delenv("EVENTROUTER_CRASH_AT")
        place.serve()
        assert post(place, "d-1") == post(place, "d-1") == post(place, "d-2") == "202"
        wait_for(lambda: "d-2" in (tmp_path / "got.txt").read_text() if (tmp_path / "got.txt").exists() else False)
    assert sorted((tmp_path / "got.txt").read_text().split()) == ["d-1", "d-2"]
