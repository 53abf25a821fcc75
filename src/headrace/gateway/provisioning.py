"""The provisioning service's side of the MQTT port: connections that name an ID scope instead of a hub.

The hub's door hands such a connection over after its CONNECT. Nothing of it is remembered, and its requests are done one after
the other. A registration is durable before it is answered, so any process can say how it ended.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Sequence

import msgspec
import structlog

from headrace.core.clock import Clock
from headrace.core.errors import Unavailable
from headrace.devices.attestation import AttestationRefused
from headrace.devices.certificates import ClientCertificate
from headrace.gateway.provisioning_desk import RETRY_AFTER_S, ProvisioningDesk, Visitor
from headrace.gateway.provisioning_shapes import BAD, THROTTLED, operation_json
from headrace.gateway.rest.errors import Denied
from headrace.wire.iothub import provisioning as wire
from headrace.wire.iothub.sas import host_name
from headrace.wire.mqtt import codec
from headrace.wire.mqtt.codec import Connect, Frame, Subscribe
from headrace.wire.mqtt.connection import (
    Acknowledged,
    Action,
    Disconnecting,
    Published,
    Reply,
    ServerConnection,
    Subscribing,
    Unsubscribing,
    Violation,
)

UNAVAILABLE, NOT_AUTHORISED = 3, 5
CLOSE_TIMEOUT_S = 5.0
KEEP_ALIVE_MAX_S = 1767.0
INBOX_MAX = 50  # requests that wait for their turn
POLLS_MAX, POLLS_S = 5, 10.0

log = structlog.get_logger()


class ProvisioningDoor:
    """All provisioning connections of this process. `hosts` are the hub's own names: what names one of them is a device."""

    def __init__(self, desk: ProvisioningDesk, *, hosts: Collection[str], clock: Clock, connections_max: int) -> None:
        self.desk = desk
        self.clock = clock
        self._hosts = hosts
        self._connections_max = connections_max
        self.connections: set[ProvisioningConnection] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def wants(self, connect: Connect) -> bool:
        """Whether a CONNECT is for this service."""
        name = wire.parse_user_name(connect.username or "")
        return name is not None and host_name(name.scope) not in self._hosts

    def take(
        self,
        transport: asyncio.Transport,
        machine: ServerConnection,
        connect: Connect,
        *,
        shown: ClientCertificate | None,
        address: str,
        behind: Sequence[Action],
    ) -> None:
        """Go on with a connection that `wants` was true for; `behind` are the actions that came after its CONNECT."""
        name = wire.parse_user_name(connect.username or "")
        assert name is not None
        token = (connect.password or b"").decode("utf-8", "replace") if connect.password else None
        visitor = Visitor(name, token, shown if token is None else None, address)
        connection = ProvisioningConnection(self, transport, machine, connect, visitor)
        self.connections.add(connection)
        transport.set_protocol(connection)
        connection.begin(behind, full=len(self.connections) > self._connections_max)

    def spawn(self, task: asyncio.Task[None]) -> None:
        """Own a connection's task until it is done."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def sweep_once(self, now: float) -> None:
        for connection in list(self.connections):
            connection.check(now)

    async def close(self) -> None:
        for connection in list(self.connections):
            connection.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class ProvisioningConnection(asyncio.Protocol):
    """One device that wants to be registered."""

    def __init__(
        self,
        door: ProvisioningDoor,
        transport: asyncio.Transport,
        machine: ServerConnection,
        connect: Connect,
        visitor: Visitor,
    ) -> None:
        self._door = door
        self._transport: asyncio.Transport | None = transport
        self._machine = machine
        self._connect = connect
        self._visitor = visitor
        self._keep_alive_s = min(1.5 * connect.keep_alive_s, KEEP_ALIVE_MAX_S) or KEEP_ALIVE_MAX_S
        self._last_seen = door.clock.monotonic()
        self._closing_at: float | None = None
        self._admitted = False
        self._qos: int | None = None  # of the subscription to answers
        self._next_id = 0
        self._inbox: deque[Action] = deque()
        self._polls: deque[float] = deque(maxlen=POLLS_MAX)
        self._task: asyncio.Task[None] | None = None

    def begin(self, behind: Sequence[Action], *, full: bool) -> None:
        if full:
            self._refuse(UNAVAILABLE)
            return
        self._work()
        self._take(behind)

    # asyncio calls these

    def data_received(self, data: bytes) -> None:
        if self._closing_at is None:
            self._last_seen = self._door.clock.monotonic()
            self._take(self._machine.receive(data))

    def pause_writing(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._door.connections.discard(self)
        self._closing_at = self._closing_at if self._closing_at is not None else self._door.clock.monotonic()
        self._transport = None

    # the door calls these

    def check(self, now: float) -> None:
        """What time asks for; `now` is monotonic seconds."""
        if self._closing_at is not None:
            if now - self._closing_at > CLOSE_TIMEOUT_S and self._transport is not None:
                self._transport.abort()
        elif now - self._last_seen > self._keep_alive_s:
            self.close()

    def close(self) -> None:
        """Send what is written already, then close. A registration under way is finished, and nobody told."""
        if self._closing_at is None:
            self._closing_at = self._door.clock.monotonic()
            self._inbox.clear()
            if self._transport is not None:
                self._transport.close()

    # inside

    def _take(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if self._closing_at is not None:
                return
            if isinstance(action, Acknowledged):
                continue
            if isinstance(action, Reply) and self._admitted:
                self._write(action.data)
            elif isinstance(action, Disconnecting):
                self.close()
            elif isinstance(action, Violation):
                self._violated(action)
            elif len(self._inbox) >= INBOX_MAX or (isinstance(action, Published) and len(action.frames) > INBOX_MAX):
                log.warning("provisioning.flooded", registration=self._visitor.name.registration_id[:128])
                self.close()
            else:
                self._inbox.append(action)
                self._work()

    def _violated(self, violation: Violation) -> None:
        self._door.desk.note(violation.error, self._visitor)
        if violation.reply:
            self._write(violation.reply)
        self.close()

    def _work(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
            self._door.spawn(self._task)

    async def _run(self) -> None:
        try:
            if not self._admitted:
                await self._admit()
            while self._inbox:
                await self._do(self._inbox.popleft())
        except Exception:  # ours: the connection ends, the others go on
            log.exception("provisioning.connection_failed")
            self.close()
        finally:
            self._task = None

    async def _admit(self) -> None:
        """Answer the CONNECT."""
        said = self._connect.client_id.lower()
        if said != wire.fold(self._visitor.name.registration_id):
            refused = AttestationRefused("id", "client id and user name differ", hint="both are the registration id")
            self._door.desk.note(refused, self._visitor)
            self._refuse(NOT_AUTHORISED)
            return
        try:
            await self._door.desk.attest(self._visitor)
        except Exception as exc:
            self._door.desk.refusal(exc, self._visitor)
            self._refuse(NOT_AUTHORISED if not isinstance(exc, Unavailable) else UNAVAILABLE)
            return
        if self._closing_at is None:
            self._admitted = True
            self._write(self._machine.accept(session_present=False))

    def _refuse(self, connack: int) -> None:
        if self._closing_at is None:
            self._write(self._machine.refuse(connack))
            self.close()

    async def _do(self, action: Action) -> None:
        if isinstance(action, Published):
            for frame in action.frames:
                await self._asked(frame)
        elif isinstance(action, Subscribing):
            self._subscribe(action.request)
        elif isinstance(action, Unsubscribing):
            self._qos = None if wire.FILTER in action.request.filters else self._qos
            self._write(codec.encode_unsuback(action.request.packet_id))
        elif isinstance(action, Reply):
            self._write(action.data)

    def _subscribe(self, request: Subscribe) -> None:
        granted: list[int] = []
        for topic_filter, qos in request.filters:
            mine = topic_filter == wire.FILTER
            self._qos = min(qos, 1) if mine else self._qos
            granted.append(min(qos, 1) if mine else codec.FILTER_REFUSED)
        self._write(codec.encode_suback(request.packet_id, granted))

    async def _asked(self, frame: Frame) -> None:
        """One request; a topic that is none ends the connection, as the hub's do."""
        if self._closing_at is not None:
            return
        _, topic, packet_id, body = frame
        try:
            codec.check_topic(topic)
            request = wire.parse_request(topic)
        except (codec.MalformedPacket, wire.BadRequestTopic) as exc:
            rid = getattr(exc, "rid", b"")
            refused = Denied(BAD, exc.message, hint=exc.hint)
            if not rid:
                self._door.desk.note(refused, self._visitor)
                self.close()
                return
            self._acknowledge(packet_id)
            self._tell_failure(refused, rid)
            return
        self._acknowledge(packet_id)
        try:
            await self._answer(request, body)
        except Exception as exc:
            self._tell_failure(exc, request.rid)

    async def _answer(self, request: wire.RegisterRequest | wire.StatusRequest, body: bytes) -> None:
        desk = self._door.desk
        if isinstance(request, wire.RegisterRequest):
            found = await desk.register(self._visitor, body)
            done = desk.at_once
        else:
            self._count_poll()
            found, done = await desk.status(self._visitor, request.operation_id), True
        status, wait_s = (200, None) if done else (202, RETRY_AFTER_S)
        self._publish(
            wire.answer_topic(status, request.rid, wait_s), msgspec.json.encode(operation_json(found, done=done))
        )

    def _count_poll(self) -> None:
        """Raises Denied (429) for a device that asks too often."""
        now = self._door.clock.monotonic()
        if len(self._polls) == POLLS_MAX and now - self._polls[0] < POLLS_S:
            raise Denied(THROTTLED, f"more than {POLLS_MAX} questions in {POLLS_S:.0f} s", hint="mind retry-after")
        self._polls.append(now)

    def _tell_failure(self, exc: Exception, rid: bytes) -> None:
        refusal = self._door.desk.refusal(exc, self._visitor)
        topic = wire.answer_topic(refusal.kind.status, rid, refusal.retry_after_s)
        self._publish(topic, msgspec.json.encode(refusal.body))

    def _publish(self, topic: bytes, body: bytes) -> None:
        if self._qos is None:
            return  # it does not listen
        packet_id = 0
        if self._qos:
            packet_id = self._next_id = self._next_id % 65_535 + 1
        self._write(codec.encode_publish(topic, body, packet_id=packet_id))

    def _acknowledge(self, packet_id: bytes) -> None:
        if packet_id:
            self._write(codec.encode_pubacks((packet_id,)))

    def _write(self, data: bytes) -> None:
        if self._transport is not None and self._closing_at is None and not self._transport.is_closing():
            self._transport.write(data)
