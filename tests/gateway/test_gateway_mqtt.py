"""One MQTT connection at the hub, without sockets: who gets in, what may be sent, what ends it."""

from __future__ import annotations

import asyncio

import pytest
from gateway_parts import KEY, OTHER_KEY, Parts, device, properties_of, publish, rows_of, sorted_by_offset

from headrace.core.identity import message_event_id
from headrace.wire.iothub import sas
from headrace.wire.mqtt import codec
from headrace.wire.mqtt.codec import Will

METHODS = "$iothub/methods/POST/#"


async def answer_to(parts: Parts, hello: bytes) -> tuple[int, bool]:
    """(return code, whether the connection was closed)."""
    connection, wire = parts.dial()
    connection.data_received(hello)
    await asyncio.wait_for(wire.answered.wait(), 5)
    assert wire.written[:2] == b"\x20\x02"
    return wire.written[3], wire.closed


async def test_a_device_with_its_key_gets_in(parts: Parts) -> None:
    assert await answer_to(parts, parts.hello("a")) == (0, False)
    assert await answer_to(parts, parts.hello("a", password=parts.token("a", OTHER_KEY))) == (0, False)


@pytest.mark.parametrize(
    ("id", "changes", "code", "reason"),
    [
        ("nobody", {}, 5, "unknown_device"),
        ("off", {}, 5, "disabled_device"),
        ("a", {"username": "otherhub/a"}, 5, "host"),
        ("a", {"username": "hub/b"}, 5, "identity_mismatch"),
        ("a", {"username": "hub"}, 4, "user_name"),
        ("a", {"username": None, "password": None}, 4, "user_name"),
        ("a", {"password": b"secret"}, 4, "token_malformed"),
        ("a", {"password": b"\xff\xfe"}, 4, "token_malformed"),
        ("", {"username": "hub/a", "clean_session": True}, 2, "client_id"),
        ("a", {"will": Will(b"devices/b/messages/events/", b"", 0, False)}, 5, "will"),
    ],
)
async def test_a_stranger_is_refused_with_a_code_and_counted(
    parts: Parts, id: str, changes: dict[str, object], code: int, reason: str
) -> None:
    assert await answer_to(parts, parts.hello(id, **changes)) == (code, True)
    assert parts.refused() == {reason: 1}


async def test_a_wrong_key_an_old_token_and_a_token_for_another_device_are_refused(parts: Parts) -> None:
    wrong = sas.build("hub/devices/a", "eA==", expires_s=4_000_000_000).encode()
    assert await answer_to(parts, parts.hello("a", password=wrong)) == (5, True)
    assert await answer_to(parts, parts.hello("a", password=parts.token("a", ttl_s=-400))) == (5, True)
    assert await answer_to(parts, parts.hello("a", password=parts.token("b"))) == (5, True)
    assert parts.refused() == {"token_signature": 1, "token_expired": 1, "token_resource": 1}


async def test_a_device_made_a_moment_ago_gets_in_with_all_it_sent_behind_its_connect(parts: Parts) -> None:
    parts.devices.made.append(device("new"))
    connection, wire = parts.dial()
    connection.data_received(parts.hello("new") + publish("new", body=b"1"))
    assert wire.paused
    connection.data_received(publish("new", body=b"2", number=2))
    await asyncio.wait_for(wire.answered.wait(), 5)
    assert wire.written == codec.encode_connack(0)
    assert not wire.paused
    await parts.settle()
    assert [row["_body"] for row in await rows_of(parts.log)] == [b"1", b"2"]
    assert parts.refused() == {}


async def test_a_device_that_left_while_it_was_looked_for_is_forgotten(parts: Parts) -> None:
    parts.devices.made.append(device("new"))
    connection, wire = parts.dial()
    connection.data_received(parts.hello("new"))
    connection.connection_lost(None)
    for _ in range(10):
        await asyncio.sleep(0)
    assert wire.written == b""
    assert "new" not in parts.door.by_client


async def test_a_clock_that_is_a_little_wrong_is_forgiven(parts: Parts) -> None:
    assert await answer_to(parts, parts.hello("a", password=parts.token("a", ttl_s=-200))) == (0, False)


async def test_another_version_of_mqtt_is_answered_with_code_1(parts: Parts) -> None:
    assert await answer_to(parts, b"\x10\x0c\x00\x04MQTT\x05\x02\x00\x3c\x00\x00") == (1, True)


async def test_above_the_limit_of_connections_the_answer_is_to_come_later() -> None:
    parts = Parts(connections_max=1)
    parts.connected("a")
    assert await answer_to(parts, parts.hello("b")) == (3, True)


async def test_messages_become_events_of_the_device(parts: Parts) -> None:
    connection, wire = parts.connected("a")
    connection.data_received(
        publish("a", "%24.mid=m%2F1&%24.ct=application%2Fjson&type=alarm&x=a%20b", b'{"t":1}', 1)
        + publish("a", "", b"\xff not json", 2)
    )
    assert wire.written == b""
    await parts.settle()
    first, second = sorted_by_offset(await rows_of(parts.log))
    assert first["_event_id"] == message_event_id("a", None, "m/1")
    assert (first["_device"], first["_module"], first["_entity_id"]) == ("a", None, "entity-of-a")
    assert (first["_site"], first["_type"], first["_content_type"]) == ("north", "alarm", "application/json")
    assert (first["_body"], second["_body"]) == (b'{"t":1}', b"\xff not json")
    assert properties_of(first) == {
        "system": {"message-id": "m/1", "content-type": "application/json"},
        "application": {"type": "alarm", "x": "a b"},
    }
    assert (second["_type"], second["_properties"], second["_content_type"]) == ("telemetry", None, None)
    assert not second["_event_id"].startswith("m")


async def test_acknowledgements_come_in_one_write_and_only_when_durable(parts: Parts) -> None:
    connection, wire = parts.connected("a")
    connection.data_received(publish("a", number=1) + publish("a", number=2))
    connection.data_received(codec.encode_publish(b"devices/a/messages/events", b"qos 0") + publish("a", number=3))
    assert wire.written == b""
    await parts.settle()
    assert wire.written == b"\x40\x02\x00\x01\x40\x02\x00\x02\x40\x02\x00\x03"
    assert len(await rows_of(parts.log)) == 4


async def test_what_a_device_sends_before_its_connack_is_taken(parts: Parts) -> None:
    connection, _ = parts.dial()
    connection.data_received(parts.hello("a") + publish("a"))
    await parts.settle()
    assert len(await rows_of(parts.log)) == 1


async def test_what_a_refused_device_sends_behind_its_connect_is_dropped(parts: Parts) -> None:
    connection, _ = parts.dial()
    connection.data_received(parts.hello("a", password=b"wrong") + publish("a"))
    await parts.settle()
    assert await rows_of(parts.log) == []


async def test_a_device_id_may_hold_signs_that_topics_may_not(parts: Parts) -> None:
    connection, wire = parts.connected("p+#s")
    connection.data_received(publish("p+#s", "k=v"))
    await parts.settle()
    assert wire.written == b"\x40\x02\x00\x01"


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (publish("b", body=b"x"), "forbidden_topic"),
        (codec.encode_publish(b"$iothub/anything", b"x", packet_id=1), "forbidden_topic"),
        (codec.encode_publish(b"x\0devices/a/messages/events/", b"x", packet_id=1), "forbidden_topic"),
        (publish("a", body=b"x" * 1001), "too_large"),
        (publish("a", "k=" + "v" * 200, b"x" * 900), "too_large"),
        (codec.encode_publish(b"devices/a/messages/events/#", b"x", packet_id=1), "malformed"),
        (codec.encode_publish(b"devices/a/messages/events/\xff", b"x", packet_id=1), "malformed"),
        (publish("a", body=b"x" * 100_000), "too_large"),
    ],
)
async def test_a_message_that_may_not_pass_closes_the_connection_and_is_set_aside(
    parts: Parts, packet: bytes, reason: str
) -> None:
    connection, wire = parts.connected("a")
    connection.data_received(publish("a", body=b"good") + packet + publish("a", body=b"behind"))
    assert wire.closed
    await parts.settle()
    assert [row["_body"] for row in await rows_of(parts.log)] == [b"good"]
    (row,) = await rows_of(parts.log, "set_aside")
    assert (row["_type"], row["_device"]) == (reason, "a")
    assert properties_of(row)["stage"] == "gateway"
    assert properties_of(row)["reason"] == reason
    assert row["_body"][:1] == b"x"
    assert len(row["_body"]) <= 65_536
    assert parts.refused() == {reason: 1}


async def test_size_is_counted_decoded(parts: Parts) -> None:
    connection, wire = parts.connected("a")
    connection.data_received(publish("a", "k=" + "%20" * 99, b"x" * 900))  # 297 bytes on the wire, 100 by the rule
    assert not wire.closed
    await parts.settle()
    assert len(await rows_of(parts.log)) == 1


async def test_a_large_message_in_small_pieces_is_measured_as_a_whole(parts: Parts) -> None:
    connection, wire = parts.connected("a")
    packet = publish("a", body=b"x" * 1500)
    for at in range(0, len(packet), 100):
        connection.data_received(packet[at : at + 100])
    assert wire.closed
    assert parts.refused() == {"too_large": 1}


@pytest.mark.parametrize(
    ("packet", "reason"),
    [(b"\x34\x05\x00\x01t\x00\x01", "qos2"), (b"\x36\x05\x00\x01t\x00\x01", "malformed"), (b"\x00\x00", "malformed")],
)
async def test_a_broken_protocol_closes_the_connection(parts: Parts, packet: bytes, reason: str) -> None:
    connection, wire = parts.connected("a")
    connection.data_received(packet)
    assert wire.closed
    assert parts.refused() == {reason: 1}


async def test_a_retained_message_is_an_ordinary_one_with_a_property(parts: Parts) -> None:
    connection, _ = parts.connected("a")
    connection.data_received(codec.encode_publish(b"devices/a/messages/events/k=v", b"x", packet_id=1, retain=True))
    await parts.settle()
    (row,) = await rows_of(parts.log)
    assert properties_of(row)["application"] == {"k": "v", "mqtt-retain": "true"}


async def test_a_second_connection_of_a_device_closes_the_first(parts: Parts) -> None:
    _, first = parts.connected("a")
    _, second = parts.connected("a")
    assert first.aborted
    assert not second.closed


async def test_the_late_end_of_a_displaced_connection_changes_nothing(parts: Parts) -> None:
    first, _ = parts.connected("a")
    second, _ = parts.connected("a")
    first.connection_lost(None)
    assert parts.door.by_client["a"] is second


async def test_disabling_deleting_or_recreating_a_device_closes_its_connection(parts: Parts) -> None:
    for changed in (device("a", status="disabled"), None, device("a", generation_id="g2")):
        parts.devices.change("a", device("a"))
        _, wire = parts.connected("a")
        parts.devices.change("a", changed)
        assert wire.closed


async def test_a_device_that_moves_to_another_site_stays_connected(parts: Parts) -> None:
    connection, wire = parts.connected("a")
    parts.devices.change("a", device("a", site="south"))
    connection.data_received(publish("a"))
    await parts.settle()
    (row,) = await rows_of(parts.log)
    assert row["_site"] == "south"
    assert not wire.closed


async def test_a_silent_device_is_closed_after_one_and_a_half_keep_alives(parts: Parts) -> None:
    connection, wire = parts.connected("a", keep_alive_s=60)
    parts.clock.advance(80)
    connection.data_received(codec.PING_REQUEST)
    assert wire.written == codec.PING_RESPONSE
    parts.clock.advance(89)
    parts.door.sweep_once()
    assert not wire.closed
    parts.clock.advance(2)
    parts.door.sweep_once()
    assert wire.closed
    assert parts.refused() == {"keep_alive": 1}


async def test_who_never_says_connect_is_closed(parts: Parts) -> None:
    _, wire = parts.dial()
    parts.clock.advance(11)
    parts.door.sweep_once()
    assert wire.closed
    assert parts.refused() == {"connect_timeout": 1}


async def test_a_connection_ends_with_its_token(parts: Parts) -> None:
    connection, wire = parts.connected("a", password=parts.token("a", ttl_s=100), keep_alive_s=0)
    parts.clock.advance(399)
    parts.door.sweep_once()
    assert not wire.closed
    parts.clock.advance(2)
    parts.door.sweep_once()
    assert wire.closed
    assert connection.reason == "token_expired"


async def test_a_peer_that_does_not_take_our_goodbye_is_cut_off(parts: Parts) -> None:
    connection, wire = parts.connected("a")
    connection.close("test")
    parts.clock.advance(6)
    parts.door.sweep_once()
    assert wire.aborted


async def test_a_will_is_sent_when_the_connection_is_lost(parts: Parts) -> None:
    connection, _ = parts.connected("a", will=Will(b"devices/a/messages/events/k=v", b"gone", 1, False))
    connection.connection_lost(ConnectionResetError())
    await parts.settle()
    (row,) = await rows_of(parts.log)
    assert row["_body"] == b"gone"
    assert properties_of(row)["application"] == {"k": "v", "iothub-MessageType": "Will"}


async def test_a_will_is_not_sent_after_a_clean_disconnect(parts: Parts) -> None:
    connection, wire = parts.connected("a", will=Will(b"devices/a/messages/events/", b"gone", 1, False))
    connection.data_received(codec.GOODBYE)
    connection.connection_lost(None)
    assert wire.closed
    await parts.settle()
    assert await rows_of(parts.log) == []


async def test_only_the_own_filters_are_granted_and_qos_2_becomes_1(parts: Parts) -> None:
    connection, wire = parts.connected("a", clean_session=True)
    connection.data_received(
        codec.encode_subscribe(7, [(METHODS, 2), ("#", 1), ("devices/a/messages/devicebound/#", 0)])
    )
    assert wire.written == b"\x90\x05\x00\x07\x01\x80\x00"
    assert parts.refused() == {"forbidden_filter": 1}


async def test_a_subscription_is_durable_before_its_suback(parts: Parts) -> None:
    connection, wire = parts.connected("a")
    connection.data_received(codec.encode_subscribe(7, [(METHODS, 1)]))
    assert wire.written == b""
    await asyncio.sleep(0)
    await parts.writer.flush()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert wire.written == b"\x90\x03\x00\x07\x01"
    document = await parts.docs.get("sessions", "a")
    assert document is not None
    assert document.body == {"filters": {METHODS: 1}}


async def test_a_session_is_present_again_and_a_clean_start_forgets_it(parts: Parts) -> None:
    connection, wire = parts.dial()
    connection.data_received(parts.hello("a") + codec.encode_subscribe(1, [(METHODS, 1)]))
    assert wire.written[:4] == b"\x20\x02\x00\x00"
    again, wire = parts.dial()
    again.data_received(parts.hello("a"))
    assert wire.written[:4] == b"\x20\x02\x01\x00"
    assert again.filters == {METHODS: 1}
    clean, wire = parts.dial()
    clean.data_received(parts.hello("a", clean_session=True))
    assert wire.written[:4] == b"\x20\x02\x00\x00"
    assert clean.filters == {}
    await parts.writer.flush()
    assert await parts.docs.get("sessions", "a") is None


async def test_an_unsubscribed_filter_is_forgotten(parts: Parts) -> None:
    connection, _ = parts.connected("a")
    connection.data_received(codec.encode_subscribe(1, [(METHODS, 1)]) + codec.encode_unsubscribe(2, [METHODS]))
    await parts.writer.flush()
    document = await parts.docs.get("sessions", "a")
    assert document is not None
    assert document.body == {"filters": {}}


async def test_presence_tells_who_is_connected_and_why_not(parts: Parts) -> None:
    connection, _ = parts.connected("a")
    await parts.writer.flush()
    document = await parts.docs.get("presence", "a")
    assert document is not None
    assert (document.body["connected"], document.body["address"]) == (True, "10.0.0.9")
    connection.data_received(codec.GOODBYE)
    connection.connection_lost(None)
    await parts.writer.flush()
    document = await parts.docs.get("presence", "a")
    assert document is not None
    assert (document.body["connected"], document.body["reason"]) == (False, "disconnected")


async def test_devices_left_over_from_a_killed_gateway_are_not_connected(parts: Parts) -> None:
    left = {"device": "a", "module": None, "connected": True, "since": 1, "reason": "", "address": "x"}
    await parts.docs.put_many("presence", {"a": left, "b": {**left, "connected": False, "reason": "disconnected"}})
    await parts.presence.open()
    bodies = [document.body for document in await parts.docs.query("presence")]
    assert [(body["connected"], body["reason"]) for body in bodies] == [
        (False, "gateway_restarted"),
        (False, "disconnected"),
    ]


async def test_a_slow_reader_is_not_read_from(parts: Parts) -> None:
    connection, wire = parts.connected("a")
    connection.pause_writing()
    assert wire.paused
    connection.resume_writing()
    assert not wire.paused


def test_the_key_is_not_in_what_a_device_prints() -> None:
    assert KEY not in repr(device("a"))
