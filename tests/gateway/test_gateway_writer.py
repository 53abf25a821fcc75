"""Facts written behind: what two processes say of one document ends as the newer of the two."""

from __future__ import annotations

import asyncio

import pytest

from headrace.core.clock import ManualClock
from headrace.docstore.memory import MemoryDocStore
from headrace.gateway.writer import DocumentWriter


@pytest.fixture
def docs() -> MemoryDocStore:
    return MemoryDocStore(ManualClock())


async def test_an_older_fact_of_another_process_does_not_replace_a_newer_one(docs: MemoryDocStore) -> None:
    here, there = (DocumentWriter(docs, ManualClock()) for _ in range(2))
    here.put("presence", "a", {"since": 5, "connected": False}, newest_by="since")
    there.put("presence", "a", {"since": 6, "connected": True}, newest_by="since")
    await there.flush()
    await here.flush()
    stored = await docs.get("presence", "a")
    assert stored is not None
    assert stored.body == {"since": 6, "connected": True}


async def test_the_newest_of_many_processes_that_write_at_once_stays(docs: MemoryDocStore) -> None:
    writers = [DocumentWriter(docs, ManualClock()) for _ in range(5)]
    for at, writer in enumerate(writers):
        for id in ("a", "b"):
            writer.put("presence", id, {"since": at}, newest_by="since")
    await asyncio.gather(*(writer.flush() for writer in writers))
    assert [found.body["since"] for found in await docs.query("presence")] == [4, 4]


async def test_a_fact_without_an_order_replaces_what_is_stored(docs: MemoryDocStore) -> None:
    writer = DocumentWriter(docs, ManualClock())
    for since in (6, 5):
        writer.put("presence", "a", {"since": since})
        await writer.flush()
    stored = await docs.get("presence", "a")
    assert stored is not None
    assert stored.body == {"since": 5}
