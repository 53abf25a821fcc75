"""The server's side of one MQTT connection, without I/O: bytes in, actions out.

It knows the order of packets and nothing of hubs: who may connect or publish where is for the caller to say. It never
raises on what a peer sends; a peer's mistake is the last action, `Violation`, after which the caller closes.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from headrace.core.errors import DataError
from headrace.wire.mqtt import codec
from headrace.wire.mqtt.codec import Connect, Frame, MalformedPacket, Subscribe, Unsubscribe


class Connecting(NamedTuple):
    """Answer with `accept` or `refuse`; after `refuse` the actions behind this one must be dropped."""

    connect: Connect


class Published(NamedTuple):
    """PUBLISHes of QoS 0 and 1 in the order they came; see codec.Frame. Topics are checked by the caller."""

    frames: list[Frame]


class Subscribing(NamedTuple):
    request: Subscribe


class Unsubscribing(NamedTuple):
    request: Unsubscribe


class Acknowledged(NamedTuple):
    """A PUBACK for what the caller published."""

    packet_id: int


class Reply(NamedTuple):
    """Bytes to send as they are."""

    data: bytes


class Disconnecting(NamedTuple):
    """A clean DISCONNECT: the will must not be sent."""


class Violation(NamedTuple):
    """The peer broke the protocol; `reason` is stable. `reply` is sent before closing."""

    reason: Literal["malformed", "too_large", "version", "order", "qos2"]
    error: DataError
    reply: bytes = b""


Action: TypeAlias = (
    Connecting | Published | Subscribing | Unsubscribing | Acknowledged | Reply | Disconnecting | Violation
)
State: TypeAlias = Literal["new", "open", "closed"]


class ServerConnection:
    """One connection's protocol machine. After `Disconnecting` or `Violation` it ignores what comes."""

    def __init__(self, *, packet_bytes_max: int) -> None:
        self._parser = codec.FrameParser(packet_bytes_max)
        self.state: State = "new"

    @property
    def held_bytes(self) -> int:
        """Bytes of a frame that has not come as a whole yet."""
        return len(self._parser.rest)

    def receive(self, data: bytes) -> list[Action]:
        """What `data` asks for, in order; neighbouring PUBLISHes come as one action."""
        if self.state == "closed":
            return []
        frames: list[Frame] = []
        error: DataError | None = None
        only_publish = False
        try:
            only_publish = self._parser.feed(data, frames)
        except DataError as exc:
            error = exc
        if only_publish and self.state == "open":
            return [Published(frames)] if frames else []
        actions = self._actions(frames)
        ended = bool(actions) and isinstance(actions[-1], Violation | Disconnecting)
        if error is not None and not ended:
            actions.append(
                self._violation("too_large" if isinstance(error, codec.PacketTooLarge) else "malformed", error)
            )
        return actions

    def accept(self, *, session_present: bool) -> bytes:
        """The CONNACK that lets the peer in."""
        return codec.encode_connack(0, session_present=session_present)

    def refuse(self, code: int) -> bytes:
        """The CONNACK that turns the peer away; close after sending it."""
        self.state = "closed"
        return codec.encode_connack(code)

    def _actions(self, frames: list[Frame]) -> list[Action]:
        actions: list[Action] = []
        run: list[Frame] = []
        for frame in frames:
            if self.state == "open" and frame[0] & 0xF4 == codec.PUBLISH:
                run.append(frame)
                continue
            if run:
                actions.append(Published(run))
                run = []
            try:
                actions.append(self._other(frame))
            except codec.UnsupportedVersion as exc:
                actions.append(self._violation("version", exc, codec.encode_connack(1)))
            except MalformedPacket as exc:
                actions.append(self._violation("malformed", exc))
            if isinstance(actions[-1], Violation | Disconnecting):
                return actions
        if run:
            actions.append(Published(run))
        return actions

    def _other(self, frame: Frame) -> Action:
        first, body = frame[0], frame[1]
        kind = first & 0xF0
        if (kind == codec.CONNECT) != (self.state == "new"):
            said = "a first packet that is no CONNECT" if self.state == "new" else "a second CONNECT"
            return self._violation("order", MalformedPacket(said))
        if kind == codec.CONNECT:
            connect = codec.parse_connect(first, body)
            self.state = "open"  # a client need not wait for its CONNACK: what it sends behind is taken in the same go
            return Connecting(connect)
        if kind == codec.PUBLISH:
            return self._violation("qos2", DataError("a PUBLISH of QoS 2", hint="use QoS 0 or 1"))
        if kind == codec.SUBSCRIBE:
            return Subscribing(codec.parse_subscribe(first, body))
        if kind == codec.UNSUBSCRIBE:
            return Unsubscribing(codec.parse_unsubscribe(first, body))
        if first == codec.PINGREQ and not body:
            return Reply(codec.PING_RESPONSE)
        if first == codec.PUBACK and len(body) == 2:
            return Acknowledged(int.from_bytes(body, "big"))
        if first == codec.DISCONNECT and not body:
            self.state = "closed"
            return Disconnecting()
        return self._violation("malformed", MalformedPacket(f"packet 0x{first:02x} of {len(body)} bytes"))

    def _violation(
        self,
        reason: Literal["malformed", "too_large", "version", "order", "qos2"],
        error: DataError,
        reply: bytes = b"",
    ) -> Violation:
        self.state = "closed"
        return Violation(reason, error, reply)
