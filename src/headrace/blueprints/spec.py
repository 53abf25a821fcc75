"""What a blueprint is: a project's files, the simulated plant that feeds it, and what it expects of itself."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any, NamedTuple, Protocol

import pyarrow as pa


class Simulation(Protocol):
    """Simulated devices. Every call of `step` is one reading of each, in the order of `devices`."""

    @property
    def devices(self) -> Sequence[str]: ...

    @property
    def sites(self) -> Sequence[str]: ...

    def step(self) -> Sequence[bytes]:
        """JSON bodies, one a device; plant time moves on by one period."""
        ...


class Figure(NamedTuple):
    """How one alert rule did against what really happened, and what is asked of it at least."""

    rule: str
    about: str  # what it is there to find
    happened: int
    found: int
    raised: int
    right: int
    precision_min: float
    recall_min: float
    note: str = ""

    @property
    def precision(self) -> float:
        """The share of alerts that something real stands behind; NaN when none was raised."""
        return self.right / self.raised if self.raised else float("nan")

    @property
    def recall(self) -> float:
        """The share of what happened that was found; NaN when nothing happened."""
        return self.found / self.happened if self.happened else float("nan")

    @property
    def met(self) -> bool:
        """False also where nothing happened or nothing was raised: then nothing was shown."""
        return self.precision >= self.precision_min and self.recall >= self.recall_min


class Expectation(NamedTuple):
    """What came of a blueprint's own end-to-end check."""

    seed: int
    devices: int
    plant_s: float  # of plant time
    events: int
    set_aside: int
    figures: tuple[Figure, ...]

    @property
    def met(self) -> bool:
        return self.set_aside == 0 and all(figure.met for figure in self.figures)


@dataclass(frozen=True)
class Blueprint:
    """A runnable scenario. `simulate(seed, devices, start, period_s)` makes its plant; `training(model)` a model's table;
    `expect(seed)` runs the whole chain in process on a plant that nobody has seen, and judges its alerts by the truth."""

    name: str
    title: str
    files: Callable[[], Mapping[str, str]]
    simulate: Callable[[int, int, int, float], Simulation] | None = None
    training: Callable[[str], pa.Table] | None = None
    metadata: Callable[[], Mapping[str, pa.Table]] | None = None
    expect: Callable[[int], Coroutine[Any, Any, Expectation]] | None = None


def packaged_files(package: str) -> dict[str, str]:
    """The files below `project/` of a blueprint's package, by path."""
    found: dict[str, str] = {}

    def walk(folder: Traversable, path: str) -> None:
        for entry in folder.iterdir():
            if entry.is_dir():
                walk(entry, f"{path}{entry.name}/")
            elif not entry.name.endswith((".py", ".pyc")):
                found[path + entry.name] = entry.read_text(encoding="utf-8")

    walk(resources.files(package).joinpath("project"), "")
    return found
