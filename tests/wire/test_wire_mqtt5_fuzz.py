"""Random and damaged bytes into the broker's machine: nothing but its own verdicts comes out, and nothing piles up."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core.errors import DataError
from headrace.wire.mqtt import packets5, properties5
from headrace.wire.mqtt.codec import encode_length
from headrace.wire.mqtt.machine import Broken, BrokerMachine, Frames
from headrace.wire.mqtt.topics import check_name, covers, matches, parse_filter

LIMIT = 5000


def field(text: bytes) -> bytes:
    return len(text).to_bytes(2, "big") + text


def packet(first: int, body: bytes) -> bytes:
    return bytes((first,)) + encode_length(len(body)) + body


HELLO = {
    4: packet(0x10, field(b"MQTT") + b"\4\2\0\x3c" + field(b"c")),
    5: packet(
        0x10,
        field(b"MQTT") + b"\5\x06\0\x3c" + b"\5\x11\0\0\0\x09" + field(b"c") + b"\0" + field(b"w") + field(b"gone"),
    ),
}
GOOD = [
    packet(0x30, field(b"a/b") + b"\0payload"),
    packet(0x34, field(b"a/b") + b"\0\7" + b"\x0a\x02\0\0\0\x10\x23\0\1\1\1" + b"payload"),
    packet(0x82, b"\0\1\2\x0b\5" + field(b"$share/g/a/+") + b"\1" + field(b"x/#") + b"\x2a"),
    packet(0xA2, b"\0\2\0" + field(b"a/+")),
    packet(0x62, b"\0\7\x92\0"),
    packet(0x40, b"\0\1\x10\5\x1f\0\2ok"),
    packet(0xE0, b"\4\5\x11\0\0\0\1"),
    b"\xc0\0",
]


def run(version: int, chunks: list[bytes]) -> None:
    machine = BrokerMachine(packet_bytes_max=LIMIT)
    assert not isinstance(machine.receive(HELLO[version])[-1], Broken)
    for chunk in chunks:
        was_closed = machine.closed
        items = machine.receive(chunk)
        assert not (was_closed and items)
        assert not any(isinstance(item, Broken) for item in items[:-1])
        if items and isinstance(items[-1], Broken):
            assert machine.closed
            assert 0x80 <= items[-1].reason <= 0xA2
        for item in items:
            if isinstance(item, Frames) and version == 5:
                read_all(item)
        assert machine.held_bytes <= LIMIT + 70_000


def read_all(item: Frames) -> None:
    for _, topic, _, rest in item.frames:
        try:
            packets5.parse_publish5(rest)
            check_name(topic)
        except DataError:
            continue


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([4, 5]), st.lists(st.binary(max_size=200), max_size=8))
def test_random_bytes_end_in_a_verdict(version: int, chunks: list[bytes]) -> None:
    run(version, chunks)


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from([4, 5]),
    st.lists(st.sampled_from(GOOD), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4),
    st.integers(1, 60),
)
def test_damaged_packets_end_in_a_verdict(
    version: int, packets: list[bytes], damage: list[tuple[int, int]], piece: int
) -> None:
    data = bytearray(b"".join(packets))
    for at, byte in damage:
        data[at % len(data)] = byte
    run(version, [bytes(data[at : at + piece]) for at in range(0, len(data), piece)])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=120))
def test_a_damaged_connect_is_a_connect_or_a_verdict(tail: bytes) -> None:
    for version in (4, 5):
        head = field(b"MQTT") + bytes((version,))
        items = BrokerMachine(packet_bytes_max=LIMIT).receive(packet(0x10, head + tail))
        assert len(items) == 1
        assert isinstance(items[0], Broken | packets5.Connect)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80), st.sampled_from(["CONNECT", "WILL", "PUBLISH", "ACK", "SUBSCRIBE", "DISCONNECT"]))
def test_properties_are_read_or_refused_and_come_back_the_same(data: bytes, where: properties5.Packet) -> None:
    try:
        found, stop = properties5.decode(data, 0, where)
    except DataError:
        return
    assert stop <= len(data)
    again, _ = properties5.decode(properties5.encode(found), 0, where)
    assert again == found


@settings(max_examples=300, deadline=None)
@given(st.text("ab/+#$\0é", max_size=12), st.text("ab/$é", min_size=1, max_size=12))
def test_a_filter_that_covers_another_matches_all_that_it_matches(topic_filter: str, topic: str) -> None:
    try:
        parsed = parse_filter(topic_filter.encode())
    except DataError:
        return
    name = topic.encode()
    if matches(parsed.levels, name):
        assert covers(parsed.levels, tuple(name.split(b"/")))
