"""Topics that become events: what is in the row, and that nobody is answered before it is durable."""

from __future__ import annotations

import asyncio
import json

import pytest
from broker_parts import Benches, ack, publish
from gateway_parts import BrokenLog

from headrace.core.clock import SystemClock
from headrace.core.config import BrokerTemplateConfig
from headrace.wire.mqtt import codec
from headrace.wire.mqtt import properties5 as p
from headrace.wire.mqtt.packets5 import PUBACK, PUBCOMP, PUBREC, PUBREL

PLANT = BrokerTemplateConfig(filter="plant/{site}/{line}/{device}", site="{site}", properties={"source": "plant"})


@pytest.mark.parametrize("version", [4, 5])
async def test_a_matching_topic_becomes_an_event(benches: Benches, version: int) -> None:
    bench = await benches(templates=(PLANT,))
    client = await bench.client(version=version)
    for number in range(3):
        client.send(publish("plant/north/l1/m7", b'{"n": %d}' % number, qos=1, id=number + 1, version=version))
    for _ in range(3):
        assert (await client.expect(PUBACK)).reason == 0
    rows = await bench.rows()
    assert [row["_body"] for row in rows] == [b'{"n": %d}' % number for number in range(3)]
    row = rows[0]
    assert (row["_device"], row["_site"], row["_type"], row["_entity_id"]) == ("m7", "north", "telemetry", "m7")
    assert json.loads(row["_properties"]) == {"system": {}, "application": {"line": "l1", "source": "plant"}}
    assert len({row["_event_id"] for row in rows}) == 3


async def test_properties_of_the_message_come_along(benches: Benches) -> None:
    bench = await benches(templates=(PLANT,))
    client = await bench.client()
    given = {
        p.CONTENT_TYPE: "application/json",
        p.CORRELATION_DATA: b"c1",
        p.USER_PROPERTY: [("unit", "bar"), ("line", "x")],
    }
    client.send(publish("plant/n/l1/m", b"{}", qos=1, id=1, retain=True, properties=given))
    await client.expect(PUBACK)
    (row,) = await bench.rows()
    assert row["_content_type"] == "application/json"
    assert json.loads(row["_properties"]) == {
        "system": {"content-type": "application/json", "correlation-id": "c1"},
        "application": {"line": "x", "source": "plant", "unit": "bar", "mqtt-retain": "true"},
    }


async def test_an_event_is_a_message_too(benches: Benches) -> None:
    bench = await benches()
    reader = await bench.client("reader")
    await reader.subscribe(("telemetry/+", 1))
    writer = await bench.client("writer")
    writer.send(publish("telemetry/d1", b"x", qos=1, id=1) + publish("elsewhere/d1", b"y", qos=1, id=2))
    assert (await reader.expect(codec.PUBLISH)).payload == b"x"
    assert (await writer.expect(PUBACK)).reason == 0
    assert (await writer.expect(PUBACK)).reason == 0x10
    assert [row["_body"] for row in await bench.rows()] == [b"x"]


async def test_nobody_is_answered_while_the_log_refuses_and_order_is_kept(benches: Benches) -> None:
    events = BrokenLog(SystemClock())
    bench = await benches(events=events)
    events.refusals = 2
    client = await bench.client()
    client.send(publish("telemetry/d1", b"x", qos=1, id=1))
    client.send(publish("other", b"y", qos=1, id=2))
    await client.quiet()  # neither is answered, the second because answers keep their order
    assert [(await client.expect(PUBACK)).id for _ in range(2)] == [1, 2]
    assert events.appends >= 3
    assert len(await bench.rows()) == 1


async def test_an_answer_that_got_lost_stores_no_event_twice(benches: Benches) -> None:
    events = BrokenLog(SystemClock())
    bench = await benches(events=events)
    events.lost_answers = 1
    client = await bench.client()
    client.send(publish("telemetry/d1", b"x", qos=1, id=1))
    await client.expect(PUBACK)
    assert len(await bench.rows()) == 1


async def test_a_qos_2_message_is_an_event_before_pubrec_and_once(benches: Benches) -> None:
    bench = await benches()
    asked = {"clean": False, "properties": {p.SESSION_EXPIRY: 100}}
    client = await bench.client("c", **asked)
    client.send(publish("telemetry/d1", b"x", qos=2, id=7))
    await client.expect(PUBREC)
    assert len(await bench.rows()) == 1
    await bench.kill()
    await bench.start()
    client = await bench.client("c", **asked)
    client.send(publish("telemetry/d1", b"x", qos=2, id=7, dup=True))
    await client.expect(PUBREC)
    client.send(ack(PUBREL, 7))
    await client.expect(PUBCOMP)
    assert len(await bench.rows()) == 1


async def test_a_will_becomes_an_event(benches: Benches) -> None:
    bench = await benches()
    client = await bench.client("c", will=("telemetry/d1", b"gone", 0, False))
    await client.leave(properly=False)
    async with asyncio.timeout(5):
        while not (rows := await bench.rows()):  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(0)
    assert json.loads(rows[0]["_properties"])["application"] == {"mqtt-will": "true"}


async def test_a_stream_named_by_a_topic_must_be_open_to_devices(benches: Benches) -> None:
    template = BrokerTemplateConfig(filter="in/{device}/{stream}", stream="{stream}")
    bench = await benches(templates=(template,), more={"streams": ("vibration",)})
    client = await bench.client()
    for number, stream in enumerate(("telemetry", "vibration", "alerts", "unknown")):
        client.send(publish(f"in/d1/{stream}", stream.encode(), qos=1, id=number + 1))
        assert (await client.expect(PUBACK)).reason == 0
    assert [row["_body"] for row in await bench.rows()] == [b"telemetry"]
    assert [row["_body"] for row in await bench.rows("vibration")] == [b"vibration"]
    aside = await bench.rows("set_aside")
    assert [row["_body"] for row in aside] == [b"alerts", b"unknown"]
    assert json.loads(aside[0]["_properties"])["reason"] == "stream_not_allowed"
    assert await bench.rows("alerts") == []


async def test_a_template_may_ask_for_registered_devices(benches: Benches) -> None:
    template = BrokerTemplateConfig(filter="telemetry/{device}", registered=True)
    known = {"d1"}
    bench = await benches(templates=(template,), more={"registered": known.__contains__})
    client = await bench.client()
    client.send(publish("telemetry/d1", b"1", qos=1, id=1) + publish("telemetry/d2", b"2", qos=1, id=2))
    assert (await client.expect(PUBACK)).reason == 0
    assert (await client.expect(PUBACK)).reason == 0x87
    known.add("d2")
    client.send(publish("telemetry/d2", b"3", qos=1, id=3))
    assert (await client.expect(PUBACK)).reason == 0
    assert [row["_body"] for row in await bench.rows()] == [b"1", b"3"]


async def test_many_messages_make_few_batches(benches: Benches) -> None:
    events = BrokenLog(SystemClock())
    bench = await benches(events=events, receive_maximum=1000)
    client = await bench.client()
    client.send(b"".join(publish(f"telemetry/d{n % 10}", b"%d" % n, qos=1, id=n + 1) for n in range(900)))
    assert [(await client.expect(PUBACK)).id for _ in range(900)] == list(range(1, 901))
    rows = await bench.rows()
    assert sorted(int(row["_body"]) for row in rows) == list(range(900))
    for device in range(10):
        mine = [int(row["_body"]) for row in rows if row["_device"] == f"d{device}"]
        assert mine == sorted(mine)
    assert events.appends < 90
