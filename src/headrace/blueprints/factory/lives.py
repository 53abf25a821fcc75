"""Tools' lives: how long each lasts, how long its replacement takes, and where a machine stands in that at any time.

Remaining life is exact: a tool's life is drawn when it is put in, and all that sensors show follows from its age.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headrace.blueprints.factory.truth import Kind

Floats = npt.NDArray[np.float64]

REPAIR_S = (25.0, 50.0)
_LIFE = 1


class Known(NamedTuple):
    """An incident in plant time: seconds since the start."""

    machine: int
    kind: Kind
    start_s: float
    end_s: float
    field: str
    size: float


class Stand(NamedTuple):
    """Where each machine stands at each time, shape (times, machines): seconds, and how many tools it has had before."""

    age: Floats
    life: Floats
    repair: Floats  # how long the standstill before this tool took
    cycle: Floats


def uniform(seed: int, purpose: int, machine: int, index: int, count: int) -> Floats:
    """`count` numbers in [0, 1) that belong to (seed, purpose, machine, index) alone. Philox is a function of its key and
    counter, so nothing has to be drawn before (Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3)."""
    key = [seed, (purpose << 40) | machine]
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, index])).random(count)


class Lives:
    """One tool after another on each machine. Times are asked for in rising order, spans shorter than a life."""

    def __init__(self, seed: int, life_s: float, load: Floats) -> None:
        self._seed = seed
        self._mean = life_s * (55.0 / load) ** 0.8
        count = len(load)
        self._cycle = np.zeros(count)
        self._life, self._repair = np.empty(count), np.empty(count)
        self._before = np.zeros(count)  # the repair that led to this tool
        for machine in range(count):
            self._life[machine], self._repair[machine] = self._draw(machine, 0)
        used = np.array([uniform(seed, _LIFE, machine, 1 << 40, 1)[0] for machine in range(count)])
        self._begin = -0.95 * used * self._life  # the plant has been running before we look
        self._known: list[Known] = []
        self._next: dict[int, tuple[float, float]] = {}
        for machine in range(count):
            self._note(machine)

    def at(self, times: Floats) -> Stand:
        """Rolls on to the tools in use at `times`."""
        for machine in _where(self._end() <= times[0]):
            self._roll(machine)
        shape = (len(times), len(self._life))
        age = times[:, None] - self._begin
        stand = Stand(age, *(np.broadcast_to(one.copy(), shape) for one in (self._life, self._before, self._cycle)))
        changing = _where(self._end() <= times[-1])
        if changing:
            stand = Stand(*(np.array(one) for one in stand))
        for machine in changing:
            self._change(stand, machine, times)
        return stand

    def healthy(self, machine: int, start_s: float, end_s: float, *, settled_s: float, margin_s: float) -> bool:
        """Whether a span lies between a tool's settling and `margin_s` before its end, as far as it is known now."""
        begin, life = float(self._begin[machine]), float(self._life[machine])
        if start_s >= self._end()[machine]:
            begin = float(self._end()[machine])
            life = self._draw(machine, int(self._cycle[machine]) + 1)[0]
        first = begin + settled_s if begin > 0 else 0.0
        return first <= start_s and end_s + margin_s <= begin + life

    def known(self) -> list[Known]:
        """Failures of all tools put in so far."""
        return list(self._known)

    def _draw(self, machine: int, cycle: int) -> tuple[float, float]:
        drawn = uniform(self._seed, _LIFE, machine, cycle, 3)
        bell = float(drawn[0] + drawn[1] - 1.0)  # triangular, from -1 to 1, deviation 0.41
        low, high = REPAIR_S
        return float(self._mean[machine]) * (1.0 + 0.5 * bell), low + (high - low) * float(drawn[2])

    def _end(self) -> Floats:
        return self._begin + self._life + self._repair

    def _roll(self, machine: int) -> None:
        self._begin[machine] += self._life[machine] + self._repair[machine]
        self._before[machine] = self._repair[machine]
        self._cycle[machine] += 1
        self._life[machine], self._repair[machine] = self._draw(machine, int(self._cycle[machine]))
        self._note(machine)

    def _note(self, machine: int) -> None:
        fails = float(self._begin[machine] + self._life[machine])
        self._known.append(Known(machine, "failure", fails, fails + float(self._repair[machine]), "", 0.0))

    def _change(self, stand: Stand, machine: int, times: Floats) -> None:
        """Put a machine's next tool in from its time on, inside the span."""
        new = times >= self._end()[machine]
        self._roll(machine)
        stand.age[new, machine] = times[new] - self._begin[machine]
        stand.life[new, machine] = self._life[machine]
        stand.repair[new, machine] = self._before[machine]
        stand.cycle[new, machine] = self._cycle[machine]


def _where(mask: npt.NDArray[np.bool_]) -> list[int]:
    return [int(index) for index in np.flatnonzero(mask)]
