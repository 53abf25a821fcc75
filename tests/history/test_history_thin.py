"""Fewer points, the same picture."""

import numpy as np
import pyarrow as pa
import pytest

from headrace.history.thin import thin


def series(**fields: list[float | None]) -> pa.Table:
    rows = len(next(iter(fields.values())))
    return pa.table({"_enqueued": pa.array(range(0, rows * 10, 10), pa.int64()), **fields})


def test_a_short_series_stays_as_it_is() -> None:
    rows = series(t=[1.0, 2.0, 3.0])
    assert thin(rows, ["t"], 3) is rows


@pytest.mark.parametrize("seed", range(10))
def test_every_buckets_extremes_of_every_field_stay_and_the_bound_holds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count, points = int(rng.integers(50, 2000)), int(rng.integers(20, 200))
    values = {
        name: [
            None if gone else float(value)
            for value, gone in zip(rng.normal(size=count), rng.random(count) < 0.3, strict=True)
        ]
        for name in ("a", "b")
    }
    rows = series(**values)
    kept = thin(rows, ["a", "b"], points)
    assert kept.num_rows <= max(points, 0) or count <= points, f"seed {seed}"
    for name in ("a", "b"):
        whole = [value for value in values[name] if value is not None]
        some = [value for value in kept[name].to_pylist() if value is not None]
        assert (min(some), max(some)) == (min(whole), max(whole)), f"seed {seed}"
    times = kept["_enqueued"].to_pylist()
    assert times == sorted(set(times))
    assert (times[0], times[-1]) == (0, (count - 1) * 10)


def test_a_field_with_no_value_at_all_is_no_obstacle() -> None:
    rows = series(t=[None] * 100, u=[float("nan")] * 50 + [1.0] * 50).cast(
        pa.schema([("_enqueued", pa.int64()), ("t", pa.float64()), ("u", pa.float64())])
    )
    assert thin(rows, ["t", "u"], 10).num_rows <= 10


def test_rows_without_numbers_are_thinned_evenly() -> None:
    rows = series(t=[1.0] * 100).append_column("s", pa.array(["x"] * 100))
    kept = thin(rows, ["s"], 5)["_enqueued"].to_pylist()
    assert kept == [0, 240, 490, 740, 990]


def test_rows_of_one_moment_are_one_bucket() -> None:
    rows = pa.table({"_enqueued": pa.array([7] * 100, pa.int64()), "t": [float(n) for n in range(100)]})
    assert thin(rows, ["t"], 10)["t"].to_pylist() == [0.0, 99.0]
