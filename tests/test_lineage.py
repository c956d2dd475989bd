"""Functions that start each other without end are stopped after 16 rounds, whatever leads from one to the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eventrouter import App, Batch, Event, Retry, invoke, on
from eventrouter.invoking import InvokeError
from eventrouter.journal.protocol import Letter, LetterQuery
from eventrouter.lineage import LIMIT
from eventrouter.operations import Operations
from eventrouter.plugins import Plugins
from eventrouter_sns import Topic, sns
from eventrouter_sns import eventrouter_plugin as sns_plugin
from eventrouter_sqs import Queue, sqs
from eventrouter_sqs import eventrouter_plugin as sqs_plugin
from support import LOCAL, local, make_app, put, until


def app_of(folder: Path, *handlers: Any) -> App:
    return make_app(folder, *handlers, plugins=Plugins([LOCAL, sns_plugin(), sqs_plugin()]))


async def letters(app: App, count: int = 1) -> list[Letter]:
    await until(lambda: sum(lane.dead for lane in (*app.engine.lanes.values(), *filter(None, app.engine.intake.queues.values()))) == count)
    await app.journal.flush()
    return await app.journal.dead(LetterQuery())


async def test_a_loop_ends_as_a_dead_letter_that_names_the_chain(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    runs: list[str] = []

    @on(local("start"))
    async def begin(payload: Any) -> None:
        await Topic("ping").publish("x")

    @on(sns("ping"))
    async def ping(text: str) -> None:
        runs.append("ping")
        await Queue("pong").send(text)

    @on(sqs("pong"))
    def pong(text: str) -> None:  # in a thread
        runs.append("pong")
        Topic("ping").sync.publish(text)

    async with app_of(tmp_path, begin, ping, pong) as app:
        await put(app, "start")
        (letter,) = await letters(app)
    assert (runs.count("ping"), runs.count("pong")) == (LIMIT, LIMIT)
    assert (letter.function, letter.reason, letter.attempts) == ("ping", "RecursiveLoop", 0)
    assert "ping started itself again and again, by way of: begin 1x, ping 16x, pong 16x; end the loop" in letter.error_message
    assert letter.error_message in caplog.text


async def test_what_is_published_often_but_not_in_a_chain_runs(tmp_path: Path) -> None:
    runs: list[int] = []

    @on(local("start"))
    async def begin(payload: Any) -> None:
        for number in range(100):
            await Topic("work").publish(number)

    @on(sns("work"))
    async def work(number: int) -> None:
        runs.append(number)

    async with app_of(tmp_path, begin, work) as app:
        await put(app, "start")
        await put(app, "start")
        await until(lambda: len(runs) == 200)


async def test_only_what_a_handler_brings_about_inherits(tmp_path: Path) -> None:
    seen: list[tuple[str, Any]] = []

    @on(local("a"))
    async def a(event: Event) -> None:
        seen.append((event.subject, event.attributes.get("lineage")))
        if event.json() == "go":
            await put(app, "a", "brought about")

    async with app_of(tmp_path, a) as app:
        await put(app, "a", "go")
        await until(lambda: len(seen) == 2)
        await app.run_now("a", Event("invoke", "lambda.invoke", "asked", b"0"), {})
        await put(app, "a", "from outside")  # in the task that has just asked
        await until(lambda: len(seen) == 4)
    assert seen == [("a", None), ("a", {"a": 1}), ("asked", None), ("a", None)]


async def test_a_retry_is_no_further_round(tmp_path: Path) -> None:
    seen: list[Any] = []

    @on(local("a"), retries=5)
    async def a(event: Event) -> None:
        if event.attempt < 4:
            raise Retry(after=0)
        if event.json() < 2:
            await put(app, "a", event.json() + 1)
        seen.append(event.attributes.get("lineage"))

    async with app_of(tmp_path, a) as app:
        await put(app, "a", 0)
        await until(lambda: len(seen) == 3)
    assert seen == [None, {"a": 1}, {"a": 2}]


async def test_batches_inherit_the_longest_chain(tmp_path: Path) -> None:
    rounds: list[int] = []

    @on(sqs("loop"), batch=Batch(10))
    async def loop(bodies: list[str]) -> None:
        rounds.append(len(bodies))
        await Queue("loop").send("again")

    @on(local("start"))
    async def begin(payload: Any) -> None:
        await Queue("loop").send("first")

    async with app_of(tmp_path, begin, loop) as app:
        await put(app, "start")
        (letter,) = await letters(app)
    assert len(rounds) == LIMIT
    assert (letter.function, letter.reason) == ("sqs:loop", "RecursiveLoop")


async def test_whoever_allows_it_may_loop(tmp_path: Path) -> None:
    runs: list[int] = []

    @on(local("count"), recursive_loop="allow")
    async def count(number: int) -> None:
        runs.append(number)
        if number < 40:
            await put(app, "count", number + 1)

    async with app_of(tmp_path, count) as app:
        await put(app, "count", 0)
        await until(lambda: len(runs) == 41)


async def test_a_loop_ends_after_a_restart_too_and_redrive_begins_a_new_chain(tmp_path: Path) -> None:
    runs: list[str] = []

    @on(local("a"))
    async def a(event: Event) -> None:
        runs.append("a")
        await put(app, "a")

    app = app_of(tmp_path, a)
    await app.start(sources=False)  # it works nothing off: what is accepted waits in the file
    await app.engine.deliver([Event("local", "local.put", "a", b"null", attributes={"lineage": {"a": LIMIT}})])
    await app.stop()
    async with app_of(tmp_path, a) as app:
        (letter,) = await letters(app)
        assert letter.reason == "RecursiveLoop"
    assert runs == []
    async with app_of(tmp_path, a) as app:
        assert await app.engine.by_hand.redrive([letter.id]) == 1
        (again,) = await letters(app)
        assert again.reason == "RecursiveLoop"
    assert len(runs) == LIMIT


async def test_replay_begins_a_new_chain(tmp_path: Path) -> None:
    seen: list[Any] = []

    @on(local("a"))
    async def a(event: Event) -> None:
        seen.append(event.attributes.get("lineage"))
        if event.json():
            await put(app, "a", 0)

    async with make_app(tmp_path, a, plugins=Plugins([LOCAL]), toml='[journal]\narchive = "7d"\n') as app:
        began = app.clock.time() - 1
        await put(app, "a", 1)
        await until(lambda: len(seen) == 2)
        await Operations(app).replay("a", began)
        await until(lambda: len(seen) == 5)
    assert seen[:2] == [None, {"a": 1}]
    assert sorted(seen[2:], key=str) == [None, None, {"a": 1}]


async def test_destinations_are_links_of_the_chain(tmp_path: Path) -> None:
    runs: list[str] = []

    @on(local("a"), on_success="lambda:b")
    async def a(payload: Any) -> None:
        runs.append("a")

    @on(retries=0, dlq="lambda:c")
    async def b(record: dict[str, Any]) -> None:
        runs.append("b")
        raise ValueError("b fails")

    @on(on_success="lambda:b")
    async def c(record: dict[str, Any]) -> None:
        runs.append("c")

    async with app_of(tmp_path, a, b, c) as app:
        await put(app, "a")
        dead = await letters(app, LIMIT + 2)
    assert (runs.count("a"), runs.count("b"), runs.count("c")) == (1, LIMIT, LIMIT)
    assert [letter.function for letter in dead if letter.reason == "RecursiveLoop"] == ["b", "c"]


async def test_functions_that_invoke_each_other(tmp_path: Path) -> None:
    runs: list[int] = []

    @on()
    async def deeper(depth: int) -> int:
        runs.append(depth)
        return await invoke("deeper", depth + 1) + 1  # type: ignore[no-any-return]

    @on()
    async def allowed(depth: int) -> int:
        return 0 if depth == 30 else await invoke("allowed", depth + 1) + 1

    allowed = on(recursive_loop="allow")(allowed)

    @on()
    async def wide(count: int) -> int:
        return sum([await invoke("leaf") for _ in range(count)])

    @on()
    async def leaf() -> int:
        return 1

    async with app_of(tmp_path, deeper, allowed, wide, leaf):
        with pytest.raises(InvokeError, match="deeper started itself again and again, by way of: deeper 16x"):
            await invoke("deeper", 0)
        assert await invoke("allowed", 0) == 30
        assert await invoke("wide", 50) == 50
    assert len(runs) == LIMIT
