"""Where dead letters and records go, in Lambda's shapes, in the transaction of what they tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eventrouter import Event, Message, Reject, on
from eventrouter.clock import ManualClock
from eventrouter.destinations import letter, record
from eventrouter.errors import ConfigError
from eventrouter.functions import Function, Policy
from eventrouter.journal import segments
from eventrouter.journal.protocol import LetterQuery
from eventrouter.model import Dead, Done, Failed, Succeeded
from support import event, local, make_app, put, running, until

TOML = "[app]\ndrain = 0\n"
DEAD = Dead("RetriesExhausted", "ValueError", "x" * 3000, 3)


def test_the_copy_of_a_dead_letter() -> None:
    message = letter(event("a", {"n": 1}), local("a"), "id-1", DEAD)
    assert message.body == b'{"Records":[{"n":1}]}'
    assert message.attributes == {"RequestID": "id-1", "ErrorCode": 200, "ErrorMessage": "x" * 1024}
    assert letter(event("a"), None, "id", Dead("ConcurrencyZero", "ConcurrencyZero", "é" * 600, 0)).attributes == {
        "RequestID": "id", "ErrorCode": 429, "ErrorMessage": "é" * 512,
    }  # fmt: skip
    assert letter(Event("local", "t", "a", b"\xff"), local("a"), "id", DEAD).body == b"\xff", "what is no JSON goes as it is"


def test_the_record_of_an_outcome() -> None:
    import msgspec

    made = msgspec.json.decode(
        record(event("a", 5), None, "id-1", "f", DEAD, Failed("ValueError", "bad", ["line"]), 3, 1_767_225_600.0).body
    )
    assert made == {
        "version": "1.0",
        "timestamp": "2026-01-01T00:00:00.000Z",
        "requestContext": {
            "requestId": "id-1",
            "functionArn": "arn:aws:lambda:local:000000000000:function:f:$LATEST",
            "condition": "RetriesExhausted",
            "approximateInvokeCount": 3,
        },
        "requestPayload": 5,
        "responseContext": {"statusCode": 200, "executedVersion": "$LATEST", "functionError": "Unhandled"},
        "responsePayload": {"errorMessage": "x" * 3000, "errorType": "ValueError", "stackTrace": ["line"]},
    }
    made = msgspec.json.decode(record(event("a", 5), None, "id-1", "f", Done(), Succeeded({"ok": 1}), 1, 0.0).body)
    assert (made["requestContext"]["condition"], made["responsePayload"]) == ("Success", {"ok": 1})
    assert made["responseContext"] == {"statusCode": 200, "executedVersion": "$LATEST"}


async def test_functions_as_destinations(tmp_path: Path) -> None:
    heard: list[tuple[str, Any]] = []

    @on(local("a"), retries=0, dlq="lambda:undertaker", on_success="lambda:herald", on_failure="lambda:herald")
    async def handler(payload: int) -> int:
        if payload < 0:
            raise Reject("negative")
        return payload * 2

    @on()
    async def undertaker(payload: Any) -> None:
        heard.append(("undertaker", payload))

    @on()
    def herald(event: dict[str, Any], context: Any) -> None:
        heard.append((event["requestContext"]["condition"], event["responsePayload"]))

    async with running(tmp_path, handler, undertaker, herald, toml=TOML) as app:
        await put(app, "a", 4)
        await until(lambda: len(heard) == 1)
        await put(app, "a", -4)
        await until(lambda: len(heard) == 3)
        assert heard[0] == ("Success", 8)
        assert sorted(heard[1:], key=str) == [
            ("RetriesExhausted", {"errorMessage": "negative", "errorType": "Reject", "stackTrace": []}),
            ("undertaker", {"Records": [-4]}),
        ]
        await app.journal.flush()
        (found,) = await app.journal.dead(LetterQuery())
        assert (found.function, found.reason) == ("handler", "Rejected")


async def test_a_result_that_cannot_be_recorded_is_a_failure(tmp_path: Path) -> None:
    @on(local("a"), retries=0, on_success="lambda:herald")
    async def handler(payload: int) -> Any:
        return object()

    @on()
    async def herald(payload: Any) -> None: ...

    async with running(tmp_path, handler, herald, toml=TOML) as app:
        await put(app, "a", 4)
        await until(lambda: app.engine.lanes["handler"].dead == 1)
        await app.journal.flush()
        (found,) = await app.journal.dead(LetterQuery())
        assert found.error_type == "Runtime.MarshalError"


@pytest.mark.parametrize("code", ["deaths", "closed", "age"])
async def test_what_was_never_tried_has_a_copy_too(tmp_path: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Any] = []
    clock = ManualClock()

    @on(local("a"), dlq="lambda:undertaker", concurrency=0 if code == "closed" else None, max_age=60)
    async def handler(payload: int) -> None: ...

    @on()
    async def undertaker(payload: Any) -> None:
        heard.append(payload)

    app = make_app(tmp_path, handler, undertaker, clock=clock, toml=TOML)
    await app.start(sources=False)
    await put(app, "a", 4)
    if code == "deaths":
        await app.journal._ask(  # type: ignore[attr-defined]
            lambda database: segments.move_out(database, database._execute("SELECT seq FROM segment").get, deaths=10)
        )
    await app.stop()
    if code == "age":
        clock.advance(61)
    async with running(tmp_path, handler, undertaker, clock=clock, toml=TOML) as app:
        await until(lambda: heard == [{"Records": [4]}])
        await app.journal.flush()
        (found,) = await app.journal.dead(LetterQuery())
        assert found.reason == {"deaths": "RouterCrashed", "closed": "ConcurrencyZero", "age": "EventAgeExceeded"}[code]


@pytest.mark.parametrize(
    ("target", "fault"),
    [
        ("undertaker", 'write where it goes, as in "sqs:NAME"'),
        ("sqs:", 'write where it goes, as in "sqs:NAME"'),
        ("pigeon:x", "nothing can be sent to 'pigeon'"),
        ("lambda:nobody", "no function is named 'nobody'"),
    ],
)
def test_a_destination_that_is_none_is_refused_at_load(tmp_path: Path, target: str, fault: str) -> None:
    @on(local("a"), dlq=target)
    async def handler(payload: int) -> None: ...

    with pytest.raises(ConfigError, match=fault) as caught:
        make_app(tmp_path, handler)
    assert "test_destinations.py" in str(caught.value)


def test_names_of_queues_are_no_names_of_functions() -> None:
    async def handler(payload: int) -> None: ...

    with pytest.raises(ConfigError, match="without ':'"):
        Function(handler, [], Policy(name="sqs:x"))


def test_messages_are_values() -> None:
    assert Message(b"x", {}) == Message(b"x", {}, None)
