"""The broker's side of one MQTT connection, 3.1, 3.1.1 or 5.0, without I/O: bytes in, packets out.

The first packet decides the version. It never raises on what a peer sends: a peer's mistake is the last item of a list, a
`Broken` whose reason says exactly what was wrong, after which whatever comes is ignored.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from headrace.core.errors import DataError
from headrace.wire.mqtt import codec, packets5
from headrace.wire.mqtt.codec import Frame, FrameParser
from headrace.wire.mqtt.packets5 import Ack, Connect, Disconnect, Subscribe, Unsubscribe
from headrace.wire.mqtt.reasons import (
    MALFORMED,
    PACKET_TOO_LARGE,
    PROTOCOL_ERROR,
    PacketRefused,
    malformed,
    protocol_error,
)


class Frames(NamedTuple):
    """PUBLISHes in the order they came (codec.Frame). `plain`: none of QoS 2. Topic and properties are still unread."""

    frames: list[Frame]
    plain: bool


class Ping(NamedTuple):
    """Answer with codec.PING_RESPONSE."""


class Broken(NamedTuple):
    """The peer broke the protocol. `reply` (may be empty) is sent before closing."""

    reason: int
    error: DataError
    reply: bytes


Item: TypeAlias = Connect | Frames | Ack | Subscribe | Unsubscribe | Ping | Disconnect | Broken
State: TypeAlias = Literal["new", "open", "closed"]
_PING = Ping()
_ACKS = (packets5.PUBACK, packets5.PUBREC, packets5.PUBREL, packets5.PUBCOMP)


class BrokerMachine:
    """One connection's protocol machine. `version` is 0 until a CONNECT came."""

    def __init__(self, *, packet_bytes_max: int) -> None:
        self._parser = FrameParser(packet_bytes_max, strict=True)
        self.state: State = "new"
        self.version = 0

    @property
    def held_bytes(self) -> int:
        """Bytes of a frame that has not come as a whole yet."""
        return len(self._parser.rest)

    @property
    def closed(self) -> bool:
        return self.state == "closed"

    def receive(self, data: bytes) -> list[Item]:
        """What `data` says, in order; neighbouring PUBLISHes come as one item."""
        if self.state == "closed":
            return []
        frames: list[Frame] = []
        error: DataError | None = None
        plain = False
        try:
            plain = self._parser.feed(data, frames)
        except DataError as exc:
            error = exc
        rest = self._parser.rest
        if error is None and rest and rest[0] < codec.CONNECT:  # known to be no packet before it is all there
            plain, error = False, protocol_error(f"packet 0x{rest[0]:02x}")
        if plain and self.state == "open":
            return [Frames(frames, True)] if frames else []
        items = self._items(frames)
        if error is not None and not self.closed:
            items.append(self._broken(error))
        return items

    def close(self) -> None:
        """Take nothing more from this peer."""
        self.state = "closed"

    def _items(self, frames: list[Frame]) -> list[Item]:
        items: list[Item] = []
        run: list[Frame] = []
        for frame in frames:
            if self.state == "open" and frame[0] & 0xF0 == codec.PUBLISH:
                run.append(frame)
                continue
            if run:
                items.append(_run(run))
                run = []
            try:
                items.append(self._other(frame))
            except DataError as exc:
                items.append(self._broken(exc))
            if self.closed:
                return items
        if run:
            items.append(_run(run))
        return items

    def _other(self, frame: Frame) -> Item:
        first, body = frame[0], frame[1]
        kind, version = first & 0xF0, self.version
        if self.state == "new":
            if kind != codec.CONNECT:
                raise protocol_error("a first packet that is no CONNECT")
            connect = packets5.parse_connect(first, body)
            self.state, self.version = "open", connect.version
            return connect
        if kind in _ACKS:
            return packets5.parse_ack(first, body, version)
        if kind == codec.SUBSCRIBE:
            return packets5.parse_subscribe(first, body, version)
        if kind == codec.UNSUBSCRIBE:
            return packets5.parse_unsubscribe(first, body, version)
        if kind == codec.PINGREQ:
            _check_empty("PINGREQ", first, body)
            return _PING
        if kind == codec.DISCONNECT:
            left = packets5.parse_disconnect(first, body, version)
            self.state = "closed"
            return left
        if kind == codec.PINGRESP:
            _check_empty("PINGRESP", first, body)
        if kind in (codec.SUBACK, codec.UNSUBACK) and first != kind:
            raise malformed(f"packet 0x{first:02x}: wrong flags")
        raise protocol_error(f"packet 0x{first:02x} may not come here")

    def _broken(self, error: DataError) -> Broken:
        if isinstance(error, PacketRefused):
            reason = error.reason
        elif isinstance(error, codec.PacketTooLarge):
            reason = PACKET_TOO_LARGE
        else:
            reason = PROTOCOL_ERROR if isinstance(error, codec.ZeroPacketId) else MALFORMED
        quiet = isinstance(error, PacketRefused) and error.quiet
        if isinstance(
            error, codec.BadLength
        ):  # where the next packet would begin cannot be known: there is nobody to talk to
            quiet = error.first >= codec.CONNECT
            reason = MALFORMED if quiet else PROTOCOL_ERROR
        reply = b"" if quiet else self._reply(reason, error)
        self.state = "closed"
        return Broken(reason, error, reply)

    def _reply(self, reason: int, error: DataError) -> bytes:
        if self.state == "new":
            version = getattr(error, "version", 0)
            if version == packets5.V5:
                return packets5.encode_connack(version, reason)
            return b""
        if self.version < packets5.V5:
            return b""
        said = error.message if reason == PACKET_TOO_LARGE else ""
        return packets5.encode_disconnect(reason, said)


def _check_empty(name: str, first: int, body: bytes) -> None:
    if first & 0x0F:
        raise malformed(f"{name}: wrong flags")
    if body:
        raise PacketRefused(MALFORMED, f"{name}: {len(body)} bytes too many", quiet=True)


def _run(frames: list[Frame]) -> Frames:
    return Frames(frames, not any(frame[0] & 0x04 for frame in frames))
