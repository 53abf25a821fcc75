"""Documents written behind: many small facts (who is connected, who subscribed to what), few transactions.

Only the newest body of each document waits, so memory is bounded by the number of devices. While the store is
unavailable, facts wait and newer ones replace them. Since all is written a little late, what two processes say of one document
may reach the store in the wrong order: `newest_by` names the field that tells which is the newer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, NamedTuple

import structlog

from headrace.core.clock import Clock
from headrace.core.errors import Unavailable
from headrace.docstore.contract import DocStore

RETRY_S = 1.0

log = structlog.get_logger()


class _Fact(NamedTuple):
    body: Mapping[str, Any] | None  # None: to be deleted
    newest_by: str = ""


class DocumentWriter:
    def __init__(self, docs: DocStore, clock: Clock, *, linger_s: float = 0.05) -> None:
        self._docs = docs
        self._clock = clock
        self._linger_s = linger_s
        self._pending: dict[tuple[str, str], _Fact] = {}
        self._wake = asyncio.Event()
        self._waiters: list[asyncio.Future[None]] = []
        self._lock = asyncio.Lock()

    def put(self, collection: str, id: str, body: Mapping[str, Any], *, newest_by: str = "") -> None:
        """Write soon; replaces what waits for the same document. With `newest_by`, a field of integers, not over a stored
        body whose number is larger: for facts that several processes write."""
        self._pending[collection, id] = _Fact(body, newest_by)
        self._wake.set()

    def delete(self, collection: str, id: str) -> None:
        self._pending[collection, id] = _Fact(None)
        self._wake.set()

    def drop(self, collection: str, id: str) -> None:
        """Forget what waits for a document, if anything does."""
        self._pending.pop((collection, id), None)

    async def written(self, timeout_s: float) -> None:
        """Returns when all that was put before is durable. Raises TimeoutError."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._wake.set()
        await asyncio.wait_for(waiter, timeout_s)

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._wake.wait()
            await self._clock.sleep(self._linger_s)
            self._wake.clear()
            try:
                await self.flush()
            except Unavailable as exc:
                log.warning("documents.delayed", code=exc.code, waiting=len(self._pending))
                await self._clock.sleep(RETRY_S)
                self._wake.set()

    async def flush(self) -> None:
        """Write what waits, now. Raises Unavailable; what was not written waits on."""
        async with self._lock:
            taken, self._pending = self._pending, {}
            waiters, self._waiters = self._waiters, []
            try:
                await self._write(taken)
            except BaseException:
                self._pending = taken | self._pending
                self._waiters = waiters + self._waiters
                raise
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    async def _write(self, taken: dict[tuple[str, str], _Fact]) -> None:
        for collection in sorted({collection for collection, _ in taken}):
            facts = {id: fact for (place, id), fact in taken.items() if place == collection}
            kept = {id: fact.body for id, fact in facts.items() if fact.body is not None and not fact.newest_by}
            if kept:
                await self._docs.put_many(collection, kept)
            for id in [id for id, fact in facts.items() if fact.body is None]:
                await self._docs.delete(collection, id)
            ordered: dict[str, dict[str, Mapping[str, Any]]] = {}
            for id, fact in facts.items():
                if fact.body is not None and fact.newest_by:
                    ordered.setdefault(fact.newest_by, {})[id] = fact.body
            for newest_by, bodies in ordered.items():
                await self._docs.put_many(collection, bodies, newest_by=newest_by)
