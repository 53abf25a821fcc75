import asyncio
import base64
from pathlib import Path

import pytest

from headrace.core.clock import ManualClock
from headrace.core.errors import Conflict, NotFound, UserError
from headrace.devices.commands import DeviceCommands
from headrace.devices.model import Device, Draft
from headrace.devices.queries import DeviceDirectory, DeviceQueries
from headrace.devices.rules import check_id
from headrace.docstore.contract import DocStore
from headrace.docstore.sqlite import SqliteDocStore


async def test_a_created_device_is_read_back_with_its_keys(commands: DeviceCommands, queries: DeviceQueries) -> None:
    made = await commands.create("press-07", entity_id="press", site="lyon")
    assert await queries.get("press-07") == made
    assert (made.status, made.entity_id, made.site) == ("enabled", "press", "lyon")
    assert made.primary_key != made.secondary_key
    assert len(base64.b64decode(made.primary_key)) == len(base64.b64decode(made.secondary_key)) == 32
    assert len(made.generation_id) == 18


async def test_a_devices_entity_is_itself_unless_given(commands: DeviceCommands) -> None:
    assert (await commands.create("press-07")).entity_id == "press-07"


async def test_keys_show_in_no_repr(commands: DeviceCommands) -> None:
    made = await commands.create("press-07")
    draft = Draft(id="a", primary_key=made.primary_key)
    shown = f"{made!r} {made} {[made]} {dict(made.__rich_repr__())} {draft!r}"
    assert made.primary_key not in shown
    assert made.secondary_key not in shown


async def test_an_id_is_given_once(commands: DeviceCommands, queries: DeviceQueries) -> None:
    made = await commands.create("press-07")
    with pytest.raises(Conflict) as caught:
        await commands.create("press-07")
    assert caught.value.code == "device.exists"
    assert await queries.get("press-07") == made


@pytest.mark.parametrize("id", ["a", "A-1:.+%_#*?!(),=@;$'", "0e:9c:00:4c:1c:51", "x" * 128])
def test_ids_of_the_hub_are_accepted(id: str) -> None:
    assert check_id(id) == id


@pytest.mark.parametrize("id", ["", "x" * 129, "a b", "a/b", "é", "a\n", 'a"', "a&b", "a\0"])
def test_other_ids_are_refused(id: str) -> None:
    with pytest.raises(UserError) as caught:
        check_id(id)
    assert caught.value.code == "device.id"


@pytest.mark.parametrize("key", ["not base64!", "QUJD", base64.b64encode(b"x" * 65).decode()])
async def test_a_bad_key_is_refused_and_not_shown(commands: DeviceCommands, key: str) -> None:
    with pytest.raises(UserError) as caught:
        await commands.create("a", primary_key=key)
    assert caught.value.code == "device.key"
    assert key not in str(caught.value)


async def test_thousands_are_created_at_once_or_not_at_all(commands: DeviceCommands, queries: DeviceQueries) -> None:
    made = await commands.create_many(f"d{n:05}" for n in range(3000))
    assert await queries.count() == 3000
    assert len({device.primary_key for device in made}) == 3000
    with pytest.raises(Conflict, match="d00001"):
        await commands.create_many(["new", "d00001"])
    with pytest.raises(Conflict, match="twice"):
        await commands.create_many(["new", "new"])
    assert await queries.find("new") is None


async def test_keep_returns_the_devices_that_are_there(commands: DeviceCommands) -> None:
    old = await commands.create("b", site="lyon")
    made = await commands.create_many([Draft(id="c"), Draft(id="b"), Draft(id="a")], if_exists="keep")
    assert [device.id for device in made] == ["c", "b", "a"]
    assert made[1] == old
    many = [f"x{n}" for n in range(30)]
    first = await commands.create_many(many)
    assert await commands.create_many([*many, "y"], if_exists="keep") == [*first, await _get(commands, "y")]


async def _get(commands: DeviceCommands, id: str) -> Device:
    return (await commands.create_many([id], if_exists="keep"))[0]


async def test_changes_keep_the_keys(commands: DeviceCommands, queries: DeviceQueries) -> None:
    made = await commands.create("a")
    assert (await commands.disable("a")).enabled is False
    await commands.set_site("a", "lyon")
    changed = await commands.enable("a")
    assert changed == await queries.get("a")
    assert (changed.primary_key, changed.generation_id, changed.site) == (
        made.primary_key,
        made.generation_id,
        "lyon",
    )


async def test_changes_at_the_same_time_are_all_kept(tmp_path: Path, clock: ManualClock) -> None:
    docs = SqliteDocStore(tmp_path / "docs.sqlite", clock)
    commands = DeviceCommands(docs, clock, lambda n: bytes(n))
    await commands.create("a")
    await asyncio.gather(commands.disable("a"), commands.set_site("a", "x"))
    device = await DeviceQueries(docs).get("a")
    assert (device.status, device.site) == ("disabled", "x")
    await docs.close()


async def test_a_device_created_again_has_another_generation(commands: DeviceCommands) -> None:
    first = await commands.create("a")
    await commands.delete("a")
    assert (await commands.create("a")).generation_id != first.generation_id
    with pytest.raises(NotFound):
        await commands.delete("b")
    with pytest.raises(NotFound):
        await commands.enable("b")


async def test_a_missing_device_is_told_with_the_nearest_name(commands: DeviceCommands, queries: DeviceQueries) -> None:
    await commands.create("press-07")
    with pytest.raises(NotFound, match="did you mean 'press-07'"):
        await queries.get("press-70")


async def test_devices_are_listed_by_prefix_status_and_site(commands: DeviceCommands, queries: DeviceQueries) -> None:
    await commands.create_many([Draft(id="a1", site="lyon"), Draft(id="a2"), Draft(id="b1", site="lyon")])
    await commands.disable("a1")

    async def ids(**asked: object) -> list[str]:
        return [device.id for device in await queries.list(**asked)]  # type: ignore[arg-type]

    assert await ids() == ["a1", "a2", "b1"]
    assert await ids(prefix="a") == ["a1", "a2"]
    assert await ids(status="enabled") == ["a2", "b1"]
    assert await ids(site="lyon", status="enabled") == ["b1"]
    assert await ids(after="a1", limit=1) == ["a2"]


async def test_the_directory_follows_every_change(docs: DocStore, commands: DeviceCommands) -> None:
    await commands.create_many(["a", "b", "gone"])
    await commands.delete("gone")
    directory = DeviceDirectory(docs)
    await directory.open()
    assert {device.id for device in directory} == {"a", "b"}
    told: asyncio.Queue[tuple[str, Device | None]] = asyncio.Queue()
    directory.on_change.append(lambda id, device: told.put_nowait((id, device)))
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(directory.run())
        created = await commands.create("c")
        assert await told.get() == ("c", created)
        disabled = await commands.disable("a")
        assert await told.get() == ("a", disabled)
        assert directory.get("a") == disabled
        await commands.delete("b")
        assert await told.get() == ("b", None)
        running.cancel()
    assert directory.get("b") is None
    assert len(directory) == 2


async def test_the_directory_can_be_told_to_hear_of_everything_now(docs: DocStore, commands: DeviceCommands) -> None:
    directory = DeviceDirectory(docs)
    await directory.open()
    told: list[str] = []
    directory.on_change.append(lambda id, device: told.append(id))
    made = await commands.create("a")
    await directory.refresh()
    assert directory.get("a") == made
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(directory.run())
        await commands.create_many(["b", "c"])
        await asyncio.gather(directory.refresh(), directory.refresh())
        assert directory.get("c") is not None
        running.cancel()
    assert told == ["a", "b", "c"]


async def test_a_callback_that_fails_stops_nothing(docs: DocStore, commands: DeviceCommands) -> None:
    directory = DeviceDirectory(docs)
    await directory.open()
    told = asyncio.Event()
    directory.on_change += [lambda *_: 1 / 0, lambda *_: told.set()]  # type: ignore[list-item, func-returns-value]
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(directory.run())
        await commands.create("a")
        await told.wait()
        running.cancel()
    assert directory.get("a") is not None


async def test_a_document_that_is_no_device_hides_no_other(docs: DocStore, commands: DeviceCommands) -> None:
    await docs.put("devices", "odd", {"status": "perhaps"})
    await commands.create("a")
    directory = DeviceDirectory(docs)
    await directory.open()
    assert [device.id for device in directory] == ["a"]
