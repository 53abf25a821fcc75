"""`headrace device module` and `regenerate-key`: parts of a device with keys of their own, and new keys."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import typer

from headrace import assembly
from headrace.assembly import Platform
from headrace.cli.device import DeviceId
from headrace.cli.session import JsonOption, ProjectOption, out, print_json, run
from headrace.core.config import load_project
from headrace.core.errors import NotFound
from headrace.devices.connection_string import build
from headrace.devices.model import Module, ModuleDraft

T = TypeVar("T")
module = typer.Typer(help="Modules: parts of a device with identities of their own.", no_args_is_help=True)

ModuleId = Annotated[str, typer.Argument(metavar="MODULE", help="The module's id.")]


def add_to(devices: typer.Typer) -> None:
    devices.add_typer(module, name="module")
    devices.command("regenerate-key")(regenerate_key)


def regenerate_key(
    id: DeviceId,
    secondary: Annotated[
        bool, typer.Option("--secondary", help="The secondary key instead of the primary one.")
    ] = False,
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a device a new key and print its connection string. Tokens of the old key are refused from then on.

    To change keys without a gap: give the device the secondary one, then regenerate the primary.

    Example: headrace device regenerate-key press-7 --secondary
    """

    async def work(platform: Platform) -> str:
        device = await platform.device_commands.rotate(id, "secondary" if secondary else "primary")
        return build(platform.hostname, id, device.secondary_key if secondary else device.primary_key)

    text = _with(project, work)
    if as_json:
        print_json({"deviceId": id, "key": "secondary" if secondary else "primary", "connectionString": text})
    else:
        print(text)


@module.command("create")
def create(id: DeviceId, name: ModuleId, project: ProjectOption = None, as_json: JsonOption = False) -> None:
    """Register a module and print its connection string.

    Example: headrace device module create press-7 camera
    """

    async def work(platform: Platform) -> Module:
        return (await platform.device_commands.create_module(ModuleDraft(device=id, id=name))).module

    _print(_with(project, work), project, as_json)


@module.command("connection-string")
def connection_string(id: DeviceId, name: ModuleId, project: ProjectOption = None, as_json: JsonOption = False) -> None:
    """Print the connection string of a module.

    Example: headrace device module connection-string press-7 camera
    """

    async def work(platform: Platform) -> Module:
        found = await platform.device_queries.module(id, name)
        if found is None:
            raise NotFound(
                f"device {id!r} has no module {name!r}",
                hint=f"headrace device module list {id}",
                code="module.not_found",
            )
        return found.module

    _print(_with(project, work), project, as_json)


@module.command("list")
def list_modules(id: DeviceId, project: ProjectOption = None, as_json: JsonOption = False) -> None:
    """The modules of a device.

    Example: headrace device module list press-7
    """

    async def work(platform: Platform) -> list[Module]:
        await platform.device_queries.get(id)
        return [found.module for found in await platform.device_queries.modules(id)]

    found = _with(project, work)
    if as_json:
        print_json([{"moduleId": each.id, "authentication": each.authentication} for each in found])
    for each in () if as_json else found:
        print(each.id)


@module.command("delete")
def delete(id: DeviceId, name: ModuleId, project: ProjectOption = None) -> None:
    """Close a module's connection and forget its keys.

    Example: headrace device module delete press-7 camera
    """
    _with(project, lambda platform: platform.device_commands.delete_module(id, name))
    out.print(f"{id}/{name}: deleted", markup=False)


def _print(found: Module, project: str | None, as_json: bool) -> None:
    text = build(assembly.Platform(load_project(project)).hostname, found.device, found.primary_key, module_id=found.id)
    if as_json:
        print_json({"deviceId": found.device, "moduleId": found.id, "connectionString": text})
    else:
        print(text)


def _with(project: str | None, work: Callable[[Platform], Awaitable[T]]) -> T:
    async def all_of_it() -> T:
        platform = assembly.Platform(load_project(project))
        try:
            return await work(platform)
        finally:
            await platform.close()

    return run(all_of_it())
