"""One client's connection: bytes to packets to the exchange, and back.

Answers leave in the order of what they answer, each once what it promises is on disk: in the store, in the event log, or both.
What a turn of the event loop produces for a client goes out in one write, answers first.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from headrace.core.errors import DataError
from headrace.gateway.broker.answers import Answer, Answers
from headrace.gateway.broker.inbox import Inbox
from headrace.gateway.broker.message import Delivery, Message
from headrace.gateway.broker.router import PLANNED_BYTES_MAX
from headrace.gateway.broker.session import Session
from headrace.gateway.broker.users import Rights
from headrace.wire.mqtt import codec, packets5, properties5
from headrace.wire.mqtt.machine import Broken, BrokerMachine, Frames, Item, Ping
from headrace.wire.mqtt.packets5 import PUBREL, V5, Ack, Connect, Disconnect, Subscribe, Unsubscribe, encode_ack
from headrace.wire.mqtt.reasons import (
    CONNACK_3,
    DISCONNECT_WITH_WILL,
    ERROR,
    KEEP_ALIVE_TIMEOUT,
    NAMES,
    NOT_AUTHORISED,
    PACKET_TOO_LARGE,
    PROTOCOL_ERROR,
    SUCCESS,
    PacketRefused,
    protocol_error,
)

if TYPE_CHECKING:
    from headrace.gateway.broker.hall import Hall

CONNECT_TIMEOUT_S = 10.0
LINGER_S = 2.0
"""How long a connection that was told to go may take to read why."""
OVER_LIMIT_MAX = 500
"""Connections above the limit that are kept long enough to be told so."""
ALIASES_MAX = 1000
"""Topics that are given an alias on one connection, however many the client would take."""
WRITE_HIGH_BYTES = 1 << 20
BACKLOG_BYTES_MAX = 8 << 20
"""QoS 0 messages beyond this are dropped: the client does not read them as fast as they come."""


class BrokerLink(asyncio.Protocol):
    def __init__(self, hall: Hall) -> None:
        self._hall = hall
        self._machine = BrokerMachine(packet_bytes_max=hall.config.packet_bytes_max)
        self._transport: asyncio.Transport | None = None
        self.session: Session | None = None
        self.rights: Rights | None = None
        self.client_id = ""
        self.address = ""
        self.version = 0
        self.window = 0
        self.reason = ""
        self._deferred: list[Item] = []
        self._will_stays = True
        self._keep_alive_s = CONNECT_TIMEOUT_S
        self._last_seen = 0.0
        self._closing_at: float | None = None
        self._holds: set[str] = set()
        self._packet_max = 0
        self._answers = Answers(hall.store, write=self._reply, hold=self.hold, go_on=self.go_on)
        self._inbox: Inbox | None = None
        self._aliases_max = 0  # that the client allows
        self._aliased: dict[bytes, int] = {}  # that we set
        self._alias_for: bytes = b""  # the topic whose alias is in the packet being made, where it is a new one
        self._first_out: list[bytes] = []
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._backlog = 0
        self._dirty = False
        self._choked = False

    # asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        peer = transport.get_extra_info("peername") or ("",)
        self.address = str(peer[0])
        self._last_seen = self._hall.clock.monotonic()
        self._hall.links.add(self)
        if len(self._hall.links) > self._hall.config.connections_max + OVER_LIMIT_MAX:
            self.close("connections_max")

    def data_received(self, data: bytes) -> None:
        if self._closing_at is not None:
            return
        self._last_seen = self._hall.clock.monotonic()
        items = self._machine.receive(data)
        if "connect" in self._holds:
            self._deferred += items  # read before the transport heard that it should pause
        else:
            self._act(items)

    def pause_writing(self) -> None:
        self._choked = True

    def resume_writing(self) -> None:
        self._choked = False
        self._backlog = 0
        if self.session is not None and self.session.link is self:
            self.session.pump()

    def eof_received(self) -> None:
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self.reason = self.reason or ("connection_lost" if exc else "closed_by_client")
        self._closing_at = self._closing_at if self._closing_at is not None else self._hall.clock.monotonic()
        self._transport = None
        self._answers.close()
        self._machine.close()
        self._hall.links.discard(self)
        self.leave()

    # the session calls these

    @property
    def room(self) -> bool:
        return not self._choked and self._backlog + self._out_bytes < BACKLOG_BYTES_MAX

    def send(self, delivery: Delivery, *, again: bool) -> bool:
        message = delivery.message
        first = codec.PUBLISH | (8 if again else 0) | delivery.qos << 1 | delivery.retain
        if self.version < V5 or not (message.expires or delivery.identifiers or self._aliases_max):
            head, tail = message.packet(self.version, first)
        else:
            head, tail = self._own_packet(message, first, delivery.identifiers)
        size = len(head) + 2 + len(tail)
        if self._packet_max and size > self._packet_max:
            self._forget_alias()
            return False
        self._out.append(head + delivery.packet_id.to_bytes(2, "big") + tail)
        self._out_bytes += size
        if not self._dirty:
            self._mark()
        return True

    def send_once(self, message: Message, retain: bool, identifiers: tuple[int, ...]) -> None:
        first = codec.PUBLISH | retain
        if self.version < V5 or not (message.expires or identifiers or self._aliases_max):
            head, tail = message.packet(self.version, first)
        else:
            head, tail = self._own_packet(message, first, identifiers)
        size = len(head) + len(tail)
        if self._backlog + self._out_bytes + size > BACKLOG_BYTES_MAX:
            self._forget_alias()
            self._hall.exchange.dropped("slow_client")
            return
        if self._packet_max and size > self._packet_max:
            self._forget_alias()
            self._hall.exchange.dropped("too_large")
            return
        self._out.append(head)
        self._out.append(tail)
        self._out_bytes += size
        if not self._dirty:
            self._mark()

    def release(self, packet_id: int) -> None:
        self._out.append(encode_ack(self.version, PUBREL, packet_id.to_bytes(2, "big")))
        self._mark()

    # the hall calls these

    @property
    def closing(self) -> bool:
        return self._closing_at is not None

    def flush(self) -> None:
        """Write what this turn of the event loop has gathered."""
        self._dirty = False
        transport = self._transport
        data = b"".join(self._first_out + self._out)
        self._first_out.clear()
        self._out.clear()
        self._out_bytes = 0
        if transport is not None and not transport.is_closing() and data:
            transport.write(data)
            self._backlog = transport.get_write_buffer_size()
        session = self.session
        if session is not None and session.waiting and session.link is self and self.room:
            session.pump()

    def check(self, now: float) -> None:
        """What time asks for; `now` is monotonic seconds."""
        if self._closing_at is not None:
            if now - self._closing_at > LINGER_S and self._transport is not None:
                self._transport.abort()
        elif self._keep_alive_s and now - self._last_seen > self._keep_alive_s and not self._holds - {"connect"}:
            if self.session is None:
                self.close("connect_timeout")
            else:
                self.disconnect(KEEP_ALIVE_TIMEOUT)

    def hold(self, why: str) -> None:
        """Stop reading until every reason for it is gone."""
        if not self._holds and self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()
        self._holds.add(why)

    def go_on(self, why: str) -> None:
        if why in self._holds:
            self._holds.discard(why)
            self._last_seen = self._hall.clock.monotonic()
            if not self._holds and self._closing_at is None and self._transport is not None:
                self._transport.resume_reading()

    def disconnect(self, reason: int, said: str = "", *, with_will: bool = True) -> None:
        """Tell the client why (3.1.1 has no words for it) and close."""
        if self._closing_at is not None:
            return
        self._will_stays = self._will_stays and with_will
        if self.version >= V5:
            packet = packets5.encode_disconnect(reason, said)
            if self._packet_max and len(packet) > self._packet_max:
                packet = packets5.encode_disconnect(reason)
            self._out.append(packet)
        self.close(NAMES.get(reason, str(reason)))

    def close(self, reason: str) -> None:
        """Write what is there, say that nothing follows, and give the client a moment to read it."""
        if self._closing_at is not None:
            return
        self._closing_at = self._hall.clock.monotonic()
        self._answers.close()
        self.reason = reason
        self._machine.close()
        self._hall.note(self, reason)
        self.flush()
        self.leave()
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._holds:
            self._holds.clear()
            transport.resume_reading()
        if not transport.can_write_eof():
            transport.close()
            return
        try:
            transport.write_eof()  # what it still sends is read and dropped, so that no reset overtakes our last words
        except OSError:  # it has gone already, and nobody told us yet
            transport.abort()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def leave(self) -> None:
        """Part from the session, once."""
        session, self.session = self.session, None
        if session is not None and session.link is self:
            self._hall.left(self, session, with_will=self._will_stays)

    # packets

    def _act(self, items: list[Item]) -> None:
        for index, item in enumerate(items):
            if type(item) is Frames:
                assert self._inbox is not None  # the machine lets no PUBLISH through before its CONNECT
                self._inbox.publish(item)
            elif type(item) is Ack:
                self._acknowledged(item)
            elif type(item) is Ping:
                self._reply(codec.PING_RESPONSE)
            elif type(item) is Subscribe:
                self._subscribe(item)
            elif type(item) is Unsubscribe:
                self._unsubscribe(item)
            elif type(item) is Connect:
                self._connect(item)
                if "connect" in self._holds:
                    self._deferred = items[index + 1 :]
                    return
            elif type(item) is Disconnect:
                self._disconnected(item)
            elif type(item) is Broken:
                self._broken(item)
            if self._closing_at is not None:
                return

    def _broken(self, broken: Broken) -> None:
        if broken.reply:
            self._out.append(broken.reply)
        self._hall.refused(self, broken.reason, broken.error.message)
        self.close(NAMES.get(broken.reason, "broken"))

    def fail(self, error: DataError) -> None:
        reason = error.reason if isinstance(error, PacketRefused) else PROTOCOL_ERROR
        self._hall.refused(self, reason, error.message)
        self.disconnect(reason)

    def _disconnected(self, left: Disconnect) -> None:
        session = self.session
        expiry_s = left.properties.get(properties5.SESSION_EXPIRY)
        if expiry_s is not None and session is not None:
            if expiry_s and not session.durable:
                self.fail(protocol_error("DISCONNECT: a session expiry where CONNECT had none"))
                return
            self._hall.exchange.set_expiry(session, expiry_s)
            if not session.durable:
                self._hall.store.drop_session(session.client_id)
        self._will_stays = left.reason == DISCONNECT_WITH_WILL or left.reason >= ERROR
        self._closing_at = self._hall.clock.monotonic()
        self._answers.close()
        self.reason = "disconnected"
        self.flush()
        self.leave()
        if self._transport is not None:
            self._transport.close()

    # coming in

    def _connect(self, connect: Connect) -> None:
        self.version = connect.version
        reason = self._hall.admission.reason(connect, len(self._hall.links))
        if reason != SUCCESS:
            self._turn_away(reason)
            return
        user = self._hall.admission.user(connect, self._certificate_name())
        if isinstance(user, int):
            self._turn_away(user)
        elif user is not None:
            self._enter(connect, user)
        else:
            self.hold("connect")
            self._hall.spawn(self._verify(connect))

    def _certificate_name(self) -> str | None:
        """The common name in a client certificate that the TLS layer has verified."""
        found = self._transport.get_extra_info("peercert") if self._transport is not None else None
        for part in (found or {}).get("subject", ()):
            for key, value in part:
                if key == "commonName":
                    return str(value)
        return None

    async def _verify(self, connect: Connect) -> None:
        user = await self._hall.admission.verify(connect)
        if self._closing_at is not None:
            return
        if isinstance(user, int):
            self._turn_away(user)
        else:
            self._enter(connect, user)

    def _act_on_deferred(self) -> None:
        """What came behind a CONNECT that could not be answered at once."""
        if "connect" in self._holds:
            deferred, self._deferred = self._deferred, []
            self.go_on("connect")
            if self._closing_at is None:
                self._act(deferred)

    def _turn_away(self, reason: int) -> None:
        code = reason if self.version >= V5 else CONNACK_3.get(reason, 0)
        if code:
            self._out.append(packets5.encode_connack(self.version, code))
        self._hall.refused(self, reason, "CONNECT")
        self.close(NAMES.get(reason, str(reason)))

    def _enter(self, connect: Connect, user: str) -> None:
        config = self._hall.config
        asked = connect.properties
        self.client_id = connect.client_id or self._hall.new_client_id()
        self.rights = Rights(config.acl, user, self.client_id)
        if connect.will is not None and not self._hall.may_publish(self.rights, connect.will.topic):
            self._turn_away(NOT_AUTHORISED)
            return
        packet_max = self._packet_max = asked.get(properties5.MAXIMUM_PACKET_SIZE, 0)
        self._aliases_max = min(asked.get(properties5.TOPIC_ALIAS_MAXIMUM, 0), ALIASES_MAX)
        self.window = min(asked.get(properties5.RECEIVE_MAXIMUM, 0xFFFF), config.inflight_max)
        earlier = self._hall.exchange.sessions.get(self.client_id)
        forgets = connect.clean_start and earlier is not None and earlier.durable
        begun = self._hall.enter(self, connect, user)
        if isinstance(begun, int):
            self._turn_away(begun)
            return
        self.session, present = begun
        self._inbox = Inbox(
            self._hall,
            self,
            self._answers,
            session=self.session,
            rights=self.rights,
            version=self.version,
            packet_max=packet_max,
            tells_problems=asked.get(properties5.REQUEST_PROBLEM, 1) == 1,
        )
        keep_alive_s = connect.keep_alive_s
        told: properties5.Properties = {}
        if self.version >= V5:
            if self.session.expiry_s != asked.get(properties5.SESSION_EXPIRY, 0):
                told[properties5.SESSION_EXPIRY] = self.session.expiry_s
            if not connect.client_id:
                told[properties5.ASSIGNED_CLIENT_ID] = self.client_id
            if 0 < config.keep_alive_max_s < keep_alive_s:
                keep_alive_s = told[properties5.SERVER_KEEP_ALIVE] = config.keep_alive_max_s
            told |= self._hall.told
        self._keep_alive_s = 1.5 * keep_alive_s
        self.session.link = self
        connack = packets5.encode_connack(self.version, 0, session_present=present, properties=told)
        if 0 < packet_max < len(connack):  # it may not be sent, and nothing may come before it
            self.close(NAMES[PACKET_TOO_LARGE])
            return
        if forgets:  # a crash must not bring back what this client was told is gone
            self.hold("connect")
            self._hall.store.when_durable(lambda: self._welcome(connack))
        else:
            self._welcome(connack)

    def _welcome(self, connack: bytes) -> None:
        session = self.session
        if session is not None:
            self._reply(connack)
            session.resume(self)
            self._act_on_deferred()

    # subscriptions

    def _subscribe(self, request: Subscribe) -> None:
        session, rights = self.session, self.rights
        assert session is not None
        assert rights is not None
        exchange, store = self._hall.exchange, self._hall.store
        before = store.changes
        done = [exchange.subscribe(session, wanted, request.identifier, rights) for wanted in request.wanted]
        answer = Answer()
        answer.data = packets5.encode_suback(self.version, request.packet_id, [each.reason for each in done])
        retained = [found for each in done for found in each.retained]
        if retained:
            answer.then = lambda: self._send_retained(session, retained)
        self._answers.add(answer, before)

    def _send_retained(self, session: Session, retained: list[tuple[Message, int, int]]) -> None:
        for message, qos, identifier in retained:
            session.deliver(message, qos, True, (identifier,) if identifier else ())

    def _unsubscribe(self, request: Unsubscribe) -> None:
        assert self.session is not None
        exchange, store = self._hall.exchange, self._hall.store
        before = store.changes
        reasons = [exchange.unsubscribe(self.session, topic_filter) for topic_filter in request.filters]
        answer = Answer()
        answer.data = packets5.encode_suback(self.version, request.packet_id, reasons, first=codec.UNSUBACK)
        self._answers.add(answer, before)

    # messages to the client: its acknowledgements

    def _acknowledged(self, ack: Ack) -> None:
        session = self.session
        assert session is not None
        if ack.kind == PUBREL:
            assert self._inbox is not None
            self._inbox.released(ack)
            return
        reason = session.acknowledge(ack.kind, ack.packet_id, ack.reason)
        if reason != SUCCESS:
            self.fail(protocol_error(f"an acknowledgement 0x{ack.kind:02x} that does not fit packet {ack.packet_id}"))

    # bytes

    def _own_packet(self, message: Message, first: int, identifiers: tuple[int, ...]) -> tuple[bytes, bytes]:
        """A packet with properties that only this client gets."""
        topic, alias = message.topic, 0
        self._alias_for = b""
        if self._aliases_max:
            alias = self._aliased.get(topic, 0)
            if alias:
                topic = b""
            elif len(self._aliased) < self._aliases_max and len(topic) <= PLANNED_BYTES_MAX:
                alias = self._aliased[topic] = len(self._aliased) + 1
                self._alias_for = topic
        now = self._hall.clock.now() if message.expires else 0
        return message.packet_for(self.version, first, topic, message.own_properties(now, identifiers, alias))

    def _forget_alias(self) -> None:
        """The packet that would have set an alias is not sent after all."""
        if self._alias_for:
            del self._aliased[self._alias_for]
            self._alias_for = b""

    def _reply(self, data: bytes) -> None:
        self._first_out.append(data)
        self._mark()

    def _mark(self) -> None:
        if not self._dirty:
            self._dirty = True
            self._hall.mark(self)
