"""`headrace device show`, `twin` and `tags`: what is wanted of a device, what it says of itself, what people noted."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from headrace.cli.device import DeviceId
from headrace.cli.device_live import ModuleOption, json_of
from headrace.cli.hub_client import hub_client, quoted
from headrace.cli.session import JsonOption, ProjectOption, out, print_json, run
from headrace.core.config import load_project
from headrace.core.errors import UserError

twin = typer.Typer(help="A device's twin: desired and reported properties, tags.", no_args_is_help=True)
HIDDEN = ("properties", "tags", "x509Thumbprint", "capabilities")

Patch = Annotated[str, typer.Argument(metavar="JSON", help="A JSON object; null removes a key.")]
ReplaceOption = Annotated[bool, typer.Option("--replace", help="Set it as a whole instead of merging.")]


def add_to(devices: typer.Typer) -> None:
    devices.command("show")(show)
    devices.command("tags")(tags)
    devices.add_typer(twin, name="twin")


def show(id: DeviceId, module: ModuleOption = None, project: ProjectOption = None, as_json: JsonOption = False) -> None:
    """Everything the hub knows of a device except its keys: state, tags, desired and reported properties.

    Example: headrace device show press-7
    """
    found = _get(project, quoted(id, module))
    if as_json:
        print_json(found)
        return
    for name, value in found.items():
        if name not in HIDDEN and value not in (None, ""):
            out.print(f"{name:26}{value}", markup=False)
    for name, value in (("tags", found["tags"]), *found["properties"].items()):
        shown = {key: each for key, each in value.items() if not key.startswith("$")}
        out.print(f"{name:26}", end="", markup=False)
        out.print_json(data=shown)


@twin.command("get")
def get(id: DeviceId, module: ModuleOption = None, project: ProjectOption = None) -> None:
    """The whole twin as JSON, with versions and metadata.

    Example: headrace device twin get press-7 | jq .properties.reported
    """
    print_json(_get(project, quoted(id, module)))


@twin.command("set")
def set_desired(
    id: DeviceId,
    patch: Patch,
    module: ModuleOption = None,
    replace: ReplaceOption = False,
    etag: Annotated[str, typer.Option(help="Only if the twin still has this etag.")] = "*",
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change desired properties: merged into what is there. A device that is connected hears of it at once.

    Example: headrace device twin set press-7 '{"interval": 10, "old": null}'
    """
    changed = _change(project, quoted(id, module), {"properties": {"desired": _object(patch)}}, replace, etag)
    if as_json:
        print_json(changed)
    else:
        out.print(f"{id}: desired is at version {changed['properties']['desired']['$version']}", markup=False)


def tags(
    id: DeviceId,
    patch: Annotated[str, typer.Argument(metavar="[JSON]", help="An object to merge; null removes a key.")] = "",
    module: ModuleOption = None,
    replace: ReplaceOption = False,
    project: ProjectOption = None,
) -> None:
    """Show a device's tags, after merging JSON into them where it is given. The device itself never sees them.

    Example: headrace device tags press-7 '{"floor": 3, "line": "A"}'
    """
    path = quoted(id, module)
    found = _change(project, path, {"tags": _object(patch)}, replace, "*") if patch else _get(project, path)
    print_json(found["tags"])


def _get(project: str | None, path: str) -> dict[str, Any]:
    async def work() -> dict[str, Any]:
        async with hub_client(load_project(project)) as hub:
            return await hub.twin(path)

    return run(work())


def _change(project: str | None, path: str, patch: dict[str, Any], replace: bool, etag: str) -> dict[str, Any]:
    async def work() -> dict[str, Any]:
        async with hub_client(load_project(project)) as hub:
            return await hub.change_twin(path, patch, replace=replace, etag=etag)

    return run(work())


def _object(text: str) -> dict[str, Any]:
    value = json_of(text, "JSON")
    if not isinstance(value, dict):
        raise UserError("JSON must be an object", hint="'{\"speed\": 5}'", code="cli.json")
    return value
