"""A device that listens: it answers methods with what it was asked, and keeps the messages that it is sent."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote

import orjson

from headrace.wire.iothub import sas
from headrace.wire.iothub.topics import Identity, user_name
from headrace.wire.mqtt import codec

HOST = "127.0.0.1"
TIMEOUT_S = 10.0
METHOD = b"$iothub/methods/POST/"


class AnsweringDevice:
    def __init__(self, id: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.id = id
        self.mail: list[bytes] = []
        self.called: list[tuple[str, Any]] = []
        self.closed = asyncio.Event()
        self._reader, self._writer = reader, writer
        self._ready = asyncio.Event()
        self._sent = 0

    async def start(self, key: str) -> None:
        identity = Identity(self.id)
        token = sas.build(f"{HOST}/devices/{self.id}", key, expires_s=int(time.time()) + 3600)
        self._writer.write(
            codec.encode_connect(codec.Connect(self.id, user_name(HOST, identity), token.encode(), True, 60, None))
        )
        filters = [("$iothub/methods/POST/#", 0), (f"devices/{self.id}/messages/devicebound/#", 1)]
        self._writer.write(codec.encode_subscribe(1, filters))
        await asyncio.wait_for(self._ready.wait(), TIMEOUT_S)

    def send(self, body: dict[str, Any], bag: str = "") -> None:
        self._sent += 1
        topic = f"devices/{self.id}/messages/events/{bag}".encode()
        self._writer.write(codec.encode_publish(topic, orjson.dumps(body), packet_id=self._sent % 60_000 + 1))

    async def listen(self) -> None:
        parser = codec.FrameParser(1_000_000)
        with contextlib.suppress(ConnectionError):
            while data := await self._reader.read(65_536):
                frames: list[Any] = []
                parser.feed(data, frames)
                for frame in frames:
                    self._take(frame)
        self.closed.set()

    def _take(self, frame: Any) -> None:
        first, topic, packet_id, body = frame
        if first == codec.SUBACK:
            self._ready.set()
        if first & 0xF0 != 0x30:
            return
        if topic.startswith(METHOD):
            name, _, rid = topic.removeprefix(METHOD).partition(b"/?$rid=")
            asked = orjson.loads(body) if body else None
            self.called.append((unquote(name.decode()), asked))
            answer = orjson.dumps({"did": unquote(name.decode()), "with": asked})
            self._writer.write(codec.encode_publish(b"$iothub/methods/res/200/?$rid=" + rid, answer))
        else:
            self.mail.append(bytes(body))
            if packet_id:
                self._writer.write(codec.encode_pubacks([packet_id]))


@asynccontextmanager
async def answering_device(port: int, id: str, key: str) -> AsyncIterator[AnsweringDevice]:
    """`port` is that of plain MQTT."""
    reader, writer = await asyncio.wait_for(asyncio.open_connection(HOST, port), TIMEOUT_S)
    device = AnsweringDevice(id, reader, writer)
    listening = asyncio.create_task(device.listen())
    try:
        await device.start(key)
        yield device
    finally:
        writer.transport.abort()
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
