"""order_by, batch, bisect, partial failures: what a function gets, in which order, and what a failure means for the others."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from eventrouter import Batch, Context, Event, PartialFailure, Reject, fixed, on
from eventrouter.batches import Malformed, failed_items
from eventrouter.clock import ManualClock
from eventrouter.errors import ConfigError
from eventrouter.functions import Function, Policy
from eventrouter.journal.protocol import LetterQuery
from support import advance, local, put, running, until

TOML = "[app]\ndrain = 0\n"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


async def reasons(app: Any) -> list[tuple[Any, str, int]]:
    await app.journal.flush()
    return [(letter.event.json(), letter.reason, letter.attempts) for letter in await app.journal.dead(LetterQuery())]


# Order


async def test_a_key_runs_in_order_and_waits_through_retries_while_others_go_on(tmp_path: Path, clock: ManualClock) -> None:
    ran: list[str] = []
    broken = {"a1"}

    @on(local("{key}"), order_by="key", retries=3, backoff=fixed(10))
    async def handler(name: Any, key: str) -> None:
        ran.append(name)
        await asyncio.sleep(0)
        if name in broken:
            raise ValueError(name)

    async with running(tmp_path, handler, clock=clock, toml=TOML) as app:
        for name in ("a1", "a2", "b1", "a3", "b2"):
            await put(app, name[0], name)
        await until(lambda: ran.count("a1") == 1 and "b2" in ran)
        await put(app, "a", "a4")
        await app.journal.flush()
        assert [name for name in ran if name[0] == "a"] == ["a1"]
        await advance(clock, 10.1, lambda: app.engine.lanes["handler"].failed == 2)
        broken.clear()
        await app.journal.flush()
        await advance(clock, 10.1, lambda: "a4" in ran)
        assert [name for name in ran if name[0] == "a"] == ["a1", "a1", "a1", "a2", "a3", "a4"]
        assert [name for name in ran if name[0] == "b"] == ["b1", "b2"]


async def test_a_dead_letter_lets_its_key_go_on(tmp_path: Path) -> None:
    ran: list[int] = []

    @on(local("a"), order_by="$.device.id", retries=0)
    async def handler(reading: dict[str, Any]) -> None:
        ran.append(reading["n"])
        if reading["n"] == 1:
            raise ValueError

    async with running(tmp_path, handler, toml=TOML) as app:
        for n in (1, 2, 3):
            await put(app, "a", {"device": {"id": 7}, "n": n})
        await put(app, "a", {"n": 4})
        await until(lambda: len(ran) == 4)
        assert [n for n in ran if n != 4] == [1, 2, 3]


async def test_no_two_of_a_key_run_at_once_and_keys_do(tmp_path: Path) -> None:
    now: dict[str, int] = {}
    most: dict[str, int] = {}
    at_once = 0

    @on(local("{key}"), order_by="key")
    async def handler(n: int, key: str) -> None:
        nonlocal at_once
        now[key] = now.get(key, 0) + 1
        most[key] = max(most.get(key, 0), now[key])
        at_once = max(at_once, sum(now.values()))
        await asyncio.sleep(0.001)
        now[key] -= 1

    async with running(tmp_path, handler, toml=TOML) as app:
        await asyncio.gather(*(put(app, "abcdefgh"[n % 8], n) for n in range(400)))
        await until(lambda: app.engine.lanes["handler"].succeeded == 400)
    assert most == dict.fromkeys("abcdefgh", 1)
    assert at_once == 8


async def test_a_handler_that_refuses_to_end_keeps_its_key(tmp_path: Path, clock: ManualClock) -> None:
    ran: list[int] = []
    gate = asyncio.Event()

    @on(local("{key}"), order_by="key", timeout=5)
    async def handler(n: int, key: str) -> None:
        ran.append(n)
        while n == 1 and not gate.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:
                pass

    async with running(tmp_path, handler, clock=clock, toml=TOML) as app:
        for n in (1, 2):
            await put(app, "a", n)
        await until(lambda: ran == [1])
        lane = app.engine.lanes["handler"]
        for seconds in (5, 1, 1):
            clock.advance(seconds)
            await asyncio.sleep(0.01)
        await until(lambda: lane.dead == 1)
        await put(app, "b", 3)
        await until(lambda: 3 in ran)
        assert ran == [1, 3]
        gate.set()
        await until(lambda: ran == [1, 3, 2])
        assert await reasons(app) == [(1, "Unstoppable", 1)]


async def test_order_outlives_a_restart(tmp_path: Path, clock: ManualClock) -> None:
    ran: list[int] = []
    broken = True

    @on(local("{key}"), order_by="key", retries=5, backoff=fixed(30))
    async def handler(n: int, key: str) -> None:
        ran.append(n)
        if broken:
            raise ValueError

    async with running(tmp_path, handler, clock=clock, toml=TOML) as app:
        for n in range(5):
            await put(app, "a", n)
        await until(lambda: ran == [0])
        await app.journal.flush()
    broken = False
    async with running(tmp_path, handler, clock=clock, toml=TOML) as app:
        await put(app, "a", 5)
        await app.journal.flush()
        assert ran == [0]
        await advance(clock, 31, lambda: len(ran) == 7)
    assert ran == [0, 0, 1, 2, 3, 4, 5]


# Batches


class Reading(msgspec.Struct):
    celsius: float


async def test_a_batch_fills_up_to_its_size_or_its_window(tmp_path: Path, clock: ManualClock) -> None:
    got: list[list[int]] = []

    @on(local("{key}"), batch=Batch(3, window=5))
    async def handler(numbers: list[int], key: list[str], events: list[Event], context: Context) -> None:
        assert [event.subject for event in events] == key
        assert context.get_remaining_time_in_millis() == 3000
        got.append(numbers)

    async with running(tmp_path, handler, clock=clock, toml=TOML) as app:
        await asyncio.gather(*(put(app, "ab"[n % 2], n) for n in range(7)))
        await until(lambda: got == [[0, 1, 2], [3, 4, 5]])
        clock.advance(4.9)
        await app.journal.flush()
        assert len(got) == 2
        await advance(clock, 0.2, lambda: got[2:] == [[6]])
        await until(lambda: app.engine.lanes["handler"].active == 0)


async def test_without_a_window_a_batch_is_what_is_there(tmp_path: Path) -> None:
    got: list[int] = []
    sizes: list[int] = []

    @on(local("a"), batch=Batch(100), concurrency=1)
    async def handler(numbers: list[int]) -> None:
        sizes.append(len(numbers))
        got.extend(numbers)
        await asyncio.sleep(0.001)

    async with running(tmp_path, handler, toml=TOML) as app:
        await asyncio.gather(*(put(app, "a", n) for n in range(500)))
        await until(lambda: len(got) == 500)
    assert got == list(range(500))
    assert max(sizes) <= 100
    assert len(sizes) < 100


async def test_what_does_not_validate_is_dead_alone(tmp_path: Path) -> None:
    got: list[float] = []

    @on(local("a"), batch=Batch(4, window=60))
    async def handler(readings: list[Reading]) -> None:
        got.extend(reading.celsius for reading in readings)

    async with running(tmp_path, handler, toml=TOML) as app:
        await asyncio.gather(*(put(app, "a", {"celsius": value}) for value in (1.0, "warm", 3.0, 4.0)))
        await until(lambda: got == [1.0, 3.0, 4.0])
        assert await reasons(app) == [({"celsius": "warm"}, "InvalidPayload", 1)]


async def test_attempts_count_for_each_event_and_partial_failures_are_honoured(tmp_path: Path, clock: ManualClock) -> None:
    got: list[list[int]] = []

    @on(local("a"), batch=Batch(3, window=1), retries=1, backoff=fixed(10))
    async def handler(numbers: list[int]) -> None:
        got.append(numbers)
        raise PartialFailure([place for place, n in enumerate(numbers) if n % 2], "odd")

    async with running(tmp_path, handler, clock=clock, toml=TOML) as app:
        await asyncio.gather(*(put(app, "a", n) for n in (1, 2, 3)))
        await until(lambda: len(got) == 1)
        await app.journal.flush()
        clock.advance(10.1)
        await app.journal.flush()
        await until(lambda: app.engine.lanes["handler"].count == 2)
        await put(app, "a", 5)
        await until(lambda: len(got) == 2)
        assert got == [[1, 2, 3], [1, 3, 5]]
        await until(lambda: app.engine.lanes["handler"].dead == 2)
        assert await reasons(app) == [(1, "RetriesExhausted", 2), (3, "RetriesExhausted", 2)]


async def test_a_lambda_function_gets_all_records_and_names_those_that_failed(tmp_path: Path, clock: ManualClock) -> None:
    seen: list[Any] = []

    @on(local("a"), batch=Batch(3, window=1), retries=0)
    async def handler(event: dict[str, Any], context: Any) -> Any:
        seen.append([record["n"] for record in event["Records"]])
        return {"batchItemFailures": [{"itemIdentifier": "two"}]}

    async with running(tmp_path, handler, clock=clock, toml=TOML) as app:
        await asyncio.gather(*(put(app, "a", {"n": id}, id=id) for id in ("one", "two", "three")))
        await until(lambda: app.engine.lanes["handler"].dead == 1)
        assert seen == [["one", "two", "three"]]
        assert await reasons(app) == [({"n": "two"}, "RetriesExhausted", 1)]


async def test_bisecting_finds_the_one_that_fails_and_costs_the_others_nothing(tmp_path: Path, clock: ManualClock) -> None:
    got: list[list[int]] = []

    @on(local("a"), batch=Batch(8, window=1, bisect=True), retries=1, backoff=fixed(10))
    async def handler(numbers: list[int]) -> None:
        got.append(numbers)
        if 5 in numbers:
            raise ValueError("five")

    async with running(tmp_path, handler, clock=clock, toml=TOML) as app:
        lane = app.engine.lanes["handler"]
        await asyncio.gather(*(put(app, "a", n) for n in range(8)))
        await until(lambda: lane.succeeded == 7)
        assert got == [[*range(8)], [0, 1, 2, 3], [4, 5, 6, 7], [4, 5], [4], [5], [6, 7]]
        await app.journal.flush()
        clock.advance(10.1)
        await until(lambda: lane.count == 1)
        await advance(clock, 1.1, lambda: lane.dead == 1)
        assert await reasons(app) == [(5, "RetriesExhausted", 2)]


async def test_rejecting_a_batch_is_final_for_all(tmp_path: Path) -> None:
    @on(local("a"), batch=Batch(2, window=60, bisect=True))
    async def handler(numbers: list[int]) -> None:
        raise Reject("no")

    async with running(tmp_path, handler, toml=TOML) as app:
        await asyncio.gather(put(app, "a", 1), put(app, "a", 2))
        await until(lambda: app.engine.lanes["handler"].dead == 2)
        assert await reasons(app) == [(1, "Rejected", 1), (2, "Rejected", 1)]


async def test_in_order_what_follows_a_failure_of_its_key_is_retried_too(tmp_path: Path, clock: ManualClock) -> None:
    got: list[list[str]] = []
    broken = {"a2"}

    @on(local("{key}"), order_by="key", batch=Batch(6, window=5), retries=3, backoff=fixed(10))
    async def handler(names: list[Any], key: list[str]) -> None:
        got.append(names)
        raise PartialFailure([place for place, name in enumerate(names) if name in broken])

    async with running(tmp_path, handler, clock=clock, toml=TOML) as app:
        lane = app.engine.lanes["handler"]
        await asyncio.gather(*(put(app, name[0], name) for name in ("a1", "a2", "b1", "a3", "b2", "a4")))
        await until(lambda: len(got) == 1)
        assert [name for name in got[0] if name[0] == "a"] == ["a1", "a2", "a3", "a4"]
        broken.clear()
        await app.journal.flush()
        clock.advance(10.1)
        await until(lambda: lane.count == 1)
        clock.advance(5.1)
        await until(lambda: len(got) == 2)
        await app.journal.flush()
        await until(lambda: lane.count == 2)
        await advance(clock, 5.1, lambda: len(got) == 3)
        assert got[1:] == [["a2"], ["a3", "a4"]]
        await until(lambda: lane.active == 0)


async def test_each_trigger_has_batches_of_its_own(tmp_path: Path) -> None:
    got: list[tuple[list[int], list[str]]] = []

    @on(local("a/{x}"), local("b/{x}"), batch=Batch(4, window=60))
    async def handler(numbers: list[int], x: list[str]) -> None:
        got.append((numbers, x))

    async with running(tmp_path, handler, toml=TOML) as app:
        await asyncio.gather(put(app, "a/1", 1), put(app, "b/2", 2), put(app, "a/3", 3), put(app, "b/4", 4))
        await until(lambda: len(got) == 2)
        assert got == [([1, 3], ["1", "3"]), ([2, 4], ["2", "4"])]


async def test_a_batch_is_no_larger_than_6_megabytes(tmp_path: Path) -> None:
    sizes: list[int] = []

    @on(local("a"), batch=Batch(10), concurrency=1, timeout=30)
    async def handler(texts: list[str]) -> None:
        sizes.append(len(texts))

    async with running(tmp_path, handler, toml=TOML) as app:
        await asyncio.gather(*(put(app, "a", "x" * 2_500_000) for _ in range(6)))
        await until(lambda: sum(sizes) == 6)
    assert max(sizes) == 2


async def test_partial_answers_as_aws_reads_them(cases: Path) -> None:
    for case in json.loads((cases / "streams/partial_batch_responses.json").read_text()):
        answer = case["handler_returns"]
        if isinstance(answer, dict) and "__raises__" in answer:
            continue
        if case["expected"] == "batch_succeeds":
            assert failed_items(answer, ["1", "2"]) == set(), case["id"]
        else:
            with pytest.raises(Malformed):
                failed_items(answer, ["1", "2"])


@pytest.mark.parametrize("answer", [{"batchItemFailures": [{"itemIdentifier": "9"}]}, {"batchItemFailures": {}}, PartialFailure([2])])
def test_an_answer_that_names_no_event_of_the_batch_fails_it_whole(answer: Any) -> None:
    with pytest.raises(Malformed):
        failed_items(answer, ["1", "2"])


async def plain(payload: list[int]) -> None: ...


async def one(payload: int) -> None: ...


@pytest.mark.parametrize(
    ("handler", "trigger", "policy", "fault"),
    [
        (plain, local("a", mode="request"), {"batch": Batch(2)}, "a request has one answer"),
        (one, local("a"), {"batch": Batch(2)}, "'payload' is a list with a place for each event"),
        (one, local("a/{device}"), {"order_by": "devise"}, r"order_by='devise' is no wildcard of its triggers; did you mean 'device'"),
        (one, local("a"), {"order_by": "$.a b"}, "JSON path"),
    ],
)
def test_what_cannot_be_is_refused_at_load(handler: Any, trigger: Any, policy: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        Function(handler, [trigger], Policy(**policy))


@pytest.mark.parametrize("make", [lambda: Batch(0), lambda: Batch(10_001), lambda: Batch(1, window=301)])
def test_a_batch_has_bounds(make: Any) -> None:
    with pytest.raises(ValueError, match="Batch"):
        make()


async def test_an_event_nested_beyond_reason_has_no_key(tmp_path: Path) -> None:
    got: list[int] = []

    @on(local("a"), order_by="$.device")
    async def handler(data: bytes) -> None:
        got.append(len(data))

    async with running(tmp_path, handler) as app:
        assert await app.sources["local"].router.deliver([Event("local", "local.put", "a", b'{"device":' * 100_000)]) == 1
        await until(lambda: got == [1_000_000])
