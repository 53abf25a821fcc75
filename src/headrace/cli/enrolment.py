"""`headrace enrolment`: which devices may register themselves, one by one or as a group."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.table import Table

from headrace import assembly
from headrace.cli.session import JsonOption, ProjectOption, out, print_json, run
from headrace.core.clock import to_iso
from headrace.core.config import load_project
from headrace.core.errors import UserError
from headrace.devices.enrolments import Allocation, Attestation, Enrolled, Enrolment, EnrolmentQueries, Kind
from headrace.devices.provisioning import RegistrationQueries
from headrace.devices.provisioning_allocation import candidates
from headrace.gateway.provisioning_part import linked_hubs
from headrace.gateway.provisioning_shapes import enrolment_json, registration_json
from headrace.wire.iothub.provisioning import derive_key

enrolments = typer.Typer(help="Enrolments: which devices may register themselves, and as what.", no_args_is_help=True)
groups = typer.Typer(
    help="Groups: many devices that share a key, or who issues their certificates.", no_args_is_help=True
)
T = TypeVar("T")
PAGE = 1000

Id = Annotated[str, typer.Argument(metavar="ID", help="The registration id, as the device will say it.")]
GroupId = Annotated[str, typer.Argument(metavar="GROUP", help="The group's name.")]
KeyOption = Annotated[str, typer.Option(help="Base64 of 16 to 64 bytes. Default: one is made.")]
HubOption = Annotated[
    list[str] | None,
    typer.Option("--hub", help="A linked hub, by name or host (`this` is this one); may be given several times."),
]
AllocationOption = Annotated[str, typer.Option(help="hashed, geoLatency (by site) or static. Default: [provisioning].")]
SiteOption = Annotated[str, typer.Option(help="Where the device stands.")]
TagsOption = Annotated[str, typer.Option(help="The twin's first tags, a JSON object.")]
DesiredOption = Annotated[str, typer.Option(help="The twin's first desired properties, a JSON object.")]
PayloadOption = Annotated[str, typer.Option(help="JSON that the device is handed when it registers.")]
EdgeOption = Annotated[bool, typer.Option("--edge", help="It becomes an edge device.")]
MoveOption = Annotated[bool, typer.Option(help="Whether a registration may move the device to another hub.")]
MigrateOption = Annotated[bool, typer.Option(help="Whether a device that moves takes its twin along.")]
DisabledOption = Annotated[bool, typer.Option("--disabled", help="Refuse it until it is enabled.")]
KeysOption = Annotated[bool, typer.Option("--keys", help="Show the keys too.")]


def register(app: typer.Typer) -> None:
    enrolments.add_typer(groups, name="group")
    app.add_typer(enrolments, name="enrolment")


@enrolments.command("create")
def create(
    id: Id,
    project: ProjectOption = None,
    device: Annotated[str, typer.Option(help="The device's id at its hub. Default: the registration id.")] = "",
    primary_key: KeyOption = "",
    secondary_key: KeyOption = "",
    certificate: Annotated[Path | None, typer.Option(help="The device's own certificate, PEM.")] = None,
    thumbprint: Annotated[str, typer.Option(help="SHA-1 or SHA-256 of the device's certificate, hexadecimal.")] = "",
    entity: Annotated[str, typer.Option(help="The machine, patient, … that it belongs to.")] = "",
    hub: HubOption = None,
    allocation: AllocationOption = "",
    site: SiteOption = "",
    tags: TagsOption = "",
    desired: DesiredOption = "",
    payload: PayloadOption = "",
    edge: EdgeOption = False,
    move: MoveOption = True,
    migrate: MigrateOption = True,
    disabled: DisabledOption = False,
    as_json: JsonOption = False,
) -> None:
    """Let one device register: with a key, which is made and printed, or with a certificate of its own.

    Example: headrace enrolment create press-7 --site north --json
    """
    pems = () if certificate is None else (_read(certificate),)
    known = Attestation(type="x509", certificates=pems, thumbprints=(thumbprint,) if thumbprint else ())
    keyed = Attestation(primary_key=primary_key, secondary_key=secondary_key)
    wanted = Enrolment(
        id=id,
        attestation=known if pems or thumbprint else keyed,
        device_id=device,
        entity_id=entity,
        **_shared(hub, allocation, site, tags, desired, payload, edge, move, migrate, disabled),
    )
    _create("individual", wanted, project, as_json)


@groups.command("create")
def create_group(
    group: GroupId,
    project: ProjectOption = None,
    primary_key: KeyOption = "",
    secondary_key: KeyOption = "",
    signing: Annotated[
        list[Path] | None, typer.Option(help="A certificate that issues the devices' own, PEM; two at most.")
    ] = None,
    ca: Annotated[list[str] | None, typer.Option(help="A registered and verified authority, by name.")] = None,
    hub: HubOption = None,
    allocation: AllocationOption = "",
    site: SiteOption = "",
    tags: TagsOption = "",
    desired: DesiredOption = "",
    payload: PayloadOption = "",
    edge: EdgeOption = False,
    move: MoveOption = True,
    migrate: MigrateOption = True,
    disabled: DisabledOption = False,
    as_json: JsonOption = False,
) -> None:
    """Let every device register that has a key derived from the group's, or a certificate that leads to its authority.

    Example: headrace enrolment group create line-4 --site north --json
    """
    pems = tuple(_read(path) for path in signing or ())
    issued = Attestation(type="x509", signing=pems, authorities=tuple(ca or ()))
    keyed = Attestation(primary_key=primary_key, secondary_key=secondary_key)
    wanted = Enrolment(
        id=group,
        attestation=issued if pems or ca else keyed,
        **_shared(hub, allocation, site, tags, desired, payload, edge, move, migrate, disabled),
    )
    _create("group", wanted, project, as_json)


@enrolments.command("list")
def list_enrolments(project: ProjectOption = None, as_json: JsonOption = False) -> None:
    """List individual enrolments.

    Example: headrace enrolment list --json
    """
    _list("individual", project, as_json)


@groups.command("list")
def list_groups(project: ProjectOption = None, as_json: JsonOption = False) -> None:
    """List enrolment groups.

    Example: headrace enrolment group list
    """
    _list("group", project, as_json)


@enrolments.command("show")
def show(id: Id, project: ProjectOption = None, keys: KeysOption = False) -> None:
    """One enrolment as JSON, with the registration that came of it.

    Example: headrace enrolment show press-7 --keys
    """
    _show("individual", id, project, keys)


@groups.command("show")
def show_group(group: GroupId, project: ProjectOption = None, keys: KeysOption = False) -> None:
    """One group as JSON.

    Example: headrace enrolment group show line-4 --keys
    """
    _show("group", group, project, keys)


@enrolments.command("delete")
def delete(id: Id, project: ProjectOption = None) -> None:
    """Forget an enrolment; the device that was made of it stays.

    Example: headrace enrolment delete press-7
    """
    _delete("individual", id, project)


@groups.command("delete")
def delete_group(group: GroupId, project: ProjectOption = None) -> None:
    """Forget a group; the devices that were made of it stay.

    Example: headrace enrolment group delete line-4
    """
    _delete("group", group, project)


@enrolments.command("enable")
def enable(id: Id, project: ProjectOption = None) -> None:
    """Let a device register again.

    Example: headrace enrolment enable press-7
    """
    _set_enabled("individual", id, True, project)


@enrolments.command("disable")
def disable(id: Id, project: ProjectOption = None) -> None:
    """Refuse a device that wants to register, also where a group would let it in.

    Example: headrace enrolment disable press-7
    """
    _set_enabled("individual", id, False, project)


@groups.command("enable")
def enable_group(group: GroupId, project: ProjectOption = None) -> None:
    """Let the devices of a group register again.

    Example: headrace enrolment group enable line-4
    """
    _set_enabled("group", group, True, project)


@groups.command("disable")
def disable_group(group: GroupId, project: ProjectOption = None) -> None:
    """Refuse the devices of a group that want to register; those that have stay as they are.

    Example: headrace enrolment group disable line-4
    """
    _set_enabled("group", group, False, project)


@groups.command("key")
def key(
    group: GroupId,
    id: Id,
    secondary: Annotated[bool, typer.Option("--secondary", help="From the group's secondary key.")] = False,
    project: ProjectOption = None,
) -> None:
    """Print the key that a device of a group registers and connects with.

    Example: headrace enrolment group key line-4 press-7
    """
    found = _with(project, lambda platform: EnrolmentQueries(platform.docs).get("group", group))
    attestation = found.enrolment.attestation
    if attestation.type != "symmetricKey":
        raise UserError(f"group {group!r} has no keys", hint="its devices have certificates", code="enrolment.keys")
    print(derive_key(attestation.keys[secondary], id))


@groups.command("registrations")
def registrations(group: GroupId, project: ProjectOption = None, as_json: JsonOption = False) -> None:
    """The devices of a group that have registered, and where they were assigned.

    Example: headrace enrolment group registrations line-4 --json
    """

    async def work(platform: assembly.Platform) -> list[dict[str, Any]]:
        known = (await EnrolmentQueries(platform.docs).get("group", group)).enrolment.id
        queries, after, rows = RegistrationQueries(platform.docs), "", list[dict[str, Any]]()
        while page := await queries.of_group(known, after=after, limit=PAGE):
            rows += [registration_json(found) for found in page]
            after = page[-1].registration.id
        return rows

    rows = _with(project, work)
    if as_json:
        print_json(rows)
        return
    fields = {
        "registration": "registrationId",
        "device": "deviceId",
        "hub": "assignedHub",
        "last": "lastUpdatedDateTimeUtc",
    }
    table = Table(*fields, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(str(row[name]) for name in fields.values()))
    out.print(table)


def _create(kind: Kind, wanted: Enrolment, project: str | None, as_json: bool) -> None:
    async def work(platform: assembly.Platform) -> tuple[Enrolled, str]:
        candidates(linked_hubs(platform.settings.provisioning, platform.hostname), wanted.hubs)
        scope = (await platform.provisioning.ensure()).id_scope
        return await platform.enrolments.put(kind, wanted), scope

    found, scope = _with(project, work)
    if as_json:
        print_json({"idScope": scope, **enrolment_json(found, keys=True)})
        return
    out.print(f"{found.label}: ID scope {scope}", markup=False)
    if found.enrolment.attestation.type == "symmetricKey":
        for name, value in zip(("primary", "secondary"), found.enrolment.attestation.keys, strict=True):
            out.print(f"{name} key  {value}", markup=False)


def _list(kind: Kind, project: str | None, as_json: bool) -> None:
    async def work(platform: assembly.Platform) -> list[Enrolled]:
        queries, found = EnrolmentQueries(platform.docs), list[Enrolled]()
        while page := await queries.list(kind, after=found[-1].enrolment.id if found else "", limit=PAGE):
            found += page
        return found

    found = _with(project, work)
    if as_json:
        print_json([enrolment_json(each, keys=False) for each in found])
        return
    table = Table(
        "group" if kind == "group" else "enrolment", "state", "by", "site", "changed", box=None, pad_edge=False
    )
    for each in found:
        enrolment = each.enrolment
        state = "enabled" if enrolment.enabled else "disabled"
        changed = to_iso(enrolment.updated)[:19]
        table.add_row(enrolment.id, state, enrolment.attestation.type, enrolment.site, changed)
    out.print(table)


def _show(kind: Kind, id: str, project: str | None, keys: bool) -> None:
    async def work(platform: assembly.Platform) -> dict[str, Any]:
        found = await EnrolmentQueries(platform.docs).get(kind, id)
        registration = await RegistrationQueries(platform.docs).find(id) if kind == "individual" else None
        return enrolment_json(found, keys=keys, registration=registration)

    print_json(_with(project, work))


def _delete(kind: Kind, id: str, project: str | None) -> None:
    _with(project, lambda platform: platform.enrolments.delete(kind, id))
    out.print(f"{id}: deleted", markup=False)


def _set_enabled(kind: Kind, id: str, enabled: bool, project: str | None) -> None:
    _with(project, lambda platform: platform.enrolments.set_enabled(kind, id, enabled))
    out.print(f"{id}: {'enabled' if enabled else 'disabled'}", markup=False)


def _with(project: str | None, work: Callable[[assembly.Platform], Awaitable[T]]) -> T:
    """Run `work` with a platform that is closed behind it."""

    async def main() -> T:
        platform = assembly.Platform(load_project(project))
        try:
            return await work(platform)
        finally:
            await platform.close()

    return run(main())


def _shared(
    hub: list[str] | None,
    allocation: str,
    site: str,
    tags: str,
    desired: str,
    payload: str,
    edge: bool,
    move: bool,
    migrate: bool,
    disabled: bool,
) -> dict[str, Any]:
    """The fields that single enrolments and groups have alike. Raises UserError."""
    known: dict[str, Allocation] = {"hashed": "hashed", "geolatency": "geoLatency", "static": "static"}
    if allocation and allocation.lower() not in known:
        raise UserError(f"no allocation {allocation!r}", hint=f"use {', '.join(known.values())}", code="cli.option")
    return {
        "hubs": tuple(hub or ()),
        "allocation": known.get(allocation.lower(), ""),
        "site": site,
        "tags": _json("--tags", tags) if tags else {},
        "desired": _json("--desired", desired) if desired else {},
        "payload": _json("--payload", payload) if payload else None,
        "iot_edge": edge,
        "update_hub": move,
        "migrate": migrate,
        "enabled": not disabled,
    }


def _json(option: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as exc:
        raise UserError(f"{option} is no JSON: {exc}", hint="quote it: '{\"line\": 4}'", code="cli.option") from exc


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as exc:
        raise UserError(f"{path} cannot be read as PEM", hint="name a PEM file", code="cli.file") from exc
