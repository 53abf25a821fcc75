"""kill -9 under load loses nothing and doubles nothing: the whole chain, judged by what devices were told."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from chaos import ALL, PARTS, SUPERVISOR, random_victims, run
from whole_project import POSTGRES, exactly_once

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning")


def quietly(text: str) -> None:
    """pytest shows what a failing test printed."""
    print(text)


def test_killed_one_by_one_and_all_at_once_everything_acknowledged_is_stored_once(tmp_path: Path) -> None:
    victims = ["gateway", "function:entities", ALL]
    verdict = run(tmp_path, victims, rate=200, connections=20, seconds=14, rng=random.Random(1), say=quietly)
    assert exactly_once(verdict), verdict
    assert sum(verdict["kills"].values()) == len(victims)
    assert verdict["unacknowledged"] == 0


@pytest.mark.slow
def test_twenty_kills_of_anything_lose_and_double_nothing(tmp_path: Path) -> None:
    seed = random.randrange(1 << 16)
    quietly(f"seed {seed}")
    rng = random.Random(seed)
    victims = random_victims(20, PARTS, rng)
    assert {ALL, SUPERVISOR, POSTGRES} <= set(victims)
    verdict = run(tmp_path, victims, rate=500, connections=100, seconds=240, rng=rng, say=quietly)
    assert exactly_once(verdict), verdict
