"""Messages that ask for a stream of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from gateway_parts import HOST, KEY, Hub, Parts, properties_of, publish, rows_of

from headrace.core.clock import TICKS_PER_S
from headrace.core.errors import UserError
from headrace.gateway.client import Message
from headrace.gateway.streams import DeviceStreams
from headrace.wire.iothub import sas


@pytest.fixture
def parts() -> Parts:
    made = Parts()
    made.ingress.streams = DeviceStreams(["laboratory"])
    return made


@pytest.fixture
async def open_hub(tmp_path: Path) -> AsyncIterator[Hub]:
    made = Hub(tmp_path)
    made.gateway.ingress.streams = DeviceStreams(["laboratory"])
    await made.start()
    yield made
    await made.stop()


async def test_a_message_goes_to_the_stream_it_asks_for(parts: Parts) -> None:
    connection, wire = parts.connected("a")
    bags = [
        "$.mid=1&stream=laboratory",
        "$.mid=2",
        "stream=telemetry",
        "$.mid=3&x=1&stream=laboratory",
        "%73tream=laboratory",
    ]
    for number, bag in enumerate(bags):
        connection.data_received(publish("a", bag, body=b"%d" % number, number=number + 1))
    await parts.settle()
    assert [row["_body"] for row in await rows_of(parts.log, "laboratory")] == [b"0", b"3", b"4"]
    assert [row["_body"] for row in await rows_of(parts.log)] == [b"1", b"2"]
    assert wire.written == b"".join(b"\x40\x02\x00%c" % number for number in range(1, 6))
    assert await rows_of(parts.log, "set_aside") == []


async def test_a_stream_that_is_not_open_to_devices_is_refused_acknowledged_and_set_aside(parts: Parts) -> None:
    connection, wire = parts.connected("a")
    connection.data_received(publish("a", "stream=laboratry", body=b"lost?", number=7) + publish("a", number=8))
    await parts.settle()
    (row,) = await rows_of(parts.log, "set_aside")
    assert (row["_device"], row["_type"], row["_body"]) == ("a", "stream_not_allowed", b"lost?")
    detail = "devices may not send to stream 'laboratry': did you mean 'laboratory'?"
    assert properties_of(row) == {"stage": "gateway", "reason": "stream_not_allowed", "detail": detail}
    assert len(await rows_of(parts.log)) == 1
    assert wire.written == b"\x40\x02\x00\x07\x40\x02\x00\x08"
    assert not wire.closed
    assert parts.refused() == {"stream_not_allowed": 1.0}
    assert parts.ingress.pending_rows == 0


async def test_nothing_is_acknowledged_before_every_stream_of_its_batch_is_durable(parts: Parts) -> None:
    connection, wire = parts.connected("a")
    connection.data_received(publish("a", "stream=laboratory", number=1) + publish("a", "stream=nowhere", number=2))
    seen: list[tuple[str, bytes]] = []
    append = parts.log.append

    async def watched(stream: str, *given: object, **named: object) -> object:
        seen.append((stream, wire.written))
        return await append(stream, *given, **named)  # type: ignore[arg-type]

    parts.log.append = watched  # type: ignore[method-assign,assignment]
    await parts.settle()
    assert seen == [("laboratory", b""), ("set_aside", b"")]
    assert wire.written == b"\x40\x02\x00\x01\x40\x02\x00\x02"


async def test_over_mqtt_a_message_sent_again_is_one_event_of_its_stream(open_hub: Hub) -> None:
    client = await open_hub.client("dev-0")
    message = Message(b"{}", "m-1", properties={"stream": "laboratory"})
    await client.publish_many([message, message])
    await client.drain()
    assert len(await rows_of(open_hub.log, "laboratory")) == 1
    assert await rows_of(open_hub.log) == []


async def test_over_https_a_closed_stream_is_answered_with_what_to_do(open_hub: Hub) -> None:
    token = sas.build(f"{HOST}/devices/dev-0", KEY, expires_s=open_hub.clock.now() // TICKS_PER_S + 60)
    async with httpx.AsyncClient(verify=open_hub.authority.client_context()) as http:
        url = f"https://{HOST}:{open_hub.ports.https_port}/devices/dev-0/messages/events"
        headers = {"authorization": token, "iothub-app-stream": "cellar"}
        answer = await http.post(url, content=b"{}", headers=headers)
        allowed = await http.post(url, content=b"{}", headers=headers | {"iothub-app-stream": "laboratory"})
    assert answer.status_code == 400
    assert answer.json() == {
        "code": "gateway.stream_not_allowed",
        "message": "devices may not send to stream 'cellar'",
        "hint": "set `devices = true` in [streams.cellar] of headrace.toml",
    }
    assert allowed.status_code == 204
    assert len(await rows_of(open_hub.log, "laboratory")) == 1


def test_a_stream_of_the_platforms_own_cannot_be_opened_to_devices() -> None:
    with pytest.raises(UserError, match="cannot send to 'set_aside'"):
        DeviceStreams(["laboratory", "set_aside"])
