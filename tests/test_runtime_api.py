"""The Runtime API over real connections: which order of calls is allowed, and what is said of the others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientError, ClientResponse, ClientSession

from eventrouter import Failed
from eventrouter.runtimes.runtime_api import LIMIT, Invocation, RuntimeApi, Streamed

PREFIX = "/2018-06-01/runtime"
SCENARIOS = 23


@asynccontextmanager
async def served(admits: Callable[[Any], bool] = lambda end: True) -> AsyncIterator[tuple[RuntimeApi, Callable[..., Any], str]]:
    """Yields the API, what asks it, and its address."""
    api = RuntimeApi(admits)
    address = await api.listen()
    async with ClientSession() as session:

        async def ask(method: str, path: str, **more: Any) -> tuple[ClientResponse, bytes]:
            async with session.request(method, f"http://{address}{path}", **more) as response:
                return response, await response.read()

        try:
            yield api, ask, address
        finally:
            await api.close()


def queue(api: RuntimeApi, id: str = "A", payload: bytes = b"{}", **more: Any) -> asyncio.Task[Any]:
    """An invocation; its result is what the caller sees."""
    return asyncio.create_task(api.invoke(Invocation(id, payload, 1_700_000_000_000, f"arn:{id}", **more)))


FULL = {"trace": "Root=1", "client_context": "{}", "cognito_identity": '{"cognitoIdentityId":"a","cognitoIdentityPoolId":"b"}'}


@pytest.mark.parametrize("number", range(SCENARIOS))
async def test_conformance(cases: Path, number: int) -> None:
    scenarios = json.loads((cases / "runtime-api/rapi_scenarios.json").read_text())
    assert len(scenarios) == SCENARIOS
    steps = scenarios[number]["steps"]
    sizes = next((step["payload_sizes_to_try"] for step in steps if "payload_sizes_to_try" in step), [2])
    for size in sizes:
        async with served() as (api, ask, _):
            seen: asyncio.Task[Any] | None = None
            for step in steps:
                if "setup" in step:
                    seen = queue(api, step.get("request_id", "A"), b"x" * size, **(FULL if "all fields" in step["setup"] else {}))
                    await asyncio.sleep(0)
                else:
                    await check(step, ask, size)
                if (expected := step.get("then_caller_sees")) is not None:
                    assert seen is not None
                    assert await seen == Failed(expected["errorType"], expected["errorMessage"])


async def check(step: dict[str, Any], ask: Callable[..., Any], size: int) -> None:
    body = step.get("body", "").encode()
    if "body_repeat" in step:
        body = b"\0" * step["body_repeat"][1]
    response, said = await ask(step["method"], step["path"], data=BytesIO(body) if body else None, headers=step.get("headers"))
    assert response.status == step["expect_status"], said
    if response.status == 200:
        assert len(said) == size
    if "expect_errorType" in step:
        assert json.loads(said)["errorType"] == step["expect_errorType"]
        assert response.headers["Content-Type"] == "application/json"
    if "expect_json" in step:
        assert json.loads(said) == step["expect_json"]
    if "expect_body" in step:
        assert said.decode() == step["expect_body"]
    assert all(name in response.headers for name in step.get("expect_headers_present", ()))
    assert not any(name in response.headers for name in step.get("expect_headers_absent", ()))
    if "cognito_identity_json" in step:
        assert sorted(json.loads(response.headers["Lambda-Runtime-Cognito-Identity"])) == sorted(step["cognito_identity_json"])


@pytest.mark.parametrize(
    ("body", "result"),
    [(b"{}", {}), (b"", None), (b'"a"', "a"), (b"{'no': 'json'}", "{'no': 'json'}"), (b"\xff\0", b"\xff\0"), (b"1e400", "1e400")],
)
async def test_an_answer(body: bytes, result: Any) -> None:
    async with served() as (api, ask, _):
        seen = queue(api)
        await ask("GET", f"{PREFIX}/invocation/next")
        await ask("POST", f"{PREFIX}/invocation/A/response", data=body)
        assert await seen == result


@pytest.mark.parametrize(
    ("body", "header", "failed"),
    [
        (b'{"errorType": "A", "errorMessage": "b", "stackTrace": ["c"]}', "D", Failed("A", "b", ["c"])),
        (b'{"errorType": "A", "errorMessage": "b", "trace": ["c"]}', "", Failed("A", "b", ["c"])),
        (b'{"errorMessage": "b"}', "D", Failed("D", "b")),
        (b"as it likes", "D", Failed("D", "as it likes")),
        (b"", "", Failed("Runtime.Unknown", "")),
        (b'{"errorType": 1, "stackTrace": "no list"}', "", Failed("1", "")),
    ],
)
async def test_an_error(body: bytes, header: str, failed: Failed) -> None:
    headers = {"Lambda-Runtime-Function-Error-Type": header} if header else {}
    async with served() as (api, ask, _):
        seen = queue(api)
        await ask("GET", f"{PREFIX}/invocation/next")
        await ask("POST", f"{PREFIX}/invocation/A/error", data=body, headers=headers)
        assert await seen == failed
    async with served() as (api, ask, _):
        await ask("POST", f"{PREFIX}/init/error", data=body, headers=headers)
        assert api.asks.is_set()
        assert api.fault == failed
        for path in ("init/error", "invocation/A/error"):
            response, _ = await ask("POST", f"{PREFIX}/{path}")
            assert response.status in (400, 403)
        response, _ = await ask("GET", f"{PREFIX}/invocation/next")
        assert response.status == 403


STREAMED = (
    b"POST /2018-06-01/runtime/invocation/A/response HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    b"Lambda-Runtime-Function-Response-Mode: streaming\r\n%bTrailer: Lambda-Runtime-Function-Error-Type\r\n\r\n%b"
)
KIND = b"Content-Type: application/vnd.awslambda.http-integration-response\r\n"
PRELUDE = b'{"statusCode":201,"headers":{"x":"y"}}' + bytes(8)
ERROR = b"Lambda-Runtime-Function-Error-Type: A\r\nLambda-Runtime-Function-Error-Body: eyJlcnJvclR5cGUiOiJBIiwiZXJyb3JNZXNzYWdlIjoiYiJ9\r\n"


@pytest.mark.parametrize(
    ("request_", "status", "result"),
    [
        pytest.param(STREAMED % (b"", b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"), 202, "abc", id="whole"),
        pytest.param(STREAMED % (b"", b"2\r\nab\r\n0\r\n" + ERROR + b"\r\n"), 202, Failed("A", "b"), id="an error amid it"),
        pytest.param(
            STREAMED % (KIND, b"%x\r\n%b\r\n3\r\n\xff\0b\r\n0\r\n\r\n" % (len(PRELUDE), PRELUDE)), 202,
            {"statusCode": 201, "headers": {"x": "y"}, "body": "/wBi", "isBase64Encoded": True}, id="of HTTP",
        ),
        pytest.param(STREAMED % (KIND, b"2\r\nab\r\n0\r\n\r\n"), 202, "Runtime.InvalidResponse", id="of HTTP, without a head"),
        pytest.param(STREAMED % (b"", b"2\r\nab\r\n"), None, "Runtime.TruncatedResponse", id="cut off"),
        pytest.param(STREAMED % (b"", b"2\r\nab\r\nnonsense\r\n"), 400, "Runtime.TruncatedResponse", id="malformed"),
    ],
)  # fmt: skip
async def test_a_streamed_answer(request_: bytes, status: int | None, result: Any) -> None:
    async with served() as (api, ask, address):
        seen = queue(api)
        await ask("GET", f"{PREFIX}/invocation/next")
        host, _, port = address.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request_)
        if status is None:
            writer.close()
        else:
            assert (await reader.readline()).split()[1] == str(status).encode()
        got = await seen
        assert (got.error_type if isinstance(result, str) and isinstance(got, Failed) else got) == result
        writer.close()


@pytest.mark.parametrize(
    ("rest", "status", "failed"),
    [
        pytest.param(b"1\r\nc\r\n0\r\n\r\n", 202, None, id="whole"),
        pytest.param(b"0\r\n" + ERROR + b"\r\n", 202, Failed("A", "b"), id="an error amid it"),
        pytest.param(b"nonsense\r\n", 400, "Runtime.TruncatedResponse", id="malformed"),
        pytest.param(b"", None, "Runtime.TruncatedResponse", id="cut off"),
    ],
)
@pytest.mark.parametrize("taken", [True, False])
async def test_a_streamed_answer_as_it_comes(rest: bytes, status: int | None, failed: Any, taken: bool) -> None:
    async with served() as (api, ask, address):
        seen = queue(api, streams=True)
        await ask("GET", f"{PREFIX}/invocation/next")
        host, _, port = address.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(STREAMED % (KIND, b"%x\r\n%b\r\n2\r\nab\r\n" % (len(PRELUDE), PRELUDE)))
        answer = await seen
        assert isinstance(answer, Streamed)
        assert answer.head == (201, {"x": "y"})
        assert await anext(answer.chunks) == b"ab"
        if not taken:
            await answer.chunks.aclose()
        writer.write(rest)
        if status is None:
            writer.close()
        else:
            assert (await reader.readline()).split()[1] == str(status).encode()
        left = [chunk async for chunk in answer.chunks]
        if taken:
            assert left == ([b"c"] if failed is None else [])
            assert (answer.failed.error_type if isinstance(failed, str) and answer.failed is not None else answer.failed) == failed
        writer.close()


async def test_a_streamed_answer_that_is_cut_off_amid_its_head() -> None:
    async with served() as (api, ask, address):
        seen = queue(api, streams=True)
        await ask("GET", f"{PREFIX}/invocation/next")
        host, _, port = address.partition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(STREAMED % (KIND, b"2\r\n{}\r\n"))
        writer.close()
        assert (await seen).error_type == "Runtime.TruncatedResponse"


async def test_what_is_no_http_is_refused() -> None:
    async with served() as (_, ask, address):
        host, _, port = address.partition(":")
        for said in (b"\x16\x03\x01\0\0\r\n\r\n", b"GET / HTTP/1.1\r\na: " + bytes(1_000_000)):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(said)
            with suppress(ConnectionResetError):  # it does not wait for the rest
                answer = await reader.read()
                assert answer.startswith(b"HTTP/1.1 4")
            writer.close()
        assert (await ask("GET", "/"))[0].status == 404


async def test_a_lost_connection_can_ask_again() -> None:
    async with served() as (api, ask, _):
        lost = asyncio.create_task(ask("GET", f"{PREFIX}/invocation/next"))
        await api.asks.wait()
        lost.cancel()
        seen = queue(api)
        response, _ = await ask("GET", f"{PREFIX}/invocation/next")
        assert response.headers["Lambda-Runtime-Aws-Request-Id"] == "A"
        assert not api.asks.is_set()
        await ask("POST", f"{PREFIX}/invocation/A/response", data=b"1")
        assert await seen == 1


async def test_only_who_is_admitted_is_heard() -> None:
    async with served(lambda end: False) as (api, ask, _):
        queue(api)
        for method, path in (("GET", "invocation/next"), ("POST", "invocation/A/response"), ("POST", "init/error")):
            response, said = await ask(method, f"{PREFIX}/{path}", data=b"{}" if method == "POST" else None)
            assert (response.status, json.loads(said)["errorType"]) == (403, "Forbidden")
        assert api.fault is None


async def test_more_than_anybody_reads_ends_the_connection() -> None:
    async with served() as (api, ask, _):
        seen = queue(api)
        await ask("GET", f"{PREFIX}/invocation/next")

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(20):
                yield bytes(LIMIT)

        with pytest.raises(ClientError):
            await ask("POST", f"{PREFIX}/invocation/A/response", data=chunks())
        assert (await seen).error_type == "Runtime.TruncatedResponse"
