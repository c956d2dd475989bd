"""Handlers that call the router from processes of their own."""

import asyncio
import os
import socket
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec

from calling_clients import Box, Item
from eventrouter import Context, Depends, EventRouterError, Response, fixed, invoke, on, on_start, on_stop
from eventrouter.runtimes.frames import Ask, Line, frame
from eventrouter_events import Bus
from eventrouter_s3 import Bucket
from eventrouter_sns import Topic, sns
from eventrouter_sqs import Queue
from eventrouter_tables import Table
from support import local

box, bucket, topic, queue, bus, table = Box("a"), Bucket("files"), Topic("round"), Queue("jobs"), Bus(), Table("stock")
started: list[int] = []


@on_start
def start() -> None:
    started.append(os.getpid())


@on_stop
async def stop() -> None:
    print("stopped", os.getpid() in started)


@on(isolation="inline")
async def twice(payload: int) -> int:
    if payload < 0:
        raise LookupError("negative")
    return payload * 2


@on(isolation="inline")
async def whole(payload: Any) -> Response:
    return Response({"got": payload}, 201)


@on()
def began(payload: Any) -> list[Any]:
    return [started == [os.getpid()], os.getpid()]


@on()
def calls(payload: int) -> Any:
    return invoke.sync("twice", payload)


@on(timeout=20, isolation="process")
async def gathers(payload: int) -> list[Any]:
    return await asyncio.gather(*(invoke("twice", number) for number in range(payload)))


@on(timeout=20)
def from_threads(payload: int) -> list[int]:
    got: list[int] = []
    threads = [threading.Thread(target=lambda: got.append(invoke.sync("twice", 1))) for _ in range(payload)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    async def on_a_loop_of_its_own() -> int:
        return int(await invoke("twice", 1))

    return [*got, asyncio.run(on_a_loop_of_its_own())]


@on(timeout=20)
def clients(payload: Any) -> dict[str, Any]:
    bucket.sync.write("a.txt", b"\x00data")
    topic_id = topic.sync.publish({"n": 0}, attributes={"kind": "x"})
    ids = queue.sync.send_many(str(number) for number in range(3))
    received = queue.sync.receive(3)
    deleted = [queue.sync.delete(message) for message in received]
    return {
        "read": bucket.sync.read("a.txt"),
        "list": bucket.sync.list(),
        "topic": topic_id,
        "sent": len(ids),
        "bodies": sorted(message.body for message in received),
        "json": sum(message.json() for message in received),
        "deleted": deleted,
        "depth": queue.sync.depth().available,
        "bus": bus.sync.put("Ordered", {"id": 7}, time=datetime(2026, 1, 1, tzinfo=UTC)),
        "row": table.sync.put({"item": "lamp", "count": 3}),
        "changed": table.sync.update("lamp", count=2),
    }


@on()
def boxes(payload: Any) -> list[Any]:
    return [box.sync.put(Item("x", 1), tags={"k"}), msgspec.to_builtins(Box("b").sync.get("y")), box.label("here")]


@on(isolation="process")
async def fails(payload: Any) -> list[Any]:
    """The class of what each raises, and its words."""
    wrong = {
        "missing": lambda: bucket.read("none"),
        "value": lambda: bucket.read("../x"),
        "invoke": lambda: invoke("twice", -1),
        "unknown": lambda: invoke("nobody"),
        "type": lambda: box.put("no item", tags=set()),  # type: ignore[arg-type]
        "arguments": box.put,  # type: ignore[call-arg]
        "object": lambda: bucket.write("x", object()),  # type: ignore[arg-type]
        "own": lambda: box.fail("own"),
        "foreign": lambda: box.fail("foreign"),
        "large": lambda: bucket.write("x", bytes(70_000_000)),
        "large result": lambda: box.fail("large"),
        "not data": lambda: box.fail("not data"),
        "many": lambda: anext(box.items()),
    }
    try:
        await wrong[payload]()
    except Exception as error:
        return [type(error).__name__, str(error), isinstance(error, EventRouterError), getattr(error, "error_type", None)]
    return ["nothing"]


@on(isolation="process")
async def gives_up(payload: Any) -> str:
    try:
        await asyncio.wait_for(box.wait(), 0.05)
    except TimeoutError:
        return "gave up"
    return "got it"


@on(timeout=0.5)
def waits(payload: Any) -> None:
    box.sync.wait()


@on()
def leaves(payload: Any) -> None:
    threading.Thread(target=box.sync.wait, daemon=True).start()
    box.sync.put(Item("after", 0), tags=set())


@on()
def forks(payload: Any) -> int:
    """What became of a call that a child made."""
    pid = os.fork()
    if pid == 0:
        try:
            invoke.sync("twice", 1)
        except EventRouterError:
            os._exit(7)
        finally:
            os._exit(8)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def line_of_calls() -> socket.socket:
    """Whatever it is hidden in, a handler can find it."""
    import gc

    from eventrouter.runtimes.channel import Channel

    (channel,) = [each for each in gc.get_objects() if isinstance(each, Channel)]
    return channel._end


@on()
def forges(payload: dict[str, Any], context: Context) -> Any:
    """What the reply to a call says that no client would make."""
    end = line_of_calls()
    end.sendall(frame(Ask(1, **{"id": context.aws_request_id, "method": "", **payload})))
    data = Line(end).take()
    assert data is not None
    _, value, raised, _ = msgspec.msgpack.decode(data)
    return value if raised is None else [raised[1], *raised[2]]


@on()
def babbles(payload: Any) -> None:
    line_of_calls().sendall({"garbage": b"\0\0\0\1\xc1", "huge": b"\xff\xff\xff\xffx"}[payload])
    threading.Event().wait()


@on(timeout=20)
def floods(payload: int, context: Context) -> int:
    """How many are answered of so many calls whose replies nobody reads for a while."""
    end = line_of_calls()
    for number in range(payload):
        end.sendall(frame(Ask(number, context.aws_request_id, "calling_clients:Box", "get", {"name": "a"}, ["b"])))
    line = Line(end)
    return len({msgspec.msgpack.decode(line.take() or b"")[0] for _ in range(payload)})


@on(local("round"), retries=0, backoff=fixed(0))
def rounds(payload: int) -> None:
    box.sync.start("round", payload + 1)


@on(sns("round"), retries=0)
def publishes(event, context):  # type: ignore[no-untyped-def]
    topic.sync.publish({"n": 1})


@on(timeout=30)
def invokes_itself(payload: int) -> Any:
    return invoke.sync("invokes_itself", payload + 1)


@on(local("chunks", mode="request"), isolation="process")
async def chunks(payload: int) -> AsyncIterator[Any]:
    try:
        for number in range(payload):
            yield {"n": number}
            print("made", number)
    finally:
        print("closed")


def resource() -> Iterator[str]:
    yield "open"
    print("let go")


@on(local("lines", mode="request"))
def lines(payload: int, made: Annotated[str, Depends(resource)]) -> Response:
    def each() -> Iterator[str]:
        for number in range(payload):
            yield f"{made} {number}\n"

    return Response(each(), 203, {"X-Kind": "lines"})


@on(local("plain", mode="request"))
def plain(payload: int) -> Iterator[bytes]:
    return iter([b"x" * payload] * 3)


@on(local("breaks", mode="request"), isolation="process")
async def breaks(payload: int) -> AsyncIterator[str]:
    yield "one"
    raise LookupError("broken")


@on(local("hangs", mode="request"), timeout=0.5, isolation="process")
async def hangs(payload: int) -> AsyncIterator[str]:
    yield "one"
    await asyncio.Event().wait()


@on()
def says(event, context):  # type: ignore[no-untyped-def]
    print("one", event)
    sys.stderr.write("two, without an end")


@on(log_invocations=False)
def silent(payload: Any) -> None:
    print("silent", payload)


@on()
async def inline_says(event, context):  # type: ignore[no-untyped-def]
    print("inline", event)
    await asyncio.sleep(0.01)
    print("again", event)


@on(isolation="thread", log_invocations=True)
def thread_says(payload: Any) -> None:
    print("thread", payload)
