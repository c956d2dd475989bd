"""A small shop, one handler per kind of source. `scripts/run` serves it and prints lines to try."""

import os
import sys
from pathlib import Path

import msgspec

from eventrouter import fixed, on, on_start
from eventrouter_cron import rate
from eventrouter_events import events
from eventrouter_http import http
from eventrouter_mqtt import mqtt
from eventrouter_s3 import s3
from eventrouter_sns import Topic, sns

orders = Topic("orders")
stock: set[str] = set()


class Order(msgspec.Struct):
    item: str
    count: int = 1


class Reading(msgspec.Struct):
    celsius: float


@on(http("POST /orders"))
async def take_order(order: Order) -> dict[str, str]:
    """Validates the order (a wrong one gets a 400 that says why) and hands it on."""
    return {"order": await orders.publish(order)}


@on(sns("orders"), retries=2, backoff=fixed(1))
async def ship(order: Order) -> None:
    """Fails while the item is out of stock: two retries a second apart, then a dead letter."""
    if order.item not in stock:
        raise LookupError(f"no {order.item} in stock")
    print(f"shipped {order.count} x {order.item}", flush=True)


@on(http("POST /stock/{item}"))
async def fill_stock(item: str) -> None:
    stock.add(item)


@on(mqtt("sensors/{device}/temperature", qos=1))
async def record(reading: Reading, device: str) -> None:
    print(f"{device}: {reading.celsius} °C", flush=True)


@on(s3("inbox"))
def import_file(event, context):  # type: ignore[no-untyped-def]  # a plain AWS Lambda function
    item = event["Records"][0]["s3"]["object"]
    print(f"got {item['key']}, {item['size']} bytes, {context.get_remaining_time_in_millis()} ms left", flush=True)


@on(events({"source": ["eventrouter"], "detail-type": ["Function Invocation Dead Lettered"]}))
async def alarm(detail: dict[str, object]) -> None:
    """The router's own events tell of what failed for good."""
    print(f"alarm: {detail['functionName']}: {detail['errorMessage']}", flush=True)


@on(rate("1 minute"))
async def tick() -> None:
    print("a minute has passed", flush=True)


@on_start
def say_what_to_try() -> None:
    if "AWS_LAMBDA_FUNCTION_NAME" in os.environ:  # also run where `import_file` runs, in a process of its own
        return
    here = Path(__file__).parent.absolute()
    command = f"{Path(sys.executable).parent}/eventrouter"
    place = f"--config {here}/eventrouter.toml"
    print(
        f"""
Try these in another terminal:

  # drop a file into a bucket
  cp {here}/tour.py {here}/buckets/inbox/hello.txt
  # POST an order; it is accepted, but out of stock: watch it be retried
  curl -X POST http://127.0.0.1:8080/orders -d '{{"item": "lamp", "count": 2}}'
  # publish a sensor's reading
  mosquitto_pub -p 18830 -q 1 -t sensors/kitchen/temperature -m '{{"celsius": 21.5}}'
  # ... or without mosquitto's client
  {command} send mqtt sensors/kitchen/temperature '{{"celsius": 21.5}}' {place}
  # publish to a topic
  {command} send sns orders '{{"item": "chair"}}' {place}
  # after a few seconds the orders are dead letters, and there are alarms
  {command} dlq list {place}
  # fill the stock and send them again
  curl -X POST http://127.0.0.1:8080/stock/lamp
  {command} dlq redrive --function ship {place}
  # see what a function gets from a queue, a table, a webhook ...
  {command} sample webhook stripe
""",
        flush=True,
    )
