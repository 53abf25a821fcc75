"""`headrace device`: what a device does now: telemetry, messages to it, methods, and why it is not there."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from headrace import assembly
from headrace.assembly.why import device_why
from headrace.cli.device import DeviceId
from headrace.cli.hub_client import hub_client, quoted
from headrace.cli.hub_telemetry import FollowOption, LastOption, StreamOption, TimeoutOption, show_telemetry
from headrace.cli.session import JsonOption, ProjectOption, out, print_json, run
from headrace.core.config import load_project
from headrace.core.errors import UserError

ModuleOption = Annotated[str | None, typer.Option("--module", help="A module of the device instead of itself.")]


def add_to(devices: typer.Typer) -> None:
    devices.command("why")(why)
    devices.command("telemetry")(telemetry)
    devices.command("invoke")(invoke)
    devices.command("send")(send)


def why(id: DeviceId, project: ProjectOption = None, as_json: JsonOption = False) -> None:
    """Why a device is not connected, or what disturbs it: what happened last, and what to do.

    Works for ids that nobody registered too: a wrong name, key, clock or host is remembered by the id that was claimed.

    Example: headrace device why press-7
    """

    async def work() -> dict[str, Any]:
        platform = assembly.Platform(load_project(project))
        try:
            return await device_why(platform, id)
        finally:
            await platform.close()

    found = run(work())
    if as_json:
        print_json(found)
        return
    first, *others = found["sentences"]
    out.print(first, style="bold", markup=False)
    for sentence in others:
        out.print(sentence, markup=False)
    for each in found["advice"]:
        out.print("  [bold]try[/]: ", end="")
        out.print(each, markup=False)
    for step in found["history"][-5:]:
        what = "came" if step["connected"] else f"went ({step['reason'].replace('_', ' ')})"
        out.print(f"  {step['time'][:19]}Z  {what}  {step['address']}", style="dim", markup=False)


def telemetry(
    id: DeviceId,
    last: LastOption = None,
    follow: FollowOption = False,
    timeout: TimeoutOption = 0.0,
    stream: StreamOption = "",
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """What was received from a device; see `headrace hub telemetry --help`.

    Example: headrace device telemetry press-7 --last 5 --follow
    """
    show_telemetry(id, last, follow, timeout, stream, project, as_json)


def invoke(
    id: DeviceId,
    method: Annotated[str, typer.Argument(metavar="METHOD", help="The method's name.")],
    payload: Annotated[str, typer.Argument(metavar="[PAYLOAD]", help="JSON for it.")] = "null",
    module: ModuleOption = None,
    timeout: Annotated[int, typer.Option(help="Seconds for its answer.", min=5, max=300)] = 30,
    connect_timeout: Annotated[int, typer.Option(help="Seconds to wait until it connects.", min=0, max=300)] = 0,
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Invoke a direct method on a device that is connected, and print its answer.

    Example: headrace device invoke press-7 reboot '{"delay": 5}'
    """
    value = json_of(payload, "PAYLOAD")

    async def work() -> dict[str, Any]:
        async with hub_client(load_project(project)) as hub:
            return await hub.invoke(
                quoted(id, module), method, value, response_timeout_s=timeout, connect_timeout_s=connect_timeout
            )

    answer = run(work())
    if as_json:
        print_json(answer)
    else:
        out.print(f"status {answer['status']}", markup=False)
        print(json.dumps(answer["payload"], indent=2, ensure_ascii=False))


def send(
    id: DeviceId,
    message: Annotated[str, typer.Argument(metavar="MESSAGE", help="The message's body, as text.")],
    properties: Annotated[
        list[str] | None,
        typer.Option("--property", "-P", help="NAME=VALUE (names become lower case). Can be repeated."),
    ] = None,
    content_type: Annotated[str, typer.Option(help="Its content type.")] = "",
    message_id: Annotated[str, typer.Option(help="An id of your own.")] = "",
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a message into a device's mailbox; it gets it when it is connected and subscribed.

    Example: headrace device send press-7 'slow down' --property level=2
    """
    headers = {f"iothub-app-{name}": value for name, value in (_pair(each) for each in properties or ())}
    if content_type:
        headers["iothub-contenttype"] = content_type
    if message_id:
        headers["iothub-messageid"] = message_id

    async def work() -> str:
        async with hub_client(load_project(project)) as hub:
            return await hub.send(id, message.encode(), headers)

    sent = run(work())
    if as_json:
        print_json({"deviceId": id, "messageId": sent})
    else:
        out.print(f"{id}: message {sent} waits for it", markup=False)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UserError(f"--property {text[:80]!r} is no NAME=VALUE", hint="--property level=2")
    return name, value


def json_of(text: str, name: str) -> Any:
    """Raises UserError that shows where it is wrong."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as exc:
        raise UserError(
            f"{name} is not JSON: {exc.msg} at character {exc.pos + 1}",
            hint="quote it: '{\"speed\": 5}'",
            code="cli.json",
        ) from exc
