"""A device that speaks raw MQTT bytes over streams: with a certificate, behind a proxy header, cut as a test likes."""

from __future__ import annotations

import asyncio
import ssl
from types import TracebackType

from headrace.wire.iothub.topics import Identity, user_name
from headrace.wire.mqtt import codec

HOST = "127.0.0.1"
TIMEOUT_S = 10.0


def hello(id: str, password: bytes | None = None) -> bytes:
    return codec.encode_connect(codec.Connect(id, user_name(HOST, Identity(id)), password, True, 60, None))


class RawDevice:
    """`async with RawDevice(port, tls) as device`."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None, *, first: bytes = b"") -> None:
        self._port, self._tls, self._first = port, tls, first

    async def __aenter__(self) -> RawDevice:
        self.reader, self.writer = await asyncio.wait_for(asyncio.open_connection(HOST, self._port), TIMEOUT_S)
        self.writer.write(self._first)
        if self._tls is not None:
            await asyncio.wait_for(self.writer.start_tls(self._tls, server_hostname=HOST), TIMEOUT_S)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.writer.transport.abort()
        for _ in range(3):
            await asyncio.sleep(0)  # the transports below close in turn

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def read(self, count: int) -> bytes:
        return await asyncio.wait_for(self.reader.readexactly(count), TIMEOUT_S)

    async def rest(self) -> bytes:
        """What comes until the other side closes."""
        return await asyncio.wait_for(self.reader.read(), TIMEOUT_S)

    async def connack(self, id: str, password: bytes | None = None) -> int:
        """The return code that answers a CONNECT."""
        await self.send(hello(id, password))
        answer = await self.read(4)
        assert answer[:2] == b"\x20\x02"
        return answer[3]

    async def publish(self, id: str, body: bytes = b"{}") -> None:
        """Send one message and wait until it is acknowledged."""
        await self.send(codec.encode_publish(f"devices/{id}/messages/events/".encode(), body, packet_id=1))
        assert await self.read(4) == b"\x40\x02\x00\x01"
