"""One message, several functions: each gets it, each has retries and dead letters of its own."""

import msgspec

from eventrouter import Context, Reject, Retry, exponential, on
from eventrouter_sns import Topic, sns

shipped = Topic("orders-shipped")


class Order(msgspec.Struct):
    id: str
    items: list[str]


@on(sns("orders-placed"), retries=4, backoff=exponential(0.5, 2, 10))
async def ship(order: Order, context: Context) -> None:
    if not order.items:
        raise Reject(f"order {order.id} is empty")  # no attempt can help: a dead letter at once
    if context.attempt == 1:
        raise Retry(after=0.2)  # the first attempt finds the carrier busy, say
    size = "large" if len(order.items) > 2 else "small"
    await shipped.publish(order, subject="Your order is on its way", attributes={"size": size})


@on(sns("orders-{state}"))
async def log(order: Order, state: str) -> None:
    print(f"order {order.id} is {state}", flush=True)


@on(sns("orders-shipped", filter={"size": ["large"]}))
async def thank(order: Order) -> None:
    print(f"order {order.id} is large: thank you", flush=True)


@on(sns("orders-shipped"))
def mail(event, context):  # type: ignore[no-untyped-def]  # a plain AWS Lambda function
    for record in event["Records"]:
        print(f"mail: {record['Sns']['Subject']}", flush=True)
