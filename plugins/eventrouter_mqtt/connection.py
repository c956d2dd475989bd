"""One MQTT session on the event loop: paho's client, read in big pieces, acknowledged after the commit and in order."""

from __future__ import annotations

import asyncio
import fcntl
import sys
import termios
import threading
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec
from paho.mqtt.client import MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from eventrouter import Event, EventRouterError, Router
from eventrouter.errors import JournalError
from eventrouter_mqtt import Address, MqttConfig, topics
from eventrouter_mqtt.client import BufferedClient, Message

_UNACKNOWLEDGED = 8192  # messages handed to the journal; more are left unread (mosquitto sends past Receive Maximum)
_UNACKNOWLEDGED_BYTES = 32 * 1024 * 1024
# What a stock mosquitto sends is safe: it throws away what it has to queue, beyond 1,000 messages, for a client that
# does not acknowledge. So it may send us all it can, and while the journal takes nothing we hold that much.
_RECEIVE_MAXIMUM = 65_535
_COMMIT = 0.005  # seconds that a commit is waited for at most, before reading goes on
_SOME = range(8, 128)  # messages of a commit, after which reading rests, so that more come together: a turn costs as much as ten of them
_REST = 0.004  # seconds
_RESTLESS = 0.1  # seconds without a rest, once nothing came in the last three quarters of one: the broker waits for us
_BEAT = 1.0  # seconds
_PATIENCE = 10.0  # seconds for a broker to answer
_PAUSES = (0.1, 1.0, 2.0, 5.0, 10.0, 30.0)
_TOPICS_CACHED = 4096


class ConnectionEnded(EventRouterError):
    """Why a connection is not, or no longer, there."""


class Batch:
    """Messages that were read together. size: bytes. receipt: of the journal, None while they are held back from it.

    unsafe: how many are of QoS 0. session: which connection they came by.
    """

    __slots__ = ("events", "mids", "receipt", "session", "size", "unsafe")

    def __init__(self, events: list[Event], mids: list[int], unsafe: int, size: int, session: int) -> None:
        self.events = events
        self.mids = mids
        self.unsafe = unsafe
        self.size = size
        self.session = session
        self.receipt: asyncio.Future[int] | None = None

    @property
    def untaken(self) -> bool:
        return self.receipt is None or (self.receipt.done() and isinstance(self.receipt.exception(), JournalError))


class Connection:
    """A session with a broker. share: its group, if it is for shared subscriptions.

    subscriptions: QoS by filter. changed: called when `state` has: "live", or why not.
    """

    def __init__(
        self, router: Router, address: Address, config: MqttConfig, client_id: str, subscriptions: Mapping[str, int], share: str,
        changed: Callable[[], None],
    ) -> None:  # fmt: skip
        self.state = "starting"
        self._router = router
        self._address = address
        self._config = config
        self._share = share
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._filters = {f"$share/{share}/{filter}" if share else filter: qos for filter, qos in subscriptions.items()}
        self._v5 = config.version == "5"
        self._identified = self._v5 and not share and _overlap(list(subscriptions))
        self._owners: dict[str, int] = {}
        # One mapping for all messages of a kind, instead of one each; by their flags.
        self._attributes = {
            qos << 1 | retain: {"qos": qos, "retain": retain, **({"share": share} if share else {})}
            for qos in (0, 1, 2) for retain in (False, True)
        }  # fmt: skip
        self._session = 0
        self._stopping = False
        self._reading = False
        self._pending: deque[Batch] = deque()
        self._unacknowledged = 0
        self._bytes = 0  # of them
        self._held = False  # the journal took nothing when last asked
        self._heard = 0  # reads
        self._published: dict[int, asyncio.Future[None]] = {}
        self._subscribed: dict[int, asyncio.Future[list[ReasonCode]]] = {}
        self._connected: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[str] = self._loop.create_future()
        self._beat: asyncio.TimerHandle | None = None
        self._listens: asyncio.TimerHandle | None = None
        self._restless = 0.0  # until then it doesn't rest, by the loop's time
        self._client = self._make_client(client_id)

    # Life

    async def run(self) -> None:
        """Connect, and again whenever the connection is lost, until cancelled; the connection then stays open."""
        failures = 0
        while True:
            try:
                await self._connect()
                failures = 0
                self._tell("live")
                why = await asyncio.shield(self._ended)
            except ConnectionEnded as error:
                why = str(error)
            pause = _PAUSES[min(failures, len(_PAUSES) - 1)]
            failures += 1
            self._drop()
            self._tell(f"{self._address}: {why}; trying again")
            await self._router.clock.sleep(pause)

    async def stop(self) -> None:
        """Take no more messages (the broker keeps those of QoS 1), acknowledge what is accepted."""
        self._stopping = True
        while receipts := [batch.receipt for batch in self._pending if batch.receipt is not None and not batch.receipt.done()]:
            await asyncio.wait(receipts)
        self._settled()

    async def close(self) -> None:
        """Disconnect; the session stays with the broker."""
        if self._client.socket() is not None:
            self._client.disconnect()
            await asyncio.wait([self._ended], timeout=1)
        self._drop()
        for future in self._published.values():
            if not future.done():
                future.set_exception(ConnectionEnded("the router has stopped before the broker acknowledged"))

    async def publish(self, topic: str, payload: bytes, qos: int, retain: bool) -> None:
        info = self._client.publish(topic, payload, qos, retain)
        if qos == 0:
            if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
                raise ConnectionEnded(f"{self._address}: not connected, and a message of QoS 0 does not wait; publish it with qos=1")
            return
        acknowledged = self._published[info.mid] = self._loop.create_future()
        try:
            await acknowledged
        finally:
            self._published.pop(info.mid, None)

    def _tell(self, state: str) -> None:
        self.state = state
        self._changed()

    # Connecting

    def _make_client(self, client_id: str) -> BufferedClient:
        version = MQTTProtocolVersion.MQTTv5 if self._v5 else MQTTProtocolVersion.MQTTv311
        client = BufferedClient(
            CallbackAPIVersion.VERSION2, client_id, clean_session=None if self._v5 else False, protocol=version,
            reconnect_on_failure=False, manual_ack=True,
        )  # fmt: skip
        address, config, base = self._address, self._config, self._router.base
        if address.username is not None:
            client.username_pw_set(address.username, address.password)
        if address.tls:
            try:
                ca, cert, key = (str(base / name) if name else None for name in (config.ca_file, config.cert_file, config.key_file))
                client.tls_set(ca, cert, key)
            except (OSError, ValueError) as error:
                files = ", ".join(name for name in (config.ca_file, config.cert_file, config.key_file) if name)
                raise EventRouterError(f"[mqtt] {files}: {error}; check that they are PEM files") from None
        client.max_inflight_messages_set(1000)
        client.connect_timeout = _PATIENCE
        # These come in the connecting thread, too.
        client.on_socket_open = lambda client, data, sock: self._on_loop(self._opened, sock)
        client.on_socket_close = lambda client, data, sock: self._on_loop(self._closed, sock)
        client.on_socket_register_write = lambda client, data, sock: self._on_loop(self._write_later, sock)
        client.on_socket_unregister_write = lambda client, data, sock: self._on_loop(self._written, sock)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        return client

    async def _connect(self) -> None:
        self._session += 1
        self._settled()  # what is held comes again
        self._client.forget_unread()
        self._connected, self._ended = self._loop.create_future(), self._loop.create_future()
        only_v5: dict[str, Any] = {}
        if self._v5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = self._config.session_expiry
            properties.ReceiveMaximum = _RECEIVE_MAXIMUM
            only_v5 = {"clean_start": False, "properties": properties}
        connect = partial(self._client.connect, self._address.host, self._address.port, self._config.keepalive, **only_v5)
        connecting = self._loop.run_in_executor(None, connect)
        try:
            await asyncio.shield(connecting)
        except asyncio.CancelledError:
            connecting.add_done_callback(lambda _: self._drop())
            raise
        except (OSError, ValueError) as error:
            raise ConnectionEnded(str(getattr(error, "strerror", None) or error)) from None
        await self._answer(self._connected, "did not answer CONNECT")
        self._keep_alive()
        await self._subscribe()

    async def _answer(self, future: asyncio.Future[Any], fault: str) -> None:
        """Wait for the broker as long as it says anything, or is not listened to; a session's messages may come first.

        Raises ConnectionEnded when it falls silent or goes.
        """
        heard = -1
        while not future.done():
            if self._ended.done():
                raise ConnectionEnded(self._ended.result())
            if heard == self._heard and self._reading:
                raise ConnectionEnded(f"the broker {fault} within {_PATIENCE:g} s")
            heard = self._heard
            await asyncio.wait([future, self._ended], timeout=_PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        future.result()

    async def _subscribe(self) -> None:
        state = f"subscriptions{self._share}"
        before: list[str] = msgspec.json.decode(await self._router.get(state) or b"[]")
        gone = [filter for filter in before if filter not in self._filters]
        if gone:  # the session remembers what functions of yesterday wanted
            self._client.unsubscribe(gone)
        waiting = []
        for number, (filter, qos) in enumerate(self._filters.items(), 1):
            if self._v5:
                properties = None
                if self._identified:
                    properties = Properties(PacketTypes.SUBSCRIBE)  # type: ignore[no-untyped-call]
                    properties.SubscriptionIdentifier = number
                handling = SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE if self._share else SubscribeOptions.RETAIN_SEND_IF_NEW_SUB
                _, mid = self._client.subscribe(filter, options=SubscribeOptions(qos, retainHandling=handling), properties=properties)
            else:
                _, mid = self._client.subscribe(filter, qos)
            if mid is None:
                raise ConnectionEnded("the connection was lost")
            self._subscribed[mid] = self._loop.create_future()
            waiting.append((filter, self._subscribed[mid]))
        for filter, future in waiting:
            await self._answer(future, f"did not acknowledge the subscription to {filter!r}")
            if future.result()[0].is_failure:
                raise ConnectionEnded(f"the broker refuses the subscription to {filter!r}: {future.result()[0]}")
        if sorted(before) != sorted(self._filters):
            await self._router.put(state, msgspec.json.encode(sorted(self._filters)))

    def _drop(self) -> None:
        """Let go of the socket, without a word."""
        if self._beat is not None:
            self._beat.cancel()
        self._subscribed.clear()
        if self._client.socket() is not None:
            self._client._sock_close()

    def _keep_alive(self) -> None:
        if self._beat is not None:
            self._beat.cancel()
        if not self._reading:
            # The answer to a PINGREQ lies unread behind messages: that it is missing says nothing. Requests still go out.
            self._client._ping_t = 0
        self._client.loop_misc()
        self._hand_over_again()
        self._beat = self._loop.call_later(_BEAT, self._keep_alive)

    # The socket

    def _on_loop(self, callback: Callable[[Any], None], sock: Any) -> None:
        if threading.get_ident() == self._thread:
            callback(sock)
        else:
            self._loop.call_soon_threadsafe(callback, sock)

    def _opened(self, sock: Any) -> None:
        if sock.fileno() == -1:
            return
        self._reading = True
        self._loop.add_reader(sock, self._read)

    def _pause(self) -> None:
        """Read no more until `_listen`."""
        sock: Any = self._client.socket()
        if sock is not None:
            self._reading = False
            self._loop.remove_reader(sock)

    def _closed(self, sock: Any) -> None:
        self._reading = False
        if sock.fileno() != -1:
            self._loop.remove_reader(sock)
            self._loop.remove_writer(sock)

    def _written(self, sock: Any) -> None:
        if sock.fileno() != -1:
            self._loop.remove_writer(sock)

    def _write_later(self, sock: Any) -> None:
        if sock.fileno() != -1:
            self._loop.add_writer(sock, self._client.loop_write)

    def _read(self) -> None:
        client = self._client
        self._heard += 1
        client.begin_turn()
        while client.loop_read() == MQTTErrorCode.MQTT_ERR_SUCCESS and client.unread and not client.sated:
            pass
        if client.messages:
            messages, client.messages = client.messages, []
            if not self._stopping:
                self._deliver(messages)
        if not self._reading:
            return
        if client.unread:
            self._loop.call_soon(self._read)  # the rest, when everything else has had its turn
        elif self._pending and (receipt := self._pending[-1].receipt) is not None and not receipt.done():
            # What comes during a commit has to wait for the next, and is read together then, instead of one by one.
            self._pause()
            self._listen_after(_COMMIT)

    # What the broker says

    def _on_connect(self, client: Any, data: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        if self._connected.done():
            return
        if reason.is_failure:
            hint = '; for a broker of MQTT 3.1.1 set [mqtt] version = "3.1.1"' if "protocol version" in str(reason).lower() else ""
            self._connected.set_exception(ConnectionEnded(f"the broker refuses the connection: {reason}{hint}"))
        else:
            self._connected.set_result(None)

    def _on_disconnect(self, client: Any, data: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        if not self._ended.done():
            self._ended.set_result(f"disconnected: {reason}" if reason.is_failure else "the connection was closed")

    def _on_subscribe(self, client: Any, data: Any, mid: int, reasons: list[ReasonCode], properties: Any) -> None:
        future = self._subscribed.pop(mid, None)
        if future is not None and not future.done():
            future.set_result(reasons)

    def _on_publish(self, client: Any, data: Any, mid: int, reason: ReasonCode, properties: Any) -> None:
        future = self._published.get(mid)
        if future is None or future.done():
            return
        if reason.is_failure:
            future.set_exception(ConnectionEnded(f"{self._address}: the broker refuses the message: {reason}"))
        else:
            future.set_result(None)

    def _on_message(self, client: Any, data: Any, message: MQTTMessage) -> None:
        identifiers = getattr(message.properties, "SubscriptionIdentifier", None)
        try:
            topic = message.topic
        except UnicodeDecodeError:
            # Left unacknowledged it would be sent again for ever.
            self._router.log.error("a message is lost: its topic is not UTF-8", extra={"action": "mqtt.lost", "count": 1})
            self._client.ack(message.mid, message.qos)
            return
        self._client.messages.append((topic, bytes(message.payload), message.qos << 1 | message.retain, message.mid, identifiers))

    def _deliver(self, messages: list[Message]) -> None:
        now, attributes = self._router.clock.time(), self._attributes
        wanted = messages
        if self._identified:
            wanted = [message for message in messages if not message[4] or self._is_first_copy(message[0], message[4])]
        events = [
            Event("mqtt", "mqtt.message", topic, payload, time=now, attributes=attributes[flags])
            for topic, payload, flags, _, _ in wanted
        ]  # fmt: skip
        mids = [mid for _, _, flags, mid, _ in messages if flags > 1]
        unsafe = len(messages) - len(mids)
        size = sum([len(topic) + len(payload) for topic, payload, _, _, _ in messages])
        batch = Batch(events, mids, unsafe, size, self._session)
        self._pending.append(batch)
        self._unacknowledged += len(messages)
        self._bytes += size
        if self._held or self._router.fault:
            self._held = True
        else:
            self._hand_over(batch)
        if self._filled() >= 1 and self._reading:
            self._pause()

    def _hand_over(self, batch: Batch) -> None:
        batch.receipt = self._router.deliver(batch.events)
        batch.receipt.add_done_callback(self._settled)

    def _hand_over_again(self) -> None:
        """What the journal did not take, once it does.

        Until then we stay connected and acknowledge nothing, so that the broker's own limit of messages under way stops
        it. Reading goes on: among the messages are the broker's answers to PINGREQ and to what handlers publish, and
        handlers that waited in vain for those would never make room in the journal.
        """
        if not self._held or self._router.fault:
            return
        self._held = False
        for batch in self._pending:
            if batch.untaken and batch.session == self._session:
                self._hand_over(batch)

    def _filled(self) -> float:
        """How much of what may be unacknowledged is."""
        most = _RECEIVE_MAXIMUM if self._held else _UNACKNOWLEDGED
        return max(self._unacknowledged / most, self._bytes / _UNACKNOWLEDGED_BYTES)

    def _is_first_copy(self, topic: str, identifiers: list[int]) -> bool:
        """A broker of MQTT 5 may send a message once for each subscription that matches; one of them counts."""
        owner = self._owners.get(topic)
        if owner is None:
            levels = topic.split("/")
            wanting = [
                (qos, -number) for number, (filter, qos) in enumerate(self._filters.items(), 1)
                if topics.levels_match(filter.split("/"), levels)
            ]  # fmt: skip
            owner = -max(wanting)[1] if wanting else 0
            if len(self._owners) >= _TOPICS_CACHED:
                self._owners.clear()  # bounded: topics come from outside
            self._owners[topic] = owner
        return owner in identifiers or owner == 0

    def _settled(self, _: object = None) -> None:
        # In order of receipt, as the standard wants it, whatever order the commits ended in.
        settled = 0
        while self._pending:
            batch = self._pending[0]
            current = batch.session == self._session
            if batch.receipt is not None and not batch.receipt.done():
                break
            if batch.untaken and current and not self._stopping:
                self._held = True
                break
            self._pending.popleft()
            settled += len(batch.events)
            self._unacknowledged -= len(batch.mids) + batch.unsafe
            self._bytes -= batch.size
            if batch.receipt is None:
                self._refused(JournalError(self._router.fault or "they were not written before the connection ended"), batch)
            elif (error := batch.receipt.exception()) is not None:
                self._refused(error, batch)
            elif batch.mids and current and self._client.is_connected():
                self._router.crash_point("ack.before")
                self._client.acknowledge(batch.mids)
                self._router.crash_point("ack.after")
        if settled in _SOME and not self._reading and self._loop.time() > self._restless:
            self._listen_after(_REST / 4, self._rest)
        else:
            self._listen()

    def _rest(self) -> None:
        self._listen_after(_REST * 3 / 4, self._rested, self._unread())

    def _rested(self, unread: int) -> None:
        if self._unread() == unread:
            self._restless = self._loop.time() + _RESTLESS
        self._listen()

    def _unread(self) -> int:
        """Bytes of the socket's."""
        sock: Any = self._client.socket()
        return 0 if sock is None else int.from_bytes(fcntl.ioctl(sock, termios.FIONREAD, bytes(4)), sys.byteorder)

    def _listen_after(self, pause: float, listen: Callable[..., None] | None = None, *arguments: Any) -> None:
        if self._listens is not None:
            self._listens.cancel()
        self._listens = self._loop.call_later(pause, listen or self._listen, *arguments)

    def _listen(self) -> None:
        """Read again, if there is room."""
        if self._listens is not None:
            self._listens.cancel()
            self._listens = None
        sock: Any = self._client.socket()
        if not self._reading and self._filled() <= 0.5 and sock is not None:
            self._opened(sock)
            self._loop.call_soon(self._read)

    def _refused(self, error: BaseException, batch: Batch) -> None:
        if not isinstance(error, JournalError):
            self._router.log.error("messages not accepted", exc_info=error, extra={"action": "mqtt.refused"})
        if batch.unsafe:
            self._router.log.error(
                "%d messages of QoS 0 are lost: %s", batch.unsafe, error, extra={"action": "mqtt.lost", "count": batch.unsafe}
            )
        if batch.mids and batch.session == self._session and not self._ended.done():
            # A broker sends what was not acknowledged again only on a new connection.
            self._ended.set_result(f"{len(batch.mids)} messages wait at the broker: {error}")


def _overlap(filters: list[str]) -> bool:
    levels = [filter.split("/") for filter in filters]
    return any(topics.may_overlap(one, other) for place, one in enumerate(levels) for other in levels[:place])
