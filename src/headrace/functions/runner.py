"""Runs one function over one stream: batches, a journaled epoch each, retries, poison events set aside, the books.

An epoch's cut points are durable before the function sees its rows, and the next epoch begins only when this one is
settled, so after a crash exactly one epoch comes again, with the same rows under the same number. A function that fails on
a batch gets ever smaller pieces of it, each an epoch of its own, until the event that it cannot take stands alone.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np
import pyarrow as pa
import structlog

from headrace.core.clock import Clock
from headrace.core.errors import DataError, HeadraceError, Unavailable, UserError
from headrace.core.flow import Function, Ledger, LedgerEntry, Outcome, SetAside
from headrace.core.retry import retry
from headrace.core.schema import EventBatch
from headrace.core.tasks import finish
from headrace.eventlog.contract import EventLog, Positions, Trimmed
from headrace.eventlog.journal import FIRST_EPOCH, EpochJournal, positions_after
from headrace.eventlog.set_aside import STREAM as SET_ASIDE
from headrace.eventlog.set_aside import set_aside_events

T = TypeVar("T")

log = structlog.get_logger()

_DELAY_S = 0.1
_DELAY_MAX_S = 10.0
_WAIT_S = 1.0
DUPLICATE = "duplicate"
"""The one reason that is counted but not kept in the stream `set_aside`: the event is in the sink already."""


class RunnerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How a function is fed. `retries_max` None: try for ever, as the platform's own projections do."""

    linger_s: float = 0.2
    batch_rows_max: int = 5000
    retries_max: int | None = 5
    timeout_s: float = 60.0


class FunctionStatus(msgspec.Struct, kw_only=True):
    """What a runner tells about itself. `lag` is in rows."""

    name: str
    stream: str
    state: str = "starting"
    epoch: int = 0
    lag: int = 0
    rows: int = 0
    set_aside: int = 0
    error: str = ""


class FunctionRunner:
    """One function on one stream. `name` is the stage `function:NAME` in the books; the journal is this runner's alone."""

    def __init__(
        self,
        name: str,
        function: Function,
        *,
        stream: str,
        event_log: EventLog,
        journal: EpochJournal,
        ledger: Ledger,
        clock: Clock,
        rng: random.Random,
        config: RunnerConfig,
    ) -> None:
        self._function = function
        self._stream = stream
        self._log = event_log
        self._journal = journal
        self._ledger = ledger
        self._clock = clock
        self._rng = rng
        self._config = config
        self._stage = f"function:{name}"
        self._epoch = FIRST_EPOCH - 1
        self._positions: Positions = ()
        self._told = log.bind(function=name, stream=stream)
        self.status = FunctionStatus(name=name, stream=stream)

    async def run(self) -> None:
        """Run until cancelled; the epoch under way is finished first, if that takes less than ten seconds.

        Raises what the function's `open` raises, and UserError from `process`: those a person must act on.
        """
        await self._patiently(self._function.open)
        try:
            await self._recover()
            self.status.state = "running"
            while True:
                await self.once(wait_s=_WAIT_S)
        except HeadraceError as exc:
            self.status.state, self.status.error = "failed", str(exc)
            raise
        finally:
            await self._function.close()

    async def once(self, *, wait_s: float) -> int:
        """Process what gathers within `wait_s` and the linger time; returns the rows consumed. `start` comes first."""
        try:
            rows = await self._gather(wait_s)
        except Trimmed as exc:
            await finish(self._skip_trimmed(exc))
            return 0
        if rows is not None:
            await finish(self._consume(rows))
        return rows.num_rows if rows is not None else 0

    async def start(self) -> None:
        """Open the function and settle the epoch that a crash left open: what `run` does first."""
        await self._patiently(self._function.open)
        await self._recover()

    async def refresh_lag(self) -> None:
        """Bring `status.lag` up to date: rows in the log after our positions."""
        _, ends = await self._log.bounds(self._stream)
        begin = self._positions or (0,) * len(ends)
        self.status.lag = sum(max(0, end - at) for end, at in zip(ends, begin, strict=True))

    async def _recover(self) -> None:
        checkpoint = await asyncio.to_thread(self._journal.last_checkpoint)
        if checkpoint is None:
            self._positions, _ = await self._log.bounds(self._stream)
            await self._ledger.write(self._entries(0, self._positions, self._positions, {}, {}))
            await asyncio.to_thread(self._journal.checkpoint, 0, {self._stream: self._positions})
        else:
            self._epoch, self._positions = checkpoint.epoch, checkpoint.positions[self._stream]
        for cut in await asyncio.to_thread(self._journal.pending):
            self._epoch = cut.epoch - 1
            rows = await self._read_exactly(cut.positions[self._stream])
            self._told.info("epoch.replayed", epoch=cut.epoch, rows=rows.num_rows if rows is not None else 0)
            if rows is not None:
                await self._consume(rows)
        self.status.epoch = self._epoch

    async def _gather(self, wait_s: float) -> EventBatch | None:
        """The next rows: what is there, and what joins it within the linger time."""
        rows_max = self._config.batch_rows_max
        first = await self._read(self._positions, rows_max, wait_s)
        if first.num_rows == 0:
            return None
        if first.num_rows >= rows_max or self._config.linger_s <= 0:
            return first
        await self._clock.sleep(self._config.linger_s)
        more = await self._read(positions_after(self._positions, first), rows_max - first.num_rows, 0.0)
        return _joined([first, more])

    async def _read(self, positions: Positions, rows_max: int, wait_s: float) -> EventBatch:
        piece = await self._log.read_merged(self._stream, positions, rows_max=rows_max, wait_s=wait_s)
        return piece.batch

    async def _read_exactly(self, until: Positions) -> EventBatch | None:
        """Rows from our positions to `until`; fewer only where retention dropped them, which the books then show."""
        pieces: list[EventBatch] = []
        at = self._positions
        while at != until:
            try:
                piece = await self._log.read_merged(
                    self._stream, at, rows_max=self._config.batch_rows_max, wait_s=_WAIT_S, until=until
                )
            except Trimmed as exc:
                await self._skip_trimmed(exc, until)
                at, pieces = self._positions, []
                continue
            pieces.append(piece.batch)
            if piece.positions == at:
                raise Unavailable(
                    f"stream {self._stream!r} gives no rows between {at} and {until}, where epoch {self._epoch + 1} ends",
                    hint="the log was replaced or damaged; delete this consumer's journal to start anew",
                    code="function.replay",
                )
            at = piece.positions
        return _joined(pieces) if pieces else None

    async def _consume(self, rest: EventBatch) -> None:
        """Hand `rest` to the function, in pieces where it cannot take the whole."""
        size = rest.num_rows
        while rest.num_rows:
            piece = rest.slice(0, size)
            after = positions_after(self._positions, piece)
            epoch = self._epoch + 1
            await asyncio.to_thread(self._journal.begin, epoch, {self._stream: after})
            try:
                outcome = await self._process(piece, epoch)
            except DataError as exc:
                if piece.num_rows > 1:
                    size = (piece.num_rows + 1) // 2
                    continue
                outcome = Outcome(0, (SetAside(0, exc.code, str(exc)),))
            else:
                size *= 2
            await self._settle(epoch, piece, outcome, after)
            rest = rest.slice(piece.num_rows)

    async def _process(self, batch: EventBatch, epoch: int) -> Outcome:
        """Call the function until it answers, or until the retries are used up: then all rows are set aside."""

        async def call() -> Outcome:
            try:
                async with asyncio.timeout(self._config.timeout_s):
                    return await self._function.process(batch, epoch)
            except TimeoutError as exc:
                raise Unavailable(
                    f"no answer within {self._config.timeout_s} s", hint="raise timeout_s", code="function.timeout"
                ) from exc

        try:
            outcome = await self._patiently(call, tries_max=self._config.retries_max)
        except Unavailable as exc:
            reason = "unavailable"
            outcome = Outcome(0, tuple(SetAside(row, reason, str(exc)) for row in range(batch.num_rows)))
        self.status.error = ""
        rows = {one.row for one in outcome.set_aside}
        if len(rows) != len(outcome.set_aside) or not rows <= set(range(batch.num_rows)):
            raise UserError(
                f"{self._stage} set aside rows that are not in its batch of {batch.num_rows}, or one of them twice",
                hint="SetAside.row is the index in the batch that `process` was given",
                code="function.outcome",
            )
        return outcome

    async def _patiently(self, call: Callable[[], Coroutine[Any, Any, T]], tries_max: int | None = None) -> T:
        """Await `call` until it answers, whatever it takes; or at most `tries_max` more times after the first."""

        def on_retry(attempt: int, exc: Unavailable) -> None:
            self.status.error = str(exc)
            self._told.warning("function.retried", attempt=attempt, code=exc.code, problem=str(exc))

        return await retry(
            call,
            clock=self._clock,
            rng=self._rng,
            tries_max=_FOR_EVER if tries_max is None else tries_max + 1,
            delay_s=_DELAY_S,
            delay_max_s=_DELAY_MAX_S,
            on_retry=on_retry,
        )

    async def _settle(self, epoch: int, batch: EventBatch, outcome: Outcome, after: Positions) -> None:
        """Set rows aside, write the books, and close the epoch."""
        if kept := [one for one in outcome.set_aside if one.reason != DUPLICATE]:
            await self._append_set_aside(epoch, batch, kept)
        aside = _by_partition(batch, outcome.set_aside)
        rows_out = _rows_out(batch, outcome)
        await self._ledger.write(self._entries(epoch, self._positions, after, rows_out, aside))
        await asyncio.to_thread(self._journal.checkpoint, epoch, {self._stream: after})
        self._epoch, self._positions = epoch, after
        self.status.epoch = epoch
        self.status.rows += outcome.rows_out
        self.status.set_aside += len(outcome.set_aside)

    async def _append_set_aside(self, epoch: int, batch: EventBatch, rows: Sequence[SetAside]) -> None:
        producer = f"{self._stage}:{self._stream}:{SET_ASIDE}"
        events = set_aside_events(
            batch.take(pa.array([one.row for one in rows], pa.int64())),
            [one.reason for one in rows],
            [one.detail for one in rows],
            stage=self._stage,
            stream=self._stream,
            ids=producer,
            epoch=epoch,
        )
        await self._patiently(lambda: self._log.append(SET_ASIDE, events, producer=producer, epoch=epoch))
        self._told.warning("events.set_aside", epoch=epoch, rows=len(rows), reasons=Counter(one.reason for one in rows))

    async def _skip_trimmed(self, exc: Trimmed, until: Positions | None = None) -> None:
        """Retention overtook us: book the rows that are gone, as an epoch of its own, and go on behind them."""
        earliest, _ = await self._log.bounds(self._stream)
        after = tuple(map(max, self._positions, earliest))
        if until is not None:
            after = tuple(map(min, after, until))
        gone = {
            partition: Counter(trimmed=end - at)
            for partition, (at, end) in enumerate(zip(self._positions, after, strict=True))
            if end > at
        }
        self._told.error("events.trimmed", rows=sum(rows.total() for rows in gone.values()), problem=str(exc))
        epoch = self._epoch + 1
        await asyncio.to_thread(self._journal.begin, epoch, {self._stream: after})
        await self._ledger.write(self._entries(epoch, self._positions, after, {}, gone))
        await asyncio.to_thread(self._journal.checkpoint, epoch, {self._stream: after})
        self._epoch, self._positions = epoch, after

    def _entries(
        self, epoch: int, begin: Positions, end: Positions, rows_out: dict[int, int], aside: dict[int, Counter[str]]
    ) -> list[LedgerEntry]:
        """One per partition that moved; epoch 0 has all of them, so that the report knows what this stage reads."""
        return [
            LedgerEntry(
                self._stage,
                self._stream,
                partition,
                epoch,
                begin[partition],
                end[partition],
                rows_out.get(partition, 0),
                dict(aside.get(partition, {})),
            )
            for partition in range(len(end))
            if epoch == 0 or begin[partition] != end[partition]
        ]


_FOR_EVER = 1 << 62


def _by_partition(batch: EventBatch, rows: tuple[SetAside, ...]) -> dict[int, Counter[str]]:
    partitions = batch.column("_partition").to_numpy()
    found: dict[int, Counter[str]] = {}
    for one in rows:
        found.setdefault(int(partitions[one.row]), Counter())[one.reason] += 1
    return found


def _rows_out(batch: EventBatch, outcome: Outcome) -> dict[int, int]:
    """Rows out per partition. A function tells only their sum: what it lost shows as a gap in the first partitions."""
    partitions = batch.column("_partition").to_numpy()
    counts = np.bincount(partitions)
    for one in outcome.set_aside:
        counts[partitions[one.row]] -= 1
    found = {int(partition): int(counts[partition]) for partition in np.unique(partitions)}
    lost = sum(found.values()) - outcome.rows_out
    for partition, rows in found.items():
        less = min(rows, lost)
        found[partition] -= less
        lost -= less
    return found


def _joined(pieces: list[EventBatch]) -> EventBatch:
    return pieces[0] if len(pieces) == 1 else pa.concat_batches([piece for piece in pieces if piece.num_rows] or pieces)
