"""How each subscription of the config stands: whether its endpoint has confirmed it, or left it. Kept in the journal."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import uuid
from collections.abc import Iterator
from html import escape
from typing import Final, Literal
from urllib.parse import parse_qs, urlencode

import msgspec

from eventrouter import Response, Router
from eventrouter_sns.messages import timestamp, topic_arn
from eventrouter_sns.settings import SnsConfig, Subscription, subscriptions

PATH: Final = "/eventrouter/sns"
TOKEN_LASTS: Final = 2 * 86400.0  # seconds
_XML: Final = "http://sns.amazonaws.com/doc/2010-03-31/"
State = Literal["pending", "confirmed", "unsubscribed"]


class Standing(msgspec.Struct):
    """arn: of the subscription, which nobody can guess. token: that confirms it, made at `asked`.

    passed: messages since the start that were not for it.
    """

    topic_arn: str
    arn: str
    state: State
    token: str = ""
    asked: float = 0.0
    passed: int = 0


class Standings:
    def __init__(self, config: SnsConfig, router: Router) -> None:
        self._subscriptions = {_key(one): one for one in subscriptions(config)}
        self._router = router
        self._found: dict[str, Standing] = {}

    async def load(self) -> None:
        """Read what is known, begin what is new, and forget those that are no longer in the config."""
        for key in await self._router.keys("subscription/"):
            if key not in self._subscriptions:
                await self._router.put(key, None)
        for key, one in self._subscriptions.items():
            packed = await self._router.get(key)
            needless = one.config.confirmed or not one.is_http
            if packed is not None:
                standing = msgspec.json.decode(packed, type=Standing)
                standing.passed = 0
                if standing.state == "pending" and needless:
                    standing.state = "confirmed"
            else:
                arn = topic_arn(one.config.topic)
                standing = Standing(arn, f"{arn}:{uuid.UUID(bytes=secrets.token_bytes(16), version=4)}", "pending")
                standing.state = "confirmed" if needless else "pending"
                await self._keep(key, standing)
            self._found[key] = standing

    def __getitem__(self, subscription: Subscription) -> Standing:
        return self._found[_key(subscription)]

    def in_state(self, state: State) -> Iterator[Subscription]:
        return (one for key, one in self._subscriptions.items() if key in self._found and self._found[key].state == state)

    async def fresh_token(self, subscription: Subscription) -> Standing:
        """With a token that holds at least for half of its time."""
        key = _key(subscription)
        standing, now = self._found[key], self._router.clock.time()
        if not standing.token or now - standing.asked > TOKEN_LASTS / 2:
            standing.token, standing.asked = secrets.token_hex(64), now
            await self._keep(key, standing)
        return standing

    async def answer(self, query: str) -> tuple[Subscription | None, Response]:
        """Answer the link of a message, and say which subscription was left by it."""
        given = {name: values[-1] for name, values in parse_qs(query).items()}
        action = given.get("Action")
        if action == "ConfirmSubscription":
            return None, await self._confirm(given.get("TopicArn", ""), given.get("Token", ""))
        if action == "Unsubscribe":
            return await self._leave(given.get("SubscriptionArn", ""))
        return None, _fault(400, "InvalidAction", "Action must be ConfirmSubscription or Unsubscribe")

    async def _confirm(self, topic: str, token: str) -> Response:
        now = self._router.clock.time()
        for key, standing in self._found.items():
            if not (standing.token and _same(standing.token, token) and standing.topic_arn == topic):
                continue
            if standing.state != "confirmed":
                if now - standing.asked > TOKEN_LASTS:
                    break
                standing.state = "confirmed"
                await self._keep(key, standing)
                self._router.log.info(
                    "%s has confirmed; %d messages were not for it before", self._subscriptions[key].name, standing.passed,
                    extra={"action": "sns.confirmed"},
                )  # fmt: skip
            return _result("ConfirmSubscription", f"<SubscriptionArn>{escape(standing.arn, quote=False)}</SubscriptionArn>")
        return _fault(400, "InvalidParameter", "Invalid parameter: Token")

    async def _leave(self, arn: str) -> tuple[Subscription | None, Response]:
        for key, standing in self._found.items():
            if _same(standing.arn, arn):
                one = self._subscriptions[key]
                left = standing.state != "unsubscribed"
                if left:
                    standing.state, standing.token, standing.passed = "unsubscribed", "", 0
                    await self._keep(key, standing)
                    self._router.log.warning("%s has unsubscribed", one.name, extra={"action": "sns.unsubscribed"})
                return one if left and one.is_http else None, _result("Unsubscribe", "")
        return None, _fault(404, "NotFound", "Subscription does not exist")

    async def _keep(self, key: str, standing: Standing) -> None:
        await self._router.put(key, msgspec.json.encode(standing))

    @staticmethod
    def link(base: str, **query: str) -> str:
        return f"{base}{PATH}?{urlencode(query, safe=':')}"

    def invitation(self, kind: str, standing: Standing, base: str, now: float) -> dict[str, str]:
        """A SubscriptionConfirmation, or an UnsubscribeConfirmation, which asks whether it was meant."""
        if kind == "SubscriptionConfirmation":
            text = (
                f"You have chosen to subscribe to the topic {standing.topic_arn}.\n"
                "To confirm the subscription, visit the SubscribeURL included in this message."
            )
        else:
            text = (
                f"You have chosen to deactivate subscription {standing.arn}.\n"
                "To cancel this operation and restore the subscription, visit the SubscribeURL included in this message."
            )
        return {
            "Type": kind,
            "MessageId": str(uuid.UUID(bytes=secrets.token_bytes(16), version=4)),
            "Token": standing.token,
            "TopicArn": standing.topic_arn,
            "Message": text,
            "SubscribeURL": self.link(base, Action="ConfirmSubscription", TopicArn=standing.topic_arn, Token=standing.token),
            "Timestamp": timestamp(now),
        }


def _key(subscription: Subscription) -> str:
    topic, endpoint = subscription.config.topic, subscription.config.endpoint
    return f"subscription/{hashlib.sha256(f'{topic} {endpoint}'.encode()).hexdigest()}"


def _same(one: str, two: str) -> bool:
    return hmac.compare_digest(one.encode(), two.encode())


def _result(action: str, inside: str) -> Response:
    request = str(uuid.UUID(bytes=secrets.token_bytes(16), version=4))
    result = f"<{action}Result>{inside}</{action}Result>" if inside else ""
    metadata = f"<ResponseMetadata><RequestId>{request}</RequestId></ResponseMetadata>"
    return _xml(200, f'<{action}Response xmlns="{_XML}">{result}{metadata}</{action}Response>')


def _fault(status: int, code: str, text: str) -> Response:
    return _xml(
        status,
        f'<ErrorResponse xmlns="{_XML}"><Error><Type>Sender</Type><Code>{code}</Code><Message>{text}</Message></Error></ErrorResponse>',
    )


def _xml(status: int, text: str) -> Response:
    return Response(text, status, {"Content-Type": "text/xml; charset=utf-8"})
