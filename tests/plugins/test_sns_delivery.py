"""Subscriptions of HTTP endpoints and queues, with an endpoint that verifies what it gets as those of SNS do."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from aiohttp import ClientSession, web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

import eventrouter_http
import eventrouter_sns
import eventrouter_sqs
from eventrouter import App, fixed, on
from eventrouter.clock import ManualClock
from eventrouter.errors import ConfigError
from eventrouter.journal.protocol import LetterQuery
from eventrouter.operations import Operations
from eventrouter.plugins import Plugins
from eventrouter_sns.settings import RetryConfig
from eventrouter_sns.source import SnsSource
from eventrouter_sqs import sqs
from support import LOCAL, local, make_app, until

PLUGINS = [LOCAL, eventrouter_http.eventrouter_plugin(), eventrouter_sns.eventrouter_plugin(), eventrouter_sqs.eventrouter_plugin()]
ARN = "arn:aws:sns:local:000000000000:alerts"


class Endpoint:
    """Keeps what is POSTed to it. statuses: of its next answers; then 200. confirms: it visits the SubscribeURL. hangs: until released."""

    def __init__(self) -> None:
        self.url = ""
        self.got: list[tuple[dict[str, str], str]] = []
        self.statuses: list[int] = []
        self.confirms = False
        self.hangs = False
        self.release = asyncio.Event()
        self._session = ClientSession()

    @property
    def messages(self) -> list[Any]:
        return [json.loads(body) for headers, body in self.got if headers["x-amz-sns-message-type"] == "Notification"]

    @property
    def kinds(self) -> list[str]:
        return [headers["x-amz-sns-message-type"] for headers, _ in self.got]

    async def answer(self, request: web.Request) -> web.Response:
        self.got.append((dict(request.headers), await request.text()))
        if self.confirms and self.kinds[-1] == "SubscriptionConfirmation":
            await self.visit(json.loads(self.got[-1][1])["SubscribeURL"])
        if self.hangs:
            await self.release.wait()
        status = self.statuses.pop(0) if self.statuses else 200
        return web.Response(status=status, headers={"Location": "/elsewhere"} if status == 301 else None)

    async def visit(self, url: str) -> tuple[int, str]:
        async with self._session.get(url) as answer:
            return answer.status, await answer.text()

    async def verify(self, message: dict[str, str]) -> None:
        """As the documentation of SNS tells, by the certificate that the message names. Raises InvalidSignature."""
        status, pem = await self.visit(message["SigningCertURL"])
        assert status == 200
        key = x509.load_pem_x509_certificate(pem.encode()).public_key()
        assert isinstance(key, rsa.RSAPublicKey)
        if message["Type"] == "Notification":
            names = ["Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"]
        else:
            names = ["Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"]
        text = "".join(f"{name}\n{message[name]}\n" for name in names if name in message)
        hash = {"1": hashes.SHA1(), "2": hashes.SHA256()}[message["SignatureVersion"]]
        key.verify(base64.b64decode(message["Signature"]), text.encode(), padding.PKCS1v15(), hash)

    async def close(self) -> None:
        await self._session.close()


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    made = Endpoint()
    application = web.Application()
    application.router.add_post("/{path:.*}", made.answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    yield made
    await runner.cleanup()
    await made.close()


def subscribed(endpoint: str, more: str = "", topic: str = "alerts", sns: str = "") -> str:
    return f'[http]\nport = 0\n[sns]\n{sns}\n[[sns.subscriptions]]\ntopic = "{topic}"\nendpoint = "{endpoint}"\n{more}\n'


@on(local("nothing"))
async def nothing() -> None: ...


@asynccontextmanager
async def serving(folder: Path, toml: str, *handlers: Any, clock: Any = None) -> AsyncIterator[App]:
    async with make_app(folder, *(handlers or (nothing,)), toml=toml, plugins=Plugins(PLUGINS), clock=clock) as app:
        await until(lambda: app.supervisor is not None and app.supervisor.health().ready)
        yield app


def source(app: App) -> SnsSource:
    found = app.sources["sns"]
    assert isinstance(found, SnsSource)
    return found


async def publish(app: App, message: str = "hot", topic: str = "alerts", **more: Any) -> str:
    return await source(app).publish(topic, message.encode(), **more)


async def letters(app: App) -> list[Any]:
    return await app.journal.dead(LetterQuery())


async def idle(app: App, done: int) -> None:
    """So many messages were handed over, or were not for their subscriber."""
    await until(lambda: sum(lane.succeeded for lane in app.engine.lanes.values()) == done)


@pytest.mark.parametrize("version", [1, 2])
async def test_an_endpoint_gets_a_signed_notification(tmp_path: Path, endpoint: Endpoint, version: int) -> None:
    async with serving(tmp_path, subscribed(endpoint.url, "confirmed = true", sns=f"signature_version = {version}")) as app:
        id = await publish(app, 'too "hot"\nby far: ü', subject="Oven", attributes={"n": 3, "s": "x", "b": b"\0"})
        await until(lambda: endpoint.got)
        ((headers, body),) = endpoint.got
        message = json.loads(body)
        await endpoint.verify(message)
        with pytest.raises(Exception, match="^$"):  # InvalidSignature has no text
            await endpoint.verify({**message, "Message": "another"})
    assert list(message) == [
        "Type", "MessageId", "TopicArn", "Subject", "Message", "Timestamp",
        "SignatureVersion", "Signature", "SigningCertURL", "UnsubscribeURL", "MessageAttributes",
    ]  # fmt: skip
    assert message["Type"] == "Notification"
    assert (message["MessageId"], message["TopicArn"], message["Subject"], message["Message"]) == (id, ARN, "Oven", 'too "hot"\nby far: ü')
    assert message["SignatureVersion"] == str(version)
    assert message["MessageAttributes"] == {
        "n": {"Type": "Number", "Value": "3"},
        "s": {"Type": "String", "Value": "x"},
        "b": {"Type": "Binary", "Value": "AA=="},
    }
    assert headers["User-Agent"] == "Amazon Simple Notification Service Agent"
    assert headers["Content-Type"] == "text/plain; charset=UTF-8"
    assert headers["x-amz-sns-message-type"] == "Notification"
    assert headers["x-amz-sns-message-id"] == id
    assert headers["x-amz-sns-topic-arn"] == ARN
    assert headers["x-amz-sns-subscription-arn"].startswith(f"{ARN}:")
    assert "x-amz-sns-rawdelivery" not in headers


async def test_what_a_message_has_not_is_not_in_its_notification(tmp_path: Path, endpoint: Endpoint) -> None:
    async with serving(tmp_path, subscribed(endpoint.url, "confirmed = true")) as app:
        await publish(app)
        await until(lambda: endpoint.got)
        (message,) = endpoint.messages
        await endpoint.verify(message)
    assert not {"Subject", "MessageAttributes", "SequenceNumber"} & message.keys()


async def test_raw_delivery_is_the_message_alone(tmp_path: Path, endpoint: Endpoint) -> None:
    async with serving(tmp_path, subscribed(endpoint.url, "confirmed = true\nraw = true")) as app:
        await publish(app, '{"celsius": 91}')
        await until(lambda: endpoint.got)
    ((headers, body),) = endpoint.got
    assert body == '{"celsius": 91}'
    assert headers["x-amz-sns-rawdelivery"] == "true"


async def test_nothing_is_delivered_until_the_endpoint_has_confirmed(tmp_path: Path, endpoint: Endpoint) -> None:
    async with serving(tmp_path, subscribed(endpoint.url)) as app:
        await until(lambda: endpoint.got)
        ((headers, body),) = endpoint.got
        asked = json.loads(body)
        assert headers["x-amz-sns-message-type"] == asked["Type"] == "SubscriptionConfirmation"
        assert "x-amz-sns-subscription-arn" not in headers
        assert asked.keys() == {
            "Type", "MessageId", "Token", "TopicArn", "Message", "SubscribeURL", "Timestamp",
            "SignatureVersion", "Signature", "SigningCertURL",
        }  # fmt: skip
        await endpoint.verify(asked)
        await publish(app, "too early")
        await idle(app, 1)
        assert source(app).lines()
        wrong = await endpoint.visit(asked["SubscribeURL"][:-1] + ("0" if asked["SubscribeURL"][-1] != "0" else "1"))
        assert wrong[0] == 400
        assert "Invalid parameter: Token" in wrong[1]
        status, text = await endpoint.visit(asked["SubscribeURL"])
        assert status == 200
        (arn,) = ElementTree.fromstring(text).iter("{http://sns.amazonaws.com/doc/2010-03-31/}SubscriptionArn")
        assert str(arn.text).startswith(f"{ARN}:")
        assert (await endpoint.visit(asked["SubscribeURL"]))[0] == 200
        await publish(app, "in time")
        await until(lambda: endpoint.messages)
        assert source(app).lines() == []
    async with serving(tmp_path, subscribed(endpoint.url)) as app:  # it is known after a restart
        await publish(app, "later")
        await until(lambda: len(endpoint.messages) == 2)
    assert [message["Message"] for message in endpoint.messages] == ["in time", "later"]
    assert endpoint.kinds.count("SubscriptionConfirmation") == 1


async def test_an_endpoint_that_is_not_there_is_asked_again(tmp_path: Path, endpoint: Endpoint) -> None:
    endpoint.statuses = [503, 404]
    clock = ManualClock()
    async with serving(tmp_path, subscribed(endpoint.url), clock=clock) as app:
        await until(lambda: len(endpoint.got) == 1)
        for times in (2, 3):  # when it has come to wait is not to be seen from outside
            endpoint.confirms = times == 3
            await until(lambda n=times: clock.advance(20) or len(endpoint.got) >= n)
        await until(lambda: not source(app).lines())
    assert endpoint.kinds == ["SubscriptionConfirmation"] * 3


async def test_a_token_is_not_good_for_ever(tmp_path: Path, endpoint: Endpoint) -> None:
    clock = ManualClock()
    async with serving(tmp_path, subscribed(endpoint.url), clock=clock):
        await until(lambda: endpoint.got)
        url = json.loads(endpoint.got[0][1])["SubscribeURL"]
        clock.advance(2 * 86400 + 1)
        assert (await endpoint.visit(url))[0] == 400
    async with serving(tmp_path, subscribed(endpoint.url), clock=clock):
        await until(lambda: len(endpoint.got) == 2)
        again = json.loads(endpoint.got[1][1])["SubscribeURL"]
        assert again.partition("Token=")[2] != url.partition("Token=")[2]
        assert (await endpoint.visit(again))[0] == 200


async def test_unsubscribing_ends_delivery_and_can_be_taken_back(tmp_path: Path, endpoint: Endpoint) -> None:
    endpoint.confirms = True
    async with serving(tmp_path, subscribed(endpoint.url)) as app:
        await until(lambda: not list(source(app)._standings.in_state("pending")))
        await publish(app, "first")
        await until(lambda: endpoint.messages)
        status, text = await endpoint.visit(endpoint.messages[0]["UnsubscribeURL"])
        assert status == 200
        assert "UnsubscribeResponse" in text
        await until(lambda: endpoint.kinds[-1] == "UnsubscribeConfirmation")
        left = json.loads(endpoint.got[-1][1])
        await endpoint.verify(left)
    async with serving(tmp_path, subscribed(endpoint.url, "confirmed = true")) as app:  # the endpoint's word holds
        await publish(app, "second")
        await idle(app, 1)
        url = left["SubscribeURL"].partition("/eventrouter")[2]
        await endpoint.visit(f"{source(app).base}/eventrouter{url}")
        await publish(app, "third")
        await until(lambda: len(endpoint.messages) == 2)
    assert [message["Message"] for message in endpoint.messages] == ["first", "third"]
    async with serving(tmp_path, "[http]\nport = 0\n"):  # taken out of the config, it is forgotten
        pass
    async with serving(tmp_path, subscribed(endpoint.url)):
        await until(lambda: endpoint.kinds[-1] == "SubscriptionConfirmation")


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("", 400),
        ("Action=Publish", 400),
        ("Action=ConfirmSubscription", 400),
        ("Action=ConfirmSubscription&Token=&TopicArn=" + ARN, 400),
        ("Action=Unsubscribe", 404),
        ("Action=Unsubscribe&SubscriptionArn=%C3%BC", 404),
    ],
)
async def test_links_that_nobody_was_given(tmp_path: Path, endpoint: Endpoint, query: str, status: int) -> None:
    async with serving(tmp_path, subscribed(endpoint.url, "confirmed = true")) as app:
        got, text = await endpoint.visit(f"{source(app).base}/eventrouter/sns?{query}")
        assert got == status
        assert ElementTree.fromstring(text).tag.endswith("ErrorResponse")
        assert (await endpoint.visit(f"{source(app).base}/eventrouter/sns/signing.pem"))[0] == 404


async def test_failures_are_retried_by_the_policy_and_end_in_dead_letters(tmp_path: Path, endpoint: Endpoint) -> None:
    endpoint.statuses = [503, 500, 429, 599]
    clock = ManualClock()
    copies: list[Any] = []

    @on(sqs("undelivered"))
    async def undelivered(body: Any) -> None:
        copies.append(body)

    toml = subscribed(endpoint.url, 'confirmed = true\ndlq = "sqs:undelivered"')
    async with serving(tmp_path, toml, undelivered, clock=clock) as app:
        id = await publish(app)
        name = f"sns alerts to {endpoint.url}"
        for attempt in range(1, 4):
            await until(lambda n=attempt: len(endpoint.got) == n)
            await until(lambda: app.engine.lanes[name].failed == attempt)  # noqa: B023 - awaited at once
            clock.advance(19)
            assert len(endpoint.got) == attempt
            clock.advance(1)
        await until(lambda: app.engine.lanes[name].dead == 1)
        (letter,) = await letters(app)
        await until(lambda: copies)
    assert (letter.function, letter.reason, letter.attempts) == (name, "RetriesExhausted", 4)
    assert "answered 599" in letter.error_message
    (body,) = copies
    assert (body["Type"], body["MessageId"], body["Message"]) == ("Notification", id, "hot")
    assert len(endpoint.got) == 4


@pytest.mark.parametrize("status", [400, 404, 410, 301])
async def test_a_client_error_is_not_retried(tmp_path: Path, endpoint: Endpoint, status: int) -> None:
    endpoint.statuses = [status]
    async with serving(tmp_path, subscribed(endpoint.url, "confirmed = true")) as app:
        await publish(app)
        await until(lambda: sum(lane.dead for lane in app.engine.lanes.values()) == 1)
        (letter,) = await letters(app)
    assert (letter.reason, letter.attempts) == ("Rejected", 1)
    assert str(status) in letter.error_message
    assert len(endpoint.got) == 1


async def test_immediate_retries_come_at_once(tmp_path: Path, endpoint: Endpoint) -> None:
    endpoint.statuses = [500, 500]
    toml = subscribed(endpoint.url, "confirmed = true\nretry = { retries = 2, immediate = 2 }")
    async with serving(tmp_path, toml, clock=ManualClock()) as app:
        await publish(app)
        await idle(app, 1)
    assert len(endpoint.got) == 3


async def test_an_endpoint_that_does_not_listen_is_retried_without_telling_secrets(tmp_path: Path, endpoint: Endpoint) -> None:
    host = endpoint.url.removeprefix("http://").partition(":")[0]
    url = f"http://user:s3cret@{host}:1/hook?key=s3cret"
    toml = subscribed(url, "confirmed = true\nretry = { retries = 1, immediate = 1 }")
    async with serving(tmp_path, toml) as app:
        await publish(app)
        await until(lambda: sum(lane.dead for lane in app.engine.lanes.values()) == 1)
        (letter,) = await letters(app)
    assert (letter.reason, letter.attempts) == ("RetriesExhausted", 2)
    assert "s3cret" not in letter.function + letter.error_message


async def test_credentials_of_the_url_are_sent(tmp_path: Path, endpoint: Endpoint) -> None:
    url = endpoint.url.replace("http://", "http://user:s3cret@")
    async with serving(tmp_path, subscribed(url, "confirmed = true")) as app:
        await publish(app)
        await until(lambda: endpoint.got)
    assert endpoint.got[0][0]["Authorization"] == "Basic " + base64.b64encode(b"user:s3cret").decode()


async def test_what_was_accepted_is_delivered_after_a_restart(tmp_path: Path, endpoint: Endpoint) -> None:
    endpoint.statuses = [503]
    toml = subscribed(endpoint.url, 'confirmed = true\nretry = { retries = 2, min_delay = 1, max_delay = 1 }\nfilter = { kind = ["x"] }')
    async with serving(tmp_path, toml) as app:
        await publish(app, attributes={"kind": "x"})
        await publish(app, attributes={"kind": "y"})
        await until(lambda: endpoint.got)
    async with serving(tmp_path, toml) as app:
        await until(lambda: len(endpoint.got) == 2)
    assert endpoint.messages[0]["MessageId"] == endpoint.messages[1]["MessageId"]


async def test_the_key_is_made_once_and_is_its_owners(tmp_path: Path, endpoint: Endpoint) -> None:
    urls = []
    for _ in range(2):
        endpoint.got.clear()
        async with serving(tmp_path, subscribed(endpoint.url, "confirmed = true")) as app:
            await publish(app)
            await until(lambda: endpoint.got)
            urls.append(endpoint.messages[0]["SigningCertURL"].rpartition("/")[2])
    assert urls[0] == urls[1]
    file = tmp_path / ".eventrouter/sns/signing.pem"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["signing.pem"]


async def test_a_key_that_is_damaged_is_named_and_nothing_is_lost(tmp_path: Path, endpoint: Endpoint) -> None:
    file = tmp_path / ".eventrouter/sns/signing.pem"
    file.parent.mkdir(parents=True)
    file.write_text("no key")
    toml = subscribed(endpoint.url, "confirmed = true\nretry = { retries = 0 }")
    async with serving(tmp_path, toml) as app:
        await publish(app)
        await until(lambda: sum(lane.dead for lane in app.engine.lanes.values()) == 1)
        (letter,) = await letters(app)
        assert str(file) in letter.error_message
        file.unlink()
        assert await app.journal.redrive([letter.id]) == 1
        await until(lambda: endpoint.got)


async def test_no_key_is_made_where_nothing_is_signed(tmp_path: Path) -> None:
    got: list[str] = []

    @on(eventrouter_sns.sns("alerts"))
    async def handler(text: str) -> None:
        got.append(text)

    async with serving(tmp_path, "[http]\nport = 0\n", handler) as app:
        await publish(app)
        await until(lambda: got)
    assert not (tmp_path / ".eventrouter/sns").exists()


async def test_links_begin_with_the_url_of_the_config(tmp_path: Path, endpoint: Endpoint) -> None:
    toml = subscribed(endpoint.url, "confirmed = true", sns='url = "https://events.example.com/"')
    async with serving(tmp_path, toml) as app:
        await publish(app)
        await until(lambda: endpoint.got)
    (message,) = endpoint.messages
    assert message["SigningCertURL"].startswith("https://events.example.com/eventrouter/sns/SimpleNotificationService-")
    assert message["UnsubscribeURL"].startswith(f"https://events.example.com/eventrouter/sns?Action=Unsubscribe&SubscriptionArn={ARN}:")


async def test_what_it_listens_on_is_no_address_to_call(tmp_path: Path, endpoint: Endpoint) -> None:
    async with serving(tmp_path, subscribed(endpoint.url, "confirmed = true")) as app:
        port = source(app).base.rpartition(":")[2]
        assert source(app).base == f"http://127.0.0.1:{port}"
        source(app).router.listens(f"http://0.0.0.0:{port}")
        assert source(app).base == f"http://{socket.gethostname()}:{port}"


async def test_a_queue_gets_the_notification(tmp_path: Path, endpoint: Endpoint) -> None:
    got: list[Any] = []

    @on(sqs("jobs"))
    def handler(event, context):  # type: ignore[no-untyped-def]
        got.extend(event["Records"])

    toml = subscribed("sqs:jobs", 'filter = { kind = [{ prefix = "a" }] }')
    async with serving(tmp_path, toml, handler) as app:
        await publish(app, "not wanted", attributes={"kind": "b"})
        id = await publish(app, attributes={"kind": "ab"})
        await until(lambda: got)
        message = json.loads(got[0]["body"])
        await endpoint.verify(message)
        assert (await endpoint.visit(message["UnsubscribeURL"]))[0] == 200
        await publish(app, attributes={"kind": "ab"})
        await idle(app, 2)
    assert len(got) == 1
    assert (message["Type"], message["MessageId"], message["Message"]) == ("Notification", id, "hot")
    assert message["MessageAttributes"] == {"kind": {"Type": "String", "Value": "ab"}}
    assert got[0]["messageAttributes"] == {}


async def test_a_queue_gets_the_message_raw_with_its_attributes(tmp_path: Path) -> None:
    got: list[Any] = []

    @on(sqs("jobs"))
    def handler(event, context):  # type: ignore[no-untyped-def]
        got.extend(event["Records"])

    async with serving(tmp_path, subscribed("sqs:jobs", "raw = true"), handler) as app:
        await publish(app, "plain", attributes={"kind": "a", "n": 1, "b": b"\0"})
        await until(lambda: got)
        await publish(app, attributes={f"a{n}": "x" for n in range(11)})
        await until(lambda: sum(lane.dead for lane in app.engine.lanes.values()) == 1)
        (letter,) = await letters(app)
    assert got[0]["body"] == "plain"
    assert {name: (value["dataType"], value.get("stringValue")) for name, value in got[0]["messageAttributes"].items()} == {
        "kind": ("String", "a"),
        "n": ("Number", "1"),
        "b": ("Binary", None),
    }
    assert "at most 10" in letter.error_message


async def test_a_function_by_its_name_gets_the_record(tmp_path: Path) -> None:
    got: list[Any] = []

    @on(local("nothing"))
    def handler(event, context):  # type: ignore[no-untyped-def]
        got.append(event["Records"][0])

    async with serving(tmp_path, subscribed("lambda:handler", 'filter = { a = [1] }\nscope = "MessageBody"'), handler) as app:
        await publish(app, '{"a": 2}')
        await publish(app, '{"a": [1]}')
        await until(lambda: got)
    assert [record["Sns"]["Message"] for record in got] == ['{"a": [1]}']
    assert got[0]["EventSubscriptionArn"].startswith(f"{ARN}:")


async def test_dead_letters_that_go_to_a_topic_reach_its_subscribers(tmp_path: Path, endpoint: Endpoint) -> None:
    @on(local("work"), retries=0, backoff=fixed(0), dlq="sns:alerts")
    async def broken() -> None:
        raise OSError("no disk")

    async with serving(tmp_path, subscribed(endpoint.url, "confirmed = true"), broken) as app:
        await Operations(app).send("local", ["work", '{"n": 1}'], {}, str(tmp_path))
        await until(lambda: endpoint.got)
        (message,) = endpoint.messages
        await endpoint.verify(message)
    assert message["MessageAttributes"]["ErrorMessage"] == {"Type": "String", "Value": "no disk"}


@pytest.mark.parametrize(
    ("toml", "why"),
    [
        (subscribed("ftp://x"), "number 1: endpoint: write"),
        (subscribed("sqs:"), "number 1: endpoint: write"),
        (subscribed("https://[x"), "number 1: endpoint: write"),
        (subscribed("lambda:nobody"), r"number 1: endpoint='lambda:nobody': no function is named 'nobody'"),
        (subscribed("sqs:a b"), "number 1: endpoint='sqs:a b'"),
        (subscribed("sqs:jobs", topic="a/b"), "a topic's name is"),
        (subscribed("sqs:jobs", "filter = { a = 1 }"), 'filter: Invalid parameter: FilterPolicy: "a" must be an object or an array'),
        (subscribed("sqs:jobs", "confirmed = true"), "confirmed and retry are for HTTP endpoints"),
        (subscribed("lambda:nothing", "raw = true"), "raw: a function gets AWS's event"),
        (subscribed("http://x/", topic="a.fifo"), "a topic that keeps order goes to queues"),
        (subscribed("sqs:jobs.fifo"), "a queue that keeps order takes messages of a topic that does"),
        (subscribed("http://x/", 'dlq = "nowhere:x"'), "nothing can be sent to 'nowhere'"),
        (subscribed("http://x/", "retry = { retries = 1, pre = 2 }"), "raise it"),
        (subscribed("http://x/", "retry = { min_delay = 30 }"), "swap them"),
        (subscribed("http://x/", "retry = { retries = 100, max_delay = 3600 }"), "more than 3600"),
        (subscribed("http://x/", "retry = { retries = 101 }"), "retry"),
        (subscribed("http://x/", "retry = { reties = 1 }"), "reties"),
        (subscribed("http://x/", "fiter = {}"), "fiter"),
        (subscribed("http://x/") + subscribed("http://x/").partition("[sns]\n")[2], "number 2: http://x/ is subscribed to 'alerts' twice"),
        ("[sns.topics.alerts]\ncontent_dedupe = true\n", "only topics that end in '.fifo' have settings"),
    ],
)  # fmt: skip
def test_a_config_that_is_wrong_is_refused_at_load(tmp_path: Path, toml: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        make_app(tmp_path, nothing, toml=toml, plugins=Plugins(PLUGINS))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, [20, 20, 20]),
        ({"retries": 0}, []),
        ({"retries": 1, "max_delay": 60}, [20]),
        ({"retries": 7, "immediate": 2, "pre": 1, "post": 1, "min_delay": 1, "max_delay": 5}, [0, 0, 1, 1, 3, 5, 5]),
        ({"retries": 5, "min_delay": 1, "max_delay": 16, "function": "geometric"}, [1, 2, 4, 8, 16]),
        ({"retries": 5, "min_delay": 1, "max_delay": 16, "function": "exponential"}, [1, 2, 4, 8, 16]),
        ({"retries": 4, "min_delay": 10, "max_delay": 24, "function": "exponential"}, [10, 12, 16, 24]),
        ({"retries": 4, "min_delay": 10, "max_delay": 16, "function": "arithmetic"}, [10, 11, 13, 16]),
    ],
)
def test_the_phases_of_retries(given: dict[str, Any], expected: list[float]) -> None:
    assert RetryConfig(**given).delays() == pytest.approx(expected)


async def test_a_slow_endpoint_is_not_waited_for_any_longer_than_sns_does(
    tmp_path: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventrouter_sns.source.ATTEMPT", 0.05)
    endpoint.hangs = True
    toml = subscribed(endpoint.url, "confirmed = true\nretry = { retries = 1, immediate = 1 }")
    async with serving(tmp_path, toml) as app:
        await publish(app)
        await until(lambda: sum(lane.dead for lane in app.engine.lanes.values()) == 1)
        (letter,) = await letters(app)
        endpoint.release.set()
    assert letter.error_message == "no answer within 0.05 s"
    assert len(endpoint.got) == 2


async def test_more_deliveries_at_a_time_than_a_pool_of_connections_has(tmp_path: Path, endpoint: Endpoint) -> None:
    endpoint.hangs = True
    async with serving(tmp_path, subscribed(endpoint.url, "confirmed = true")) as app:
        for _ in range(150):
            await publish(app)
        await until(lambda: len(endpoint.got) == 150)
        endpoint.release.set()
        await idle(app, 150)


async def test_policy_keywords_of_a_subscription_are_set_as_those_of_any_function(tmp_path: Path) -> None:
    toml = '[functions."sns alerts to sqs:jobs"]\nconcurrency = 3\n' + subscribed("sqs:jobs")
    app = make_app(tmp_path, nothing, toml=toml, plugins=Plugins(PLUGINS))
    assert app.functions["sns alerts to sqs:jobs"].policy.concurrency == 3


async def test_a_queue_behind_a_topic_that_keeps_order_keeps_it(tmp_path: Path) -> None:
    got: list[Any] = []

    @on(sqs("jobs.fifo"))
    def handler(event, context):  # type: ignore[no-untyped-def]
        got.extend(event["Records"])

    async with serving(tmp_path, subscribed("sqs:jobs.fifo", topic="jobs.fifo"), handler) as app:
        for n in range(5):
            for group in "ab":
                await publish(app, f"{group}{n}", "jobs.fifo", group=group, dedupe=f"{group}{n}")
        await publish(app, "a0 again", "jobs.fifo", group="a", dedupe="a0")
        await until(lambda: len(got) == 10)
    messages = [json.loads(record["body"]) for record in got]
    for group in "ab":
        assert [message["Message"] for message in messages if message["Message"].startswith(group)] == [f"{group}{n}" for n in range(5)]
    assert {record["attributes"]["MessageGroupId"] for record in got} == {"a", "b"}
    assert {record["attributes"]["MessageDeduplicationId"] for record in got} == {f"{group}{n}" for group in "ab" for n in range(5)}
    # As SNS does, what keeps order is numbered, and not signed.
    assert list(messages[0]) == ["Type", "MessageId", "SequenceNumber", "TopicArn", "Message", "Timestamp", "UnsubscribeURL"]
