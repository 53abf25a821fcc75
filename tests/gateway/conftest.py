"""Fixtures of the gateway's tests; what they hand out is in gateway_parts.py and broker_parts.py."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from broker_parts import Bench, Benches
from gateway_parts import Hub, Parts


@pytest.fixture
def parts() -> Parts:
    return Parts()


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Hub]:
    made = Hub(tmp_path)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def benches(tmp_path: Path) -> AsyncIterator[Benches]:
    """Makes brokers with settings of their own."""
    made: list[Bench] = []

    async def make(**config: Any) -> Bench:
        made.append(Bench(tmp_path / str(len(made)), **config))
        await made[-1].start()
        return made[-1]

    yield make
    for each in made:
        await each.stop()


@pytest.fixture
async def bench(benches: Benches) -> Bench:
    return await benches()
