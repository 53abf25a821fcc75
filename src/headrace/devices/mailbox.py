"""Cloud-to-device messages: a durable queue a device, first in first out.

A message is one document of the collection `mailbox` under `{device}/{when sent}-{id}`, so the documents' order is the
queue's. What leaves it unread (expired, refused, given up) is handed to `bury` before it is removed, and a sender that asked
for feedback gets a record in the collection `feedback`.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import structlog

from headrace.core.clock import TICKS_PER_S, Clock, from_iso, to_iso
from headrace.core.errors import Conflict, UserError
from headrace.core.identity import EventIds
from headrace.devices.turns import Turns
from headrace.docstore.contract import DocStore, Document

COLLECTION = "mailbox"
FEEDBACK = "feedback"
PENDING_MAX = 50
MESSAGE_BYTES_MAX = 65_536
TTL_S = 3600.0
TTL_MAX_S = 2 * 86_400.0
LOCK_S = 60.0
DELIVERIES_MAX = 10
FEEDBACK_TTL_S = 3600.0
FEEDBACK_RECORDS_MAX = 64
PAGE = 1000

log = structlog.get_logger()

Outcome: TypeAlias = Literal["Success", "Expired", "DeliveryCountExceeded", "Rejected", "Purged"]
_DESCRIPTIONS: dict[Outcome, str] = {
    "Success": "Success",
    "Expired": "Message expired",
    "DeliveryCountExceeded": "Maximum delivery count exceeded",
    "Rejected": "Message rejected by the device",
    "Purged": "Message purged",
}


class QueueFull(UserError):
    """Too many messages wait for a device: IoT Hub's 403004."""

    code = "c2d.queue_full"


class MessageTooLarge(UserError):
    """Above MESSAGE_BYTES_MAX: IoT Hub's 413001."""

    code = "c2d.too_large"


class LockLost(UserError):
    """The lock was given back, ran out, or never was: IoT Hub's 412002."""

    code = "c2d.lock_lost"


class Message(NamedTuple):
    """What a service sends. `system` goes by the names of wire.iothub.properties.SYSTEM's values."""

    system: Mapping[str, str | None]
    application: Mapping[str, str | None]
    body: bytes

    @property
    def size_bytes(self) -> int:
        texts = [*self.system.values(), *self.application.keys(), *self.application.values()]
        return len(self.body) + sum(len((text or "").encode()) for text in texts)


class Letter(NamedTuple):
    """A message in the queue. `lock` is the token of who holds it, empty when nobody does."""

    id: str  # of its document
    device: str
    message: Message
    enqueued: int  # ticks
    expires: int  # ticks
    deliveries: int = 0
    lock: str = ""
    locked_until: int = 0  # ticks
    generation: str = ""  # of the device, when it was sent
    etag: str = ""

    @property
    def message_id(self) -> str:
        return self.message.system.get("message-id") or ""


class Feedback(NamedTuple):
    """What became of a message whose sender asked."""

    id: str
    record: dict[str, Any]  # as services see it


Bury: TypeAlias = Callable[[list[Letter], Outcome], Awaitable[None]]
"""Stores letters that leave the queue unread; they are removed only after it returned."""


class Mailbox:
    """The queues of all devices. All calls may raise Unavailable.

    `on_mail` is told the device after a message for it is durable; quick, and never raises.
    """

    def __init__(self, docs: DocStore, clock: Clock, ids: EventIds, *, bury: Bury | None = None) -> None:
        self._docs = docs
        self._clock = clock
        self._ids = ids
        self._bury = bury
        self._turns = Turns()  # so that nobody counts while another adds
        self._last = 0  # ticks of the latest letter: its place in the queue is its alone
        self.on_mail: list[Callable[[str], None]] = []

    async def send(self, device: str, message: Message, *, ttl_s: float = TTL_S, generation: str = "") -> str:
        """Durable when it returns; its message id (made where it has none). An `absolute-expiry-time` beats `ttl_s`.

        Raises QueueFull, MessageTooLarge, UserError for an expiry that is no time or has passed.
        """
        if message.size_bytes > MESSAGE_BYTES_MAX:
            raise MessageTooLarge(
                f"a message of {message.size_bytes:,} bytes is above {MESSAGE_BYTES_MAX:,}", hint="send less at once"
            )
        now = self._clock.now()
        own = self._ids.take()
        system = {**message.system, "message-id": message.system.get("message-id") or own}
        expires = _expiry(now, system.get("absolute-expiry-time"), ttl_s)
        letter = Letter("", device, message._replace(system=system), now, expires, generation=generation)
        async with self._turns.of(device):
            if await self.pending(device) >= PENDING_MAX:
                raise QueueFull(
                    f"{PENDING_MAX} messages wait for {device!r}", hint="let it fetch them, or purge its queue"
                )
            self._last = max(now, self._last + 1)
            await self._docs.put(COLLECTION, f"{device}/{self._last:020d}-{own}", _body(letter))
        for callback in self.on_mail:
            callback(device)
        return str(system["message-id"])

    async def pending(self, device: str) -> int:
        """How many messages wait, those under a lock included; expired ones are removed on the way."""
        return len(await self._letters(device))

    async def purge(self, device: str) -> int:
        """Remove all of a device's messages; how many there were."""
        letters = await self._letters(device)
        for letter in letters:
            await self._end(letter, "Purged")
        return len(letters)

    async def peek(self, device: str, *, after: str = "", limit: int = PENDING_MAX) -> list[Letter]:
        """Messages that nobody holds, oldest first, behind the letter with id `after`."""
        now = self._clock.now()
        letters = [letter for letter in await self._letters(device, after=after) if letter.locked_until <= now]
        return letters[:limit]

    async def lock(self, device: str, *, lock_s: float = LOCK_S) -> Letter | None:
        """Take the oldest message that nobody holds, for `lock_s`; None when there is none. Counts as one delivery."""
        for letter in await self.peek(device):
            until = self._clock.now() + int(lock_s * TICKS_PER_S)
            held = letter._replace(lock=self._ids.take(), locked_until=until, deliveries=letter.deliveries + 1)
            try:
                put = await self._docs.put(COLLECTION, letter.id, _body(held), if_match=letter.etag)
            except Conflict:
                continue  # somebody else was faster
            return held._replace(etag=put.etag)
        return None

    async def complete(self, device: str, token: str) -> None:
        """Remove a message by its lock, or by its letter's id (MQTT has no locks). A second time is no error by id; by lock
        it raises LockLost."""
        letter = await self._held(device, token)
        if letter is not None:
            await self._end(letter, "Success")

    async def reject(self, device: str, token: str) -> None:
        """Remove a message that the device refuses. Raises LockLost."""
        letter = await self._held(device, token)
        if letter is not None:
            await self._end(letter, "Rejected")

    async def abandon(self, device: str, token: str) -> None:
        """Give a message back; after DELIVERIES_MAX times it is set aside. Raises LockLost."""
        letter = await self._held(device, token)
        if letter is None:
            return
        if letter.deliveries >= DELIVERIES_MAX:
            await self._end(letter, "DeliveryCountExceeded")
            return
        free = letter._replace(lock="", locked_until=0)
        try:
            await self._docs.put(COLLECTION, letter.id, _body(free), if_match=letter.etag)
        except Conflict as exc:
            raise _lost(token) from exc
        for callback in self.on_mail:
            callback(device)

    async def expire(self) -> int:
        """Remove what is past its time, of all devices; how many. To be called now and then."""
        gone, after = 0, ""
        now = self._clock.now()
        while page := await self._docs.query(COLLECTION, after=after, limit=PAGE):
            after = page[-1].id
            expired = [letter for letter in map(_letter, page) if letter.expires <= now]
            for letter in expired:
                await self._end(letter, "Expired")
            gone += len(expired)
        return gone

    async def feedback(self, *, limit: int = FEEDBACK_RECORDS_MAX) -> list[Feedback]:
        """The oldest records, for a receiver that then calls `feedback_done` with their ids."""
        page = await self._docs.query(FEEDBACK, limit=limit)
        return [Feedback(found.id, found.body) for found in page]

    async def feedback_done(self, ids: list[str]) -> None:
        for id in ids:
            await self._docs.delete(FEEDBACK, id)

    async def _letters(self, device: str, *, after: str = "") -> list[Letter]:
        """What waits, oldest first; what is past its time is removed."""
        page = await self._docs.query(COLLECTION, prefix=f"{device}/", after=after, limit=PAGE)
        now = self._clock.now()
        letters = [_letter(found) for found in page]
        for letter in letters:
            if letter.expires <= now:
                await self._end(letter, "Expired")
        return [letter for letter in letters if letter.expires > now]

    async def _held(self, device: str, token: str) -> Letter | None:
        """The letter that `token` names: a letter's id, or the lock on one."""
        if token.startswith(f"{device}/"):
            found = await self._docs.get(COLLECTION, token)
            return None if found is None else _letter(found)
        now = self._clock.now()
        for letter in await self._letters(device):
            if letter.lock == token and letter.locked_until > now:
                return letter
        raise _lost(token)

    async def _end(self, letter: Letter, outcome: Outcome) -> None:
        if outcome in ("Expired", "DeliveryCountExceeded", "Rejected") and self._bury is not None:
            await self._bury([letter], outcome)
        asked = letter.message.application.get("iothub-ack") or "none"
        if asked == "full" or asked == ("positive" if outcome == "Success" else "negative"):
            await self._docs.put(
                FEEDBACK,
                f"{self._clock.now():020d}-{letter.id}",
                _record(letter, outcome, self._clock.now()),
                ttl_s=FEEDBACK_TTL_S,
            )
        await self._docs.delete(COLLECTION, letter.id)


def _expiry(now: int, absolute: str | None, ttl_s: float) -> int:
    """Ticks at which a message ends."""
    if not absolute:
        return now + int(min(ttl_s, TTL_MAX_S) * TICKS_PER_S)
    expires = from_iso(absolute)
    if expires <= now:
        raise UserError(
            f"the message expires at {absolute!r}, which has passed", hint="give a later time", code="c2d.expired"
        )
    return expires


def _body(letter: Letter) -> dict[str, Any]:
    return {
        "device": letter.device,
        "system": dict(letter.message.system),
        "application": dict(letter.message.application),
        "body": base64.b64encode(letter.message.body).decode(),
        "enqueued": letter.enqueued,
        "expires": letter.expires,
        "deliveries": letter.deliveries,
        "lock": letter.lock,
        "locked_until": letter.locked_until,
        "generation": letter.generation,
    }


def _letter(found: Document) -> Letter:
    body = found.body
    return Letter(
        found.id,
        body["device"],
        Message(body["system"], body["application"], base64.b64decode(body["body"])),
        body["enqueued"],
        body["expires"],
        body["deliveries"],
        body["lock"],
        body["locked_until"],
        body["generation"],
        found.etag,
    )


def _record(letter: Letter, outcome: Outcome, now: int) -> dict[str, Any]:
    return {
        "originalMessageId": letter.message_id,
        "enqueuedTimeUtc": to_iso(now),
        "statusCode": outcome,
        "description": _DESCRIPTIONS[outcome],
        "deviceId": letter.device,
        "deviceGenerationId": letter.generation,
    }


def _lost(token: str) -> LockLost:
    return LockLost(f"no message is locked by {token[:80]!r}", hint="receive it again")
