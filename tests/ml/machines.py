"""Made-up machines that wear out: data whose truth is known."""

import numpy as np
import pyarrow as pa

FEATURES = ("wear", "load", "noise")


def machines(seed: int = 3, count: int = 24, rows: int = 60) -> pa.Table:
    """`life` falls with wear and load; `fails` says that it is nearly used up; `noise` means nothing."""
    rng = np.random.default_rng(seed)
    machine = np.repeat(np.arange(count), rows)
    load = np.repeat(rng.uniform(0.5, 1.5, count), rows)
    wear = np.tile(np.linspace(0, 1, rows), count) * load
    life = 100 * (1.6 - wear) / load + rng.normal(0, 2, len(machine))
    return pa.table(
        {
            "machine": [f"m{m}" for m in machine],
            "wear": wear,
            "load": load,
            "noise": rng.normal(size=len(machine)),
            "life": life,
            "fails": (life < 60).astype(np.int64),
        }
    )
