"""The event log on SQLite: one file per stream, shared by any number of processes on one machine.

An append is in the file and fsynced when it returns. Readers never wait for writers, nor writers for readers; they meet
through the file and a wake-up (wake.py). Work on files happens on threads, so the event loop only ever waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from headrace.core.clock import TICKS_PER_S, Clock
from headrace.core.errors import Unavailable
from headrace.core.schema import EventBatch
from headrace.eventlog import checkpoint
from headrace.eventlog.appends import Appends
from headrace.eventlog.contract import Appended, Positions, Slice, StreamStats
from headrace.eventlog.frontiers import Frontiers, Idle
from headrace.eventlog.groups import Groups
from headrace.eventlog.reader import StreamReader
from headrace.eventlog.storage import SUFFIX, stream_path, translated
from headrace.eventlog.wake import Wakes
from headrace.eventlog.writer import Request, StreamWriter

P = ParamSpec("P")
T = TypeVar("T")


class SqliteEventLog:
    """EventLog in a folder: `streams/` (one file each), `wake/` (empty files that readers watch), `groups.sqlite`.

    `partitions` holds for streams that are new; an existing one keeps its number. `size_bytes_max` is per stream.
    Use one event loop; call `close` from it.
    """

    def __init__(
        self,
        folder: Path,
        clock: Clock,
        partitions: int = 4,
        deduplicate_s: float = 600.0,
        size_bytes_max: int = 10_000_000_000,
    ) -> None:
        self._folder = folder
        self._clock = clock
        self._partitions = partitions
        self._window = int(deduplicate_s * TICKS_PER_S)
        self._size_bytes_max = size_bytes_max
        self._appends: dict[str, asyncio.Future[Appends]] = {}
        self._readers: dict[str, asyncio.Future[StreamReader]] = {}
        self._frontiers = Frontiers()
        self._idle = Idle()
        with translated(folder):
            (folder / "wake").mkdir(parents=True, exist_ok=True)
        self._wakes = Wakes(folder / "wake")
        self._groups = Groups(folder / "groups.sqlite")
        self._commits = ThreadPoolExecutor(8, thread_name_prefix="eventlog-append")
        self._reads = ThreadPoolExecutor(4, thread_name_prefix="eventlog-read")
        self._chores = ThreadPoolExecutor(2, thread_name_prefix="eventlog-chore")
        self._closed = False

    async def append(self, stream: str, batch: EventBatch, *, producer: str = "", epoch: int = -1) -> Appended:
        appends = await self._opened(self._appends, stream, self._open_appends)
        return await appends.append(Request(batch, producer, epoch))

    async def read(self, stream: str, partition: int, offset: int, *, rows_max: int, wait_s: float) -> EventBatch:
        reader = await self._reader(stream)
        deadline = asyncio.get_running_loop().time() + wait_s
        while True:
            turn = self._wakes.turn(stream)
            batch = await self._read(reader.one, partition, offset, rows_max=rows_max)
            if batch.num_rows or not await self._grown(stream, turn, deadline):
                return batch

    async def read_merged(
        self,
        stream: str,
        positions: Positions,
        *,
        rows_max: int,
        wait_s: float,
        until: Positions | None = None,
        columns: Sequence[str] | None = None,
    ) -> Slice:
        reader = await self._reader(stream)
        now = asyncio.get_running_loop().time()
        asked = (stream, positions, until, columns and tuple(columns))
        turn = self._wakes.turn(stream)
        piece = self._idle.recall(asked, turn, now) if self._wakes.watching else None
        while piece is None or await self._grown(stream, turn, now + wait_s):
            turn = self._wakes.turn(stream)
            piece = await self._read(reader.merged, positions, rows_max=rows_max, until=until, columns=columns)
            if piece.batch.num_rows or (until and all(map(int.__ge__, piece.positions, until))):
                break
            known = self._frontiers.known(stream, piece.positions) or await self._read(reader.stamp, piece.positions)
            if piece.frontier > known:
                break
            self._idle.keep(asked, turn, now, piece)
        return self._frontiers.told(stream, piece)

    async def commit(self, group: str, stream: str, positions: Positions) -> None:
        await self._chore(self._groups.commit, group, stream, positions)

    async def committed(self, group: str, stream: str) -> Positions:
        found = await self._chore(self._groups.committed, group, stream)
        return found if found is not None else (0,) * (await self._reader(stream)).partitions

    async def bounds(self, stream: str) -> tuple[Positions, Positions]:
        return await self._read((await self._reader(stream)).bounds)

    async def positions_at(self, stream: str, time: int) -> Positions:
        return await self._read((await self._reader(stream)).positions_at, time)

    async def trim(self, stream: str, before: int) -> int:
        await self._reader(stream)
        return await self._chore(checkpoint.trim, stream_path(self._folder / "streams", stream), before)

    async def streams(self) -> list[str]:
        found = await self._chore(lambda: sorted((self._folder / "streams").glob(f"[!.]*{SUFFIX}")))
        return [path.name.removesuffix(SUFFIX) for path in found]

    async def stats(self, stream: str) -> StreamStats:
        return await self._read((await self._reader(stream)).stats)

    async def close(self) -> None:
        """Wait for appends that were handed in, then let go of every file. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        for appends in await _settled(self._appends):
            await appends.close()
        readers = await _settled(self._readers)
        self._wakes.close()
        for pool in (self._commits, self._reads, self._chores):
            await asyncio.to_thread(pool.shutdown)
        for reader in readers:
            reader.close()
        self._groups.close()

    async def _grown(self, stream: str, turn: int, deadline: float) -> bool:
        """Whether it is worth looking again: the stream may have grown, and there is time left."""
        left = deadline - asyncio.get_running_loop().time()
        return left > 0 and await self._wakes.changed(stream, turn, left) and not self._closed

    async def _reader(self, stream: str) -> StreamReader:
        return await self._opened(self._readers, stream, self._open_reader)

    def _open_reader(self, path: Path, stream: str) -> StreamReader:
        return StreamReader(path, stream, partitions=self._partitions)

    def _open_appends(self, path: Path, stream: str) -> Appends:
        writer = StreamWriter(
            path,
            stream,
            self._clock,
            partitions=self._partitions,
            window=self._window,
            size_bytes_max=self._size_bytes_max,
            committed=lambda: self._wakes.touch(stream),
        )
        return Appends(writer, commits=self._commits, chores=self._chores)

    async def _opened(self, known: dict[str, asyncio.Future[T]], stream: str, opener: Callable[[Path, str], T]) -> T:
        """What is kept for a stream; opened on a thread the first time, once for all who ask meanwhile."""
        if self._closed:
            raise Unavailable("the event log is closed", hint="open it again", code="eventlog.closed")
        future = known.get(stream)
        if future is None or (future.done() and future.exception() is not None):
            path = stream_path(self._folder / "streams", stream)
            future = asyncio.get_running_loop().run_in_executor(self._chores, opener, path, stream)
            known[stream] = future
        return future.result() if future.done() else await asyncio.shield(future)

    async def _read(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reads, lambda: call(*args, **kwargs))

    async def _chore(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._chores, lambda: call(*args, **kwargs))


async def _settled(opened: dict[str, asyncio.Future[T]]) -> list[T]:
    """What has been opened, once everything that was being opened is."""
    found = await asyncio.gather(*opened.values(), return_exceptions=True)
    return [one for one in found if not isinstance(one, BaseException)]
