"""MQTT 3.1.1 packets to and from bytes (OASIS standard of 29 October 2014).

`FrameParser` cuts a stream into frames and takes PUBLISH apart on the way, because that loop is the gateway's hottest:
no Python call is made per message. It holds one unfinished frame at most, so its memory is bounded by the packet limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

from headrace.core.errors import DataError

CONNECT, CONNACK, PUBLISH, PUBACK = 0x10, 0x20, 0x30, 0x40
SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK = 0x80, 0x90, 0xA0, 0xB0
PINGREQ, PINGRESP, DISCONNECT = 0xC0, 0xD0, 0xE0
LEVEL_3_1_1 = 4
PING_REQUEST, PING_RESPONSE, GOODBYE = b"\xc0\x00", b"\xd0\x00", b"\xe0\x00"
FILTER_REFUSED = 0x80
LENGTH_MAX = 268_435_455
EXCERPT_BYTES = 65_536
"""How much of a packet above the limit is gathered before it is reported."""

Frame: TypeAlias = tuple[int, bytes, bytes, bytes]
"""A PUBLISH as (first byte, topic, packet id or b"", payload); any other packet as (first byte, body, b"", b"")."""


class MalformedPacket(DataError):
    """Bytes that are not MQTT 3.1.1. The connection they came on must be closed."""

    code = "mqtt.malformed"


class BadLength(MalformedPacket):
    """A remaining length of more than four bytes. `first` is the packet's first byte."""

    def __init__(self, first: int) -> None:
        super().__init__("a remaining length of more than four bytes")
        self.first = first


class ZeroPacketId(MalformedPacket):
    """A PUBLISH with packet id 0: well formed, and not allowed."""


class UnsupportedVersion(DataError):
    """A CONNECT of another protocol version: answered with CONNACK 1."""

    code = "mqtt.version"


class PacketTooLarge(DataError):
    """A packet above the limit. `excerpt` is its start, headers included, up to EXCERPT_BYTES."""

    code = "mqtt.too_large"

    def __init__(self, size_bytes: int, limit_bytes: int, first: int, excerpt: bytes) -> None:
        super().__init__(
            f"a packet of {size_bytes:,} bytes is above the limit of {limit_bytes:,}", hint="send smaller messages"
        )
        self.first = first
        self.excerpt = excerpt


class Will(NamedTuple):
    topic: bytes
    payload: bytes
    qos: int
    retain: bool


class Connect(NamedTuple):
    """A CONNECT. `password` is None when the flag was absent."""

    client_id: str
    username: str | None
    password: bytes | None
    clean_session: bool
    keep_alive_s: int
    will: Will | None


class Subscribe(NamedTuple):
    packet_id: int
    filters: tuple[tuple[str, int], ...]  # filter, wanted QoS


class Unsubscribe(NamedTuple):
    packet_id: int
    filters: tuple[str, ...]


class FrameParser:
    """Cuts bytes, arriving in any pieces, into frames. After an error the parser must not be used again."""

    def __init__(self, packet_bytes_max: int, *, strict: bool = False) -> None:
        self._limit = packet_bytes_max
        self._strict = strict  # refuse a length of more bytes than it needs, as MQTT 5 demands
        self.rest = bytearray()  # of a frame that has not come as a whole yet
        self._needed = 0  # bytes that `rest` must reach before another look is worth it

    def feed(self, data: bytes, frames: list[Frame]) -> bool:
        """Append the frames that `data` completes to `frames`; whether all of them were PUBLISH of QoS 0 or 1.

        Raises MalformedPacket and PacketTooLarge; frames before the bad one have been appended by then.
        """
        if self.rest:
            self.rest += data
            if len(self.rest) < self._needed:
                return True
            data = bytes(self.rest)
            self.rest.clear()
        return self._split(data, frames)

    def _split(self, data: bytes, frames: list[Frame]) -> bool:
        position, end = 0, len(data)
        only_publish, limit = True, self._limit
        while end - position >= 2:
            first = data[position]
            length = data[position + 1]
            start = position + 2
            if length >= 0x80:
                if start < end and data[start] < 0x80:  # two bytes of length: nearly every telemetry message
                    length += (data[start] << 7) - 0x80
                    start += 1
                else:
                    length, start = _long_length(data, position, end)
                    if start < 0:
                        break
                if self._strict and not data[start - 1]:
                    raise MalformedPacket("a remaining length of more bytes than it needs")
            stop = start + length
            if length > limit:
                self._too_large(data, position, first, length)
                return self._keep(data, position, position + EXCERPT_BYTES, only_publish)
            if stop > end:
                return self._keep(data, position, stop, only_publish)
            if first & 0xF6 == 0x32 and length >= 2:  # QoS 1
                topic_at = start + 2
                topic_end = topic_at + (data[start] << 8 | data[start + 1])
                body_at = topic_end + 2
                packet_id = data[topic_end:body_at]
                if body_at > stop or packet_id == b"\0\0":
                    raise _bad_publish(body_at > stop)
                frames.append((first, data[topic_at:topic_end], packet_id, data[body_at:stop]))
            elif first & 0xF0 == PUBLISH:
                frames.append(_rare_publish(first, data[start:stop]))
                only_publish = only_publish and not first & 0x04
            else:
                frames.append((first, data[start:stop], b"", b""))
                only_publish = False
            position = stop
        return self._keep(data, position, position + 2, only_publish)

    def _keep(self, data: bytes, position: int, needed: int, only_publish: bool) -> bool:
        if position < len(data):
            self.rest += data[position:]
        self._needed = needed - position
        return only_publish

    def _too_large(self, data: bytes, position: int, first: int, length: int) -> None:
        """Raise once enough of a packet that is too large has come to show it."""
        excerpt = data[position : position + EXCERPT_BYTES]
        if first & 0xF0 != PUBLISH or len(excerpt) >= min(EXCERPT_BYTES, length):
            raise PacketTooLarge(length, self._limit, first, excerpt)


def _bad_publish(short: bool) -> MalformedPacket:
    if short:
        return MalformedPacket("a PUBLISH ends inside its topic or packet id")
    return ZeroPacketId("PUBLISH: packet id 0")


def _rare_publish(first: int, data: bytes) -> Frame:
    """A PUBLISH body of another QoS than 1. Raises MalformedPacket."""
    body = _Body("PUBLISH", data)
    if first & 0x06 == 0x06 or (not first & 0x06 and first & 0x08):
        raise body.fail("QoS 3, or DUP on QoS 0")
    topic = body.binary()
    packet_id = body.take(2) if first & 0x06 else b""
    if packet_id == b"\0\0":
        raise _bad_publish(False)
    return first, topic, packet_id, body.take(body.left)


def _long_length(data: bytes, position: int, end: int) -> tuple[int, int]:
    """A remaining length of two to four bytes and where the body starts; (0, -1) when it is not all there yet."""
    value, shift = 0, 0
    for index in range(position + 1, min(position + 5, end)):
        byte = data[index]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, index + 1
        shift += 7
    if end - position > 4:
        raise BadLength(data[position])
    return 0, -1


class _Body:
    """Reads the fields of a packet body in order."""

    def __init__(self, packet: str, data: bytes) -> None:
        self._packet, self._data, self._at = packet, data, 0

    def fail(self, what: str) -> MalformedPacket:
        return MalformedPacket(f"{self._packet}: {what}")

    def take(self, count: int) -> bytes:
        piece = self._data[self._at : self._at + count]
        if len(piece) < count:
            raise self.fail(f"ends {count - len(piece)} bytes early")
        self._at += count
        return piece

    def byte(self) -> int:
        return self.take(1)[0]

    def short(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def binary(self) -> bytes:
        return self.take(self.short())

    def text(self) -> str:
        return text_of(self.binary(), self._packet)

    def packet_id(self) -> int:
        return self.short() or self._zero_id()

    def _zero_id(self) -> int:
        raise self.fail("packet id 0")

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def close(self) -> None:
        if self.left:
            raise self.fail(f"{self.left} bytes too many")


def text_of(data: bytes, packet: str) -> str:
    """UTF-8 text as MQTT allows it (no U+0000). Raises MalformedPacket."""
    try:
        text = data.decode()
    except UnicodeDecodeError as exc:
        raise MalformedPacket(f"{packet}: text is not UTF-8 at byte {exc.start}") from exc
    if "\0" in text:
        raise MalformedPacket(f"{packet}: text holds U+0000")
    return text


def check_topic(topic: bytes) -> None:
    """Raises MalformedPacket unless `topic` (or a part of one) may stand in a PUBLISH: UTF-8, no wildcard, no U+0000."""
    if b"+" in topic or b"#" in topic or b"\0" in topic:
        raise MalformedPacket("PUBLISH: a topic that holds +, # or U+0000")
    if not topic.isascii():
        text_of(topic, "PUBLISH")


def parse_connect(first: int, data: bytes) -> Connect:
    """A CONNECT body. Raises MalformedPacket, UnsupportedVersion."""
    body = _Body("CONNECT", data)
    if first != CONNECT:
        raise body.fail("reserved flags are set")
    protocol, level = body.binary(), body.byte()
    if protocol not in (b"MQTT", b"MQIsdp"):
        raise body.fail("unknown protocol name")
    if protocol != b"MQTT" or level != LEVEL_3_1_1:
        raise UnsupportedVersion(f"MQTT protocol level {level}", hint="connect with MQTT 3.1.1 (level 4)")
    flags = body.byte()
    will_flag, will_qos, will_retain = bool(flags & 0x04), flags >> 3 & 3, bool(flags & 0x20)
    if flags & 0x01 or will_qos == 3 or (not will_flag and (will_qos or will_retain)) or flags & 0xC0 == 0x40:
        raise body.fail(f"flags 0x{flags:02x} contradict each other")
    keep_alive_s = body.short()
    client_id = body.text()
    will = Will(body.binary(), body.binary(), will_qos, will_retain) if will_flag else None
    if will:
        text_of(will.topic, "CONNECT")
    username = body.text() if flags & 0x80 else None
    password = body.binary() if flags & 0x40 else None
    body.close()
    return Connect(client_id, username, password, bool(flags & 0x02), keep_alive_s, will)


def parse_subscribe(first: int, data: bytes) -> Subscribe:
    """A SUBSCRIBE body. Raises MalformedPacket."""
    body = _Body("SUBSCRIBE", data)
    if first != SUBSCRIBE | 2:
        raise body.fail("wrong flags")
    packet_id = body.packet_id()
    filters: list[tuple[str, int]] = []
    while body.left:
        wanted, qos = body.text(), body.byte()
        if qos > 2 or not wanted:
            raise body.fail(f"QoS {qos} or an empty filter")
        filters.append((wanted, qos))
    if not filters:
        raise body.fail("no filter")
    return Subscribe(packet_id, tuple(filters))


def parse_unsubscribe(first: int, data: bytes) -> Unsubscribe:
    """An UNSUBSCRIBE body. Raises MalformedPacket."""
    body = _Body("UNSUBSCRIBE", data)
    if first != UNSUBSCRIBE | 2:
        raise body.fail("wrong flags")
    packet_id = body.packet_id()
    filters: list[str] = []
    while body.left:
        filters.append(body.text())
    if not filters:
        raise body.fail("no filter")
    return Unsubscribe(packet_id, tuple(filters))


def parse_connack(data: bytes) -> tuple[bool, int]:
    """(session present, return code). Raises MalformedPacket."""
    if len(data) != 2 or data[0] > 1:
        raise MalformedPacket(f"a CONNACK of {len(data)} bytes")
    return data[0] == 1, data[1]


def encode_length(length: int) -> bytes:
    """MQTT's variable-length integer."""
    if length < 0x80:
        return bytes((length,))
    if length < 0x4000:
        return bytes((length & 0x7F | 0x80, length >> 7))
    digits = bytearray()
    while True:
        length, low = length >> 7, length & 0x7F
        digits.append(low | 0x80 if length else low)
        if not length:
            return bytes(digits)


def _field(data: bytes) -> bytes:
    if len(data) > 0xFFFF:
        raise DataError(f"a text of {len(data):,} bytes does not fit into an MQTT field", hint="65,535 bytes at most")
    return len(data).to_bytes(2, "big") + data


def encode_connect(connect: Connect) -> bytes:
    flags = (connect.clean_session << 1) | (connect.username is not None) << 7 | (connect.password is not None) << 6
    body = connect.keep_alive_s.to_bytes(2, "big") + _field(connect.client_id.encode())
    if connect.will:
        flags |= 0x04 | connect.will.qos << 3 | connect.will.retain << 5
        body += _field(connect.will.topic) + _field(connect.will.payload)
    body += _field(connect.username.encode()) if connect.username is not None else b""
    body += _field(connect.password) if connect.password is not None else b""
    body = b"\x00\x04MQTT" + bytes((LEVEL_3_1_1, flags)) + body
    return b"\x10" + encode_length(len(body)) + body


def encode_connack(code: int, *, session_present: bool = False) -> bytes:
    return bytes((CONNACK, 2, session_present and code == 0, code))


def encode_publish(
    topic: bytes, payload: bytes, *, packet_id: int = 0, retain: bool = False, duplicate: bool = False
) -> bytes:
    """A PUBLISH of QoS 1 when `packet_id` is given, else of QoS 0. `duplicate` says that it was sent before."""
    number = packet_id.to_bytes(2, "big") if packet_id else b""
    first = PUBLISH | (2 if packet_id else 0) | retain | (8 if duplicate else 0)
    return (
        b"".join((bytes((first,)), encode_length(len(topic) + len(number) + len(payload) + 2), _field(topic)))
        + number
        + payload
    )


def encode_pubacks(packet_ids: Iterable[bytes]) -> bytes:
    """PUBACKs for packet ids of two bytes each, as they stood in the PUBLISHes."""
    return b"\x40\x02".join((b"", *packet_ids))


def encode_subscribe(packet_id: int, filters: Sequence[tuple[str, int]]) -> bytes:
    body = packet_id.to_bytes(2, "big") + b"".join(_field(name.encode()) + bytes((qos,)) for name, qos in filters)
    return b"\x82" + encode_length(len(body)) + body


def encode_suback(packet_id: int, granted: Sequence[int]) -> bytes:
    return b"\x90" + encode_length(2 + len(granted)) + packet_id.to_bytes(2, "big") + bytes(granted)


def encode_unsubscribe(packet_id: int, filters: Sequence[str]) -> bytes:
    body = packet_id.to_bytes(2, "big") + b"".join(_field(name.encode()) for name in filters)
    return b"\xa2" + encode_length(len(body)) + body


def encode_unsuback(packet_id: int) -> bytes:
    return b"\xb0\x02" + packet_id.to_bytes(2, "big")
