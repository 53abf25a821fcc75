"""What SQLite adds to the contract: durability, several processes, a feed that stays small."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.core.clock import ManualClock, SystemClock
from headrace.core.errors import Unavailable, UserError
from headrace.docstore.contract import ABSENT
from headrace.docstore.sqlite import SqliteDocStore

WRITER = """
import asyncio, sys
from pathlib import Path
from headrace.core.clock import SystemClock
from headrace.docstore.sqlite import SqliteDocStore

async def main() -> None:
    docs = SqliteDocStore(Path(sys.argv[1]), SystemClock())
    for n in range(int(sys.argv[3])):
        await docs.put("things", f"{sys.argv[2]}{n}", {"n": n})
    await docs.close()

asyncio.run(main())
"""


async def run_writer(path: Path, name: str, count: int) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", WRITER, str(path), name, str(count))
    assert await asyncio.wait_for(process.wait(), 60) == 0


async def test_a_follower_sees_another_process_write(tmp_path: Path) -> None:
    path = tmp_path / "docs.sqlite"
    docs = SqliteDocStore(path, SystemClock())
    waiting = asyncio.create_task(docs.changes("things", 0, wait_s=60))
    await run_writer(path, "a", 1)
    assert [change.id for change in await asyncio.wait_for(waiting, 10)] == ["a0"]
    await docs.close()


async def test_processes_that_start_together_lose_no_write(tmp_path: Path) -> None:
    path = tmp_path / "docs.sqlite"
    await asyncio.gather(*(run_writer(path, name, 30) for name in "abc"))
    docs = SqliteDocStore(path, SystemClock())
    assert await docs.count("things") == 90
    changes = await docs.changes("things", 0)
    assert len({change.sequence for change in changes}) == len({change.etag for change in changes}) == 90
    await docs.close()


async def test_documents_outlive_the_store(tmp_path: Path) -> None:
    clock = ManualClock()
    docs = SqliteDocStore(tmp_path / "docs.sqlite", clock)
    put = await docs.put("things", "a", {"n": 1})
    await docs.close()
    again = SqliteDocStore(tmp_path / "docs.sqlite", clock)
    assert await again.get("things", "a") == put
    assert (await again.put("things", "a", {"n": 2})).etag != put.etag
    await again.close()


async def test_old_changes_go_but_the_newest_of_each_document_stays(tmp_path: Path) -> None:
    clock = ManualClock()
    docs = SqliteDocStore(tmp_path / "docs.sqlite", clock, changes_kept_s=100)
    for n in range(3):
        await docs.put("things", "a", {"n": n})
    await docs.put("things", "gone", {})
    await docs.delete("things", "gone")
    clock.advance(101)
    await docs.put("things", "b", {"n": 1})
    await docs.put("things", "b", {"n": 2})
    await docs.expire()
    changes = [(change.id, change.body) for change in await docs.changes("things", 0)]
    assert changes == [("a", {"n": 2}), ("gone", None), ("b", {"n": 1}), ("b", {"n": 2})]
    await docs.close()


async def test_a_closed_store_says_so(tmp_path: Path) -> None:
    docs = SqliteDocStore(tmp_path / "docs.sqlite", ManualClock())
    await docs.close()
    await docs.close()
    with pytest.raises(UserError, match="closed"):
        await docs.get("things", "a")


async def test_a_file_that_is_no_database_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "docs.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(Unavailable, match=r"docs\.sqlite"):
        SqliteDocStore(tmp_path / "docs.sqlite", ManualClock())


def test_a_kill_loses_no_document_that_was_answered(tmp_path: Path) -> None:
    """The writer prints each id after put() returned, and is killed in the middle."""
    script = WRITER.replace('{"n": n})', '{"n": n}); print(n, flush=True)')
    arguments = [sys.executable, "-c", script, str(tmp_path / "docs.sqlite"), "a", "100000"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        answered = [int(process.stdout.readline()) for _ in range(20)]
        process.kill()

    async def count() -> int:
        docs = SqliteDocStore(tmp_path / "docs.sqlite", SystemClock())
        found = await docs.count("things")
        await docs.close()
        return found

    assert asyncio.run(count()) >= len(answered)


async def test_writes_at_once_share_a_commit_and_a_conflict_is_one_writers_own(tmp_path: Path) -> None:
    store = SqliteDocStore(tmp_path / "docs.sqlite", ManualClock())
    await store.put("things", "taken", {"n": 0})
    said: list[str] = []
    store._write.set_trace_callback(said.append)
    tried = await asyncio.gather(
        *(store.put("things", f"{n}", {"n": n}, if_match=ABSENT) for n in range(200)),
        *(store.put("things", "taken", {"n": n}, if_match=ABSENT) for n in range(20)),
        return_exceptions=True,
    )
    assert [type(each).__name__ for each in tried] == ["Document"] * 200 + ["Conflict"] * 20
    assert said.count("COMMIT") < 20
    assert await store.count("things") == 201
    found = await store.get("things", "taken")
    assert found is not None
    assert found.body == {"n": 0}
    await store.close()


async def test_a_write_that_breaks_harms_no_other_of_its_round(tmp_path: Path) -> None:
    store = SqliteDocStore(tmp_path / "docs.sqlite", ManualClock())
    tried = await asyncio.gather(
        *(store.put("things", "a" if n != 5 else "\ud800", {"n": n}) for n in range(10)), return_exceptions=True
    )
    assert [isinstance(each, Exception) for each in tried].count(True) == 1
    assert isinstance(tried[5], Exception)
    found = await store.get("things", "a")
    assert found is not None
    assert found.body == {"n": 9}
    await store.close()


async def test_a_collection_of_newest_changes_keeps_one_for_each_document(tmp_path: Path) -> None:
    store = SqliteDocStore(tmp_path / "docs.sqlite", ManualClock(), newest_only=("twins",))
    for n in range(5):
        await store.put("twins", "a", {"n": n})
        await store.put("twins", "b", {"n": n})
    await store.delete("twins", "b")
    changes = await store.changes("twins", 0)
    assert [(change.id, change.body) for change in changes] == [("a", {"n": 4}), ("b", None)]
    await store.close()


async def test_a_collection_without_a_feed_leaves_nothing_of_a_deleted_document_but_new_etags(tmp_path: Path) -> None:
    store = SqliteDocStore(tmp_path / "docs.sqlite", ManualClock(), unfed=("mail",))
    first = await store.put("mail", "a", {"n": 1})
    await store.delete("mail", "a")
    assert list(await store.changes("mail", 0)) == []
    assert (await store.put("mail", "a", {"n": 1})).etag != first.etag
    await store.close()
