"""Blocking questions (lake, DuckDB) leave the event loop through here: a few at a time, the rest wait their turn or are told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from headrace.core.errors import Unavailable

T = TypeVar("T")


class Threads:
    """Runs at most `at_once` calls; a call waits `queue_s` for its turn and `timeout_s` for its answer.

    A thread cannot be stopped: a call that timed out keeps its place until it ends, so `at_once` holds whatever happens.
    """

    def __init__(self, *, at_once: int = 4, queue_s: float = 10.0, timeout_s: float = 60.0) -> None:
        self._turns = asyncio.Semaphore(at_once)
        self._queue_s = queue_s
        self._timeout_s = timeout_s

    async def run(self, call: Callable[[], T]) -> T:
        try:
            async with asyncio.timeout(self._queue_s):
                await self._turns.acquire()
        except TimeoutError as exc:
            raise Unavailable("too many queries are running", hint="try again in a moment", code="web.busy") from exc
        running = asyncio.ensure_future(asyncio.to_thread(call))
        running.add_done_callback(self._done)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.shield(running)
        except TimeoutError as exc:
            if running.done():
                raise
            raise Unavailable(
                f"no answer within {self._timeout_s:g} s", hint="ask for a shorter time range", code="web.slow_query"
            ) from exc

    def _done(self, running: asyncio.Future[T]) -> None:
        self._turns.release()
        if not running.cancelled():
            running.exception()  # seen, so that a late failure is not reported as never retrieved
