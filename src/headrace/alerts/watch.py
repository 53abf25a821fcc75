"""One stream under watch: read, evaluate, store, announce.

What is remembered (rules' state, positions, the announcements of the last write) is one document, written after the
incidents and before anyone is told. Killed at any point, the next start reads from the positions of that document, comes
to the same incidents under the same ids, and repeats the announcement under an epoch that the log knows already.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import structlog

from headrace.alerts.evaluator import Change, Evaluator, RuleState, Seen
from headrace.alerts.incidents import IncidentStore
from headrace.alerts.model import Incident, Rule
from headrace.core.clock import TICKS_PER_MS, TICKS_PER_S, Clock
from headrace.core.errors import HeadraceError, NotFound
from headrace.core.identity import message_event_id
from headrace.core.observe.metrics import Metrics
from headrace.core.schema import JSON_TYPE, EventBatch, event_batch
from headrace.docstore.contract import DocStore
from headrace.eventlog.contract import EventLog, Positions, Trimmed

log = structlog.get_logger()
ALERTS = "alerts"  # the stream of announcements, and the consumer group
STATES = "alert_states"  # the collection of what is remembered, by stream
ROWS_MAX = 5000
WRITE_EVERY_S = 1.0  # openings and resolutions are written at once, other changes this often
REST_S = 10.0  # where nothing but the position changed: after a crash that much is looked at again, to the same end
_SLACK = TICKS_PER_S  # an append under way may carry a stamp this much in the past
_STATE = {"opened": "open", "resolved": "resolved"}  # what an announcement calls it


class Condition(Protocol):
    """A rule's `when`, compiled: `headrace.sql.condition`."""

    def evaluate(self, batch: EventBatch) -> npt.NDArray[np.bool_]: ...

    def fields(self, batch: EventBatch, rows: npt.NDArray[np.int64]) -> list[dict[str, Any]]: ...


class Watched(NamedTuple):
    rule: Rule
    condition: Condition


class _State(msgspec.Struct):
    """The remembered document."""

    positions: tuple[int, ...] = ()
    now: int = 0
    epoch: int = 0
    rules: dict[str, RuleState] = {}
    announced: list[dict[str, Any]] = []


class Watch:
    """All rules of one stream. `tell` is called with incidents that opened or resolved, once that is durable."""

    def __init__(
        self,
        stream: str,
        rules: Sequence[Watched],
        *,
        log: EventLog,
        docs: DocStore,
        store: IncidentStore,
        clock: Clock,
        lock: asyncio.Lock,
        tell: Callable[[Incident], None],
        metrics: Metrics,
    ) -> None:
        self.stream = stream
        self._producer = f"alerts:{stream}"
        self._rules = rules
        self._log, self._docs, self._store, self._clock, self._lock, self._tell = log, docs, store, clock, lock, tell
        self._evaluators: dict[str, Evaluator] = {watched.rule.name: Evaluator(watched.rule) for watched in rules}
        self._positions: Positions = ()
        self._now = 0
        self._epoch = 0
        self._changes: list[Change] = []  # since the last write
        self._writing: list[Change] = []
        self._moved = False
        self._written_at = clock.monotonic()
        self._counted = metrics.counter("alert_incidents_total", "Incidents by rule and step", ("rule", "step"))
        self._failed = metrics.counter("alert_rule_failures_total", "Batches a rule failed on", ("rule",))

    async def run(self) -> None:
        await self.restore()
        while True:
            await self.step(wait_s=1.0)

    async def restore(self) -> None:
        """Go on where the last write was. What rules that are no longer there left open is resolved."""
        found = await self._docs.get(STATES, self.stream)
        state = msgspec.convert(found.body, _State) if found else _State()
        self._positions, self._now, self._epoch = state.positions, state.now, state.epoch
        await announce(self._log, state.announced, producer=self._producer, epoch=self._epoch)
        for watched in self._rules:
            self._evaluators[watched.rule.name] = Evaluator(watched.rule, state.rules.get(watched.rule.name))
        gone = [rule for name, rule in state.rules.items() if name not in self._evaluators]
        left = [incident for rule in gone for incident in rule.active.values()]
        for incident in [*left, *(i for e in self._evaluators.values() for i in e.active.values())]:
            with suppress(NotFound):  # somebody deleted the document; the next write makes it again
                incident.notified = (await self._store.get(incident.id)).notified
        for incident in left:
            incident.state, incident.resolved = "resolved", max(self._now, incident.last_seen)
            self._changes.append(Change("resolved", incident))
        if left:
            await self.write()

    async def step(self, *, wait_s: float) -> int:
        """Read what there is, within `wait_s`, and act on it; returns the rows read."""
        asked = self._clock.now()
        try:
            piece = await self._log.read_merged(self.stream, self._positions, rows_max=ROWS_MAX, wait_s=wait_s)
        except Trimmed as exc:
            log.warning("stream.trimmed", stream=self.stream, reason=exc.message)
            self._positions = ()
            return 0
        rows: int = piece.batch.num_rows
        # A silent stream has no frontier that moves, yet incidents must resolve: then the clock says how late it is.
        now = piece.frontier if rows else max(piece.frontier, asked - _SLACK)
        self._now = max(self._now, now)
        found = await asyncio.to_thread(self._evaluate, piece.batch)
        self._moved |= piece.positions != self._positions
        self._positions = piece.positions
        self._changes += found
        urgent = any(change.kind != "held" for change in found)
        rested_s = self._clock.monotonic() - self._written_at
        if urgent or rested_s >= (WRITE_EVERY_S if self._changes else REST_S if self._moved else float("inf")):
            await self.write()
        return rows

    async def write(self) -> None:
        """Make everything so far durable, then announce it."""
        changes = self._writing = self._changes
        self._changes = []
        news = [change for change in changes if change.kind != "held"]
        async with self._lock:
            await self._store.write({change.incident.id: change.incident for change in changes}.values())
            self._epoch += 1
            announced = [announcement(incident, _STATE[kind], mark=_STATE[kind]) for kind, incident in news]
            rules = {name: evaluator.snapshot() for name, evaluator in self._evaluators.items()}
            state = _State(tuple(self._positions), self._now, self._epoch, rules, announced)
            await self._docs.put(STATES, self.stream, msgspec.to_builtins(state))
        await announce(self._log, announced, producer=self._producer, epoch=self._epoch)
        if self._positions:
            await self._log.commit(ALERTS, self.stream, self._positions)
        self._moved, self._written_at = False, self._clock.monotonic()
        for change in news:
            self._counted.labels(change.incident.rule, change.kind).inc()
            log.info("incident.changed", step=change.kind, rule=change.incident.rule, incident=change.incident.id)
            self._tell(msgspec.structs.replace(change.incident))  # a copy: events go on changing the incident

    def mark(self, id: str, notice: str, outcome: str) -> None:
        """Note on an incident in memory how telling went, so that the next write does not undo it."""
        live = [incident for evaluator in self._evaluators.values() for incident in evaluator.active.values()]
        for incident in [*live, *(change.incident for change in self._writing + self._changes)]:
            if incident.id == id:
                incident.notified[notice] = outcome

    def _evaluate(self, batch: EventBatch) -> list[Change]:
        changes: list[Change] = []
        for watched in self._rules:
            evaluator = self._evaluators[watched.rule.name]
            if batch.num_rows:
                try:
                    changes += evaluator.observe(_seen(watched, evaluator.watched, batch))
                except HeadraceError as exc:
                    self._failed.labels(watched.rule.name).inc()
                    log.error("rule.failed", rule=watched.rule.name, stream=self.stream, reason=exc.code)
            changes += evaluator.advance(self._now)
        return changes


def announcement(incident: Incident, state: str, *, mark: str) -> dict[str, Any]:
    """The event of a step of an incident, times in ms since 1970. `mark` tells the steps of one incident apart."""
    row = incident.as_json()
    for name in ("channels", "notified"):
        del row[name]
    for name in ("opened", "last_seen", "resolved", "acknowledged"):
        row[name] = row[name] // TICKS_PER_MS or None
    if state == "open":
        row["resolved"] = None  # it may have resolved within the same batch
    return {**row, "state": state, "event": message_event_id("alerts", None, f"{incident.id}:{mark}")}


async def announce(log: EventLog, rows: Sequence[Mapping[str, Any]], *, producer: str, epoch: int) -> None:
    """Append to stream `alerts`; a second time under the same epoch the log does nothing."""
    if not rows:
        return
    batch = event_batch(
        {
            "_event_id": [row["event"] for row in rows],
            "_device": [row["device"] or row["key"] for row in rows],
            "_entity_id": [row["key"] for row in rows],
            "_type": ["alert"] * len(rows),
            "_site": [row["site"] or None for row in rows],
            "_content_type": [JSON_TYPE] * len(rows),
            "_body": [msgspec.json.encode({name: row[name] for name in row if name != "event"}) for row in rows],
        }
    )
    await log.append(ALERTS, batch, producer=producer, epoch=epoch)


def _seen(watched: Watched, keys: frozenset[str], batch: EventBatch) -> list[Seen]:
    """The events of interest: those that match, and those of keys whose streak they may break."""
    matched = watched.condition.evaluate(batch)
    key = watched.rule.key
    in_columns = key in batch.schema.names
    wanted = matched
    if keys:
        running = (
            pc.is_in(batch.column(key), pa.array(sorted(keys), pa.string())).to_numpy(zero_copy_only=False)
            if in_columns
            else np.ones(batch.num_rows, np.bool_)
        )
        wanted = matched | running
    rows = np.flatnonzero(wanted).astype(np.int64)
    if not len(rows):
        return []
    part = batch.select(["_enqueued", "_device", "_entity_id", "_site"]).take(pa.array(rows)).to_pydict()
    fields = [msgspec.to_builtins(found) for found in watched.condition.fields(batch, rows)]
    named = batch.column(key).take(pa.array(rows)).to_pylist() if in_columns else [found.get(key) for found in fields]
    return [
        Seen(time, _key(name, entity), hit, found, device, site or "")
        for time, name, entity, hit, found, device, site in zip(
            part["_enqueued"],
            named,
            part["_entity_id"],
            matched[rows].tolist(),
            fields,
            part["_device"],
            part["_site"],
            strict=True,
        )
    ]


def _key(value: object, entity: str) -> str:
    """A key that an event lacks is its entity: better one incident too many than two machines in one."""
    return entity if value is None or value == "" else str(value)[:500]
