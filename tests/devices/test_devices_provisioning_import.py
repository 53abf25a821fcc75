"""Devices from files by the thousand: what is read, what is kept, what is told, and that it can be run again."""

import io
import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from provisioned import KEY, OTHER_KEY, Desk

from headrace.core.errors import UserError
from headrace.devices.provisioning_files import BadLine, Entry, Format, format_of, read
from headrace.devices.provisioning_import import DeviceImport, Imported
from headrace.wire.iothub.topics import Identity

PRINT = "AB" * 20


class Place(Desk):
    def __init__(self, *, batch: int = 3) -> None:
        super().__init__()
        self.bulk = DeviceImport(self.docs, self.devices, self.queries, self.twins, batch=batch)

    async def take(self, text: str, format: Format = "csv") -> Imported:
        return await self.bulk.run(io.BytesIO(text.encode()), format)


def numbers(found: Imported) -> tuple[int, int, int]:
    return found.created, found.kept, found.failed


async def test_csv_columns_become_devices_and_twins() -> None:
    place = Place()
    found = await place.take(
        "deviceId,primaryKey,status,site,entityId,tags,tags.line,desired.rate.hz\n"
        f'a,{KEY},disabled,north,press-a,"{{""maker"": ""acme""}}",007,10.5\n'
        "b,,,,,,4,\n"
    )
    assert numbers(found) == (2, 0, 0)
    device = await place.queries.get("a")
    assert (device.primary_key, device.status, device.site, device.entity_id) == (KEY, "disabled", "north", "press-a")
    twin = await place.twins.get(Identity("a"))
    assert (twin.tags, twin.desired.values) == ({"maker": "acme", "line": "007"}, {"rate": {"hz": 10.5}})
    other = await place.queries.get("b")
    assert len(other.primary_key) == 44
    assert (await place.twins.get(Identity("b"))).tags == {"line": 4}


async def test_json_lines_may_be_ours_or_those_that_iot_hub_exports() -> None:
    place = Place()
    iot_hub = {
        "id": "a",
        "eTag": "x",
        "status": "enabled",
        "authentication": {"type": "sas", "symmetricKey": {"primaryKey": KEY, "secondaryKey": OTHER_KEY}},
        "tags": {"line": 4},
        "properties": {"desired": {"rate": 5, "$version": 3}, "reported": {}},
    }
    ours = {"deviceId": "b", "primaryThumbprint": PRINT.lower(), "site": "north", "desired": {"rate": 6}}
    found = await place.take(f"{json.dumps(iot_hub)}\n\n{json.dumps(ours)}", "jsonl")
    assert numbers(found) == (2, 0, 0)
    assert (await place.queries.get("a")).secondary_key == OTHER_KEY
    assert (await place.twins.get(Identity("a"))).desired.values == {"rate": 5}
    device = await place.queries.get("b")
    assert (device.authentication, device.primary_thumbprint, device.site) == ("selfSigned", PRINT, "north")


async def test_bad_lines_are_told_with_their_numbers_and_stop_nothing() -> None:
    place = Place()
    found = await place.take(
        "id,primaryKey,status,tags\n"
        "a,,,\n"
        "b c,,,\n"
        'c,short,,"{""ok"":\n1}"\n'
        "d,,sleeping,\n"
        "e,,\n"
        "a,,,\n"
        'f,,,"[1]"\n'
        'g,,,"{""a.b"": 1}"\n'
        "h,,,\n"
    )
    assert numbers(found) == (2, 0, 7)
    assert [line for line, _ in sorted(found.problems)] == [3, 4, 6, 7, 8, 9, 10]
    said = dict(found.problems)
    assert "not allowed" in said[3]
    assert "short" not in said[4]
    assert said[8] == "device 'a' stands in line 2 already"
    assert [device.id for device in await place.queries.list()] == ["a", "h"]


async def test_lines_of_json_that_are_none_are_told_too() -> None:
    lines = ["nothing", "[]", '{"id": 5}', '{"id": ""}', '{"id": "a", "status": "x"}', "[" * 5000, '{"id": "good"}']
    found = await Place().take("\n".join(lines), "jsonl")
    assert numbers(found) == (1, 0, 6)
    assert [line for line, _ in found.problems] == [1, 2, 3, 4, 5, 6]


async def test_what_exists_is_kept_with_its_keys_and_its_twin() -> None:
    place = Place()
    await place.take(f"id,primaryKey,tags.line\na,{KEY},1\n")
    await place.twins.update(Identity("a"), {"tags": {"line": 9}})
    found = await place.take(f"id,primaryKey,tags.line\na,{OTHER_KEY},2\nb,,2\n")
    assert numbers(found) == (1, 1, 0)
    assert (await place.queries.get("a")).primary_key == KEY
    assert (await place.twins.get(Identity("a"))).tags == {"line": 9}


async def test_an_import_that_was_interrupted_is_finished_by_running_it_again() -> None:
    text = "id,tags.line\n" + "".join(f"press-{number},{number}\n" for number in range(20))
    place = Place()
    told = 0

    def cut(so_far: Imported) -> None:
        nonlocal told
        told += 1
        if told == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await place.bulk.run(io.BytesIO(text.encode()), "csv", on_batch=cut)
    await place.twins.update(Identity("press-10"), {"tags": {"line": 0}})  # cut between a twin and its device
    assert numbers(await place.take(text)) == (11, 9, 0)
    twins = [await place.twins.get(Identity(f"press-{number}")) for number in range(20)]
    assert [twin.tags["line"] for twin in twins] == list(range(20))


async def test_progress_reaches_the_end_of_the_file() -> None:
    text = "id\n" + "".join(f"a{number}\n" for number in range(10))
    told: list[tuple[int, int]] = []
    await Place().bulk.run(
        io.BytesIO(text.encode()), "csv", on_batch=lambda now: told.append((now.lines, now.position))
    )
    assert [lines for lines, _ in told] == [3, 6, 9, 10]
    assert told[-1][1] == len(text)


@pytest.mark.parametrize("format", ["csv", "jsonl"])
async def test_what_is_exported_can_be_imported_and_is_the_same(tmp_path: Path, format: Format) -> None:
    place = Place()
    await place.take(
        f"id,primaryKey,primaryThumbprint,status,site,tags.line,desired.a.b\na,{KEY},,disabled,n,x,1\nb,,{PRINT},,,,\n"
        'c\'=@;,,,,"x, y",,\n'
    )
    path = tmp_path / "devices"
    with path.open("wb") as file:
        assert await place.bulk.export(file, format) == 3
    other = Place()
    with path.open("rb") as file:
        assert numbers(await other.bulk.run(file, format)) == (3, 0, 0)
    for device in await place.queries.list():
        copy = await other.queries.get(device.id)
        for name in (
            "primary_key",
            "secondary_key",
            "primary_thumbprint",
            "status",
            "site",
            "entity_id",
            "authentication",
        ):
            assert getattr(copy, name) == getattr(device, name)
        twins = [await each.twins.get(Identity(device.id)) for each in (place, other)]
        assert twins[0].tags == twins[1].tags
        assert twins[0].desired.values == twins[1].desired.values


@pytest.mark.parametrize("header", ["", "name\n", "id,id\n", "id,tagz.x\n", "id,site.x\n", "site\n", "id,tags.\n"])
async def test_a_header_that_cannot_be_read_is_an_error_of_its_own(header: str) -> None:
    if header:
        with pytest.raises(UserError):
            await Place().take(f"{header}a,b\n")
    else:
        assert numbers(await Place().take("")) == (0, 0, 0)


def test_the_format_is_told_by_the_name_or_by_the_start() -> None:
    assert format_of("x.CSV", b"{") == "csv"
    assert format_of("x.ndjson", b"id") == "jsonl"
    assert format_of("x", b'  {"id"') == "jsonl"
    assert format_of("x.txt", b"id,site") == "csv"


def test_a_line_without_an_end_takes_bounded_memory_and_is_told() -> None:
    data = b'{"id": "' + b"a" * 3_000_000 + b'"}\n{"id": "b"}\n'
    first, second = read(io.BytesIO(data), "jsonl")
    assert isinstance(first, BadLine)
    assert (first.line, first.position) == (1, 3_000_011)
    assert isinstance(second, Entry)
    assert (second.line, second.draft.id, second.position) == (2, "b", len(data))


@given(data=st.binary(max_size=300), format=st.sampled_from(["csv", "jsonl"]))
def test_whatever_a_file_holds_it_is_read_or_told(data: bytes, format: Format) -> None:
    start = b"id,tags,tags.a,desired.b\n" if random.Random(len(data)).random() < 0.7 else b""
    try:
        for line in read(io.BytesIO(start + data), format):
            assert isinstance(line, Entry | BadLine)
    except UserError:
        assert format == "csv"
