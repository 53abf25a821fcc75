"""One real project for all tests here: every process of `headrace up`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from chain_parts import Chain, feed

from headrace.core import runstate


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    made = Chain(tmp_path_factory.mktemp("chain") / "plant")
    try:
        up = made.headrace("up", "--detach", "--ready-timeout", "120")
        assert up.returncode == 0, up.stderr
        made.pids = {state.part: state.pid for state in runstate.read_all(made.project)}
        asyncio.run(feed(made))
        yield made
    finally:
        made.headrace("down")
