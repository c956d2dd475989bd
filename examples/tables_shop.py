"""A shop's SQLite database: any program may write to it, and what it changes starts functions."""

import sqlite3
from pathlib import Path

import msgspec

from eventrouter import on, on_start
from eventrouter_http import http
from eventrouter_tables import Change, Table, table

DATABASE = Path(__file__).with_name("shop.db")  # eventrouter.toml has it as [tables] database
stock = Table("stock")


class Order(msgspec.Struct):
    id: int
    item: str
    count: int
    status: str


@on_start
def make_tables() -> None:
    with sqlite3.connect(DATABASE) as db:
        db.execute("CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY, item TEXT, count INTEGER, status TEXT DEFAULT 'new')")
        db.execute("CREATE TABLE IF NOT EXISTS stock (item TEXT PRIMARY KEY, count INTEGER)")
    db.close()


@on(table("orders"))  # in order for each order; different orders at the same time
async def follow(change: Change[Order]) -> None:
    if change.kind == "INSERT" and change.new:
        left = await stock.get(change.new.item) or {"count": 0}
        if left["count"] < change.new.count:
            raise RuntimeError(f"no {change.new.item} in stock")  # tried again, then a dead letter
        await stock.put({"item": change.new.item, "count": left["count"] - change.new.count})
        print(f"order {change.new.id}: {change.new.count} x {change.new.item}", flush=True)
    elif change.old and change.new and change.old.status != change.new.status:
        print(f"order {change.new.id}: {change.old.status} -> {change.new.status}", flush=True)


@on(table("stock", view="NEW_IMAGE"), where={"Records": {"dynamodb": {"NewImage": {"count": {"N": ["0", "1"]}}}}})
def reorder(event, context):  # type: ignore[no-untyped-def]  # as an AWS Lambda function has it
    image = event["Records"][0]["dynamodb"]["NewImage"]
    print(f"order more of {image['item']['S']}: {image['count']['N']} left", flush=True)


@on(http("GET /stock/{item}"))
async def show(item: str) -> dict[str, object] | None:
    return await stock.get(item)
