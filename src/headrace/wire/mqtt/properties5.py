"""Properties of MQTT 5.0 (section 2.2.2): which packet may carry which, of what type, how often.

Decoding checks all of that, so what comes out needs no second look. Text stays text, binary data and topics stay bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

from headrace.wire.mqtt.codec import encode_length
from headrace.wire.mqtt.reasons import (
    TOPIC_ALIAS_INVALID,
    PacketRefused,
    malformed,
    protocol_error,
)
from headrace.wire.mqtt.topics import check_name, check_text

Packet: TypeAlias = Literal[
    "CONNECT",
    "WILL",
    "CONNACK",
    "PUBLISH",
    "ACK",
    "SUBSCRIBE",
    "SUBACK",
    "UNSUBSCRIBE",
    "UNSUBACK",
    "DISCONNECT",
    "AUTH",
]
"""Where properties stand. ACK is any of PUBACK, PUBREC, PUBREL and PUBCOMP, which take the same."""

Properties: TypeAlias = dict[int, Any]
"""By identifier: int, str (UTF-8 strings), bytes (binary data and topics); USER_PROPERTY a list of pairs of str,
SUBSCRIPTION_IDENTIFIER a list of int."""

PAYLOAD_FORMAT, MESSAGE_EXPIRY, CONTENT_TYPE, RESPONSE_TOPIC, CORRELATION_DATA = 0x01, 0x02, 0x03, 0x08, 0x09
SUBSCRIPTION_IDENTIFIER, SESSION_EXPIRY, ASSIGNED_CLIENT_ID, SERVER_KEEP_ALIVE = 0x0B, 0x11, 0x12, 0x13
AUTH_METHOD, AUTH_DATA, REQUEST_PROBLEM, WILL_DELAY, REQUEST_RESPONSE = 0x15, 0x16, 0x17, 0x18, 0x19
RESPONSE_INFORMATION, SERVER_REFERENCE, REASON_STRING, RECEIVE_MAXIMUM = 0x1A, 0x1C, 0x1F, 0x21
TOPIC_ALIAS_MAXIMUM, TOPIC_ALIAS, MAXIMUM_QOS, RETAIN_AVAILABLE, USER_PROPERTY = 0x22, 0x23, 0x24, 0x25, 0x26
MAXIMUM_PACKET_SIZE, WILDCARD_AVAILABLE, IDENTIFIERS_AVAILABLE, SHARED_AVAILABLE = 0x27, 0x28, 0x29, 0x2A

_Kind: TypeAlias = Literal["byte", "flag", "two", "four", "varint", "text", "binary", "pair", "topic"]


class _Rule(NamedTuple):
    kind: _Kind
    packets: frozenset[str]


def _rule(kind: _Kind, *packets: Packet) -> _Rule:
    return _Rule(kind, frozenset(packets))


_EVERYWHERE: tuple[Packet, ...] = (
    "CONNECT", "WILL", "CONNACK", "PUBLISH", "ACK", "SUBSCRIBE", "SUBACK", "UNSUBSCRIBE", "UNSUBACK", "DISCONNECT", "AUTH",
)  # fmt: skip
RULES: Mapping[int, _Rule] = {
    PAYLOAD_FORMAT: _rule("flag", "PUBLISH", "WILL"),
    MESSAGE_EXPIRY: _rule("four", "PUBLISH", "WILL"),
    CONTENT_TYPE: _rule("text", "PUBLISH", "WILL"),
    RESPONSE_TOPIC: _rule("topic", "PUBLISH", "WILL"),
    CORRELATION_DATA: _rule("binary", "PUBLISH", "WILL"),
    SUBSCRIPTION_IDENTIFIER: _rule("varint", "PUBLISH", "SUBSCRIBE"),
    SESSION_EXPIRY: _rule("four", "CONNECT", "CONNACK", "DISCONNECT"),
    ASSIGNED_CLIENT_ID: _rule("text", "CONNACK"),
    SERVER_KEEP_ALIVE: _rule("two", "CONNACK"),
    AUTH_METHOD: _rule("text", "CONNECT", "CONNACK", "AUTH"),
    AUTH_DATA: _rule("binary", "CONNECT", "CONNACK", "AUTH"),
    REQUEST_PROBLEM: _rule("flag", "CONNECT"),
    WILL_DELAY: _rule("four", "WILL"),
    REQUEST_RESPONSE: _rule("flag", "CONNECT"),
    RESPONSE_INFORMATION: _rule("text", "CONNACK"),
    SERVER_REFERENCE: _rule("text", "CONNACK", "DISCONNECT"),
    REASON_STRING: _rule("text", "CONNACK", "ACK", "SUBACK", "UNSUBACK", "DISCONNECT", "AUTH"),
    RECEIVE_MAXIMUM: _rule("two", "CONNECT", "CONNACK"),
    TOPIC_ALIAS_MAXIMUM: _rule("two", "CONNECT", "CONNACK"),
    TOPIC_ALIAS: _rule("two", "PUBLISH"),
    MAXIMUM_QOS: _rule("flag", "CONNACK"),
    RETAIN_AVAILABLE: _rule("flag", "CONNACK"),
    USER_PROPERTY: _rule("pair", *_EVERYWHERE),
    MAXIMUM_PACKET_SIZE: _rule("four", "CONNECT", "CONNACK"),
    WILDCARD_AVAILABLE: _rule("flag", "CONNACK"),
    IDENTIFIERS_AVAILABLE: _rule("flag", "CONNACK"),
    SHARED_AVAILABLE: _rule("flag", "CONNACK"),
}
NOT_ZERO = frozenset({RECEIVE_MAXIMUM, MAXIMUM_PACKET_SIZE, SUBSCRIPTION_IDENTIFIER})
HOP_BY_HOP = frozenset({TOPIC_ALIAS, MESSAGE_EXPIRY, SUBSCRIPTION_IDENTIFIER, WILL_DELAY})
"""Properties of a PUBLISH or a will that are made anew for each receiver; all others are passed on as they came."""


def read_varint(data: bytes, at: int, where: str) -> tuple[int, int]:
    """A variable byte integer and the place behind it. Raises PacketRefused, also for one longer than it need be."""
    value = shift = 0
    for index in range(at, min(at + 4, len(data))):
        byte = data[index]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if not byte and index > at:
                raise malformed(f"{where}: a length of more bytes than it needs")
            return value, index + 1
        shift += 7
    raise malformed(f"{where}: a variable byte integer that does not end")


def read_binary(data: bytes, at: int, where: str) -> tuple[bytes, int]:
    """A field of two bytes of length and that many bytes. Raises PacketRefused."""
    stop = at + 2 + int.from_bytes(data[at : at + 2], "big")
    if stop > len(data) or at + 2 > len(data):
        raise malformed(f"{where}: ends inside a field")
    return data[at + 2 : stop], stop


def decode(data: bytes, at: int, packet: Packet) -> tuple[Properties, int]:
    """The property list at `at` and the place behind it. Raises PacketRefused."""
    length, at = read_varint(data, at, packet)
    stop = at + length
    if stop > len(data):
        raise malformed(f"{packet}: properties end {stop - len(data)} bytes early")
    data = data[:stop]
    found: Properties = {}
    while at < stop:
        identifier, at = read_varint(data, at, packet)
        rule = RULES.get(identifier)
        if rule is None:
            raise malformed(f"{packet}: property 0x{identifier:02x} does not exist")
        value, at = _read(rule.kind, data, at, packet, identifier)
        if packet not in rule.packets:
            raise _misplaced(packet, identifier)
        if rule.kind == "topic":
            _check_response_topic(value, packet)
        _keep(found, identifier, value, packet)
    return found, stop


def _misplaced(packet: Packet, identifier: int) -> PacketRefused:
    """Well formed, and not allowed in this packet. The specification has two words for it (sections 2.2.2.2 and 4.13.1 name
    malformed and either); these are the ones that clients have seen most brokers use."""
    refuse = malformed if packet in ("SUBSCRIBE", "UNSUBSCRIBE") else protocol_error
    return refuse(f"{packet}: property 0x{identifier:02x} does not belong here")


def _keep(found: Properties, identifier: int, value: Any, packet: Packet) -> None:
    if identifier == SUBSCRIPTION_IDENTIFIER and value == 0 and packet == "SUBSCRIBE":
        raise malformed("SUBSCRIBE: subscription identifier 0")
    if identifier in NOT_ZERO and value == 0:
        raise protocol_error(f"{packet}: property 0x{identifier:02x} is 0")
    if identifier == TOPIC_ALIAS and value == 0:
        raise PacketRefused(TOPIC_ALIAS_INVALID, "PUBLISH: topic alias 0")
    if identifier == USER_PROPERTY or (identifier == SUBSCRIPTION_IDENTIFIER and packet == "PUBLISH"):
        found.setdefault(identifier, []).append(value)
    elif identifier in found:
        raise protocol_error(f"{packet}: property 0x{identifier:02x} twice")
    else:
        found[identifier] = [value] if identifier == SUBSCRIPTION_IDENTIFIER else value


_SIZES = {"byte": 1, "flag": 1, "two": 2, "four": 4}


def _read(kind: _Kind, data: bytes, at: int, packet: Packet, identifier: int) -> tuple[Any, int]:
    size = _SIZES.get(kind)
    if size is not None:
        if at + size > len(data):
            raise malformed(f"{packet}: ends inside property 0x{identifier:02x}")
        value = int.from_bytes(data[at : at + size], "big")
        if kind == "flag" and value > 1:
            raise protocol_error(f"{packet}: property 0x{identifier:02x} is {value}, not 0 or 1")
        return value, at + size
    if kind == "varint":
        return read_varint(data, at, packet)
    field, at = read_binary(data, at, packet)
    if kind in ("binary", "topic"):
        return field, at
    text = check_text(field, packet)
    if kind == "text":
        return text, at
    field, at = read_binary(data, at, packet)
    return (text, check_text(field, packet)), at


def _check_response_topic(topic: bytes, packet: Packet) -> None:
    try:
        check_name(topic, packet)
    except PacketRefused as exc:
        if not topic or b"+" in topic or b"#" in topic:
            raise protocol_error(f"{packet}: a response topic that is empty or has a wildcard") from exc
        raise


def encode(properties: Mapping[int, Any]) -> bytes:
    """A property list with its length in front; in the order of the mapping."""
    body = encode_bare(properties.items())
    return encode_length(len(body)) + body


def encode_bare(items: Iterable[tuple[int, Any]]) -> bytes:
    """Properties without the length in front."""
    out = bytearray()
    for identifier, value in items:
        kind = RULES[identifier].kind
        for one in value if isinstance(value, list) else (value,):
            out.append(identifier)
            out += _encoded(kind, one)
    return bytes(out)


def _encoded(kind: _Kind, value: Any) -> bytes:
    size = _SIZES.get(kind)
    if size is not None:
        return int(value).to_bytes(size, "big")
    if kind == "varint":
        return encode_length(value)
    if kind == "pair":
        return _field(value[0].encode()) + _field(value[1].encode())
    return _field(value if isinstance(value, bytes) else value.encode())


def _field(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data
