"""Messages are read alike, however they are cut into pieces and whoever reads them: our own lines or paho's."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from paho.mqtt.client import MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion

from eventrouter_mqtt.client import TURN, BufferedClient, Message

BOTH = pytest.mark.parametrize("version", [MQTTProtocolVersion.MQTTv311, MQTTProtocolVersion.MQTTv5], ids=["3.1.1", "5"])


@contextmanager
def connected(version: MQTTProtocolVersion) -> Iterator[tuple[BufferedClient, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        client = BufferedClient(CallbackAPIVersion.VERSION2, "reader", protocol=version, manual_ack=True, reconnect_on_failure=False)
        client.forget_unread()

        def by_paho(client: BufferedClient, data: object, message: MQTTMessage) -> None:
            identifiers = getattr(message.properties, "SubscriptionIdentifier", None)
            client.messages.append((message.topic, bytes(message.payload), message.qos << 1 | message.retain, message.mid, identifiers))

        client.on_message = by_paho  # type: ignore[assignment]
        client._sock = ours
        yield client, theirs
        client._sock = None


def read(client: BufferedClient) -> MQTTErrorCode:
    while (code := client.loop_read()) == MQTTErrorCode.MQTT_ERR_SUCCESS and client.unread:
        if len(client.messages) >= TURN:
            break
    return code


def packet(message: Message, version: MQTTProtocolVersion, *, more: bytes = b"", dup: bool = False) -> bytes:
    """A PUBLISH. more: properties besides the subscriptions' identifiers."""
    topic, payload, flags, mid, identifiers = message
    body = len(topic.encode()).to_bytes(2) + topic.encode() + (mid.to_bytes(2) if flags & 2 else b"")
    if version == MQTTProtocolVersion.MQTTv5:
        properties = b"".join(b"\x0b" + length(number) for number in identifiers or ()) + more
        body += length(len(properties)) + properties
    return bytes([0x30 | flags | dup << 3]) + length(len(body) + len(payload)) + body + payload


def length(number: int) -> bytes:
    found = b""
    while number > 127:
        found += bytes([number & 127 | 128])
        number >>= 7
    return found + bytes([number])


@BOTH
@pytest.mark.parametrize("seed", range(20))
def test_messages_in_any_pieces(version: MQTTProtocolVersion, seed: int) -> None:
    dice = random.Random(seed)
    sent: list[Message] = []
    wire = b""
    for number in range(1, 60):
        flags = dice.choice([0, 1, 2, 3])
        identifiers = dice.choice([None, [1], [127], [128], [3, 300]]) if version == MQTTProtocolVersion.MQTTv5 else None
        payload = dice.randbytes(dice.choice([0, 1, 100, 119, 120, 300, 16_370, 16_384, 70_000]))
        sent.append((dice.choice(["a", "sensors/küche/temperature", "x" * 200]), payload, flags, number if flags & 2 else 0, identifiers))
        wire += packet(sent[-1], version, more=dice.choice([b"", b"", b"\x01\x01"]), dup=bool(flags & 2 and dice.random() < 0.1))
    got: list[Message] = []
    with connected(version) as (client, broker):
        while wire:
            size = dice.choice([1, 2, 3, 7, 400, 5000, 60_000])
            broker.sendall(wire[:size])
            wire = wire[size:]
            assert read(client) == MQTTErrorCode.MQTT_ERR_SUCCESS
            got += client.messages
            client.messages = []
        while read(client) == MQTTErrorCode.MQTT_ERR_SUCCESS and client.messages:
            got += client.messages
            client.messages = []
    assert got == sent


@BOTH
def test_a_turn_has_its_end_and_the_rest_is_unread(version: MQTTProtocolVersion) -> None:
    sent: list[Message] = [("a", b"%d" % number, 2, number, None) for number in range(1, 2 * TURN + 11)]
    got = []
    with connected(version) as (client, broker):
        broker.sendall(b"".join(packet(message, version) for message in sent))
        while True:
            read(client)
            got.append(client.messages)
            client.messages = []
            if not client.unread:
                break
    assert [len(messages) for messages in got] == [TURN, TURN, 10]
    assert [message for messages in got for message in messages] == sent


@BOTH
@pytest.mark.parametrize("wire", [b"\x30\x02\x00\x09", b"\x32\x04\x00\x02ab", b"\x32\x03\x00\x01a"], ids=["topic", "identifier", "half"])
def test_a_packet_that_ends_before_its_parts_gives_no_message(version: MQTTProtocolVersion, wire: bytes) -> None:
    with connected(version) as (client, broker):
        broker.sendall(wire + packet(("b", b"1", 0, 0, None), version))
        assert read(client) == MQTTErrorCode.MQTT_ERR_PROTOCOL
        assert client.messages == []


@BOTH
def test_the_end_of_a_connection_is_seen(version: MQTTProtocolVersion) -> None:
    with connected(version) as (client, broker):
        broker.sendall(packet(("a", b"1", 0, 0, None), version))
        broker.shutdown(socket.SHUT_WR)
        assert read(client) == MQTTErrorCode.MQTT_ERR_SUCCESS
        assert client.messages == [("a", b"1", 0, 0, None)]
        assert read(client) != MQTTErrorCode.MQTT_ERR_SUCCESS


@BOTH
def test_acknowledgements_go_out_together(version: MQTTProtocolVersion) -> None:
    with connected(version) as (client, broker):
        client.acknowledge([1, 258, 65_535])
        client.loop_write()
        assert broker.recv(100) == b"\x40\x02\x00\x01\x40\x02\x01\x02\x40\x02\xff\xff"
