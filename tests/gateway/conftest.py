"""Fixtures of the gateway's tests; what they hand out is in gateway_parts.py."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
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
