"""Every way in which a packet can be wrong, and the reason code that MQTT 5.0 wants for it."""

from __future__ import annotations

import pytest

from headrace.wire.mqtt import packets5, properties5
from headrace.wire.mqtt.codec import encode_length
from headrace.wire.mqtt.machine import Broken, BrokerMachine, Frames
from headrace.wire.mqtt.packets5 import Connect
from headrace.wire.mqtt.reasons import (
    CLIENT_ID_INVALID,
    MALFORMED,
    PACKET_TOO_LARGE,
    PROTOCOL_ERROR,
    TOPIC_ALIAS_INVALID,
    UNSUPPORTED_VERSION,
    PacketRefused,
)
from headrace.wire.mqtt.topics import check_name, covers, matches, parse_filter

LIMIT = 1_000_000


def packet(first: int, body: bytes) -> bytes:
    return bytes((first,)) + encode_length(len(body)) + body


def field(text: bytes) -> bytes:
    return len(text).to_bytes(2, "big") + text


def connect(
    flags: int = 2,
    *,
    name: bytes = b"MQTT",
    level: int = 5,
    properties: bytes = b"\0",
    rest: bytes = field(b"c"),
    first: int = 0x10,
) -> bytes:
    body = field(name) + bytes((level, flags, 0, 60)) + (properties if level == 5 else b"") + rest
    return packet(first, body)


def listed(data: bytes) -> bytes:
    return encode_length(len(data)) + data


def opened(version: int = 5) -> BrokerMachine:
    machine = BrokerMachine(packet_bytes_max=LIMIT)
    (found,) = machine.receive(connect(level=version))
    assert isinstance(found, Connect)
    return machine


def broken(machine: BrokerMachine, data: bytes) -> Broken:
    last = machine.receive(data)[-1]
    assert isinstance(last, Broken), last
    assert machine.receive(b"\xc0\0") == []
    return last


BAD_CONNECT = {
    "reserved flag of the packet": (connect(first=0x11), MALFORMED, b""),
    "reserved connect flag": (connect(3), MALFORMED, b"\x20\x03\x00\x81\x00"),
    "will QoS 3": (connect(0x1E, rest=field(b"c") + b"\0" + field(b"t") + field(b"")), MALFORMED, None),
    "will QoS without a will": (connect(0x0A), MALFORMED, None),
    "will retain without a will": (connect(0x22), MALFORMED, None),
    "bytes left over": (connect(rest=field(b"c") + b"x"), MALFORMED, None),
    "ends in the client id": (connect(rest=b"\0\5abc"), MALFORMED, None),
    "client id with U+0000": (connect(rest=field(b"a\0b")), CLIENT_ID_INVALID, None),
    "client id with a surrogate": (connect(rest=field(b"\xed\xa0\x80")), CLIENT_ID_INVALID, None),
    "client id that is not UTF-8": (connect(rest=field(b"\xff\xfe")), CLIENT_ID_INVALID, None),
    "overlong UTF-8": (connect(rest=field(b"\xc0\x80")), CLIENT_ID_INVALID, None),
    "client id with a control character": (connect(rest=field(b"a\x01")), CLIENT_ID_INVALID, None),
    "client id with a non-character": (connect(rest=field("\uffff".encode())), CLIENT_ID_INVALID, None),
    "user name flag without a user name": (connect(0x82), MALFORMED, b""),
    "user name with U+0000": (connect(0x82, rest=field(b"c") + field(b"a\0b")), MALFORMED, b""),
    "password that ends early": (connect(0xC2, rest=field(b"c") + field(b"u") + b"\0\x09p"), MALFORMED, b""),
    "property of another packet": (connect(properties=listed(b"\x23\0\1")), PROTOCOL_ERROR, None),
    "cut property of another packet": (connect(properties=listed(b"\x23\0")), MALFORMED, None),
    "unknown property": (connect(properties=listed(b"\x7f\0")), MALFORMED, None),
    "property that ends early": (connect(properties=listed(b"\x11\0\0")), MALFORMED, None),
    "properties longer than the packet": (connect(properties=b"\x7f"), MALFORMED, None),
    "property length of too many bytes": (connect(properties=b"\x80\0"), MALFORMED, None),
    "session expiry twice": (connect(properties=listed(b"\x11\0\0\0\1" * 2)), PROTOCOL_ERROR, None),
    "receive maximum 0": (connect(properties=listed(b"\x21\0\0")), PROTOCOL_ERROR, None),
    "maximum packet size 0": (connect(properties=listed(b"\x27\0\0\0\0")), PROTOCOL_ERROR, None),
    "request problem information 2": (connect(properties=listed(b"\x17\2")), PROTOCOL_ERROR, None),
    "request response information 2": (connect(properties=listed(b"\x19\2")), PROTOCOL_ERROR, None),
    "authentication data without method": (connect(properties=listed(b"\x16\0\1x")), PROTOCOL_ERROR, None),
    "will topic with a wildcard": (
        connect(6, rest=field(b"c") + b"\0" + field(b"a/#") + field(b"")), MALFORMED, None,
    ),
    "empty will topic": (connect(6, rest=field(b"c") + b"\0" + field(b"") + field(b"")), MALFORMED, None),
    "will delay twice": (
        connect(6, rest=field(b"c") + listed(b"\x18\0\0\0\1" * 2) + field(b"t") + field(b"")), PROTOCOL_ERROR, None,
    ),
    "protocol name": (connect(name=b"MQTX"), UNSUPPORTED_VERSION, b""),
    "level 2": (connect(level=2, name=b"MQIsdp"), UNSUPPORTED_VERSION, b"\x20\x03\x00\x84\x00"),
    "level 3 under the new name": (connect(level=3), UNSUPPORTED_VERSION, b"\x20\x03\x00\x84\x00"),
    "level 6": (connect(level=6), UNSUPPORTED_VERSION, b"\x20\x03\x00\x84\x00"),
    "no CONNECT": (packet(0xC0, b""), PROTOCOL_ERROR, b""),
    "AUTH before CONNECT": (packet(0xF0, b""), PROTOCOL_ERROR, b""),
    "password without user name in 3.1.1": (connect(0x42, level=4, rest=field(b"c") + field(b"p")), MALFORMED, b""),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_CONNECT)
def test_a_wrong_connect_is_refused_with_its_reason(what: str) -> None:
    data, reason, reply = BAD_CONNECT[what]
    found = broken(BrokerMachine(packet_bytes_max=LIMIT), data)
    assert found.reason == reason
    if reply is not None:
        assert found.reply == reply
    else:
        assert found.reply == packets5.encode_connack(5, reason)


PUB = field(b"t") + b"\0\1"
BAD_PACKETS = {
    "second CONNECT": (connect(), PROTOCOL_ERROR),
    "packet type 0": (packet(0x00, b""), PROTOCOL_ERROR),
    "packet type 0, of which nothing more has come": (b"\x0a\xc0", PROTOCOL_ERROR),
    "packet type 0 with a length of five bytes": (b"\0\x80\x80\x80\x80\x01", PROTOCOL_ERROR),
    "AUTH without a method": (packet(0xF0, b""), PROTOCOL_ERROR),
    "AUTH with flags": (packet(0xF1, b""), PROTOCOL_ERROR),
    "SUBACK with flags": (packet(0x91, b"\0\1\0\0"), MALFORMED),
    "PINGRESP with flags": (packet(0xD4, b""), MALFORMED),
    "CONNACK from a client": (packet(0x20, b"\0\0\0"), PROTOCOL_ERROR),
    "SUBACK from a client": (packet(0x90, b"\0\1\0\0"), PROTOCOL_ERROR),
    "UNSUBACK from a client": (packet(0xB0, b"\0\1\0\0"), PROTOCOL_ERROR),
    "PINGRESP from a client": (packet(0xD0, b""), PROTOCOL_ERROR),
    "PINGREQ with flags": (packet(0xC1, b""), MALFORMED),
    "remaining length of too many bytes": (b"\xc0\x80\x00", MALFORMED),
    "PUBLISH of QoS 3": (packet(0x36, PUB + b"\0"), MALFORMED),
    "PUBLISH with DUP at QoS 0": (packet(0x38, field(b"t") + b"\0"), MALFORMED),
    "PUBLISH at QoS 1 with packet id 0": (packet(0x32, field(b"t") + b"\0\0\0"), PROTOCOL_ERROR),
    "PUBLISH at QoS 2 with packet id 0": (packet(0x34, field(b"t") + b"\0\0\0"), PROTOCOL_ERROR),
    "PUBLISH that ends in its topic": (packet(0x32, b"\0\x09abc"), MALFORMED),
    "PUBLISH that ends in its packet id": (packet(0x34, field(b"t") + b"\0"), MALFORMED),
    "PUBLISH without anything": (packet(0x30, b""), MALFORMED),
    "SUBSCRIBE with flags 0": (packet(0x80, b"\0\1\0" + field(b"t") + b"\0"), MALFORMED),
    "SUBSCRIBE with packet id 0": (packet(0x82, b"\0\0\0" + field(b"t") + b"\0"), MALFORMED),
    "SUBSCRIBE without a filter": (packet(0x82, b"\0\1\0"), MALFORMED),
    "SUBSCRIBE to an empty filter": (packet(0x82, b"\0\1\0" + field(b"") + b"\0"), MALFORMED),
    "SUBSCRIBE without options": (packet(0x82, b"\0\1\0" + field(b"t")), MALFORMED),
    "SUBSCRIBE with QoS 3": (packet(0x82, b"\0\1\0" + field(b"t") + b"\3"), MALFORMED),
    "SUBSCRIBE with retain handling 3": (packet(0x82, b"\0\1\0" + field(b"t") + b"\x30"), MALFORMED),
    "SUBSCRIBE with reserved options": (packet(0x82, b"\0\1\0" + field(b"t") + b"\x40"), MALFORMED),
    "SUBSCRIBE with no local, shared": (
        packet(0x82, b"\0\1\0" + field(b"$share/g/t") + b"\4"), PROTOCOL_ERROR,
    ),
    "SUBSCRIBE with identifier 0": (packet(0x82, b"\0\1" + listed(b"\x0b\0") + field(b"t") + b"\0"), MALFORMED),
    "SUBSCRIBE with a property of another packet": (
        packet(0x82, b"\0\1" + listed(b"\x11\0\0\0\1") + field(b"t") + b"\0"), MALFORMED,
    ),
    "SUBSCRIBE with two identifiers": (
        packet(0x82, b"\0\1" + listed(b"\x0b\1\x0b\2") + field(b"t") + b"\0"), PROTOCOL_ERROR,
    ),
    "SUBSCRIBE to a#": (packet(0x82, b"\0\1\0" + field(b"a#") + b"\0"), MALFORMED),
    "SUBSCRIBE to #/a": (packet(0x82, b"\0\1\0" + field(b"#/a") + b"\0"), MALFORMED),
    "SUBSCRIBE to a+/b": (packet(0x82, b"\0\1\0" + field(b"a+/b") + b"\0"), MALFORMED),
    "SUBSCRIBE to $share/g": (packet(0x82, b"\0\1\0" + field(b"$share/g") + b"\0"), PROTOCOL_ERROR),
    "SUBSCRIBE to $share/#/t": (packet(0x82, b"\0\1\0" + field(b"$share/#/t") + b"\0"), MALFORMED),
    "SUBSCRIBE to $share//t": (packet(0x82, b"\0\1\0" + field(b"$share//t") + b"\0"), PROTOCOL_ERROR),
    "SUBSCRIBE to $share/+/t": (packet(0x82, b"\0\1\0" + field(b"$share/+/t") + b"\0"), PROTOCOL_ERROR),
    "SUBSCRIBE to $share/g/": (packet(0x82, b"\0\1\0" + field(b"$share/g/") + b"\0"), PROTOCOL_ERROR),
    "UNSUBSCRIBE with flags 0": (packet(0xA0, b"\0\1\0" + field(b"t")), MALFORMED),
    "UNSUBSCRIBE without a filter": (packet(0xA2, b"\0\1\0"), MALFORMED),
    "UNSUBSCRIBE with packet id 0": (packet(0xA2, b"\0\0\0" + field(b"t")), MALFORMED),
    "PUBACK with flags": (packet(0x41, b"\0\1"), MALFORMED),
    "PUBACK of one byte": (packet(0x40, b"\0"), MALFORMED),
    "PUBACK with packet id 0": (packet(0x40, b"\0\0"), PROTOCOL_ERROR),
    "PUBACK with another packet's reason": (packet(0x40, b"\0\1\x92"), PROTOCOL_ERROR),
    "PUBACK with two reason strings": (packet(0x40, b"\0\1\0" + listed(b"\x1f\0\1x" * 2)), PROTOCOL_ERROR),
    "PUBREL with flags 0": (packet(0x60, b"\0\1"), MALFORMED),
    "PUBREL with another packet's reason": (packet(0x62, b"\0\1\x10"), PROTOCOL_ERROR),
    "PUBCOMP with left over bytes": (packet(0x70, b"\0\1\0\0x"), MALFORMED),
    "DISCONNECT with flags": (packet(0xE1, b""), MALFORMED),
    "DISCONNECT with a topic alias": (packet(0xE0, b"\0" + listed(b"\x23\0\1")), PROTOCOL_ERROR),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_PACKETS)
def test_a_wrong_packet_is_answered_with_its_reason(what: str) -> None:
    data, reason = BAD_PACKETS[what]
    found = broken(opened(), data)
    assert found.reason == reason
    assert found.reply == bytes((0xE0, 1, reason))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x30\xff\xff\xff\xff\x01", MALFORMED),  # where the next packet begins cannot be known
        (packet(0xC0, b"x"), MALFORMED),
        (packet(0xD0, b"x"), MALFORMED),
        (packet(0xE0, b"\x8e"), PROTOCOL_ERROR),  # who leaves reads no answer
        (packet(0xE0, b"\0" + listed(b"\x1c\0\1x")), PROTOCOL_ERROR),
    ],
)
def test_some_mistakes_close_the_connection_without_a_word(data: bytes, reason: int) -> None:
    found = broken(opened(), data)
    assert found.reason == reason
    assert found.reply == b""


@pytest.mark.parametrize("first", [0x10, 0x14])
def test_mqtt_3_1_is_spoken_too(first: int) -> None:
    machine = BrokerMachine(packet_bytes_max=LIMIT)
    (item,) = machine.receive(connect(0x01, level=3, name=b"MQIsdp", first=first))
    assert isinstance(item, packets5.Connect)
    assert item.version == 3
    assert not item.clean_start
    assert packets5.encode_connack(3, 0, session_present=True) == b"\x20\x02\x00\x00"


def test_a_3_1_1_client_is_closed_without_a_word() -> None:
    for what, (data, _) in BAD_PACKETS.items():
        if "retain handling" in what or "identifier" in what or "reason" in what or "no local" in what:
            continue
        machine = opened(4)
        items = machine.receive(data)
        assert isinstance(items[-1], Broken | Frames), what
        if isinstance(items[-1], Broken):
            assert items[-1].reply == b"", what


@pytest.mark.parametrize("options", [0x04, 0x08, 0x10, 3, 0x80])
def test_3_1_1_knows_no_subscription_options(options: int) -> None:
    found = broken(opened(4), packet(0x82, b"\0\1" + field(b"t") + bytes((options,))))
    assert found.reason == MALFORMED


def test_a_packet_above_the_limit_is_told_apart() -> None:
    machine = opened()
    found = broken(machine, b"\x82" + encode_length(LIMIT + 1))
    assert found.reason == PACKET_TOO_LARGE
    assert found.reply[0] == 0xE0
    assert found.reply[2] == PACKET_TOO_LARGE
    assert b"above the limit" in found.reply


def test_what_came_before_a_wrong_packet_is_still_handed_out() -> None:
    machine = opened()
    items = machine.receive(packet(0x30, field(b"t") + b"\0hi") + packet(0x00, b""))
    assert isinstance(items[0], Frames)
    assert isinstance(items[1], Broken)


def test_packets_may_come_in_any_pieces() -> None:
    data = connect() + packet(0x30, field(b"t") + b"\0hi") + packet(0x82, b"\0\1\0" + field(b"t") + b"\0")
    whole = BrokerMachine(packet_bytes_max=LIMIT).receive(data)
    machine = BrokerMachine(packet_bytes_max=LIMIT)
    assert [item for byte in data for item in machine.receive(bytes((byte,)))] == whole
    assert len(whole) == 3


BAD_PUBLISH_PROPERTIES = {
    "topic alias 0": (b"\x23\0\0", TOPIC_ALIAS_INVALID),
    "two topic aliases": (b"\x23\0\1\x23\0\1", PROTOCOL_ERROR),
    "subscription identifier": (b"\x0b\1", PROTOCOL_ERROR),
    "payload format 2": (b"\1\2", PROTOCOL_ERROR),
    "response topic with a wildcard": (b"\x08\0\3a/#", PROTOCOL_ERROR),
    "empty response topic": (b"\x08\0\0", PROTOCOL_ERROR),
    "content type with U+0000": (b"\3\0\1\0", MALFORMED),
    "user property without a value": (b"\x26\0\1a", MALFORMED),
    "user property that is not UTF-8": (b"\x26\0\1a\0\1\xff", MALFORMED),
    "session expiry": (b"\x11\0\0\0\1", PROTOCOL_ERROR),
    "session expiry that ends early": (b"\x11\0\0", MALFORMED),
    "identifier of too many bytes": (b"\x81\0\1", MALFORMED),
    "two message expiries": (b"\2\0\0\0\1" * 2, PROTOCOL_ERROR),
    "two content types": (b"\3\0\1a" * 2, PROTOCOL_ERROR),
    "two correlation data": (b"\x09\0\1a" * 2, PROTOCOL_ERROR),
}


@pytest.mark.parametrize("what", BAD_PUBLISH_PROPERTIES)
def test_wrong_properties_of_a_publish_have_their_reason(what: str) -> None:
    data, reason = BAD_PUBLISH_PROPERTIES[what]
    with pytest.raises(PacketRefused) as caught:
        packets5.parse_publish5(listed(data) + b"payload")
    assert caught.value.reason == reason


def test_properties_come_back_as_they_were_written() -> None:
    given = {
        properties5.PAYLOAD_FORMAT: 1,
        properties5.MESSAGE_EXPIRY: 7,
        properties5.CONTENT_TYPE: "text/plain",
        properties5.RESPONSE_TOPIC: b"answers",
        properties5.CORRELATION_DATA: b"\0\1",
        properties5.TOPIC_ALIAS: 3,
        properties5.USER_PROPERTY: [("a", "1"), ("a", "2"), ("", "")],
    }
    data = properties5.encode(given) + b"payload"
    found = packets5.parse_publish5(data)
    assert found.properties == given
    assert found.payload == b"payload"
    again, _ = properties5.decode(listed(found.passed_on), 0, "PUBLISH")
    assert again == {key: given[key] for key in (1, 3, 8, 9, 0x26)}  # order kept, expiry and alias left out


@pytest.mark.parametrize("topic", [b"", b"a/#", b"+", b"a\0b", b"\xff", "\ud7ff\x85".encode(), b"a\x7f"])
def test_a_topic_that_is_none_is_refused(topic: bytes) -> None:
    with pytest.raises(PacketRefused):
        check_name(topic)


@pytest.mark.parametrize(
    ("topic_filter", "topic", "fits"),
    [
        (b"a/b", b"a/b", True), (b"a/+", b"a/b", True), (b"a/+", b"a", False), (b"a/+", b"a/", True),
        (b"a/#", b"a", True), (b"a/#", b"a/b/c", True), (b"#", b"a", True), (b"#", b"$SYS/x", False),
        (b"+/x", b"$SYS/x", False), (b"$SYS/#", b"$SYS/x", True), (b"+", b"/a", False), (b"+/+", b"/a", True),
        (b"/+", b"/a", True), (b"a//b", b"a//b", True), (b"a/+/b", b"a//b", True), (b"A", b"a", False),
    ],
)  # fmt: skip
def test_filters_match_by_levels(topic_filter: bytes, topic: bytes, fits: bool) -> None:
    assert matches(parse_filter(topic_filter).levels, topic) is fits


@pytest.mark.parametrize(
    ("allowed", "wanted", "inside"),
    [
        (b"#", b"a/b", True), (b"#", b"$SYS/a", False), (b"a/#", b"a/#", True), (b"a/+", b"a/#", False),
        (b"a/+/c", b"a/b/c", True), (b"a/b", b"a/+", False), (b"a/#", b"a", True), (b"a/+", b"a", False),
        (b"a", b"a/b", False), (b"+/+", b"a/+", True),
    ],
)  # fmt: skip
def test_a_filter_lies_within_another(allowed: bytes, wanted: bytes, inside: bool) -> None:
    assert covers(parse_filter(allowed).levels, parse_filter(wanted).levels) is inside
