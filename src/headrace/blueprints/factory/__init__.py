"""Five factories: machines, their tools, predictive maintenance and anomalies."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from headrace.blueprints.factory.feed import FactoryFeed
from headrace.blueprints.factory.machine import make_machines, make_sites, metadata_tables
from headrace.blueprints.factory.simulator import Factory
from headrace.blueprints.factory.training import HOURS, SEED, training_table
from headrace.blueprints.spec import Blueprint, Expectation, packaged_files

MACHINES = 50


def simulate(seed: int, devices: int, start: int, period_s: float) -> FactoryFeed:
    """`devices` machines, one reading each every `period_s` seconds of plant time from `start` (ticks) on."""
    return FactoryFeed(Factory(seed, machines=devices, start_ticks=start, tick_s=period_s))


def training(model: str) -> pa.Table:
    """Two hours of sixty other machines, whatever the model: features, `rul_s` and `fails_within`."""
    return training_table(SEED, HOURS)


def metadata() -> Mapping[str, pa.Table]:
    sites = make_sites(5)
    return metadata_tables(sites, make_machines(sites, MACHINES))


async def expect(seed: int) -> Expectation:
    """See blueprints/factory/expect.py. About 20 seconds of work."""
    from headrace.blueprints.factory.expect import expect  # jobs, alerts and models: not for those who only read files

    return await expect(seed)


FACTORY = Blueprint(
    name="factory",
    title="Five factories",
    files=lambda: packaged_files("headrace.blueprints.factory"),
    simulate=simulate,
    training=training,
    metadata=metadata,
    expect=expect,
)
