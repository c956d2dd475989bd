"""Answers in chunks are consumed within the attempt that makes them."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Annotated, Any

from eventrouter import Depends, Event, Response, Succeeded, TimedOut, invoke, on
from eventrouter.clock import ManualClock
from support import advance, event, local, running, until

SEEN: list[Any] = []


async def make_pool() -> Any:
    yield "pool"
    SEEN.append("closed")


async def test_what_streams_is_one_result_when_nobody_takes_it_in_chunks(tmp_path: Path) -> None:
    @on()
    async def text() -> Any:
        yield "a"
        yield "b"

    @on()
    async def numbers() -> Any:
        yield 1
        yield 2

    @on()
    async def asks() -> Any:
        return [await invoke("text"), await invoke("numbers")]

    async with running(tmp_path, text, numbers, asks) as app:
        outcome = await app.run_now("asks", Event("invoke", "lambda.invoke", "asks"), {})
        assert outcome == Succeeded(["ab", [1, 2]])


async def test_a_stream_holds_its_slot_its_time_and_what_it_depends_on(tmp_path: Path) -> None:
    SEEN.clear()
    seen = SEEN

    @on(local("a", mode="request"), concurrency=1, timeout=5)
    async def chunks(pool: Annotated[str, Depends(make_pool)]) -> Any:
        yield pool
        yield "more"

    @on(local("b", mode="request"))
    def lines() -> Any:
        return Response((threading.current_thread().name for _ in range(2)), 201)

    async def take(result: Any) -> Any:
        body = result.body if isinstance(result, Response) else result
        async for chunk in body:
            seen.append(chunk)
            seen.append(app.engine.lanes["chunks"].active)
        return getattr(result, "status", 200)

    clock = ManualClock()
    async with running(tmp_path, chunks, lines, clock=clock) as app:
        bindings = {binding.function.name: binding for binding in app.sources["local"].router.bindings}
        request = app.sources["local"].router.request
        assert await request(bindings["chunks"], event("a"), {}, take) == Succeeded(200)
        assert seen == ["pool", 1, "more", 1, "closed"]
        seen.clear()
        assert await request(bindings["lines"], event("b"), {}, take) == Succeeded(201)
        assert seen[0].startswith("handler-")

        async def never(result: Any) -> Any:
            await asyncio.Event().wait()

        late = asyncio.create_task(asyncio.wait_for(request(bindings["chunks"], event("a"), {}, never), 20))
        await until(lambda: app.engine.lanes["chunks"].active)
        await advance(clock, 5, late.done)
        assert late.result() == TimedOut(5)
        assert app.engine.lanes["chunks"].active == 0
