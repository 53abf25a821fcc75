"""The live feed: one consumer per stream in this process, fanned out to every browser that watches.

Cost follows who watches: rows are filtered by entity in Arrow and only those that somebody looks at are parsed. A feed rests
`linger_s` after each read, so a thousand small appends a second are twenty reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from itertools import zip_longest
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import structlog

from headrace.core.clock import TICKS_PER_S, Clock
from headrace.core.errors import HeadraceError, NotFound, Unavailable, nearest
from headrace.core.observe.metrics import Metrics
from headrace.core.schema import EventBatch
from headrace.eventlog.contract import EventLog, Positions, Slice, Trimmed
from headrace.web.fleet import Fleet
from headrace.web.tasks import end
from headrace.web.watcher import Watcher
from headrace.wire.payload import SYSTEM_COLUMNS, flatten

log = structlog.get_logger()

COLUMNS = ("_event_id", "_entity_id", "_device", "_type", "_site", "_enqueued", "_body", "_partition", "_offset")
WAIT_S = 1.0
RETRY_S = 1.0
READY_S = 10.0
FIELDS_MAX = 2000


class Behind(Unavailable):
    """The place to go on from is too far back, or gone: load history again."""

    code = "web.behind"


class Piece(NamedTuple):
    """Part of a catch-up: rows (None where there are none) and the place after them."""

    stream: str
    rows: pa.Table | None
    positions: Positions


class Watch(NamedTuple):
    """A browser's view of some streams: where it starts, the way from there to now, and then what comes."""

    watcher: Watcher
    starts: dict[str, Positions]
    catch_up: AsyncIterator[Piece]


class Feed:
    """The one consumer of a stream. `positions` is what it has handed out so far, always a slice's end."""

    def __init__(self, stream: str, *, start: int | None = None) -> None:
        self.stream = stream
        self.watchers: list[Watcher] = []
        self.users = 0  # watchers, and those about to be
        self.positions: Positions = ()
        self.frontier = 0  # ticks
        self.problem = ""
        self.ready = asyncio.Event()
        self.start = start  # ticks; None: the head
        self.types: dict[str, pa.DataType] = {}

    def flatten(self, batch: EventBatch) -> pa.Table:
        """Rows with their payload as columns; a field keeps the type it was first seen with."""
        table = flatten(batch, schema=self.types, fields_max=FIELDS_MAX)
        for field in table.schema:
            if field.name not in SYSTEM_COLUMNS and len(self.types) < FIELDS_MAX:
                self.types.setdefault(field.name, field.type)
        return table


class LiveHub:
    """Feeds, the fleet they keep up to date, and who watches.

    Run it with `async with hub.running():`. `close()` ends every watcher's stream at once, for a quick shutdown.
    """

    def __init__(
        self,
        source: EventLog,
        fleet: Fleet,
        *,
        clock: Clock,
        metrics: Metrics,
        fleet_stream: str,
        known: Iterable[str] = (),
        unthinned: Iterable[str] = (),
        linger_s: float = 0.05,
        warm_s: float = 60.0,
        batch_rows_max: int = 20_000,
        watcher_rows_max: int = 2000,
        rows_per_s_max: int = 200,
        catch_up_rows_max: int = 500_000,
        watchers_max: int = 500,
    ) -> None:
        self.fleet = fleet
        self._log = source
        self._clock = clock
        self._fleet_stream = fleet_stream
        self._known = {fleet_stream, *known}
        self._unthinned = tuple(unthinned)
        self._linger_s = linger_s
        self._warm_s = warm_s
        self._batch_rows_max = batch_rows_max
        self._watcher_rows_max = watcher_rows_max
        self._rows_per_s_max = rows_per_s_max
        self._catch_up_rows_max = catch_up_rows_max
        self._watchers_max = watchers_max
        self._open_watchers = 0
        self._feeds: dict[str, tuple[Feed, asyncio.Task[None]]] = {}
        self.closed = asyncio.Event()
        self._rows = metrics.counter("web_rows_total", "Log rows read by the console", ("stream",))
        self._gauge = metrics.gauge("web_watchers", "Browsers that watch a machine")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        start = self._clock.now() - int(self._warm_s * TICKS_PER_S)
        self._start(Feed(self._fleet_stream, start=start))
        try:
            yield
        finally:
            self.close()
            await end(task for _, task in self._feeds.values())
            self._feeds.clear()

    def close(self) -> None:
        self.closed.set()
        for feed, _ in self._feeds.values():
            for watcher in feed.watchers:
                watcher.close()

    def problems(self) -> dict[str, str]:
        """What keeps feeds from reading, by stream."""
        return {stream: feed.problem for stream, (feed, _) in self._feeds.items() if feed.problem}

    @asynccontextmanager
    async def watch(self, entity: str, streams: Iterable[str], resume: dict[str, Positions]) -> AsyncIterator[Watch]:
        """A watcher and its catch-up: rows from `resume` to where the feeds stand now. Read the catch-up first, then
        `take`; together they hold every row once. A stream without a place in `resume` starts at its head.

        Raises NotFound for a stream that neither the log nor the settings know, Unavailable when too many watch.
        """
        names = list(dict.fromkeys(streams))
        await self.check(names)
        if self._open_watchers >= self._watchers_max:
            raise Unavailable(f"{self._watchers_max} live charts are open already", hint="close some and try again")
        self._open_watchers += 1
        self._gauge.set(self._open_watchers)
        feeds = [self._use(stream) for stream in names]
        watcher: Watcher | None = None
        try:
            await self._until_ready(feeds)
            # From here to the yield nothing waits, so each feed stands still between its target and its first offer.
            targets = {feed.stream: feed.positions for feed in feeds}
            starts = {stream: resume.get(stream, target) for stream, target in targets.items()}
            watcher = Watcher(
                entity,
                {stream: latest(starts[stream], targets[stream]) for stream in names},
                clock=self._clock,
                rows_max=self._watcher_rows_max,
                rows_per_s_max=self._rows_per_s_max,
                unthinned=self._unthinned,
            )
            for feed in feeds:
                feed.watchers.append(watcher)
            yield Watch(watcher, starts, self._catch_up(entity, starts, targets))
        finally:
            self._open_watchers -= 1
            self._gauge.set(self._open_watchers)
            for feed in feeds:
                self._release(feed, watcher)

    async def _until_ready(self, feeds: list[Feed]) -> None:
        try:
            async with asyncio.timeout(READY_S):
                for feed in feeds:
                    await feed.ready.wait()
        except TimeoutError as exc:
            raise Unavailable("the event log does not answer", hint="see the page Ledger & health") from exc

    async def check(self, streams: list[str]) -> None:
        """Raises NotFound for a stream that neither the log nor the settings know."""
        if set(streams) <= self._known:
            return
        known = self._known | set(await self._log.streams())
        for stream in streams:
            if stream not in known:
                hint = nearest(stream, known) or f"known: {', '.join(sorted(known))}"
                raise NotFound(f"no stream {stream!r}", hint=hint)

    def _start(self, feed: Feed) -> Feed:
        task = asyncio.create_task(self._run(feed), name=f"feed:{feed.stream}")
        self._feeds[feed.stream] = (feed, task)
        return feed

    def _use(self, stream: str) -> Feed:
        known = self._feeds.get(stream)
        feed = known[0] if known else self._start(Feed(stream))
        feed.users += 1
        return feed

    def _release(self, feed: Feed, watcher: Watcher | None) -> None:
        feed.users -= 1
        if watcher in feed.watchers:
            feed.watchers.remove(watcher)
        if not feed.users and feed.stream != self._fleet_stream and feed.stream in self._feeds:
            self._feeds.pop(feed.stream)[1].cancel()

    async def _catch_up(
        self, entity: str, starts: dict[str, Positions], targets: dict[str, Positions]
    ) -> AsyncIterator[Piece]:
        for stream, target in targets.items():
            at = earliest(starts[stream], target)
            gap = sum(end - begin for begin, end in zip(at, target, strict=True))
            if gap > self._catch_up_rows_max:
                raise Behind(f"{gap:,} events came since then", hint="load history again")
            while at != target:
                piece = await self._read(stream, at, target)
                if piece.positions == at:
                    raise Behind(f"stream {stream!r} has no events up to {target}", hint="load history again")
                at = piece.positions
                rows = piece.batch.filter(pc.equal(piece.batch.column("_entity_id"), entity))
                feed = self._feeds[stream][0]
                table = feed.flatten(rows) if rows.num_rows else None
                yield Piece(stream, table, latest(at, starts[stream]))

    async def _read(self, stream: str, at: Positions, until: Positions | None = None) -> Slice:
        try:
            return await self._log.read_merged(
                stream, at, rows_max=self._batch_rows_max, wait_s=WAIT_S, until=until, columns=COLUMNS
            )
        except Trimmed as exc:
            if until is None:
                raise
            raise Behind(exc.message, hint="load history again") from exc

    async def _run(self, feed: Feed) -> None:
        """Read for ever. A log that is not there is waited for; a mistake of ours is counted and does not end the feed."""
        while not self.closed.is_set():
            try:
                if not feed.ready.is_set():
                    feed.positions = await self._first_positions(feed)
                    feed.ready.set()
                await self._pump(feed)
            except Trimmed:
                feed.positions = (await self._log.bounds(feed.stream))[0]
                log.warning("feed.trimmed", stream=feed.stream)
            except Exception as exc:
                feed.problem = exc.message if isinstance(exc, HeadraceError) else type(exc).__name__
                log.warning("feed.failed", stream=feed.stream, exc_info=not isinstance(exc, HeadraceError))
                await self._clock.sleep(RETRY_S)

    async def _first_positions(self, feed: Feed) -> Positions:
        if feed.stream not in await self._log.streams():
            return ()  # not there yet: from its first event on
        if feed.start is not None:
            return await self._log.positions_at(feed.stream, feed.start)
        return (await self._log.bounds(feed.stream))[1]

    async def _pump(self, feed: Feed) -> None:
        while not feed.positions and feed.stream not in await self._log.streams():
            await self._clock.sleep(RETRY_S)  # reading would make the stream
        while not self.closed.is_set():
            piece = await self._read(feed.stream, feed.positions)
            feed.positions, feed.frontier, feed.problem = piece.positions, piece.frontier, ""
            if piece.batch.num_rows:
                self._hand_out(feed, piece.batch)
            if piece.batch.num_rows < self._batch_rows_max and self._linger_s:
                await self._clock.sleep(self._linger_s)

    def _hand_out(self, feed: Feed, batch: EventBatch) -> None:
        self._rows.labels(feed.stream).inc(batch.num_rows)
        if feed.stream == self._fleet_stream:
            self.fleet.observe(batch)
        if not feed.watchers:
            return
        entities = pa.array({watcher.entity for watcher in feed.watchers}, pa.string())
        watched = batch.filter(pc.is_in(batch.column("_entity_id"), value_set=entities))
        table = feed.flatten(watched) if watched.num_rows else None
        for watcher in list(feed.watchers):
            if table is not None:
                rows = watcher.select(feed.stream, table)
                if rows.num_rows:
                    watcher.offer(feed.stream, rows)
            watcher.advance(feed.stream, feed.positions)


def latest(one: Positions, other: Positions) -> Positions:
    """The later of two places, partition by partition; a partition that one does not know is at 0 there."""
    return tuple(max(pair) for pair in zip_longest(one, other, fillvalue=0))


def earliest(start: Positions, target: Positions) -> Positions:
    """Where to read from to bring `start` to `target`: never past the target, and of its length."""
    padded = start + (0,) * (len(target) - len(start))
    return tuple(min(pair) for pair in zip(padded, target, strict=False))
