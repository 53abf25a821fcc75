"""The MQTT door: one protocol object a connection, and what they share.

Bytes go straight from the transport into the pure connection machine and on into the ingress, in bulk: no task, no queue and
no Python call a message. A check over all topics of a read is one search in their joined bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, cast

import structlog

from headrace.core.clock import TICKS_PER_S, Clock
from headrace.core.errors import Unavailable
from headrace.core.observe.metrics import Metrics
from headrace.devices.model import Device, Module
from headrace.gateway.admission import STALE, UNAVAILABLE, Admission, Admitted, Refused
from headrace.gateway.egress import Egress, Line
from headrace.gateway.ingress import Ingress, Origin, Piece, Reject
from headrace.gateway.limits import MESSAGE_OVERHEAD_BYTES, Limits
from headrace.gateway.limits_shaper import Shaper
from headrace.gateway.presence import Presence
from headrace.gateway.provisioning import ProvisioningDoor
from headrace.gateway.refusals import Refusals
from headrace.gateway.sessions import FILTERS_MAX, Sessions
from headrace.gateway.tls import certificate_of
from headrace.wire.iothub.properties import decode_bag
from headrace.wire.iothub.topics import SERVICE_PREFIX, Identity, bag_of, may_subscribe, model_id_of
from headrace.wire.mqtt import codec
from headrace.wire.mqtt.codec import Connect, Frame, Subscribe, Unsubscribe, Will
from headrace.wire.mqtt.connection import (
    Acknowledged,
    Action,
    Connecting,
    Disconnecting,
    Published,
    Reply,
    ServerConnection,
    Subscribing,
    Unsubscribing,
    Violation,
)

CONNECT_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 5.0
KEEP_ALIVE_MAX_S = 1767.0
SWEEP_S = 1.0
BEAT_S = 60.0
SAVE_TIMEOUT_S = 8.0  # SDKs wait ten seconds for a SUBACK
LEARNING = "learning"  # the hold of a connection whose device is being looked for
SHARE = "share"  # the hold of a connection that has its share of the hub's limit waiting
TAKEOVER, DISCONNECT = "mqtt.takeover", "mqtt.disconnect"
TAKEN_ELSEWHERE = "taken_over_elsewhere"
OVER_LIMIT_MAX = 500
"""Connections above the limit that are kept long enough to be told so."""

log = structlog.get_logger()


class MqttDoor:
    """All MQTT connections of this process: who is connected, when they must go, when they must wait."""

    def __init__(
        self,
        *,
        admission: Admission,
        ingress: Ingress,
        sessions: Sessions,
        presence: Presence,
        egress: Egress,
        refusals: Refusals,
        clock: Clock,
        metrics: Metrics,
        message_bytes_max: int,
        connections_max: int,
        limits: Limits | None = None,
    ) -> None:
        self.limits = limits
        self.provisioning: ProvisioningDoor | None = None  # takes the connections that name its ID scope
        self.admission = admission
        self.ingress = ingress
        self.sessions = sessions
        self.presence = presence
        self.egress = egress
        self.bus = egress.bus
        self.refusals = refusals
        self.clock = clock
        self.message_bytes_max = message_bytes_max
        self.connections_max = connections_max
        self.connections: set[MqttConnection] = set()
        self.by_client: dict[str, MqttConnection] = {}
        self.by_device: dict[str, set[str]] = {}  # client ids of connected modules, by device
        self.entering: dict[str, MqttConnection] = {}  # let in, and waiting for their sessions
        self.stopping = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._connects = metrics.counter("gateway_connects_total", "Devices let in")
        metrics.gauge("gateway_connections", "Open MQTT connections").set_function(lambda: len(self.connections))
        ingress.on_full.append(self._pause_all)
        ingress.on_room.append(self._resume_all)
        self.bus.on(TAKEOVER, self._taken_over)
        self.bus.on(DISCONNECT, self._disconnect_here)

    def protocol(self) -> MqttConnection:
        """For loop.create_server."""
        return MqttConnection(self)

    def enter(self, connection: MqttConnection, identity: Identity) -> None:
        """Let an identity in; an older connection of the same one is closed at once, half open or not."""
        earlier = self.by_client.get(identity.client_id)
        self.by_client[identity.client_id] = connection
        if identity.module is not None:
            self.by_device.setdefault(identity.device, set()).add(identity.client_id)
        if earlier is not None:
            self.refusals.note("taken_over", device=identity.device, address=connection.address)
            earlier.abort("taken_over")
        self._connects.inc()
        self.presence.connected(identity, connection.address)

    def leave(self, connection: MqttConnection) -> None:
        self.connections.discard(connection)
        identity = connection.identity
        if identity is not None and self.by_client.get(identity.client_id) is connection:
            del self.by_client[identity.client_id]
            if identity.module is not None:
                others = self.by_device[identity.device]
                others.discard(identity.client_id)
                if not others:
                    del self.by_device[identity.device]
            if connection.reason == TAKEN_ELSEWHERE:
                self.presence.moved(identity)
                return
            self.presence.disconnected(identity, connection.address, connection.reason)

    def device_changed(self, id: str, device: Device | None) -> None:
        """Follow the directory: a device that is gone, disabled or another one by the same id loses its connection, and its
        modules theirs."""
        if device is None:
            self._forget(id)
        for client_id in (id, *self.by_device.get(id, ())):
            connection = self.by_client.get(client_id)
            if connection is not None:
                connection.device_changed(device)

    def module_changed(self, client_id: str, module: Module | None) -> None:
        """As `device_changed`, of one module."""
        if module is None:
            self._forget(client_id)
        connection = self.by_client.get(client_id)
        if connection is not None:
            connection.module_changed(module)

    async def disconnect(self, identity: Identity, reason: str) -> None:
        """Close an identity's connection, in whichever process it is."""
        connection = self.by_client.get(identity.client_id)
        if connection is not None:
            connection.close(reason)
        self.bus.cast(DISCONNECT, [identity.client_id, reason])

    def announce(self, identity: Identity, entered: int) -> None:
        """Tell the other gateway processes that an identity connects here: an earlier connection of it must go."""
        self.bus.cast(TAKEOVER, [identity.client_id, entered, self.bus.name])

    async def _taken_over(self, told: Any) -> None:
        client_id, entered, where = told
        for connection in (self.by_client.get(client_id), self.entering.get(client_id)):
            if connection is not None and (connection.entered, self.bus.name) < (entered, where):
                self.refusals.note("taken_over", device=client_id, address=connection.address)
                connection.abort(TAKEN_ELSEWHERE)

    async def _disconnect_here(self, told: Any) -> None:
        client_id, reason = told
        connection = self.by_client.get(client_id)
        if connection is not None:
            connection.close(str(reason))

    def _forget(self, client_id: str) -> None:
        self.sessions.forget(client_id)
        self.egress.forget(client_id)

    def spawn(self, task: asyncio.Task[None]) -> None:
        """Own a connection's task until it is done."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def sweep(self) -> None:
        """Every second: close who has been silent, whose token has expired, who never said CONNECT."""
        while True:
            await self.clock.sleep(SWEEP_S)
            self.sweep_once()

    def sweep_once(self) -> None:
        now, utc_s = self.clock.monotonic(), self.clock.now() / TICKS_PER_S
        for connection in [each for each in self.connections if each.due(now, utc_s)]:
            connection.check(now, utc_s)
            connection.beat(now)
        if self.provisioning is not None:
            self.provisioning.sweep_once(now)

    async def close(self) -> None:
        """Close every connection; wills are not sent, for the devices did nothing wrong."""
        self.stopping = True
        for connection in list(self.connections):
            connection.close("gateway_stopped")
        for _ in range(20):
            if not self.connections:
                break
            await asyncio.sleep(0.05)  # transports are flushing their last acknowledgements
        for connection in list(self.connections):
            connection.abort("gateway_stopped")
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.egress.stop()

    def _pause_all(self) -> None:
        log.warning("gateway.paused", pending=self.ingress.pending_rows, connections=len(self.connections))
        for connection in self.connections:
            connection.hold("ingress")

    def _resume_all(self) -> None:
        log.info("gateway.resumed", pending=self.ingress.pending_rows)
        for connection in list(self.connections):
            if self.ingress.waits(connection):  # first those of whom nothing waits
                connection.hold(SHARE)
            connection.go_on("ingress")


class MqttConnection(asyncio.Protocol):
    """One device's connection. Also the Sender that hears which of its messages are durable."""

    def __init__(self, door: MqttDoor) -> None:
        self._door = door
        self._machine = ServerConnection(packet_bytes_max=door.message_bytes_max + MESSAGE_OVERHEAD_BYTES)
        self._transport: asyncio.Transport | None = None
        self._origin: Origin | None = None
        self._generation = self._device_generation = ""
        self._will: Will | None = None
        self._remembered = False
        self._filters: dict[str, int] = {}
        self._keep_alive_s = CONNECT_TIMEOUT_S
        self._expires_s = float("inf")
        self._last_seen = self._told_at = 0.0
        self._closing_at: float | None = None
        self._holds: set[str] = set()
        self._deferred: list[Action] = []  # what came behind a CONNECT that is not answered yet
        self._frame_bytes_bound = 0  # no frame that is being read is larger
        self._line: Line | None = None
        self._shaper: Shaper | None = None
        self.identity: Identity | None = None
        self.entered = 0  # ticks
        self.address = ""
        self.reason = ""

    # asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's do not inherit from it
        peer = transport.get_extra_info("peername") or ("",)
        self.address = str(peer[0])
        self._last_seen = self._told_at = self._door.clock.monotonic()
        self._door.connections.add(self)
        if len(self._door.connections) > self._door.connections_max + OVER_LIMIT_MAX:
            self._refuse("connections_max", "far too many connections")
            self.abort("connections_max")

    def data_received(self, data: bytes) -> None:
        if self._closing_at is not None:
            return
        self._last_seen = self._door.clock.monotonic()
        bound = self._machine.held_bytes + len(data)
        actions = self._machine.receive(data)
        if LEARNING in self._holds:  # what a transport had read before it heard that it should pause
            self._frame_bytes_bound = max(bound, self._frame_bytes_bound)
            self._deferred += actions
        else:
            self._frame_bytes_bound = bound
            self._act(actions)

    def _act(self, actions: list[Action]) -> None:
        for index, action in enumerate(actions):
            if type(action) is Published:
                self._publish(action.frames)
            elif isinstance(action, Connecting):
                if self._provisioned(action.connect, actions[index + 1 :]):
                    return
                self._connect(action.connect)
                if LEARNING in self._holds:
                    self._deferred = actions[index + 1 :]
                    return
            elif isinstance(action, Acknowledged):
                if self._line is not None:
                    self._line.acknowledged(action.packet_id)
            elif isinstance(action, Reply):
                self._write(action.data)
            elif isinstance(action, Subscribing):
                self._subscribe(action.request)
            elif isinstance(action, Unsubscribing):
                self._unsubscribe(action.request)
            elif isinstance(action, Disconnecting):
                self._will = None
                self.close("disconnected")
            elif isinstance(action, Violation):
                self._violated(action)
            if self._closing_at is not None:
                return

    def pause_writing(self) -> None:
        self.hold("write")

    def resume_writing(self) -> None:
        self.go_on("write")
        if self._line is not None:
            self._line.mail()

    def connection_lost(self, exc: Exception | None) -> None:
        self.reason = self.reason or ("connection_lost" if exc else "closed_by_device")
        self._closing_at = self._closing_at if self._closing_at is not None else self._door.clock.monotonic()
        if self._shaper is not None:
            self._shaper.flush()
        will, self._will = self._will, None
        if will is not None and self._origin is not None and not self._door.stopping:
            self._send_will(will, self._origin)
        if self._line is not None:
            self._door.egress.close(self._line)
        self._door.leave(self)
        self._transport = None

    # the door and the ingress call these

    def stored(self, packet_ids: list[bytes]) -> None:
        if b"" in packet_ids:
            packet_ids = [packet_id for packet_id in packet_ids if packet_id]
        if packet_ids:
            self._write(codec.encode_pubacks(packet_ids))
        if SHARE in self._holds and not self._door.ingress.crowded(self, 0.5):
            self.go_on(SHARE)

    def due(self, now: float, utc_s: float) -> bool:
        """Whether time may ask for something: nearly never, and ten thousand connections are asked every second."""
        return (
            self._closing_at is not None
            or now - self._told_at >= BEAT_S
            or utc_s > self._expires_s
            or now - self._last_seen > self._keep_alive_s > 0
        )

    def check(self, now: float, utc_s: float) -> None:
        """What time asks for. `now` is monotonic seconds, `utc_s` seconds since 1970."""
        if self._closing_at is not None:
            if now - self._closing_at > CLOSE_TIMEOUT_S:
                self.abort(self.reason)
        elif utc_s > self._expires_s:
            self._refuse("token_expired", "its token expired while it was connected")
            self.close("token_expired")
        elif self._keep_alive_s and now - self._last_seen > self._keep_alive_s and self._holds <= {"write"}:
            reason = "keep_alive" if self.identity else "connect_timeout"
            self._refuse(reason, f"silent for more than {self._keep_alive_s:.1f} s")
            self.close(reason)

    def beat(self, now: float) -> None:
        """Once a minute, remember when it was heard last, if it was."""
        if self.identity is None or self._closing_at is not None or now - self._told_at < BEAT_S:
            return
        heard, self._told_at = self._last_seen > self._told_at, now
        if heard and self._door.by_client.get(self.identity.client_id) is self:
            at = self._door.clock.now() - int((now - self._last_seen) * TICKS_PER_S)
            self._door.presence.active(self.identity, self.address, since=self.entered, at=at)

    def device_changed(self, device: Device | None) -> None:
        if device is None or device.generation_id != self._device_generation:
            self.close("device_deleted")
        elif device.status != "enabled":
            self.close("device_disabled")
        elif self.identity is not None:
            self._origin = Origin.of(self.identity, device)

    def module_changed(self, module: Module | None) -> None:
        if module is None or module.generation_id != self._generation:
            self.close("module_deleted")

    def hold(self, why: str) -> None:
        """Stop reading until every reason for it is gone."""
        if not self._holds and self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()
        self._holds.add(why)

    def go_on(self, why: str) -> None:
        if why in self._holds:
            self._holds.discard(why)
            self._last_seen = self._door.clock.monotonic()  # its pings could not be heard
            if not self._holds and self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()

    def close(self, reason: str) -> None:
        """Send what is written already, then close."""
        if self._closing_at is None:
            self.reason = reason
            self._closing_at = self._door.clock.monotonic()
            if self._transport is not None:
                self._transport.close()

    def abort(self, reason: str) -> None:
        self.reason = self.reason or reason
        self._closing_at = self._closing_at if self._closing_at is not None else self._door.clock.monotonic()
        if self._transport is not None:
            self._transport.abort()

    # inside

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _refuse(self, reason: str, detail: str) -> None:
        device = self.identity.device if self.identity else ""
        self._door.refusals.note(reason, detail=detail, device=device, address=self.address)

    def _connect(self, connect: Connect, *, learnt: bool = False) -> None:
        door = self._door
        try:
            if door.stopping or len(door.connections) > door.connections_max:
                said = f"more than {door.connections_max:,} connections"
                raise Refused("connections_max", said, hint="raise [gateway] connections_max", connack=UNAVAILABLE)
            asked = self._transport if not connect.password else None
            shown = certificate_of(asked) if asked is not None else None
            admitted = door.admission.connect(connect, shown)
            if door.limits is not None and (over := door.limits.ask("connects", admitted.identity.device)):
                raise Refused("throttled", str(over), hint=f"retry in {over.retry_after} s", connack=UNAVAILABLE)
        except Refused as exc:
            if exc.reason in STALE and not learnt:
                self.hold(LEARNING)
                door.spawn(asyncio.create_task(self._learn(connect)))
                return
            door.refusals.note(
                exc.reason, detail=exc.message, device=connect.client_id, address=self.address, hint=exc.hint
            )
            self._write(self._machine.refuse(exc.connack))
            self.close(exc.reason)
            return
        self.entered = door.clock.now()
        if door.sessions.shared:
            self.hold(LEARNING)
            door.spawn(asyncio.create_task(self._fetch_session(connect, admitted)))
        else:
            self._admit(connect, admitted)

    def _provisioned(self, connect: Connect, behind: list[Action]) -> bool:
        """Whether this is no device but one that wants to become one, and has been handed over with what came `behind`."""
        door, transport = self._door.provisioning, self._transport
        if door is None or transport is None or self._door.stopping or not door.wants(connect):
            return False
        self._door.connections.discard(self)
        self._closing_at, self._transport = self._last_seen, None
        shown = certificate_of(transport) if not connect.password else None
        door.take(transport, self._machine, connect, shown=shown, address=self.address, behind=behind)
        return True

    async def _learn(self, connect: Connect) -> None:
        """A device may have been made a moment ago: it is refused only when the registry itself does not let it in."""
        await self._door.admission.learn()
        if self._closing_at is not None:
            return
        self._connect(connect, learnt=True)
        if not self._door.sessions.shared or self._closing_at is not None:
            self._go_on_after_connect()

    async def _fetch_session(self, connect: Connect, admitted: Admitted) -> None:
        """Other processes may have changed its session: read it as it is now, after they were told to let go of it."""
        door, client_id = self._door, admitted.identity.client_id
        earlier = door.entering.get(client_id)
        if earlier is not None:
            earlier.abort("taken_over")
        door.entering[client_id] = self
        door.announce(admitted.identity, self.entered)
        try:
            await asyncio.wait_for(door.sessions.fetch(client_id), SAVE_TIMEOUT_S)
        except (TimeoutError, Unavailable):
            self._refuse("session_unread", "its session could not be read")
            self._write(self._machine.refuse(UNAVAILABLE))
            self.close("session_unread")
        finally:
            if door.entering.get(client_id) is self:
                del door.entering[client_id]
        if self._closing_at is None:
            self._admit(connect, admitted)
            self._go_on_after_connect()

    def _go_on_after_connect(self) -> None:
        deferred, self._deferred = self._deferred, []
        self.go_on(LEARNING)
        if self._closing_at is None:
            self._act(deferred)

    def _admit(self, connect: Connect, admitted: Admitted) -> None:
        identity = self.identity = admitted.identity
        self._origin = Origin.of(identity, admitted.device)
        self._device_generation = admitted.device.generation_id
        self._generation = admitted.generation_id
        self._expires_s = admitted.expires_s
        self._will = connect.will
        self._remembered = not connect.clean_session
        self._keep_alive_s = min(1.5 * connect.keep_alive_s, KEEP_ALIVE_MAX_S) or KEEP_ALIVE_MAX_S
        self._door.enter(self, identity)
        present, self._filters = self._door.sessions.begin(identity.client_id, clean=connect.clean_session)
        self._write(self._machine.accept(session_present=present))
        model_id = model_id_of(connect.username or "")
        self._line = self._door.egress.open(identity, self, present=present, model_id=model_id)
        self._line.subscribed()
        limits, door = self._door.limits, self._door
        if limits is not None and limits.shapes:
            self._shaper = Shaper(
                limits,
                identity.device,
                door.clock,
                release=self._hand_over,
                hold=self.hold,
                go_on=self.go_on,
                spawn=lambda work: door.spawn(asyncio.get_running_loop().create_task(work)),
            )

    def _publish(self, frames: list[Frame]) -> None:
        origin = self._origin
        assert origin is not None  # the machine lets no PUBLISH through before its CONNECT
        if len(frames) == 1:
            (_, joined, _, body) = frames[0]
            size_bytes = len(joined) + len(body)
            own = joined.startswith(origin.prefix) and b"\0" not in joined
        else:  # U+0000 may not stand in a topic, so it tells them apart
            joined = b"\0" + b"\0".join([frame[1] for frame in frames])
            size_bytes = len(joined) + sum([len(frame[3]) for frame in frames])
            own = joined.count(b"\0") == len(frames) == joined.count(b"\0" + origin.prefix)
        plain = (
            own
            and joined.isascii()
            and b"+" not in joined
            and b"#" not in joined
            and self._frame_bytes_bound <= self._door.message_bytes_max
        )
        if not plain:
            frames = self._checked(frames, origin)
        if frames:
            piece = Piece(origin, frames, size_bytes, self)
            if self._shaper is None:
                self._hand_over(piece)
            else:
                self._shaper.add(piece)

    def _hand_over(self, piece: Piece) -> None:
        ingress = self._door.ingress
        ingress.add(piece)
        if ingress.full:
            self.hold("ingress")
        elif ingress.crowded(self):
            self.hold(SHARE)

    def _checked(self, frames: list[Frame], origin: Origin) -> list[Frame]:
        """The telemetry among frames, up to the first that may not pass; for that one the connection is closed."""
        passed: list[Frame] = []
        for frame in frames:
            if frame[1].startswith(SERVICE_PREFIX) and self._taken(frame):
                continue
            bag = bag_of(frame[1], origin.prefix)
            try:
                if bag is not None:
                    codec.check_topic(bag)
            except codec.MalformedPacket as exc:
                self._reject(origin, "malformed", exc.message, frame[3])
                return passed
            if bag is None:
                self._reject(origin, "forbidden_topic", f"topic {_shown(frame[1])} is not its own", frame[3])
                return passed
            if len(bag) + len(frame[3]) > self._door.message_bytes_max:
                size = decode_bag(bag).size_bytes + len(frame[3])
                if size > self._door.message_bytes_max:
                    self._too_large(origin, size, frame[3])
                    return passed
            passed.append(frame)
        return passed

    def _taken(self, frame: Frame) -> bool:
        """Whether a message to the service's own topics was one that a device may send; it is acknowledged then."""
        if self._line is None or b"+" in frame[1] or b"#" in frame[1] or not self._line.take(frame):
            return False
        if frame[2]:
            self._write(codec.encode_pubacks((frame[2],)))
        return True

    def _too_large(self, origin: Origin, size_bytes: int, body: bytes) -> None:
        limit = self._door.message_bytes_max
        self._reject(origin, "too_large", f"a message of {size_bytes:,} bytes is above the limit of {limit:,}", body)

    def _reject(self, origin: Origin, reason: str, detail: str, body: bytes) -> None:
        """Set a message aside and close its connection, as IoT Hub does."""
        self._refuse(reason, detail)
        self._door.ingress.set_aside(Reject(origin, reason, detail, body))
        self.close(reason)

    def _violated(self, violation: Violation) -> None:
        error = violation.error
        if isinstance(error, codec.PacketTooLarge) and error.first & 0xF0 == codec.PUBLISH and self._origin is not None:
            self._reject(self._origin, violation.reason, error.message, _body_of(error.excerpt))
            return
        self._refuse(violation.reason, error.message)
        if violation.reply:
            self._write(violation.reply)
        self.close(violation.reason)

    def _send_will(self, will: Will, origin: Origin) -> None:
        bag = bag_of(will.topic, origin.prefix) or b""
        topic = origin.prefix + (bag + b"&" if bag else b"") + b"iothub-MessageType=Will"
        frame: Frame = (codec.PUBLISH | will.retain, topic, b"", will.payload)
        self._door.ingress.add(Piece(origin, [frame], len(topic) + len(will.payload), None))

    def _subscribe(self, request: Subscribe) -> None:
        assert self.identity is not None
        granted: dict[str, int] = {}
        answer: list[int] = []
        for topic_filter, qos in request.filters:
            if may_subscribe(topic_filter, self.identity) and len(self._filters | granted) < FILTERS_MAX:
                granted[topic_filter] = min(qos, 1)
                answer.append(min(qos, 1))
            else:
                self._refuse("forbidden_filter", f"filter {_shown(topic_filter.encode())}")
                answer.append(codec.FILTER_REFUSED)
        self._filters |= granted
        if granted and self._remembered:
            self._door.sessions.subscribe(self.identity.client_id, granted)
        self._answer_saved(codec.encode_suback(request.packet_id, answer), bool(granted))

    def _unsubscribe(self, request: Unsubscribe) -> None:
        assert self.identity is not None
        gone = [self._filters.pop(topic_filter, None) for topic_filter in request.filters]
        changed = any(qos is not None for qos in gone)
        if changed and self._remembered:
            self._door.sessions.unsubscribe(self.identity.client_id, request.filters)
        self._answer_saved(codec.encode_unsuback(request.packet_id), changed)

    def _answer_saved(self, reply: bytes, changed: bool) -> None:
        """Answer once the session is durable, if this connection has one that changed."""
        if changed and self._remembered:
            self._door.spawn(asyncio.get_running_loop().create_task(self._save_and_write(reply)))
        else:
            self._write(reply)
            if changed and self._line is not None:
                self._line.subscribed()

    async def _save_and_write(self, reply: bytes) -> None:
        try:
            await self._door.sessions.saved(SAVE_TIMEOUT_S)
        except (TimeoutError, Unavailable):
            self._refuse("session_unsaved", "its subscriptions could not be made durable")
            self.close("session_unsaved")
        else:
            self._write(reply)
            if self._line is not None:
                self._line.subscribed()

    @property
    def buffered_bytes(self) -> int:
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def send(self, data: bytes) -> bool:
        """Write something for the device; False when the connection is closing."""
        if self._transport is None or self._closing_at is not None:
            return False
        self._write(data)
        return True

    @property
    def filters(self) -> Mapping[str, int]:
        """What this connection is subscribed to."""
        return self._filters


def _shown(topic: bytes) -> str:
    """A topic as it may stand in a log: short, and without the values of its property bag."""
    place = topic.split(b"/messages/events", 1)[0] if b"/messages/events/" in topic else topic
    return repr(place[:80].decode("utf-8", "replace"))


def _body_of(excerpt: bytes) -> bytes:
    """The payload's start in the start of a PUBLISH packet."""
    start = 1
    while start < min(5, len(excerpt)) and excerpt[start] & 0x80:
        start += 1
    topic_at = start + 3
    body_at = topic_at + int.from_bytes(excerpt[start + 1 : topic_at], "big") + (2 if excerpt[0] & 0x06 else 0)
    return excerpt[body_at:]
