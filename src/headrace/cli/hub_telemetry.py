"""`headrace hub telemetry`: what was received from one device; `headrace device telemetry` is the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any

import typer

from headrace import assembly
from headrace.assembly.received import POLL_S, Received
from headrace.cli.session import JsonOption, ProjectOption, out, run
from headrace.core.config import Project, load_project
from headrace.core.errors import NotFound, nearest

NEAR_MAX = 1000

LastOption = Annotated[int | None, typer.Option("--last", help="Only the last N messages. Default: all kept.", min=0)]
FollowOption = Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C or --timeout.")]
TimeoutOption = Annotated[
    float,
    typer.Option(
        "--timeout", help="With --follow: stop after so many seconds. Without: wait so long for a message.", min=0
    ),
]
StreamOption = Annotated[str, typer.Option("--stream", help="Only this stream. Default: wherever routes lead.")]


def telemetry(
    device: Annotated[str, typer.Option("--device", "-d", help="The device's id.")],
    last: LastOption = None,
    follow: FollowOption = False,
    timeout: TimeoutOption = 0.0,
    stream: StreamOption = "",
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print what was received from a device, oldest first; with --json one object a line.

    Its keys: body, bodyEncoding (json, text or base64), properties (the application's), systemProperties (message-id,
    content-type, iothub-connection-device-id, iothub-connection-auth-method, iothub-enqueuedtime …), enqueuedTime, deviceId,
    moduleId, eventId, stream, partition, offset. With --last N and --timeout S it waits until there are N.

    Example: headrace hub telemetry --device press-7 --last 10 --json
    """
    show_telemetry(device, last, follow, timeout, stream, project, as_json)


def show_telemetry(
    device: str, last: int | None, follow: bool, timeout_s: float, stream: str, project: str | None, as_json: bool
) -> None:
    work = _print(load_project(project), device, last, follow, timeout_s, stream, _line if as_json else _text)
    run(work)


async def _print(
    project: Project,
    device: str,
    last: int | None,
    follow: bool,
    timeout_s: float,
    stream: str,
    say: Callable[[dict[str, Any]], None],
) -> None:
    platform = assembly.Platform(project)
    try:
        end = platform.clock.monotonic() + timeout_s
        received = Received(platform, device, stream=stream)
        found = await received.last(last)
        while not follow and len(found) < (last if last is not None else 1) and platform.clock.monotonic() < end:
            fresh = await received.more()
            found += fresh
            if not fresh:
                await platform.clock.sleep(POLL_S)
        if not (found or follow):
            await _check_known(platform, device)
        for each in found[-last:] if last else found:
            say(each)
        if follow:
            async for each in received.follow(end if timeout_s else float("inf")):
                say(each)
    finally:
        await platform.close()


async def _check_known(platform: assembly.Platform, device: str) -> None:
    """Raises NotFound for a device that nobody registered: more likely a slip than a silent device."""
    if await platform.device_queries.registered(device) is None:
        names = [each.id for each in await platform.device_queries.list(limit=NEAR_MAX)]
        hint = nearest(device, names) or "`headrace device list` shows all"
        raise NotFound(
            f"nothing was received from {device!r}, and there is no such device", hint=hint, code="device.not_found"
        )


def _line(message: dict[str, Any]) -> None:
    print(json.dumps(message, ensure_ascii=False), flush=True)


def _text(message: dict[str, Any]) -> None:
    whose = message["deviceId"] + (f"/{message['moduleId']}" if message["moduleId"] else "")
    out.print(f"[dim]{message['enqueuedTime'][:23]}Z[/] [bold]{whose}[/]", end=" ")
    body = message["body"]
    out.print(body if isinstance(body, str) else json.dumps(body, ensure_ascii=False), markup=False, end="")
    said = " ".join(f"{name}={value}" for name, value in message["properties"].items())
    out.print(f"  {said}" if said else "", markup=False)
