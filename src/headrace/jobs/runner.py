"""Runs one job: streams in, the query, streams out, exactly once.

An epoch ends where the query yields rows, and its cut points are durable before those rows are written. A checkpoint keeps
the query's whole state every few seconds. After a crash the state comes back, and every epoch since is run again over the
same rows under the same number: output streams ignore what they have already and take what they lack.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import structlog

from headrace.core.clock import TICKS_PER_S, Clock
from headrace.core.errors import Unavailable
from headrace.core.flow import MIN_WATERMARK, Ledger
from headrace.core.retry import retry
from headrace.core.schema import EVENT_SCHEMA, EventBatch
from headrace.core.tasks import finish
from headrace.eventlog.contract import EventLog, Positions
from headrace.eventlog.journal import FIRST_EPOCH, Checkpoint, Cut, EpochJournal
from headrace.eventlog.set_aside import STREAM as SET_ASIDE
from headrace.eventlog.set_aside import set_aside_events
from headrace.jobs.ahead import Ahead, Pieces, Ready
from headrace.jobs.books import Books
from headrace.jobs.inputs import Inputs
from headrace.jobs.model import JobSpec, JobStatus
from headrace.jobs.output import output_events
from headrace.sql.compile import compile_script
from headrace.sql.explain import explain_plan
from headrace.sql.functions.user import UserFunction
from headrace.sql.run import OutputRows, Policies, Results, Run, SetAsideRows

log = structlog.get_logger()

_IDLE_S = 1.0
_LOOK_S = 1.0  # between two looks at the operators' figures
_TICK_SHARE = 0.1
_TICK_MAX_S = 60.0
_DERIVED = -1  # the offset that the engine gives to rows which no single event stands behind, a window's say
_TRIES_MAX = 8
_CHECKPOINT_REST = (
    20.0  # a checkpoint that takes a second is followed by twenty without: large state is written less often
)
_CHECKPOINT_REST_MAX_S = 30.0


class _Aside(NamedTuple):
    """Rows of one stream that the query refused for one reason."""

    stream: str
    events: EventBatch
    reason: str
    details: list[str]
    about: list[dict[str, Any]] | None


class _Yielded(NamedTuple):
    """An epoch's rows for each output, and the rows that the query refused."""

    events: dict[str, EventBatch]
    refused: list[SetAsideRows]

    @property
    def any(self) -> bool:
        return bool(self.events or self.refused)


class JobRunner:
    """One job. The journal is this runner's alone. Making one compiles the script: raises SqlError with line and column."""

    def __init__(
        self,
        job: JobSpec,
        *,
        event_log: EventLog,
        journal: EpochJournal,
        ledger: Ledger,
        clock: Clock,
        rng: random.Random,
        functions: Mapping[str, UserFunction],
        references: Mapping[str, pa.Table],
    ) -> None:
        self._job = job
        self._config = job.config
        self._log = event_log
        self._journal = journal
        self._ledger = ledger
        self._clock = clock
        self._rng = rng
        self._functions = functions
        self._references = references
        self._plan = compile_script(job.text, functions=functions, references=references.keys())
        self._names = _by_stream(self._plan.inputs, self._config.inputs)
        self._outputs = {name: self._config.outputs.get(name, name) for name in self._plan.outputs}
        self._run = self._fresh_run()
        self._told = log.bind(job=job.name)
        self.status = JobStatus(name=job.name, streams=list(self._names), outputs=sorted(set(self._outputs.values())))
        self._epoch = FIRST_EPOCH - 1
        self._closed: dict[str, Positions] = {}  # where the last epoch ended
        self._whole = True  # False while the query has seen rows whose epoch is not written
        self._stats = self._run.stats()
        self._looked_s = 0.0
        self._seen = (clock.monotonic(), 0)  # when the status was last brought up to date, and rows in then
        self._kept: int | None = None  # the number of the snapshot that the journal's state ends with, if it is ours
        self._checkpointed_s = 0.0
        self._rest_s = 0.0
        self._ticked: dict[str, int] = {}
        self._busy_at = clock.now()
        self._yields = False  # whether the last portion gave output: most likely the next one does too
        self._inputs: Inputs
        self._ahead: Ahead
        self._books: Books

    async def run(self) -> None:
        """Run until cancelled; the portion under way is finished and a checkpoint written first.

        Raises UserError and DataError where a person must act (with `on_error = "stop"` also for the data's sake), and
        Unavailable when a new runner on the same journal should try again.
        """
        await self.start()
        try:
            while True:
                await self.step(wait_s=_IDLE_S)
        except asyncio.CancelledError:
            if self._whole:
                await self.checkpoint()
            raise
        finally:
            await self.close()

    async def start(self) -> None:
        """Restore the last checkpoint and run the epochs after it again."""
        checkpoint = await self._settled()
        known = checkpoint.positions if checkpoint else {}
        positions = {stream: known.get(stream) or await self._beginning(stream) for stream in self._names}
        self._inputs = Inputs(self._log, positions, rows_max=self._config.batch_rows_max, clock=self._clock)
        self._ahead = Ahead(self._inputs, self._names, self._run.decode)
        self._closed = positions
        self._books = Books(self._job.name, positions, checkpoint.extra if checkpoint else {})
        if checkpoint is None:
            await self.checkpoint()
        elif checkpoint.extra["fingerprint"] == self._job.fingerprint:
            self._epoch = checkpoint.epoch
            await asyncio.to_thread(self._run.restore, checkpoint.state, checkpoint.deltas)
            await self._replay(await asyncio.to_thread(self._journal.pending))
        else:  # another script: the state of the old one says nothing to this one
            self._epoch = checkpoint.epoch
            self._told.warning("state.discarded", epoch=self._epoch)
            await self.checkpoint()
        self.status.state, self.status.epoch = "running", self._epoch
        self._checkpointed_s = self._clock.monotonic()

    async def step(self, *, wait_s: float) -> int:
        """Take and process the next portion; returns its rows. Without any for `wait_s`, time goes on by itself."""
        ready = await self._ahead.take(wait_s=wait_s, linger_s=self._config.linger_ms / 1000)
        if ready is None:
            await self._tick()
        else:
            self._ahead.go_on()
            await finish(self._process(ready))
        if self._clock.monotonic() - self._checkpointed_s >= max(self._config.checkpoint_s, self._rest_s):
            await finish(self.checkpoint())
        return ready.portion.rows if ready else 0

    async def checkpoint(self) -> None:
        """Make everything up to here durable: the books, the query's state, and that no epoch needs to run again."""
        positions = self._ahead.positions
        began = self._clock.monotonic()
        if positions != self._closed:  # rows that gave no output are an epoch too, so that the books have its number
            await self._begin(self._epoch + 1, {})
            self._end_epoch()
        await self._ledger.write(self._books.close(self._epoch, positions, self._outputs))
        extra = {"fingerprint": self._job.fingerprint, "job": self._job.text_and_streams, **self._books.kept()}

        def write() -> None:
            self._stats = self._run.stats()
            since, self._kept = self._kept, None
            if since is not None and not self._journal.takes_delta():
                since = None
            state = self._run.snapshot(since)
            self._journal.checkpoint(self._epoch, positions, state, extra, delta=since is not None)
            self._kept = self._run.snapshots

        await asyncio.to_thread(write)
        self._checkpointed_s = self._clock.monotonic()
        self._rest_s = min(_CHECKPOINT_REST_MAX_S, _CHECKPOINT_REST * (self._checkpointed_s - began))

    async def close(self) -> None:
        """Stop reading ahead; what was not checkpointed runs again."""
        await self._ahead.close()

    async def refresh(self) -> None:
        """Bring the status' lag and delay up to date."""
        lag = 0
        for stream, at in self._ahead.positions.items():
            _, ends = await self._log.bounds(stream)
            lag += sum(max(0, end - begin) for end, begin in zip(ends, at, strict=True))
        self.status.lag = lag
        reached = [mark for mark in self._stats["watermarks"].values() if mark is not None]
        delay = (self._clock.now() - min(reached)) / TICKS_PER_S if reached else None
        self.status.watermark_delay_s = None if delay is None else round(delay, 3)
        (before_s, rows), now_s = self._seen, self._clock.monotonic()
        if now_s > before_s:
            self.status.rows_per_s = round((self.status.rows_in - rows) / (now_s - before_s), 1)
            self._seen = now_s, self.status.rows_in
        operators = self._stats["operators"]
        self.status.decoders = self._stats["decoders"]
        self.status.state_rows = sum(one["state_rows"] for one in operators)
        self.status.state_bytes = sum(one["state_bytes"] for one in operators)
        self.status.busy_s = round(sum(one["busy_s"] for one in operators), 3)

    def details(self) -> dict[str, Any]:
        """The plan as EXPLAIN writes it, and what each operator did; at most about a second old while rows come."""
        return {"name": self._job.name, "script": self._job.text, "plan": explain_plan(self._plan), **self._stats}

    def _fresh_run(self) -> Run:
        policies = Policies(
            late_arrival_s=self._config.late_arrival_s,
            out_of_order_s=self._config.out_of_order_s,
            action=self._config.action,
        )
        return Run(
            self._plan,
            references=self._references,
            policies=policies,
            on_error=self._config.on_error,
            timer=self._clock.monotonic,
        )

    async def _settled(self) -> Checkpoint | None:
        """The last checkpoint. Where the script was changed, the old one first finishes the epochs that it had begun."""
        found = await asyncio.to_thread(self._journal.last_checkpoint)
        if found is None or found.extra["fingerprint"] == self._job.fingerprint:
            return found
        if await asyncio.to_thread(self._journal.pending):
            older = JobRunner(
                self._job.as_before(found.extra["job"]),
                event_log=self._log,
                journal=self._journal,
                ledger=self._ledger,
                clock=self._clock,
                rng=self._rng,
                functions=self._functions,
                references=self._references,
            )
            await older.start()
            await older.close()
        return await asyncio.to_thread(self._journal.last_checkpoint)

    async def _beginning(self, stream: str) -> Positions:
        earliest, end = await self._log.bounds(stream)
        return end if self._config.start == "now" else earliest

    async def _replay(self, pending: list[Cut]) -> None:
        for cut in pending:
            found: list[Results] = []
            while (ready := await self._ahead.replay(cut.positions)) is not None:
                self._books.count_in(ready.portion)
                found += await asyncio.to_thread(self._feed, ready.pieces, {})
            found += await asyncio.to_thread(self._feed, [], cut.extra.get("quiet", {}))
            yielded = await asyncio.to_thread(self._yielded, found, cut.epoch)
            self._told.info("epoch.replayed", epoch=cut.epoch)
            await self._write(cut.epoch, yielded)
            self._end_epoch(cut.epoch)
        if pending:
            self._inputs.rejoin()
            await self.checkpoint()

    async def _process(self, ready: Ready) -> None:
        """Run a portion through the query and write what it gives.

        Where an epoch ends is known before its rows are. When it is likely to have any, its cut point goes to disk while the
        query runs. If it has none after all, the same epoch goes on with the next portion, and gets a later cut point.
        """
        self._whole = False
        portion, epoch = ready.portion, self._epoch + 1
        self._books.count_in(portion)
        query = asyncio.create_task(asyncio.to_thread(self._query, ready, epoch))
        begun = self._yields and bool(portion.runs)
        try:
            if begun:
                await self._begin(epoch, portion.quiet)
        finally:
            await asyncio.wait({query})
        yielded = query.result()
        self.status.rows_in += portion.rows
        if portion.runs:
            self._busy_at = self._clock.now()
            self._yields = yielded.any
        if yielded.any:
            if not begun:
                await self._begin(epoch, portion.quiet)
            await self._write(epoch, yielded)
            self._end_epoch(epoch)
        self._whole = True
        if self._epoch == epoch and not portion.runs:
            # Nothing may come for long now: the books should have these rows at once.
            await self.checkpoint()

    def _query(self, ready: Ready, epoch: int) -> _Yielded:
        found = self._feed(ready.pieces, ready.portion.quiet)
        if self._clock.monotonic() - self._looked_s >= _LOOK_S:  # here, as nothing else may touch the query now
            self._stats, self._looked_s = self._run.stats(), self._clock.monotonic()
        return self._yielded(found, epoch)

    def _feed(self, pieces: Pieces, quiet: Mapping[str, int]) -> list[Results]:
        """Give the query rows, then the time that passed on inputs without any. Blocking."""
        found = [self._run.process(name, rows) for name, rows in pieces]
        found += [self._run.advance(name, time) for stream, time in quiet.items() for name in self._names[stream]]
        return found

    def _yielded(self, found: Iterable[Results], epoch: int) -> _Yielded:
        """What an epoch has for its sinks. Blocking."""
        pieces: dict[str, list[OutputRows]] = {}
        refused: list[SetAsideRows] = []
        for one in found:
            refused += one.set_aside
            for rows in one.rows:
                if rows.rows:
                    pieces.setdefault(rows.output, []).append(rows)
        events = {
            output: output_events(rows, producer=f"{self._job.stage}:{output}", epoch=epoch)
            for output, rows in pieces.items()
        }
        return _Yielded(events, refused)

    async def _begin(self, epoch: int, quiet: Mapping[str, int]) -> None:
        await asyncio.to_thread(self._journal.begin, epoch, self._ahead.positions, {"quiet": dict(quiet)})

    def _end_epoch(self, epoch: int | None = None) -> None:
        self._epoch = self._epoch + 1 if epoch is None else epoch
        self._closed = self._ahead.positions
        self.status.epoch = self._epoch

    async def _write(self, epoch: int, yielded: _Yielded) -> None:
        """Append an epoch's rows to the output streams, side by side, and what was refused to `set_aside`."""
        work = [
            self._append(self._outputs[output], events, f"{self._job.stage}:{output}", epoch)
            for output, events in yielded.events.items()
        ]
        for answer in await asyncio.gather(*work, return_exceptions=True):
            if answer is not None:
                raise answer
        for output, events in yielded.events.items():
            self._books.count_out(self._outputs[output], events.num_rows)
            self.status.rows_out += events.num_rows
        if aside := self._distinct(yielded.refused):
            await self._append_set_aside(aside, epoch)

    async def _append_set_aside(self, aside: list[_Aside], epoch: int) -> None:
        """One append an epoch: the log knows a producer's epoch only as a whole."""
        producer = f"{self._job.stage}:{SET_ASIDE}"
        batches: list[EventBatch] = []
        for number, one in enumerate(aside):
            batches.append(
                set_aside_events(
                    one.events,
                    [one.reason] * one.events.num_rows,
                    one.details,
                    stage=self._job.stage,
                    stream=one.stream,
                    ids=f"{producer}:{number}",
                    epoch=epoch,
                    about=one.about,
                )
            )
            self._books.count_aside(one.stream, one.events, one.reason)
            self.status.set_aside += one.events.num_rows
            self._told.warning("events.set_aside", epoch=epoch, reason=one.reason, rows=one.events.num_rows)
        await self._append(SET_ASIDE, pa.concat_batches(batches), producer, epoch)

    def _distinct(self, refused: list[SetAsideRows]) -> list[_Aside]:
        """Refused rows by stream, each once: two inputs that read one stream refuse the same row twice."""
        stream_of = {name: stream for stream, names in self._names.items() for name in names}
        seen: set[tuple[str, int, int]] = set()
        found: list[_Aside] = []
        for rows in refused:
            stream = stream_of[rows.input]
            events = rows.events
            places = zip(events.column("_partition").to_pylist(), events.column("_offset").to_pylist(), strict=True)
            fresh: list[int] = []
            for row, place in enumerate(places):
                if (stream, *place) not in seen or place[1] == _DERIVED:
                    seen.add((stream, *place))
                    fresh.append(row)
            if fresh:
                events = events.take(pa.array(fresh, pa.int64()))
                about = None if rows.about is None else [rows.about[row] for row in fresh]
                found.append(_Aside(stream, events, rows.reason, [rows.details[row] for row in fresh], about))
        return found

    async def _append(self, stream: str, events: EventBatch, producer: str, epoch: int) -> None:
        def on_retry(attempt: int, exc: Unavailable) -> None:
            self._told.warning("output.retried", stream=stream, attempt=attempt, problem=str(exc))

        await retry(
            lambda: self._log.append(stream, events, producer=producer, epoch=epoch),
            clock=self._clock,
            rng=self._rng,
            tries_max=_TRIES_MAX,
            on_retry=on_retry,
        )

    async def _tick(self) -> None:
        """Let time go on where nothing comes: a tick in the log, so that a replay sees the same time at the same place.

        One a second where rows of another stream wait for it, else ever fewer: a tenth of the quiet time apart, so that a
        window closes at most that much late.
        """
        now = self._clock.now()
        pause_s = _IDLE_S
        if not self._inputs.waiting():
            if not self._waits_for_time():
                return
            quiet_s = (now - self._busy_at) / TICKS_PER_S
            pause_s = min(_TICK_MAX_S, max(_IDLE_S, quiet_s * _TICK_SHARE))
        for stream in self._names:
            heard = max(self._inputs.frontier(stream), self._ticked.get(stream, MIN_WATERMARK))
            if now - heard >= pause_s * TICKS_PER_S:
                self._ticked[stream] = now
                await self._log.append(stream, _TICK)

    def _waits_for_time(self) -> bool:
        """Whether the query holds something that later time would set free."""
        return self._config.late_arrival_s >= 0 and any(
            operator["state_rows"] for operator in self._run.stats()["operators"]
        )


_TICK: EventBatch = pa.RecordBatch.from_arrays(
    [pa.array([], field.type) for field in EVENT_SCHEMA], schema=EVENT_SCHEMA
)


def _by_stream(inputs: Iterable[str], streams: Mapping[str, str]) -> dict[str, list[str]]:
    """The inputs of a script that read each stream."""
    found: dict[str, list[str]] = {}
    for name in inputs:
        found.setdefault(streams.get(name, name), []).append(name)
    return found


def describe(status: JobStatus) -> dict[str, Any]:
    """The status document of a job."""
    told = {name: getattr(status, name) for name in status.__struct_fields__}
    return {"part": "job", "stream": ", ".join(status.streams), "rows": status.rows_in, **told}
