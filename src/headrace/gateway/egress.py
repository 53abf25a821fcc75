"""From the hub to its devices: twin answers, desired changes, method questions and cloud-to-device messages.

Each connection has a Line. What a device asks is answered in the order asked, by one task a line that lives only while
something waits. Messages stay in the mailbox until their PUBACK; everything else is sent once, to whoever is there.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import msgspec
import structlog

from headrace.core.clock import Clock, to_iso
from headrace.core.errors import Conflict, HeadraceError, Unavailable, UserError
from headrace.devices.mailbox import Letter, Mailbox
from headrace.devices.twins import TwinService
from headrace.gateway.bus import Bus
from headrace.gateway.limits import Over
from headrace.gateway.methods import Methods
from headrace.wire.iothub.methods import parse_answer, question_topic
from headrace.wire.iothub.properties import encode_mail_bag
from headrace.wire.iothub.topics import DESIRED_FILTER, METHODS_FILTER, Identity, mail_filter, mail_topic
from headrace.wire.iothub.twin import (
    BadTwinRequest,
    TwinGet,
    TwinReport,
    answer_topic,
    desired_topic,
    parse_request,
)
from headrace.wire.mqtt import codec
from headrace.wire.mqtt.codec import Frame

REQUESTS_MAX = 200
"""Twin requests of one connection that may wait; above it they are answered with 429."""
IN_FLIGHT_MAX = 16
BUFFERED_BYTES_MAX = 1_048_576
"""A connection with more than this unsent gets no more of what may be dropped."""
PACKET_IDS = 65_535
RETRY_S = 1.0
COMPLETE_TRIES = 30
SWEEP_S = 60.0
DESIRED, MAIL = "twin.desired", "mailbox.mail"

log = structlog.get_logger()

Operation: TypeAlias = Literal["twin_reads", "twin_updates"]
Throttle: TypeAlias = Callable[[Operation, str], Over | None]
"""What stands in the way of a device's operation; None lets it through."""


class Peer(Protocol):
    """The connection under a line."""

    @property
    def filters(self) -> Mapping[str, int]:
        """What it is subscribed to, with the QoS granted."""
        ...

    @property
    def buffered_bytes(self) -> int:
        """What is written and not sent yet."""
        ...

    def send(self, data: bytes) -> bool:
        """Whether there was a connection to write to."""
        ...


class Egress:
    """All lines of this process. What is for a device connected elsewhere goes over the bus."""

    def __init__(
        self,
        *,
        twins: TwinService,
        mailbox: Mailbox,
        methods: Methods,
        bus: Bus,
        clock: Clock,
        throttle: Throttle = lambda operation, device: None,
    ) -> None:
        self.twins = twins
        self.mailbox = mailbox
        self.methods = methods
        self.bus = bus
        self.clock = clock
        self.throttle = throttle
        self.lines: dict[str, Line] = {}
        self.unacknowledged: dict[str, dict[str, int]] = {}
        """Packet ids of letters sent to a client that then left, by client and letter: sent again they keep them."""
        self._tasks: set[asyncio.Task[None]] = set()
        methods.reach = self
        twins.on_desired.append(self._desired)
        mailbox.on_mail.append(self._mail)
        bus.on(DESIRED, self._desired_elsewhere)
        bus.on(MAIL, self._mail_elsewhere)

    def open(self, identity: Identity, peer: Peer, *, present: bool = True, model_id: str = "") -> Line:
        """A connection is in, its session `present` or new. Call `subscribed` on the line once it may be written to."""
        earlier = self.lines.get(identity.client_id)
        if earlier is not None:
            self.close(earlier)
        if not present:
            self.forget(identity.client_id)
        line = self.lines[identity.client_id] = Line(self, identity, peer)
        if model_id:
            self.spawn(self._set_model(identity, model_id))
        return line

    def forget(self, client_id: str) -> None:
        """Of an identity that was deleted, or whose session is new."""
        self.unacknowledged.pop(client_id, None)

    def close(self, line: Line) -> None:
        client_id = line.identity.client_id
        if self.lines.get(client_id) is line:
            del self.lines[client_id]
            self.methods.gone(client_id)
            if line.in_flight:
                self.unacknowledged[client_id] = {letter: packet_id for packet_id, letter in line.in_flight.items()}
        line.closed = True

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def sweep_mail(self) -> None:
        """Once a minute, set aside the messages that nobody fetched in time."""
        while True:
            await self.clock.sleep(SWEEP_S)
            try:
                await self.mailbox.expire()
            except Unavailable as exc:
                log.warning("mailbox.delayed", code=exc.code)

    async def stop(self) -> None:
        self.twins.on_desired.remove(self._desired)
        self.mailbox.on_mail.remove(self._mail)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # what gateway.methods asks of us

    def listens(self, identity: Identity) -> bool:
        line = self.lines.get(identity.client_id)
        return line is not None and METHODS_FILTER in line.peer.filters

    def ask(self, identity: Identity, name: str, rid: str, payload: bytes) -> bool:
        line = self.lines.get(identity.client_id)
        return (
            line is not None and METHODS_FILTER in line.peer.filters and line.push(question_topic(name, rid), payload)
        )

    # inside

    def _desired(self, identity: Identity, patch: dict[str, Any]) -> None:
        line = self.lines.get(identity.client_id)
        if line is not None:
            line.desired(patch)
        else:
            self.bus.cast(DESIRED, [identity.device, identity.module, patch])

    async def _desired_elsewhere(self, told: Any) -> None:
        device, module, patch = told
        line = self.lines.get(Identity(device, module).client_id)
        if line is not None:
            line.desired(patch)

    def _mail(self, device: str) -> None:
        line = self.lines.get(device)
        if line is not None:
            line.mail()
        else:
            self.bus.cast(MAIL, device)

    async def _mail_elsewhere(self, device: Any) -> None:
        line = self.lines.get(device)
        if line is not None:
            line.mail()

    async def _set_model(self, identity: Identity, model_id: str) -> None:
        try:
            await self.twins.set_model(identity, model_id)
        except Unavailable as exc:  # said again at its next connect
            log.warning("twin.model_unsaved", device=identity.device, code=exc.code)


class _Request(NamedTuple):
    request: TwinGet | TwinReport
    payload: bytes


class Line:
    """What goes out to one connection."""

    __slots__ = (
        "_answering",
        "_delivering",
        "_egress",
        "_ending",
        "_mail_came",
        "_mail_filter",
        "_next_packet",
        "_requests",
        "closed",
        "identity",
        "in_flight",
        "peer",
    )

    def __init__(self, egress: Egress, identity: Identity, peer: Peer) -> None:
        self._egress = egress
        self.identity = identity
        self.peer = peer
        self.closed = False
        self.in_flight: dict[int, str] = {}  # letter ids by packet id, in the order sent
        self._ending: set[str] = set()  # letters acknowledged and not yet removed
        self._requests: deque[_Request] = deque()
        self._answering = False
        self._delivering = False
        self._mail_came = False
        self._next_packet = 0
        self._mail_filter = mail_filter(identity) if identity.module is None else ""

    def take(self, frame: Frame) -> bool:
        """A PUBLISH to a topic of the service's. False when there is no such topic, or none that may be published to."""
        topic, payload = frame[1], frame[3]
        answer = parse_answer(topic)
        if answer is not None:
            self._egress.methods.answered(self.identity.client_id, answer.rid, answer.status, payload)
            return True
        try:
            request = parse_request(topic)
        except BadTwinRequest as exc:
            self._refuse(exc.rid, 400, 400_004, exc.message)
            return True
        if request is None:
            return False
        if len(self._requests) >= REQUESTS_MAX:
            self._refuse(request.rid, 429, 429_001, f"more than {REQUESTS_MAX} twin requests wait")
            return True
        operation: Operation = "twin_reads" if isinstance(request, TwinGet) else "twin_updates"
        over = self._egress.throttle(operation, self.identity.device)
        if over is not None:
            self._refuse(request.rid, 429, 429_001, f"{over}; retry after {over.retry_s:.1f} s")
            return True
        self._requests.append(_Request(request, payload))
        if not self._answering:
            self._answering = True
            self._egress.spawn(self._answer())
        return True

    def subscribed(self) -> None:
        """Its filters changed, or it is just in: deliver what they ask for."""
        if METHODS_FILTER in self.peer.filters:
            self._egress.methods.arrived(self.identity.client_id)
        self.mail()

    def acknowledged(self, packet_id: int) -> None:
        letter = self.in_flight.pop(packet_id, None)
        if letter is not None:
            self._ending.add(letter)
            self._egress.spawn(self._complete(letter))

    def desired(self, patch: dict[str, Any]) -> None:
        """Push a change, if it is subscribed and reads."""
        if DESIRED_FILTER in self.peer.filters:
            self.push(desired_topic(patch["$version"]), msgspec.json.encode(patch))

    def push(self, topic: bytes, payload: bytes) -> bool:
        """Send once, QoS 0. False when the connection is gone or does not read."""
        if self.closed or self.peer.buffered_bytes > BUFFERED_BYTES_MAX:
            return False
        return self.peer.send(codec.encode_publish(topic, payload))

    def mail(self) -> None:
        """There may be messages: deliver them, if it is subscribed."""
        if not self._mail_filter or self._mail_filter not in self.peer.filters:
            return
        self._mail_came = True
        if not self._delivering:
            self._delivering = True
            self._egress.spawn(self._deliver())

    # twins

    async def _answer(self) -> None:
        try:
            while self._requests and not self.closed:
                request, payload = self._requests.popleft()
                try:
                    await self._answer_one(request, payload)
                except Exception as exc:
                    self._refuse(request.rid, *_refusal(exc))
        finally:
            self._answering = False

    async def _answer_one(self, request: TwinGet | TwinReport, payload: bytes) -> None:
        twins = self._egress.twins
        if isinstance(request, TwinGet):
            body = msgspec.json.encode((await twins.get(self.identity)).for_device())
            self._say(answer_topic(200, request.rid), body)
            return
        try:
            patch = msgspec.json.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise UserError("the patch is not JSON", hint="send a JSON object", code="twin.json") from exc
        version = await twins.report(self.identity, patch, request.base_version)
        self._say(answer_topic(204, request.rid, version), b"")

    def _refuse(self, rid: bytes, status: int, code: int, message: str) -> None:
        said = {"errorCode": code, "message": message, "timestampUtc": to_iso(self._egress.clock.now())}
        self._say(answer_topic(status, rid), msgspec.json.encode(said))

    def _say(self, topic: bytes, payload: bytes) -> None:
        """Send an answer, however full the connection: a device waits for it without a timeout, and asked for it itself."""
        if not self.closed:
            self.peer.send(codec.encode_publish(topic, payload))

    # messages

    async def _deliver(self) -> None:
        """Fill the window until there are no more messages, or no more room."""
        try:
            while self._mail_came and not self.closed and self._room > 0:
                self._mail_came = False
                try:
                    letters = await self._egress.mailbox.peek(self.identity.device)
                except Unavailable as exc:
                    log.warning("mailbox.delayed", device=self.identity.device, code=exc.code)
                    self._mail_came = True
                    await self._egress.clock.sleep(RETRY_S)
                    continue
                self._send_letters(letters)
        finally:
            self._delivering = False

    def _send_letters(self, letters: list[Letter]) -> None:
        under_way = {*self.in_flight.values(), *self._ending}
        waiting = [letter for letter in letters if letter.id not in under_way]
        qos = self.peer.filters.get(self._mail_filter)
        if qos is None or self.closed:
            return
        room = self._room
        earlier = self._egress.unacknowledged.get(self.identity.client_id, {})
        for letter in waiting[:room]:
            bag = encode_mail_bag(letter.device, letter.message.system, letter.message.application)
            topic = mail_topic(letter.device, bag)
            if qos == 0:
                self.peer.send(codec.encode_publish(topic, letter.message.body))
                self._ending.add(letter.id)
                self._egress.spawn(self._complete(letter.id))
                continue
            known = earlier.pop(letter.id, 0)
            packet_id = known or self._packet_id(earlier)
            self.in_flight[packet_id] = letter.id
            self.peer.send(codec.encode_publish(topic, letter.message.body, packet_id=packet_id, duplicate=bool(known)))
        if not waiting[room:]:
            self._egress.unacknowledged.pop(self.identity.client_id, None)  # what is left of it is gone
        else:
            self._mail_came = True

    @property
    def _room(self) -> int:
        if self.peer.buffered_bytes > BUFFERED_BYTES_MAX:
            return 0
        return IN_FLIGHT_MAX - len(self.in_flight) - len(self._ending)

    def _packet_id(self, taken: Mapping[str, int]) -> int:
        """The next packet id that is not in use."""
        while True:
            self._next_packet = self._next_packet % PACKET_IDS + 1
            if self._next_packet not in self.in_flight and self._next_packet not in taken.values():
                return self._next_packet

    async def _complete(self, letter: str) -> None:
        """Remove what was acknowledged; while the store is unavailable it is tried again."""
        for _ in range(COMPLETE_TRIES):
            try:
                await self._egress.mailbox.complete(self.identity.device, letter)
                break
            except Unavailable as exc:
                log.warning("mailbox.delayed", device=self.identity.device, code=exc.code)
                await self._egress.clock.sleep(RETRY_S)
        self._ending.discard(letter)
        if self._mail_came:  # there was no room for all of them
            self.mail()


def _refusal(exc: Exception) -> tuple[int, int, str]:
    """(status, IoT Hub's error code, message) of what went wrong with a twin request."""
    if isinstance(exc, Conflict):
        return 412, 412_001, exc.message
    if isinstance(exc, UserError):
        return 400, 400_004, exc.message
    if isinstance(exc, Unavailable):
        return 503, 503_001, exc.message
    if isinstance(exc, HeadraceError):
        return 500, 500_001, exc.message
    log.exception("twin.request_failed", error=type(exc).__name__)
    return 500, 500_001, "the request failed"
