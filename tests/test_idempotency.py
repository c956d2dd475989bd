"""One result for what is one piece of work, and nothing that stays "in progress"."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from eventrouter import Failed, Idempotent, Response, Succeeded, TimedOut, fixed, on
from eventrouter.clock import ManualClock
from eventrouter.errors import ConfigError
from eventrouter.functions import Function, Policy
from eventrouter.paths import json_path, parse_path
from support import advance, event, local, put, running, until

TOML = "[app]\ndrain = 0\n"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


async def ask(app: Any, payload: Any) -> Any:
    name = next(iter(app.functions))
    return await app.engine.invoke(app.lane(name), app.functions[name].triggers[0], event("a", payload), {})


@pytest.mark.parametrize("result", [{"n": 1}, None, "text", b"bytes", [1, 2.5, None], Response({"ok": True}, 201, {"X": "y"})])
async def test_a_repeat_gets_the_first_result_and_does_not_run(tmp_path: Path, clock: ManualClock, result: Any) -> None:
    ran: list[Any] = []

    @on(local("a", mode="request"), idempotent=Idempotent("$.id", ttl=60))
    async def handler(payload: dict[str, Any]) -> Any:
        ran.append(payload)
        return result

    async with running(tmp_path, handler, clock=clock, toml=TOML) as app:
        assert [await ask(app, {"id": "a", "n": n}) for n in range(3)] == [Succeeded(result)] * 3
        assert len(ran) == 1
        await ask(app, {"id": "b"})
        assert len(ran) == 2
    async with running(tmp_path, handler, clock=clock, toml=TOML) as app:
        assert await ask(app, {"id": "a"}) == Succeeded(result), "results outlive the process"
        clock.advance(61)
        await ask(app, {"id": "a"})
        assert len(ran) == 3


async def test_events_run_once_and_the_result_is_written_with_the_settlement(tmp_path: Path, clock: ManualClock) -> None:
    ran: list[int] = []
    gate = asyncio.Event()

    @on(local("a"), idempotent=Idempotent("$.id"), retries=1, backoff=fixed(10))
    async def handler(payload: dict[str, Any]) -> None:
        ran.append(payload["n"])
        await gate.wait()
        if len(ran) == 1:
            raise ValueError

    async with running(tmp_path, handler, clock=clock, toml=TOML) as app:
        lane = app.engine.lanes["handler"]
        await put(app, "a", {"id": 7, "n": 1})
        await put(app, "a", {"id": 7, "n": 2})
        await until(lambda: lane.active == 2 and ran)
        assert ran == [1], "the second waits for the first"
        gate.set()
        await until(lambda: lane.succeeded == 1)
        assert ran == [1, 2], "the first has failed, so it is the second's turn"
        await app.journal.flush()
        await advance(clock, 10.1, lambda: lane.succeeded == 2)
        assert ran == [1, 2]


async def test_a_time_out_leaves_no_record_behind(tmp_path: Path, clock: ManualClock) -> None:
    ran = 0

    @on(local("a", mode="request"), idempotent=Idempotent("$.id"), timeout=5)
    async def handler(payload: dict[str, Any]) -> int:
        nonlocal ran
        ran += 1
        if ran == 1:
            await asyncio.get_running_loop().create_future()
        return ran

    async with running(tmp_path, handler, clock=clock, toml=TOML) as app:
        first = asyncio.ensure_future(ask(app, {"id": 1}))
        await until(lambda: ran == 1)
        second = asyncio.ensure_future(ask(app, {"id": 1}))
        await asyncio.sleep(0)
        clock.advance(5)
        assert await first == TimedOut(5.0)
        assert await second == Succeeded(2)


async def test_a_stop_while_one_waits_for_another(tmp_path: Path) -> None:
    ran: list[int] = []

    @on(local("a"), idempotent=Idempotent("$.id"))
    async def handler(payload: dict[str, Any]) -> None:
        ran.append(payload["n"])
        if len(ran) == 1:
            await asyncio.get_running_loop().create_future()

    async with running(tmp_path, handler, toml=TOML) as app:
        await put(app, "a", {"id": 7, "n": 1})
        await put(app, "a", {"id": 7, "n": 2})
        await until(lambda: app.engine.lanes["handler"].active == 2 and ran)
    assert ran == [1]
    async with running(tmp_path, handler, toml=TOML) as app:
        await until(lambda: app.engine.lanes["handler"].succeeded == 2)
    assert len(ran) == 2


async def test_a_result_that_cannot_be_kept_is_a_failure(tmp_path: Path) -> None:
    @on(local("a", mode="request"), idempotent=Idempotent("$.id"))
    async def handler(payload: dict[str, Any]) -> Any:
        return object()

    async with running(tmp_path, handler, toml=TOML) as app:
        outcome = await ask(app, {"id": 1})
        assert isinstance(outcome, Failed)
        assert outcome.error_type == "Runtime.MarshalError"


async def test_what_has_nothing_at_the_path_runs_and_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    @on(local("a", mode="request"), idempotent=Idempotent("$.id"))
    async def handler(payload: Any) -> int:
        return 1

    async with running(tmp_path, handler, toml=TOML) as app:
        assert await ask(app, {"n": 1}) == Succeeded(1)
    assert "has nothing at $.id" in caplog.text


@pytest.mark.parametrize(
    ("path", "payload", "found"),
    [
        ("$.id", {"id": "x"}, "x"),
        ("$.a.b[1]['c d']", {"a": {"b": [0, {"c d": 5}]}}, "5"),
        ("$[0]", [True], "true"),
        ("$.a", {"a": {"y": 1, "x": 2}}, '{"x":2,"y":1}'),
        ("$.a", {"a": None}, None),
        ("$.a.b", {"a": 1}, None),
        ("$.a", [1], None),
        ("$[3]", [1], None),
    ],
)
def test_paths(path: str, payload: Any, found: str | None) -> None:
    assert parse_path(path)(payload) == found


def test_a_path_finds_values_too() -> None:
    assert json_path("$.a[1]")({"a": [0, {"b": 1}]}) == {"b": 1}
    assert json_path("$")([1]) == [1]
    assert json_path("$.a.b")({"a": 1}) is None


@pytest.mark.parametrize("path", ["$", "id", "$..a", "$.a[", "$.a[x]", "$a"])
def test_what_is_no_path(path: str) -> None:
    with pytest.raises(ValueError, match="JSON path"):
        Idempotent(path)


def test_batches_are_not_idempotent() -> None:
    from eventrouter import Batch

    async def handler(payload: list[int]) -> None: ...

    with pytest.raises(ConfigError, match="batch= and idempotent= don't go together"):
        Function(handler, [local("a")], Policy(batch=Batch(2), idempotent=Idempotent("$.id")))
