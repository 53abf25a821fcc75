"""From many connections into one log: events gather for a moment, become one batch, and are acknowledged when durable.

Nothing is ever acknowledged before its append returned. While the log is unavailable the batch is tried again, further
events wait up to a bound, and above it the doors stop reading. An append that is tried again has the same epoch, so a
batch that was stored although its answer got lost is not stored twice.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import orjson
import pyarrow as pa
import structlog

from headrace.core.clock import Clock
from headrace.core.errors import Unavailable
from headrace.core.identity import EventIds, message_event_id
from headrace.core.observe.metrics import Metrics
from headrace.core.schema import EventBatch, event_batch
from headrace.devices.model import Device
from headrace.eventlog.contract import EventLog
from headrace.gateway.limits import RateLimit
from headrace.gateway.limits_fair import FairQueue
from headrace.gateway.refusals import Refusals
from headrace.gateway.routing import Router
from headrace.gateway.streams import NOT_ALLOWED, SET_ASIDE, STREAM, DeviceStreams
from headrace.wire.iothub.properties import BagReader
from headrace.wire.iothub.topics import Identity, telemetry_prefix
from headrace.wire.mqtt.codec import Frame

SET_ASIDE_BODY_BYTES = 65_536
SET_ASIDE_WAITING_MAX = 500
PENDING_BYTES_MAX = 128 * 1024 * 1024
PENDING_BATCHES_MAX = 20
LIMITED_BATCH_S, LIMITED_WAIT_S = 0.1, 20.0
LIMITED_ROWS_MAX = 100_000
RETRY_S, RETRY_MAX_S = 0.05, 2.0

log = structlog.get_logger()


class Origin(NamedTuple):
    """Who sends: what is the same in every event of a connection."""

    device: str
    module: str | None
    entity_id: str
    site: str | None
    prefix: bytes  # of its telemetry topics
    cut: int  # its length

    @classmethod
    def of(cls, identity: Identity, device: Device) -> Origin:
        entity_id = device.entity_id or device.id
        prefix = telemetry_prefix(identity)
        return cls(identity.device, identity.module, entity_id, device.site or None, prefix, len(prefix))


class Sender(Protocol):
    """Who hears that messages are durable."""

    def stored(self, packet_ids: list[bytes]) -> None:
        """Packet ids of two bytes, in order; `b""` for QoS 0. Called on the event loop; must not raise."""
        ...


class Piece(NamedTuple):
    """Messages of one sender, in order. Their topics are below the origin's prefix, and checked."""

    origin: Origin
    frames: list[Frame]
    size_bytes: int
    sender: Sender | None


class Reject(NamedTuple):
    """A message of a known device that is set aside."""

    origin: Origin
    reason: str
    detail: str
    body: bytes


class Ingress:
    """The one writer of telemetry in this process. `on_full` and `on_room` tell the doors to stop and go on reading."""

    def __init__(
        self,
        events: EventLog,
        *,
        clock: Clock,
        rng: random.Random,
        ids: EventIds,
        metrics: Metrics,
        limit: RateLimit,
        interval_s: float,
        batch_rows_max: int,
        pending_bytes_max: int = PENDING_BYTES_MAX,
        streams: DeviceStreams | None = None,
        refusals: Refusals | None = None,
        router: Router | None = None,
    ) -> None:
        self._events = events
        self._clock = clock
        self._rng = rng
        self._ids = ids
        self._limit = limit
        self.streams = streams or DeviceStreams()
        self._refusals = refusals or Refusals(metrics, clock)
        self._router = router if router is not None and router.active else None
        self._interval_s = interval_s
        self._batch_rows_max = batch_rows_max
        self._rows_max = batch_rows_max * PENDING_BATCHES_MAX
        self._fair: FairQueue | None = None
        if limit.per_s:  # small batches, so that a turn comes soon; and what may wait is worth a while, not more
            self._batch_rows_max = max(1, min(batch_rows_max, int(limit.per_s * LIMITED_BATCH_S)))
            self._rows_max = max(1, min(LIMITED_ROWS_MAX, int(limit.per_s * LIMITED_WAIT_S)))
            self._fair = FairQueue(self._rows_max)
        self._bytes_max = pending_bytes_max
        self._producer = (
            f"gateway-{ids.take()}-{clock.now():x}"  # never that of an earlier process: its epochs are done
        )
        self._epoch = 0
        self._reader = BagReader()
        self._pieces: deque[Piece] | FairQueue = self._fair if self._fair is not None else deque()
        self._waiting_rows = 0  # not yet taken into a batch
        self._rejects: deque[Reject] = deque()
        self._pending_rows = 0  # not yet durable
        self._pending_bytes = 0
        self._first_at = 0.0
        self._some, self._enough = asyncio.Event(), asyncio.Event()
        self._closing = False
        self.full = False
        self.trouble = ""
        self.on_full: list[Callable[[], None]] = []
        self.on_room: list[Callable[[], None]] = []
        self._events_total = metrics.counter("gateway_events_total", "Events made durable")
        self._bytes_total = metrics.counter("gateway_event_bytes_total", "Bytes of topics and bodies made durable")
        self._batches_total = metrics.counter("gateway_batches_total", "Batches appended to the log")
        self._retries_total = metrics.counter("gateway_append_retries_total", "Appends that had to be tried again")
        self._dropped_total = metrics.counter("gateway_set_aside_dropped_total", "Set-aside messages beyond the bound")
        self._append_s = metrics.histogram("gateway_append_seconds", "How long the log takes to make a batch durable")
        metrics.gauge("gateway_pending_events", "Events received and not durable").set_function(
            lambda: self._pending_rows
        )

    @property
    def pending_rows(self) -> int:
        return self._pending_rows

    @property
    def limited_s(self) -> float:
        """How many seconds of the hub's limit what waits now is worth."""
        return self._pending_rows / self._limit.per_s if self._limit.per_s else 0.0

    def crowded(self, sender: Sender, share: float = 1.0) -> bool:
        """Whether a sender has more waiting for the hub's limit than its share (or that part of it), and should not be read."""
        return self._fair is not None and self._fair.crowded(sender, share)

    def waits(self, sender: Sender) -> bool:
        """Whether something of a sender waits for the hub's limit."""
        return self._fair is not None and self._fair.waits(sender)

    def warm(self) -> None:
        """Build a batch nobody sees: the first one makes pyarrow import pandas, seconds that no device should wait for."""
        origin = Origin("", None, "", None, b"", 0)
        self._batches([Piece(origin, [(0x32, b"", b"\0\1", b"")], 0, None)])

    def add(self, piece: Piece) -> None:
        """Take messages over. Never blocks; above the bound it sets `full` and calls `on_full`."""
        if not self._pieces:
            self._first_at = self._clock.monotonic()
            self._some.set()
        self._pieces.append(piece)
        rows = len(piece.frames)
        self._waiting_rows += rows
        self._pending_rows += rows
        self._pending_bytes += piece.size_bytes
        if self._waiting_rows >= self._batch_rows_max:
            self._enough.set()
        if not self.full and (self._pending_rows >= self._rows_max or self._pending_bytes >= self._bytes_max):
            self.full = True
            for callback in self.on_full:
                callback()

    def set_aside(self, reject: Reject) -> None:
        """Keep a refused message for later eyes; beyond the bound it is counted and dropped."""
        if len(self._rejects) >= SET_ASIDE_WAITING_MAX:
            self._dropped_total.inc()
            return
        self._rejects.append(reject._replace(body=reject.body[:SET_ASIDE_BODY_BYTES]))
        if not self._some.is_set():
            self._first_at = self._clock.monotonic()
        self._some.set()

    async def run(self) -> None:
        """Append until `close` was called and nothing waits."""
        while True:
            await self._gathered()
            pieces, rejects = self._take(), list(self._rejects)
            self._rejects.clear()
            if pieces:
                await self._store(pieces)
            if rejects:
                await self._append(SET_ASIDE, self._reject_batch(rejects))
            if self._closing and not self._pieces and not self._rejects:
                return

    def close(self) -> None:
        """Ask `run` to return once everything is durable."""
        self._closing = True
        self._some.set()
        self._enough.set()

    async def _gathered(self) -> None:
        """Wait for events, then a little more for others to share their fsync."""
        if not self._closing:
            await self._some.wait()  # idle for as long as nobody sends; `close` ends it
        left_s = self._first_at + self._interval_s - self._clock.monotonic()
        if left_s > 0 and not self._enough.is_set():
            try:
                await asyncio.wait_for(self._enough.wait(), left_s)
            except TimeoutError:
                return

    def _take(self) -> list[Piece]:
        if isinstance(self._pieces, FairQueue):
            taken = self._pieces.take(self._batch_rows_max)
            rows = sum(len(piece.frames) for piece in taken)
        else:
            taken, rows = [], 0
            while self._pieces and rows < self._batch_rows_max:
                piece = self._pieces.popleft()
                rows += len(piece.frames)
                taken.append(piece)
        self._waiting_rows -= rows
        if self._waiting_rows < self._batch_rows_max and not self._closing:
            self._enough.clear()
        if not self._pieces and not self._closing:
            self._some.clear()
        return taken

    async def _store(self, pieces: list[Piece]) -> None:
        taken = sum(len(piece.frames) for piece in pieces)
        size_bytes = sum(piece.size_bytes for piece in pieces)
        if self._router is not None and self._router.twins is not None:
            await self._know_twins(pieces)
        batches = self._batches(pieces)
        rows = sum(batch.num_rows for _, batch in batches)
        wait_s = self._limit.take(taken, size_bytes)
        if wait_s > 0:
            await self._clock.sleep(wait_s)
        began = self._clock.monotonic()
        if len(batches) == 1:
            await self._append(*batches[0])
        else:  # all are durable before any sender hears of it
            await asyncio.gather(*(self._append(stream, batch) for stream, batch in batches))
        self._append_s.observe(self._clock.monotonic() - began)
        self._batches_total.inc(len(batches))
        self._events_total.inc(rows)
        self._bytes_total.inc(size_bytes)
        self._pending_rows -= taken
        self._pending_bytes -= size_bytes
        self._acknowledge(pieces)
        if self.full and self._pending_rows <= self._rows_max // 2 and self._pending_bytes <= self._bytes_max // 2:
            self.full = False
            for callback in self.on_room:
                callback()

    async def _know_twins(self, pieces: Sequence[Piece]) -> None:
        """Have the twins that conditions look at. Until they can be read the messages wait, as they do for the log."""
        assert self._router is not None
        assert self._router.twins is not None
        senders = {Identity(piece.origin.device, piece.origin.module) for piece in pieces}
        delay_s = RETRY_S
        while True:
            try:
                await self._router.twins.fetch(senders)
            except Unavailable as exc:
                self._note_trouble(f"{exc.code}: {exc.message}")
                await self._clock.sleep(self._rng.uniform(0.5, 1.0) * delay_s)
                delay_s = min(RETRY_MAX_S, delay_s * 2)
            else:
                return

    @staticmethod
    def _acknowledge(pieces: list[Piece]) -> None:
        heard: dict[Sender, list[bytes]] = {}
        for piece in pieces:
            if piece.sender is not None:
                packet_ids = [frame[2] for frame in piece.frames]
                earlier = heard.get(piece.sender)
                if earlier is None:
                    heard[piece.sender] = packet_ids
                else:
                    earlier += packet_ids
        for sender, packet_ids in heard.items():
            sender.stored(packet_ids)

    async def _append(self, stream: str, batch: EventBatch) -> None:
        """Append until the log takes it. What other errors a log may raise, the events must not be lost for them."""
        self._epoch += 1
        epoch, delay_s = self._epoch, RETRY_S
        while True:
            try:
                await self._events.append(stream, batch, producer=self._producer, epoch=epoch)
            except Unavailable as exc:
                self._note_trouble(f"{exc.code}: {exc.message}")
            except Exception as exc:
                log.exception("ingress.append_failed", stream=stream, rows=batch.num_rows)
                self._note_trouble(f"{type(exc).__name__}: {exc}")
            else:
                if self.trouble:
                    log.info("ingress.recovered", stream=stream, rows=batch.num_rows)
                    self.trouble = ""
                return
            self._retries_total.inc()
            await self._clock.sleep(self._rng.uniform(0.5, 1.0) * delay_s)
            delay_s = min(RETRY_MAX_S, delay_s * 2)

    def _note_trouble(self, text: str) -> None:
        if text != self.trouble:
            log.warning("ingress.delayed", error=text, pending=self._pending_rows)
            self.trouble = text

    def _batches(self, pieces: Sequence[Piece]) -> list[tuple[str, EventBatch]]:
        """The messages as rows, by the stream that each goes to."""
        origins: list[Origin] = []
        frames: list[Frame] = []
        for piece in pieces:  # mostly one message each: the work is done flat, over all of them
            frames += piece.frames
            origins += [piece.origin] * len(piece.frames)
        bags = [frame[1][origin[5] :] for frame, origin in zip(frames, origins, strict=True)]
        retained = [index for index, frame in enumerate(frames) if frame[0] & 1]
        for index in retained:
            bags[index] += b"&mqtt-retain=true"
        described = self._reader.describe(bags)
        take = self._ids.take
        batch = event_batch(
            {
                "_event_id": [
                    message_event_id(origin[0], origin[1], each[0]) if each[0] else take()
                    for origin, each in zip(origins, described, strict=True)
                ],
                "_device": [origin[0] for origin in origins],
                "_module": [origin[1] for origin in origins],
                "_entity_id": [origin[2] for origin in origins],
                "_site": [origin[3] for origin in origins],
                "_type": [each[1] for each in described],
                "_content_type": [each[2] for each in described],
                "_properties": [each[3] for each in described],
                "_body": [frame[3] for frame in frames],
            }
        )
        if all(not each[4] for each in described):
            return [(STREAM, batch)] if self._router is None else self._router.split(batch)
        return self._sorted(batch, [each[4] for each in described], origins)

    def _sorted(
        self, batch: EventBatch, wanted: Sequence[str], origins: Sequence[Origin]
    ) -> list[tuple[str, EventBatch]]:
        """A batch cut by the streams that its rows ask for; rows that may not have theirs are to be set aside, and those that
        ask for none are routed."""
        rows: dict[str, list[int]] = {}
        for index, stream in enumerate(wanted):
            rows.setdefault(stream, []).append(index)
        routed = rows.pop("", []) if self._router is not None else []
        problems = {stream: self.streams.problem(stream) for stream in rows}
        parts = [(stream or STREAM, batch.take(pa.array(rows[stream]))) for stream in rows if not problems[stream]]
        if routed and self._router is not None:
            parts = _joined(parts + self._router.split(batch.take(pa.array(routed))))
        bodies = batch.column("_body")
        rejects = [
            Reject(origins[index], NOT_ALLOWED, problems[stream], bodies[index].as_py())
            for stream in rows
            if problems[stream]
            for index in rows[stream]
        ]
        for reject in rejects:
            self._refusals.note(NOT_ALLOWED, detail=reject.detail, device=reject.origin.device)
        return parts + ([(SET_ASIDE, self._reject_batch(rejects))] if rejects else [])

    def _reject_batch(self, rejects: list[Reject]) -> EventBatch:
        return event_batch(
            {
                "_event_id": [self._ids.take() for _ in rejects],
                "_device": [reject.origin.device for reject in rejects],
                "_entity_id": [reject.origin.entity_id for reject in rejects],
                "_module": [reject.origin.module for reject in rejects],
                "_site": [reject.origin.site for reject in rejects],
                "_type": [reject.reason for reject in rejects],
                "_properties": [
                    orjson.dumps({"stage": "gateway", "reason": reject.reason, "detail": reject.detail}).decode()
                    for reject in rejects
                ],
                "_body": [reject.body for reject in rejects],
            }
        )


def _joined(parts: list[tuple[str, EventBatch]]) -> list[tuple[str, EventBatch]]:
    """One batch a stream: an epoch of a producer names one append to a stream."""
    found: dict[str, list[EventBatch]] = {}
    for stream, batch in parts:
        found.setdefault(stream, []).append(batch)
    return [(stream, pa.concat_batches(batches)) for stream, batches in found.items()]
