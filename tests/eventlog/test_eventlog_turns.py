"""Taking the write lock of a stream's file: soon after it is free, and an error when it never is."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from headrace.eventlog import storage


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[sqlite3.Connection, sqlite3.Connection]]:
    path = tmp_path / "telemetry.sqlite"
    with closing(storage.open_stream(path, 2)) as one, closing(storage.open_stream(path)) as other:
        yield one, other


def test_who_waits_gets_the_lock_when_it_is_free(pair: tuple[sqlite3.Connection, sqlite3.Connection]) -> None:
    holder, waiter = pair
    storage.begin(holder)
    asked = threading.Event()
    waiter.set_trace_callback(lambda statement: asked.set() if statement.startswith("BEGIN") else None)
    thread = threading.Thread(target=storage.begin, args=(waiter,))
    thread.start()
    assert asked.wait(10)
    assert not waiter.in_transaction
    holder.execute("COMMIT")
    thread.join(10)
    assert waiter.in_transaction
    waiter.execute("ROLLBACK")


def test_a_lock_that_is_never_free_is_an_error_of_ours(
    pair: tuple[sqlite3.Connection, sqlite3.Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, waiter = pair
    monkeypatch.setattr(storage, "BUSY_TIMEOUT_MS", 5)
    storage.begin(holder)
    with pytest.raises(Exception, match="locked by another process") as caught, storage.translated(Path("x")):
        storage.begin(waiter)
    assert getattr(caught.value, "code", "") == "eventlog.busy"
    assert not waiter.in_transaction
    holder.execute("ROLLBACK")
    storage.begin(waiter)  # nothing is left behind
    assert waiter.in_transaction
    waiter.execute("ROLLBACK")
