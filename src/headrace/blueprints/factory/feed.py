"""The plant as devices that send: one JSON body a machine and period."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.blueprints.factory.simulator import Factory
from headrace.connectors.file_formats import json_objects


class FactoryFeed:
    """A `Simulation` (blueprints/spec.py) over a Factory. Device and entity are the machine, the site is its factory."""

    def __init__(self, plant: Factory) -> None:
        self.plant = plant
        self._devices = [machine.id for machine in plant.machines]
        self._sites = [machine.factory for machine in plant.machines]

    @property
    def devices(self) -> Sequence[str]:
        return self._devices

    @property
    def sites(self) -> Sequence[str]:
        return self._sites

    def step(self) -> list[bytes]:
        """The next reading of each machine, in the order of `devices`; the truth stays behind."""
        rows = self.plant.step(1).rows.drop_columns(["time"])
        return json_objects(rows.schema.names, rows.columns)
