"""Asks one url over and over, hands on what is new, and remembers how far it came."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable
from typing import Final
from urllib.parse import unquote, urljoin, urlsplit

import msgspec
from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout

from eventrouter import Router, exponential
from eventrouter.errors import EventRouterError, JournalError
from eventrouter_webhook import PollTrigger
from eventrouter_webhook.polling import CURSOR, State, digest, next_url, retry_after, same_origin
from eventrouter_webhook.settings import PollSettings

_BACKOFF: Final = exponential(1, 2, 300)
_REDIRECTS: Final = 5
_NOTE: Final = 60.0  # seconds: when it was asked last is written down as seldom as this, while nothing changes
_TOGETHER: Final = 1000  # events that are journalled at a time
_DEFAULTS: Final = {"Accept": "application/json, */*;q=0.5", "User-Agent": "eventrouter"}


class PollError(EventRouterError):
    """The url gave no answer that is of use. after: seconds that it asks to be left alone."""

    def __init__(self, why: str, after: float | None = None) -> None:
        super().__init__(why)
        self.after = after


class Answer(msgspec.Struct, frozen=True):
    body: bytes
    content_type: str
    etag: str
    modified: str


class Poller:
    """report: called with the url as it may be printed, and what is wrong; "" when all is well."""

    def __init__(
        self, trigger: PollTrigger, every: float, settings: PollSettings, router: Router, report: Callable[[str, str], None]
    ) -> None:
        self.subject = trigger.subject
        self.every = every
        self._trigger = trigger
        self._settings = settings
        self._router = router
        self._report = report
        self._state = State()
        self._saved = 0.0  # its `at`, on disk
        self._key = f"poll {digest(repr((trigger.subject, *trigger.key[1:])).encode()).hex()}"
        self._headers = {name.lower(): value for given in (_DEFAULTS, trigger.headers, settings.headers) for name, value in given.items()}
        parts = urlsplit(trigger.url)
        if parts.username is not None:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers["authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"

    async def run(self, client: ClientSession) -> None:
        clock, failures = self._router.clock, 0
        stored = await self._router.get(self._key)
        if stored is not None:
            try:
                self._state = msgspec.msgpack.decode(stored, type=State)
            except msgspec.DecodeError:
                self._router.log.warning(
                    "poll %s: what was known of it can't be read; it begins anew", self.subject, extra={"action": "poll.state"}
                )
        wait = self._state.at + self.every - clock.time()
        if 0 < wait <= self.every:  # it was asked a short while ago, before a restart
            self._report(self.subject, "")
            await clock.sleep(wait)
        while True:
            began = clock.monotonic()
            try:
                if self._router.fault:
                    raise JournalError(self._router.fault)
                await self._poll(client)
            except JournalError as error:
                self._report(self.subject, str(error))
                await clock.sleep(1)
                continue
            except PollError as error:
                failures += 1
                wait = max(error.after or 0.0, _BACKOFF.delay(failures, random.random()))  # noqa: S311 - no secret hangs on it
                self._report(self.subject, str(error))
            else:
                failures = 0
                wait = self.every - (clock.monotonic() - began)
                self._report(self.subject, "")
            if wait > 0:
                await clock.sleep(wait)

    async def _poll(self, client: ClientSession) -> None:
        """Ask, and go on as long as the answers say where. What is known afterwards is on disk."""
        for _ in range(self._settings.pages):
            url, now = self._url(), self._router.clock.time()
            answer = await self._ask(client, url)
            if answer is None:
                await self._remember(msgspec.structs.replace(self._state, at=now))
                return
            try:
                events, state, cursor = self._trigger.reader.read(self._state, answer.body, answer.content_type)
            except ValueError as error:
                raise PollError(str(error)) from None
            for start in range(0, len(events), _TOGETHER):
                await self._router.deliver(events[start : start + _TOGETHER])
            more = cursor is not None and cursor != state.cursor
            await self._remember(
                msgspec.structs.replace(
                    state,
                    at=now,
                    asked=digest(url.encode()),
                    etag=answer.etag,
                    modified=answer.modified,
                    cursor=state.cursor if cursor is None else cursor,
                )
            )
            if not more:
                return
        self._router.log.info(
            "poll %s: there is more after %d pages; it goes on at the next poll", self.subject, self._settings.pages,
            extra={"action": "poll.pages"},
        )  # fmt: skip

    async def _remember(self, state: State) -> None:
        unchanged = msgspec.structs.replace(state, at=0.0) == msgspec.structs.replace(self._state, at=0.0)
        if unchanged and 0 <= state.at - self._saved < _NOTE:
            self._state = state
            return
        # A crash before this is on disk gets the same answer again, whose events have the same ids: they run once.
        self._router.crash_point("ack.before")
        await self._router.put(self._key, msgspec.msgpack.encode(state))
        self._router.crash_point("ack.after")
        self._state, self._saved = state, state.at

    def _url(self) -> str:
        url, cursor = self._trigger.subject, self._state.cursor
        if CURSOR in url:
            return next_url(url, cursor)
        if cursor is None:
            return url
        found = urljoin(url, cursor)
        if not same_origin(url, found):
            raise PollError("its cursor is a url of another host, which is not to be trusted")
        return found

    async def _ask(self, client: ClientSession, url: str) -> Answer | None:
        """None: there is nothing new."""
        headers, conditions = self._headers, {}
        if self._state.asked == digest(url.encode()):
            conditions = {"If-None-Match": self._state.etag, "If-Modified-Since": self._state.modified}
            headers = {**headers, **{name: value for name, value in conditions.items() if value}}
        timeout = ClientTimeout(total=self._settings.timeout)
        try:
            for _ in range(_REDIRECTS + 1):
                async with client.get(url, headers=headers, timeout=timeout, allow_redirects=False) as answer:
                    if answer.status not in (301, 302, 303, 307, 308):
                        return await self._answer(answer)
                    target = urljoin(url, answer.headers.get("Location", ""))
                if urlsplit(target).scheme not in ("https", urlsplit(url).scheme):
                    raise PollError("it redirects to what is no https url")
                if not same_origin(url, target):
                    headers = _DEFAULTS  # credentials are for the host that was named, and for no other
                url = target
        except TimeoutError:
            raise PollError(f"no answer within {self._settings.timeout:g} s") from None
        except (ClientError, OSError, ValueError) as error:
            raise PollError(f"{type(error).__name__}: {error}") from None
        raise PollError(f"more than {_REDIRECTS} redirects")

    async def _answer(self, answer: ClientResponse) -> Answer | None:
        if answer.status in (204, 304):
            return None
        if answer.status != 200:
            raise PollError(f"it answers {answer.status}", retry_after(answer.headers.get("Retry-After"), self._router.clock.time()))
        body = bytearray()
        async for chunk in answer.content.iter_chunked(65_536):
            body += chunk
            if len(body) > self._settings.limit:
                raise PollError(f"its answer is larger than {self._settings.limit} bytes; [webhook.polls.NAME] limit allows more")
        headers = answer.headers
        return Answer(
            bytes(body), headers.get("Content-Type", "application/json"), headers.get("ETag", ""), headers.get("Last-Modified", "")
        )
