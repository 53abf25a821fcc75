"""Modules, certificates and edge scopes in the registry."""

import asyncio

import pytest

from headrace.core.errors import Conflict, NotFound, UserError
from headrace.devices.commands import DeviceCommands
from headrace.devices.model import Draft, ModuleDraft
from headrace.devices.queries import DeviceDirectory, DeviceQueries
from headrace.devices.rules import MODULES_MAX
from headrace.docstore.contract import DocStore

SHA1 = "ab" * 20


async def test_a_module_has_keys_and_a_generation_of_its_own(commands: DeviceCommands, queries: DeviceQueries) -> None:
    device = await commands.create("press")
    made = await commands.create_module(ModuleDraft(device="press", id="vision", managed_by="me"))
    assert await queries.module("press", "vision") == made
    assert len({made.module.primary_key, made.module.secondary_key, device.primary_key}) == 3
    assert made.module.generation_id != device.generation_id
    assert made.module.managed_by == "me"
    assert made.module.primary_key not in repr(made)


async def test_a_module_needs_its_device(commands: DeviceCommands) -> None:
    with pytest.raises(NotFound) as caught:
        await commands.create_module(ModuleDraft(device="nobody", id="vision"))
    assert caught.value.code == "device.not_found"


async def test_a_module_is_made_once(commands: DeviceCommands) -> None:
    await commands.create("press")
    await commands.create_module(ModuleDraft(device="press", id="vision"))
    with pytest.raises(Conflict) as caught:
        await commands.create_module(ModuleDraft(device="press", id="vision"))
    assert caught.value.code == "module.exists"


async def test_modules_of_one_device_are_listed_without_those_of_its_namesakes(
    commands: DeviceCommands, queries: DeviceQueries
) -> None:
    for device in ("press", "press-2", "pres"):
        await commands.create(device)
        await commands.create_module(ModuleDraft(device=device, id=f"m-{device}"))
    assert [found.module.id for found in await queries.modules("press")] == ["m-press"]


async def test_a_device_takes_only_so_many_modules(commands: DeviceCommands) -> None:
    await commands.create("press")
    for number in range(MODULES_MAX):
        await commands.create_module(ModuleDraft(device="press", id=f"m{number}"))
    with pytest.raises(UserError) as caught:
        await commands.create_module(ModuleDraft(device="press", id="more"))
    assert caught.value.code == "module.too_many"


async def test_a_changed_module_keeps_its_keys_and_generation(commands: DeviceCommands) -> None:
    await commands.create("press")
    first = await commands.create_module(ModuleDraft(device="press", id="vision"))
    second = await commands.replace_module(
        ModuleDraft(device="press", id="vision", managed_by="you"), if_match=first.etag
    )
    assert second.module.primary_key == first.module.primary_key
    assert (second.module.managed_by, second.module.generation_id) == ("you", first.module.generation_id)
    with pytest.raises(Conflict) as caught:
        await commands.replace_module(ModuleDraft(device="press", id="vision"), if_match=first.etag)
    assert caught.value.code == "module.etag"


async def test_deleting_a_device_deletes_its_modules(commands: DeviceCommands, queries: DeviceQueries) -> None:
    await commands.create("press")
    await commands.create_module(ModuleDraft(device="press", id="vision"))
    await commands.delete("press")
    assert await queries.module("press", "vision") is None
    with pytest.raises(NotFound):
        await commands.delete_module("press", "vision")


async def test_an_etag_guards_change_and_deletion(commands: DeviceCommands, queries: DeviceQueries) -> None:
    first = await commands.register(Draft(id="press"))
    second = await commands.replace(Draft(id="press", status="disabled", status_reason="worn"), if_match=first.etag)
    assert (second.device.status, second.device.status_reason) == ("disabled", "worn")
    assert second.device.primary_key == first.device.primary_key
    for attempt in (
        commands.replace(Draft(id="press"), if_match=first.etag),
        commands.delete("press", if_match=first.etag),
    ):
        with pytest.raises(Conflict) as caught:
            await attempt
        assert caught.value.code == "device.etag"
    await commands.delete("press", if_match=second.etag)
    with pytest.raises(NotFound):
        await commands.delete("press", if_match="*")
    with pytest.raises(NotFound):
        await commands.replace(Draft(id="press"))


async def test_a_device_made_again_has_another_generation(commands: DeviceCommands) -> None:
    first = await commands.create("press")
    await commands.delete("press")
    assert (await commands.create("press")).generation_id != first.generation_id


async def test_a_device_with_a_certificate_has_a_thumbprint_and_no_keys(commands: DeviceCommands) -> None:
    made = (
        await commands.register(Draft(id="a", authentication="selfSigned", primary_thumbprint=":".join(["ab"] * 20)))
    ).device
    assert (made.primary_thumbprint, made.primary_key) == (SHA1.upper(), "")
    with pytest.raises(UserError, match="thumbprint"):
        await commands.register(Draft(id="b", authentication="selfSigned"))
    with pytest.raises(UserError, match="thumbprint"):
        await commands.register(Draft(id="b", authentication="selfSigned", primary_thumbprint="xyz"))
    back = (await commands.replace(Draft(id="a", authentication="sas"))).device
    assert (back.primary_thumbprint, bool(back.primary_key)) == ("", True)


async def test_a_rotated_key_is_another_one(commands: DeviceCommands) -> None:
    first = await commands.create("press")
    second = await commands.rotate("press", "primary")
    assert second.primary_key != first.primary_key
    assert second.secondary_key == first.secondary_key


async def test_an_edge_device_has_a_scope_and_its_leaf_names_it(commands: DeviceCommands) -> None:
    edge = (await commands.register(Draft(id="edge", iot_edge=True))).device
    assert edge.scope == f"ms-azure-iot-edge://edge-{edge.generation_id}"
    leaf = (await commands.register(Draft(id="leaf", scope=edge.scope))).device
    assert (leaf.scope, leaf.parents) == (edge.scope, (edge.scope,))
    child = (await commands.register(Draft(id="child", iot_edge=True, scope=edge.scope))).device
    assert child.scope == f"ms-azure-iot-edge://child-{child.generation_id}"
    assert child.parents == (edge.scope,)
    same = (await commands.replace(Draft(id="child", scope=child.scope))).device
    assert (same.iot_edge, same.parents) == (True, (edge.scope,))
    free = (await commands.replace(Draft(id="leaf", scope=""))).device
    assert (free.scope, free.parents) == ("", ())


async def test_a_scope_that_no_edge_device_has_is_refused(commands: DeviceCommands) -> None:
    plain = await commands.create("plain")
    for scope in ("nonsense", "ms-azure-iot-edge://nobody-1", f"ms-azure-iot-edge://plain-{plain.generation_id}"):
        with pytest.raises(UserError) as caught:
            await commands.register(Draft(id="leaf", scope=scope))
        assert caught.value.code == "device.scope"


async def test_the_directory_follows_modules(docs: DocStore, commands: DeviceCommands) -> None:
    await commands.create("press")
    made = (await commands.create_module(ModuleDraft(device="press", id="vision"))).module
    directory = DeviceDirectory(docs)
    await directory.open()
    assert directory.module("press", "vision") == made
    told: asyncio.Queue[str] = asyncio.Queue()
    directory.on_module_change.append(lambda id, module: told.put_nowait(f"{id} {module is not None}"))
    following = asyncio.create_task(directory.run())
    await commands.create_module(ModuleDraft(device="press", id="sound"))
    assert await asyncio.wait_for(told.get(), 5) == "press/sound True"
    await commands.delete_module("press", "vision")
    assert await asyncio.wait_for(told.get(), 5) == "press/vision False"
    assert directory.module("press", "vision") is None
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
