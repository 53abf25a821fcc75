"""Exact bytes, as a client sees them on the wire: what the default broker says, and when it says nothing and closes."""

from __future__ import annotations

import pytest
from broker_parts import Bench, Benches, RawClient, ack, connect, field, packet, publish, subscribe, unsubscribe

from headrace.wire.mqtt import codec
from headrace.wire.mqtt import properties5 as p
from headrace.wire.mqtt.packets5 import PUBACK, PUBCOMP, PUBREC, PUBREL

WELCOME_5 = bytes.fromhex("200e 0000 0b 22000a 27001e8480 210014".replace(" ", ""))
WELCOME_3 = b"\x20\x02\x00\x00"


async def said(client: RawClient) -> bytes:
    """The next packet's body behind its first byte; b"" when the broker closed."""
    found = await client.next()
    return bytes((found.first,)) + found.body if found else b""


@pytest.mark.parametrize(
    ("hello", "welcome"), [(connect("c"), WELCOME_5), (connect("c", version=4), WELCOME_3)], ids=["5.0", "3.1.1"]
)
async def test_a_welcome_says_no_more_than_it_must(bench: Bench, hello: bytes, welcome: bytes) -> None:
    client = await bench.raw()
    client.send(hello)
    assert await said(client) == welcome[:1] + welcome[2:]


async def test_a_3_1_client_comes_back_to_its_session_and_is_not_told_of_it(bench: Bench) -> None:
    hello = packet(0x10, field("MQIsdp") + b"\x03\x00\0\x3c" + field("old"))
    client = await bench.raw(4)
    client.send(hello)
    assert await said(client) == b"\x20\0\0"
    assert await client.subscribe(("t", 1)) == [1]
    await client.leave()
    await bench.gone("old")
    writer = await bench.client("writer")
    writer.send(publish("t", b"x", qos=1, id=1))
    await writer.expect(PUBACK)
    client = await bench.raw(4)
    client.send(hello)
    assert await said(client) == b"\x20\0\0"
    assert (await client.expect(codec.PUBLISH)).payload == b"x"


async def test_a_3_1_client_needs_a_client_id(bench: Bench) -> None:
    client = await bench.raw(4)
    client.send(packet(0x10, field("MQIsdp") + b"\x03\x02\0\x3c" + field("")))
    assert await said(client) == b"\x20\0\2"
    await client.closed()


@pytest.mark.parametrize(
    "hello",
    [
        connect("c", properties={p.MAXIMUM_PACKET_SIZE: 2}),  # even the welcome is larger
        packet(0x10, field("MQTU") + b"\5\2\0\x3c\0" + field("c")),
        packet(0x11, field("MQTT") + b"\5\2\0\x3c\0" + field("c")),
        packet(0x10, field("MQTT") + b"\5\x82\0\x3c\0" + field("c")),
    ],
    ids=["takes two bytes", "protocol name", "reserved flag", "no user name"],
)
async def test_some_connects_are_closed_without_a_word(bench: Bench, hello: bytes) -> None:
    client = await bench.raw()
    client.send(hello)
    await client.closed()
    assert not bench.broker.hall.exchange.sessions


@pytest.mark.parametrize("version", [4, 5])
async def test_acknowledgements_of_nothing_are_answered_and_do_no_harm(bench: Bench, version: int) -> None:
    client = await bench.client(version=version)
    client.send(ack(PUBACK, 1) + ack(PUBCOMP, 2) + ack(PUBREC, 3) + ack(PUBREL, 4))
    answers = {await said(client) for _ in range(2)}
    assert answers == {b"\x62\0\3", b"\x70\0\4"}
    await client.quiet()


async def test_a_packet_of_no_type_ends_it_before_it_is_all_there(bench: Bench) -> None:
    client = await bench.client()
    client.send(b"\x0a\xc0")
    assert await said(client) == b"\xe0\x82"
    await client.closed()


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (publish("nobody", b"", qos=1, id=1234), b"\x40\x04\xd2\x10"),
        (publish("nobody", b"", qos=2, id=1234), b"\x50\x04\xd2"),
        (unsubscribe("p", "q", id=1234), b"\xb0\x04\xd2\0\x11\x11"),
        (subscribe(("p", 0x28), ("q", 2), id=1234), b"\x90\x04\xd2\0\0\2"),
        (publish("", b"x"), b"\xe0\x81"),
        (publish("t", b"x", properties={p.TOPIC_ALIAS: 11}), b"\xe0\x94"),
        (packet(0x30, field("t") + b"\2\x17\0"), b"\xe0\x82"),
        (packet(0x30, field("t") + b"\1\x17"), b"\xe0\x81"),
        (packet(0x82, b"\0\1\2\x17\0" + field("t") + b"\0"), b"\xe0\x81"),
        (subscribe(("$share/a/b", 4)), b"\xe0\x82"),
        (packet(0xD0, b""), b"\xe0\x82"),
        (packet(0xD1, b""), b"\xe0\x81"),
        (b"\xc0\x80\x80\x80\x80\x01", b""),
        (packet(0xE0, b"\x8e"), b""),
    ],
)
async def test_each_packet_has_its_answer(bench: Bench, asked: bytes, answer: bytes) -> None:
    client = await bench.client()
    client.send(asked)
    assert await said(client) == answer
    if answer[:1] in (b"\xe0", b""):
        await client.closed()
    else:
        await client.quiet()


@pytest.mark.parametrize("topic", ["\U0002a6d4", "A\U0002a6d4/z"])
async def test_any_character_that_unicode_has_may_stand_in_a_topic(bench: Bench, topic: str) -> None:
    client = await bench.client()
    await client.subscribe((topic, 0))
    client.send(publish(topic, b"x"))
    assert (await client.expect(codec.PUBLISH)).topic == topic.encode()


async def test_one_message_more_than_the_default_allows_is_too_many(bench: Bench) -> None:
    client = await bench.client()
    client.send(b"".join(publish("t", b"", qos=2, id=id) for id in range(1, 21)))
    assert [(await client.expect(PUBREC)).id for _ in range(20)] == list(range(1, 21))
    client.send(publish("t", b"", qos=2, id=21))
    assert (await client.expect(codec.DISCONNECT)).reason == 0x93


@pytest.mark.parametrize(("delay_s", "expiry_s", "after_s"), [(3, 5, 3), (5, 2, 2), (5, 0, 0)])
async def test_a_will_comes_after_its_delay_or_with_the_end_of_the_session(
    benches: Benches, delay_s: int, expiry_s: int, after_s: int
) -> None:
    bench = await benches()
    reader = await bench.client("reader")
    await reader.subscribe(("w", 2))
    device = await bench.client(
        "device",
        properties={p.SESSION_EXPIRY: expiry_s},
        will=("w", b"gone", 0, False),
        will_properties={p.WILL_DELAY: delay_s},
    )
    await device.leave(properly=False)
    await bench.gone("device")
    if after_s:
        bench.clock.advance(after_s - 0.9)
        bench.broker.hall.exchange.sweep()
        await reader.quiet()
        bench.clock.advance(0.9)
        bench.broker.hall.exchange.sweep()
    assert (await reader.expect(codec.PUBLISH)).payload == b"gone"
