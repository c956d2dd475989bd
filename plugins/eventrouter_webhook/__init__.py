"""Other people's APIs: signed webhooks that they send, and `poll` for those that send none."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from eventrouter import Event, HttpRequest, Plugin, Trigger, Wildcards, hookimpl, json_path, new_id
from eventrouter.errors import ConfigError, suggest
from eventrouter_webhook.deliveries import read, write
from eventrouter_webhook.payload import attributes_of, poll_event, request_event
from eventrouter_webhook.polling import CURSOR, Reader, State, parse_every, without_user
from eventrouter_webhook.settings import Webhook, WebhookConfig, poll_of, webhook_of
from eventrouter_webhook.signatures import PROVIDERS, sign

__all__ = ["PollTrigger", "WebhookTrigger", "poll", "webhook"]


class WebhookTrigger(Trigger):
    """`webhook(...)` makes it. pattern: the path of its endpoint."""

    source = "webhook"

    def __init__(self, name: str, path: str | None, events: Sequence[str] | None) -> None:
        if not re.fullmatch(r"[A-Za-z][\w-]*", name) or name == "polls":
            raise ConfigError(f"webhook({name!r}): a webhook's name is that of its table [webhook.NAME]: letters, digits, - and _")
        self.pattern = f"/webhooks/{name}" if path is None else path
        if not self.pattern.startswith("/") or re.search(r"[\s?#%]", self.pattern):
            raise ConfigError(f"webhook({name!r}): the path {self.pattern!r} must start with '/' and have no space, '?', '#' or '%'")
        if isinstance(events, str) or (events is not None and not events):
            raise ConfigError(f'webhook({name!r}): events={events!r}; write a list: events=["push"]')
        self.name = name
        self.events = None if events is None else tuple(events)
        self._wildcards = Wildcards(self.pattern, "webhook path")
        self.path = self._wildcards.path
        self.names = self._wildcards.names
        wanted = "|".join(".*".join(map(re.escape, event.split("*"))) for event in self.events or ())
        # Types begin with what the webhook is of: github.push.
        self._wants = None if events is None else re.compile(rf"[^.]*\.(?:{wanted})").fullmatch

    def captures(self, subject: str) -> Mapping[str, str] | None:
        return self._wildcards.match(subject)

    def accepts(self, event: Event) -> bool:
        if event.attributes.get("webhook") != self.name:
            return False
        return self._wants is None or bool(self._wants(event.type) or self._wants(f"{event.type}.{event.attributes['action']}"))

    def aws_event(self, events: Sequence[Event]) -> dict[str, Any]:
        return request_event(events[0], self.pattern, self._wildcards.match(events[0].subject) or {})

    def __str__(self) -> str:
        return f"webhook {self.name}{' ' + ', '.join(self.events) if self.events else ''} at {self.pattern}"


class PollTrigger(Trigger):
    """`poll(...)` makes it. url: with what must not be printed; subject: without."""

    source = "webhook"

    def __init__(
        self,
        url: str,
        every: str | float,
        cursor: str | None,
        headers: Mapping[str, str],
        items: str | None,
        id: str | None,
        name: str | None,
    ) -> None:
        try:
            parts = urlsplit(url)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            good = False
        if not good or re.search(r"\s", url):
            raise ConfigError("poll: its url must be http://... or https://..., without spaces")
        self.url, self.subject = url, without_user(url)
        what = f"poll({self.subject!r})"
        if CURSOR in parts.netloc:
            raise ConfigError(f"{what}: {CURSOR} can't be in the host's name")
        if CURSOR in url and cursor is None:
            raise ConfigError(f'{what}: {CURSOR} is put in from the answer; say where it is: cursor="$.next"')
        if id is not None and items is None:
            raise ConfigError(f'{what}: id={id!r} is of items; say where they are: items="$.results"')
        self.every = parse_every(every, f"{what}: every")
        self.headers = dict(headers)
        self.name = name
        self.key = (url, cursor, items, id)
        try:
            found = [None if path is None else json_path(path) for path in (items, id, cursor)]
        except ValueError as error:
            raise ConfigError(f"{what}: {error}") from None
        self.reader = Reader(self.subject, found[0], found[1], found[2])
        self.path = tuple(self.subject.split("/"))

    def captures(self, subject: str) -> Mapping[str, str] | None:
        return {} if subject == self.subject else None

    def accepts(self, event: Event) -> bool:
        return event.type.startswith("poll.")

    def aws_event(self, events: Sequence[Event]) -> dict[str, Any]:
        return poll_event(events[0])

    def __str__(self) -> str:
        return f"poll {self.subject} every {self.every:g} s"


def webhook(provider: str, path: str | None = None, *, events: Sequence[str] | None = None) -> WebhookTrigger:
    """Start the function with each delivery of a webhook, once its signature has been verified.

    provider: "github", "stripe", "slack", "standard", or the NAME of a table `[webhook.NAME]` that says which `provider` it is. Its
        secrets are there, too.
    path: of the endpoint; `/webhooks/NAME` when not given. `{name}` in it is handed to the parameter of that name.
    events: only these types: `["push", "pull_request.opened"]`, `["invoice.*"]`; of GitHub's, the action may stand behind the type.

    The payload is the body; `Event.type` is `github.push`, `Event.id` the delivery's. A Lambda function gets payload 2.0, as
    behind API Gateway.
    """
    return WebhookTrigger(provider, path, events)


def poll(
    url: str,
    every: str | float = "5 minutes",
    *,
    cursor: str | None = None,
    headers: Mapping[str, str] = {},
    items: str | None = None,
    id: str | None = None,
    name: str | None = None,
) -> PollTrigger:
    """Start the function with what is new at a url that is asked every so often.

    every: `"5 minutes"`, or seconds. headers: sent along; secret ones belong to `[webhook.polls.NAME] headers`, NAME being `name`.
    items: where the answer's list is (`"$.results"`, `"$"` for all of it): each new item is an event; else each changed answer is one.
    id: what makes an item new (`"$.id"`); without it, all of the item does.
    cursor: where the answer says how to go on (`"$.next"`). The value takes the place of `{cursor}` in the url; where the url has
        none, it is the next url. It is asked at once, until there is nothing new to go on with, and kept.

    The payload is the item, or the answer; a Lambda function gets it as `detail` of an EventBridge event.
    """
    return PollTrigger(url, every, cursor, headers, items, id, name)


def check(config: WebhookConfig, pairs: Sequence[tuple[str, Trigger]]) -> None:
    """Each webhook has its secret, each path one webhook, each url one way to poll it."""
    paths: dict[str, str] = {}
    polls: dict[str, PollTrigger] = {}
    for function, trigger in pairs:
        if isinstance(trigger, PollTrigger):
            other = polls.setdefault(trigger.subject, trigger)
            if (other.key, other.name, other.headers) != (trigger.key, trigger.name, trigger.headers):
                raise ConfigError(f"{function}: {trigger.subject} is polled in two ways; one url is asked once: make the options equal")
            continue
        assert isinstance(trigger, WebhookTrigger)
        try:
            found = webhook_of(config, trigger.name)
        except ConfigError as error:
            raise ConfigError(f"{error} (webhook of function {function!r})") from None
        if trigger.events and found.provider == "hmac" and not found.type:
            raise ConfigError(f'[webhook.{found.name}] type: events= of {function!r} needs it: a header, or a JSON path such as "$.type"')
        shape = re.sub(r"\{\w+", "{", trigger.pattern)
        if (name := paths.setdefault(shape, trigger.name)) != trigger.name:
            raise ConfigError(f"webhooks {name!r} and {trigger.name!r} both are at {trigger.pattern}; give one another path=")
    names = {trigger.name for trigger in polls.values() if trigger.name is not None}
    for name in names:
        poll_of(config, name)
    for name in config.polls:
        if name.lower() not in {known.lower() for known in names}:
            raise ConfigError(f"[webhook.polls.{name}]: no poll has name={name!r}{suggest(name, names)}")


def sample_webhook(provider: str = "github", body: str = "", *, event: str | None = None) -> dict[str, Any]:
    """A delivery as a Lambda function gets it."""
    if provider not in PROVIDERS or provider == "hmac":
        raise ConfigError(f"sample webhook: {provider!r} is none of github, stripe, slack, standard")
    id = "72d3162e-cc78-11e3-81ab-4c9367dc0958"
    kind = Webhook(provider, provider, (), None, None, None, "", "")
    if provider == "stripe" and not body:
        event = event or "invoice.paid"
    data, headers = write(kind, body or _SAMPLES[provider], event, id)
    headers |= sign(kind.provider, data, "whsec_c2FtcGxl", now=1_767_225_600, id=id)
    headers = {"Host": "hooks.example.com", "User-Agent": "eventrouter", "Content-Length": str(len(data)), **headers}
    trigger = webhook(provider)
    request = HttpRequest("POST", trigger.pattern, {}, "", tuple(headers.items()), data, "203.0.113.7")
    found = read(kind, request)
    made = Event(
        "webhook", found.type, trigger.pattern, data, id=found.id or new_id(), time=1_767_225_600, attributes=attributes_of(request)
    )
    return trigger.aws_event([made])


def sample_poll(url: str = "https://api.example.com/orders", item: str = '{"id": 7, "status": "paid"}') -> dict[str, Any]:
    """An item as a Lambda function gets it."""
    trigger = poll(url, items="$", id="$.id")
    events, _, _ = trigger.reader.read(State(), f"[{item}]".encode(), "application/json")
    events[0].time = 1_767_225_600
    return trigger.aws_event(events)


_SAMPLES = {
    "github": '{"ref": "refs/heads/main", "repository": {"full_name": "octocat/Hello-World"}, "pusher": {"name": "octocat"}}',
    "stripe": '{"data": {"object": {"id": "in_1", "object": "invoice", "amount_paid": 1999, "currency": "eur"}}}',
    "slack": '{"type": "message", "channel": "C2147483705", "user": "U2147483697", "text": "Hello", "ts": "1355517523.000005"}',
    "standard": '{"type": "user.created", "timestamp": "2026-01-01T00:00:00Z", "data": {"id": "user_1"}}',
}


@hookimpl
def eventrouter_plugin() -> Plugin:
    return Plugin(
        name="webhook",
        source="eventrouter_webhook.source:WebhookSource",
        config=WebhookConfig,
        triggers={"webhook": webhook, "poll": poll},
        check=check,
        sample={"webhook": sample_webhook, "poll": sample_poll},
    )
