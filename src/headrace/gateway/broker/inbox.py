"""What a client publishes: topics resolved, rights asked, events and messages handed on, answers queued.

A client's topics are few and come again, so where each leads is remembered until a subscription changes. What nobody but the
event log wants goes there in bulk, without a Python call a message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

from headrace.core.errors import DataError
from headrace.gateway.broker.answers import Answer, Answers
from headrace.gateway.broker.ingest import Extra, Piece
from headrace.gateway.broker.message import Message
from headrace.gateway.broker.router import PLANNED_BYTES_MAX, Plan
from headrace.gateway.broker.session import Held, Session
from headrace.gateway.broker.templates import Target, properties_text
from headrace.gateway.broker.users import Rights
from headrace.wire.mqtt import codec, packets5, properties5
from headrace.wire.mqtt.codec import Frame
from headrace.wire.mqtt.machine import Frames
from headrace.wire.mqtt.packets5 import PUBACK, PUBCOMP, PUBREC, V5, Ack, encode_ack
from headrace.wire.mqtt.reasons import (
    NO_MATCHING_SUBSCRIBERS,
    NOT_AUTHORISED,
    QUOTA_EXCEEDED,
    RECEIVE_MAXIMUM_EXCEEDED,
    TOPIC_ALIAS_INVALID,
    PacketRefused,
    malformed,
    protocol_error,
)
from headrace.wire.mqtt.topics import check_name

if TYPE_CHECKING:
    from headrace.gateway.broker.hall import Hall
    from headrace.gateway.broker.link import BrokerLink

KNOWN_MAX = 10_000


class Route(NamedTuple):
    """What this client's messages of one topic lead to."""

    plan: Plan[Session]
    target: Target | None
    only_event: bool  # nobody but the event log wants it


class Inbox:
    """One connection's, from its CONNECT on. `packet_max` is the largest packet that the client takes, 0 for any;
    `tells_problems` whether it wants to read why."""

    def __init__(
        self,
        hall: Hall,
        link: BrokerLink,
        answers: Answers,
        *,
        session: Session,
        rights: Rights,
        version: int,
        packet_max: int,
        tells_problems: bool,
    ) -> None:
        self._hall, self._link, self._answers = hall, link, answers
        self._session, self._rights, self._version = session, rights, version
        self._packet_max, self._tells_problems = packet_max, tells_problems
        self._known: dict[bytes, Route] = {}
        self._known_version = -1
        self._aliases: dict[int, bytes] = {}
        answers.open = len(session.held)

    def publish(self, item: Frames) -> None:
        frames = item.frames
        hall = self._hall
        if self._known_version != hall.exchange.router.version:
            self._known.clear()
            self._known_version = hall.exchange.router.version
        if item.plain and self._only_events(frames):
            return
        before = hall.store.changes
        answer = Answer()
        out: list[bytes] = []
        events: list[tuple[Target, bytes, Extra | None]] = []
        try:
            for frame in frames:
                said = self._one(frame, events)
                if said:
                    out.append(said)
                    answer.frees += 1 if said[0] & 0xF0 == PUBACK or (said[0] & 0xF0 == PUBREC and len(said) > 4) else 0
                if self._link.closing:
                    break
            error: DataError | None = None
        except DataError as exc:
            error = exc
        answer.data = b"".join(out)
        if events:
            answer.waits += 1
            targets, bodies, extras = zip(*events, strict=True)
            hall.ingest.add(Piece(targets, bodies, extras, lambda: self._answers.kept(answer)))
        if out or answer.waits:
            self._answers.add(answer, before)
        self._throttle()
        if error is not None:
            self._link.fail(error)

    def _only_events(self, frames: list[Frame]) -> bool:
        """The quick way for what most devices send: topics that only the event log wants, nothing retained, no
        properties. False (and nothing done) where it is anything else."""
        known = self._known
        try:
            routes = [known[frame[1]] for frame in frames]
        except KeyError:
            return False
        if not all(route.only_event for route in routes) or any(frame[0] & 1 for frame in frames):
            return False
        bodies = [frame[3] for frame in frames]
        if self._version >= V5:
            if not all(body[:1] == b"\0" for body in bodies):
                return False
            bodies = [body[1:] for body in bodies]
        ids = [frame[2] for frame in frames if frame[2]]
        if not self._count(len(ids)):
            return True
        answer = Answer()
        answer.data, answer.frees = codec.encode_pubacks(ids) if ids else b"", len(ids)
        answer.waits = 1
        targets = [route.target for route in routes]
        self._hall.messages_in += len(frames)
        self._hall.ingest.add(Piece(cast(list[Target], targets), bodies, (), lambda: self._answers.kept(answer)))
        self._answers.add(answer, self._hall.store.changes)
        self._throttle()
        return True

    def _count(self, more: int) -> bool:
        """Count messages that wait for an answer; False when the client sent more than it may and was told to go."""
        self._answers.open += more
        if self._version >= V5 and self._answers.open > self._hall.config.receive_maximum:
            limit = self._hall.config.receive_maximum
            self._hall.refused(self._link, RECEIVE_MAXIMUM_EXCEEDED, f"{self._answers.open} messages under way")
            self._link.disconnect(RECEIVE_MAXIMUM_EXCEEDED, f"no more than {limit} messages may be under way")
            return False
        return True

    def _one(self, frame: Frame, events: list[tuple[Target, bytes, Extra | None]]) -> bytes:
        """Take one PUBLISH; returns its answer, b"" for none. Raises DataError where the client must go."""
        first, topic, packet_id, payload = frame
        qos = first >> 1 & 3
        properties, passed_on = packets5.NO_PROPERTIES, b""
        if self._version >= V5:
            properties, passed_on, payload = packets5.parse_publish5(payload)
            topic = self._real_topic(topic, properties)
        hall = self._hall
        hall.messages_in += 1
        session = self._session
        number = int.from_bytes(packet_id, "big")
        if qos == 2 and number in session.held:
            self._repeat(session, number, events)
            return encode_ack(self._version, PUBREC, packet_id)
        if qos and not self._count(1):
            return b""
        route = self._known.get(topic) or self._route(topic)
        if route is None:
            return self._refused_publish(topic, qos, packet_id)
        expires = hall.exchange.expires(properties) if properties else 0
        message = Message(
            topic,
            payload,
            qos=qos,
            retain=bool(first & 1),
            properties=passed_on,
            expires=expires,
            publisher=self._session.client_id,
        )
        if qos == 2:
            if session.held_bytes + message.size_bytes > hall.config.queue_bytes_max:
                raise PacketRefused(QUOTA_EXCEEDED, "too much at QoS 2 that was never released")
            mark = hall.ids.take()
            session.hold(number, Held(message, mark))
            if route.target is not None:
                events.append(self._event(message, route.target, mark))
            return encode_ack(self._version, PUBREC, packet_id)
        kept = not message.retain or hall.exchange.keep(message)
        if not kept and qos and self._version >= V5:
            return self._said(PUBACK, packet_id, QUOTA_EXCEEDED, "no room for more retained messages")
        if route.target is not None:
            events.append(self._event(message, route.target))
        plan = route.plan
        if plan.matches or plan.groups:
            hall.exchange.route(message, plan, session)
        elif self._version >= V5 and qos and route.target is None:
            return encode_ack(self._version, PUBACK, packet_id, NO_MATCHING_SUBSCRIBERS)
        return encode_ack(self._version, PUBACK, packet_id) if qos else b""

    def _repeat(self, session: Session, number: int, events: list[tuple[Target, bytes, Extra | None]]) -> None:
        """A resent QoS 2 message. Its event may not have been stored before a crash: by its mark it is the same event."""
        held = session.held[number]
        route = self._known.get(held.message.topic) or self._route(held.message.topic)
        if route is not None and route.target is not None:
            events.append(self._event(held.message, route.target, held.mark))

    def released(self, ack: Ack) -> None:
        """PUBREL: now the message is everybody's."""
        number = ack.packet_id.to_bytes(2, "big")
        before = self._hall.store.changes
        held = self._session.let_go(ack.packet_id)
        answer = Answer()
        if held is None:
            answer.data = encode_ack(self._version, PUBCOMP, number)  # resent: it was released before
        else:
            answer.data, answer.frees = encode_ack(self._version, PUBCOMP, number), 1
            message = held.message
            if message.retain:
                self._hall.exchange.keep(message)
            self._hall.exchange.route(message, self._hall.exchange.router.plan(message.topic), self._session)
        self._answers.add(answer, before)

    def _real_topic(self, topic: bytes, properties: properties5.Properties) -> bytes:
        alias = properties.get(properties5.TOPIC_ALIAS)
        if alias is None:
            if not topic:
                raise malformed("PUBLISH: neither a topic nor an alias")
            return topic
        if alias > self._hall.config.topic_alias_max:
            raise PacketRefused(TOPIC_ALIAS_INVALID, f"PUBLISH: topic alias {alias} is too large")
        if topic:
            self._aliases[alias] = topic
            return topic
        known = self._aliases.get(alias)
        if known is None:
            raise protocol_error(f"PUBLISH: topic alias {alias} was never set")
        return known

    def _route(self, topic: bytes) -> Route | None:
        """What a topic leads to; None where this client may not publish to it. Raises PacketRefused for no topic at all."""
        if not topic:
            raise malformed("PUBLISH: an empty topic")
        check_name(topic)
        if not self._hall.may_publish(self._rights, topic):
            return None
        target = self._hall.target(topic)
        if target is not None and target.registered and not self._hall.is_registered(target.device):
            return None
        plan = self._hall.exchange.router.plan(topic)
        route = Route(plan, target, target is not None and not plan.matches and not plan.groups)
        if len(topic) <= PLANNED_BYTES_MAX and (target is None or not target.registered):
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            self._known[topic] = route
        return route

    def _refused_publish(self, topic: bytes, qos: int, packet_id: bytes) -> bytes:
        """3.1.1 has no word for it but closing; version 5 is told, at QoS 0 by the end of the connection too."""
        self._hall.refused(self._link, NOT_AUTHORISED, f"may not publish to {topic[:80]!r}")
        if self._version < V5 or not qos:
            self._link.disconnect(NOT_AUTHORISED, "not allowed to publish to this topic")
            return b""
        return self._said(PUBACK if qos == 1 else PUBREC, packet_id, NOT_AUTHORISED, "not allowed to publish here")

    def _said(self, kind: int, packet_id: bytes, reason: int, said: str) -> bytes:
        packet = encode_ack(self._version, kind, packet_id, reason, said if self._tells_problems else "")
        if self._packet_max and len(packet) > self._packet_max:
            return encode_ack(self._version, kind, packet_id, reason)
        return packet

    def _event(self, message: Message, target: Target, mark: str = "") -> tuple[Target, bytes, Extra | None]:
        if not message.properties and not message.retain and not mark:
            return target, message.payload, None
        application, system = dict(target.properties), {}
        content_type: str | None = None
        if message.properties:
            found, _ = properties5.decode(
                codec.encode_length(len(message.properties)) + message.properties, 0, "PUBLISH"
            )
            application |= dict(found.get(properties5.USER_PROPERTY, ()))
            content_type = found.get(properties5.CONTENT_TYPE)
            correlation: bytes | None = found.get(properties5.CORRELATION_DATA)
            if content_type:
                system["content-type"] = content_type
            if correlation is not None:
                system["correlation-id"] = correlation.decode("utf-8", "replace")
        if message.retain:
            application["mqtt-retain"] = "true"
        event_id = self._hall.event_id(target.device, mark) if mark else ""
        return target, message.payload, Extra(properties_text(application, system), content_type, event_id)

    def _throttle(self) -> None:
        if self._hall.ingest.full:
            self._link.hold("ingest")
