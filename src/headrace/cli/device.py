"""`headrace device`: who may connect. What devices do is in device_live, device_twin and device_module."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from headrace import assembly
from headrace.cli.session import JsonOption, ProjectOption, out, print_json, run
from headrace.core.config import load_project
from headrace.devices.connection_string import build

devices = typer.Typer(
    help="Devices: who may connect, what they are told, what they say, and why one is not there.", no_args_is_help=True
)

DeviceId = Annotated[str, typer.Argument(metavar="ID", help="The device id, as the device will say it.")]


def register(app: typer.Typer) -> None:
    from headrace.cli import device_import, device_live, device_module, device_twin

    for more in (device_live, device_twin, device_module, device_import):
        more.add_to(devices)
    app.add_typer(devices, name="device")


@devices.command("create")
def create(
    id: DeviceId,
    project: ProjectOption = None,
    entity: Annotated[
        str, typer.Option(help="The machine, patient, … that it belongs to. Default: the device itself.")
    ] = "",
    site: Annotated[str, typer.Option(help="Where it stands.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Register a device and print its connection string.

    Example: headrace device create press-7 --json
    """

    async def work() -> None:
        platform = assembly.Platform(load_project(project))
        try:
            device = await platform.device_commands.create(id, entity_id=entity or id, site=site)
            text = build(platform.hostname, device.id, device.primary_key)
            if as_json:
                print_json({"deviceId": device.id, "connectionString": text, "status": device.status})
            else:
                print(text)
        finally:
            await platform.close()

    run(work())


@devices.command("create-many")
def create_many(
    count: Annotated[int, typer.Option(help="How many.", min=1)],
    prefix: Annotated[str, typer.Option(help="Their ids are PREFIX-00001 and so on.")] = "device",
    site: Annotated[str, typer.Option(help="Where they stand.")] = "",
    file: Annotated[Path | None, typer.Option("--out", help="Write {device: connection string} to this file.")] = None,
    project: ProjectOption = None,
) -> None:
    """Register many devices at once; those that exist keep their keys.

    Example: headrace device create-many --count 1000 --prefix press --out keys.json
    """

    async def work() -> None:
        platform = assembly.Platform(load_project(project))
        try:
            ids = [f"{prefix}-{number:05d}" for number in range(1, count + 1)]
            strings = await platform.device_strings(ids, [site] * count)
        finally:
            await platform.close()
        text = json.dumps(strings, indent=1)
        if file is None:
            print(text)
        else:
            file.touch(mode=0o600)
            file.write_text(text)
            out.print(f"{count:,} devices; keys in {file}", markup=False)

    run(work())


@devices.command("connection-string")
def connection_string(id: DeviceId, project: ProjectOption = None, as_json: JsonOption = False) -> None:
    """Print the connection string of a device.

    Example: headrace device connection-string press-7
    """

    async def work() -> None:
        platform = assembly.Platform(load_project(project))
        try:
            device = await platform.device_queries.get(id)
            text = build(platform.hostname, id, device.primary_key)
            if as_json:
                print_json({"deviceId": id, "connectionString": text})
            else:
                print(text)
        finally:
            await platform.close()

    run(work())


@devices.command("list")
def list_devices(
    project: ProjectOption = None,
    limit: Annotated[int, typer.Option(help="How many at most.")] = 1000,
    as_json: JsonOption = False,
) -> None:
    """List devices with their state.

    Example: headrace device list --limit 20
    """

    async def work() -> None:
        platform = assembly.Platform(load_project(project))
        try:
            found = await platform.device_queries.list(limit=limit)
            presence = {document.id: document.body for document in await platform.docs.query("presence", limit=limit)}
            rows = [
                {
                    "deviceId": device.id,
                    "status": device.status,
                    "connected": bool(presence.get(device.id, {}).get("connected")),
                    "entityId": device.entity_id,
                    "site": device.site,
                }
                for device in found
            ]
            if as_json:
                print_json(rows)
                return
            table = Table(box=None, pad_edge=False)
            for column in ("device", "status", "connected", "entity", "site"):
                table.add_column(column)
            for row in rows:
                table.add_row(*(str(value if value is not None else "") for value in row.values()))
            out.print(table)
        finally:
            await platform.close()

    run(work())


@devices.command("enable")
def enable(id: DeviceId, project: ProjectOption = None) -> None:
    """Let a device connect again.

    Example: headrace device enable press-7
    """
    _command(project, "enable", id)


@devices.command("disable")
def disable(id: DeviceId, project: ProjectOption = None) -> None:
    """Close a device's connection and refuse it from now on.

    Example: headrace device disable press-7
    """
    _command(project, "disable", id)


@devices.command("delete")
def delete(id: DeviceId, project: ProjectOption = None) -> None:
    """Forget a device and its keys; its events stay.

    Example: headrace device delete press-7
    """
    _command(project, "delete", id)


def _command(project: str | None, verb: str, id: str) -> None:
    async def work() -> None:
        platform = assembly.Platform(load_project(project))
        try:
            await getattr(platform.device_commands, verb)(id)
            out.print(f"{id}: {verb}d", markup=False)
        finally:
            await platform.close()

    run(work())
