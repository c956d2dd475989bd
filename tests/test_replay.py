"""What was accepted runs again out of the archive."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eventrouter import Event, on
from eventrouter.clock import ManualClock
from eventrouter.errors import ConfigError, JournalError
from eventrouter.operations import Operations
from eventrouter.plugins import Plugins
from eventrouter_sqs import eventrouter_plugin as sqs_plugin
from eventrouter_sqs import sqs
from served import Place
from support import LOCAL, local, make_app, put, running, until

ARCHIVE = '[journal]\narchive = "7d"\n'


async def test_accepted_events_run_again_in_order_with_fresh_ids(tmp_path: Path) -> None:
    clock = ManualClock()
    got: list[tuple[Any, str, dict[str, Any], float | None]] = []

    @on(local("a/{x}"))
    async def work(event: Event, x: str) -> None:
        got.append((event.json(), event.id, dict(event.attributes), event.time))

    @on(local("a/{x}"))
    async def other(x: str) -> None: ...

    async with running(tmp_path, work, other, clock=clock, toml=ARCHIVE) as app:
        began = clock.time()
        for number in range(5):
            await put(app, f"a/{number}", number, id=f"id {number}")
            clock.advance(60)
        await until(lambda: len(got) == 5)
        answer = await Operations(app).replay("work", began + 60, began + 180)
        assert (answer["replayed"], answer["unwanted"]) == (3, 0)
        assert answer["name"].startswith("replay-")
        await until(lambda: len(got) == 8)
        again = got[5:]
        assert [data for data, *_ in again] == [1, 2, 3]
        assert not {id for _, id, *_ in again} & {id for _, id, *_ in got[:5]}
        assert [attributes for _, _, attributes, _ in again] == [{"replay": answer["name"]}] * 3
        assert [time for *_, time in again] == [time for *_, time in got[1:4]]  # when it happened, not when it was replayed
        assert (await Operations(app).replay("work", began))["replayed"] == 5  # replays aren't archived again
        await until(lambda: len(got) == 13)
    assert app.engine.lanes["other"].accepted == 5


async def test_what_a_function_takes_from_queues_is_replayed_for_it_too(tmp_path: Path) -> None:
    got: list[str] = []

    @on(sqs("{team}-jobs"))
    async def work(body: str, team: str) -> None:
        got.append(f"{team} {body}")

    async with make_app(tmp_path, work, toml=ARCHIVE, plugins=Plugins([LOCAL, sqs_plugin()])) as app:
        for queue in ("red-jobs", "blue-jobs", "others"):
            await Operations(app).send("sqs", [queue, "hello"], {}, str(tmp_path))
        await until(lambda: len(got) == 2)
        assert (await Operations(app).replay("work", 0))["replayed"] == 2
        await until(lambda: len(got) == 4)
        assert (await Operations(app).replay("sqs:red-jobs", 0))["replayed"] == 1
        await until(lambda: len(got) == 5)
        assert (await Operations(app).replay("sqs:others", 0))["replayed"] == 1
        assert (await app.journal.depth())["sqs:others"]["waiting"] == 2
    assert sorted(got) == ["blue hello", "blue hello", "red hello", "red hello", "red hello"]


async def test_direct_invocations_are_replayed_with_their_parameters(tmp_path: Path) -> None:
    got: list[tuple[Any, str]] = []

    @on(local("a/{x}"))
    async def work(payload: dict[str, int], x: str) -> None:
        got.append((payload, x))

    async with running(tmp_path, work, toml=ARCHIVE) as app:
        await Operations(app).invoke("work", '{"n": 1}', {"x": "by hand"}, later=True)
        await until(lambda: got)
        assert (await Operations(app).replay("work", 0))["replayed"] == 1
        await until(lambda: len(got) == 2)
    assert got == [({"n": 1}, "by hand")] * 2


async def test_order_is_kept_in_a_replay(tmp_path: Path) -> None:
    got: list[int] = []

    @on(local("a/{x}"), order_by="x")
    async def work(number: int, x: str) -> None:
        got.append(number)

    async with running(tmp_path, work, toml=ARCHIVE) as app:
        for number in range(200):
            await put(app, "a/k", number)
        await until(lambda: len(got) == 200)
        await Operations(app).replay("work", 0)
        await until(lambda: len(got) == 400)
    assert got == [*range(200)] * 2


async def test_what_no_trigger_wants_any_more_is_counted_not_run(tmp_path: Path) -> None:
    got: list[str] = []

    def handler(pattern: str) -> Any:
        @on(local(pattern))
        async def work(event: Event) -> None:
            got.append(event.subject)

        return work

    async with running(tmp_path, handler("old"), toml=ARCHIVE) as app:
        await put(app, "old")
        await until(lambda: got)
    async with running(tmp_path, handler("new"), toml=ARCHIVE) as app:
        await put(app, "new")
        await until(lambda: len(got) == 2)
        answer = await Operations(app).replay("work", 0)
        assert (answer["replayed"], answer["unwanted"]) == (1, 1)
        await until(lambda: len(got) == 3)
        assert await Operations(app).letters({}) == []
    assert got == ["old", "new", "new"]


async def test_a_replay_that_finds_no_room_says_how_far_it_came(tmp_path: Path) -> None:
    @on(local("a"), concurrency=1, max_age=604_800, retries=185)
    async def work(event: Event) -> None:
        raise RuntimeError

    async with running(tmp_path, work, toml=ARCHIVE + "max_backlog = 1500\n") as app:
        for _ in range(1000):
            put(app, "a")
        await put(app, "a")
        with pytest.raises(JournalError, match=r"^1000 were replayed as replay-\S+, then it failed: the backlog is full"):
            await Operations(app).replay("work", 0)


async def test_without_an_archive_the_error_says_what_to_write(tmp_path: Path) -> None:
    @on(local("a"))
    async def work(event: Event) -> None: ...

    async with running(tmp_path, work) as app:
        with pytest.raises(ConfigError) as caught:
            await Operations(app).replay("work", 0)
    assert 'archive = "7d" under [journal]' in str(caught.value)
    assert str(tmp_path / "eventrouter.toml") in str(caught.value)


async def test_a_function_that_is_none_is_named(tmp_path: Path) -> None:
    @on(local("a"))
    async def work(event: Event) -> None: ...

    async with running(tmp_path, work, toml=ARCHIVE) as app:
        with pytest.raises(ConfigError, match=r"'wrok'; did you mean 'work'\?"):
            await Operations(app).replay("wrok", 0)


def test_the_command_with_and_without_a_running_router(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "from eventrouter import on\nfrom eventrouter_sns import sns\n\n\n"
        '@on(sns("t"))\nasync def work(text: str) -> None:\n    print("got", text, flush=True)\n'
    )
    (tmp_path / "eventrouter.toml").write_text("[http]\nport = 0\n")
    with Place(tmp_path) as place:
        refused = place.result("replay", "--function", "work", "--since", "1h")
        assert (refused.returncode, refused.stdout) == (2, "")
        assert 'archive = "7d" under [journal]' in refused.stderr
        (tmp_path / "eventrouter.toml").write_text(f"[http]\nport = 0\n{ARCHIVE}")
        place.serve()
        for word in ("one", "two"):
            place.run("send", "sns", "t", word)
            place.says(f"got {word}")
        assert place.run("replay", "--function", "work", "--since", "1h") == "2 replayed\n"
        place.says("got one\ngot two\ngot one\ngot two\n")
        place.stop()
        answer = json.loads(place.run("replay", "--function", "work", "--since", "2000-01-01", "--until", "2099-01-01", "--json"))
        assert {**answer, "name": ""} == {"replayed": 2, "unwanted": 0, "name": ""}
        assert place.run("replay", "--function", "work", "--since", "1h", "--until", "30m") == "0 replayed\n"
        place.serve()
        place.says("got one\ngot two\n")
        assert "--until: 'soon' is no time" in place.run("replay", "--function", "work", "--since", "1h", "--until", "soon", code=2)
