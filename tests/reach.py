"""A handler that tries whatever it is told to, in a file that another process can import; and which right each try needs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from eventrouter import invoke, on
from eventrouter_events import Bus
from eventrouter_s3 import Bucket
from eventrouter_sns import Topic
from eventrouter_sqs import Message, Queue
from eventrouter_tables import Table

CLIENTS: dict[str, Any] = {"bucket": Bucket, "queue": Queue, "topic": Topic, "bus": Bus, "table": Table}
ACTIONS = {
    ("bucket", "read"): "s3:GetObject",
    ("bucket", "write"): "s3:PutObject",
    ("bucket", "delete"): "s3:DeleteObject",
    ("bucket", "list"): "s3:ListBucket",
    ("queue", "send"): "sqs:SendMessage",
    ("queue", "send_many"): "sqs:SendMessage",
    ("queue", "receive"): "sqs:ReceiveMessage",
    ("queue", "delete"): "sqs:DeleteMessage",
    ("queue", "change_visibility"): "sqs:ChangeMessageVisibility",
    ("queue", "purge"): "sqs:PurgeQueue",
    ("queue", "depth"): "sqs:GetQueueAttributes",
    ("queue", "attributes"): "sqs:GetQueueAttributes",
    ("topic", "publish"): "sns:Publish",
    ("bus", "put"): "events:PutEvents",
    ("table", "get"): "dynamodb:GetItem",
    ("table", "put"): "dynamodb:PutItem",
    ("table", "update"): "dynamodb:UpdateItem",
    ("table", "delete"): "dynamodb:DeleteItem",
    ("table", "query"): "dynamodb:Query",
}
ARNS = {
    "bucket": "arn:aws:s3:::",
    "queue": "arn:aws:sqs:local:000000000000:",
    "topic": "arn:aws:sns:local:000000000000:",
    "bus": "arn:aws:events:local:000000000000:event-bus/",
    "table": "arn:aws:dynamodb:local:000000000000:table/",
    "invoke": "arn:aws:lambda:local:000000000000:function:",
}

Step = tuple[str, str, str, str, list[Any]]  # how, which client, its name, the method, its arguments


def needs(step: Step) -> list[tuple[str, str]]:
    """The actions and resources that a role must allow for it."""
    _, client, name, method, args = step
    if client == "invoke":
        return [("lambda:InvokeFunction", ARNS["invoke"] + name)]
    if method == "put_events":
        buses = [entry.get("EventBusName") or name for entry in args[0]]
        return [("events:PutEvents", bus if bus.startswith("arn:") else ARNS["bus"] + bus) for bus in buses]
    key = f"/{args[0]}" if client == "bucket" and method != "list" else ""
    return [(ACTIONS[client, method], f"{ARNS[client]}{name}{key}")]


async def attempt(step: Step) -> Any:
    how, client, name, method, args = step
    if args and isinstance(args[0], dict) and "receipt" in args[0]:
        args = [Message(**args[0]), *args[1:]]
    target = CLIENTS[client](name) if client != "invoke" else None

    async def call() -> Any:
        return await (invoke(name, *args) if target is None else getattr(target, method)(*args))

    def call_blocking() -> Any:
        return invoke.sync(name, *args) if target is None else getattr(target.sync, method)(*args)

    if how == "task":
        return await asyncio.create_task(call())
    if how == "gather":
        return (await asyncio.gather(call(), asyncio.sleep(0)))[0]
    if how == "later":  # from a callback of the loop's
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(lambda: done.set_result(asyncio.ensure_future(call())))
        return await (await done)
    if how == "thread":
        return await asyncio.to_thread(call_blocking)
    return await call()


async def attempts(steps: Sequence[Step]) -> list[str]:
    answers = []
    for step in steps:
        try:
            await attempt(step)
            answers.append("done")
        except Exception as error:
            answers.append(type(error).__name__)
    return answers


@on(timeout=60)
async def inline(steps: list[Any]) -> list[str]:
    return await attempts(steps)


@on(timeout=60, isolation="process")
async def process(steps: list[Any]) -> list[str]:
    return await attempts(steps)


@on()
async def other(payload: Any = None) -> str:
    return "other"


@on(role="none")
async def hidden(steps: list[Any]) -> list[str]:
    return await attempts(steps)
