"""Twins over MQTT, without sockets."""

from __future__ import annotations

import asyncio

import pytest
from gateway_parts import Parts, device, publish, rows_of
from hub_client import arrives, listening, messages, nothing_arrives, say

from headrace.core.errors import Unavailable
from headrace.devices.model import Module
from headrace.devices.twins import Twin
from headrace.gateway.egress import REQUESTS_MAX
from headrace.gateway.limits import Over
from headrace.wire.iothub import sas
from headrace.wire.iothub.topics import Identity, user_name
from headrace.wire.mqtt import codec

GET = "$iothub/twin/GET/?$rid="
REPORT = "$iothub/twin/PATCH/properties/reported/?$rid="
A = Identity("a")


@pytest.mark.parametrize("payload", [b"", b" "])
async def test_a_device_gets_its_twin_under_its_request_id(parts: Parts, payload: bytes) -> None:
    await parts.twins.update(A, {"tags": {"secret": 1}, "properties": {"desired": {"speed": 5}}})
    connection, wire = await listening(parts)
    say(connection, f"{GET}5f2-ü%", payload, 7)
    assert wire.written == b"\x40\x02\x00\x07"
    (answer,) = await arrives(wire)
    assert answer.topic == "$iothub/twin/res/200/?$rid=5f2-ü%"
    assert answer.json == {"desired": {"speed": 5, "$version": 2}, "reported": {"$version": 1}}


async def test_a_report_is_durable_and_answered_with_its_version(parts: Parts) -> None:
    connection, wire = await listening(parts)
    say(connection, f"{REPORT}1", b'{"t": 1}')
    (answer,) = await arrives(wire)
    assert (answer.topic, answer.body) == ("$iothub/twin/res/204/?$rid=1&$version=2", b"")
    assert (await parts.twins.get(A)).reported.values == {"t": 1}


async def test_what_is_asked_in_one_breath_is_answered_in_order(parts: Parts) -> None:
    connection, wire = await listening(parts)
    for number in range(20):
        say(connection, f"{REPORT}r{number}", b'{"n": %d}' % number)
    say(connection, f"{GET}last")
    answers = await arrives(wire, 21)
    assert [answer.topic for answer in answers[:-1]] == [
        f"$iothub/twin/res/204/?$rid=r{number}&$version={number + 2}" for number in range(20)
    ]
    assert answers[-1].json["reported"] == {"n": 19, "$version": 21}


@pytest.mark.parametrize(
    ("topic", "payload", "status", "code"),
    [
        (f"{REPORT}1", b"{", 400, 400004),
        (f"{REPORT}1", b"", 400, 400004),
        (f"{REPORT}1", b"[1]", 400, 400004),
        (f"{REPORT}1", b'{"a.b": 1}', 400, 400004),
        (f"{REPORT}1", b'{"\xff": 1}', 400, 400004),
        (f"{REPORT}1", b'{"a":' + b"[" * 500 + b"]" * 500 + b"}", 400, 400004),
        (f"{REPORT}1&$version=9", b'{"a": 1}', 412, 412001),
        (f"{REPORT}1&$version=x", b'{"a": 1}', 400, 400004),
    ],
)
async def test_a_bad_request_is_answered_with_an_error_and_changes_nothing(
    topic: str, payload: bytes, status: int, code: int
) -> None:
    parts = Parts(message_bytes_max=100_000)
    connection, wire = await listening(parts)
    say(connection, topic, payload)
    (answer,) = await arrives(wire)
    assert answer.topic == f"$iothub/twin/res/{status}/?$rid=1"
    assert answer.json["errorCode"] == code
    assert answer.json["message"]
    assert await parts.twins.get(A) == Twin()
    assert not wire.closed


async def test_a_request_without_an_id_is_answered_too(parts: Parts) -> None:
    connection, wire = await listening(parts)
    say(connection, "$iothub/twin/GET/")
    assert (await arrives(wire))[0].topic == "$iothub/twin/res/400/?$rid="


async def test_a_store_that_is_away_is_answered_with_503(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: object) -> None:
        raise Unavailable("the disk is full")

    connection, wire = await listening(parts)
    monkeypatch.setattr(parts.docs, "get", away)
    say(connection, f"{GET}1")
    assert (await arrives(wire))[0].topic == "$iothub/twin/res/503/?$rid=1"


async def test_too_many_requests_at_once_are_answered_with_429(parts: Parts) -> None:
    connection, wire = await listening(parts)
    connection.data_received(
        b"".join(codec.encode_publish(f"{GET}{number}".encode(), b"") for number in range(REQUESTS_MAX + 5))
    )
    answers = await arrives(wire, REQUESTS_MAX + 5)
    assert [answer.topic.split("/")[3] for answer in answers].count("429") == 5


async def test_a_throttled_device_is_told_when_to_come_again(parts: Parts) -> None:
    over = {"twin_updates": Over("device_twin_updates_per_s", 5, 2.5)}
    parts.egress.throttle = lambda operation, device: over.get(operation)
    connection, wire = await listening(parts)
    say(connection, f"{REPORT}1", b"{}")
    say(connection, f"{GET}2")
    refused, answer = await arrives(wire, 2)
    assert refused.topic == "$iothub/twin/res/429/?$rid=1"
    assert refused.json["errorCode"] == 429001
    assert "[limits] device_twin_updates_per_s is 5; retry after 2.5 s" in refused.json["message"]
    assert answer.topic == "$iothub/twin/res/200/?$rid=2"


async def test_a_desired_change_is_pushed_to_a_subscriber_once(parts: Parts) -> None:
    _, wire = await listening(parts)
    await parts.twins.update(A, {"properties": {"desired": {"speed": 5, "old": None}}})
    (pushed,) = await arrives(wire)
    assert pushed.topic == "$iothub/twin/PATCH/properties/desired/?$version=2"
    assert pushed.json == {"speed": 5, "old": None, "$version": 2}
    assert pushed.packet_id == 0
    await parts.twins.update(Identity("b"), {"properties": {"desired": {"speed": 6}}})
    await nothing_arrives(wire)


async def test_who_is_not_subscribed_hears_of_no_change(parts: Parts) -> None:
    _, wire = await listening(parts, "a", "$iothub/twin/res/#")
    await parts.twins.update(A, {"properties": {"desired": {"speed": 5}}})
    await nothing_arrives(wire)


async def test_a_connection_that_does_not_read_is_pushed_no_more(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    _, wire = await listening(parts)
    monkeypatch.setattr(wire, "get_write_buffer_size", lambda: 2_000_000)
    await parts.twins.update(A, {"properties": {"desired": {"speed": 5}}})
    await nothing_arrives(wire)


async def test_telemetry_and_twin_requests_in_one_read_each_go_their_way(parts: Parts) -> None:
    connection, wire = await listening(parts)
    connection.data_received(
        publish("a", body=b"1", number=1)
        + codec.encode_publish(f"{GET}7".encode(), b"", packet_id=2)
        + publish("a", body=b"2", number=3)
    )
    assert wire.written == b"\x40\x02\x00\x02"
    assert (await arrives(wire))[0].topic == "$iothub/twin/res/200/?$rid=7"
    await parts.settle()
    assert [row["_body"] for row in await rows_of(parts.log)] == [b"1", b"2"]
    assert wire.written == b"\x40\x02\x00\x01\x40\x02\x00\x03"


@pytest.mark.parametrize("topic", ["$iothub/twin/res/200/?$rid=1", "$iothub/else", "$iothub/twin/GETX/?$rid=1"])
async def test_other_topics_of_the_services_close_the_connection(parts: Parts, topic: str) -> None:
    connection, wire = await listening(parts)
    say(connection, topic)
    assert wire.closed
    assert parts.refused() == {"forbidden_topic": 1}


async def test_a_module_has_a_twin_of_its_own(parts: Parts) -> None:
    key = "bW9kdWxla2V5bW9kdWxla2V5bW9kdWxla2V5bW9kdWw="
    parts.devices.modules["a/m"] = Module(device="a", id="m", primary_key=key, generation_id="g", created=0)
    identity = Identity("a", "m")
    token = sas.build(f"hub/{identity.path}", key, expires_s=parts.clock.now() // 10_000_000 + 60).encode()
    connection, wire = await listening(parts, "a/m", username=user_name("hub", identity), password=token)
    say(connection, f"{REPORT}1", b'{"t": 1}')
    await arrives(wire)
    assert (await parts.twins.get(identity)).reported.values == {"t": 1}
    assert await parts.twins.get(A) == Twin()
    await parts.twins.update(A, {"properties": {"desired": {"speed": 5}}})
    await nothing_arrives(wire)
    parts.devices.change("a", device("a", status="disabled"))
    assert wire.closed


async def test_a_deleted_module_loses_its_connection(parts: Parts) -> None:
    key = "bW9kdWxla2V5bW9kdWxla2V5bW9kdWxla2V5bW9kdWw="
    parts.devices.modules["a/m"] = Module(device="a", id="m", primary_key=key, generation_id="g", created=0)
    token = sas.build("hub/devices/a/modules/m", key, expires_s=parts.clock.now() // 10_000_000 + 60).encode()
    _, wire = await listening(parts, "a/m", username=user_name("hub", Identity("a", "m")), password=token)
    parts.door.module_changed("a/m", None)
    assert wire.closed


async def test_the_model_that_a_device_names_is_in_its_twin(parts: Parts) -> None:
    name = "hub/a/?api-version=2020-09-30&DeviceClientType=x&model-id=dtmi%3Aacme%3Apress%3B1"
    parts.connected("a", username=name)
    for _ in range(50):
        await asyncio.sleep(0)
    twin = await parts.twins.get(A)
    assert (twin.model_id, twin.version) == ("dtmi:acme:press;1", 1)


async def test_an_answer_finds_no_connection_that_left(parts: Parts) -> None:
    connection, wire = await listening(parts)
    say(connection, f"{GET}1")
    connection.connection_lost(None)
    for _ in range(50):
        await asyncio.sleep(0)
    assert messages(wire) == []
    assert parts.egress.lines == {}
