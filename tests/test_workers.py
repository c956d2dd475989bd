"""Workers rest while their lanes are empty, and are no more trouble for it."""

import asyncio
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from eventrouter import on
from support import event, local, put, running, until

MEMORY = "[journal]\nurl = 'memory'\n"


async def test_the_next_event_has_the_worker_of_the_last(tmp_path: Path) -> None:
    tasks: list[Any] = []

    @on(local("a"))
    async def handler() -> None:
        tasks.append(asyncio.current_task())

    async with running(tmp_path, handler, toml=MEMORY) as app:
        for count in range(1, 4):
            await put(app, "a")
            await until(lambda count=count: len(tasks) == count and not app.engine.lanes["handler"].active)
    assert len(set(tasks)) == 1
    assert tasks[0].done()


async def test_those_that_ran_beside_each_other_leave_one(tmp_path: Path) -> None:
    both = asyncio.Event()
    waiting = 0

    @on(local("a"))
    async def handler() -> None:
        nonlocal waiting
        waiting += 1
        if waiting == 3:
            both.set()
        await both.wait()

    async with running(tmp_path, handler, toml=MEMORY) as app:
        for _ in range(3):
            await put(app, "a")
        await until(lambda: both.is_set() and not app.engine.lanes["handler"].active)
        await until(lambda: len(app.engine.workers.tasks) == 1)


def many(ran: list[Any], go: asyncio.Event | None = None) -> dict[str, Callable[..., Any]]:
    """Seventy functions that note the tasks they run in."""

    def made(name: str) -> Callable[..., Any]:
        async def handler() -> None:
            ran.append(asyncio.current_task())
            if go is not None:
                await go.wait()

        handler.__name__ = name
        return on(local(name))(handler)

    return {name: made(name) for name in (f"f{number:03}" for number in range(70))}


async def test_sixty_four_serve_any_number_of_functions(tmp_path: Path) -> None:
    tasks: list[Any] = []
    functions = many(tasks)
    async with running(tmp_path, *functions.values(), toml=MEMORY) as app:
        for count, name in enumerate([*functions] * 2, 1):
            await put(app, name)
            await until(lambda name=name, count=count: len(tasks) == count and not app.engine.lanes[name].active)
        assert len(app.engine.workers.tasks) == 64
    assert len(set(tasks)) == 64
    assert tasks[:64] != tasks[70:134]


async def test_no_more_than_sixty_four_rest(tmp_path: Path) -> None:
    tasks: list[Any] = []
    go = asyncio.Event()
    functions = many(tasks, go)
    async with running(tmp_path, *functions.values(), toml=MEMORY) as app:
        for name in functions:
            await put(app, name)
        await until(lambda: len(tasks) == 70)
        assert len(app.engine.workers.tasks) == 70
        go.set()
        await until(lambda: len(app.engine.workers.tasks) == 64)


async def test_who_needs_a_worker_lends_it_no_context_variables(tmp_path: Path) -> None:
    """A request that gives its concurrency to an event that waits for it."""
    variable: ContextVar[str] = ContextVar("variable", default="none")
    seen: list[str] = []
    go = asyncio.Event()

    @on(local("a"), concurrency=1)
    async def handler() -> None:
        seen.append(variable.get())
        await go.wait()

    async with running(tmp_path, handler, toml=MEMORY) as app:

        async def request() -> None:
            variable.set("the request's")
            await app.engine.call("handler", event("a"))

        asked = asyncio.create_task(request())
        await until(lambda: bool(seen))
        await put(app, "a")
        await until(lambda: app.engine.lanes["handler"].waiting)
        go.set()
        await asked
        await until(lambda: len(seen) == 2)
    assert seen == ["the request's", "none"]


async def test_one_that_rests_keeps_nothing_alive(tmp_path: Path) -> None:
    class Attributes(dict[str, Any]):
        """Can be referred to weakly."""

    ran: list[str] = []

    @on(local("a"))
    async def handler() -> None:
        ran.append("a")

    @on(local("b"))
    async def other() -> None:
        ran.append("b")

    async with running(tmp_path, handler, other, toml=MEMORY) as app:
        made = event("a")
        made.attributes = Attributes()
        kept = weakref.ref(made.attributes)
        await app.engine.deliver([made])
        del made
        await until(lambda: bool(ran) and not app.engine.lanes["handler"].active)
        await put(app, "b")  # for the journal, whose hands are not empty before they have the next
        await until(lambda: len(ran) == 2 and not app.engine.lanes["other"].active)
        await app.journal.flush()
        await until(lambda: kept() is None)
