"""What a blueprint is: a project's files, and the simulated plant that feeds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Protocol

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


@dataclass(frozen=True)
class Blueprint:
    """A runnable scenario. `simulate(seed, devices, start, period_s)` makes its plant; `training(model)` a model's table."""

    name: str
    title: str
    files: Callable[[], Mapping[str, str]]
    simulate: Callable[[int, int, int, float], Simulation] | None = None
    training: Callable[[str], pa.Table] | None = None
    metadata: Callable[[], Mapping[str, pa.Table]] | None = None


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
