"""What the broker must not forget: sessions, subscriptions, undelivered messages, retained messages, half-done QoS 2. SQLite.

Changes gather for a moment and share one fsync. A change is known by its row, so a message that was delivered and acknowledged
before its turn came is never written at all.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import structlog

from headrace.core.clock import Clock
from headrace.core.errors import Unavailable
from headrace.core.sqlite import open_shared, transaction, unavailable
from headrace.gateway.broker.message import Delivery, Message

RETRY_S = 0.5
Key = tuple[str, tuple[Any, ...]]

log = structlog.get_logger()


class SessionRow(NamedTuple):
    client_id: str
    user: str
    expiry_s: int
    ended: int
    will: Message | None
    will_delay_s: int
    will_at: int


class SubscriptionRow(NamedTuple):
    client_id: str
    filter: bytes
    qos: int
    no_local: bool
    as_published: bool
    identifier: int


class HeldRow(NamedTuple):
    client_id: str
    packet_id: int
    mark: str
    message: Message


class Loaded(NamedTuple):
    sessions: list[SessionRow]
    subscriptions: list[SubscriptionRow]
    deliveries: list[tuple[str, Delivery]]  # client id and delivery, oldest first
    held: list[HeldRow]
    retained: list[Message]


class _Table(NamedTuple):
    put: str
    drop: str


def _table(name: str, keys: tuple[str, ...], columns: int) -> _Table:
    where = " AND ".join(f"{key} = ?" for key in keys)
    return _Table(f"REPLACE INTO {name} VALUES ({', '.join('?' * columns)})", f"DELETE FROM {name} WHERE {where}")


_TABLES = {
    "sessions": _table("sessions", ("client_id",), 7),
    "subscriptions": _table("subscriptions", ("client_id", "filter"), 6),
    "messages": _table("messages", ("id",), 2),
    "deliveries": _table("deliveries", ("id",), 9),
    "held": _table("held", ("client_id", "packet_id"), 4),
    "retained": _table("retained", ("topic",), 2),
}


class Store:
    """One process per file. Everything but `load` and `write` returns at once; `run` writes behind."""

    def __init__(self, path: Path, clock: Clock, *, linger_s: float) -> None:
        self._path = path
        self._clock = clock
        self._linger_s = linger_s
        self._connection: sqlite3.Connection | None = None
        self._changes: dict[Key, tuple[Any, ...] | None] = {}  # a row to put, None to drop
        self._fresh: set[Key] = set()  # of those, rows that the file has never seen
        self._waiters: list[Callable[[], None]] = []
        self._flying: list[Callable[[], None]] | None = None
        self._wake = asyncio.Event()
        self._next = 1
        self.changes = 0  # counts up with every change
        self.trouble = ""

    # reading, once, before anything else

    def load(self) -> Loaded:
        """Open the file and read all of it. Blocks. Raises Unavailable."""
        try:
            connection = self._connection = open_shared(self._path, synchronous="FULL")
            connection.executescript(Path(__file__).with_name("schema.sql").read_text(encoding="utf-8"))
            with transaction(connection):
                for table in ("subscriptions", "deliveries", "held"):  # of sessions that ended with the process
                    connection.execute(f"DELETE FROM {table} WHERE client_id NOT IN (SELECT client_id FROM sessions)")
                connection.execute("DELETE FROM messages WHERE id NOT IN (SELECT message FROM deliveries)")
            loaded = _load(connection)
            for table in ("messages", "deliveries"):
                last = connection.execute(f"SELECT coalesce(max(id), 0) FROM {table}").fetchone()[0]
                self._next = max(self._next, last + 1)
        except (sqlite3.Error, msgspec.DecodeError) as exc:
            raise unavailable(self._path, exc) from exc
        return loaded

    # changes

    def put_session(self, row: SessionRow) -> None:
        will = _packed(row.will) if row.will else None
        self._put("sessions", (row.client_id,), (*row[:4], will, row.will_delay_s, row.will_at))

    def drop_session(self, client_id: str) -> None:
        self._drop("sessions", (client_id,))

    def put_subscription(self, row: SubscriptionRow) -> None:
        self._put("subscriptions", row[:2], tuple(row))

    def drop_subscription(self, client_id: str, topic_filter: bytes) -> None:
        self._drop("subscriptions", (client_id, topic_filter))

    def put_delivery(self, client_id: str, delivery: Delivery) -> None:
        """Keep a delivery, or keep up with it: its packet id and state."""
        message = delivery.message
        if not delivery.row:
            delivery.row = self._number()
            if not message.references:
                message.id = self._number()
                self._put("messages", (message.id,), (message.id, _packed(message)), fresh=True)
            message.references += 1
            fresh = True
        else:
            fresh = ("deliveries", (delivery.row,)) in self._fresh
        identifiers = ",".join(map(str, delivery.identifiers))
        row = (delivery.row, client_id, message.id, delivery.qos, delivery.retain, identifiers, delivery.group,
               delivery.packet_id, delivery.state)  # fmt: skip
        self._put("deliveries", (delivery.row,), row, fresh=fresh)

    def drop_delivery(self, delivery: Delivery) -> None:
        if delivery.row:
            self._drop("deliveries", (delivery.row,))
            delivery.row = 0
            delivery.message.references -= 1
            if not delivery.message.references:
                self._drop("messages", (delivery.message.id,))

    def put_held(self, row: HeldRow) -> None:
        self._put("held", row[:2], (*row[:3], _packed(row.message)), fresh=True)

    def drop_held(self, client_id: str, packet_id: int) -> None:
        self._drop("held", (client_id, packet_id))

    def put_retained(self, message: Message) -> None:
        self._put("retained", (message.topic,), (message.topic, _packed(message)))

    def drop_retained(self, topic: bytes) -> None:
        self._drop("retained", (topic,))

    def when_durable(self, callback: Callable[[], None]) -> None:
        """Call back once every change made so far is on disk; at once where all are. The callback must not raise."""
        if self._changes or self._waiters:
            self._waiters.append(callback)
            self._wake.set()
        elif self._flying is not None:
            self._flying.append(callback)
        else:
            callback()

    # writing behind

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._wake.wait()  # idle for as long as nothing changes
            await self._clock.sleep(self._linger_s)
            try:
                await self.write()
            except Unavailable as exc:
                if not self.trouble:
                    log.error("broker.store_failed", code=exc.code, error=exc.message, waiting=len(self._changes))
                self.trouble = exc.message
                await self._clock.sleep(RETRY_S)
                self._wake.set()

    async def write(self) -> None:
        """Write what has changed, in one transaction. Raises Unavailable; the changes then stay."""
        self._wake.clear()
        changes, self._changes = self._changes, {}
        fresh, self._fresh = self._fresh, set()
        self._flying, self._waiters = self._waiters, []
        try:
            if changes:
                await asyncio.to_thread(self._write, changes)
        except BaseException:
            self._changes = changes | self._changes
            self._fresh |= fresh  # at worst a row is dropped that is not there
            self._waiters = self._flying + self._waiters
            self._flying = None
            raise
        done, self._flying, self.trouble = self._flying, None, ""
        for callback in done:
            callback()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _number(self) -> int:
        self._next += 1
        return self._next

    def _put(self, table: str, key: tuple[Any, ...], row: tuple[Any, ...], *, fresh: bool = False) -> None:
        place = (table, key)
        if fresh and place not in self._changes:
            self._fresh.add(place)
        self._changes[place] = row
        self.changes += 1
        self._wake.set()

    def _drop(self, table: str, key: tuple[Any, ...]) -> None:
        place = (table, key)
        if place in self._fresh:
            self._fresh.discard(place)
            self._changes.pop(place, None)
            return
        self._changes[place] = None
        self.changes += 1
        self._wake.set()

    def _write(self, changes: dict[Key, tuple[Any, ...] | None]) -> None:
        puts: dict[str, list[tuple[Any, ...]]] = {}
        drops: dict[str, list[tuple[Any, ...]]] = {}
        for (table, key), row in changes.items():
            if row is None:
                drops.setdefault(table, []).append(key)
            else:
                puts.setdefault(table, []).append(row)
        try:
            assert self._connection is not None
            with transaction(self._connection) as connection:
                for table, rows in puts.items():
                    connection.executemany(_TABLES[table].put, rows)
                for table, keys in drops.items():
                    connection.executemany(_TABLES[table].drop, keys)
        except sqlite3.Error as exc:
            raise unavailable(self._path, exc) from exc


def _packed(message: Message) -> bytes:
    return msgspec.msgpack.encode(
        (message.topic, message.payload, message.qos, message.retain, message.properties, message.expires,
         message.publisher)
    )  # fmt: skip


def _unpacked(data: bytes) -> Message:
    kind = tuple[bytes, bytes, int, bool, bytes, int, str]
    topic, payload, qos, retain, properties, expires, publisher = msgspec.msgpack.decode(data, type=kind)
    return Message(topic, payload, qos=qos, retain=retain, properties=properties, expires=expires, publisher=publisher)


def _load(connection: sqlite3.Connection) -> Loaded:
    sessions = [
        SessionRow(row[0], row[1], row[2], row[3], _unpacked(row[4]) if row[4] else None, row[5], row[6])
        for row in connection.execute("SELECT * FROM sessions")
    ]
    subscriptions = [
        SubscriptionRow(row[0], row[1], row[2], bool(row[3]), bool(row[4]), row[5])
        for row in connection.execute("SELECT * FROM subscriptions")
    ]
    messages: dict[int, Message] = {}
    for number, packed in connection.execute("SELECT id, message FROM messages"):
        messages[number] = _unpacked(packed)
        messages[number].id = number
    deliveries: list[tuple[str, Delivery]] = []
    for row in connection.execute("SELECT * FROM deliveries ORDER BY id"):
        message = messages.get(row[2])
        if message is not None:
            message.references += 1
            identifiers = tuple(int(text) for text in row[5].split(",") if text)
            delivery = Delivery(message, row[3], bool(row[4]), identifiers, row[6])
            delivery.row, delivery.packet_id, delivery.state = row[0], row[7], row[8]
            delivery.sent = bool(row[7])
            deliveries.append((row[1], delivery))
    held = [HeldRow(row[0], row[1], row[2], _unpacked(row[3])) for row in connection.execute("SELECT * FROM held")]
    retained = [_unpacked(row[0]) for row in connection.execute("SELECT message FROM retained")]
    return Loaded(sessions, subscriptions, deliveries, held, retained)
