"""The fleet now: per entity when it was last heard, how often, its last values and its health.

State is a few numbers per entity in NumPy arrays. A batch costs a dictionary encoding, never a loop over events, and at most
one event per entity and tick is parsed, `parse_max` in all (those parsed longest ago first).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from headrace.core.clock import TICKS_PER_MS, TICKS_PER_S
from headrace.core.schema import EventBatch
from headrace.wire.payload import SYSTEM_COLUMNS, flatten

OK, QUIET, WARNING, CRITICAL = range(4)
STATES = ("ok", "quiet", "warning", "critical")
SPARK = 60
QUIET_S = 15.0
QUIET_MAX_S = 900.0
UNKNOWN_S = 12.0  # the interval assumed of an entity heard once
PENDING_MAX = 64
RATE_WINDOW_S = 10.0
TOTAL_S = 60

_SEVERITY = {"critical": CRITICAL, "warning": WARNING}
_PER_ROW = ("last_seen", "previous", "rate", "count", "incident", "state", "parsed", "site")


class Fleet:
    """Entities get a slot, a small number that the deltas use instead of the name. `entities_max` bounds memory; entities
    beyond are counted in the totals and not listed. Times are ticks; `rate` is events/s.
    """

    def __init__(self, *, entities_max: int = 100_000, fields_max: int = 24, parse_max: int = 2000) -> None:
        self.ids: list[str] = []
        self.sites: list[str] = []
        self.fields: dict[str, np.ndarray] = {}
        self.unlisted = 0
        self._entities_max = entities_max
        self._fields_max = fields_max
        self._parse_max = parse_max
        self._slots: dict[str, int] = {}
        self._site_codes: dict[str, int] = {}
        self._types: dict[str, pa.DataType] = {}
        self._pending: list[tuple[np.ndarray, EventBatch]] = []
        self._seconds = np.zeros(TOTAL_S, dtype=np.int64)  # events by second of `_enqueued`
        self._second = 0
        self._told = 0  # slots that the last delta knew
        self.spark = np.zeros((0, SPARK), dtype=np.float32)
        self._allocate(1024)

    def _allocate(self, size: int) -> None:
        old = {name: getattr(self, name, None) for name in _PER_ROW}
        self.last_seen = np.zeros(size, dtype=np.int64)
        self.previous = np.zeros(size, dtype=np.int64)  # last_seen at the tick before
        self.rate = np.zeros(size)
        self.count = np.zeros(size, dtype=np.int64)  # since the last tick
        self.incident = np.zeros(size, dtype=np.int8)
        self.state = np.full(size, QUIET, dtype=np.int8)
        self.parsed = np.zeros(size, dtype=np.int64)
        self.site = np.zeros(size, dtype=np.int32)
        for name, array in old.items():
            if array is not None:
                getattr(self, name)[: len(array)] = array
        self.fields = {name: _grown(array, size) for name, array in self.fields.items()}
        spark = np.full((size, SPARK), np.nan, dtype=np.float32)
        spark[: len(self.spark)] = self.spark
        self.spark = spark

    def add(self, entity: str, site: str = "") -> int:
        """The entity's slot; -1 when there is no room."""
        slot = self._slots.get(entity)
        if slot is not None:
            return slot
        slot = len(self.ids)
        if slot >= self._entities_max:
            return -1
        if slot >= len(self.rate):
            self._allocate(2 * len(self.rate))
        self._slots[entity] = slot
        self.ids.append(entity)
        self.site[slot] = self._site_code(site)
        return slot

    def _site_code(self, site: str) -> int:
        code = self._site_codes.setdefault(site, len(self.sites))
        if code == len(self.sites):
            self.sites.append(site)
        return code

    def observe(self, batch: EventBatch) -> None:
        """Take in a batch of events (LOG_SCHEMA columns), in the log's order."""
        encoded = pc.dictionary_encode(batch.column("_entity_id"))
        codes = encoded.indices.to_numpy()
        enqueued = batch.column("_enqueued").to_numpy()
        rows = np.arange(len(codes))
        first = np.zeros(len(encoded.dictionary), dtype=np.int64)
        last = first.copy()
        first[codes[::-1]] = rows[::-1]  # of places named again the last assignment stays
        last[codes] = rows
        counts = np.bincount(codes, minlength=len(last))
        self._count_total(enqueued)
        slots = self._slots_of(encoded.dictionary.to_pylist(), batch, last)
        if (slots < 0).any():
            keep = slots >= 0
            self.unlisted += int(counts[~keep].sum())
            slots, counts, first, last = slots[keep], counts[keep], first[keep], last[keep]
        fresh = self.previous[slots] == 0
        self.previous[slots[fresh]] = enqueued[first[fresh]]
        self.count[slots] += counts - fresh  # an interval takes two events
        self.last_seen[slots] = enqueued[last]
        self._pending.append((slots, batch.select(["_body"]).take(pa.array(last))))
        if len(self._pending) > PENDING_MAX:
            self._pending = [self._last_pending()]

    def _slots_of(self, names: list[str], batch: EventBatch, last: np.ndarray) -> np.ndarray:
        known = self._slots
        missing = [index for index, name in enumerate(names) if name not in known]
        if missing:
            sites = batch.column("_site")
            for index in missing:
                self.add(names[index], sites[int(last[index])].as_py() or "")
        return np.fromiter((known.get(name, -1) for name in names), dtype=np.int64, count=len(names))

    def _count_total(self, enqueued: np.ndarray) -> None:
        seconds = enqueued // TICKS_PER_S
        self._turn(int(seconds[-1]))
        recent = seconds[seconds > self._second - TOTAL_S]
        np.add.at(self._seconds, recent % TOTAL_S, 1)

    def _turn(self, second: int) -> None:
        """Move the ring of seconds on to `second`, clearing what is more than a turn old."""
        ahead = min(second - self._second, TOTAL_S)
        if ahead > 0:
            self._seconds[np.arange(second - ahead + 1, second + 1) % TOTAL_S] = 0
            self._second = second

    def set_incidents(self, worst: Mapping[str, str]) -> None:
        """The worst open severity by entity; entities not named have none."""
        self.incident[:] = OK
        for entity, severity in worst.items():
            slot = self._slots.get(entity)
            if slot is not None:
                self.incident[slot] = _SEVERITY.get(severity, OK)

    def tick(self, now: int) -> np.ndarray:
        """Once a second: rates, last values, states. Returns the slots that changed."""
        self._turn(now // TICKS_PER_S)
        used = len(self.ids)
        heard = np.flatnonzero(self.last_seen[:used] > self.previous[:used])
        span = (self.last_seen[heard] - self.previous[heard]) / TICKS_PER_S
        weight = np.where(self.rate[heard] == 0, 1.0, -np.expm1(-span / RATE_WINDOW_S))
        self.rate[heard] += weight * (self.count[heard] / span - self.rate[heard])
        self.previous[heard] = self.last_seen[heard]
        self.count[heard] = 0
        parsed = self._parse_pending(now)
        state = self._states(now)
        changed = np.flatnonzero(state != self.state[:used])
        self.state[:used] = state
        return np.union1d(np.union1d(heard, parsed), changed)

    def _states(self, now: int) -> np.ndarray:
        incident = self.incident[: len(self.ids)]
        return np.where(incident > 0, incident, np.where(self._silent(now), QUIET, OK)).astype(np.int8)

    def _silent(self, now: int) -> np.ndarray:
        """Who has not been heard for five of its usual intervals (15 s at least, 15 minutes at most)."""
        used = len(self.ids)
        rate = self.rate[:used]
        usual = np.divide(1.0, rate, out=np.full(used, UNKNOWN_S), where=rate > 0)
        patience = np.clip(5.0 * usual, QUIET_S, QUIET_MAX_S) * TICKS_PER_S
        return np.asarray(now - self.last_seen[:used] > patience)

    def _last_pending(self) -> tuple[np.ndarray, EventBatch]:
        slots = np.concatenate([slots for slots, _ in self._pending])
        bodies = pa.Table.from_batches([batch for _, batch in self._pending]).combine_chunks().to_batches()[0]
        newest = len(slots) - 1 - np.unique(slots[::-1], return_index=True)[1]
        return slots[newest], bodies.take(pa.array(newest))

    def _parse_pending(self, now: int) -> np.ndarray:
        if not self._pending:
            return np.zeros(0, dtype=np.int64)
        slots, bodies = self._last_pending()
        self._pending = []
        if len(slots) > self._parse_max:
            pick = np.argpartition(self.parsed[slots], self._parse_max)[: self._parse_max]
            slots, bodies = slots[pick], bodies.take(pa.array(pick))
        self.parsed[slots] = now
        table = flatten(bodies, schema=self._types)
        self._store(slots, table)
        return slots

    def _store(self, slots: np.ndarray, table: pa.Table) -> None:
        first = np.full(len(slots), np.nan)
        for field in table.schema:
            if field.name in SYSTEM_COLUMNS or not pa.types.is_floating(field.type):
                continue
            if field.name not in self.fields:
                if len(self.fields) >= self._fields_max:
                    continue
                self.fields[field.name] = np.full(len(self.rate), np.nan)
                self._types[field.name] = field.type
            values = table.column(field.name).to_numpy()
            there = ~np.isnan(values)
            self.fields[field.name][slots[there]] = values[there]
            first = np.where(np.isnan(first), values, first)
        self.spark[slots, :-1] = self.spark[slots, 1:]
        self.spark[slots, -1] = first

    def totals(self, now: int) -> dict[str, Any]:
        """Counts over everything heard, and events by second (the running one left out), oldest first."""
        used = len(self.ids)
        counts = np.bincount(self.state[:used], minlength=len(STATES))
        self._turn(now // TICKS_PER_S)
        per_second = self._seconds[np.arange(self._second - TOTAL_S + 1, self._second) % TOTAL_S]
        return {
            "devices": used,
            "active": int(used - (self._silent(now)).sum()),
            "unlisted": self.unlisted,
            "events_per_s": round(float(per_second[-5:].mean()), 1),
            "per_second": per_second,
            **{name: int(counts[code]) for code, name in enumerate(STATES)},
        }

    def site_counts(self, now: int) -> dict[str, dict[str, float]]:
        """Per site: devices, active ones, events/s, and how many are in each state."""
        used = len(self.ids)
        codes, size = self.site[:used], len(self.sites)
        silent = self._silent(now)
        rates = np.bincount(codes, weights=np.where(silent, 0.0, self.rate[:used]), minlength=size)
        columns: dict[str, np.ndarray] = {
            "devices": np.bincount(codes, minlength=size),
            "active": np.bincount(codes[~silent], minlength=size),
            "events_per_s": rates.round(1),
        }
        for code, name in enumerate(STATES):
            columns[name] = np.bincount(codes[self.state[:used] == code], minlength=size)
        return {
            site: {name: values[code].item() for name, values in columns.items()}
            for code, site in enumerate(self.sites)
        }

    def rows(self, slots: np.ndarray, now: int) -> dict[str, Any]:
        """The changing part of some slots as columns: `seen` in ms (0: never), values with five digits, null for none."""
        fields = {name: _rounded(array[slots]) for name, array in self.fields.items()}
        return {
            "slot": slots,
            "seen": self.last_seen[slots] // TICKS_PER_MS,
            "rate": np.where(self._silent(now)[slots], 0.0, self.rate[slots]).round(2),
            "state": self.state[slots],
            "fields": {name: values for name, values in fields.items() if not np.isnan(values).all()},
        }

    def names(self, slots: np.ndarray) -> list[tuple[int, str, str]]:
        return [(int(slot), self.ids[slot], self.sites[self.site[slot]]) for slot in slots]

    def listed(self, limit: int) -> np.ndarray:
        """The slots that a page shows: the first `limit`, and whatever else has an open alert (as many again at most)."""
        used = len(self.ids)
        if used <= limit:
            return np.arange(used)
        troubled = np.flatnonzero(self.state[limit:used] >= WARNING)[:limit] + limit
        return np.concatenate([np.arange(limit), troubled])

    def snapshot(self, now: int, *, limit: int) -> bytes:
        """Everything a page needs to begin, as JSON."""
        slots = self.listed(limit)
        body = {
            **self._head(now),
            "names": self.names(slots),
            "rows": self.rows(slots, now),
            "spark": _rounded(self.spark[slots].astype(np.float64)),
        }
        return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)

    def delta(self, changed: np.ndarray, now: int, *, limit: int) -> bytes:
        """What the tick at `now` changed, as JSON; entities that are new to the list come with their names."""
        slots = np.intersect1d(changed, self.listed(limit), assume_unique=True)
        new = slots[(slots >= self._told) | (slots >= limit)]
        self._told = max(self._told, len(self.ids))
        body = {
            **self._head(now),
            "names": self.names(new),
            "rows": self.rows(slots, now),
            "spark": _rounded(np.where(self.parsed[slots] == now, self.spark[slots, -1].astype(np.float64), np.nan)),
        }
        return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)

    def _head(self, now: int) -> dict[str, Any]:
        return {
            "now": now // TICKS_PER_MS,
            "states": STATES,
            "totals": self.totals(now),
            "sites": self.site_counts(now),
        }

    def entity(self, entity: str, now: int) -> dict[str, Any] | None:
        """One entity as JSON values, or None when it was never heard of."""
        slot = self._slots.get(entity)
        if slot is None:
            return None
        values = {name: float(array[slot]) for name, array in self.fields.items() if not math.isnan(array[slot])}
        return {
            "id": entity,
            "site": self.sites[self.site[slot]],
            "state": STATES[self.state[slot]],
            "seen": int(self.last_seen[slot]) / TICKS_PER_MS,
            "rate": round(0.0 if self._silent(now)[slot] else float(self.rate[slot]), 2),
            "values": values,
        }


def _grown(array: np.ndarray, size: int) -> np.ndarray:
    grown = np.full(size, np.nan)
    grown[: len(array)] = array
    return grown


def _rounded(values: np.ndarray) -> np.ndarray:
    """Five significant digits (whole numbers above 99,999), so that a delta is small."""
    with np.errstate(divide="ignore", invalid="ignore"):
        digits = 4 - np.floor(np.log10(np.abs(values)))
    scale = 10.0 ** np.clip(np.nan_to_num(digits, nan=0.0, posinf=0.0, neginf=0.0), 0, 15)
    return np.asarray(np.round(values * scale) / scale)
