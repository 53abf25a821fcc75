"""Group commit: appends that arrive while a transaction runs share the next one.

At most one transaction of a stream runs at a time in a process, on a thread; nobody waits on purpose for company, so a
lone append costs one fsync and a crowd shares one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor

import structlog

from headrace.core.errors import HeadraceError, Unavailable
from headrace.eventlog import checkpoint
from headrace.eventlog.contract import Appended
from headrace.eventlog.writer import Request, StreamWriter

log = structlog.get_logger()

GROUP_ROWS_MAX = 50_000
GROUP_APPENDS_MAX = 256
WAITING_MAX = 1024
"""Appends that may wait for a stream; one more waits for its turn to wait."""


class Appends:
    """The queue in front of a stream's writer. One event loop; `commits` runs the transactions, `chores` the rest."""

    def __init__(self, writer: StreamWriter, *, commits: Executor, chores: Executor) -> None:
        self._writer = writer
        self._commits = commits
        self._chores = chores
        self._room = asyncio.Semaphore(WAITING_MAX)
        self._waiting: deque[tuple[Request, asyncio.Future[Appended]]] = deque()
        self._pump: asyncio.Task[None] | None = None
        self._moving: asyncio.Future[bool] | None = None
        self._moved_at = 0  # `writer.bytes_written` when the log was last moved
        self._closed = False

    async def append(self, request: Request) -> Appended:
        """Durable when it returns. Cancelling it leaves open whether the rows were stored."""
        async with self._room:
            if self._closed:
                raise Unavailable("the event log is closed", hint="open it again", code="eventlog.closed")
            answer: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
            self._waiting.append((request, answer))
            if self._pump is None or self._pump.done():
                self._pump = asyncio.create_task(self._run(), name="eventlog-append")
            return await answer

    async def close(self) -> None:
        """Wait for what has been handed in, then let go of the file."""
        self._closed = True
        if self._pump is not None:
            await self._pump
        if self._moving is not None:
            await asyncio.wait([self._moving])
            self._moving.exception()
        self._writer.close()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while group := self._group():
            requests = [request for request, _ in group]
            answers: Sequence[Appended | Exception]
            try:
                answers = await loop.run_in_executor(self._commits, self._writer.commit, requests)
            except Exception as exc:  # whatever it was, each of the group must hear of it
                answers = [exc] * len(group)
            for (_, future), answer in zip(group, answers, strict=True):
                _answer(future, answer)
            await self._move_log()

    def _group(self) -> list[tuple[Request, asyncio.Future[Appended]]]:
        """The next appends that fit into one transaction; those whose caller has gone are left out."""
        group: list[tuple[Request, asyncio.Future[Appended]]] = []
        rows = 0
        while self._waiting and len(group) < GROUP_APPENDS_MAX:
            rows += self._waiting[0][0].batch.num_rows
            if group and rows > GROUP_ROWS_MAX:
                break
            one = self._waiting.popleft()
            if not one[1].done():
                group.append(one)
        return group

    async def _move_log(self) -> None:
        """Start moving the write-ahead log when it has grown; when the bulk has been moved, move the rest ourselves."""
        loop = asyncio.get_running_loop()
        try:
            if self._moving is not None and self._moving.done():
                moved, self._moving = self._moving, None
                moved.result()
                await loop.run_in_executor(self._commits, self._writer.checkpoint)
            elif self._moving is None and self._writer.bytes_written - self._moved_at >= checkpoint.START_BYTES:
                self._moved_at = self._writer.bytes_written
                self._moving = loop.run_in_executor(self._chores, checkpoint.move, self._writer.path)
        except HeadraceError as exc:  # appends are durable without it; the next one tries again
            log.warning("eventlog.checkpoint_failed", stream=self._writer.stream, error=str(exc))


def _answer(future: asyncio.Future[Appended], answer: Appended | Exception) -> None:
    if future.done():
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
