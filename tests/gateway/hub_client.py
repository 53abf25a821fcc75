"""What a test reads off a gateway's wire, and says as a device: MQTT packets of twins, methods and mail."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
from gateway_parts import Parts, Wire

from headrace.gateway.mqtt import MqttConnection
from headrace.wire.iothub.topics import DESIRED_FILTER, METHODS_FILTER, TWIN_ANSWERS_FILTER
from headrace.wire.mqtt import codec

ALL = (METHODS_FILTER, TWIN_ANSWERS_FILTER, DESIRED_FILTER)


class Got(NamedTuple):
    topic: str
    body: bytes
    packet_id: int
    duplicate: bool

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


def messages(wire: Wire) -> list[Got]:
    """What was published to the device since it was asked last; the rest of the wire is dropped."""
    frames: list[codec.Frame] = []
    codec.FrameParser(1_000_000).feed(wire.written, frames)
    wire.written = b""
    return [
        Got(topic.decode(), body, int.from_bytes(packet_id, "big"), bool(first & 8))
        for first, topic, packet_id, body in frames
        if first & 0xF0 == codec.PUBLISH
    ]


async def arrives(wire: Wire, count: int = 1) -> list[Got]:
    """The next messages, waited for."""
    found: list[Got] = []
    await turn(lambda: len(found) >= count or bool(found.extend(messages(wire))) or len(found) >= count)
    return found


async def turn(condition: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came")


async def nothing_arrives(wire: Wire) -> None:
    for _ in range(200):
        await asyncio.sleep(0)
    assert messages(wire) == []


async def listening(
    parts: Parts, id: str = "a", *filters: str, qos: int = 1, **hello: Any
) -> tuple[MqttConnection, Wire]:
    """A device that is in and subscribed (to all that is not mail, unless told)."""
    hello = {"clean_session": True, **hello}
    shared = parts.sessions.shared
    connection, wire = await parts.connected_soon(id, **hello) if shared else parts.connected(id, **hello)
    await subscribe(parts, connection, wire, *(filters or ALL), qos=qos)
    return connection, wire


async def subscribe(parts: Parts, connection: MqttConnection, wire: Wire, *filters: str, qos: int = 1) -> None:
    connection.data_received(codec.encode_subscribe(9, [(name, qos) for name in filters]))
    for _ in range(100):
        if b"\x90" in wire.written:
            break
        await parts.writer.flush()
        await asyncio.sleep(0)
    assert wire.written.startswith(codec.encode_suback(9, [qos] * len(filters)))
    wire.written = wire.written[4 + len(filters) :]


def say(connection: MqttConnection, topic: str, body: bytes = b"", packet_id: int = 0) -> None:
    connection.data_received(codec.encode_publish(topic.encode(), body, packet_id=packet_id))
