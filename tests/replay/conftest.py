"""Fixtures of the replay's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from replay_plant import Plant


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    made = Plant(tmp_path_factory.mktemp("replay") / "plant")
    made.run("up", "--detach")
    yield made
    made.run("down")
