"""Which devices are connected: documents of the collection `presence`, one a client id.

Body: {device, module, connected, since, reason, address, worker}; `since` is ticks, when it last came or went, and `worker`
the gateway process that it came to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from headrace.core.clock import Clock
from headrace.docstore.contract import DocStore
from headrace.gateway.writer import DocumentWriter
from headrace.wire.iothub.topics import Identity

COLLECTION = "presence"
PAGE = 1000
WORKER = "gateway-0"


class Arrival(NamedTuple):
    """A device came (`connected`) or went."""

    identity: Identity
    connected: bool
    at: int  # ticks
    reason: str  # why it went


OnArrival: TypeAlias = Callable[[Arrival], None]


class Presence:
    """`on_arrival` callbacks are told who comes and goes; they must be quick and not raise."""

    def __init__(self, docs: DocStore, writer: DocumentWriter, clock: Clock, *, worker: str = WORKER) -> None:
        self._docs = docs
        self._writer = writer
        self._clock = clock
        self._worker = worker
        self.on_arrival: list[OnArrival] = []

    async def open(self) -> None:
        """Whoever an earlier process of our name left as connected is not: it may have been killed before it could say so."""
        after = ""
        while page := await self._docs.query(COLLECTION, where={"connected": True}, after=after, limit=PAGE):
            after = page[-1].id
            gone = {"connected": False, "since": self._clock.now(), "reason": "gateway_restarted"}
            ours = {found.id: found.body for found in page if found.body.get("worker", WORKER) == self._worker}
            await self._docs.put_many(COLLECTION, {id: {**body, **gone} for id, body in ours.items()})

    def connected(self, identity: Identity, address: str) -> None:
        self._put(identity, connected=True, reason="", address=address)

    def disconnected(self, identity: Identity, address: str, reason: str) -> None:
        self._put(identity, connected=False, reason=reason, address=address)

    def moved(self, identity: Identity) -> None:
        """It connected to another process, which says so itself: what we had still to say is out of date."""
        self._writer.drop(COLLECTION, identity.client_id)

    def _put(self, identity: Identity, *, connected: bool, reason: str, address: str) -> None:
        now = self._clock.now()
        body: dict[str, Any] = {
            "device": identity.device,
            "module": identity.module,
            "connected": connected,
            "since": now,
            "reason": reason,
            "address": address,
            "worker": self._worker,
        }
        self._writer.put(COLLECTION, identity.client_id, body)
        for callback in self.on_arrival:
            callback(Arrival(identity, connected, now, reason))
