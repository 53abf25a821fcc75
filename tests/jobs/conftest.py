"""Fixtures for jobs: a plant on a log in memory, and on one in files."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from job_plant import Plant


@pytest.fixture(params=["memory", "sqlite"])
async def plant(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Plant]:
    made = Plant(tmp_path, lasting=request.param == "sqlite")
    yield made
    await made.close()
