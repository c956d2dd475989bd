"""What functions in processes of their own ask of the router: clients, `invoke`, answers in chunks."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from calling_clients import BOX, BoxSource, Item
from eventrouter import App, Event, Failed, Outcome, Response, Succeeded, TimedOut
from eventrouter.config import load_config
from eventrouter.journal.protocol import LetterQuery
from eventrouter.operations import Operations
from eventrouter.plugins import Plugins, load_plugins
from support import until

HANDLERS = Path(__file__).with_name("calling.py")


@asynccontextmanager
async def isolated(folder: Path, toml: str = "") -> AsyncIterator[Any]:
    """Yields what calls a function and returns its outcome."""
    with closing(sqlite3.connect(folder / "shop.db")) as db:
        db.execute("CREATE TABLE IF NOT EXISTS stock (item TEXT PRIMARY KEY, count INTEGER)")
    file = folder / "eventrouter.toml"
    file.write_text("[journal]\nurl = 'memory'\n[tables]\ndatabase = 'sqlite:///shop.db'\n[http]\nport = 0\n" + toml)
    plugins = Plugins([*load_plugins().by_name.values(), BOX])
    async with App(str(HANDLERS), config=load_config(plugins.by_name, file=file), plugins=plugins) as app:

        async def call(name: str, payload: Any = None) -> Outcome:
            return await app.run_now(name, Event("invoke", "lambda.invoke", name, json.dumps(payload).encode()), {})

        call.app = app  # type: ignore[attr-defined]
        yield call


def box_of(call: Any) -> BoxSource:
    source = call.app.sources["local"]
    assert isinstance(source, BoxSource)
    return source


async def test_invoke_from_the_handler_from_threads_and_many_at_once(tmp_path: Path) -> None:
    async with isolated(tmp_path) as call:
        assert await call("calls", 4) == Succeeded(8)
        assert await call("gathers", 200) == Succeeded([2 * number for number in range(200)])
        assert await call("from_threads", 20) == Succeeded([2] * 21)
        assert await call("floods", 3000) == Succeeded(3000)


async def test_every_client_works_as_it_does_on_the_loop(tmp_path: Path) -> None:
    async with isolated(tmp_path) as call:
        outcome = await call("clients")
        assert isinstance(outcome, Succeeded), outcome
        got = outcome.result
        assert (got["read"], got["list"]) == (b"\0data", ["a.txt"])
        assert (got["sent"], got["bodies"], got["json"], got["deleted"], got["depth"]) == (3, ["0", "1", "2"], 3, [True] * 3, 0)
        assert got["row"] == {"item": "lamp", "count": 3}
        assert got["changed"] == {"item": "lamp", "count": 2}
        assert got["topic"]
        assert got["bus"]


async def test_a_plugins_client_needs_one_line(tmp_path: Path) -> None:
    async with isolated(tmp_path) as call:
        assert (await call("boxes")).result == [["a", "Item", 1, ["k"]], {"name": "b/y", "count": 5}, "a: here"]
        assert box_of(call).items == [Item("x", 1)]


ERRORS = [
    ("missing", "FileNotFoundError", "none"),
    ("value", "ValueError", "../x"),
    ("invoke", "InvokeError", "twice: LookupError: negative"),
    ("unknown", "ConfigError", "no function is named 'nobody'"),
    ("type", "TypeError", "Box.put: item: Expected `object`, got `str`"),
    ("arguments", "TypeError", "Box.put: missing a required argument: 'item'"),
    ("object", "TypeError", "object is no data"),
    ("own", "Odd", "an argument"),
    ("foreign", "Odd", "<object object"),
    ("large", "TooLarge", "more than the 64 MiB that go between"),
    ("large result", "TooLarge", "more than the 64 MiB that go between"),
    ("not data", "TypeError", "object is no data"),
    ("many", "EventRouterError", "one value after another"),
]


async def test_errors_are_those_of_the_client(tmp_path: Path) -> None:
    async with isolated(tmp_path) as call:
        for what, kind, words in ERRORS:
            outcome = await call("fails", what)
            assert isinstance(outcome, Succeeded), outcome
            name, text, _, error_type = outcome.result
            assert name == kind, what
            assert words in text, what
            assert error_type == ("LookupError" if what == "invoke" else None)
        assert await call("calls", 1) == Succeeded(2)


async def test_what_is_given_up_or_left_behind_ends_in_the_router_too(tmp_path: Path) -> None:
    async with isolated(tmp_path) as call:
        source = box_of(call)
        assert await call("gives_up") == Succeeded("gave up")
        await until(lambda: source.waiting == 0)
        assert await call("waits") == TimedOut(0.5)
        await until(lambda: source.waiting == 0)
        assert await call("leaves") == Succeeded(None)
        await until(lambda: source.waiting == 0)
        assert await call("forks") == Succeeded(7)


FORGED: list[tuple[dict[str, Any], str, str]] = [
    (
        {"id": "of another", "target": "invoke", "args": ["twice", 1]},
        "EventRouterError",
        "an invocation that this environment does not",
    ),
    ({"id": "", "target": "invoke", "args": ["twice", 1]}, "EventRouterError", "an invocation that this environment does not run"),
    ({"target": "os:system", "args": ["true"]}, "EventRouterError", "a plugin names its clients"),
    ({"target": "calling_clients:Box", "method": "_private", "made": {"name": "a"}}, "EventRouterError", "can't call this"),
    ({"target": "calling_clients:Box", "method": "__init__", "args": ["a"]}, "EventRouterError", "can't call this"),
    ({"target": "calling_clients:Box", "method": "label", "args": ["a"]}, "EventRouterError", "can't call this"),
    ({"target": "calling_clients:Box", "method": "get", "made": {"name": {}}, "args": ["a"]}, "TypeError", "Box.get: name: Expected"),
    ({"target": "eventrouter_s3:Bucket", "method": "read", "made": {"name": "../etc"}, "args": ["passwd"]}, "ConfigError", "bucket"),
    ({"target": "eventrouter_s3:Bucket", "method": "read", "made": {"name": 7}, "args": ["passwd"]}, "TypeError", "name: Expected"),
    ({"target": "eventrouter_s3:Bucket", "method": "read", "made": {"other": 7}}, "TypeError", "Bucket.read"),
    ({"target": "", "method": "begin", "args": [None]}, "EventRouterError", "knows no call 'begin'"),
]


async def test_forged_calls_are_refused(tmp_path: Path) -> None:
    async with isolated(tmp_path) as call:
        for ask, kind, words in FORGED:
            outcome = await call("forges", ask)
            assert isinstance(outcome, Succeeded), outcome
            name, text = outcome.result
            assert name == kind, ask
            assert words in text, ask
    async with isolated(tmp_path) as call:
        for what in ("garbage", "huge"):
            failed = await call("babbles", what)
            assert failed.error_type == "Runtime.ExitError"
            assert await call("calls", 1) == Succeeded(2)


async def test_loops_end_as_they_do_on_the_loop(tmp_path: Path) -> None:
    async with isolated(tmp_path, "[app]\nprocesses = 20\n") as call:
        lanes = call.app.engine.lanes
        await box_of(call).put("round", 0)
        await call("publishes", {})
        await until(lambda: lanes["rounds"].dead and lanes["publishes"].dead)
        await call.app.journal.flush()
        for name in ("rounds", "publishes"):
            (letter,) = await call.app.journal.dead(LetterQuery(name))
            assert letter.reason == "RecursiveLoop"
            assert f"{name} 16x" in letter.error_message
        outcome = await call("invokes_itself", 0)
        assert "RecursiveInvocationException" in outcome.error_message


async def test_each_environment_starts_and_stops(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async with isolated(tmp_path) as call:
        first = (await call("began")).result
        assert first[0]
        assert (await call("began")).result == first
    assert "stopped True\n" in capfd.readouterr().out


def binding_of(call: Any, name: str) -> Any:
    return next(binding for binding in box_of(call).router.bindings if binding.function.name == name)


def asking(call: Any, name: str, payload: int, take: Callable[[Any], Any] | None) -> Any:
    event = Event("local", "local.put", name, json.dumps(payload).encode())
    return box_of(call).router.request(binding_of(call, name), event, {}, take)


async def test_answers_come_in_chunks_as_they_are_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    got: list[Any] = []
    seen = got.append

    async def take(result: Any) -> Any:
        body = result.body if isinstance(result, Response) else result
        async for chunk in body:
            seen(chunk)
        return (result.status, result.headers) if isinstance(result, Response) else "all"

    async with isolated(tmp_path) as call:
        assert await asking(call, "chunks", 3, take) == Succeeded("all")
        assert got == [{"n": 0}, {"n": 1}, {"n": 2}]
        got.clear()
        assert await asking(call, "lines", 2, take) == Succeeded((203, {"X-Kind": "lines"}))
        assert got == ["open 0\n", "open 1\n"]
        await until(lambda: "let go\n" in capsys.readouterr().out)
        got.clear()
        assert await asking(call, "plain", 100_000, take) == Succeeded("all")
        assert got == [b"x" * 100_000] * 3
        got.clear()
        outcome = await asking(call, "breaks", 0, take)
        assert (got, outcome.error_type, outcome.error_message) == (["one"], "LookupError", "broken")
        assert await asking(call, "hangs", 0, take) == TimedOut(0.5)
        assert await call("chunks", 2) == Succeeded([{"n": 0}, {"n": 1}])
        assert call.app.engine.lanes["chunks"].active == 0


async def test_a_slow_reader_slows_the_handler_and_may_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    going_on, begun = asyncio.Event(), asyncio.Event()

    async def take_two(chunks: Any) -> str:
        first = await anext(chunks)
        begun.set()
        await going_on.wait()
        second = await anext(chunks)
        await chunks.aclose()
        return f"{first['n']} {second['n']}"

    async with isolated(tmp_path) as call:
        asked = asyncio.ensure_future(asking(call, "chunks", 1000, take_two))
        await begun.wait()
        for _ in range(3):
            await call("calls", 1)  # whatever else goes on meanwhile
        printed = capsys.readouterr().out
        assert printed.count("made") <= 2
        going_on.set()
        assert await asked == Succeeded("0 1")
        await until(lambda: "closed\n" in capsys.readouterr().out)

        async def breaks(chunks: Any) -> None:
            await anext(chunks)
            raise ConnectionError("the peer has gone")

        outcome = await asking(call, "chunks", 1000, breaks)
        assert isinstance(outcome, Failed)
        assert outcome.error_type == "ConnectionError"
        assert await call("chunks", 1) == Succeeded([{"n": 0}])


def lines_of(caplog: pytest.LogCaptureFixture) -> dict[str, list[str]]:
    """By invocation, what is in the log of it."""
    found: dict[str, list[str]] = {}
    for record in caplog.records:
        if record.name == "eventrouter.invocations":
            found.setdefault(f"{vars(record)['function']} {vars(record)['invocation']}", []).append(record.getMessage())
    return found


START, END = r"START RequestId: (\S+) Version: \$LATEST", r"END RequestId: (\S+)"
REPORT = (
    r"REPORT RequestId: (\S+)\tDuration: \d+\.\d\d ms\tBilled Duration: \d+00 ms\tMemory Size: 128 MB\tMax Memory Used: \d+ MB\t"
    r"(Init Duration: \d+\.\d\d ms\t)?"
)


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("says", ["one {0}", "two, without an end"]),
        ("inline_says", ["inline {0}", "again {0}"]),
        ("thread_says", ["thread {0}"]),
    ],
)
async def test_the_log_of_invocations(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, printed: list[str]) -> None:
    caplog.set_level(logging.INFO, "eventrouter")
    async with isolated(tmp_path) as call:
        await asyncio.gather(*(call(name, number) for number in range(20)))
    found = lines_of(caplog)
    assert len(found) == 20
    seen = set()
    for label, (start, *middle, end, report) in found.items():
        number = middle[0].rpartition(" ")[2]
        seen.add(number)
        assert middle == [line.format(number) for line in printed]
        for pattern, line in ((START, start), (END, end), (REPORT, report)):
            matched = re.fullmatch(pattern, line)
            assert matched, line
            assert label == f"{name} {matched[1]}"
    assert seen == {str(number) for number in range(20)}
    cold = sum("Init Duration" in lines[-1] for lines in found.values())
    assert (cold > 0) == (name == "says")


async def test_no_log_where_none_is_wanted(tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.INFO, "eventrouter")
    async with isolated(tmp_path) as call:
        await call("silent", 1)
        await call("twice", 1)
        assert lines_of(caplog) == {}
        await until(lambda: "silent 1\n" in capsys.readouterr().out)
        answer = await Operations(call.app, echo=False).invoke("silent", "2", {})
        assert answer["logs"] == "silent 2\n"
        assert re.fullmatch(REPORT, answer["report"])
        answer = await Operations(call.app, echo=False).invoke("inline_says", "2", {})
        assert [line.partition(" RequestId")[0] for line in answer["logs"].splitlines()] == ["START", "inline 2", "again 2", "END"]
        assert re.fullmatch(REPORT, answer["report"])
