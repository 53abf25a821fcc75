"""The device's side, ours: for simulators, replays and load. QoS 1, pipelined, resent until acknowledged.

Messages go out in one write a batch and acknowledgements come in as one call a read. After a lost connection it
connects again by itself and sends what was not acknowledged once more, with the same message ids, so that the log keeps
one of each. A message without an id may then be stored twice.
"""

from __future__ import annotations

import asyncio
import random
import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, cast

import structlog

from headrace.core.clock import TICKS_PER_S, Clock
from headrace.core.errors import HeadraceError, Unavailable, UserError
from headrace.core.schema import JSON_TYPE
from headrace.devices import connection_string
from headrace.wire.iothub import sas
from headrace.wire.iothub.properties import encode_bag
from headrace.wire.iothub.topics import Identity, telemetry_prefix, user_name
from headrace.wire.mqtt import codec
from headrace.wire.mqtt.codec import Connect, Frame

IN_FLIGHT_LIMIT = 60_000
RETRY_S, RETRY_MAX_S = 0.1, 5.0
RENEW_S = 120.0
PACKET_BYTES_MAX = 1_048_576
SUFFIXES_MAX = 1000
_PLAIN = re.compile(r"[A-Za-z0-9_.~:-]+")

log = structlog.get_logger()


class Message(NamedTuple):
    """One message. `properties` are application properties; `type` among them names the event's type."""

    body: bytes
    message_id: str | None = None
    content_type: str = JSON_TYPE
    properties: Mapping[str, str] | None = None


class Sent(NamedTuple):
    """A message on its way, and when it was sent first (the clock's monotonic seconds)."""

    message: Message
    sent_at: float


OnAck = Callable[[Sequence[Sent]], None]


class DeviceClient:
    """One device's connection. Not for several tasks at once: one publishes, the acknowledgements come as calls."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        device: str,
        key: str,
        clock: Clock,
        rng: random.Random,
        hub: str = "",
        tls: ssl.SSLContext | None = None,
        on_ack: OnAck | None = None,
        in_flight_max: int = 1000,
        keep_alive_s: int = 60,
        token_s: int = 3600,
    ) -> None:
        """`host` is dialled; `hub` (empty: the same) is the name in token, user name and certificate."""
        if not 1 <= in_flight_max <= IN_FLIGHT_LIMIT:
            raise UserError(f"in_flight_max is {in_flight_max}", hint=f"1 to {IN_FLIGHT_LIMIT}")
        self.identity = Identity(device)
        self.sent = self.acked = self.resent = self.reconnects = 0
        self._host, self._port, self._hub, self._key, self._tls = host, port, hub or host, key, tls
        self._clock, self._rng = clock, rng
        self._on_ack = on_ack
        self._in_flight_max = in_flight_max
        self._keep_alive_s = keep_alive_s
        self._token_s = token_s
        self._expires_s = 0
        self._prefix = telemetry_prefix(self.identity)
        self._suffixes: dict[str, bytes] = {}
        self._next_id = 0
        self._in_flight: dict[bytes, tuple[Sent, bytes]] = {}
        self._link: _Link | None = None
        self._changed = asyncio.Event()  # room, an acknowledgement, a failure: whoever waits looks again
        self._failure: HeadraceError | None = None
        self._closed = False
        self._reconnecting: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    def from_connection_string(
        cls,
        text: str,
        *,
        port: int,
        clock: Clock,
        rng: random.Random,
        tls: ssl.SSLContext | None = None,
        on_ack: OnAck | None = None,
        in_flight_max: int = 1000,
        keep_alive_s: int = 60,
    ) -> DeviceClient:
        """For `HostName=…;DeviceId=…;SharedAccessKey=…`. Raises UserError."""
        fields = connection_string.parse(text)
        return cls(
            fields.address,
            port,
            device=fields.device_id,
            key=fields.key,
            clock=clock,
            rng=rng,
            hub=fields.hostname,
            tls=tls,
            on_ack=on_ack,
            in_flight_max=in_flight_max,
            keep_alive_s=keep_alive_s,
        )

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def room(self) -> int:
        """How many messages `offer` would take now."""
        writable = self._link is None or self._link.writable
        return self._in_flight_max - len(self._in_flight) if writable else 0

    @property
    def connected(self) -> bool:
        return self._link is not None

    async def connect(self, timeout_s: float = 15.0) -> None:
        """Connect for the first time. Raises UserError when refused, Unavailable when nobody answers."""
        await self._open(timeout_s)
        self._tick()

    def offer(self, messages: Sequence[Message]) -> int:
        """Send as many of `messages` as there is room for, now; returns how many. Raises what ended the client."""
        self._check()
        taken = messages[: max(0, self.room)]
        if taken:
            data = b"".join(self._frames(taken))
            if self._link is not None:
                self._link.write(data)
            self.sent += len(taken)
        return len(taken)

    async def publish_many(self, messages: Sequence[Message], *, timeout_s: float = 300.0) -> None:
        """Send all, waiting for room. Raises TimeoutError when there is none for `timeout_s`."""
        done = self.offer(messages)
        while done < len(messages):
            await self._wait(timeout_s)
            done += self.offer(messages[done:])

    async def drain(self, timeout_s: float = 60.0) -> None:
        """Returns when everything sent is acknowledged. Raises TimeoutError when nothing moves for `timeout_s`."""
        while self._in_flight:
            self._check()
            await self._wait(timeout_s)

    async def close(self) -> None:
        """Say goodbye and close. What is not acknowledged is given up: `drain` first."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._reconnecting is not None:
            self._reconnecting.cancel()
            await asyncio.gather(self._reconnecting, return_exceptions=True)
        if self._link is not None:
            link, self._link = self._link, None
            link.write(codec.GOODBYE)
            await link.close()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def _wait(self, timeout_s: float) -> None:
        self._changed.clear()
        await asyncio.wait_for(self._changed.wait(), timeout_s)
        self._check()

    def _frames(self, messages: Sequence[Message]) -> list[bytes]:
        """PUBLISH packets of `messages`, which are in flight from now on."""
        now = self._clock.monotonic()
        frames: list[bytes] = []
        in_flight, number = self._in_flight, self._next_id
        for message in messages:
            while True:
                number = number % 65_535 + 1
                packet_id = number.to_bytes(2, "big")
                if packet_id not in in_flight:
                    break
            topic, body = self._topic(message), message.body
            length = codec.encode_length(len(topic) + len(body) + 4)
            frame = b"2%b%b%b%b%b" % (length, len(topic).to_bytes(2, "big"), topic, packet_id, body)  # 2 is 0x32
            in_flight[packet_id] = (Sent(message, now), frame)
            frames.append(frame)
        self._next_id = number
        return frames

    def _topic(self, message: Message) -> bytes:
        _, message_id, content_type, properties = message
        if properties or message_id is None or not _PLAIN.fullmatch(message_id):
            system = {"content-type": content_type} | ({"message-id": message_id} if message_id is not None else {})
            return self._prefix + encode_bag(system, properties or {})
        suffix = self._suffixes.get(content_type)
        if suffix is None:
            if len(self._suffixes) >= SUFFIXES_MAX:
                self._suffixes.clear()
            suffix = self._suffixes[content_type] = b"&" + encode_bag({"content-type": content_type}, {})
        return b"%b$.mid=%b%b" % (self._prefix, message_id.encode(), suffix)

    async def _open(self, timeout_s: float) -> None:
        """Connect and say CONNECT; then what is in flight goes out again."""
        link = _Link(self._acknowledged, self._link_changed)
        name = sas.host_name(self._hub)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                await loop.create_connection(
                    lambda: link, self._host, self._port, ssl=self._tls, server_hostname=name if self._tls else None
                )
                link.write(codec.encode_connect(self._hello()))
                code = await link.answered
        except ssl.SSLCertVerificationError as exc:
            link.discard()
            raise UserError(
                f"the certificate of {self._host}:{self._port} is not trusted: {exc.verify_message}",
                hint="give the hub's CA, and the host name it was made for",
                code="client.certificate",
            ) from exc
        except (OSError, TimeoutError) as exc:
            link.discard()
            said = str(exc) or type(exc).__name__
            raise Unavailable(f"{self._host}:{self._port} does not answer: {said}", hint="is the gateway up?") from exc
        if code:
            link.discard()
            raise _refusal(code, self.identity.device)
        self._link = link
        if self._in_flight:
            self.resent += len(self._in_flight)
            link.write(b"".join([bytes((frame[0] | 0x08,)) + frame[1:] for _, frame in self._in_flight.values()]))
        self._changed.set()

    def _hello(self) -> Connect:
        self._expires_s = self._clock.now() // TICKS_PER_S + self._token_s
        token = sas.build(f"{self._hub}/{self.identity.path}", self._key, expires_s=self._expires_s)
        name = user_name(self._hub, self.identity)
        return Connect(self.identity.client_id, name, token.encode(), False, self._keep_alive_s, None)

    def _acknowledged(self, packet_ids: list[bytes]) -> None:
        pop = self._in_flight.pop
        entries = [entry for packet_id in packet_ids if (entry := pop(packet_id, None)) is not None]
        self.acked += len(entries)
        self._changed.set()
        if self._on_ack is not None and entries:
            self._on_ack([sent for sent, _ in entries])

    def _link_changed(self, link: _Link) -> None:
        """A connection ended, or may be written to again."""
        self._changed.set()
        if link is not self._link or not link.gone:
            return
        self._link = None
        if not self._closed:
            self._reconnecting = asyncio.get_running_loop().create_task(self._reconnect())

    async def _reconnect(self) -> None:
        delay_s = RETRY_S
        while True:
            await self._clock.sleep(self._rng.uniform(0.5, 1.0) * delay_s)
            delay_s = min(RETRY_MAX_S, delay_s * 2)
            try:
                await self._open(15.0)
            except Unavailable as exc:
                log.debug("client.retrying", device=self.identity.device, error=exc.message)
            except UserError as exc:
                self._failure = exc
                self._changed.set()
                return
            else:
                self.reconnects += 1
                return

    def _tick(self) -> None:
        """Ping, notice a silent hub, renew a token that soon expires."""
        self._timer = asyncio.get_running_loop().call_later(self._keep_alive_s / 2, self._tick)
        link = self._link
        if link is None:
            return
        now = self._clock.monotonic()
        renew = self._expires_s - self._clock.now() / TICKS_PER_S < min(RENEW_S, self._token_s / 10)
        if renew or (link.pinged_at is not None and now - link.pinged_at >= self._keep_alive_s * 0.9):
            link.abort()
        elif link.pinged_at is None:
            link.pinged_at = now
            link.write(codec.PING_REQUEST)


class _Link(asyncio.Protocol):
    """One TCP connection of a client."""

    def __init__(self, acknowledged: Callable[[list[bytes]], None], changed: Callable[[_Link], None]) -> None:
        self._acknowledged = acknowledged
        self._on_change = changed
        self._parser = codec.FrameParser(PACKET_BYTES_MAX)
        self._transport: asyncio.Transport | None = None
        self.answered: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._ended = asyncio.Event()
        self.writable = True
        self.pinged_at: float | None = None

    @property
    def gone(self) -> bool:
        return self._ended.is_set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's do not inherit from it

    def data_received(self, data: bytes) -> None:
        frames: list[Frame] = []
        try:
            self._parser.feed(data, frames)
        except codec.MalformedPacket:
            self.abort()
        acknowledged = [frame[1] for frame in frames if frame[0] == codec.PUBACK]
        if len(acknowledged) < len(frames):
            self._others(frames)
        if acknowledged:
            self._acknowledged(acknowledged)

    def _others(self, frames: list[Frame]) -> None:
        for first, body, _, _ in frames:
            if first == codec.PINGRESP:
                self.pinged_at = None
            elif first == codec.CONNACK and not self.answered.done():
                try:
                    self.answered.set_result(codec.parse_connack(body)[1])
                except codec.MalformedPacket:
                    self.abort()

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        self._on_change(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended.set()
        if not self.answered.done():
            self.answered.set_exception(ConnectionResetError("the hub closed the connection"))
        self._on_change(self)

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def discard(self) -> None:
        """Give up a connection that never opened; nobody waits for its answer any more."""
        self.answered.cancel()
        self.abort()

    async def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
            try:
                await asyncio.wait_for(self._ended.wait(), 2.0)
            except TimeoutError:
                self._transport.abort()


def _refusal(code: int, device: str) -> HeadraceError:
    if code in (4, 5):
        return UserError(
            f"the hub refused {device!r} (CONNACK {code})",
            hint="check its key, and that it is enabled",
            code="client.refused",
        )
    if code == 3:
        return Unavailable(f"the hub takes no more connections (CONNACK 3), {device!r} waits", hint="retried")
    return UserError(f"the hub refused {device!r} (CONNACK {code})", hint="check the device id", code="client.refused")
