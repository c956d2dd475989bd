"""Keeps one session with the broker, and one for each group of shared subscriptions."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING

import msgspec

from eventrouter import EventRouterError, Router, Source
from eventrouter.errors import ConfigError
from eventrouter_mqtt import Address, MqttConfig, MqttTrigger, parse_url, topics
from eventrouter_mqtt.broker import EmbeddedBroker

if TYPE_CHECKING:
    from eventrouter_mqtt.connection import Connection


class MqttSource(Source[MqttConfig]):
    name = "mqtt"

    def __init__(self, config: MqttConfig, router: Router) -> None:
        super().__init__(config, router)
        self._triggers = [binding.trigger for binding in router.bindings if isinstance(binding.trigger, MqttTrigger)]
        self._broker: EmbeddedBroker | None = None
        self._address = parse_url(config.url or "mqtt://127.0.0.1:1883")
        self._connections: dict[str, Connection] = {}  # by share group; "" is the plain one

    @property
    def _needed(self) -> bool:
        return bool(self._triggers) or self.config.is_set

    def lines(self) -> list[str]:
        if self._broker is not None:
            only = ", MQTT 3.1.1 only" if self._broker.kind == "nats-server" else ""
            return [f"mqtt broker on {self._address} (embedded {self._broker.kind}{only})"]
        return [f"mqtt from {self._address}"] if self._needed else []

    async def start(self) -> None:
        if not self._needed:
            return
        from eventrouter_mqtt.connection import Connection  # noqa: PLC0415 - paho is only for those who have a broker

        if self.config.broker == "embedded":
            self._broker = EmbeddedBroker(self.router.folder, self.config.host, self.config.port)
            await self._broker.start()
            self._address = Address(self._broker.host, self._broker.port)
            if self._broker.kind == "nats-server":
                self.config = msgspec.structs.replace(self.config, version="3.1.1")
        client_id = self.config.client_id or await self._own_client_id()
        wanted: dict[str, dict[str, int]] = {"": {}}
        for trigger in self._triggers:
            filters = wanted.setdefault(trigger.share, {})
            filters[trigger.filter] = max(trigger.qos, filters.get(trigger.filter, 0))
        for share, filters in wanted.items():
            # A session of its own tells a group's messages from the others, whatever the protocol's version.
            name = f"{client_id}-{share}" if share else client_id
            self._connections[share] = Connection(self.router, self._address, self.config, name, filters, share, self._changed)

    async def run(self) -> None:
        if not self._needed:
            self.router.live()
            await asyncio.get_running_loop().create_future()
        if self._broker is not None and not self._broker.running:
            await self._broker.start()
        try:
            async with asyncio.TaskGroup() as group:
                if self._broker is not None:
                    group.create_task(self._watch(self._broker))
                for connection in self._connections.values():
                    group.create_task(connection.run())
        except* Exception as errors:
            raise errors.exceptions[0] from None

    async def stop(self) -> None:
        await asyncio.gather(*(connection.stop() for connection in self._connections.values()))

    async def close(self) -> None:
        await asyncio.gather(*(connection.close() for connection in self._connections.values()))
        if self._broker is not None:
            await self._broker.stop()

    async def publish(self, topic: str, payload: bytes, qos: int, retain: bool) -> None:
        if qos not in (0, 1, 2):
            raise ValueError(f"qos={qos!r}: 0, 1 or 2")
        if "" not in self._connections:
            raise EventRouterError('mqtt: no broker is configured; set [mqtt] url, or broker = "embedded"')
        await self._connections[""].publish(topic, payload, qos, retain)

    async def send(self, topic: str, payload: str, *, qos: int = 1, retain: bool = False) -> dict[str, object]:
        """Publish PAYLOAD to the broker, as a device does."""
        try:
            topics.check_topic(topic)
            await self.publish(topic, payload.encode(), qos, retain)
        except ValueError as error:
            raise ConfigError(f"send mqtt: {error}") from None
        return {"topic": topic, "qos": qos}

    async def _own_client_id(self) -> str:
        found = await self.router.get("client_id")
        if found is None:
            found = f"eventrouter-{uuid.uuid4().hex[:12]}".encode()
            await self.router.put("client_id", found)
        return found.decode()

    async def _watch(self, broker: EmbeddedBroker) -> None:
        status = await broker.wait()
        raise EventRouterError(f"the embedded {broker.kind} ended (status {status})")

    def _changed(self) -> None:
        lost = [connection.state for connection in self._connections.values() if connection.state not in ("live", "starting")]
        if lost:
            self.router.lost(lost[0])
        elif all(connection.state == "live" for connection in self._connections.values()):
            self.router.live()
