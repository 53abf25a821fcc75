"""Sending the rows of files over the devices' own connections, each acknowledged before it counts.

A gateway that dies in the middle may come back on another port: then every connection is made anew from what the project
says now, and the rows in question are sent again under the same message ids.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from headrace.cli.replay_memory import Memory
from headrace.cli.session import err
from headrace.cli.simulate import connect
from headrace.connectors.file_order import Chunk, Pace
from headrace.core.clock import TICKS_PER_S, SystemClock
from headrace.core.config import Project
from headrace.core.errors import Unavailable
from headrace.eventlog.contract import EventLog
from headrace.gateway.client import DeviceClient, Message
from headrace.gateway.streams import STREAM

STALL_S = 10.0
PATIENCE_S = 120.0
RETRY_S = 0.5
SLICE_S = 0.05
"""Rows that are due within this time of each other are sent together."""
WRITE_EVERY_S = 1.0


class Sender:
    """One replay. `sent` rows were acknowledged in `seconds`; `stopped` tells whether it ended before the last row."""

    def __init__(
        self, project: Project, memories: Sequence[Memory], *, log: EventLog, stream: str, stop: asyncio.Event
    ) -> None:
        self._project = project
        self._memories = memories
        self._log = log
        self._stream = stream
        self._properties = None if stream == STREAM else {"stream": stream}
        self._stop = stop
        self._clients: dict[str, DeviceClient] = {}
        self._changed: set[int] = set()
        self._written_at = 0.0
        self._reached = False
        self.sent = 0
        self.seconds = 0.0
        self.stopped = False

    async def send(
        self, chunks: Iterable[Chunk], name: str, *, total: int, pace: Pace | None, until: float | None
    ) -> None:
        """Send what is missing; returns at the end, after `until` (monotonic seconds) or a stop. Raises Unavailable."""
        pacer = _Pacer(pace)
        started = time.monotonic()
        for index, memory in enumerate(self._memories):
            if not memory.written:
                self._changed.add(index)  # from now on the log is looked at after an interruption
        self._write()
        bar = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} rows"),
        )
        try:
            with Progress(*bar, TimeRemainingColumn(), console=err, transient=True) as progress:
                task = progress.add_task(name, total=total, completed=sum(memory.done for memory in self._memories))
                for part in self._missing(chunks, pacer):
                    if not await self._due(pacer, until) or not await self._or_stop(self._through(part)):
                        self.stopped = True
                        break
                    self._note(part)
                    progress.advance(task, len(part.files))
        finally:
            self._write()
            self.seconds = time.monotonic() - started
            await self._disconnect()

    def _missing(self, chunks: Iterable[Chunk], pacer: _Pacer) -> Iterator[Chunk]:
        """The rows that are not stored yet, cut where the pace says so."""
        for chunk in chunks:
            files, rows = chunk
            wanted = [False] * len(files)
            for file in set(files):
                mine = [at for at, owner in enumerate(files) if owner == file]
                for at, missing in zip(mine, self._memories[file].missing([rows.rows[at] for at in mine]), strict=True):
                    wanted[at] = missing
            picked = [at for at, missing in enumerate(wanted) if missing]
            for cut in pacer.cuts(picked, rows.times):
                yield chunk.take(cut)

    async def _due(self, pacer: _Pacer, until: float | None) -> bool:
        """Wait until the rows that were cut last are due. False when there is no time left for them."""
        wait_s = pacer.wait_s()
        if until is not None:
            wait_s = min(wait_s, max(0.0, until - time.monotonic()))
        if wait_s > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), wait_s)
        return not self._stop.is_set() and (until is None or time.monotonic() < until)

    async def _or_stop(self, work: Coroutine[Any, Any, None]) -> bool:
        """Do the work; False when told to stop before it was done."""
        task, stop = asyncio.ensure_future(work), asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                return False
            task.result()
            return True
        finally:
            for one in (task, stop):
                one.cancel()
            await asyncio.gather(task, stop, return_exceptions=True)

    async def _through(self, part: Chunk) -> None:
        """Send rows until all are acknowledged, over new connections where the old ones lead nowhere."""
        messages: dict[str, list[Message]] = {}
        for file, device, body, id in zip(
            part.files, part.rows.devices, part.rows.bodies, part.rows.message_ids, strict=True
        ):
            (named,) = self._memories[file].message_ids([id])
            messages.setdefault(device, []).append(Message(body, named, properties=self._properties))
        received = None if self.sent or self._stream == STREAM else await self._received()
        patience = time.monotonic() + PATIENCE_S
        while True:
            try:
                await self._connect(messages)
                for device, own in messages.items():
                    await self._clients[device].publish_many(own, timeout_s=STALL_S)
                for device in messages:
                    await self._clients[device].drain(timeout_s=STALL_S)
                break
            except (TimeoutError, Unavailable) as exc:
                await self._disconnect()
                if time.monotonic() > patience or not self._reached:
                    raise _gone(exc) from exc
                await asyncio.sleep(RETRY_S)
        if received is not None and await self._received() < received + len(part.files):
            raise Unavailable(
                f"the gateway set the first rows aside: it was started before devices could send to {self._stream!r}",
                hint="headrace down, headrace up --detach, then replay again with --again",
                code="replay.stream",
            )

    async def _received(self) -> int:
        return sum((await self._log.stats(self._stream)).received)

    async def _connect(self, devices: Iterable[str]) -> None:
        new = sorted(set(devices) - self._clients.keys())
        if new:
            clients = await connect(self._project, new, [""] * len(new))
            self._reached = True
            self._clients.update(zip(new, clients, strict=True))

    async def _disconnect(self) -> None:
        clients, self._clients = list(self._clients.values()), {}
        await asyncio.gather(*(client.close() for client in clients), return_exceptions=True)

    def _note(self, part: Chunk) -> None:
        for file in set(part.files):
            self._memories[file].note(
                [row for owner, row in zip(part.files, part.rows.rows, strict=True) if owner == file]
            )
            self._changed.add(file)
        self.sent += len(part.files)
        if time.monotonic() - self._written_at >= WRITE_EVERY_S:
            self._write()

    def _write(self) -> None:
        now = SystemClock().now()
        for index in self._changed:
            self._memories[index].write(now)
        self._changed.clear()
        self._written_at = time.monotonic()


class _Pacer:
    """When rows are due, from their times: `cuts` says which go together, then `wait_s` how long until they may."""

    def __init__(self, pace: Pace | None) -> None:
        self._pace = pace
        self._due = time.monotonic()
        self._last: int | None = None

    def cuts(self, rows: list[int], times: Sequence[int | None]) -> Iterator[list[int]]:
        """`rows` are indices into `times`. Without a pace all go together."""
        if self._pace is None:
            if rows:
                yield rows
            return
        cut: list[int] = []
        first_due = self._due
        for at in rows:
            due = self._due + self._step(times[at])
            if cut and due - first_due >= SLICE_S:
                yield cut
                cut = []
            if not cut:
                first_due = due = max(due, time.monotonic() - 1.0)  # after a standstill nothing is hurried along
            self._due = due
            cut.append(at)
        if cut:
            yield cut

    def wait_s(self) -> float:
        return self._due - time.monotonic() if self._pace is not None else 0.0

    def _step(self, moment: int | None) -> float:
        assert self._pace is not None
        speed, pause_max_s = self._pace
        if not speed:
            return pause_max_s
        if moment is None:
            return 0.0
        step = 0 if self._last is None else max(0, moment - self._last)
        self._last = max(moment, self._last or moment)
        return min(step / TICKS_PER_S / speed, pause_max_s)


def _gone(exc: Exception) -> Unavailable:
    if isinstance(exc, Unavailable):
        return exc
    return Unavailable(
        f"the gateway acknowledged nothing for {STALL_S:g} s",
        hint="see `headrace status`; the same command goes on from here",
        code="replay.stalled",
    )
