"""`headrace hub throttled` and `headrace hub route`: whom the hub holds back, and where it sends what it receives."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from headrace import assembly
from headrace.cli.session import JsonOption, ProjectOption, out, print_json, run
from headrace.core.clock import to_iso
from headrace.core.config import load_project
from headrace.core.errors import UserError
from headrace.devices.routes import MESSAGES, Source, Subject
from headrace.devices.twins import TwinService
from headrace.gateway.limits_throttled import throttled as list_throttled
from headrace.wire.iothub.topics import Identity

route = typer.Typer(help="Message routes of headrace.toml.", no_args_is_help=True)


def add_to(hub: typer.Typer) -> None:
    hub.command("throttled")(throttled)
    hub.add_typer(route, name="route")


def throttled(
    device: Annotated[str | None, typer.Option("--device", "-d", help="Only this device.")] = None,
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Who was held back: at which limit, how often, for how long and since when; the last one first.

    A row without a device is the hub as a whole. With --json: device, limit, count, waited_s, since, last.

    Example: headrace hub throttled
    """

    async def work() -> list[dict[str, Any]]:
        platform = assembly.Platform(load_project(project))
        try:
            return await list_throttled(platform.docs, device=device)
        finally:
            await platform.close()

    rows = [{**row, "since": to_iso(row["since"]), "last": to_iso(row["last"])} for row in run(work())]
    if as_json:
        print_json(rows)
        return
    table = Table(box=None, pad_edge=False)
    for column in ("device", "limit", "held back", "longest wait", "since", "last"):
        table.add_column(column)
    for row in rows:
        count, wait = f"{row['count']:,}", f"{row['waited_s']:.3g} s"
        table.add_row(
            row["device"] or "(the hub)", row["limit"], count, wait, row["since"][:19] + "Z", row["last"][:19] + "Z"
        )
    out.print(table if rows else "nobody was held back")


@route.command("list")
def list_routes(project: ProjectOption = None, as_json: JsonOption = False) -> None:
    """The routes, after checking that each of them can be.

    Example: headrace hub route list
    """
    settings = load_project(project)
    _ = assembly.Platform(settings).routing  # raises what is wrong with one
    routes = settings.settings.routes
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "source": each.source,
            "condition": each.condition,
            "endpoints": list(each.endpoints),
            "enabled": each.enabled,
        }
        for name, each in routes.items()
    ]
    if as_json:
        print_json(rows)
        return
    table = Table(box=None, pad_edge=False)
    for column in ("name", "source", "condition", "endpoints", "enabled"):
        table.add_column(column)
    for row in rows:
        table.add_row(row["name"], row["source"], row["condition"], " ".join(row["endpoints"]), str(row["enabled"]))
    out.print(table)
    out.print(f"what fits none: {'telemetry' if settings.settings.hub.fallback else 'dropped'}")


@route.command("test")
def try_route(
    message: Annotated[str, typer.Option("--message", "-m", help="The body, as text.")] = "{}",
    properties: Annotated[
        list[str] | None, typer.Option("--property", "-P", help="NAME=VALUE, an application property. Can be repeated.")
    ] = None,
    device: Annotated[str, typer.Option("--device", "-d", help="Whose message it is, and whose twin counts.")] = "",
    content_type: Annotated[str, typer.Option(help="Its content type.")] = "application/json",
    encoding: Annotated[str, typer.Option(help="Its content encoding.")] = "utf-8",
    source: Annotated[str, typer.Option(help="The source of the routes to try.")] = MESSAGES,
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Which routes a message fits, and where it would go. Nothing is sent.

    Example: headrace hub route test --message '{"temperature": 91}' --property level=hot
    """
    application: dict[str, str | None] = {}
    for each in properties or ():
        name, equals, value = each.partition("=")
        if not name or not equals:
            raise UserError(f"--property {each[:80]!r} is no NAME=VALUE", hint="--property level=hot")
        application[name] = value

    async def work() -> dict[str, Any]:
        platform = assembly.Platform(load_project(project))
        try:
            twin = None
            if device:
                twin = await TwinService(platform.docs, platform.clock, random_bytes=bytes).get(Identity(device))
            system = {
                "content-type": content_type,
                "content-encoding": encoding,
                "iothub-connection-device-id": device,
                "iothub-enqueuedtime": to_iso(platform.clock.now()),
            }
            subject, wanted = Subject(system, application, message.encode(), twin), _source(source)
            routing = platform.routing
            return {"routes": routing.matching(wanted, subject), "endpoints": routing.endpoints(wanted, subject)}
        finally:
            await platform.close()

    found = run(work())
    if as_json:
        print_json(found)
    else:
        out.print(f"fits: {', '.join(found['routes']) or 'no route'}", markup=False)
        out.print(f"goes to: {', '.join(found['endpoints']) or 'nowhere'}", markup=False)


def _source(text: str) -> Source:
    known: tuple[Source, ...] = (
        "DeviceMessages",
        "TwinChangeEvents",
        "DeviceLifecycleEvents",
        "DeviceConnectionStateEvents",
    )
    for each in known:
        if each.lower() == text.lower():
            return each
    raise UserError(f"--source {text[:40]!r} is none", hint=f"one of: {', '.join(known)}")
