"""Topics live inside the router: publishing journals the message for every function and endpoint that is subscribed."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec

from eventrouter import Endpoint, Event, HttpRequest, Message, Reject, Response, Router, Source, new_id
from eventrouter.errors import ConfigError, EventRouterError
from eventrouter_sns.deliveries import ATTEMPT
from eventrouter_sns.messages import (
    FIFO,
    attributes_of,
    check,
    check_name,
    check_order,
    notification,
    raw_attributes,
    record,
    text_of,
    typed,
)
from eventrouter_sns.settings import SnsConfig, Subscription, TopicConfig
from eventrouter_sns.standings import PATH, Standing, Standings

if TYPE_CHECKING:
    from eventrouter_sns.signing import Signer

WINDOW = 300  # seconds in which a repeat is known
_RESERVED = 1000  # sequence numbers at a time
_ASK_AGAIN = (20.0, 20.0, 20.0, 3600.0)  # seconds; the last again and again


class DeliveryError(EventRouterError):
    """An endpoint did not take a message; another attempt may help."""


class SnsSource(Source[SnsConfig]):
    name = "sns"

    def __init__(self, config: SnsConfig, router: Router) -> None:
        super().__init__(config, router)
        self._standings = Standings(config, router)
        self._session: aiohttp.ClientSession | None = None
        self._signer: Signer | None = None
        self._signing = asyncio.Lock()
        self._ordering = asyncio.Lock()
        self._number = self._reserved = 0
        self._started = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    # Life

    async def start(self) -> None:
        await self._standings.load()
        for one in self._standings.in_state("unsubscribed"):
            self.router.log.warning(
                "%s has unsubscribed; take it out of the config, start, and put it back to subscribe it anew", one.name,
                extra={"action": "sns.unsubscribed"},
            )  # fmt: skip

    async def run(self) -> None:
        self._started.set()  # every source has started, so it is known where endpoints reach us
        for one in self._standings.in_state("pending"):
            self._spawn(self._ask(one))
        self.router.live()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            for task in self._tasks:
                task.cancel()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def lines(self) -> list[str]:
        return [f"{one.name} must confirm its subscription" for one in self._standings.in_state("pending")]

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Publishing

    async def publish(
        self,
        topic: str,
        message: bytes,
        subject: str | None = None,
        attributes: Mapping[str, Any] = {},
        group: str | None = None,
        dedupe: str | None = None,
    ) -> str:
        """The message's id; of a repeat, that of the first. Raises ValueError for what SNS would refuse."""
        by_content = self.config.topics.get(topic, TopicConfig()).content_dedupe
        check_order(topic, group, dedupe, by_content)
        written = typed(attributes)
        check(message, subject, written)
        if group is None:
            # The id is made here and now, so no repeat of it can come: nothing to deduplicate.
            event = self._event(topic, message, written, subject)
            await self.router.deliver([event])
            return event.id
        if dedupe is None:
            dedupe = hashlib.sha256(message).hexdigest()
        async with self._ordering:
            return await self._publish_in_order(topic, message, written, subject, group, dedupe)

    async def _publish_in_order(
        self, topic: str, message: bytes, attributes: Mapping[str, Any], subject: str | None, group: str, dedupe: str
    ) -> str:
        key = f"repeat/{topic}/{dedupe}"
        known = await self.router.get(key)
        if known is not None:
            return known.decode()
        number = await self._next_number()
        now = self.router.clock.time()
        # Dying between the two writes below, we don't know a repeat by its key: then the journal knows it by this id.
        id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{key}/{int(now // WINDOW)}"))
        event = self._event(topic, message, attributes, subject, id, group=group, dedupe=dedupe, sequence=str(10**19 + number))
        await self.router.deliver([event])
        await self.router.put(key, id.encode(), ttl=WINDOW)
        return id

    async def _next_number(self) -> int:
        """Always a larger one, whatever the clock does and whenever the router dies."""
        if self._number == self._reserved:
            self._number = max(self._number, int(await self.router.get("sequence") or b"0"))
            await self.router.put("sequence", str(self._number + _RESERVED).encode())
            self._reserved = self._number + _RESERVED
        self._number += 1
        return self._number

    def message(self, name: str, message: Message) -> Event:
        return self._event(name, message.body, typed(message.attributes))

    def _event(
        self,
        topic: str,
        message: bytes,
        attributes: Mapping[str, Any],
        subject: str | None = None,
        id: str | None = None,
        **order: str,
    ) -> Event:
        kept: dict[str, Any] = dict(order)
        if attributes:
            kept["messageAttributes"] = attributes
        if subject is not None:
            kept["subject"] = subject
        return Event("sns", "sns.notification", topic, message, id=id or new_id(), time=self.router.clock.time(), attributes=kept)

    async def send(
        self,
        topic: str,
        message: str,
        *,
        attribute: dict[str, str] = {},  # noqa: B006 - read only
        subject: str = "",
        group: str | None = None,
        dedupe: str | None = None,
    ) -> dict[str, str]:
        """Publish MESSAGE to the topic. group and dedupe are for FIFO topics."""
        try:
            id = await self.publish(check_name(topic, "send sns:"), message.encode(), subject or None, attribute, group, dedupe)
        except ValueError as error:
            raise ConfigError(f"send sns: {error}") from None
        return {"MessageId": id}

    # Handing over

    async def hand_over(self, subscription: Subscription, event: Event) -> None:
        """Give a message to a subscriber. Raises DeliveryError, JournalError; Reject when no other attempt can help."""
        await self._started.wait()
        standing = self._standings[subscription]
        if standing.state != "confirmed":
            standing.passed += 1
            self.router.log.debug("%s is %s: %s is not for it", subscription.name, standing.state, event.id)
            return
        endpoint = subscription.config.endpoint
        if subscription.protocol == "lambda":
            body = msgspec.json.encode({"Records": [record(event, standing.arn)]})
            await self.router.forward(endpoint, Message(body, {}))
        elif subscription.protocol == "sqs":
            await self.router.forward(endpoint, await self._queued(subscription, standing, event))
        else:
            await self._post(subscription, standing, event)

    async def _queued(self, subscription: Subscription, standing: Standing, event: Event) -> Message:
        group, dedupe = event.attributes.get("group"), event.attributes.get("dedupe")
        if not subscription.config.raw:
            return Message(await self._notification(standing, event), {}, None, group, dedupe)
        attributes = raw_attributes(event)
        if len(attributes) > 10:
            raise Reject(f"{len(attributes)} attributes: a message of a queue has at most 10; set raw = false for {subscription.name}")
        return Message(event.data, attributes, None, group, dedupe)

    async def _post(self, subscription: Subscription, standing: Standing, event: Event) -> None:
        raw = subscription.config.raw
        body = text_of(event).encode() if raw else await self._notification(standing, event)
        await self._send("Notification", subscription, standing, event.id, body, {"x-amz-sns-rawdelivery": "true"} if raw else {})

    async def _notification(self, standing: Standing, event: Event) -> bytes:
        message = notification(event)
        if not event.subject.endswith(FIFO):  # SNS doesn't sign those of topics that keep order
            message = await self._signed(message)
        message["UnsubscribeURL"] = self._standings.link(self.base, Action="Unsubscribe", SubscriptionArn=standing.arn)
        if attributes := attributes_of(event):
            message["MessageAttributes"] = attributes
        return msgspec.json.encode(message)

    async def _signed(self, message: dict[str, Any]) -> dict[str, Any]:
        version, signer = self.config.signature_version, await self._certified()
        signature = {"SignatureVersion": str(version), "Signature": signer.sign(message, version)}
        return {**message, **signature, "SigningCertURL": f"{self.base}{PATH}/{signer.name}"}

    async def _certified(self) -> Signer:
        from eventrouter_sns.signing import signer  # noqa: PLC0415 - most routers never sign

        async with self._signing:
            if self._signer is None:
                self._signer = await asyncio.to_thread(signer, self.router.folder, self.router.clock.time())
        return self._signer

    async def _send(
        self, kind: str, subscription: Subscription, standing: Standing, id: str, body: bytes, more: Mapping[str, str] = {}
    ) -> None:
        """POST as SNS does."""
        headers = {
            "x-amz-sns-message-type": kind,
            "x-amz-sns-message-id": id,
            "x-amz-sns-topic-arn": standing.topic_arn,
            **({} if kind == "SubscriptionConfirmation" else {"x-amz-sns-subscription-arn": standing.arn}),
            **more,
            "User-Agent": "Amazon Simple Notification Service Agent",
            "Content-Type": "text/plain; charset=UTF-8",
        }
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=ATTEMPT),
                connector=aiohttp.TCPConnector(limit=0),  # waiting for a connection would use up the time of an attempt
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        try:
            posting = self._session.post(subscription.config.endpoint, data=body, headers=headers, allow_redirects=False)
            async with posting as answer:
                status = answer.status
        except TimeoutError:
            raise DeliveryError(f"no answer within {ATTEMPT:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise DeliveryError(f"{type(error).__name__}: {error}") from None
        if 200 <= status < 300:
            return
        if status == 429 or status >= 500:
            raise DeliveryError(f"the endpoint answered {status}")
        raise Reject(f"the endpoint answered {status}, and would answer so again")

    # What endpoints ask of us

    @property
    def base(self) -> str:
        """Where endpoints reach this router, without a slash at the end."""
        if self.config.url:
            return self.config.url.rstrip("/")
        return self.router.url.replace("0.0.0.0", socket.gethostname()).replace("[::]", socket.gethostname())  # noqa: S104

    def endpoints(self) -> Sequence[Endpoint]:
        return [Endpoint("GET", PATH, self._asked), Endpoint("GET", f"{PATH}/{{file}}", self._certificate)]

    async def _certificate(self, request: HttpRequest) -> Response:
        signer = await self._certified()
        if request.parameters["file"] != signer.name:
            return Response("there is no such certificate", 404)
        return Response(signer.certificate, 200, {"Content-Type": "application/x-pem-file"})

    async def _asked(self, request: HttpRequest) -> Response:
        left, answer = await self._standings.answer(request.query)
        if left is not None:
            self._spawn(self._tell(left, "UnsubscribeConfirmation"))
        return answer

    async def _ask(self, subscription: Subscription) -> None:
        """Ask an endpoint whether it wants the subscription, until it has answered that it has heard."""
        asked = 0
        while self._standings[subscription].state == "pending":
            if await self._tell(subscription, "SubscriptionConfirmation"):
                return
            await self.router.clock.sleep(_ASK_AGAIN[min(asked, len(_ASK_AGAIN) - 1)])
            asked += 1

    async def _tell(self, subscription: Subscription, kind: str) -> bool:
        """Send an endpoint the token of its subscription. Whether it took it."""
        standing = await self._standings.fresh_token(subscription)
        message = self._standings.invitation(kind, standing, self.base, self.router.clock.time())
        body = msgspec.json.encode(await self._signed(message))
        try:
            await self._send(kind, subscription, standing, message["MessageId"], body)
        except (DeliveryError, Reject) as error:
            self.router.log.warning("%s did not take its %s: %s", subscription.name, kind, error, extra={"action": "sns.unheard"})
            return False
        return True
