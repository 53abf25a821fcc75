"""Twins: merging, versions, metadata, limits, and changes from several sides at once."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.clock import ManualClock, to_iso
from headrace.core.errors import Conflict, UserError
from headrace.devices import twin_rules as rules
from headrace.devices.model import Device, Module
from headrace.devices.twins import Connection, Twin, TwinService, document
from headrace.docstore.contract import DocStore
from headrace.docstore.sqlite import SqliteDocStore
from headrace.wire.iothub.topics import Identity

PRESS = Identity("press")


@pytest.fixture
def twins(docs: DocStore, clock: ManualClock) -> TwinService:
    return TwinService(docs, clock, random_bytes=random.Random(1).randbytes)


async def test_a_twin_that_nobody_changed_is_at_version_1(twins: TwinService) -> None:
    twin = await twins.get(PRESS)
    assert twin.for_device() == {"desired": {"$version": 1}, "reported": {"$version": 1}}
    assert (twin.version, twin.tags) == (1, {})


async def test_a_report_merges_and_null_deletes(twins: TwinService) -> None:
    assert await twins.report(PRESS, {"a": {"x": 1, "y": 2}, "list": [1, 2], "gone": 1}) == 2
    assert await twins.report(PRESS, {"a": {"y": None, "z": 3}, "list": [3], "gone": None}) == 3
    twin = await twins.get(PRESS)
    assert twin.reported.values == {"a": {"x": 1, "z": 3}, "list": [3]}
    assert (twin.desired.version, twin.version) == (1, 3)


async def test_a_report_made_for_another_version_changes_nothing(twins: TwinService) -> None:
    await twins.report(PRESS, {"a": 1})
    with pytest.raises(Conflict) as caught:
        await twins.report(PRESS, {"a": 2}, base_version=1)
    assert caught.value.code == "twin.version"
    assert await twins.report(PRESS, {"a": 3}, base_version=2) == 3


async def test_what_a_reader_sends_back_of_a_document_means_nothing(twins: TwinService) -> None:
    await twins.update(PRESS, {"properties": {"desired": {"a": 1, "$version": 77, "$metadata": {}}}, "deviceId": "x"})
    assert (await twins.get(PRESS)).desired.values == {"a": 1}


async def test_an_update_is_pushed_with_its_version_and_changes_the_etag(twins: TwinService) -> None:
    pushed: list[tuple[Identity, Any]] = []
    twins.on_desired.append(lambda identity, patch: pushed.append((identity, patch)))
    before = await twins.get(PRESS)
    after = await twins.update(PRESS, {"tags": {"line": "7"}, "properties": {"desired": {"speed": 5, "old": None}}})
    assert pushed == [(PRESS, {"speed": 5, "old": None, "$version": 2})]
    assert after.etag != before.etag
    assert (after.version, after.tags, after.desired.values) == (2, {"line": "7"}, {"speed": 5})
    assert await twins.get(PRESS) == after


async def test_tags_alone_push_nothing_to_the_device(twins: TwinService) -> None:
    pushed: list[Any] = []
    twins.on_desired.append(lambda identity, patch: pushed.append(patch))
    await twins.update(PRESS, {"tags": {"line": "7"}})
    assert pushed == []


async def test_a_null_section_is_emptied_and_pushed_as_nulls(twins: TwinService) -> None:
    pushed: list[Any] = []
    await twins.update(PRESS, {"tags": {"line": 1}, "properties": {"desired": {"a": 1, "b": {"c": 2}}}})
    twins.on_desired.append(lambda identity, patch: pushed.append(patch))
    twin = await twins.update(PRESS, {"tags": None, "properties": {"desired": None}})
    assert pushed == [{"a": None, "b": None, "$version": 3}]
    assert (twin.tags, twin.desired.values) == ({}, {})


async def test_a_replace_pushes_all_there_is_and_nulls_for_what_is_gone(twins: TwinService) -> None:
    pushed: list[Any] = []
    await twins.update(PRESS, {"properties": {"desired": {"a": 1, "b": 2}}})
    twins.on_desired.append(lambda identity, patch: pushed.append(patch))
    twin = await twins.replace(PRESS, {"properties": {"desired": {"b": 3, "c": {"d": None, "e": 4}}}})
    assert pushed == [{"b": 3, "c": {"e": 4}, "a": None, "$version": 3}]
    assert twin.desired.values == {"b": 3, "c": {"e": 4}}


async def test_an_etag_that_is_not_current_conflicts_and_a_star_does_not(twins: TwinService) -> None:
    etag = (await twins.get(PRESS)).etag
    current = (await twins.update(PRESS, {"tags": {"a": 1}}, if_match=etag)).etag
    with pytest.raises(Conflict, match="etag"):
        await twins.update(PRESS, {"tags": {"a": 2}}, if_match=etag)
    with pytest.raises(Conflict, match="etag"):
        await twins.update(PRESS, {}, if_match=etag)
    await twins.replace(PRESS, {"tags": {"a": 3}}, if_match=current)
    assert (await twins.update(PRESS, {"tags": {"b": 1}}, if_match="*")).tags == {"a": 3, "b": 1}


async def test_metadata_says_when_each_value_was_set_and_in_which_version(
    twins: TwinService, clock: ManualClock
) -> None:
    first = to_iso(clock.now())
    await twins.update(PRESS, {"properties": {"desired": {"a": {"x": 1, "y": 1}, "b": 1}}})
    clock.advance(60)
    second = to_iso(clock.now())
    twin = await twins.update(PRESS, {"properties": {"desired": {"a": {"x": 2}, "b": None}}})
    old, new = ({"$lastUpdated": at, "$lastUpdatedVersion": v} for at, v in ((first, 2), (second, 3)))
    assert twin.desired.metadata == {**new, "a": {**new, "x": new, "y": old}}
    await twins.report(PRESS, {"t": 1})
    reported = (await twins.get(PRESS)).reported.metadata
    assert reported == {"$lastUpdated": second, "t": {"$lastUpdated": second}}


def nested(levels: int) -> dict[str, Any]:
    return {"n": nested(levels - 1)} if levels else {"v": 1}


@pytest.mark.parametrize(
    ("patch", "code"),
    [
        ([1], "twin.object"),
        ("text", "twin.object"),
        (None, "twin.object"),
        ({"a.b": 1}, "twin.key"),
        ({"$a": 1}, "twin.key"),
        ({"a b": 1}, "twin.key"),
        ({"a\n": 1}, "twin.key"),
        ({"": 1}, "twin.key"),
        ({"a": {"$version": 1}}, "twin.key"),
        ({"k" * 1025: 1}, "twin.key"),
        ({"a": "x" * 4097}, "twin.text"),
        ({"a": 4503599627370497}, "twin.integer"),
        ({"a": [{"b": -4503599627370497}]}, "twin.integer"),
        (nested(11), "twin.depth"),
        ({f"k{n}": "x" * 4000 for n in range(9)}, "twin.size"),
    ],
)
async def test_what_breaks_a_rule_is_refused_and_changes_nothing(twins: TwinService, patch: Any, code: str) -> None:
    before = await twins.get(PRESS)
    with pytest.raises(UserError) as caught:
        await twins.report(PRESS, patch)
    assert caught.value.code == code
    assert await twins.get(PRESS) == before


async def test_what_just_keeps_the_rules_is_taken(twins: TwinService) -> None:
    await twins.report(PRESS, {"k" * 1024: "x" * 4096, "int": 4503599627370496, "on": True, "f": 1.5})
    await twins.report(PRESS, nested(10))


async def test_a_section_grows_too_large_only_as_a_whole(twins: TwinService) -> None:
    await twins.update(PRESS, {"tags": {"a": "x" * 4000}})
    with pytest.raises(UserError, match="above 8,192"):
        await twins.update(PRESS, {"tags": {"b": "x" * 4000, "c": "x" * 200}})
    assert list((await twins.get(PRESS)).tags) == ["a"]


async def test_changes_at_the_same_time_are_all_there(twins: TwinService) -> None:
    await asyncio.gather(*(twins.report(PRESS, {f"k{n}": n}) for n in range(50)))
    twin = await twins.get(PRESS)
    assert twin.reported.values == {f"k{n}": n for n in range(50)}
    assert (twin.reported.version, twin.version) == (51, 51)


async def test_changes_by_several_processes_are_all_there(tmp_path: Path, clock: ManualClock) -> None:
    stores = [SqliteDocStore(tmp_path / "docs.db", clock) for _ in range(3)]
    services = [TwinService(store, clock, random_bytes=random.Random(n).randbytes) for n, store in enumerate(stores)]
    await asyncio.gather(
        *(service.report(PRESS, {f"k{n}-{m}": m}) for n, service in enumerate(services) for m in range(10))
    )
    twin = await services[0].get(PRESS)
    assert len(twin.reported.values) == 30
    assert twin.reported.version == 31
    for store in stores:
        await store.close()


async def test_a_deleted_twin_is_fresh_again_and_so_are_those_of_its_modules(twins: TwinService) -> None:
    for identity in (PRESS, Identity("press", "m"), Identity("press2")):
        await twins.report(identity, {"a": 1})
    await twins.delete(PRESS)
    assert await twins.get(PRESS) == Twin()
    assert await twins.get(Identity("press", "m")) == Twin()
    assert (await twins.get(Identity("press2"))).reported.values == {"a": 1}


async def test_a_change_is_told_with_what_it_was(twins: TwinService) -> None:
    told: list[Any] = []
    twins.on_change.append(lambda identity, kind, patch, twin: told.append((identity, kind, patch, twin.version)))
    await twins.report(PRESS, {"a": 1})
    await twins.update(PRESS, {"tags": {"t": 1}})
    await twins.replace(PRESS, {"properties": {"desired": {"d": 1}}})
    assert told == [
        (PRESS, "updateTwin", {"properties": {"reported": {"a": 1, "$version": 2}}}, 2),
        (PRESS, "updateTwin", {"tags": {"t": 1}}, 3),
        (PRESS, "replaceTwin", {"properties": {"desired": {"d": 1, "$version": 2}}}, 4),
    ]


async def test_the_document_shows_services_what_iot_hub_shows(twins: TwinService, clock: ManualClock) -> None:
    device = Device(id="press", generation_id="1" * 18, entity_id="press", created=clock.now(), iot_edge=True)
    await twins.set_model(PRESS, "dtmi:x;1")
    twin = await twins.update(PRESS, {"tags": {"t": 1}})
    seen = document(twin, device, connection=Connection(True), messages_waiting=3)
    assert seen["properties"]["reported"] == {"$metadata": {"$lastUpdated": to_iso(clock.now())}, "$version": 1}
    shown = {
        key: seen[key] for key in ("deviceId", "connectionState", "cloudToDeviceMessageCount", "modelId", "version")
    }
    assert shown == {
        "deviceId": "press",
        "connectionState": "Connected",
        "cloudToDeviceMessageCount": 3,
        "modelId": "dtmi:x;1",
        "version": 2,
    }
    assert seen["lastActivityTime"] == "0001-01-01T00:00:00.0000000Z"
    module = Module(device="press", id="m", generation_id="2" * 18, created=0)
    assert document(twin, device, module)["moduleId"] == "m"
    assert "capabilities" not in document(twin, device, module)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-100, 100) | st.text("ab", max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3)


def outline(metadata: dict[str, Any]) -> Any:
    inner = {key: outline(value) for key, value in metadata.items() if not key.startswith("$")}
    return inner or None


def shape(values: Any) -> Any:
    return (({key: shape(value) for key, value in values.items()}) or None) if isinstance(values, dict) else None


@given(OBJECTS, OBJECTS)
def test_metadata_has_the_shape_of_the_values(first: dict[str, Any], second: dict[str, Any]) -> None:
    mark = {"$lastUpdated": "t"}
    values = rules.merge(rules.merge({}, first), second)
    metadata = rules.stamp(rules.stamp({}, first, mark), second, mark)
    assert outline(metadata) == shape(values)


@given(OBJECTS, OBJECTS)
def test_a_client_that_merges_a_replacement_holds_the_new_section(old: dict[str, Any], new: dict[str, Any]) -> None:
    old, new = rules.without_nulls(old), rules.without_nulls(new)
    patched = {**old, **rules.replacement(old, new)}
    assert {key: value for key, value in patched.items() if value is not None} == new
