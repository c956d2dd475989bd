"""Buses live inside the router: putting an event journals it for every function whose rule matches."""

from __future__ import annotations

import asyncio
import hmac
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import msgspec
from aiohttp import ClientSession, DummyCookieJar

from eventrouter import Endpoint, Event, HttpRequest, Message, Notice, Response, Router, Source, patterns
from eventrouter.errors import ConfigError, JournalError
from eventrouter_events import EventsConfig, EventsTrigger, cloudevents
from eventrouter_events.own import event_of_notice
from eventrouter_events.shapes import BadEntryError, check_bus, check_entries, event_of_entry, event_of_message, event_of_shape, shape

_KEPT: Final = 100  # of the router's own events while the journal takes none
_TITLES: Final = {
    400: "Bad Request",
    401: "Unauthorized",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    503: "Service Unavailable",
}


class EventsSource(Source[EventsConfig]):
    name = "events"

    def __init__(self, config: EventsConfig, router: Router) -> None:
        super().__init__(config, router)
        self._session: ClientSession | None = None
        self._kept: deque[Event] = deque(maxlen=_KEPT)
        self._rules: patterns.Rules[str] = patterns.Rules()  # of the bus that the router's own events are on
        for function, trigger in router.bindings:
            assert isinstance(trigger, EventsTrigger)
            if trigger.bus == "default" and trigger.content_pattern is not None:
                self._rules.add(trigger.content_pattern, function.name)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    # In

    async def put(self, entry: Mapping[str, Any], bus: str) -> str:
        check_entries([entry])
        event = event_of_entry(entry, bus)
        await self.router.deliver([event])
        return str(event.attributes["id"])

    async def put_events(self, entries: Sequence[Mapping[str, Any]], bus: str) -> dict[str, Any]:
        check_entries(entries)
        events: list[Event] = []
        answers: list[dict[str, str]] = []
        for entry in entries:
            try:
                events.append(event_of_entry(entry, bus))
                answers.append({"EventId": events[-1].attributes["id"]})
            except BadEntryError as error:
                answers.append({"ErrorCode": error.code, "ErrorMessage": str(error)})
        await self.router.deliver(events)
        return {"FailedEntryCount": len(entries) - len(events), "Entries": answers}

    def message(self, name: str, message: Message) -> Event:
        return event_of_message(name, message.body, message.attributes)

    async def send(self, events: str, *, bus: str = "default") -> dict[str, Any]:
        """Put JSON: an entry of PutEvents, or an event in EventBridge's shape, or a list of either."""
        try:
            given = msgspec.json.decode(events)
        except msgspec.DecodeError as error:
            raise ConfigError(f"send events: not JSON: {error}") from None
        made = []
        for row in given if isinstance(given, list) else [given]:
            if not isinstance(row, dict):
                raise ConfigError("send events: write an object, or a list of them")
            try:
                check_entries([row])
                made.append(event_of_shape(row, check_bus(bus)) if "detail-type" in row else event_of_entry(row, check_bus(bus)))
            except ValueError as error:
                raise ConfigError(f"send events: {error}") from None
        await self.router.deliver(made)
        return {"FailedEntryCount": 0, "Entries": [{"EventId": event.attributes["id"]} for event in made]}

    # Over HTTP

    def endpoints(self) -> Sequence[Endpoint]:
        path = self.config.path
        if not path:
            return ()
        return [
            Endpoint("POST", path, self._take),
            Endpoint("POST", f"{path}/{{bus}}", self._take),
        ]

    def lines(self) -> list[str]:
        token = "" if self.config.token else ", from anyone who reaches it"
        return [f"events at POST {self.config.path}{token}"] if self.config.path else []

    async def _take(self, request: HttpRequest) -> Response:
        if self.config.token:
            shown = (request.header("authorization") or "").encode(errors="replace")
            if not hmac.compare_digest(shown, f"Bearer {self.config.token}".encode()):
                return _problem(401, "show the token: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})
        try:
            bus = check_bus(request.parameters.get("bus", "default"))
            if (request.header("x-amz-target") or "").endswith(".PutEvents"):
                return Response(await self._put_as_aws(request.body, bus), 200, {"Content-Type": "application/x-amz-json-1.1"})
            events = cloudevents.read(request, bus)
            await self.router.deliver(events)
            self.router.crash_point("ack.before")
        except cloudevents.UnsupportedError as error:
            return _problem(415, str(error))
        except JournalError:  # the reason is logged and in /readyz; it may name files
            return _problem(503, "the event could not be written; send it again", {"Retry-After": "1"})
        except (ValueError, ConfigError) as error:
            return _problem(400, str(error))
        ids = [event.id for event in events]  # as `eventrouter event` knows them
        batch = (request.header("content-type") or "").strip().lower().startswith(cloudevents.BATCH)
        return Response({"ids": ids} if batch else {"id": ids[0]}, 202)

    async def _put_as_aws(self, body: bytes, bus: str) -> dict[str, Any]:
        try:
            asked = msgspec.json.decode(body)
        except msgspec.DecodeError as error:
            raise ValueError(f"not JSON: {error}") from None
        if not isinstance(asked, dict):
            raise ValueError("write an object with Entries")
        return await self.put_events(asked.get("Entries", []), bus)

    # Out

    async def post(self, url: str, event: Event, mode: str, headers: Mapping[str, str]) -> tuple[int, float | None]:
        """The answer's status, and in how many seconds to come again if it says so."""
        if self._session is None:
            self._session = ClientSession(cookie_jar=DummyCookieJar())
        time = datetime.fromtimestamp(event.time or 0, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        made, body = cloudevents.write(event, mode, time)
        skipped = () if "Content-Type" in made else ("Content-Type",)
        async with self._session.post(
            url, data=body, headers={**made, **headers}, allow_redirects=False, skip_auto_headers=skipped
        ) as answer:
            return answer.status, self._after(answer.headers.get("Retry-After"))

    def _after(self, text: str | None) -> float | None:
        if text is None:
            return None
        try:
            seconds = float(text) if text.strip().isdigit() else parsedate_to_datetime(text).timestamp() - self.router.clock.time()
        except (ValueError, OverflowError):
            return None
        return min(max(seconds, 0.0), 3600.0)

    # The router's own events

    def heard(self, notice: Notice) -> None:
        event = event_of_notice(notice, self.router.clock.time())
        if not self._rules.find(shape(event)):
            return
        self._keep(event)
        if not self.router.fault:
            while self._kept:
                self._offer(self._kept.popleft())

    def _keep(self, event: Event) -> None:
        if len(self._kept) == _KEPT:
            self.router.log.error("an event of the router's own is lost: %s", self._kept[0].type, extra={"action": "events.lost"})
        self._kept.append(event)

    def _offer(self, event: Event) -> None:
        def accepted(receipt: asyncio.Future[int]) -> None:
            if not receipt.cancelled() and receipt.exception() is not None:
                self._keep(event)  # until the journal says that it takes events again

        self.router.deliver([event]).add_done_callback(accepted)


def _problem(status: int, detail: str, headers: Mapping[str, str] = {}) -> Response:
    """An RFC 9457 problem."""
    body = {"type": "about:blank", "title": _TITLES[status], "status": status, "detail": detail}
    return Response(msgspec.json.encode(body), status, {"Content-Type": "application/problem+json", **headers})
