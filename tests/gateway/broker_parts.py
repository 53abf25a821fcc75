"""A broker in one process with its log in memory, and clients that speak raw packets to it over a socket pair's worth of TCP."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from headrace.core.clock import TICKS_PER_S, SystemClock
from headrace.core.config import BrokerConfig
from headrace.core.identity import EventIds
from headrace.core.observe.metrics import Metrics
from headrace.eventlog.contract import EventLog
from headrace.eventlog.memory import MemoryEventLog
from headrace.gateway.broker.message import Message
from headrace.gateway.broker.server import Broker
from headrace.wire.mqtt import codec, packets5, properties5
from headrace.wire.mqtt.codec import encode_length

WAIT_S = 5.0
Benches: TypeAlias = "Callable[..., Awaitable[Bench]]"
_SEED = iter(range(1, 1 << 30))


def field(data: bytes | str) -> bytes:
    raw = data.encode() if isinstance(data, str) else data
    return len(raw).to_bytes(2, "big") + raw


def packet(first: int, body: bytes) -> bytes:
    return bytes((first,)) + encode_length(len(body)) + body


def connect(
    client_id: str = "c",
    *,
    version: int = 5,
    clean: bool = True,
    keep_alive_s: int = 0,
    properties: Mapping[int, Any] | None = None,
    will: tuple[str, bytes, int, bool] | None = None,
    will_properties: Mapping[int, Any] | None = None,
    username: str | None = None,
    password: str | None = None,
) -> bytes:
    flags = clean << 1 | (username is not None) << 7 | (password is not None) << 6
    body = b""
    if will:
        flags |= 4 | will[2] << 3 | will[3] << 5
        body += properties5.encode(will_properties or {}) if version == 5 else b""
        body += field(will[0]) + field(will[1])
    body += field(username) if username is not None else b""
    body += field(password) if password is not None else b""
    head = field("MQTT") + bytes((version, flags)) + keep_alive_s.to_bytes(2, "big")
    head += properties5.encode(properties or {}) if version == 5 else b""
    return packet(codec.CONNECT, head + field(client_id) + body)


def publish(
    topic: str | bytes,
    payload: bytes = b"",
    *,
    qos: int = 0,
    id: int = 0,
    retain: bool = False,
    dup: bool = False,
    version: int = 5,
    properties: Mapping[int, Any] | None = None,
) -> bytes:
    body = field(topic) + (id.to_bytes(2, "big") if qos else b"")
    body += properties5.encode(properties or {}) if version == 5 else b""
    return packet(codec.PUBLISH | dup << 3 | qos << 1 | retain, body + payload)


def subscribe(
    *filters: tuple[str, int], id: int = 1, version: int = 5, properties: Mapping[int, Any] | None = None
) -> bytes:
    """Filters with their options byte."""
    body = id.to_bytes(2, "big") + (properties5.encode(properties or {}) if version == 5 else b"")
    return packet(0x82, body + b"".join(field(name) + bytes((options,)) for name, options in filters))


def unsubscribe(*filters: str, id: int = 1, version: int = 5) -> bytes:
    body = id.to_bytes(2, "big") + (b"\0" if version == 5 else b"")
    return packet(0xA2, body + b"".join(map(field, filters)))


def ack(kind: int, id: int) -> bytes:
    return packets5.encode_ack(5, kind, id.to_bytes(2, "big"))


class Received:
    """One packet from the broker, taken apart as far as its kind allows."""

    def __init__(self, first: int, body: bytes, version: int) -> None:
        self.first, self.body, self.kind = first, body, first & 0xF0
        self.qos, self.retain, self.dup = first >> 1 & 3, bool(first & 1), bool(first & 8)
        self.topic, self.payload, self.id, self.reason = b"", b"", 0, 0
        self.properties: dict[int, Any] = {}
        if self.kind == codec.PUBLISH:
            size = int.from_bytes(body[:2], "big")
            self.topic, at = body[2 : 2 + size], 2 + size
            if self.qos:
                self.id, at = int.from_bytes(body[at : at + 2], "big"), at + 2
            if version == 5:
                self.properties, at = properties5.decode(body, at, "PUBLISH")
            self.payload = body[at:]
        elif self.kind == codec.CONNACK:
            self.present, self.reason = bool(body[0]), body[1]
            if version == 5 and len(body) > 2:
                self.properties, _ = properties5.decode(body, 2, "CONNACK")
        elif self.kind in (0x40, 0x50, 0x60, 0x70):
            self.id = int.from_bytes(body[:2], "big")
            self.reason = body[2] if len(body) > 2 else 0
            self.properties = properties5.decode(body, 3, "ACK")[0] if len(body) > 3 else {}
        elif self.kind in (codec.SUBACK, codec.UNSUBACK):
            self.id = int.from_bytes(body[:2], "big")
            self.reasons = list(body[3:] if version == 5 else body[2:])
        elif self.kind == codec.DISCONNECT:
            self.reason = body[0] if body else 0
            self.properties = properties5.decode(body, 1, "DISCONNECT")[0] if len(body) > 1 else {}

    def __repr__(self) -> str:
        return f"<0x{self.first:02x} {self.body[:60]!r}>"


class RawClient:
    """A client that sends what it is told and reads packets one by one; every wait has an end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, version: int) -> None:
        self._reader, self._writer, self.version = reader, writer, version

    @classmethod
    async def open(cls, port: int, *, version: int = 5) -> RawClient:
        return cls(*await asyncio.open_connection("127.0.0.1", port), version)

    @classmethod
    async def connected(cls, port: int, client_id: str = "c", *, version: int = 5, **asked: Any) -> RawClient:
        client = await cls.open(port, version=version)
        client.send(connect(client_id, version=version, **asked))
        client.connack = await client.expect(codec.CONNACK)
        assert client.connack.reason == 0
        return client

    connack: Received

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def next(self) -> Received | None:
        """The next packet; None when the broker has closed."""
        try:
            async with asyncio.timeout(WAIT_S):
                first = (await self._reader.readexactly(1))[0]
                length = shift = 0
                while True:
                    byte = (await self._reader.readexactly(1))[0]
                    length |= (byte & 0x7F) << shift
                    shift += 7
                    if byte < 0x80:
                        break
                return Received(first, await self._reader.readexactly(length), self.version)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def expect(self, kind: int) -> Received:
        found = await self.next()
        assert found is not None, f"closed instead of 0x{kind:02x}"
        assert found.kind == kind, f"{found} instead of 0x{kind:02x}"
        return found

    async def quiet(self) -> None:
        """Nothing more has come: a ping is answered, and nothing stands before its answer."""
        self.send(b"\xc0\0")
        await self.expect(codec.PINGRESP)

    async def closed(self) -> None:
        found = await self.next()
        assert found is None, f"{found} instead of the end"

    async def subscribe(self, *filters: tuple[str, int], **asked: Any) -> list[int]:
        self.send(subscribe(*filters, version=self.version, **asked))
        return (await self.expect(codec.SUBACK)).reasons

    async def leave(self, *, properly: bool = True, data: bytes = b"\xe0\0") -> None:
        if properly:
            self.send(data)
        self._writer.close()
        try:
            async with asyncio.timeout(WAIT_S):
                await self._writer.wait_closed()
        except ConnectionError:
            return


class ShiftedClock(SystemClock):
    """The machine's clock, moved on by as much as a test says."""

    def __init__(self) -> None:
        self._ahead_s = 0.0

    def now(self) -> int:
        return super().now() + int(self._ahead_s * TICKS_PER_S)

    def monotonic(self) -> float:
        return super().monotonic() + self._ahead_s

    def advance(self, seconds: float) -> None:
        self._ahead_s += seconds


class Bench:
    """A broker that can be stopped, killed and started again on the same folder."""

    def __init__(
        self, folder: Path, *, events: EventLog | None = None, more: dict[str, Any] | None = None, **config: Any
    ):
        self.folder = folder
        self.clock = ShiftedClock()
        self.events = events or MemoryEventLog(self.clock)
        self.config = BrokerConfig(**{"port": 0, "system_interval_s": 0.0, **config})
        self.more = more or {}
        self.port = -1
        self.clients: list[RawClient] = []

    def build(self) -> Broker:
        self.metrics = Metrics()
        seed = next(_SEED)
        return Broker(
            self.config,
            events=self.events,
            folder=self.folder,
            clock=self.clock,
            rng=random.Random(seed),
            metrics=self.metrics,
            ids=EventIds(str(seed).encode()),
            entropy=b"entropy of this test, long enough",
            base=self.folder,
            **self.more,
        )

    async def start(self) -> int:
        self.broker = self.build()
        self.port = await self.broker.start()
        return self.port

    @staticmethod
    def message(topic: str, payload: bytes) -> Message:
        return Message(topic.encode(), payload)

    async def stop(self) -> None:
        for client in self.clients:
            await client.leave(properly=False)
        self.clients.clear()
        await self.broker.stop()

    async def kill(self) -> None:
        """End it as a crash would: nothing is written, told or waited for any more."""
        broker, hall = self.broker, self.broker.hall
        for server in broker._servers:
            server.close()
        for task in broker._tasks:
            task.cancel()
        await asyncio.gather(*broker._tasks, return_exceptions=True)
        for link in list(hall.links):
            link.session = None
            link.abort()
        broker._store.close()
        for client in self.clients:
            await client.leave(properly=False)
        self.clients.clear()

    async def settle(self) -> None:
        """Wait until all that changed so far is on disk."""
        written = asyncio.Event()
        self.broker.hall.store.when_durable(written.set)
        async with asyncio.timeout(WAIT_S):
            await written.wait()

    async def gone(self, client_id: str) -> None:
        """Wait until the broker has noticed that a client left."""
        async with asyncio.timeout(WAIT_S):
            sessions = self.broker.hall.exchange.sessions
            while (found := sessions.get(client_id)) and found.link is not None:  # noqa: ASYNC110 - nobody tells us
                await asyncio.sleep(0)

    async def client(self, client_id: str = "c", **asked: Any) -> RawClient:
        client = await RawClient.connected(self.port, client_id, **asked)
        self.clients.append(client)
        return client

    async def raw(self, version: int = 5) -> RawClient:
        client = await RawClient.open(self.port, version=version)
        self.clients.append(client)
        return client

    async def rows(self, stream: str = "telemetry") -> Sequence[Mapping[str, Any]]:
        found = await self.events.read_merged(stream, (), rows_max=1_000_000, wait_s=0)
        return list(found.batch.to_pylist())
