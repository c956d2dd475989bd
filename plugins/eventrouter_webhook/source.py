"""Answers what webhooks send, and runs the polls."""

from __future__ import annotations

import asyncio
import hmac
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from aiohttp import ClientSession, DummyCookieJar

from eventrouter import Endpoint, Event, HttpRequest, Response, Router, Source, Wildcards, new_id
from eventrouter.errors import ConfigError, JournalError, suggest
from eventrouter_webhook import PollTrigger, WebhookTrigger
from eventrouter_webhook.deliveries import Malformed, read, write
from eventrouter_webhook.payload import attributes_of
from eventrouter_webhook.poller import Poller
from eventrouter_webhook.settings import PollSettings, Webhook, WebhookConfig, poll_of, webhook_of
from eventrouter_webhook.signatures import SignatureError, sign, verify

_TITLES = {400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 503: "Service Unavailable"}
_TEXT = {"Content-Type": "text/plain; charset=utf-8", "X-Content-Type-Options": "nosniff"}


class WebhookSource(Source[WebhookConfig]):
    """refused: requests that were answered with 400 or 401."""

    name = "webhook"

    def __init__(self, config: WebhookConfig, router: Router) -> None:
        super().__init__(config, router)
        self.refused = 0
        self._said: dict[str, tuple[float, int]] = {}
        self._stopped = False
        self._faults: dict[str, str | None] = {}  # of polls; None: not asked yet, "": none
        self._webhooks: dict[str, Webhook] = {}
        self._paths: dict[str, str] = {}  # of webhooks, by pattern
        self._pollers: dict[str, Poller] = {}
        for _, trigger in router.bindings:
            if isinstance(trigger, WebhookTrigger):
                self._webhooks.setdefault(trigger.name, webhook_of(config, trigger.name))
                self._paths[trigger.pattern] = trigger.name
            elif isinstance(trigger, PollTrigger):
                found = self._pollers.get(trigger.subject)
                every = trigger.every if found is None else min(found.every, trigger.every)
                settings = PollSettings() if trigger.name is None else poll_of(config, trigger.name)
                self._pollers[trigger.subject] = Poller(trigger, every, settings, router, self._polled)

    async def start(self) -> None:
        for pattern, name in self._paths.items():
            if not self._webhooks[name].secrets:
                self.router.log.warning(
                    "webhook %s is unsigned: anyone who reaches %s starts its functions",
                    name,
                    pattern,
                    extra={"action": "webhook.unsigned"},
                )

    async def run(self) -> None:
        self._faults = dict.fromkeys(self._pollers)
        if not self._pollers:
            self.router.live()
        async with ClientSession(cookie_jar=DummyCookieJar()) as client, asyncio.TaskGroup() as group:
            for poller in self._pollers.values():
                group.create_task(poller.run(client), name=f"poll {poller.subject}")
            await asyncio.get_running_loop().create_future()

    async def stop(self) -> None:
        self._stopped = True

    def lines(self) -> list[str]:
        lines = [f"webhook {name} at {pattern}" for pattern, name in self._paths.items()]
        return lines + [f"poll {poller.subject} every {poller.every:g} s" for poller in self._pollers.values()]

    def endpoints(self) -> list[Endpoint]:
        made = [Endpoint("POST", pattern, self._answers(pattern, self._webhooks[name])) for pattern, name in self._paths.items()]
        for pattern, name in self._paths.items():
            if self._webhooks[name].verify_token is not None:
                made.append(Endpoint("GET", pattern, self._challenges(self._webhooks[name])))
        return made

    async def send(
        self, name: str, body: str, *, event: str | None = None, path: str | None = None, id: str | None = None
    ) -> dict[str, Any]:
        """Deliver BODY to the webhook NAME, signed with its first secret, as its provider does.

        path: where it goes to, when the endpoint's has wildcards."""
        webhook = self._webhooks.get(name)
        if webhook is None:
            raise ConfigError(f"send webhook: no function has a trigger of webhook {name!r}{suggest(name, self._webhooks)}")
        patterns = [pattern for pattern, of in self._paths.items() if of == name]
        path = path or patterns[0]
        pattern = next((pattern for pattern in patterns if Wildcards(pattern, "webhook path").match(path) is not None), None)
        if pattern is None or "{" in path:
            raise ConfigError(f"send webhook: it is at {' and '.join(patterns)}; say which path with --path")
        id = id or Event("webhook", "", "").id
        data, headers = write(webhook, body, event, id)
        if webhook.secrets:
            headers |= sign(webhook.provider, data, webhook.secrets[0], now=self.router.clock.time(), id=id, scheme=webhook.scheme)
        elif webhook.provider == "standard":
            headers["webhook-id"] = id
        request = HttpRequest(
            "POST", path, {}, "", tuple({"Host": "localhost", "User-Agent": "eventrouter", **headers}.items()), data, "127.0.0.1"
        )
        answer = await self._answers(pattern, webhook)(request)
        return {"status": answer.status, "body": answer.body}

    # Webhooks

    def _answers(self, pattern: str, webhook: Webhook) -> Any:
        wildcards = Wildcards(pattern, "webhook path")

        async def answer(request: HttpRequest) -> Response:
            if self._stopped or self.router.fault:
                return self._later()
            if wildcards.match(request.path) is None:  # an encoded slash, where there must be none
                return problem(404, "there is no webhook at this path")
            try:
                if webhook.secrets:
                    self._verify(webhook, request)
                # Whatever the headers hold, the journal keeps text.
                request = msgspec.structs.replace(request, headers=[(name, _clean(value)) for name, value in request.headers])
                delivery = read(webhook, request)
            except SignatureError as error:
                self._refuse(webhook, request, str(error))
                return problem(401, "the request is not signed as it must be")
            except Malformed as error:
                self._refuse(webhook, request, str(error))
                return problem(400, str(error))
            if delivery.challenge is not None:
                return Response(delivery.challenge, headers=_TEXT)
            scope = "" if webhook.name == webhook.provider else f"{webhook.name}/"
            event = Event(
                "webhook",
                f"{webhook.label}.{delivery.type}",
                request.path,
                request.body,
                request.header("Content-Type") or "application/octet-stream",
                id=new_id() if delivery.id is None else scope + delivery.id,
                time=self.router.clock.time(),
                attributes={**attributes_of(request), "webhook": webhook.name, "action": delivery.action},
            )
            try:
                await self.router.deliver([event])
            except JournalError:  # the reason is logged and in /readyz; it may name files
                return self._later()
            self.router.crash_point("ack.before")
            if webhook.provider == "slack":
                return Response()  # with 200 and nothing: Slack would show a text to who typed the command
            return Response({"id": event.id}, 202)

        return answer

    def _verify(self, webhook: Webhook, request: HttpRequest) -> None:
        verify(
            webhook.provider,
            dict(reversed(request.headers)),  # of a header that comes twice, the first, as everywhere else
            request.body,
            webhook.secrets,
            now=self.router.clock.time(),
            tolerance=webhook.tolerance,
            scheme=webhook.scheme,
        )

    def _challenges(self, webhook: Webhook) -> Any:
        """Answers as Meta's platforms want it, when a webhook is set up."""
        token = (webhook.verify_token or "").encode()

        async def answer(request: HttpRequest) -> Response:
            asked = dict(parse_qsl(request.query, keep_blank_values=True))
            known = hmac.compare_digest(token, asked.get("hub.verify_token", "").encode())
            if not known or asked.get("hub.mode") != "subscribe" or "hub.challenge" not in asked:
                self._refuse(webhook, request, "its hub.verify_token is wrong" if not known else "it is no hub.challenge")
                return problem(403, "this is not how the webhook is set up")
            return Response(asked["hub.challenge"], headers=_TEXT)

        return answer

    def _refuse(self, webhook: Webhook, request: HttpRequest, why: str) -> None:
        """Say why, but not as often as strangers may ask."""
        self.refused += 1
        now = self.router.clock.monotonic()
        said, more = self._said.get(webhook.name, (-1.0, 0))
        if said >= 0 and now - said < 1:
            self._said[webhook.name] = (said, more + 1)
            return
        self._said[webhook.name] = (now, 0)
        self.router.log.warning(
            "webhook %s: refused a request from %s: %s%s", webhook.name, request.remote, why, f" (and {more} before it)" if more else "",
            extra={"action": "webhook.refused"},
        )  # fmt: skip

    @staticmethod
    def _later() -> Response:
        return problem(503, "nothing is taken at present; send it again", {"Retry-After": "1"})

    # Polls

    def _polled(self, subject: str, fault: str) -> None:
        self._faults[subject] = fault
        faults = [f"poll {subject}: {fault}" for subject, fault in self._faults.items() if fault]
        if faults:
            self.router.lost("; ".join(faults))
        elif None not in self._faults.values():
            self.router.live()


def problem(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    """An RFC 9457 problem."""
    body = {"type": "about:blank", "title": _TITLES[status], "status": status, "detail": detail}
    return Response(body, status, {"Content-Type": "application/problem+json", **(headers or {})})


def _clean(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
