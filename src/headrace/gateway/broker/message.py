"""A message on its way through the broker, and one delivery of it to one session.

A message is shared by all its deliveries, and so are the bytes of its packets: fanning out encodes once per version and QoS,
not once per receiver.
"""

from __future__ import annotations

from headrace.core.clock import TICKS_PER_S
from headrace.wire.mqtt.codec import encode_length
from headrace.wire.mqtt.packets5 import V5
from headrace.wire.mqtt.properties5 import MESSAGE_EXPIRY, SUBSCRIPTION_IDENTIFIER, TOPIC_ALIAS, encode_bare

PUBLISHED, RELEASED = 1, 2
"""States of a delivery: PUBLISH sent (or about to be); PUBREC came, so PUBREL is what is repeated."""


class Message:
    """`properties` are encoded, without those made anew for each receiver. `expires` is in ticks, 0 for never."""

    __slots__ = (
        "_packets",
        "expires",
        "id",
        "payload",
        "properties",
        "publisher",
        "qos",
        "references",
        "retain",
        "topic",
    )

    def __init__(
        self,
        topic: bytes,
        payload: bytes,
        *,
        qos: int = 0,
        retain: bool = False,
        properties: bytes = b"",
        expires: int = 0,
        publisher: str = "",
    ) -> None:
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.retain = retain
        self.properties = properties
        self.expires = expires
        self.publisher = publisher
        self.id = 0  # in the store; 0 while it is in none
        self.references = 0  # of deliveries in the store
        self._packets: dict[int, tuple[bytes, bytes]] = {}

    @property
    def size_bytes(self) -> int:
        return len(self.topic) + len(self.payload) + len(self.properties)

    def packet(self, version: int, first: int) -> tuple[bytes, bytes]:
        """What stands before the packet id and behind it, for a receiver without properties of its own. QoS 0 has no id:
        laid end to end the two are its packet."""
        known = self._packets.get(version << 8 | first)
        if known is None:
            known = self._packets[version << 8 | first] = self.packet_for(version, first, self.topic, b"")
        return known

    def packet_for(self, version: int, first: int, topic: bytes, own: bytes) -> tuple[bytes, bytes]:
        """As `packet`, with the topic to write (empty under an alias) and encoded properties of this receiver."""
        listed = b""
        if version >= V5:
            listed = encode_length(len(own) + len(self.properties)) + own + self.properties
        length = 2 + len(topic) + (2 if first & 0x06 else 0) + len(listed) + len(self.payload)
        head = bytes((first,)) + encode_length(length) + len(topic).to_bytes(2, "big") + topic
        return head, listed + self.payload

    def own_properties(self, now: int, identifiers: tuple[int, ...], alias: int) -> bytes:
        """What only this receiver is told: the time left, its topic alias, the identifiers of its subscriptions."""
        items: list[tuple[int, int | list[int]]] = []
        if self.expires:
            items.append((MESSAGE_EXPIRY, max(0, -((now - self.expires) // TICKS_PER_S))))
        if alias:
            items.append((TOPIC_ALIAS, alias))
        if identifiers:
            items.append((SUBSCRIPTION_IDENTIFIER, list(identifiers)))
        return encode_bare(items)


class Delivery:
    """One message for one session, at QoS 1 or 2. `row` is its place in the store, 0 when it is not kept there."""

    __slots__ = ("group", "identifiers", "message", "packet_id", "qos", "retain", "row", "sent", "state")

    def __init__(
        self, message: Message, qos: int, retain: bool, identifiers: tuple[int, ...] = (), group: bytes = b""
    ) -> None:
        self.message = message
        self.qos = qos
        self.retain = retain
        self.identifiers = identifiers
        self.group = group  # the shared subscription it came by, `NAME/FILTER`; empty for none
        self.packet_id = 0
        self.state = PUBLISHED
        self.sent = False  # at least once, on whatever connection
        self.row = 0
