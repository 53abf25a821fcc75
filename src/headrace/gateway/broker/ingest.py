"""From topics into the event log: what templates match gathers for a moment, becomes one batch, and is answered when durable.

The same promise as the hub's ingress: nothing is answered before its append returned, an append that is tried again has the
same epoch, and above the bound the broker stops reading from its clients.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import orjson
import structlog

from headrace.core.clock import Clock
from headrace.core.errors import Unavailable
from headrace.core.identity import EventIds
from headrace.core.observe.metrics import Metrics
from headrace.core.schema import event_batch
from headrace.eventlog.contract import EventLog
from headrace.gateway.broker.templates import Target
from headrace.gateway.limits import RateLimit
from headrace.gateway.streams import NOT_ALLOWED, SET_ASIDE, DeviceStreams

RETRY_S, RETRY_MAX_S = 0.05, 2.0
PENDING_BYTES_MAX = 128 * 1024 * 1024
PENDING_BATCHES_MAX = 20

log = structlog.get_logger()


class Extra(NamedTuple):
    """What a message says beside its topic and body."""

    text: str | None  # JSON of _properties
    content_type: str | None = None
    event_id: str = ""  # where a resend must become the same event


class Piece(NamedTuple):
    """Messages in order, and who is told when they are durable. `extras` is shorter than `bodies` only when empty."""

    targets: Sequence[Target]
    bodies: Sequence[bytes]
    extras: Sequence[Extra | None]
    done: Callable[[], None] | None


class BrokerIngest:
    """The broker's one writer of events. `on_full` and `on_room` tell it to stop and go on reading."""

    def __init__(
        self,
        events: EventLog,
        *,
        clock: Clock,
        rng: random.Random,
        ids: EventIds,
        metrics: Metrics,
        streams: DeviceStreams,
        interval_s: float = 0.005,
        batch_rows_max: int = 5000,
        limit: RateLimit | None = None,
    ) -> None:
        self._events = events
        self._clock = clock
        self._rng = rng
        self._ids = ids
        self._streams = streams
        self._interval_s = interval_s
        self._batch_rows_max = batch_rows_max
        self._limit = limit or RateLimit(0, clock)
        self._producer = f"broker-{ids.take()}-{clock.now():x}"
        self._epoch = 0
        self._pieces: deque[Piece] = deque()
        self._rows = self._bytes = 0  # not yet durable
        self._waiting = 0  # rows not yet taken into a batch
        self._first_at = 0.0
        self._some, self._enough = asyncio.Event(), asyncio.Event()
        self._closing = False
        self.full = False
        self.trouble = ""
        self.on_full: list[Callable[[], None]] = []
        self.on_room: list[Callable[[], None]] = []
        self._events_total = metrics.counter("broker_events_total", "Events that broker topics became, durable")
        self._retries_total = metrics.counter("broker_append_retries_total", "Appends that had to be tried again")
        self._append_s = metrics.histogram("broker_append_seconds", "How long the log takes to make a batch durable")

    @staticmethod
    def warm() -> None:
        """Build a batch nobody sees: the first one makes pyarrow import pandas, seconds that no client should wait for."""
        event_batch({"_event_id": [""], "_device": [""], "_body": [b""]})

    def add(self, piece: Piece) -> None:
        """Take messages over. Never blocks."""
        if not self._pieces:
            self._first_at = self._clock.monotonic()
            self._some.set()
        self._pieces.append(piece)
        self._rows += len(piece.bodies)
        self._waiting += len(piece.bodies)
        self._bytes += sum(map(len, piece.bodies))
        if self._waiting >= self._batch_rows_max:
            self._enough.set()
        if not self.full and self._over(1):
            self.full = True
            for callback in self.on_full:
                callback()

    def close(self) -> None:
        """Ask `run` to return once everything is durable."""
        self._closing = True
        self._some.set()
        self._enough.set()

    @property
    def pending_rows(self) -> int:
        return self._rows

    async def run(self) -> None:
        """Append until `close` was called and nothing waits."""
        while True:
            await self._gathered()
            pieces = self._take()
            if pieces:
                await self._store(pieces)
            if self._closing and not self._pieces:
                return

    def _over(self, share: int) -> bool:
        rows_max = self._batch_rows_max * PENDING_BATCHES_MAX
        return self._rows * share >= rows_max or self._bytes * share >= PENDING_BYTES_MAX

    async def _gathered(self) -> None:
        if not self._closing:
            await self._some.wait()  # idle for as long as nobody sends; `close` ends it
        left_s = self._first_at + self._interval_s - self._clock.monotonic()
        if left_s > 0 and not self._enough.is_set():
            try:
                await asyncio.wait_for(self._enough.wait(), left_s)
            except TimeoutError:
                return

    def _take(self) -> list[Piece]:
        taken: list[Piece] = []
        rows = 0
        while self._pieces and rows < self._batch_rows_max:
            taken.append(self._pieces.popleft())
            rows += len(taken[-1].bodies)
        self._waiting -= rows
        if self._waiting < self._batch_rows_max and not self._closing:
            self._enough.clear()
        if not self._pieces and not self._closing:
            self._some.clear()
        return taken

    async def _store(self, pieces: list[Piece]) -> None:
        targets = [target for piece in pieces for target in piece.targets]
        bodies = [body for piece in pieces for body in piece.bodies]
        extras: list[Extra | None] = [None] * len(bodies)
        if any(piece.extras for piece in pieces):
            extras = [extra for piece in pieces for extra in (piece.extras or [None] * len(piece.bodies))]
        wait_s = self._limit.take(len(bodies))
        if wait_s > 0:
            await self._clock.sleep(wait_s)
        began = self._clock.monotonic()
        for stream, rows in self._by_stream(targets).items():
            await self._append(stream, rows, targets, bodies, extras)
        self._append_s.observe(self._clock.monotonic() - began)
        self._events_total.inc(len(bodies))
        self._rows -= len(bodies)
        self._bytes -= sum(map(len, bodies))
        for piece in pieces:
            if piece.done is not None:
                piece.done()
        if self.full and not self._over(2):
            self.full = False
            for callback in self.on_room:
                callback()

    def _by_stream(self, targets: list[Target]) -> dict[str, list[int] | range]:
        streams = {target.stream for target in targets}
        if len(streams) == 1 and not any(target.dynamic for target in _distinct(targets)):
            return {streams.pop(): range(len(targets))}
        rows: dict[str, list[int] | range] = {}
        for index, target in enumerate(targets):
            refused = target.dynamic and self._streams.problem(target.stream)
            place = rows.setdefault(SET_ASIDE if refused else target.stream, [])
            assert isinstance(place, list)
            place.append(index)
        return rows

    async def _append(
        self,
        stream: str,
        rows: Sequence[int],
        targets: list[Target],
        bodies: list[bytes],
        extras: list[Extra | None],
    ) -> None:
        """One stream's batch, until the log takes it. Whatever errors a log may raise, the events must not be lost."""
        aside = stream == SET_ASIDE
        take = self._ids.take
        mine = [targets[row] for row in rows]
        more = [extras[row] for row in rows]
        batch = event_batch(
            {
                "_event_id": [extra.event_id if extra and extra.event_id and not aside else take() for extra in more],
                "_device": [target.device for target in mine],
                "_site": [target.site for target in mine],
                "_type": [NOT_ALLOWED if aside else "telemetry"] * len(mine),
                "_content_type": [extra.content_type if extra else None for extra in more],
                "_properties": [
                    self._why(target) if aside else extra.text if extra else target.text
                    for target, extra in zip(mine, more, strict=True)
                ],
                "_body": [bodies[row] for row in rows],
            }
        )
        self._epoch += 1
        delay_s = RETRY_S
        while True:
            try:
                await self._events.append(stream, batch, producer=self._producer, epoch=self._epoch)
            except Unavailable as exc:
                self.trouble = f"{exc.code}: {exc.message}"
                log.warning("broker.append_delayed", stream=stream, rows=batch.num_rows, code=exc.code)
            except Exception as exc:
                self.trouble = f"{type(exc).__name__}: {exc}"
                log.exception("broker.append_failed", stream=stream, rows=batch.num_rows)
            else:
                self.trouble = ""
                return
            self._retries_total.inc()
            await self._clock.sleep(delay_s * (0.5 + self._rng.random()))
            delay_s = min(RETRY_MAX_S, 2 * delay_s)

    def _why(self, target: Target) -> str:
        detail = self._streams.problem(target.stream)
        return orjson.dumps({"stage": "broker", "reason": NOT_ALLOWED, "detail": detail}).decode()


def _distinct(targets: list[Target]) -> list[Target]:
    """The distinct targets of a batch, by identity: a topic's target is one object."""
    return list({id(target): target for target in targets}.values())
