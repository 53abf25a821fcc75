"""What MQTT 5 adds, retained messages, wills and shared subscriptions, each over a real connection."""

from __future__ import annotations

import pytest
from broker_parts import Bench, Benches, ack, connect, packet, publish

from headrace.wire.mqtt import codec
from headrace.wire.mqtt import properties5 as p
from headrace.wire.mqtt.packets5 import PUBACK, PUBCOMP, PUBREC, PUBREL

EXPIRY = {p.SESSION_EXPIRY: 1000}


async def test_a_connack_says_what_the_broker_decided(bench: Bench) -> None:
    client = await bench.client("c", keep_alive_s=120, properties={p.SESSION_EXPIRY: 0xFFFFFFFF}, clean=False)
    told = client.connack.properties
    assert told[p.SERVER_KEEP_ALIVE] == 60
    assert told[p.SESSION_EXPIRY] == bench.config.session_expiry_max_s
    assert told[p.TOPIC_ALIAS_MAXIMUM] == 10
    assert told[p.RECEIVE_MAXIMUM] == 20
    assert told[p.MAXIMUM_PACKET_SIZE] == 2_000_000
    assert p.ASSIGNED_CLIENT_ID not in told


async def test_enhanced_authentication_is_refused(bench: Bench) -> None:
    client = await bench.raw()
    client.send(connect("c", properties={p.AUTH_METHOD: "SCRAM-SHA-256"}))
    assert (await client.expect(codec.CONNACK)).reason == 0x8C
    await client.closed()


async def test_properties_are_passed_on_in_order(bench: Bench) -> None:
    reader = await bench.client("reader")
    await reader.subscribe(("t", 0))
    given = {
        p.PAYLOAD_FORMAT: 1,
        p.CONTENT_TYPE: "text/plain",
        p.RESPONSE_TOPIC: b"answers/here",
        p.CORRELATION_DATA: b"\0\xff",
        p.USER_PROPERTY: [("k", "1"), ("k", "2"), ("a", "é")],
    }
    reader.send(publish("t", b"x", properties=given))
    assert (await reader.expect(codec.PUBLISH)).properties == given


async def test_a_message_tells_the_time_it_has_left_and_expires(bench: Bench) -> None:
    reader = await bench.client("reader", clean=False, properties=EXPIRY)
    await reader.subscribe(("t", 1))
    await reader.leave()
    await bench.gone("reader")
    writer = await bench.client("writer")
    for number, expiry_s in enumerate((2, 100, None)):
        properties = {} if expiry_s is None else {p.MESSAGE_EXPIRY: expiry_s}
        writer.send(publish("t", b"%d" % number, qos=1, id=number + 1, properties=properties))
        await writer.expect(PUBACK)
    bench.clock.advance(30)
    reader = await bench.client("reader", clean=False, properties=EXPIRY)
    second, third = await reader.expect(codec.PUBLISH), await reader.expect(codec.PUBLISH)
    assert second.payload == b"1"
    assert 65 <= second.properties[p.MESSAGE_EXPIRY] <= 70
    assert third.payload == b"2"
    assert p.MESSAGE_EXPIRY not in third.properties
    await reader.quiet()


async def test_topic_aliases_work_both_ways(bench: Bench) -> None:
    reader = await bench.client("reader", properties={p.TOPIC_ALIAS_MAXIMUM: 1})
    await reader.subscribe(("#", 0))
    writer = await bench.client("writer")
    writer.send(publish("a/b", b"1", properties={p.TOPIC_ALIAS: 10}))
    writer.send(publish("", b"2", properties={p.TOPIC_ALIAS: 10}))
    writer.send(publish("other", b"3"))
    got = [await reader.expect(codec.PUBLISH) for _ in range(3)]
    assert [(each.topic, each.payload) for each in got] == [(b"a/b", b"1"), (b"", b"2"), (b"other", b"3")]
    assert [each.properties.get(p.TOPIC_ALIAS) for each in got] == [1, 1, None]
    writer.send(publish("x", b"", properties={p.TOPIC_ALIAS: 11}))
    assert (await writer.expect(codec.DISCONNECT)).reason == 0x94
    writer = await bench.client("writer")
    writer.send(publish("", b"4", properties={p.TOPIC_ALIAS: 10}))  # aliases end with their connection
    assert (await writer.expect(codec.DISCONNECT)).reason == 0x82


async def test_a_message_larger_than_a_client_takes_is_not_sent_to_it(bench: Bench) -> None:
    reader = await bench.client("reader", properties={p.MAXIMUM_PACKET_SIZE: 40, p.TOPIC_ALIAS_MAXIMUM: 5})
    await reader.subscribe(("t", 1))
    for body in (b"x" * 100, b"y"):
        reader.send(publish("t", body, qos=1, id=1))
        await reader.expect(PUBACK)
    got = await reader.expect(codec.PUBLISH)
    assert (got.topic, got.payload) == (b"t", b"y")
    await reader.quiet()


async def test_a_packet_larger_than_the_broker_takes_ends_the_connection(benches: Benches) -> None:
    bench = await benches(packet_bytes_max=1000)
    client = await bench.client()
    client.send(publish("t", b"x" * 2000))
    told = await client.expect(codec.DISCONNECT)
    assert told.reason == 0x95
    assert "1,000" in told.properties[p.REASON_STRING]
    await client.closed()


async def test_more_than_the_receive_maximum_ends_the_connection(benches: Benches) -> None:
    bench = await benches(receive_maximum=2)
    client = await bench.client()
    client.send(b"".join(publish("t", b"", qos=2, id=id) for id in (1, 2)))
    await client.expect(PUBREC)
    await client.expect(PUBREC)
    client.send(ack(PUBREL, 1))
    await client.expect(PUBCOMP)
    client.send(publish("t", b"", qos=2, id=3))
    await client.expect(PUBREC)
    client.send(publish("t", b"", qos=2, id=4))
    assert (await client.expect(codec.DISCONNECT)).reason == 0x93


async def test_a_client_is_sent_no_more_than_its_receive_maximum(bench: Bench) -> None:
    reader = await bench.client("reader", properties={p.RECEIVE_MAXIMUM: 1})
    await reader.subscribe(("t", 2))
    writer = await bench.client("writer")
    writer.send(publish("t", b"1", qos=1, id=1) + publish("t", b"2", qos=1, id=2))
    first = await reader.expect(codec.PUBLISH)
    await reader.quiet()
    reader.send(ack(PUBACK, first.id))
    assert (await reader.expect(codec.PUBLISH)).payload == b"2"


async def test_no_local_and_retain_as_published_do_what_they_say(bench: Bench) -> None:
    client = await bench.client("c")
    await client.subscribe(("own", 0x04), ("kept", 0x08), ("plain", 0x00))
    client.send(publish("own", b"1") + publish("kept", b"2", retain=True) + publish("plain", b"3", retain=True))
    got = [await client.expect(codec.PUBLISH) for _ in range(2)]
    assert [(each.topic, each.retain) for each in got] == [(b"kept", True), (b"plain", False)]
    other = await bench.client("other")
    other.send(publish("own", b"4"))
    assert (await client.expect(codec.PUBLISH)).payload == b"4"


@pytest.mark.parametrize(("handling", "first", "second"), [(0, 1, 1), (1, 1, 0), (2, 0, 0)])
async def test_retain_handling_says_when_retained_messages_come(
    bench: Bench, handling: int, first: int, second: int
) -> None:
    client = await bench.client("c")
    client.send(publish("t", b"kept", retain=True))
    for expected in (first, second):
        await client.subscribe(("t", handling << 4))
        for _ in range(expected):
            got = await client.expect(codec.PUBLISH)
            assert (got.payload, got.retain) == (b"kept", True)
        await client.quiet()


async def test_overlapping_subscriptions_give_one_message_with_all_identifiers(bench: Bench) -> None:
    client = await bench.client("c")
    await client.subscribe(("a/#", 0), properties={p.SUBSCRIPTION_IDENTIFIER: [300]})
    await client.subscribe(("a/+", 2), properties={p.SUBSCRIPTION_IDENTIFIER: [2]})
    client.send(publish("a/b", b"x", qos=2, id=1) + ack(PUBREL, 1))
    await client.expect(PUBREC)
    await client.expect(PUBCOMP)
    got = await client.expect(codec.PUBLISH)
    assert got.qos == 2
    assert sorted(got.properties[p.SUBSCRIPTION_IDENTIFIER]) == [2, 300]
    await client.quiet()


async def test_a_shared_subscription_gives_each_message_to_one_member(bench: Bench) -> None:
    readers = [await bench.client(f"reader{number}") for number in range(3)]
    for reader in readers:
        await reader.subscribe(("$share/g/t/+", 1))
    outside = await bench.client("outside")
    await outside.subscribe(("t/+", 0))
    writer = await bench.client("writer")
    for number in range(9):
        writer.send(publish(f"t/{number}", b"x", qos=1, id=number + 1))
        await writer.expect(PUBACK)
        await outside.expect(codec.PUBLISH)
    topics: list[bytes] = []
    for reader in readers:
        mine = [(await reader.expect(codec.PUBLISH)).topic for _ in range(3)]
        await reader.quiet()
        topics += mine
    assert sorted(topics) == [b"t/%d" % number for number in range(9)]


async def test_what_a_member_of_a_share_leaves_goes_to_another(bench: Bench) -> None:
    first = await bench.client("first")
    await first.subscribe(("$share/g/t", 1))
    first.send(publish("t", b"x", qos=1, id=1))
    await first.expect(PUBACK)
    await first.expect(codec.PUBLISH)
    second = await bench.client("second")
    await second.subscribe(("$share/g/t", 1))
    await first.leave()
    assert (await second.expect(codec.PUBLISH)).payload == b"x"


@pytest.mark.parametrize("version", [4, 5])
async def test_retained_messages_come_to_new_subscribers_and_an_empty_one_removes_them(
    bench: Bench, version: int
) -> None:
    writer = await bench.client("writer", version=version)
    for topic in ("a", "a/b", "a/b/c", "$hidden/x", "z"):
        writer.send(publish(topic, topic.encode(), qos=1, id=1, retain=True, version=version))
        await writer.expect(PUBACK)
    reader = await bench.client("reader", version=version)
    for topic_filter, topics in (("a/#", ["a", "a/b", "a/b/c"]), ("+", ["a", "z"]), ("#", ["a", "a/b", "a/b/c", "z"])):
        await reader.subscribe((topic_filter, 0))
        got = [await reader.expect(codec.PUBLISH) for _ in topics]
        assert sorted(each.payload.decode() for each in got) == topics
        assert all(each.retain for each in got)
    await bench.kill()
    await bench.start()
    writer = await bench.client("writer", version=version)
    writer.send(publish("a/b", b"", qos=1, id=1, retain=True, version=version))
    await writer.expect(PUBACK)
    await writer.subscribe(("a/+", 0), ("a/+/c", 1))
    assert (await writer.expect(codec.PUBLISH)).topic == b"a/b/c"
    await writer.quiet()


async def test_a_retained_message_expires(bench: Bench) -> None:
    client = await bench.client()
    client.send(publish("t", b"x", retain=True, properties={p.MESSAGE_EXPIRY: 5}))
    await client.quiet()
    bench.clock.advance(6)
    await client.subscribe(("t", 0))
    await client.quiet()


async def test_one_retained_message_too_many_is_refused_and_not_delivered(benches: Benches) -> None:
    bench = await benches(retained_max=1)
    client = await bench.client()
    await client.subscribe(("#", 0))
    client.send(publish("a", b"1", qos=1, id=1, retain=True) + publish("b", b"2", qos=1, id=2, retain=True))
    got = [await client.next() for _ in range(3)]
    assert [each.topic for each in got if each and each.kind == codec.PUBLISH] == [b"a"]
    stored, refused = [each for each in got if each and each.kind == PUBACK]
    assert (stored.reason, refused.reason) == (0, 0x97)
    assert refused.properties[p.REASON_STRING]
    await client.quiet()


@pytest.mark.parametrize("version", [4, 5])
async def test_a_will_is_published_when_a_client_vanishes_and_not_when_it_says_goodbye(
    bench: Bench, version: int
) -> None:
    reader = await bench.client("reader")
    await reader.subscribe(("will/#", 1))
    for properly in (True, False):
        device = await bench.client("device", version=version, will=("will/x", b"gone", 1, True))
        await device.leave(properly=properly)
        if properly:
            await bench.gone("device")
            await reader.quiet()
    got = await reader.expect(codec.PUBLISH)
    assert (got.topic, got.payload, got.qos) == (b"will/x", b"gone", 1)
    late = await bench.client("late")
    await late.subscribe(("will/#", 0))
    assert (await late.expect(codec.PUBLISH)).retain


async def test_a_disconnect_may_ask_for_the_will(bench: Bench) -> None:
    reader = await bench.client("reader")
    await reader.subscribe(("w", 0))
    device = await bench.client(
        "device", will=("w", b"gone", 0, False), will_properties={p.USER_PROPERTY: [("a", "b")]}
    )
    await device.leave(data=b"\xe0\x01\x04")
    assert (await reader.expect(codec.PUBLISH)).properties == {p.USER_PROPERTY: [("a", "b")]}


async def test_a_delayed_will_waits_and_is_forgotten_when_the_client_comes_back(bench: Bench) -> None:
    reader = await bench.client("reader")
    await reader.subscribe(("w", 0))
    asked = {
        "will": ("w", b"gone", 0, False),
        "will_properties": {p.WILL_DELAY: 20},
        "properties": {p.SESSION_EXPIRY: 60},
    }
    device = await bench.client("device", clean=False, **asked)
    await device.leave(properly=False)
    await bench.gone("device")
    await reader.quiet()
    device = await bench.client("device", clean=False, **asked)
    await device.leave(properly=False)
    await bench.gone("device")
    bench.clock.advance(10)
    bench.broker.hall.exchange.sweep()
    await reader.quiet()
    await bench.settle()
    await bench.kill()
    await bench.start()
    reader = await bench.client("reader")
    await reader.subscribe(("w", 0))
    bench.clock.advance(11)
    bench.broker.hall.exchange.sweep()
    assert (await reader.expect(codec.PUBLISH)).payload == b"gone"


async def test_a_will_comes_no_later_than_the_end_of_its_session(bench: Bench) -> None:
    reader = await bench.client("reader")
    await reader.subscribe(("w", 0))
    device = await bench.client("device", will=("w", b"gone", 0, False), will_properties={p.WILL_DELAY: 3600})
    await device.leave(properly=False)
    assert (await reader.expect(codec.PUBLISH)).payload == b"gone"


async def test_a_silent_client_is_told_and_its_will_published(bench: Bench) -> None:
    reader = await bench.client("reader")
    await reader.subscribe(("w", 0))
    device = await bench.client("device", keep_alive_s=10, will=("w", b"gone", 0, False))
    for link in bench.broker.hall.links:
        link.check(bench.clock.monotonic() + 14)
    await device.quiet()
    for link in list(bench.broker.hall.links):
        link.check(bench.clock.monotonic() + 16)
    assert (await device.expect(codec.DISCONNECT)).reason == 0x8D
    await device.closed()
    assert (await reader.expect(codec.PUBLISH)).payload == b"gone"


async def test_who_never_says_connect_is_closed(bench: Bench) -> None:
    silent = await bench.raw()
    other = await bench.client()
    for link in list(bench.broker.hall.links):
        link.check(bench.clock.monotonic() + 11)
    await silent.closed()
    await other.quiet()


async def test_clients_are_told_that_the_broker_stops(bench: Bench) -> None:
    client = await bench.client("c", will=("w", b"", 0, False))
    old = await bench.client("old", version=4)
    await bench.broker.stop()
    assert (await client.expect(codec.DISCONNECT)).reason == 0x8B
    await client.closed()
    await old.closed()
    await bench.start()


async def test_dollar_topics_match_no_leading_wildcard(benches: Benches) -> None:
    bench = await benches(system_interval_s=1000.0)
    client = await bench.client()
    await client.subscribe(("#", 0), ("+/broker/version", 0))
    client.send(publish("$own/x", b"1"))
    await client.quiet()
    await client.subscribe(("$SYS/broker/version", 0))
    assert (await client.expect(codec.PUBLISH)).payload.startswith(b"headrace ")
    client.send(publish("$SYS/broker/version", b"forged", qos=1, id=1))
    assert (await client.expect(PUBACK)).reason == 0x87


async def test_broken_bytes_end_one_connection_and_no_other(bench: Bench) -> None:
    other = await bench.client("other")
    for data, reason in ((packet(0x00, b""), 0x82), (packet(0x82, b"\0\1\0"), 0x81), (publish("a/#", b""), 0x81)):
        client = await bench.client("c")
        client.send(data)
        assert (await client.expect(codec.DISCONNECT)).reason == reason
        await client.closed()
    await other.quiet()
    assert len(bench.broker.hall.exchange.sessions) == 1


async def test_messages_for_a_slow_reader_stay_bounded(bench: Bench) -> None:
    reader = await bench.client("reader")
    await reader.subscribe(("t", 0))
    link = bench.broker.hall.exchange.sessions["reader"].link
    assert link is not None
    writer = await bench.client("writer")
    for _ in range(40):
        writer.send(publish("t", b"x" * 1_000_000))
    await writer.quiet()
    assert 'broker_dropped_total{reason="slow_client"}' in bench.metrics.expose().decode()
    assert link._backlog + link._out_bytes <= 9 << 20  # type: ignore[attr-defined]
