"""`headrace simulate`: a blueprint's devices, over real MQTT."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.live import Live
from rich.text import Text

from headrace import assembly
from headrace.blueprints.spec import Simulation
from headrace.cli.init import blueprint
from headrace.cli.session import ProjectOption, err, run
from headrace.core import runstate
from headrace.core.clock import SystemClock
from headrace.core.config import Project, load_project
from headrace.core.errors import Unavailable, UserError
from headrace.gateway.client import DeviceClient, Message

NEW_DEVICE_S = 5.0
"""How long a gateway may take to hear of a device that was registered a moment ago."""


def register(app: typer.Typer) -> None:
    app.command()(simulate)


def simulate(
    name: Annotated[str, typer.Argument(metavar="BLUEPRINT", help="Whose plant to simulate, e.g. factory.")],
    project: ProjectOption = None,
    devices: Annotated[int, typer.Option(help="How many machines.", min=1)] = 50,
    rate: Annotated[float, typer.Option(help="Messages a second, all machines together. Default: one each.")] = 0.0,
    duration: Annotated[float, typer.Option("--for", help="Seconds; 0 runs until Ctrl-C.")] = 0.0,
    seed: Annotated[int, typer.Option(help="The same seed is the same plant.")] = 1,
) -> None:
    """Connect simulated machines to a running project and let them send.

    Example: headrace simulate factory --devices 100 --for 60
    """
    loaded = load_project(project)
    spec = blueprint(name)
    if spec.simulate is None:
        raise UserError(f"blueprint {name!r} has no simulator", hint="try `headrace simulate factory`")
    rate = rate or float(devices)
    plant = spec.simulate(seed, devices, SystemClock().now(), devices / rate)
    run(send(loaded, plant, period_s=devices / rate, duration_s=duration))


async def send(project: Project, plant: Simulation, *, period_s: float, duration_s: float) -> None:
    """Register the plant's devices, connect each on a connection of its own, and send one reading each per period."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    clients = await connect(project, plant.devices, plant.sites)
    sent, started = 0, time.monotonic()
    try:
        with Live(Text(""), console=err, refresh_per_second=2, transient=True) as live:
            while not stop.is_set() and (not duration_s or time.monotonic() - started < duration_s):
                bodies = plant.step()
                due = started + (sent // len(clients)) * period_s
                sent += await _spread(clients, bodies, due, period_s, stop)
                acked = sum(client.acked for client in clients)
                seconds = time.monotonic() - started
                live.update(
                    Text(f"{len(clients)} devices  {sent:,} sent  {acked:,} acknowledged  {sent / seconds:,.0f}/s")
                )
        for client in clients:
            await client.drain(timeout_s=10)
    finally:
        acked = sum(client.acked for client in clients)
        await asyncio.gather(*(client.close() for client in clients), return_exceptions=True)
        err.print(f"{sent:,} sent, {acked:,} acknowledged (each is on disk), {len(clients)} devices")


async def connect(project: Project, devices: Sequence[str], sites: Sequence[str]) -> list[DeviceClient]:
    """A connected client for each device, registering those that are new. Raises Unavailable when no gateway runs."""
    state = runstate.read(project, "gateway")
    if state is None or state.state != "ready":
        raise Unavailable(f"no gateway runs in {project.folder}", hint="start it with `headrace up --detach`")
    platform = assembly.Platform(project)
    try:
        strings = await platform.device_strings(devices, sites)
        clients = [platform.client(strings[device], state.addresses) for device in devices]
    finally:
        await platform.close()
    for start in range(0, len(clients), 100):
        await asyncio.gather(*(_connected(client) for client in clients[start : start + 100]))
    return clients


async def _connected(client: DeviceClient) -> None:
    """Connect a device that may be so new that the gateway has not heard of it yet."""
    deadline = time.monotonic() + NEW_DEVICE_S
    while True:
        try:
            return await client.connect()
        except UserError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)


async def _spread(
    clients: list[DeviceClient], bodies: Sequence[bytes], due: float, period_s: float, stop: asyncio.Event
) -> int:
    """Send one body a client, spread evenly over the period in slices of about 10 ms. Returns how many were sent."""
    slices = max(1, min(len(clients), int(period_s / 0.01)))
    size = -(-len(clients) // slices)
    for index, first in enumerate(range(0, len(clients), size)):
        wait = due + index * period_s / slices - time.monotonic()
        if wait > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), wait)
        if stop.is_set():
            return first
        for client, body in zip(clients[first : first + size], bodies[first : first + size], strict=True):
            await client.publish_many([Message(body)])
    return len(clients)
