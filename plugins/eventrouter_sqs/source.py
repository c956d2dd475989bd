"""Queues live in the router's journal: sending puts a message there, and there it stays until it was handled, deleted or is dead."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import eventrouter
from eventrouter import Event, QueueDepth, Router, Source, Terms, permissions
from eventrouter.errors import ConfigError, JournalError
from eventrouter_sqs.messages import (
    WINDOW,
    Message,
    Value,
    attributes_of,
    check,
    check_name,
    died,
    group_of,
    is_fifo,
    md5,
    md5_of_attributes,
    ordered,
    queue_arn,
    redriven,
    sent,
    system_of,
    text_of,
    typed,
    values,
)
from eventrouter_sqs.settings import Queues, Settings, SqsConfig

_AT_ONCE = Terms()


class SqsSource(Source[SqsConfig]):
    name = "sqs"

    def __init__(self, config: SqsConfig, router: Router) -> None:
        super().__init__(config, router)
        self._queues = Queues(config)
        self._number = 0

    async def run(self) -> None:
        """What nobody takes ends, too."""
        self.router.live()
        while True:
            await self.router.clock.sleep(self._queues.look)
            try:
                for name in await self.router.queues():
                    await self.router.expire(name)
            except JournalError:  # it has told so itself; there is a next time
                continue

    def queue(self, subject: str) -> Settings:
        return self._queues(subject)

    def terms(self, event: Event) -> Terms:
        group = group_of(event) if is_fifo(event.subject) else None
        if event.type != "sqs.message":  # it was sent before, and is no repeat of itself
            return _AT_ONCE if group is None else Terms(group)
        delay = event.attributes.get("delay")
        if delay is None:
            delay = self._queues(event.subject).delay
        if group is None:
            return Terms(delay=delay) if delay else _AT_ONCE
        return Terms(group, delay, _once(event), WINDOW)

    def message(self, name: str, message: eventrouter.Message) -> Event:
        """A dead message of another queue goes on as it is, as in AWS; anything else is the body."""
        dead = message.about if message.about is not None and message.about.source == self.name else None
        made = died(dead, name) if dead is not None else sent(name, message.body, typed(message.attributes))
        if is_fifo(name) and "fifo" not in made.attributes:  # dead letters have no group of their own, and are no repeats of each other
            made.attributes = {
                **made.attributes,
                "fifo": self._ordered(message.body, message.group or "default", message.dedupe, by_content=True),
            }
            if message.dedupe is None:
                made.type = "sqs.moved"
        return made

    def make(
        self,
        queue: str,
        body: bytes,
        attributes: Mapping[str, Value],
        delay: float | None = None,
        group: str | None = None,
        dedupe: str | None = None,
    ) -> Event:
        """Raises ValueError for what SQS would refuse."""
        written = typed(attributes)
        check(body, written, delay)
        if not is_fifo(queue):
            if group is not None or dedupe is not None:
                raise ValueError("only FIFO queues have groups and repeats; their names end in .fifo")
            return sent(queue, body, written, delay)
        if delay is not None:
            raise ValueError("messages of a FIFO queue have no delay of their own; `delay` of [sqs.queues] is that of all")
        by_content = self._queues(queue).content_dedupe
        return sent(queue, body, written, None, self._ordered(body, group, dedupe, by_content=by_content))

    def _ordered(self, body: bytes, group: str | None, dedupe: str | None, *, by_content: bool) -> dict[str, str]:
        known = ordered(body, group, dedupe, by_content=by_content)
        return {"SequenceNumber": self._next_number(), **known}

    def _next_number(self) -> str:
        """20 digits, larger each time; by the clock, so that they grow over restarts, too."""
        self._number = max(self._number + 1, int(self.router.clock.time() * 1e6))
        return f"{self._number:020d}"

    async def put(self, events: Sequence[Event]) -> list[str]:
        """Their ids, once they are on disk; of a repeat, that of the message that it repeats."""
        ids = [event.id for event in events]
        if await self.router.deliver(events) < len(events):
            for place, event in enumerate(events):
                if is_fifo(event.subject) and (first := await self.router.get(_once(event))) is not None:
                    ids[place] = first.decode()
        return ids

    async def receive(self, queue: str, count: int, visibility: float | None, wait: float) -> list[Message]:
        found = await self.router.receive(queue, count, self._queues(queue).hide if visibility is None else visibility, wait)
        messages = []
        for received in found:
            event = received.event
            event.attempt = received.receives
            messages.append(
                Message(
                    id=event.id,
                    body=text_of(event),
                    attributes=values(attributes_of(event)),
                    receives=received.receives,
                    sent=event.time or 0,
                    receipt=f"{queue}/{received.id}/{received.receives}",
                    system=system_of(event),
                )
            )
        return messages

    async def redrive(self, queue: str, to: str | None, count: int | None) -> int:
        strays = 0

        def becomes(event: Event) -> Event | None:
            nonlocal strays
            target = to or event.attributes.get("from")
            if target is None or is_fifo(target) != is_fifo(queue):
                strays += 1
                return None
            permissions.require("sqs:SendMessage", queue_arn(target))
            return redriven(event, target, self._next_number())

        moved = await self.router.move(queue, sys.maxsize if count is None else count, becomes)
        if strays:
            self.router.log.warning(
                "sqs: %d messages of %s came from no queue and stay; redrive(to=...) says where they go", strays, queue,
                extra={"action": "sqs.strays", "queue": queue},
            )  # fmt: skip
        self.router.log.info("sqs: %d messages of %s are redriven", moved, queue, extra={"action": "sqs.redriven", "queue": queue})
        return moved

    async def purge(self, queue: str) -> int:
        gone = await self.router.clear(queue)
        self.router.log.info("sqs: %s is purged of %d messages", queue, gone, extra={"action": "sqs.purged", "queue": queue})
        return gone

    async def depth(self, queue: str) -> QueueDepth:
        return await self.router.depth(queue)

    async def send(
        self,
        queue: str,
        body: str,
        *,
        attribute: dict[str, str] = {},  # noqa: B006 - read only
        delay: float | None = None,
        group: str | None = None,
        dedupe: str | None = None,
    ) -> dict[str, str]:
        """Put a message with this body into the queue. delay is in seconds; group and dedupe are for FIFO queues."""
        try:
            event = self.make(check_name(queue, "send sqs:"), body.encode(), attribute, delay, group, dedupe)
        except ValueError as error:
            raise ConfigError(f"send sqs: {error}") from None
        (id,) = await self.put([event])
        answer = {"MessageId": id, "MD5OfMessageBody": md5(body)}
        if attribute:
            answer["MD5OfMessageAttributes"] = md5_of_attributes(attributes_of(event))
        if is_fifo(queue):
            answer["SequenceNumber"] = event.attributes["fifo"]["SequenceNumber"]
        return answer


def _once(event: Event) -> str:
    return f"once/{event.subject}/{event.attributes['fifo']['MessageDeduplicationId']}"
