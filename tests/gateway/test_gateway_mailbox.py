"""Cloud-to-device messages over MQTT, without sockets."""

from __future__ import annotations

import asyncio
from typing import Any

from gateway_parts import Parts, rows_of
from hub_client import arrives, listening, nothing_arrives, say, subscribe, turn

from headrace.devices.mailbox import Message
from headrace.gateway.egress import IN_FLIGHT_MAX
from headrace.wire.iothub.properties import decode_bag
from headrace.wire.mqtt import codec

MAIL = "devices/a/messages/devicebound/#"


def mail(body: str, **application: str | None) -> Message:
    return Message({}, application, body.encode())


def puback(packet_id: int) -> bytes:
    return codec.encode_pubacks([packet_id.to_bytes(2, "big")])


async def left(parts: Parts) -> int:
    for _ in range(100):
        await asyncio.sleep(0)
    return await parts.mailbox.pending("a")


async def test_a_message_is_delivered_with_its_properties_and_gone_when_acknowledged(parts: Parts) -> None:
    connection, wire = await listening(parts, "a", MAIL)
    system = {"message-id": "m 1", "content-type": "text/plain", "correlation-id": "c&=/1"}
    application = {"iothub-ack": "full", "a key/&=%+": "v ä/&=%+", "empty": "", "null": None}
    await parts.mailbox.send("a", Message(system, application, b"hello"))
    (got,) = await arrives(wire)
    place, _, bag = got.topic.partition("/devicebound/")
    assert place == "devices/a/messages"
    assert (got.body, got.duplicate) == (b"hello", False)
    assert got.packet_id > 0
    assert "/" not in bag
    assert all(pair.count("=") == 1 for pair in bag.split("&"))
    seen = decode_bag(bag.encode())
    assert seen.system == {"to": "/devices/a/messages/devicebound", **system}
    assert seen.application == {**application, "null": ""}
    assert await left(parts) == 1
    connection.data_received(puback(got.packet_id))
    assert await left(parts) == 0
    assert [each.record["statusCode"] for each in await parts.mailbox.feedback()] == ["Success"]


async def test_messages_wait_for_the_subscription(parts: Parts) -> None:
    connection, wire = await listening(parts)
    await parts.mailbox.send("a", mail("one"))
    await nothing_arrives(wire)
    await subscribe(parts, connection, wire, MAIL)
    assert [got.body for got in await arrives(wire)] == [b"one"]


async def test_messages_wait_for_the_device_and_come_in_order(parts: Parts) -> None:
    connection, wire = await listening(parts, "a", MAIL, clean_session=False)
    connection.connection_lost(None)
    for number in range(5):
        await parts.mailbox.send("a", mail(f"{number}"))
    connection, wire = parts.dial()
    connection.data_received(parts.hello("a"))
    assert [got.body for got in await arrives(wire, 5)] == [b"0", b"1", b"2", b"3", b"4"]


async def test_what_was_not_acknowledged_comes_again_marked_with_the_same_packet_id(parts: Parts) -> None:
    connection, wire = await listening(parts, "a", MAIL, clean_session=False)
    for body in ("one", "two"):
        await parts.mailbox.send("a", mail(body))
    first = await arrives(wire, 2)
    connection.data_received(puback(first[0].packet_id))
    assert await left(parts) == 1
    connection.connection_lost(None)
    await parts.mailbox.send("a", mail("three"))
    connection, wire = parts.dial()
    connection.data_received(parts.hello("a"))
    again = await arrives(wire, 2)
    assert [(got.body, got.duplicate) for got in again] == [(b"two", True), (b"three", False)]
    assert again[0].packet_id == first[1].packet_id
    assert again[1].packet_id != again[0].packet_id


async def test_a_takeover_delivers_again_what_the_old_connection_did_not_acknowledge(parts: Parts) -> None:
    _, wire = await listening(parts, "a", MAIL, clean_session=False)
    await parts.mailbox.send("a", mail("one"))
    await arrives(wire)
    connection, wire = parts.dial()
    connection.data_received(parts.hello("a"))
    (again,) = await arrives(wire)
    assert (again.body, again.duplicate) == (b"one", True)


async def test_a_clean_session_gets_it_as_new(parts: Parts) -> None:
    connection, wire = await listening(parts, "a", MAIL, clean_session=False)
    await parts.mailbox.send("a", mail("one"))
    await arrives(wire)
    connection.connection_lost(None)
    _, wire = await listening(parts, "a", MAIL)
    (again,) = await arrives(wire)
    assert (again.body, again.duplicate) == (b"one", False)


async def test_only_so_many_are_on_their_way_at_once(parts: Parts) -> None:
    connection, wire = await listening(parts, "a", MAIL)
    for number in range(IN_FLIGHT_MAX + 4):
        await parts.mailbox.send("a", mail(f"{number}"))
    first = await arrives(wire, IN_FLIGHT_MAX)
    await nothing_arrives(wire)
    for got in first:
        connection.data_received(puback(got.packet_id))
    rest = await arrives(wire, 4)
    assert [got.body.decode() for got in first + rest] == [f"{number}" for number in range(IN_FLIGHT_MAX + 4)]


async def test_qos_0_is_gone_when_it_is_sent(parts: Parts) -> None:
    _, wire = await listening(parts, "a", MAIL, qos=0)
    await parts.mailbox.send("a", mail("one"))
    (got,) = await arrives(wire)
    assert got.packet_id == 0
    assert await left(parts) == 0


async def test_an_acknowledgement_of_nothing_is_ignored(parts: Parts) -> None:
    connection, wire = await listening(parts, "a", MAIL)
    connection.data_received(puback(77))
    assert not wire.closed


async def test_a_device_cannot_read_anothers_mail(parts: Parts) -> None:
    connection, wire = await listening(parts)
    connection.data_received(codec.encode_subscribe(9, [("devices/b/messages/devicebound/#", 1)]))
    assert wire.written == codec.encode_suback(9, [codec.FILTER_REFUSED])
    say(connection, "devices/a/messages/devicebound/")
    assert wire.closed


async def test_an_expired_message_is_set_aside(parts: Parts) -> None:
    _, wire = await listening(parts, "a", MAIL)
    await parts.mailbox.send("b", mail("old", kind="x"), ttl_s=60)
    parts.clock.advance(61)
    assert await parts.mailbox.expire() == 1
    (row,) = await rows_of(parts.log, "set_aside")
    shown: dict[str, Any] = {name: row[name] for name in ("_device", "_type", "_body")}
    assert shown == {"_device": "b", "_type": "mail_expired", "_body": b"old"}
    await nothing_arrives(wire)


async def test_a_connection_that_does_not_read_gets_its_mail_when_it_does(parts: Parts, monkeypatch: Any) -> None:
    connection, wire = await listening(parts, "a", MAIL)
    full = [2_000_000]
    monkeypatch.setattr(wire, "get_write_buffer_size", lambda: full[0])
    connection.pause_writing()
    await parts.mailbox.send("a", mail("one"))
    await nothing_arrives(wire)
    full[0] = 0
    connection.resume_writing()
    await turn(lambda: bool(wire.written))
    assert [got.body for got in await arrives(wire)] == [b"one"]
