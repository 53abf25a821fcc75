"""History to train on: what the same plant, under another seed, has seen of tools that lived and broke."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from headrace.blueprints.factory.simulator import Factory

SEED, HOURS = 1_000_003, 2.0  # of the history that the project's models learn from
CAP_S = 600.0
WITHIN_S = 120.0
SAMPLE_TICKS = 60


def training_table(
    seed: int,
    hours: float = 1.0,
    *,
    machines: int = 60,
    tick_s: float = 10.0,
    cap_s: float = CAP_S,
    within_s: float = WITHIN_S,
) -> pa.Table:
    """One row a machine and tick: machineId, time, temperature, vibration, pressure, rpm, load, wear, and the targets.

    `rul_s` is the remaining life in seconds, cut at `cap_s`: a new tool does not show how old it will get. `fails_within` is
    1 where the tool breaks within `within_s`. Split by machineId, never by row. Spikes and drifts are in it as they are
    in life. Use a seed that the plant does not run with.
    """
    plant = Factory(seed, machines=machines, tick_s=tick_s)
    left = max(1, round(hours * 3600 / tick_s))
    parts = []
    while left > 0:
        readings = plant.step(min(SAMPLE_TICKS, left))
        left -= SAMPLE_TICKS
        rows = pa.Table.from_batches([readings.rows]).drop_columns(["factory", "ts", "cycle"])
        rul_s = pa.array(np.round(np.minimum(readings.rul_s, cap_s), 1))
        soon = pa.array((readings.rul_s <= within_s).astype(np.int8))
        parts.append(rows.append_column("rul_s", rul_s).append_column("fails_within", soon))
    return pa.concat_tables(parts)
