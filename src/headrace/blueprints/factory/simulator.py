"""The simulated plant: CNC machines whose tools wear, fail and are replaced, with spikes, dips and drifts put in.

Every reading is a closed formula of machine, time and numbers drawn from (seed, machine, index) or (seed, block), so a seed
gives the same plant whatever the steps it is asked for in, and nothing but a few numbers a machine is remembered.

What a model can learn: damage d = age / life of the tool (0 new, 1 broken) shows as vibration x (1 + 0.5 d + 2.2 d^4),
temperature + 7 d^2, pressure - 0.35 d^2, load + 6 d. `wear`, the controller's own counter, is age in percent of the *rated*
life, which the real life of a tool misses by a fifth.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.blueprints.factory.events import Event, Events
from headrace.blueprints.factory.lives import Lives, uniform
from headrace.blueprints.factory.machine import Machine, Site, make_machines, make_sites, metadata_tables
from headrace.blueprints.factory.truth import Incident
from headrace.core.clock import TICKS_PER_S, to_iso
from headrace.core.errors import UserError

Floats = npt.NDArray[np.float64]

BLOCK_TICKS = 60
AMBIENT_C = 24.0
COOL_S, WARM_S, SPIN_S = 60.0, 40.0, 2.0
FIELDS = ("temperature", "vibration", "pressure", "rpm", "load")
_DECIMALS = {"temperature": 2, "vibration": 3, "pressure": 3, "rpm": 0, "load": 1, "wear": 1, "humidity": 1}
_NOISE = 3


class Readings(NamedTuple):
    """Telemetry, by time and then machine, and beside it the truth that no device knows."""

    rows: (
        pa.RecordBatch
    )  # machineId, factory, ts, time (ticks), temperature, vibration, pressure, rpm, load, wear, cycle
    rul_s: Floats  # seconds until the tool fails; 0 while it is broken


class Factory:
    """Factories full of machines, one reading of each every `tick_s` seconds from `start_ticks` on.

    Degrees Celsius, mm/s, bar, 1/min, percent. `life_s` is the rated life of a tool in seconds of plant time (real ones
    differ by a fifth and by the machine's load), `spike_every_s` and `drift_every_s` are mean times between those on one
    machine (0 for none). From `new_field_after_s` on every machine sends `humidity` too.
    """

    def __init__(
        self,
        seed: int,
        *,
        factories: int = 5,
        machines_per_factory: int = 10,
        machines: int = 0,
        start_ticks: int = 17_356_896_000_000_000,
        tick_s: float = 1.0,
        life_s: float = 900.0,
        spike_every_s: float = 300.0,
        drift_every_s: float = 1500.0,
        new_field_after_s: float | None = None,
    ) -> None:
        count = machines or factories * machines_per_factory
        if factories < 1 or count < 1 or tick_s <= 0 or life_s < 120:
            raise UserError(
                f"{factories} factories, {count} machines, a reading every {tick_s} s, tools of {life_s} s",
                hint="use at least one factory and machine, a positive tick_s, and a life_s of 120 or more",
            )
        self.sites: list[Site] = make_sites(factories)
        self.machines: list[Machine] = make_machines(self.sites, count)
        self.tick_s = tick_s
        self._seed = seed & 0xFFFF_FFFF_FFFF_FFFF
        self._start = start_ticks
        self._tick = 0  # the next one to hand out
        self._block_ticks = max(1, min(BLOCK_TICKS, int(0.25 * life_s / tick_s)))
        self._block: tuple[int, dict[str, Floats]] = (-1, {})
        self._new_field_tick = -1 if new_field_after_s is None else int(np.ceil(new_field_after_s / tick_s))
        self._life_s = life_s
        self._levels = _levels(self._seed, count)
        self._lives = Lives(self._seed, life_s, self._levels["load"])
        warm_c, rates = self._levels["temperature"], {"spike_every_s": spike_every_s, "drift_every_s": drift_every_s}
        self._events = Events(self._seed, warm_c, self._lives, tick_s, **rates)
        self._ids = pa.array([machine.id for machine in self.machines])
        self._factories = pa.array([machine.factory for machine in self.machines])

    @property
    def now(self) -> int:
        """Ticks of the next reading."""
        return self._ticks(self._tick)

    def step(self, n_ticks: int = 1) -> Readings:
        """The next `n_ticks` readings of every machine. `humidity` is a column once a row of the step has it."""
        if n_ticks < 1:
            raise UserError(f"cannot step {n_ticks} ticks", hint="step 1 or more")
        first, last = self._tick, self._tick + n_ticks
        pieces = []
        while self._tick < last:
            block, inside = divmod(self._tick, self._block_ticks)
            taken = min(self._block_ticks - inside, last - self._tick)
            values = self._values(block)
            pieces.append({name: column[inside : inside + taken] for name, column in values.items()})
            self._tick += taken
        columns = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
        return Readings(self._rows(first, columns), columns["rul_s"].ravel())

    def truth(self) -> list[Incident]:
        """What began before `now`, by start. A failure's end may lie ahead."""
        known = self._events.known() + self._lives.known()
        passed = [
            Incident(
                self.machines[one.machine].id,
                one.kind,
                self._start + round(one.start_s * TICKS_PER_S),
                self._start + round(one.end_s * TICKS_PER_S),
                one.field,
                round(one.size, 3),
            )
            for one in known
            if one.start_s < self._tick * self.tick_s
        ]
        return sorted(passed, key=lambda incident: (incident.start, incident.machine))

    def metadata(self) -> Mapping[str, pa.Table]:
        """Rows for the warehouse's metadata tables: `factory`, `machine`, `maintenance_criterion`."""
        return metadata_tables(self.sites, self.machines)

    def _ticks(self, tick: int) -> int:
        return self._start + round(tick * self.tick_s * TICKS_PER_S)

    def _rows(self, first: int, columns: Mapping[str, Floats]) -> pa.RecordBatch:
        count, machines = columns["rul_s"].shape
        times = [self._ticks(first + index) for index in range(count)]
        which = pa.array(np.tile(np.arange(machines), count))
        when = pa.array(np.repeat(np.arange(count), machines))
        arrays = {
            "machineId": self._ids.take(which),
            "factory": self._factories.take(which),
            "ts": pa.array([to_iso(time) for time in times]).take(when),
            "time": pa.array(times, pa.int64()).take(when),
        }
        for name in (*FIELDS, "wear"):
            arrays[name] = pa.array(np.round(columns[name].ravel(), _DECIMALS[name]))
        arrays["cycle"] = pa.array(columns["cycle"].ravel().astype(np.int32))
        if 0 <= self._new_field_tick < first + count:
            before = max(0, self._new_field_tick - first) * machines
            humidity = np.round(columns["humidity"].ravel(), _DECIMALS["humidity"])
            arrays["humidity"] = pa.array(humidity, mask=np.arange(len(humidity)) < before)
        return pa.RecordBatch.from_pydict(arrays)

    def _values(self, block: int) -> dict[str, Floats]:
        """Every column of a block, shape (ticks, machines); blocks are asked for in order."""
        if self._block[0] != block:
            begin = block * self._block_ticks
            times: Floats = np.arange(begin, begin + self._block_ticks).astype(np.float64) * self.tick_s
            self._block = (block, self._simulate(block, times))
        return self._block[1]

    def _simulate(self, block: int, times: Floats) -> dict[str, Floats]:
        shape = (len(times), len(self.machines))
        rng = np.random.Generator(np.random.Philox(key=[self._seed, _NOISE], counter=[0, 0, 0, block]))
        noise = rng.standard_normal((6, *shape), dtype=np.float32)
        at = self._lives.at(times)
        level, clock = self._levels, times[:, None]
        damage = np.minimum(at.age / at.life, 1.0)
        down_s = np.maximum(at.age - at.life, 0.0)
        broken = at.age >= at.life
        cold = np.where(at.cycle > 0, 1.0 - np.exp(-at.repair / COOL_S), 0.0)
        heat = np.where(broken, np.exp(-down_s / COOL_S), 1.0 - cold * np.exp(-at.age / WARM_S))
        spin = np.where(broken, np.exp(-down_s / SPIN_S), np.where(at.cycle > 0, 1.0 - np.exp(-at.age / SPIN_S), 1.0))

        wave = 6.0 * np.sin(clock / level["slow_s"] + level["phase"]) + 3.0 * np.sin(clock / level["quick_s"])
        load = np.clip(level["load"] + wave + 6.0 * damage, 5.0, 100.0)
        square = damage * damage
        working = level["temperature"] + 0.10 * (load - 55.0) + 7.0 * square
        values = {
            "temperature": AMBIENT_C + (working - AMBIENT_C) * heat + 0.25 * noise[0],
            "vibration": level["vibration"] * (1.0 + 0.004 * (load - 55.0)),
            "pressure": (level["pressure"] - 0.35 * square) * spin + 0.03 * noise[2],
            "rpm": level["rpm"] * (1.0 - 0.01 * damage) * spin + 15.0 * noise[3] * spin,
            "load": np.clip(load + noise[4], 0.0, 100.0) * spin,
            "wear": 100.0 * np.minimum(at.age, at.life) / self._life_s,
            "humidity": 45.0 + 8.0 * np.sin(clock / 900.0 + level["phase"]) + 0.5 * noise[5],
            "cycle": at.cycle,
            "rul_s": np.maximum(at.life - at.age, 0.0),
        }
        growth = 1.0 + 0.5 * damage + 2.2 * square * square
        values["vibration"] = 0.05 + values["vibration"] * growth * spin * (1.0 + 0.03 * noise[1])
        for event in self._events.during(times[0], times[-1] + self.tick_s):
            _put_in(values, event, times, AMBIENT_C)
        for name in ("vibration", "pressure"):
            np.maximum(values[name], 0.0, out=values[name])
        return values


def _put_in(values: dict[str, Floats], event: Event, times: Floats, floor: float) -> None:
    """Add an event's size to its machine's field, along its shape."""
    column = values[event.field][:, event.machine]
    column += event.size * event.shape(times)
    if event.field == "temperature":
        np.maximum(column, floor, out=column)


def _levels(seed: int, count: int) -> dict[str, Floats]:
    """Each machine's own working point: no two are alike."""
    drawn = np.array([uniform(seed, 0, machine, 0, 8) for machine in range(count)]).T
    return {
        "temperature": 56.0 + 6.0 * drawn[0],
        "vibration": 1.6 + 0.4 * drawn[1],
        "pressure": 5.8 + 0.4 * drawn[2],
        "rpm": np.array([8000.0, 10_000.0, 12_000.0])[(drawn[3] * 3).astype(int)] * (0.98 + 0.04 * drawn[4]),
        "load": 48.0 + 14.0 * drawn[5],
        "slow_s": 40.0 + 40.0 * drawn[6],
        "quick_s": 8.0 + 6.0 * drawn[7],
        "phase": 2.0 * np.pi * drawn[0],
    }
