"""What a client can't do to the router: too much, too slowly, or in the clear."""

from __future__ import annotations

import asyncio
import gzip
import json
import ssl
import subprocess
from pathlib import Path

import pytest
from aiohttp import ClientSession, TCPConnector
from yarl import URL

from eventrouter import on
from eventrouter.errors import ConfigError, EventRouterError
from eventrouter.operations import Operations
from eventrouter_http import http
from http_support import app_of, raw, serving, url_of

SMALL = "body_limit = 1000\nread_timeout = 0.3\n"
RAN: list[int] = []


@on(http("POST /"))
async def handler(body: bytes) -> int:
    RAN.append(len(body))
    return len(body)


def head(*lines: str) -> bytes:
    return "\r\n".join(["POST / HTTP/1.1", "Host: a", *lines, "", ""]).encode()


async def test_bodies_up_to_the_limit(tmp_path: Path) -> None:
    RAN.clear()
    async with serving(tmp_path, handler, toml=SMALL) as ask:
        assert (await ask("POST /", b"x" * 1000)).json == 1000
        assert (await ask("POST /", b"x" * 1001)).status == 413
        refused = await raw(ask.app, head("Content-Length: 1001") + b"x")  # told by its length alone
        assert b"413 Content Too Large" in refused or b" 413 " in refused
        assert b"Connection: close" in refused
        chunk = b"2bc\r\n" + b"x" * 700 + b"\r\n"
        assert b" 413 " in await raw(ask.app, head("Transfer-Encoding: chunked") + chunk + chunk + b"0\r\n\r\n")
        bomb = gzip.compress(b"x" * 1_000_000)
        assert len(bomb) > 900
        assert (await ask("POST /", bomb[:990], {"Content-Encoding": "gzip"})).status == 413
        assert (await ask("POST /", gzip.compress(b"x" * 1000), {"Content-Encoding": "gzip"})).json == 1000
    assert RAN == [1000, 1000]


async def test_bodies_that_are_not_what_they_say(tmp_path: Path) -> None:
    RAN.clear()
    async with serving(tmp_path, handler, toml=SMALL) as ask:
        assert (await ask("POST /", b"no gzip", {"Content-Encoding": "gzip"})).status == 400
        assert b" 400 " in await raw(ask.app, head("Transfer-Encoding: chunked") + b"zz\r\n")
        assert b" 400 " in await raw(ask.app, head("Content-Length: many"))
        assert b" 400 " in await raw(ask.app, head("Content-Length: 1", "Transfer-Encoding: chunked", "Connection: close") + b"0\r\n\r\n")
    assert RAN == []


async def test_a_client_that_leaves_within_its_body(tmp_path: Path) -> None:
    RAN.clear()
    async with serving(tmp_path, handler, toml=SMALL) as ask:
        url = URL(url_of(ask.app))
        _, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(head("Content-Length: 10") + b"half")
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        assert (await ask("POST /", b"x")).json == 1
    assert RAN == [1]


async def test_slow_heads_and_slow_bodies(tmp_path: Path) -> None:
    async with serving(tmp_path, handler, toml=SMALL) as ask:
        assert await raw(ask.app, b"") == b""  # nothing at all
        assert await raw(ask.app, b"POST / HTTP/1.1\r\nHost: a\r\nX-A") == b""
        slow = await raw(ask.app, head("Content-Length: 10") + b"half")
        assert b" 408 " in slow
        assert b"the body did not come within 0.3 s" in slow
        second = await raw(ask.app, head("Content-Length: 1") + b"xPOST / HT")  # the head of the next
        assert b"200 OK" in second


async def test_heads_that_are_too_large(tmp_path: Path) -> None:
    async with serving(tmp_path, handler) as ask:
        assert b" 400 " in await raw(ask.app, head("X-A: " + "x" * 9000))
        assert b" 400 " in await raw(ask.app, head(*(f"X-{n}: 1" for n in range(200))))
        assert b" 400 " in await raw(ask.app, b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n")


async def test_curl_asks_before_it_sends_much(tmp_path: Path) -> None:
    """`Expect: 100-continue`: an answer before the body, or the word to go on."""
    (tmp_path / "body").write_bytes(b"x" * 2_000_000)
    async with serving(tmp_path, handler, toml="body_limit = 2000000") as ask:
        expect = ["-H", "Expect: 100-continue", "--expect100-timeout", "30"]

        async def curl(*options: str) -> bytes:
            run = await asyncio.create_subprocess_exec(
                "curl", "-sv", url_of(ask.app), "--data-binary", f"@{tmp_path / 'body'}", *expect, *options,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
            return (await run.communicate())[0]

        good = await curl()
        assert b"100 Continue" in good
        assert b"200 OK" in good
        (tmp_path / "body").write_bytes(b"x" * 2_000_001)
        refused = await curl()
        assert b" 413 " in refused
        assert b"100 Continue" not in refused


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    where = "-addext subjectAltName=DNS:localhost -keyout key.pem -out cert.pem"
    subprocess.run([*make.split(), *where.split()], cwd=tmp_path, check=True, capture_output=True)
    return tmp_path / "cert.pem"


async def test_tls(tmp_path: Path, certificate: Path) -> None:
    async with app_of(tmp_path, handler, toml='[http]\nport = 0\ncert_file = "cert.pem"\nkey_file = "key.pem"\n') as app:
        url = URL(url_of(app))
        assert (url.scheme, app.sources["http"].lines()) == ("https", [f"http on {url}".rstrip("/")])
        trusting = TCPConnector(ssl=ssl.create_default_context(cafile=certificate))
        async with ClientSession(connector=trusting) as session, session.post(url.with_host("localhost"), data=b"abc") as answer:
            assert await answer.json() == 3
        sent = await Operations(app).send("http", ["POST /", "ab"], {}, str(tmp_path))
        assert json.loads(sent["body"]) == 2


async def test_tls_that_can_not_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[http\] key_file is missing; TLS needs both"):
        app_of(tmp_path, handler, toml='[http]\nport = 0\ncert_file = "cert.pem"\n')
    with pytest.raises(EventRouterError, match=r"no TLS with .*cert.pem and .*key.pem: No such file"):
        async with app_of(tmp_path, handler, toml='[http]\nport = 0\ncert_file = "cert.pem"\nkey_file = "key.pem"\n'):
            pass
