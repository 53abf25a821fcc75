"""Sessions of the broker: QoS both ways, redelivery, taking over, expiry, and all of it across a restart."""

from __future__ import annotations

import pytest
from broker_parts import Bench, Benches, ack, connect, publish, unsubscribe

from headrace.wire.mqtt import codec
from headrace.wire.mqtt.packets5 import PUBACK, PUBCOMP, PUBREC, PUBREL
from headrace.wire.mqtt.properties5 import ASSIGNED_CLIENT_ID, SESSION_EXPIRY

EXPIRY = {SESSION_EXPIRY: 1000}


@pytest.mark.parametrize("version", [4, 5])
async def test_each_qos_arrives_at_the_lower_of_both(bench: Bench, version: int) -> None:
    for asked in (0, 1, 2):
        reader = await bench.client(f"reader{asked}", version=version)
        await reader.subscribe((f"t{asked}/+", asked))
        writer = await bench.client("writer", version=version)
        for sent in (0, 1, 2):
            writer.send(publish(f"t{asked}/x", b"hi", qos=sent, id=5, version=version))
            if sent == 1:
                assert (await writer.expect(PUBACK)).id == 5
            if sent == 2:
                assert (await writer.expect(PUBREC)).id == 5
                writer.send(ack(PUBREL, 5))
                assert (await writer.expect(PUBCOMP)).id == 5
            got = await reader.expect(codec.PUBLISH)
            assert (got.topic, got.payload, got.qos) == (b"t%d/x" % asked, b"hi", min(asked, sent))
            assert not got.dup
            if got.qos == 1:
                reader.send(ack(PUBACK, got.id))
            if got.qos == 2:
                reader.send(ack(PUBREC, got.id))
                assert (await reader.expect(PUBREL)).id == got.id
                reader.send(ack(PUBCOMP, got.id))
        await reader.quiet()


async def test_a_qos_2_message_sent_again_arrives_once(bench: Bench) -> None:
    reader = await bench.client("reader")
    await reader.subscribe(("t", 2))
    writer = await bench.client("writer")
    for dup in (False, True):
        writer.send(publish("t", b"once", qos=2, id=9, dup=dup))
        await writer.expect(PUBREC)
    await reader.quiet()
    for _ in range(2):
        writer.send(ack(PUBREL, 9))
        await writer.expect(PUBCOMP)
    assert (await reader.expect(codec.PUBLISH)).payload == b"once"
    await reader.quiet()


async def test_an_exchange_that_the_broker_does_not_know_is_brought_to_its_end(bench: Bench) -> None:
    client = await bench.client()
    client.send(ack(PUBREL, 77))
    assert (await client.expect(PUBCOMP)).body == b"\0\x4d"
    client.send(ack(PUBREC, 78))
    assert (await client.expect(PUBREL)).body == b"\0\x4e"
    client.send(ack(PUBACK, 79))
    await client.quiet()


@pytest.mark.parametrize("version", [4, 5])
async def test_what_was_not_acknowledged_comes_again_on_the_next_connection(bench: Bench, version: int) -> None:
    asked = {"properties": EXPIRY} if version == 5 else {}
    reader = await bench.client("reader", version=version, clean=False, **asked)
    assert not reader.connack.present
    await reader.subscribe(("t", 2))
    writer = await bench.client("writer")
    writer.send(publish("t", b"one", qos=1, id=1) + publish("t", b"two", qos=2, id=2) + ack(PUBREL, 2))
    first, second = sorted(
        [await reader.expect(codec.PUBLISH), await reader.expect(codec.PUBLISH)], key=lambda p: p.qos
    )
    reader.send(ack(PUBREC, second.id))
    await reader.expect(PUBREL)
    await reader.leave(properly=False)
    reader = await bench.client("reader", version=version, clean=False, **asked)
    assert reader.connack.present
    again = [await reader.next(), await reader.next()]
    by_kind = {found.kind: found for found in again if found}
    repeated, released = by_kind[codec.PUBLISH], by_kind[PUBREL]
    assert (repeated.payload, repeated.dup, repeated.id) == (b"one", True, first.id)
    assert released.id == second.id
    reader.send(ack(PUBACK, first.id) + ack(PUBCOMP, second.id))
    await reader.quiet()


async def test_what_waits_for_a_session_survives_a_restart(bench: Bench) -> None:
    reader = await bench.client("reader", clean=False, properties=EXPIRY)
    await reader.subscribe(("t", 2), ("u/#", 1))
    await reader.leave()
    writer = await bench.client("writer")
    for number in range(5):
        writer.send(publish("t", b"%d" % number, qos=1 + number % 2, id=number + 1))
        kind = PUBACK if number % 2 == 0 else PUBREC
        assert (await writer.expect(kind)).reason == 0
        if number % 2:
            writer.send(ack(PUBREL, number + 1))
            await writer.expect(PUBCOMP)
    await bench.kill()
    await bench.start()
    reader = await bench.client("reader", clean=False, properties=EXPIRY)
    assert reader.connack.present
    got = [await reader.expect(codec.PUBLISH) for _ in range(5)]
    for qos in (1, 2):
        assert [each.payload for each in got if each.qos == qos] == [b"%d" % n for n in range(5) if 1 + n % 2 == qos]
    await reader.quiet()
    writer = await bench.client("writer")
    writer.send(publish("u/x", b"still subscribed", qos=0))
    assert (await reader.expect(codec.PUBLISH)).payload == b"still subscribed"


async def test_a_qos_2_packet_id_sent_before_a_crash_comes_again_after_it(bench: Bench) -> None:
    reader = await bench.client("reader", clean=False, properties=EXPIRY)
    await reader.subscribe(("t", 2))
    writer = await bench.client("writer")
    for number in (1, 2, 3):
        writer.send(publish("t", b"%d" % number, qos=2, id=number) + ack(PUBREL, number))
    sent = {}
    for _ in range(3):
        got = await reader.expect(codec.PUBLISH)
        sent[got.payload] = got.id
    reader.send(ack(PUBREC, sent[b"2"]))
    await reader.expect(PUBREL)
    await bench.settle()
    await bench.kill()
    await bench.start()
    reader = await bench.client("reader", clean=False, properties=EXPIRY)
    found = [await reader.next() for _ in range(3)]
    again = {each.payload: each.id for each in found if each and each.kind == codec.PUBLISH}
    assert again == {b"1": sent[b"1"], b"3": sent[b"3"]}
    assert [each.id for each in found if each and each.kind == PUBREL] == [sent[b"2"]]


async def test_a_message_held_at_qos_2_is_released_after_a_crash_and_once(bench: Bench) -> None:
    writer = await bench.client("writer", clean=False, properties=EXPIRY)
    writer.send(publish("t", b"held", qos=2, id=4))
    await writer.expect(PUBREC)
    await bench.kill()
    await bench.start()
    reader = await bench.client("reader")
    await reader.subscribe(("t", 0))
    writer = await bench.client("writer", clean=False, properties=EXPIRY)
    writer.send(publish("t", b"held", qos=2, id=4, dup=True))
    await writer.expect(PUBREC)
    await reader.quiet()
    writer.send(ack(PUBREL, 4))
    assert (await writer.expect(PUBCOMP)).reason == 0
    assert (await reader.expect(codec.PUBLISH)).payload == b"held"
    writer.send(ack(PUBREL, 4))
    await writer.expect(PUBCOMP)
    await reader.quiet()


async def test_a_clean_start_forgets_what_was_there(bench: Bench) -> None:
    old = await bench.client("c", clean=False, properties=EXPIRY)
    await old.subscribe(("t", 1))
    await old.leave()
    writer = await bench.client("writer")
    writer.send(publish("t", b"x", qos=1, id=1))
    await writer.expect(PUBACK)
    new = await bench.client("c", clean=True, properties=EXPIRY)
    assert not new.connack.present
    await new.quiet()
    writer.send(publish("t", b"y", qos=1, id=1))
    assert (await writer.expect(PUBACK)).reason == 0x10
    await bench.kill()
    await bench.start()
    assert bench.broker.hall.exchange.router.count == 0


@pytest.mark.parametrize("version", [4, 5])
async def test_a_second_connection_takes_over(bench: Bench, version: int) -> None:
    first = await bench.client("same", version=version)
    second = await bench.client("same", version=version)
    if version == 5:
        assert (await first.expect(codec.DISCONNECT)).reason == 0x8E
    await first.closed()
    await second.quiet()


async def test_a_session_ends_when_its_expiry_is_over(bench: Bench) -> None:
    client = await bench.client("c", clean=False, properties={SESSION_EXPIRY: 10})
    await client.subscribe(("t", 1))
    await client.leave(data=b"\xe0\x07\0\x05\x11\0\0\0\x05")  # changed to five seconds by DISCONNECT
    await bench.gone("c")
    bench.clock.advance(4)
    client = await bench.client("c", clean=False, properties={SESSION_EXPIRY: 10})
    assert client.connack.present
    await client.leave()
    await bench.gone("c")
    bench.clock.advance(11)
    client = await bench.client("c", clean=False, properties={SESSION_EXPIRY: 10})
    assert not client.connack.present


async def test_a_session_without_expiry_may_not_be_given_one_at_the_end(bench: Bench) -> None:
    client = await bench.client("c")
    client.send(b"\xe0\x07\0\x05\x11\0\0\0\x05")
    assert (await client.expect(codec.DISCONNECT)).reason == 0x82
    await client.closed()


async def test_an_empty_client_id_is_given_one(bench: Bench) -> None:
    client = await bench.client("")
    assert client.connack.properties[ASSIGNED_CLIENT_ID].startswith("auto-")
    old = await bench.client("", version=4)
    await old.quiet()
    refused = await bench.raw(4)
    refused.send(connect("", version=4, clean=False))
    assert (await refused.expect(codec.CONNACK)).reason == 2
    await refused.closed()


async def test_unsubscribing_ends_it_and_says_whether_there_was_anything(bench: Bench) -> None:
    client = await bench.client("c", clean=False, properties=EXPIRY)
    await client.subscribe(("t", 1))
    client.send(unsubscribe("t", "never", id=6))
    answer = await client.expect(codec.UNSUBACK)
    assert (answer.id, answer.reasons) == (6, [0x00, 0x11])
    client.send(publish("t", b"x", qos=0))
    await client.quiet()
    await bench.kill()
    await bench.start()
    assert bench.broker.hall.exchange.router.count == 0


async def test_a_full_queue_drops_what_is_new_and_says_so_in_a_metric(benches: Benches) -> None:
    bench = await benches(queue_messages_max=3)
    reader = await bench.client("reader", clean=False, properties=EXPIRY)
    await reader.subscribe(("t", 1))
    await reader.leave()
    await bench.gone("reader")
    writer = await bench.client("writer")
    for number in range(5):
        writer.send(publish("t", b"%d" % number, qos=1, id=number + 1))
        await writer.expect(PUBACK)
    reader = await bench.client("reader", clean=False, properties=EXPIRY)
    assert [(await reader.expect(codec.PUBLISH)).payload for _ in range(3)] == [b"0", b"1", b"2"]
    await reader.quiet()
    assert 'broker_dropped_total{reason="queue_full"} 2.0' in bench.metrics.expose().decode()


async def test_a_window_bounds_what_is_under_way(benches: Benches) -> None:
    bench = await benches(inflight_max=2)
    reader = await bench.client("reader", version=4)
    await reader.subscribe(("t", 1))
    writer = await bench.client("writer")
    for number in range(4):
        writer.send(publish("t", b"%d" % number, qos=1, id=number + 1))
        await writer.expect(PUBACK)
    first = await reader.expect(codec.PUBLISH)
    second = await reader.expect(codec.PUBLISH)
    await reader.quiet()
    reader.send(ack(PUBACK, first.id))
    assert (await reader.expect(codec.PUBLISH)).payload == b"2"
    await reader.quiet()
    reader.send(ack(PUBACK, second.id))
    assert (await reader.expect(codec.PUBLISH)).payload == b"3"


async def test_an_acknowledgement_of_the_wrong_kind_ends_the_connection(bench: Bench) -> None:
    reader = await bench.client("reader")
    await reader.subscribe(("t", 2))
    reader.send(publish("t", b"x", qos=2, id=1) + ack(PUBREL, 1))
    await reader.expect(PUBREC)
    await reader.expect(PUBCOMP)
    got = await reader.expect(codec.PUBLISH)
    reader.send(ack(PUBACK, got.id))
    assert (await reader.expect(codec.DISCONNECT)).reason == 0x82
