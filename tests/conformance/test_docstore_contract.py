"""What every document store promises (docstore/contract.py), run against each of them."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace.core.clock import TICKS_PER_S, ManualClock
from headrace.core.errors import Conflict, UserError
from headrace.docstore.contract import ABSENT, ANY, DocStore
from headrace.docstore.memory import MemoryDocStore
from headrace.docstore.sqlite import SqliteDocStore


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=["sqlite", "memory"])
async def docs(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> AsyncIterator[DocStore]:
    store: DocStore = (
        SqliteDocStore(tmp_path / "docs.sqlite", clock) if request.param == "sqlite" else MemoryDocStore(clock)
    )
    yield store
    await store.close()


async def test_a_document_comes_back_as_it_was_put(docs: DocStore, clock: ManualClock) -> None:
    body = {"name": "müller", "n": 2**53, "on": True, "none": None, "list": [1, {"x": 1.5}]}
    put = await docs.put("things", "a", body)
    assert put == await docs.get("things", "a")
    assert (put.id, put.body, put.updated, put.expires) == ("a", body, clock.now(), None)
    assert put.etag


async def test_a_body_changed_after_the_call_changes_no_document(docs: DocStore) -> None:
    body = {"tags": {"line": 1}}
    put = await docs.put("things", "a", body)
    body["tags"]["line"] = 2
    put.body["tags"]["line"] = 3
    got = await docs.get("things", "a")
    assert got is not None
    assert got.body == {"tags": {"line": 1}}


async def test_what_json_cannot_hold_is_refused(docs: DocStore) -> None:
    with pytest.raises(UserError, match="must be JSON"):
        await docs.put("things", "a", {"x": object()})


async def test_every_write_gives_a_new_etag(docs: DocStore) -> None:
    etags = {(await docs.put("things", "a", {"n": 1})).etag for _ in range(5)}
    await docs.delete("things", "a")
    etags.add((await docs.put("things", "a", {"n": 1})).etag)
    assert len(etags) == 6


async def test_a_write_with_the_current_etag_succeeds_and_with_an_old_one_conflicts(docs: DocStore) -> None:
    first = await docs.put("things", "a", {"n": 1})
    await docs.put("things", "a", {"n": 2}, if_match=first.etag)
    with pytest.raises(Conflict) as caught:
        await docs.put("things", "a", {"n": 3}, if_match=first.etag)
    assert caught.value.code == "docstore.etag"
    assert (await docs.get("things", "a")).body == {"n": 2}  # type: ignore[union-attr]


async def test_absent_creates_once(docs: DocStore) -> None:
    await docs.put("things", "a", {"n": 1}, if_match=ABSENT)
    with pytest.raises(Conflict, match="exists already"):
        await docs.put("things", "a", {"n": 2}, if_match=ABSENT)


async def test_any_needs_a_document(docs: DocStore) -> None:
    with pytest.raises(Conflict, match="does not exist"):
        await docs.put("things", "a", {"n": 1}, if_match=ANY)
    await docs.put("things", "a", {"n": 1})
    await docs.put("things", "a", {"n": 2}, if_match=ANY)


async def test_of_many_creators_of_one_document_one_wins(docs: DocStore) -> None:
    calls = [docs.put("things", "a", {"n": n}, if_match=ABSENT) for n in range(20)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(answer, Conflict) for answer in answers) == 19


async def test_many_are_put_together_or_not_at_all(docs: DocStore) -> None:
    await docs.put_many("things", {"a": {"n": 1}, "b": {"n": 2}}, if_match=ABSENT)
    with pytest.raises(Conflict):
        await docs.put_many("things", {"c": {"n": 3}, "b": {"n": 4}}, if_match=ABSENT)
    assert [(d.id, d.body["n"]) for d in await docs.query("things")] == [("a", 1), ("b", 2)]
    await docs.put_many("things", {"b": {"n": 5}, "c": {"n": 6}})
    assert [(d.id, d.body["n"]) for d in await docs.query("things")] == [("a", 1), ("b", 5), ("c", 6)]


async def test_the_newest_of_many_stays_where_its_field_says_so(docs: DocStore) -> None:
    await docs.put("things", "c", {"no": 1})
    await docs.put_many("things", {"a": {"at": 5}, "b": {"at": 5}}, newest_by="at")
    await docs.put_many("things", {id: {"at": 4, "late": True} for id in "abcd"}, newest_by="at")
    await docs.put_many("things", {"b": {"at": 6}}, newest_by="at")
    found = {document.id: document.body for document in await docs.query("things")}
    assert found == {"a": {"at": 5}, "b": {"at": 6}, "c": {"at": 4, "late": True}, "d": {"at": 4, "late": True}}


async def test_delete_says_whether_there_was_one_and_minds_the_etag(docs: DocStore) -> None:
    assert await docs.delete("things", "a") is False
    first = await docs.put("things", "a", {"n": 1})
    second = await docs.put("things", "a", {"n": 2})
    with pytest.raises(Conflict):
        await docs.delete("things", "a", if_match=first.etag)
    assert await docs.delete("things", "a", if_match=second.etag) is True
    assert await docs.get("things", "a") is None
    with pytest.raises(Conflict):
        await docs.delete("things", "a", if_match=ANY)


async def test_collections_are_apart(docs: DocStore) -> None:
    await docs.put("one", "a", {"n": 1})
    await docs.put("two", "a", {"n": 2})
    await docs.delete("one", "a")
    assert (await docs.count("one"), await docs.count("two")) == (0, 1)
    assert [change.body for change in await docs.changes("two", 0)] == [{"n": 2}]


async def test_query_by_top_level_fields(docs: DocStore) -> None:
    await docs.put_many(
        "things",
        {
            "a": {"kind": "pump", "on": True, "n": 5},
            "b": {"kind": "pump", "on": False, "n": "5"},
            "c": {"kind": "fan", "on": True, "site of": "x"},
        },
    )

    async def ids(**where: object) -> list[str]:
        return [document.id for document in await docs.query("things", where=where)]

    assert await ids(kind="pump") == ["a", "b"]
    assert await ids(kind="pump", on=True) == ["a"]
    assert await ids(n=5) == ["a"]
    assert await ids(n="5") == ["b"]
    assert await ids(n=None) == ["c"]
    assert await ids(**{"site of": "x"}) == ["c"]
    assert await ids(kind="none") == []
    with pytest.raises(UserError):
        await ids(kind=["pump"])
    with pytest.raises(UserError):
        await ids(**{'k" OR 1': 1})


async def test_query_in_pages_by_id(docs: DocStore) -> None:
    await docs.put_many("things", {f"{letter}{n}": {"n": n} for letter in "ab" for n in range(5)} | {"a_%": {"n": 9}})
    first = await docs.query("things", prefix="a", limit=3)
    rest = await docs.query("things", prefix="a", after=first[-1].id)
    assert [d.id for d in first] == ["a0", "a1", "a2"]
    assert [d.id for d in rest] == ["a3", "a4", "a_%"]
    assert [d.id for d in await docs.query("things", prefix="a_")] == ["a_%"]


async def test_a_document_past_its_time_is_not_seen(docs: DocStore, clock: ManualClock) -> None:
    put = await docs.put("things", "a", {"n": 1}, ttl_s=10)
    await docs.put("things", "b", {"n": 2})
    assert put.expires == clock.now() + 10 * TICKS_PER_S
    clock.advance(9.9)
    assert await docs.count("things") == 2
    clock.advance(0.1)
    assert await docs.get("things", "a") is None
    assert [d.id for d in await docs.query("things")] == ["b"]
    assert await docs.count("things") == 1
    assert await docs.delete("things", "a") is False
    await docs.put("things", "a", {"n": 3}, if_match=ABSENT)
    assert await docs.expire() == 0


async def test_expiry_deletes_and_tells_the_feed(docs: DocStore, clock: ManualClock) -> None:
    await docs.put("things", "a", {"n": 1}, ttl_s=10)
    await docs.put("things", "b", {"n": 1}, ttl_s=30)
    clock.advance(20)
    assert await docs.expire() == 1
    assert await docs.expire() == 0
    assert [(c.id, c.body) for c in await docs.changes("things", 2)] == [("a", None)]


async def test_a_write_without_lifetime_takes_the_old_one_away(docs: DocStore, clock: ManualClock) -> None:
    await docs.put("things", "a", {"n": 1}, ttl_s=10)
    await docs.put("things", "a", {"n": 2})
    clock.advance(60)
    assert await docs.get("things", "a") is not None
    with pytest.raises(UserError, match="ttl_s"):
        await docs.put("things", "a", {"n": 1}, ttl_s=0)


async def test_the_feed_tells_every_change_in_order(docs: DocStore) -> None:
    first = await docs.put("things", "a", {"n": 1})
    await docs.put("things", "b", {"n": 2})
    second = await docs.put("things", "a", {"n": 3})
    await docs.delete("things", "a")
    changes = await docs.changes("things", 0)
    assert [(c.id, c.body) for c in changes] == [("a", {"n": 1}), ("b", {"n": 2}), ("a", {"n": 3}), ("a", None)]
    assert (changes[0].etag, changes[2].etag) == (first.etag, second.etag)
    assert [c.sequence for c in changes] == sorted({c.sequence for c in changes})
    assert [c.collection for c in changes] == ["things"] * 4
    assert await docs.changes("things", changes[1].sequence) == changes[2:]
    assert await docs.changes("things", 0, limit=2) == changes[:2]
    assert await docs.changes("things", changes[-1].sequence) == []


async def test_a_follower_wakes_up_with_the_next_change(docs: DocStore) -> None:
    waiting = asyncio.create_task(docs.changes("things", 0, wait_s=20))
    await asyncio.sleep(0)
    await docs.put("other", "x", {})
    await docs.put("things", "a", {"n": 1})
    changes = await asyncio.wait_for(waiting, 10)
    assert [change.id for change in changes] == ["a"]


async def test_a_follower_without_changes_comes_back_empty(docs: DocStore) -> None:
    assert await docs.changes("things", 0, wait_s=0.1) == []
