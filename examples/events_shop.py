"""Rules choose events by what is in them, and the router's own events tell of what failed."""

from typing import Any

import msgspec

from eventrouter import Event, Reject, on
from eventrouter_events import Bus, events
from eventrouter_http import http

bus = Bus()


class Order(msgspec.Struct):
    id: str
    total: float


@on(http("POST /orders"))
async def place(order: Order) -> dict[str, str]:
    return {"event": await bus.put("Order Placed", order, source="shop", resources=[f"order/{order.id}"])}


@on(events({"source": ["shop"], "detail": {"total": [{"numeric": [">", 100]}]}}))
async def check(order: Order, event: Event) -> None:
    if order.total > 10_000:
        raise Reject(f"order {order.id} is too large")  # a dead letter at once
    print(f"{event.type}: order {order.id} is large", flush=True)


@on(events({"source": ["shop"]}))
def log(event, context):  # type: ignore[no-untyped-def]  # a plain AWS Lambda function
    print(f"{event['detail-type']}: {event['detail']}{' again' if 'replay-name' in event else ''}", flush=True)


@on(events({"source": ["eventrouter"], "detail-type": ["Function Invocation Dead Lettered"]}))
async def alarm(detail: dict[str, Any]) -> None:
    print(f"alarm: {detail['functionName']}: {detail['errorMessage']}", flush=True)
