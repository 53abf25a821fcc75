"""The compiled p-values are NumPy's p-values, and its library belongs to its source."""

import random
from pathlib import Path

import numpy as np
import pytest

from headrace.core.clock import TICKS_PER_S
from headrace.core.native import build
from headrace.detect import native
from headrace.detect.change_point import ChangePoint
from headrace.detect.history import Laid
from headrace.detect.spike_dip import SpikeDip, Tails

needs_kernel = pytest.mark.skipif(native.tails() is None, reason="the kernel was not built")


def laid(seed: int, history: int, rows: int = 400) -> Laid:
    """Events anywhere in a long series of all magnitudes, with pasts of any length."""
    rng = np.random.default_rng(seed)
    flat = rng.normal(20, 3, rows * 3 + history) * 10.0 ** rng.integers(-3, 4, rows * 3 + history)
    flat[rng.random(len(flat)) < 0.1] = 5.0
    flat[history : 3 * history] = 7.25  # a past without any spread
    places = rng.integers(history, len(flat), rows)
    values = np.where(rng.random(rows) < 0.5, flat[places - 1], rng.choice([0.0, 1e150, -1e150, 21.0, 5.0], rows))
    counts = np.where(rng.random(rows) < 0.6, history, rng.integers(0, history + 1, rows))
    none = np.zeros(rows, np.bool_)
    return Laid(np.arange(rows), np.zeros(rows, np.int64), none, none, values, counts, none, flat, places)


@needs_kernel
@pytest.mark.parametrize("history", [1, 2, 7, 8, 9, 15, 16, 100, 120, 127, 128, 129, 136, 137, 255, 500, 1031, 5000])
def test_the_kernel_gives_the_bits_that_numpy_gives(history: int) -> None:
    for seed in range(3):
        events = laid(seed, history)
        plain, compiled = Tails(history, compiled=False), Tails(history)
        assert compiled.compiled
        assert not plain.compiled
        assert compiled.upper(events).tobytes() == plain.upper(events).tobytes(), f"seed {seed}"


@needs_kernel
@pytest.mark.parametrize("kind", ["spike", "change"])
def test_whole_series_score_the_same_with_and_without_the_kernel(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(5)

    def scores() -> list[bytes]:
        made = (
            SpikeDip(20, 95.0, "dips", 20 * TICKS_PER_S) if kind == "spike" else ChangePoint(20, 80.0, 20 * TICKS_PER_S)
        )
        draw = np.random.default_rng(rng.randrange(1 << 30))
        found = []
        for second in range(60):
            keys = draw.integers(0, 9, 30)
            found += [
                part.tobytes() for part in made.score(keys, np.full(30, second * TICKS_PER_S), draw.normal(0, 1, 30))
            ]
        return found

    state = rng.getstate()
    fast = scores()
    rng.setstate(state)
    monkeypatch.setattr(native, "tails", lambda: None)
    assert fast == scores()


def test_a_source_that_does_not_compile_leaves_no_library(tmp_path: Path) -> None:
    broken = tmp_path / "tails.c"
    broken.write_text("this is no C")
    found, why = build(broken)
    assert found is None
    assert why
    assert list(tmp_path.iterdir()) == [broken]
