"""Documents written behind: many small facts (who is connected, who subscribed to what), few transactions.

Only the newest body of each document waits, so memory is bounded by the number of devices. While the store is
unavailable, facts wait and newer ones replace them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import structlog

from headrace.core.clock import Clock
from headrace.core.errors import Unavailable
from headrace.docstore.contract import DocStore

RETRY_S = 1.0

log = structlog.get_logger()


class DocumentWriter:
    def __init__(self, docs: DocStore, clock: Clock, *, linger_s: float = 0.05) -> None:
        self._docs = docs
        self._clock = clock
        self._linger_s = linger_s
        self._pending: dict[tuple[str, str], Mapping[str, Any] | None] = {}
        self._wake = asyncio.Event()
        self._waiters: list[asyncio.Future[None]] = []
        self._lock = asyncio.Lock()

    def put(self, collection: str, id: str, body: Mapping[str, Any]) -> None:
        """Write soon; replaces what waits for the same document."""
        self._pending[collection, id] = body
        self._wake.set()

    def delete(self, collection: str, id: str) -> None:
        self._pending[collection, id] = None
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

    async def _write(self, taken: dict[tuple[str, str], Mapping[str, Any] | None]) -> None:
        for collection in sorted({collection for collection, _ in taken}):
            bodies = {id: body for (place, id), body in taken.items() if place == collection}
            kept = {id: body for id, body in bodies.items() if body is not None}
            if kept:
                await self._docs.put_many(collection, kept)
            for id in bodies.keys() - kept.keys():
                await self._docs.delete(collection, id)
