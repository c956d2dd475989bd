"""Handlers for the process runtime's tests, in a file that another process can import."""

import ctypes
import logging
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import msgspec

from eventrouter import Batch, Context, Depends, PartialFailure, Reject, Response, Retry, fixed, on
from support import local

LOADED_IN = os.getpid()


class Reading(msgspec.Struct):
    celsius: float


@on(local("echo"), isolation="process")
def echo(payload: Any) -> Any:
    return payload


@on(local("size"), isolation="process", timeout=30)
def size(payload: bytes) -> bytes:
    return payload[::-1]


@on(local("read/{room}"), isolation="process")
def read(reading: Reading, room: int) -> dict[str, Any]:
    return {"celsius": reading.celsius, "room": room}


@on(isolation="process", env={"COLOUR": "red"})
def aws(event, context):  # type: ignore[no-untyped-def]
    return {
        "event": event,
        "name": context.function_name,
        "id": context.aws_request_id,
        "left": context.get_remaining_time_in_millis(),
        "environ": dict(os.environ),
    }


@on(isolation="process")
async def waits(payload: int) -> Response:
    import asyncio

    await asyncio.sleep(0)
    return Response({"got": payload}, 201, {"x": "y"})


async def pool() -> AsyncIterator[list[int]]:
    yield [os.getpid()]
    print("closed")


@on(isolation="process")
def depends(payload: int, made: Annotated[list[int], Depends(pool, scope="process")]) -> list[int]:
    made.append(payload)
    return made


@on(isolation="process")
def prints(payload: Any) -> None:
    print("out", payload)
    print("err", payload, file=sys.stderr)
    os.write(1, b"raw\n")
    logging.getLogger("mine").warning("logged")


@on(local("raises"), isolation="process", retries=1, backoff=fixed(0))
def raises(payload: Any) -> None:
    raise LookupError("no such thing")


@on(local("rejects"), isolation="process")
async def rejects(payload: Any) -> None:
    raise Reject("not today")


@on(isolation="process")
def retries(payload: Any) -> None:
    raise Retry(7)


@on(isolation="process")
def what(payload: Any) -> Any:
    return object() if payload == "object" else (number for number in (1, 2))


@on(isolation="process")
def exits(payload: int) -> None:
    print("last words")
    os._exit(payload)


@on(isolation="process")
def segfaults(payload: Any) -> None:
    ctypes.string_at(0)


@on(isolation="process")
def kills_itself(payload: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@on(isolation="process")
def writes_to_the_line(payload: Any) -> None:
    for number in range(3, 30):
        try:
            os.write(number, b"\0\0\0\1\xc1")
        except OSError:
            pass
    time.sleep(60)


@on(local("slow"), isolation="process", timeout=0.3, retries=0)
def slow(payload: Any) -> int:
    print(f"pid {os.getpid()}")
    if payload == "regex":
        re.match(r"(a+)+$", "a" * 60 + "b")
    elif payload == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(0.01)
    elif payload == "child":
        import subprocess

        with subprocess.Popen(["sleep", "1000"]) as child:
            print(f"child {child.pid}", flush=True)
            child.wait()
    return os.getpid()


@on(isolation="process")
def who(payload: float) -> tuple[int, int, int]:
    time.sleep(payload)
    return os.getpid(), os.getppid(), LOADED_IN


@on(isolation="process")
def dies(payload: int) -> None:
    if payload:
        os._exit(payload)


@on(isolation="process")
def other(payload: float) -> int:
    time.sleep(payload)
    return os.getpid()


@on(isolation="process")
def descriptors(payload: Any) -> dict[str, str]:
    folder = Path("/proc/self/fd")
    return {each.name: str(each.readlink()) for each in folder.iterdir() if each.exists()}


@on(local("batch"), isolation="process", batch=Batch(3, window=0.2), retries=1, backoff=fixed(0))
def batch(numbers: list[int], context: Context) -> None:
    print(f"batch {sorted(numbers)}")
    bad = [place for place, number in enumerate(numbers) if number < 0]
    if bad:
        raise PartialFailure(bad)
