"""paho's client, reading in big pieces: the usual messages are taken from them here, everything else is paho's."""

from __future__ import annotations

import ssl
import struct
from typing import TypeAlias

from paho.mqtt.client import Client
from paho.mqtt.enums import MQTTErrorCode, MQTTProtocolVersion

TURN = 256  # messages at once
_READ = 64 * 1024  # bytes at once; of more than 128 KB each, the C library makes two system calls and fresh pages
_PUBLISH, _PUBACK = 0x30, 0x40

# topic, payload, flags (QoS << 1 | retain, as in the packet), packet identifier, identifiers of the subscriptions that it was
# sent for, when there are any. A tuple: there is one for each message, and it lives for a turn of the loop.
Message: TypeAlias = tuple[str, bytes, int, int, list[int] | None]


class BufferedClient(Client):
    """paho asks the socket for every single byte of a header; this reads what is there and hands that out.

    messages: what was read; whoever gets one by paho's on_message puts it there, too.
    """

    messages: list[Message]
    _filled = 0  # bytes that could be taken in this turn
    _unread = b""
    _at = 0

    def begin_turn(self) -> None:
        """See `sated`."""
        self._filled = len(self._unread) - self._at

    @property
    def sated(self) -> bool:
        """Whether it has read enough for a turn of the loop: what may be held is seen between turns."""
        return len(self.messages) >= TURN or self._filled >= _READ

    @property
    def unread(self) -> bool:
        """Whether more can be read though the socket has nothing to tell."""
        return self._at < len(self._unread) or (isinstance(self._sock, ssl.SSLSocket) and self._sock.pending() > 0)

    def forget_unread(self) -> None:
        self._unread, self._at, self.messages = b"", 0, []

    def _sock_recv(self, bufsize: int) -> bytes:
        if self._at >= len(self._unread):
            self._fill()
        piece = self._unread[self._at : self._at + bufsize]
        self._at += len(piece)
        return piece

    def _fill(self) -> None:
        self._unread, self._at = b"", 0
        self._unread = super()._sock_recv(_READ)
        self._filled += len(self._unread)

    def _packet_read(self) -> MQTTErrorCode:
        if self._in_packet["command"] == 0:  # not in the middle of one
            if self._at >= len(self._unread):
                try:
                    self._fill()
                except BlockingIOError:
                    return MQTTErrorCode.MQTT_ERR_AGAIN
                except OSError:
                    pass  # paho meets it again, and says so
            if len(self.messages) >= TURN:
                return MQTTErrorCode.MQTT_ERR_AGAIN  # paho would go on, as long as there are messages to be sent
            before = self._at
            self._take_usual()
            if self._at > before:
                return MQTTErrorCode.MQTT_ERR_SUCCESS
        return super()._packet_read()

    def _take_usual(self) -> None:
        """Read the messages that lie whole before us, up to one that is not usual.

        What paho does with any message takes it 70 µs on MQTT 5. Usual ones have QoS 0 or 1, less than 16 KB, and no properties
        but a subscription identifier below 128.
        """
        data, at, messages = self._unread, self._at, self.messages
        end, v5 = len(data), self._protocol == MQTTProtocolVersion.MQTTv5
        try:
            while at < end and len(messages) < TURN:
                header, length, topic_at = data[at], data[at + 1], at + 4
                if header & 0xF4 != _PUBLISH:
                    break
                if length > 127:
                    if data[at + 2] > 127:
                        break
                    length, topic_at = length - 128 | data[at + 2] << 7, at + 5
                after = topic_at - 2 + length
                place = topic_at + (data[topic_at - 2] << 8 | data[topic_at - 1])
                if after > end or place == topic_at:
                    break
                topic = data[topic_at:place].decode()
                mid, identifiers = 0, None
                if header & 2:
                    mid = data[place] << 8 | data[place + 1]
                    place += 2
                if v5:
                    if data[place] == 0:
                        place += 1
                    elif data[place] == 2 and data[place + 1] == 0x0B and 0 < data[place + 2] < 128:
                        identifiers = [data[place + 2]]
                        place += 3
                    else:
                        break
                if place > after:
                    break
                messages.append((topic, data[place:after], header & 3, mid, identifiers))
                at = after
        except (IndexError, UnicodeDecodeError):
            pass  # the rest has not come yet, or is wrong: paho will see
        self._at = at

    def acknowledge(self, mids: list[int]) -> None:
        """PUBACK all of them in one piece; `ack` would make it a system call each."""
        packets = struct.pack(f">{len(mids)}I", *[0x4002_0000 | mid for mid in mids])
        self._packet_queue(_PUBACK, packets, 0, 0)
