"""Which devices are connected: documents of the collection `presence`, one a client id.

Body: {device, module, connected, since, reason, address}; `since` is ticks, when it last came or went.
"""

from __future__ import annotations

from typing import Any

from headrace.core.clock import Clock
from headrace.docstore.contract import DocStore
from headrace.gateway.writer import DocumentWriter
from headrace.wire.iothub.topics import Identity

COLLECTION = "presence"
PAGE = 1000


class Presence:
    def __init__(self, docs: DocStore, writer: DocumentWriter, clock: Clock) -> None:
        self._docs = docs
        self._writer = writer
        self._clock = clock

    async def open(self) -> None:
        """Whoever an earlier gateway left as connected is not: it may have been killed before it could say so."""
        after = ""
        while page := await self._docs.query(COLLECTION, where={"connected": True}, after=after, limit=PAGE):
            after = page[-1].id
            gone = {"connected": False, "since": self._clock.now(), "reason": "gateway_restarted"}
            await self._docs.put_many(COLLECTION, {document.id: {**document.body, **gone} for document in page})

    def connected(self, identity: Identity, address: str) -> None:
        self._put(identity, connected=True, reason="", address=address)

    def disconnected(self, identity: Identity, address: str, reason: str) -> None:
        self._put(identity, connected=False, reason=reason, address=address)

    def _put(self, identity: Identity, *, connected: bool, reason: str, address: str) -> None:
        body: dict[str, Any] = {
            "device": identity.device,
            "module": identity.module,
            "connected": connected,
            "since": self._clock.now(),
            "reason": reason,
            "address": address,
        }
        self._writer.put(COLLECTION, identity.client_id, body)
