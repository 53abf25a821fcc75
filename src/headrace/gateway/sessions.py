"""Persistent MQTT sessions: the filters of each client that asked to be remembered (clean session 0).

Official SDKs subscribe once in their life and rely on the hub from then on, also across its restart. So filters are
durable before their SUBACK, and all of them are read into memory at start.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from headrace.docstore.contract import DocStore
from headrace.gateway.writer import DocumentWriter

COLLECTION = "sessions"
FILTERS_MAX = 50
PAGE = 1000


class Sessions:
    """Filters and their QoS by client id. When `shared` with other processes, `fetch` before `begin`."""

    def __init__(self, docs: DocStore, writer: DocumentWriter, *, shared: bool = False) -> None:
        self.shared = shared
        self._docs = docs
        self._writer = writer
        self._kept: dict[str, dict[str, int]] = {}

    async def open(self) -> None:
        after = ""
        while page := await self._docs.query(COLLECTION, after=after, limit=PAGE):
            after = page[-1].id
            self._kept |= {document.id: dict(document.body["filters"]) for document in page}

    async def fetch(self, client_id: str) -> None:
        """Read one client's session as it is durable now. Raises Unavailable."""
        found = await self._docs.get(COLLECTION, client_id)
        if found is None:
            self._kept.pop(client_id, None)
        else:
            self._kept[client_id] = dict(found.body["filters"])

    def begin(self, client_id: str, *, clean: bool) -> tuple[bool, dict[str, int]]:
        """(session present, its filters) for a client that connects. A clean start forgets what was kept."""
        kept = self._kept.get(client_id)
        if clean:
            if kept is not None:
                del self._kept[client_id]
                self._writer.delete(COLLECTION, client_id)
            return False, {}
        if kept is None:
            self._keep(client_id, {})
        return kept is not None, dict(kept or {})

    def subscribe(self, client_id: str, filters: Mapping[str, int]) -> None:
        self._keep(client_id, {**self._kept.get(client_id, {}), **filters})

    def unsubscribe(self, client_id: str, filters: Iterable[str]) -> None:
        gone = set(filters)
        kept = {name: qos for name, qos in self._kept.get(client_id, {}).items() if name not in gone}
        self._keep(client_id, kept)

    def forget(self, client_id: str) -> None:
        """Of a device that was deleted."""
        if self._kept.pop(client_id, None) is not None:
            self._writer.delete(COLLECTION, client_id)

    async def saved(self, timeout_s: float) -> None:
        """Returns when all changes until now are durable. Raises TimeoutError."""
        await self._writer.written(timeout_s)

    def _keep(self, client_id: str, filters: dict[str, int]) -> None:
        self._kept[client_id] = filters
        self._writer.put(COLLECTION, client_id, {"filters": filters})
