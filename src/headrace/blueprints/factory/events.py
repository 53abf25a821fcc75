"""What is put into the readings on purpose: spikes and dips of one to three readings, and slow drifts (a bearing that heats).

They fall on machines that run undisturbed, never while a tool breaks or a machine warms up, so that each is an incident of
its own and a detector has a fair chance.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headrace.blueprints.factory.lives import Known, Lives, uniform
from headrace.blueprints.factory.truth import Kind

Floats = npt.NDArray[np.float64]

FIRST_S = 20.0  # nothing is put in before
SETTLED_S = 120.0
MARGIN_S = 20.0
GAP_MIN_S = 60.0
DRIFT_PEAK_C = (87.0, 94.0)
_EVENT = 2


class Event(NamedTuple):
    """A change of one machine's field: `rise_s` up to `size`, `hold_s` there, `fall_s` back; seconds since the start."""

    machine: int
    kind: Kind
    field: str
    size: float
    start_s: float
    rise_s: float
    hold_s: float
    fall_s: float

    @property
    def end_s(self) -> float:
        return self.start_s + self.rise_s + self.hold_s + self.fall_s

    def shape(self, times: Floats) -> Floats:
        """How much of `size` is there at `times`, from 0 to 1."""
        since = times - self.start_s + 1e-6  # a time that stands on an edge counts as past it, in spite of rounding
        before_end = self.end_s - times
        rising = since / self.rise_s if self.rise_s else (since >= 0).astype(float)
        falling = before_end / self.fall_s if self.fall_s else (before_end > 1e-6).astype(float)
        shape: Floats = np.clip(np.minimum(rising, falling), 0.0, 1.0)
        return shape


class Events:
    """Each machine's events, one after another; spans are asked for in rising order. `warm_c` is each machine's own
    working temperature, from which a drift starts."""

    def __init__(
        self, seed: int, warm_c: Floats, lives: Lives, tick_s: float, *, spike_every_s: float, drift_every_s: float
    ) -> None:
        self._seed = seed
        self._warm_c = warm_c
        self._lives = lives
        self._tick_s = tick_s
        self._rates = [1.0 / every if every > 0 else 0.0 for every in (spike_every_s, drift_every_s)]
        self._index = np.zeros(len(warm_c), dtype=np.int64)
        self._due = np.full(len(warm_c), np.inf)
        self._active: list[Event] = []
        self._known: list[Known] = []
        if sum(self._rates) > 0:
            self._due = np.array([FIRST_S + self._gap(machine, 0) for machine in range(len(warm_c))])

    def during(self, begin_s: float, end_s: float) -> list[Event]:
        """The events that show between two times."""
        for machine in map(int, np.flatnonzero(self._due < end_s)):
            while self._due[machine] < end_s:
                self._happen(machine)
        self._active = [event for event in self._active if event.end_s > begin_s]
        return self._active

    def known(self) -> list[Known]:
        return list(self._known)

    def _happen(self, machine: int) -> None:
        """Make the machine's next event, or leave it out where the machine is disturbed anyway."""
        event = self._make(machine)
        if self._lives.healthy(machine, event.start_s, event.end_s, settled_s=SETTLED_S, margin_s=MARGIN_S):
            self._active.append(event)
            self._known.append(Known(machine, event.kind, event.start_s, event.end_s, event.field, event.size))
        self._index[machine] += 1
        self._due[machine] = event.end_s + GAP_MIN_S + self._gap(machine, int(self._index[machine]))

    def _gap(self, machine: int, index: int) -> float:
        """Exponential, so that nobody can tell when the next one comes."""
        drawn = uniform(self._seed, _EVENT, machine, index, 1)[0]
        return float(-np.log1p(-drawn)) / sum(self._rates)

    def _make(self, machine: int) -> Event:
        drawn = [float(one) for one in uniform(self._seed, _EVENT, machine, int(self._index[machine]), 7)[1:]]
        start = float(np.ceil(self._due[machine] / self._tick_s) * self._tick_s)
        if drawn[0] * sum(self._rates) >= self._rates[0]:
            low, high = DRIFT_PEAK_C
            size = low + (high - low) * drawn[1] - float(self._warm_c[machine])
            return Event(machine, "drift", "temperature", size, start, 60 + 60 * drawn[2], 45 + 45 * drawn[3], 20.0)
        field, kind, size = _outlier(drawn[1], drawn[2], drawn[3])
        hold = self._tick_s * (1 if drawn[4] < 0.6 else 2 + int(drawn[5] * 2))
        return Event(machine, kind, field, size, start, 0.0, hold, 0.0)


def _outlier(which: float, sign: float, much: float) -> tuple[str, Kind, float]:
    """A field, spike or dip, and a size far above its noise; vibration, which has little room below, only spikes."""
    field = ("temperature", "vibration", "pressure")[int(which * 3)]
    size = {"temperature": 14.0 + 8.0 * much, "vibration": 4.0 + 3.0 * much, "pressure": 1.5 + 1.5 * much}[field]
    if field == "vibration" or sign < 0.6:
        return field, "spike", size
    return field, "dip", -size
