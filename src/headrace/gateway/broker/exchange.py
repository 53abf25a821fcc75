"""The heart of the broker: sessions, who gets what, retained messages and wills. It knows connections only as Links.

Everything here happens at once, on the event loop; what must be on disk before an answer goes out is asked of the store by
whoever answers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import structlog

from headrace.core.clock import TICKS_PER_S, Clock
from headrace.core.config import BrokerConfig
from headrace.core.observe.metrics import Metrics
from headrace.gateway.broker.message import Message
from headrace.gateway.broker.retained import Retained
from headrace.gateway.broker.router import Plan, Router, Subscription, merged
from headrace.gateway.broker.session import Held, Limits, Session
from headrace.gateway.broker.store import Loaded, Store, SubscriptionRow
from headrace.gateway.broker.users import Rights
from headrace.wire.mqtt.packets5 import Connect, Wanted, passed_on
from headrace.wire.mqtt.properties5 import MESSAGE_EXPIRY, SESSION_EXPIRY, WILL_DELAY, Properties
from headrace.wire.mqtt.reasons import (
    FILTER_INVALID,
    NO_SUBSCRIPTION_EXISTED,
    NOT_AUTHORISED,
    QUOTA_EXCEEDED,
    SUCCESS,
)
from headrace.wire.mqtt.topics import LEVELS_MAX, parse_filter

log = structlog.get_logger()


class Subscribed(NamedTuple):
    reason: int  # the granted QoS, or a failure
    retained: list[tuple[Message, int, int]]  # message, QoS and subscription identifier


class Exchange:
    """`on_will` hears of every will that is to be published, with the session it is of."""

    def __init__(self, config: BrokerConfig, store: Store, clock: Clock, metrics: Metrics) -> None:
        self._config = config
        self._store = store
        self._clock = clock
        self.sessions: dict[str, Session] = {}
        self.router: Router[Session] = Router(self._may_receive)
        self.retained = Retained(messages_max=config.retained_max, bytes_max=config.retained_bytes_max)
        self.on_will: Callable[[Session, Message], None] = lambda session, message: None
        self._rights: dict[str, Rights] = {}  # by client id, of those whose rights hide topics
        self._limits = Limits(config.queue_messages_max, config.queue_bytes_max)
        dropped = metrics.counter("broker_dropped_total", "Messages not delivered, by reason", ("reason",))
        self.dropped: Callable[[str], None] = lambda reason: dropped.labels(reason).inc()
        metrics.gauge("broker_sessions", "Sessions, connected or kept").set_function(lambda: len(self.sessions))
        metrics.gauge("broker_subscriptions", "Subscriptions of all sessions").set_function(lambda: self.router.count)
        metrics.gauge("broker_retained", "Retained messages").set_function(lambda: self.retained.count)

    def restore(self, loaded: Loaded) -> None:
        """Take back what the store kept. Connections that were open when the process ended count as lost now."""
        now = self._clock.now()
        for row in loaded.sessions:
            session = self._new_session(row.client_id, row.user)
            session.expiry_s, session.ended = row.expiry_s, row.ended or now
            session.will, session.will_delay_s, session.will_at = row.will, row.will_delay_s, row.will_at
            if session.will is not None and not session.will_at:
                session.will_at = now + row.will_delay_s * TICKS_PER_S
            self.sessions[row.client_id] = session
            self._hide(row.client_id, Rights(self._config.acl, row.user, row.client_id))
        for each in loaded.subscriptions:
            if (owner := self.sessions.get(each.client_id)) is not None:
                filter_ = parse_filter(each.filter)
                subscription = Subscription(
                    owner, each.filter, filter_.group, filter_.levels, each.qos, each.no_local, each.as_published,
                    each.identifier,
                )  # fmt: skip
                owner.subscriptions[each.filter] = subscription
                self.router.add(subscription)
        for client_id, delivery in loaded.deliveries:
            if (owner := self.sessions.get(client_id)) is not None:
                owner.restore(delivery)
        for held in loaded.held:
            if (owner := self.sessions.get(held.client_id)) is not None:
                owner.held[held.packet_id] = Held(held.message, held.mark)
                owner.held_bytes += held.message.size_bytes
        for message in loaded.retained:
            self.retained.put(message)

    # sessions

    def begin(self, connect: Connect, client_id: str, user: str, rights: Rights) -> tuple[Session, bool] | int:
        """The session of a client that was let in, and whether there was one; or the reason why there is none."""
        earlier = self.sessions.get(client_id)
        if earlier is not None and earlier.expired(self._clock.now()):
            self.end(earlier)
            earlier = None
        if earlier is not None and earlier.user != user:
            return NOT_AUTHORISED
        if earlier is None and len(self.sessions) >= self._config.sessions_max:
            return QUOTA_EXCEEDED
        if earlier is not None and connect.clean_start:
            self.end(earlier)
            earlier = None
        session = earlier or self._new_session(client_id, user)
        self.sessions[client_id] = session
        self._hide(client_id, rights)
        was_durable, session.expiry_s = session.durable, self._expiry_s(connect)
        if was_durable and not session.durable:
            self._store.drop_session(client_id)  # it ends with this connection, also where the process does first
        session.ended = session.will_at = 0
        will = connect.will
        session.will = None
        if will is not None:
            session.will = Message(
                will.topic, will.payload, qos=will.qos, retain=will.retain, publisher=client_id,
                properties=passed_on(will.properties), expires=will.properties.get(MESSAGE_EXPIRY, 0),
            )  # fmt: skip
            session.will_delay_s = will.properties.get(WILL_DELAY, 0)
        session.save()
        return session, earlier is not None

    def set_expiry(self, session: Session, expiry_s: int) -> None:
        """What a DISCONNECT says last."""
        session.expiry_s = min(expiry_s, self._config.session_expiry_max_s)

    def leave(self, session: Session, *, with_will: bool) -> None:
        """Its connection is gone. The will is published now, later, or never."""
        session.link = None
        session.ended = self._clock.now()
        if not with_will:
            session.will = None
        ends = not session.durable
        if session.will is not None:
            session.will_at = session.ended + (0 if ends else session.will_delay_s * TICKS_PER_S)
            if session.will_at <= session.ended:
                self._publish_will(session)
        if ends:
            self.end(session)
        else:
            session.save()

    def end(self, session: Session) -> None:
        """Forget a session. What others could have had of its shared subscriptions goes to them."""
        if session.will is not None and session.link is None:
            self._publish_will(session)
        for subscription in session.subscriptions.values():
            self.router.remove(subscription)
        self._rights.pop(session.client_id, None)
        if self.sessions.get(session.client_id) is session:
            del self.sessions[session.client_id]
        for delivery in session.end():
            name, _, rest = delivery.group.partition(b"/")
            group = self.router.group(tuple(rest.split(b"/")), name)
            if group is not None:
                self._to_one(delivery.message, group.in_turn(), delivery.qos, group.key)
        session.subscriptions.clear()

    def sweep(self) -> None:
        """What time asks for: wills that are due, sessions and retained messages whose time is over."""
        now = self._clock.now()
        for session in list(self.sessions.values()):
            if session.link is None:
                if 0 < session.will_at <= now and session.will is not None:
                    self._publish_will(session)
                    session.save()
                if session.expired(now):
                    self.end(session)

    def sweep_retained(self) -> None:
        for topic in self.retained.expired(self._clock.now()):
            self.retained.drop(topic)
            self._store.drop_retained(topic)

    def _new_session(self, client_id: str, user: str) -> Session:
        return Session(client_id, user, store=self._store, clock=self._clock, limits=self._limits, dropped=self.dropped)

    def _expiry_s(self, connect: Connect) -> int:
        if connect.version < 5:
            return 0 if connect.clean_start else self._config.session_expiry_max_s
        asked: int = connect.properties.get(SESSION_EXPIRY, 0)
        return min(asked, self._config.session_expiry_max_s)

    def _publish_will(self, session: Session) -> None:
        will, session.will, session.will_at = session.will, None, 0
        if will is not None:
            if will.expires:  # seconds until now: a will's time begins when it is published
                will.expires = self._clock.now() + will.expires * TICKS_PER_S
            self.on_will(session, will)

    def _hide(self, client_id: str, rights: Rights) -> None:
        if rights.receives_all:
            self._rights.pop(client_id, None)
        else:
            self._rights[client_id] = rights

    def _may_receive(self, session: Session, topic: bytes) -> bool:
        rights = self._rights.get(session.client_id)
        return rights is None or rights.may_receive(topic)

    # subscriptions

    def subscribe(self, session: Session, wanted: Wanted, identifier: int, rights: Rights) -> Subscribed:
        """One filter of a SUBSCRIBE: what to answer, and which retained messages to send behind the answer."""
        filter_ = parse_filter(wanted.filter)
        if len(filter_.levels) > LEVELS_MAX:
            return Subscribed(FILTER_INVALID, [])
        if not rights.may_subscribe(filter_.levels):
            return Subscribed(NOT_AUTHORISED, [])
        known = wanted.filter in session.subscriptions
        if not known and len(session.subscriptions) >= self._config.subscriptions_max:
            return Subscribed(QUOTA_EXCEEDED, [])
        subscription = Subscription(
            session, wanted.filter, filter_.group, filter_.levels, wanted.qos, wanted.no_local, wanted.as_published,
            identifier,
        )  # fmt: skip
        session.subscriptions[wanted.filter] = subscription
        self.router.add(subscription)
        if session.durable:
            self._store.put_subscription(
                SubscriptionRow(
                    session.client_id, wanted.filter, wanted.qos, wanted.no_local, wanted.as_published, identifier
                )
            )
        if filter_.group or wanted.handling == 2 or (wanted.handling == 1 and known):
            return Subscribed(wanted.qos, [])
        now = self._clock.now()
        return Subscribed(
            wanted.qos,
            [
                (message, min(message.qos, wanted.qos), identifier)
                for message in self.retained.matching(filter_.levels)
                if not 0 < message.expires <= now and rights.may_receive(message.topic)
            ],
        )

    def unsubscribe(self, session: Session, topic_filter: bytes) -> int:
        subscription = session.subscriptions.pop(topic_filter, None)
        if subscription is None:
            return NO_SUBSCRIPTION_EXISTED
        self.router.remove(subscription)
        if session.durable:
            self._store.drop_subscription(session.client_id, topic_filter)
        return SUCCESS

    # messages

    def route(self, message: Message, plan: Plan[Session], origin: Session | None) -> None:
        """Deliver a message to everybody that its topic's plan names."""
        qos, retained = message.qos, message.retain
        for match in plan.matches:
            if match.no_local and match.owner is origin:
                parts = [part for part in match.parts if not part.no_local]
                if not parts:
                    continue
                match = merged(match.owner, parts)
            match.owner.deliver(message, min(qos, match.qos), retained and match.as_published, match.identifiers)
        for group in plan.groups:
            self._to_one(message, group.in_turn(), qos, group.key)

    def keep(self, message: Message) -> bool:
        """Make a message its topic's retained one, or with an empty payload forget that; False when there is no room."""
        if message.payload:
            if not self.retained.put(message):
                self.dropped("retained_full")
                return False
            self._store.put_retained(message)
        elif self.retained.drop(message.topic):
            self._store.drop_retained(message.topic)
        return True

    def expires(self, properties: Properties) -> int:
        """When a message that came now expires, in ticks; 0 for never."""
        expiry_s = properties.get(MESSAGE_EXPIRY)
        return 0 if expiry_s is None else self._clock.now() + expiry_s * TICKS_PER_S

    def _to_one(self, message: Message, members: list[Subscription[Session]], qos: int, key: bytes) -> None:
        """A shared subscription's turn: who is connected and has room goes before who is not."""
        chosen: Subscription[Session] | None = None
        for member in members:
            session = member.owner
            if not self._may_receive(session, message.topic):
                continue
            if session.link is not None and session.link.room and not session.waiting:
                chosen = member
                break
            if chosen is None or (chosen.owner.link is None and session.link is not None):
                chosen = member
        if chosen is not None:
            identifiers = (chosen.identifier,) if chosen.identifier else ()
            retain = message.retain and chosen.as_published
            chosen.owner.deliver(message, min(qos, chosen.qos), retain, identifiers, key)
