"""A client's session: its subscriptions, what is under way to it, what waits for it, and what it sent at QoS 2 and not released.

A session whose expiry is not zero is durable: each of its QoS 1 and 2 deliveries is in the store until the client acknowledged
it. At QoS 2 the packet id is on disk before the PUBLISH is sent, so that after a crash the same id comes again and the client
knows it for the same message.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from headrace.core.clock import TICKS_PER_S, Clock
from headrace.gateway.broker.message import PUBLISHED, RELEASED, Delivery, Message
from headrace.gateway.broker.router import Subscription
from headrace.gateway.broker.store import HeldRow, SessionRow, Store
from headrace.wire.mqtt.packets5 import PUBACK, PUBCOMP, PUBREC
from headrace.wire.mqtt.reasons import ERROR, PROTOCOL_ERROR, SUCCESS

NEVER_EXPIRES = 0xFFFF_FFFF


class Link(Protocol):
    """What a session asks of the connection it has."""

    window: int  # deliveries that may be under way

    @property
    def room(self) -> bool:
        """Whether more may be written."""
        ...

    def send(self, delivery: Delivery, *, again: bool) -> bool:
        """Write a PUBLISH; False where it is larger than the client takes."""
        ...

    def send_once(self, message: Message, retain: bool, identifiers: tuple[int, ...]) -> None:
        """Write a PUBLISH of QoS 0."""
        ...

    def release(self, packet_id: int) -> None:
        """Write a PUBREL."""
        ...


class Limits(NamedTuple):
    messages_max: int
    bytes_max: int


class Held(NamedTuple):
    """A message of QoS 2 that its client has not released. `mark` makes its event the same on every resend."""

    message: Message
    mark: str


class Session:
    def __init__(
        self,
        client_id: str,
        user: str,
        *,
        store: Store,
        clock: Clock,
        limits: Limits,
        dropped: Callable[[str], None],
    ) -> None:
        self.client_id = client_id
        self.user = user
        self._store = store
        self._clock = clock
        self._limits = limits
        self._dropped = dropped
        self.expiry_s = 0
        self.ended = 0  # ticks; 0 while there is a connection
        self.will: Message | None = None
        self.will_delay_s = 0
        self.will_at = 0  # ticks; 0 while it is not due
        self.link: Link | None = None
        self.gone = False
        self.subscriptions: dict[bytes, Subscription[Session]] = {}
        self.inflight: dict[int, Delivery] = {}  # by packet id, in the order sent
        self.held: dict[int, Held] = {}
        self.held_bytes = 0
        self._unsent: deque[int] = deque()  # under way, but not on this connection yet
        self._queue: deque[Delivery] = deque()
        self._queue_bytes = 0
        self._last_id = 0

    @property
    def durable(self) -> bool:
        return self.expiry_s > 0

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def expired(self, now: int) -> bool:
        if self.link is not None or self.expiry_s >= NEVER_EXPIRES:
            return False
        return now >= self.ended + self.expiry_s * TICKS_PER_S

    def save(self) -> None:
        """Write the session itself, if it is to outlive its connection."""
        if self.durable:
            will = self.will
            row = SessionRow(
                self.client_id, self.user, self.expiry_s, self.ended, will, self.will_delay_s, self.will_at
            )
            self._store.put_session(row)

    # deliveries

    def deliver(
        self, message: Message, qos: int, retain: bool, identifiers: tuple[int, ...] = (), group: bytes = b""
    ) -> None:
        """Send a message now, or keep it for later."""
        link = self.link
        if not qos:
            if link is not None:
                link.send_once(message, retain, identifiers)
            return
        if link is None and not self.durable:
            return
        waits = link is None or bool(self._queue) or not self._has_room(link)
        if waits and (
            len(self._queue) >= self._limits.messages_max
            or self._queue_bytes + message.size_bytes > self._limits.bytes_max
        ):
            self._dropped("queue_full")
            return
        delivery = Delivery(message, qos, retain, identifiers, group)
        if waits:
            if self.durable:
                self._store.put_delivery(self.client_id, delivery)
            self._queue.append(delivery)
            self._queue_bytes += message.size_bytes
        else:
            assert link is not None
            self._launch(delivery, link)

    def restore(self, delivery: Delivery) -> None:
        """Take back a delivery that the store kept."""
        if delivery.packet_id:
            self.inflight[delivery.packet_id] = delivery
            self._last_id = max(self._last_id, delivery.packet_id)
        else:
            self._queue.append(delivery)
            self._queue_bytes += delivery.message.size_bytes

    def resume(self, link: Link) -> None:
        """A connection again: repeat what is under way, in the order it was sent, then go on with what waits."""
        self.link = link
        self._unsent = deque(self.inflight)
        self.pump()

    def pump(self) -> None:
        """Send what there is room for."""
        link = self.link
        if link is None:
            return
        while self._unsent and self._has_room(link):
            packet_id = self._unsent.popleft()
            delivery = self.inflight.get(packet_id)
            if delivery is None:
                continue
            if delivery.state == RELEASED:
                link.release(packet_id)
            elif not link.send(delivery, again=delivery.sent):
                self._finish(delivery)
            else:
                delivery.sent = True
        now = self._clock.now() if self._queue else 0
        while self._queue and not self._unsent and self._has_room(link):
            delivery = self._queue.popleft()
            self._queue_bytes -= delivery.message.size_bytes
            if 0 < delivery.message.expires <= now:
                self._store.drop_delivery(delivery)
                self._dropped("expired")
            else:
                self._launch(delivery, link)

    def acknowledge(self, kind: int, packet_id: int, reason: int) -> int:
        """A PUBACK, PUBREC or PUBCOMP came. Returns a reason above ERROR where the client must go."""
        delivery = self.inflight.get(packet_id)
        if delivery is None or packet_id in self._unsent:
            if kind == PUBREC and reason < ERROR and self.link is not None:
                self.link.release(packet_id)  # after a restart it may well know a message that we do not
            return SUCCESS
        if (kind == PUBACK) != (delivery.qos == 1) or (kind == PUBCOMP and delivery.state != RELEASED):
            return PROTOCOL_ERROR
        if kind == PUBREC and reason < ERROR:
            if delivery.state == PUBLISHED:
                delivery.state = RELEASED
                if delivery.row:
                    self._store.put_delivery(self.client_id, delivery)
            if self.link is not None:
                self.link.release(packet_id)
            return SUCCESS
        self._finish(delivery)
        self.pump()
        return SUCCESS

    def _has_room(self, link: Link) -> bool:
        return len(self.inflight) - len(self._unsent) < link.window and link.room

    def _launch(self, delivery: Delivery, link: Link) -> None:
        delivery.packet_id = self._packet_id()
        self.inflight[delivery.packet_id] = delivery
        if not self.durable:
            self._first(delivery, link)
        elif delivery.qos == 1:
            if not delivery.row:
                self._store.put_delivery(self.client_id, delivery)
            self._first(delivery, link)
        else:
            self._store.put_delivery(self.client_id, delivery)
            self._store.when_durable(lambda: self._first(delivery, link))

    def _first(self, delivery: Delivery, link: Link) -> None:
        """Send a delivery for the first time, unless its connection is gone by now."""
        if self.link is not link or self.inflight.get(delivery.packet_id) is not delivery or delivery.sent:
            return
        delivery.sent = True
        if not link.send(delivery, again=False):
            self._dropped("too_large")
            self._finish(delivery)

    def _finish(self, delivery: Delivery) -> None:
        self.inflight.pop(delivery.packet_id, None)
        self._store.drop_delivery(delivery)

    def _packet_id(self) -> int:
        """The next free one; a window is far smaller than their number."""
        while True:
            self._last_id = self._last_id % 0xFFFF + 1
            if self._last_id not in self.inflight:
                return self._last_id

    # what it sent at QoS 2

    def hold(self, packet_id: int, held: Held) -> None:
        self.held[packet_id] = held
        self.held_bytes += held.message.size_bytes
        if self.durable:
            self._store.put_held(HeldRow(self.client_id, packet_id, held.mark, held.message))

    def let_go(self, packet_id: int) -> Held | None:
        """The message that a PUBREL releases; None when there is none by that id."""
        held = self.held.pop(packet_id, None)
        if held is not None:
            self.held_bytes -= held.message.size_bytes
            if self.durable:
                self._store.drop_held(self.client_id, packet_id)
        return held

    # its end

    def end(self) -> list[Delivery]:
        """Forget everything, on disk too. Returns what came by shared subscriptions and is still undelivered."""
        self.gone = True
        left = [delivery for delivery in (*self.inflight.values(), *self._queue) if delivery.group]
        for delivery in (*self.inflight.values(), *self._queue):
            self._store.drop_delivery(delivery)
        for packet_id in self.held:
            self._store.drop_held(self.client_id, packet_id)
        for topic_filter in self.subscriptions:
            self._store.drop_subscription(self.client_id, topic_filter)
        self._store.drop_session(self.client_id)
        self.inflight.clear()
        self._queue.clear()
        self._queue_bytes = 0
        self.held.clear()
        return [delivery for delivery in left if delivery.state == PUBLISHED]
