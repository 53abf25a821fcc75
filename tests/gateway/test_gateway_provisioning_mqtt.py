"""Devices that register over the hub's MQTT port."""

import asyncio
import re
from collections.abc import AsyncIterator

import pytest
from hub_client import messages, nothing_arrives, turn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from provisioned import KEY, OTHER_KEY
from provisioning_parts import Place, answer_to, ask

from headrace.wire.iothub.provisioning import derive_key
from headrace.wire.mqtt import codec

REGISTER = "$dps/registrations/PUT/iotdps-register/?$rid={}"
STATUS = "$dps/registrations/GET/iotdps-get-operationstatus/?$rid={}&operationId={}"


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    made = Place()
    await made.open()
    yield made
    await made.close()


async def test_a_device_registers_and_asks_how_it_ended(place: Place) -> None:
    await place.enrol("line", "group", payload={"interval": 5})
    taker, wire = await place.entered("press-7", password=place.proof("press-7", derive_key(KEY, "press-7")).encode())
    body = b'{"registrationId": "press-7", "payload": null}'
    first = await answer_to(taker, wire, REGISTER.format("r-1"), body)
    assert first.topic == "$dps/registrations/res/202/?$rid=r-1&retry-after=3"
    assert set(first.json) == {"operationId", "status"}
    assert first.json["status"] == "assigning"
    done = await answer_to(taker, wire, STATUS.format("r-2", first.json["operationId"]))
    assert done.topic == "$dps/registrations/res/200/?$rid=r-2"
    state = done.json["registrationState"]
    assert (done.json["status"], done.json["operationId"]) == ("assigned", first.json["operationId"])
    assert (state["assignedHub"], state["deviceId"], state["registrationId"]) == ("hub", "press-7", "press-7")
    assert (state["status"], state["substatus"]) == ("assigned", "initialAssignment")
    assert state["payload"] == {"interval": 5}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{7}Z", state["createdDateTimeUtc"])
    assert state["etag"]
    device = await place.queries.get("press-7")
    assert device.primary_key == derive_key(KEY, "press-7")
    assert not any(connection.identity for connection in place.door.connections)


@pytest.mark.parametrize("qos", [0, 1])
async def test_answers_come_with_the_qos_asked_for_and_requests_are_acknowledged(place: Place, qos: int) -> None:
    await place.enrol("press-7")
    taker, wire = await place.entered("press-7", qos=qos)
    ask(taker, REGISTER.format(1), packet_id=0x0102)
    await turn(lambda: b"retry-after" in wire.written)
    assert wire.written.startswith(b"\x40\x02\x01\x02")
    wire.written = wire.written[4:]
    (got,) = messages(wire)
    assert bool(got.packet_id) == bool(qos)


async def test_a_registration_can_be_answered_at_once() -> None:
    place = Place(answer_at_once=True)
    await place.open()
    await place.enrol("press-7")
    taker, wire = await place.entered("press-7")
    got = await answer_to(taker, wire, REGISTER.format(1))
    assert (got.topic, got.json["status"]) == ("$dps/registrations/res/200/?$rid=1", "assigned")
    await place.close()


async def test_all_that_is_sent_behind_a_connect_is_done_in_order(place: Place) -> None:
    await place.enrol("press-7")
    connection, wire = place.dial()
    connection.data_received(
        place.knock("press-7")
        + codec.encode_subscribe(1, [("$dps/registrations/res/#", 1), ("devices/a/#", 1)])
        + codec.encode_publish(REGISTER.format(1).encode(), b"{}", packet_id=5)
        + codec.PING_REQUEST
    )
    await turn(lambda: b"res/202" in wire.written and codec.PING_RESPONSE in wire.written)
    assert wire.written.startswith(b"\x20\x02\x00\x00" + codec.encode_suback(1, [1, 0x80]))


async def test_strangers_wrong_keys_and_disabled_enrolments_are_not_authorised(place: Place) -> None:
    await place.enrol("press-7")
    await place.enrol("off", enabled=False)
    await place.enrol("line", "group")
    for id, key in (("nobody", KEY), ("press-7", derive_key(KEY, "press-7")), ("off", KEY), ("press-8", OTHER_KEY)):
        assert await place.refused_with(place.knock(id, password=place.proof(id, key).encode())) == 5
    assert await place.refused_with(place.knock("press-7", client_id="press-8")) == 5
    assert await place.refused_with(place.knock("press-7", password=None)) == 5
    assert (
        await place.refused_with(place.knock("press-7", username="0neOTHER/registrations/press-7/api-version=1")) == 5
    )
    refused = place.refused()
    assert (refused["provisioning_token"], refused["provisioning_disabled"]) == (4.0, 1.0)
    assert all(each._closing_at is not None for each in place.part.mqtt.connections)


async def test_the_policy_name_that_some_sdks_send_in_a_token_means_nothing(place: Place) -> None:
    await place.enrol("press-7")
    await place.entered("press-7", password=place.proof("press-7", policy="registration").encode())


async def test_a_device_called_registrations_is_still_a_device_of_the_hub(place: Place) -> None:
    connection, wire = place.dial()
    name = "hub/registrations/x/?api-version=2021-04-12"
    connection.data_received(place.hello("registrations/x", username=name))
    await turn(lambda: wire.closed)
    assert place.refused() == {"unknown_device": 1.0}


async def test_an_enrolment_that_was_disabled_meanwhile_registers_nobody(place: Place) -> None:
    await place.enrol("press-7")
    taker, wire = await place.entered("press-7")
    await place.enrolments.set_enabled("individual", "press-7", False)
    got = await answer_to(taker, wire, REGISTER.format(1))
    assert got.topic == "$dps/registrations/res/403/?$rid=1"
    await place.enrolments.delete("individual", "press-7")
    got = await answer_to(taker, wire, REGISTER.format(2))
    assert got.topic == "$dps/registrations/res/404/?$rid=2"
    assert set(got.json) == {"errorCode", "trackingId", "message", "timestampUtc"}
    assert await place.queries.find("press-7") is None


@pytest.mark.parametrize(
    ("topic", "body", "status"),
    [
        (REGISTER.format(1), b"no JSON", 400),
        (REGISTER.format(1), b"[]", 400),
        (REGISTER.format(1), b'{"registrationId": "press-8"}', 400),
        (REGISTER.format(1), b'{"registrationId": 5}', 400),
        (STATUS.format(1, "4.unknown"), b" ", 404),
        ("$dps/registrations/GET/iotdps-get-operationstatus/?$rid=1", b" ", 400),
    ],
)
async def test_a_wrong_request_is_told_why(place: Place, topic: str, body: bytes, status: int) -> None:
    await place.enrol("press-7")
    taker, wire = await place.entered("press-7")
    got = await answer_to(taker, wire, topic, body)
    assert got.topic == f"$dps/registrations/res/{status}/?$rid=1"
    assert got.json["errorCode"] // 1000 == status
    assert not wire.closed


@pytest.mark.parametrize(
    "topic", ["devices/press-7/messages/events/", "$dps/registrations/PUT/iotdps-register/", "$dps/x/?$rid=1", "$dps/#"]
)
async def test_a_topic_that_is_not_the_services_ends_the_connection(place: Place, topic: str) -> None:
    await place.enrol("press-7")
    taker, wire = await place.entered("press-7")
    ask(taker, topic)
    await turn(lambda: wire.closed)
    assert messages(wire) == []


async def test_who_asks_too_often_is_told_when_to_ask_again(place: Place) -> None:
    await place.enrol("press-7")
    taker, wire = await place.entered("press-7")
    operation = (await answer_to(taker, wire, REGISTER.format(0))).json["operationId"]
    for number in range(5):
        got = await answer_to(taker, wire, STATUS.format(number, operation))
        assert "/res/200/" in got.topic
    got = await answer_to(taker, wire, STATUS.format(9, operation))
    assert got.topic == "$dps/registrations/res/429/?$rid=9&retry-after=3"
    place.clock.advance(10)
    assert "/res/200/" in (await answer_to(taker, wire, STATUS.format(10, operation))).topic


async def test_more_registrations_a_second_than_allowed_are_told_so() -> None:
    place = Place(registrations_per_s_max=1)
    await place.open()
    await place.enrol("press-7")
    taker, wire = await place.entered("press-7")
    topics = [(await answer_to(taker, wire, REGISTER.format(number))).topic for number in range(6)]
    assert "/res/202/" in topics[0]
    assert topics[-1] == "$dps/registrations/res/429/?$rid=5&retry-after=3"
    await place.close()


async def test_another_devices_operation_is_nobodys(place: Place) -> None:
    await place.enrol("a")
    await place.enrol("b")
    one, wire = await place.entered("a")
    operation = (await answer_to(one, wire, REGISTER.format(1))).json["operationId"]
    other, wire = await place.entered("b")
    assert "/res/404/" in (await answer_to(other, wire, STATUS.format(2, operation))).topic


async def test_who_does_not_listen_is_answered_nothing(place: Place) -> None:
    await place.enrol("press-7")
    connection, wire = place.dial()
    connection.data_received(place.knock("press-7"))
    await turn(lambda: len(wire.written) == 4)
    ask(wire.protocol, REGISTER.format(1), packet_id=0)
    wire.written = b""
    await nothing_arrives(wire)
    assert await place.queries.find("press-7") is not None


async def test_a_silent_connection_is_closed_and_a_flood_too(place: Place) -> None:
    await place.enrol("press-7")
    taker, wire = await place.entered("press-7")
    place.clock.advance(89)
    place.door.sweep_once()
    assert not wire.closed
    place.clock.advance(2)
    place.door.sweep_once()
    assert wire.closed
    taker, wire = await place.entered("press-7")
    taker.data_received(b"".join(codec.encode_publish(REGISTER.format(n).encode(), b"{}") for n in range(60)))
    assert wire.closed


async def test_connections_above_the_limit_are_told_to_come_later() -> None:
    place = Place(connections_max=1)
    await place.open()
    await place.enrol("press-7")
    _, wire = await place.entered("press-7")
    assert await place.refused_with(place.knock("press-7")) == 3
    wire.protocol.connection_lost(None)
    place.part.mqtt.connections.clear()
    await place.entered("press-7")
    await place.close()


async def test_a_goodbye_and_a_lost_connection_leave_nothing_behind(place: Place) -> None:
    await place.enrol("press-7")
    taker, wire = await place.entered("press-7")
    taker.data_received(codec.GOODBYE)
    assert wire.closed
    taker.connection_lost(None)
    assert not place.part.mqtt.connections


TOPICS = st.one_of(
    st.text(max_size=60),
    st.builds(
        "$dps/registrations/{}/?$rid={}{}".format,
        st.sampled_from(["PUT/iotdps-register", "GET/iotdps-get-operationstatus", "x"]),
        st.text(max_size=20),
        st.sampled_from(["", "&operationId=", "&operationId=%ff%fe", "&$rid=2", "&=&&"]),
    ),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(topic=TOPICS, body=st.one_of(st.binary(max_size=60), st.just(b"[" * 3000), st.just(b'{"payload": 1e999}')))
def test_whatever_a_device_sends_it_is_answered_or_closed(topic: str, body: bytes) -> None:
    async def one() -> None:
        place = Place()
        await place.open()
        await place.enrol("a")
        taker, wire = await place.entered("a")
        encoded = topic.encode("utf-8", "surrogatepass")
        taker.data_received(codec.encode_publish(encoded, body, packet_id=1))
        await turn(lambda: wire.closed or b"/res/" in wire.written)
        assert "provisioning_failed" not in place.refused()
        assert b"/res/5" not in wire.written
        await place.close()

    asyncio.run(one())


@settings(max_examples=150, deadline=None)
@given(name=st.text(max_size=60), token=st.binary(max_size=80))
def test_whatever_a_stranger_says_it_is_refused(name: str, token: bytes) -> None:
    async def one() -> None:
        place = Place()
        await place.open()
        legal = name.replace("\0", "").encode("utf-8", "ignore").decode()
        hello = codec.Connect("a", f"{place.scope}/registrations/{legal}", token, True, 60, None)
        connection, wire = place.dial()
        connection.data_received(codec.encode_connect(hello))
        await turn(lambda: wire.closed)
        assert wire.written in (b"", *(bytes((0x20, 2, 0, code)) for code in (4, 5)))
        await place.close()

    asyncio.run(one())
