"""The MQTT codec: exact on good packets, exact in its refusals, calm on noise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.errors import DataError
from headrace.wire.mqtt import codec
from headrace.wire.mqtt.codec import Connect, Frame, FrameParser, MalformedPacket, PacketTooLarge, Will

LIMIT = 1000
TOPICS = st.text(st.characters(exclude_characters="+#\0", exclude_categories=["Cs"]), min_size=1, max_size=40).map(
    str.encode
)


def parsed(data: bytes, *, limit: int = LIMIT) -> list[Frame]:
    frames: list[Frame] = []
    FrameParser(limit).feed(data, frames)
    return frames


def test_a_publish_is_taken_apart() -> None:
    data = codec.encode_publish(b"a/b", b"{}", packet_id=258) + codec.encode_publish(b"c", b"", retain=True)
    assert parsed(data) == [(0x32, b"a/b", b"\x01\x02", b"{}"), (0x31, b"c", b"", b"")]


@given(st.lists(st.tuples(TOPICS, st.binary(max_size=300), st.integers(0, 65_535)), max_size=8), st.data())
def test_frames_do_not_depend_on_how_the_bytes_were_cut(
    messages: list[tuple[bytes, bytes, int]], data: st.DataObject
) -> None:
    stream = b"".join(codec.encode_publish(topic, body, packet_id=number) for topic, body, number in messages)
    parser, frames, position = FrameParser(LIMIT), list[Frame](), 0
    while position < len(stream):
        step = data.draw(st.integers(1, 400))
        parser.feed(stream[position : position + step], frames)
        position += step
    assert [(topic, body, int.from_bytes(number, "big")) for _, topic, number, body in frames] == messages
    assert len(parser.rest) == 0


@given(st.lists(st.binary(max_size=60), max_size=6))
def test_noise_gives_frames_or_a_data_error_and_bounded_memory(pieces: list[bytes]) -> None:
    parser = FrameParser(50)
    try:
        for piece in pieces:
            frames: list[Frame] = []
            parser.feed(piece, frames)
            for first, body, _, _ in frames:
                parse_any(first, body)
    except DataError:
        return
    assert len(parser.rest) <= codec.EXCERPT_BYTES


def parse_any(first: int, body: bytes) -> None:
    kind = first & 0xF0
    if kind == codec.CONNECT:
        codec.parse_connect(first, body)
    elif kind == codec.SUBSCRIBE:
        codec.parse_subscribe(first, body)
    elif kind == codec.UNSUBSCRIBE:
        codec.parse_unsubscribe(first, body)
    elif kind == codec.CONNACK:
        codec.parse_connack(body)


@given(st.sampled_from([0x10, 0x82, 0xA2, 0x20]), st.binary(max_size=80))
def test_any_body_parses_or_is_a_data_error(first: int, body: bytes) -> None:
    try:
        parse_any(first, body)
        parse_any(first, b"\x00\x04MQTT\x04" + body)
    except DataError:
        pass


@pytest.mark.parametrize(
    "connect",
    [
        Connect("dev", None, None, True, 60, None),
        Connect("d", "hub/d/?api-version=1", b"secret", False, 0, None),
        Connect("d", "u", b"", False, 65_535, Will("ü/t".encode(), b"\0\xff", 1, True)),
    ],
)
def test_a_connect_survives_the_round_trip(connect: Connect) -> None:
    ((first, body, _, _),) = parsed(codec.encode_connect(connect))
    assert codec.parse_connect(first, body) == connect


def test_subscribe_and_unsubscribe_survive_the_round_trip() -> None:
    filters = (("$iothub/methods/POST/#", 0), ("devices/a/messages/devicebound/#", 1))
    ((first, body, _, _),) = parsed(codec.encode_subscribe(7, filters))
    assert codec.parse_subscribe(first, body) == (7, filters)
    ((first, body, _, _),) = parsed(codec.encode_unsubscribe(9, ["a", "b"]))
    assert codec.parse_unsubscribe(first, body) == (9, ("a", "b"))


BAD_FRAMES = {
    "remaining length of five bytes": b"\x30\xff\xff\xff\xff\x01",
    "publish without topic length": b"\x30\x01\x00",
    "topic longer than the packet": b"\x30\x04\x00\x09ab",
    "packet id cut off": b"\x32\x04\x00\x01a\x00",
    "packet id 0": b"\x32\x05\x00\x01a\x00\x00",
    "QoS 3": b"\x36\x05\x00\x01a\x00\x01",
    "DUP on QoS 0": b"\x38\x03\x00\x01a",
}


@pytest.mark.parametrize("data", BAD_FRAMES.values(), ids=BAD_FRAMES)
def test_a_broken_publish_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedPacket):
        parsed(data)


BAD_CONNECTS = {
    "reserved flag": b"\x00\x04MQTT\x04\x03\x00\x3c\x00\x01a",
    "password without user name": b"\x00\x04MQTT\x04\x42\x00\x3c\x00\x01a\x00\x00",
    "will QoS without will": b"\x00\x04MQTT\x04\x0a\x00\x3c\x00\x01a",
    "will QoS 3": b"\x00\x04MQTT\x04\x1e\x00\x3c\x00\x01a\x00\x01t\x00\x00",
    "bytes behind": b"\x00\x04MQTT\x04\x02\x00\x3c\x00\x01aX",
    "cut off": b"\x00\x04MQTT\x04\x02\x00",
    "client id not UTF-8": b"\x00\x04MQTT\x04\x02\x00\x3c\x00\x01\xff",
    "client id with NUL": b"\x00\x04MQTT\x04\x02\x00\x3c\x00\x01\x00",
    "other protocol": b"\x00\x04HTTP\x04\x02\x00\x3c\x00\x01a",
    "will topic not UTF-8": b"\x00\x04MQTT\x04\x06\x00\x3c\x00\x01a\x00\x01\xff\x00\x00",
}


@pytest.mark.parametrize("body", BAD_CONNECTS.values(), ids=BAD_CONNECTS)
def test_a_broken_connect_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedPacket):
        codec.parse_connect(codec.CONNECT, body)


@pytest.mark.parametrize("body", [b"\x00\x04MQTT\x05\x02\x00\x3c", b"\x00\x06MQIsdp\x03\x02\x00\x3c"])
def test_other_versions_are_told_apart_from_noise(body: bytes) -> None:
    with pytest.raises(codec.UnsupportedVersion):
        codec.parse_connect(codec.CONNECT, body)


def test_wrong_flags_of_subscribe_are_malformed() -> None:
    with pytest.raises(MalformedPacket):
        codec.parse_subscribe(0x80, b"\x00\x01\x00\x01a\x00")
    with pytest.raises(MalformedPacket):
        codec.parse_subscribe(0x82, b"\x00\x01")
    with pytest.raises(MalformedPacket):
        codec.parse_subscribe(0x82, b"\x00\x00\x00\x01a\x00")


@pytest.mark.parametrize("topic", [b"a/+", b"a/#", b"a\0", b"\xff"])
def test_a_topic_name_has_no_wildcard_nul_or_broken_text(topic: bytes) -> None:
    with pytest.raises(MalformedPacket):
        codec.check_topic(topic)


def test_a_packet_above_the_limit_is_reported_with_its_start() -> None:
    data = codec.encode_publish(b"t", b"x" * 5000)
    with pytest.raises(PacketTooLarge) as caught:
        parsed(data, limit=1000)
    assert caught.value.excerpt == data


def test_a_huge_packet_is_reported_from_its_first_64_kilobytes() -> None:
    data = codec.encode_publish(b"t", b"x" * 200_000)
    parser, frames = FrameParser(1000), list[Frame]()
    parser.feed(data[:60_000], frames)
    with pytest.raises(PacketTooLarge) as caught:
        parser.feed(data[60_000:70_000], frames)
    assert caught.value.excerpt == data[: codec.EXCERPT_BYTES]


def test_frames_before_a_broken_one_are_kept() -> None:
    frames: list[Frame] = []
    with pytest.raises(MalformedPacket):
        FrameParser(LIMIT).feed(codec.encode_publish(b"a", b"1") + b"\x36\x05\x00\x01a\x00\x01", frames)
    assert frames == [(0x30, b"a", b"", b"1")]


def test_pubacks_are_one_piece_of_bytes() -> None:
    assert codec.encode_pubacks([b"\x00\x01", b"\x12\x34"]) == b"\x40\x02\x00\x01\x40\x02\x12\x34"
