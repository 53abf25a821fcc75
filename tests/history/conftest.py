"""The fixture of the tests of history."""

from pathlib import Path

import pytest
from history_plant import Plant


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    return Plant(tmp_path / "a lake's {odd} name")
