"""Events to append, and logs that are closed after the test."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from eventlog_given import Events, OpenLog, make_events

from headrace.core.clock import ManualClock
from headrace.eventlog.sqlite import SqliteEventLog


@pytest.fixture
def events() -> Events:
    return make_events


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def open_log(tmp_path: Path, clock: ManualClock) -> AsyncIterator[OpenLog]:
    """Opens the log in the test's folder, again if asked again, as another process would."""
    async with AsyncExitStack() as stack:

        def opened(**settings: float) -> SqliteEventLog:
            log = SqliteEventLog(tmp_path / "log", clock, **settings)  # type: ignore[arg-type]
            stack.push_async_callback(log.close)
            return log

        yield opened
