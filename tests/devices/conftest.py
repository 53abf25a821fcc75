"""A registry over documents in memory, with keys from a seed."""

import random
from pathlib import Path

import pytest

from headrace.core.clock import ManualClock
from headrace.devices.commands import DeviceCommands
from headrace.devices.queries import DeviceQueries
from headrace.docstore.contract import DocStore
from headrace.docstore.memory import MemoryDocStore


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def docs(clock: ManualClock) -> DocStore:
    return MemoryDocStore(clock)


@pytest.fixture
def commands(docs: DocStore, clock: ManualClock) -> DeviceCommands:
    return DeviceCommands(docs, clock, random.Random(1).randbytes)


@pytest.fixture
def queries(docs: DocStore) -> DeviceQueries:
    return DeviceQueries(docs)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "keys"
