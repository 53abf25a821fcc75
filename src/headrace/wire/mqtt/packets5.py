"""The packets of MQTT 5.0, and of 3.1.1 and 3.1 where a broker treats both alike: bodies to values, values to bytes.

`version` is the protocol level of the connection, 3, 4 or 5. Frames are cut by codec.FrameParser, which serves both; a PUBLISH
of version 5 carries its properties at the head of what the parser calls its payload.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from headrace.wire.mqtt import codec, properties5
from headrace.wire.mqtt.codec import encode_length
from headrace.wire.mqtt.properties5 import Packet, Properties, read_binary
from headrace.wire.mqtt.reasons import (
    CLIENT_ID_INVALID,
    PROTOCOL_ERROR,
    UNSUPPORTED_VERSION,
    PacketRefused,
    malformed,
    protocol_error,
)
from headrace.wire.mqtt.topics import check_name, check_text, parse_filter

V31, V3, V5 = 3, 4, 5
PUBACK, PUBREC, PUBREL, PUBCOMP, AUTH = 0x40, 0x50, 0x60, 0x70, 0xF0

ACK_REASONS = {
    PUBACK: frozenset({0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99}),
    PUBREC: frozenset({0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99}),
    PUBREL: frozenset({0x00, 0x92}),
    PUBCOMP: frozenset({0x00, 0x92}),
}
DISCONNECT_REASONS = frozenset(
    {0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99}
)  # that a client may give
_ACK_FIRST = {PUBACK: 0x40, PUBREC: 0x50, PUBREL: 0x62, PUBCOMP: 0x70}


class Will(NamedTuple):
    topic: bytes
    payload: bytes
    qos: int
    retain: bool
    properties: Properties


class Connect(NamedTuple):
    """A CONNECT. Absent user name and password are None."""

    version: int
    client_id: str
    clean_start: bool
    keep_alive_s: int
    username: str | None
    password: bytes | None
    will: Will | None
    properties: Properties


class Wanted(NamedTuple):
    """One subscription asked for; the last three are of version 5."""

    filter: bytes
    qos: int
    no_local: bool = False
    as_published: bool = False
    handling: int = 0  # retained messages: 0 send, 1 only for a new subscription, 2 do not send


class Subscribe(NamedTuple):
    packet_id: int
    wanted: tuple[Wanted, ...]
    identifier: int  # 0 for none
    properties: Properties


class Unsubscribe(NamedTuple):
    packet_id: int
    filters: tuple[bytes, ...]


class Ack(NamedTuple):
    kind: int  # PUBACK, PUBREC, PUBREL or PUBCOMP
    packet_id: int
    reason: int


class Disconnect(NamedTuple):
    reason: int
    properties: Properties


class Published5(NamedTuple):
    """What stands behind topic and packet id of a version 5 PUBLISH. `passed_on` are encoded properties for receivers."""

    properties: Properties
    passed_on: bytes
    payload: bytes


NO_PROPERTIES: Properties = {}


class _Reader:
    """Reads the fields of a body in order. Raises PacketRefused."""

    def __init__(self, packet: Packet, data: bytes) -> None:
        self.packet, self.data, self.at = packet, data, 0

    def take(self, count: int) -> bytes:
        piece = self.data[self.at : self.at + count]
        if len(piece) < count:
            raise malformed(f"{self.packet}: ends {count - len(piece)} bytes early")
        self.at += count
        return piece

    def byte(self) -> int:
        return self.take(1)[0]

    def short(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def packet_id(self) -> int:
        found = self.short()
        if not found:
            refuse = protocol_error if self.packet == "ACK" else malformed
            raise refuse(f"{self.packet}: packet id 0")
        return found

    def binary(self) -> bytes:
        field, self.at = read_binary(self.data, self.at, self.packet)
        return field

    def text(self) -> str:
        return check_text(self.binary(), self.packet)

    def properties(self, version: int, packet: Packet | None = None) -> Properties:
        if version < V5:
            return NO_PROPERTIES
        found, self.at = properties5.decode(self.data, self.at, packet or self.packet)
        return found

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def end(self) -> None:
        if self.left:
            raise malformed(f"{self.packet}: {self.left} bytes too many")


def parse_connect(first: int, data: bytes) -> Connect:
    """A CONNECT of any version. Raises PacketRefused with `version` set where it could be read."""
    body = _Reader("CONNECT", data)
    name = body.binary()
    level = body.byte()
    if name not in (b"MQTT", b"MQIsdp"):
        raise PacketRefused(UNSUPPORTED_VERSION, "CONNECT: unknown protocol name")
    if level not in ((V3, V5) if name == b"MQTT" else (V31,)):
        raise PacketRefused(UNSUPPORTED_VERSION, f"protocol level {level}", hint="use MQTT 3.1.1 or 5.0", version=V5)
    if first != codec.CONNECT and level != V31:  # 3.1 gave these bits no meaning, and no value
        raise malformed("CONNECT: reserved flags are set")
    try:
        return _rest_of_connect(body, level)
    except PacketRefused as exc:
        exc.version = level
        raise


def _rest_of_connect(body: _Reader, version: int) -> Connect:
    flags = body.byte()
    has_will, will_qos, will_retain = bool(flags & 0x04), flags >> 3 & 3, bool(flags & 0x20)
    if (flags & 0x01 and version != V31) or will_qos == 3 or (not has_will and (will_qos or will_retain)):
        raise malformed(f"CONNECT: flags 0x{flags:02x} contradict each other")
    if version < V5 and flags & 0xC0 == 0x40:
        raise malformed("CONNECT: a password without a user name")
    keep_alive_s = body.short()
    properties = body.properties(version)
    if properties5.AUTH_DATA in properties and properties5.AUTH_METHOD not in properties:
        raise protocol_error("CONNECT: authentication data without a method")
    client_id = _client_id(body)
    will = _will(body, version, will_qos, will_retain) if has_will else None
    try:
        username = body.text() if flags & 0x80 else None
        password = body.binary() if flags & 0x40 else None
    except PacketRefused as exc:
        exc.quiet = True  # whoever guesses at names and passwords learns nothing
        raise
    body.end()
    return Connect(version, client_id, bool(flags & 0x02), keep_alive_s, username, password, will, properties)


def _client_id(body: _Reader) -> str:
    raw = body.binary()
    try:
        return check_text(raw, body.packet)
    except PacketRefused as exc:
        exc.reason = CLIENT_ID_INVALID
        raise


def _will(body: _Reader, version: int, qos: int, retain: bool) -> Will:
    properties = body.properties(version, "WILL")
    topic = body.binary()
    check_name(topic, "WILL")
    return Will(topic, body.binary(), qos, retain, properties)


def parse_publish5(rest: bytes) -> Published5:
    """Properties and payload of a PUBLISH sent to a server. Raises PacketRefused."""
    if rest[:1] == b"\0":
        return Published5(NO_PROPERTIES, b"", rest[1:])
    found, at = properties5.decode(rest, 0, "PUBLISH")
    if properties5.SUBSCRIPTION_IDENTIFIER in found:
        raise protocol_error("PUBLISH: a subscription identifier from a client")
    return Published5(found, passed_on(found), rest[at:])


def passed_on(properties: Properties) -> bytes:
    """The properties of a PUBLISH or a will that its receivers get too, without a length in front."""
    return properties5.encode_bare(
        (identifier, value) for identifier, value in properties.items() if identifier not in properties5.HOP_BY_HOP
    )


def parse_subscribe(first: int, data: bytes, version: int) -> Subscribe:
    """Raises PacketRefused."""
    body = _Reader("SUBSCRIBE", data)
    if first != codec.SUBSCRIBE | 2:
        raise malformed("SUBSCRIBE: wrong flags")
    packet_id = body.packet_id()
    properties = body.properties(version)
    wanted: list[Wanted] = []
    while body.left:
        topic_filter = body.binary()
        shared = bool(parse_filter(topic_filter).group)
        wanted.append(_wanted(topic_filter, body.byte(), version, shared))
    if not wanted:
        raise malformed("SUBSCRIBE: no filter")
    identifier = properties.get(properties5.SUBSCRIPTION_IDENTIFIER, [0])[0]
    return Subscribe(packet_id, tuple(wanted), identifier, properties)


def _wanted(topic_filter: bytes, options: int, version: int, shared: bool) -> Wanted:
    qos = options & 3
    if version < V5:
        if options > 2:
            raise malformed(f"SUBSCRIBE: options 0x{options:02x}")
        return Wanted(topic_filter, qos)
    handling, no_local = options >> 4 & 3, bool(options & 0x04)
    if options & 0xC0 or qos == 3 or handling == 3:
        raise malformed(f"SUBSCRIBE: options 0x{options:02x}")
    if shared and no_local:
        raise protocol_error("SUBSCRIBE: no local on a shared subscription")
    return Wanted(topic_filter, qos, no_local, bool(options & 0x08), handling)


def parse_unsubscribe(first: int, data: bytes, version: int) -> Unsubscribe:
    """Raises PacketRefused."""
    body = _Reader("UNSUBSCRIBE", data)
    if first != codec.UNSUBSCRIBE | 2:
        raise malformed("UNSUBSCRIBE: wrong flags")
    packet_id = body.packet_id()
    body.properties(version)
    filters: list[bytes] = []
    while body.left:
        topic_filter = body.binary()
        parse_filter(topic_filter, "UNSUBSCRIBE")
        filters.append(topic_filter)
    if not filters:
        raise malformed("UNSUBSCRIBE: no filter")
    return Unsubscribe(packet_id, tuple(filters))


def parse_ack(first: int, data: bytes, version: int) -> Ack:
    """A PUBACK, PUBREC, PUBREL or PUBCOMP. Raises PacketRefused."""
    kind = first & 0xF0
    if first != _ACK_FIRST[kind]:
        raise malformed(f"packet 0x{first:02x}: wrong flags")
    body = _Reader("ACK", data)
    packet_id = body.packet_id()
    if version < V5:
        body.end()
        return Ack(kind, packet_id, 0)
    reason = body.byte() if body.left else 0
    if body.left:
        body.properties(version)
    body.end()
    if reason not in ACK_REASONS[kind]:
        raise protocol_error(f"packet 0x{first:02x}: reason 0x{reason:02x}")
    return Ack(kind, packet_id, reason)


def parse_disconnect(first: int, data: bytes, version: int) -> Disconnect:
    """A client's DISCONNECT. Raises PacketRefused."""
    if first != codec.DISCONNECT or (data and version < V5):
        raise malformed("DISCONNECT: wrong flags or length")
    body = _Reader("DISCONNECT", data)
    reason = body.byte() if body.left else 0
    properties = body.properties(version) if body.left else NO_PROPERTIES
    body.end()
    if reason not in DISCONNECT_REASONS:
        raise _goodbye(f"reason 0x{reason:02x}")
    if properties5.SERVER_REFERENCE in properties:
        raise _goodbye("a server reference from a client")
    return Disconnect(reason, properties)


def _goodbye(what: str) -> PacketRefused:
    """A client that leaves, and says it wrongly: it is gone, so nobody reads an answer."""
    return PacketRefused(PROTOCOL_ERROR, f"DISCONNECT: {what}", quiet=True)


def encode_connack(
    version: int, reason: int, *, session_present: bool = False, properties: Mapping[int, Any] = NO_PROPERTIES
) -> bytes:
    """`reason` is a return code of 3.1.1 there; 3.1 cannot tell of a session."""
    body = bytes((session_present and reason == 0 and version != V31, reason))
    if version >= V5:
        body += properties5.encode(properties)
    return b"\x20" + encode_length(len(body)) + body


def encode_ack(version: int, kind: int, packet_id: bytes, reason: int = 0, said: str = "") -> bytes:
    """An acknowledgement for a packet id of two bytes; reason and reason string only in version 5."""
    first = _ACK_FIRST[kind]
    if version < V5 or not reason:
        return bytes((first, 2)) + packet_id
    body = packet_id + bytes((reason,))
    if said:
        body += properties5.encode({properties5.REASON_STRING: said})
    return bytes((first,)) + encode_length(len(body)) + body


def encode_suback(version: int, packet_id: int, reasons: Sequence[int], *, first: int = codec.SUBACK) -> bytes:
    """A SUBACK, or with `first` an UNSUBACK; an UNSUBACK of 3.1.1 has no reasons."""
    body = packet_id.to_bytes(2, "big")
    if version >= V5:
        body += b"\0" + bytes(reasons)
    elif first == codec.SUBACK:
        body += bytes(min(reason, codec.FILTER_REFUSED) for reason in reasons)
    return bytes((first,)) + encode_length(len(body)) + body


def encode_disconnect(reason: int, said: str = "", properties: Mapping[int, Any] = NO_PROPERTIES) -> bytes:
    """A server's DISCONNECT: version 5 only, since 3.1.1 has none."""
    told = {**({properties5.REASON_STRING: said} if said else {}), **properties}
    body = bytes((reason,)) + (properties5.encode(told) if told else b"")
    return b"\xe0" + encode_length(len(body)) + body
