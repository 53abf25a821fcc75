"""The hub's processes: `gateway`, and with `[gateway] workers` above 1 also `gateway:2` and so on, which share its ports.

The first that runs decides the ports and the others take exactly those, the first itself too when it comes back: who asks finds
them in the run file of any worker that lives. The broker, and what is done once for the whole hub, is in the first alone.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from headrace.assembly.platform import Platform, device_streams
from headrace.core import runstate
from headrace.core.config import Project, Settings
from headrace.core.errors import NotFound, Unavailable

# Imported where they are used: a part loads what it runs and no more, which is most of its start and of its memory.
if TYPE_CHECKING:
    from headrace.devices.queries import DeviceDirectory
    from headrace.gateway.broker.server import Broker
    from headrace.gateway.server import Gateway, Listening

PART = "gateway"
PORTS_TIMEOUT_S = 60.0
PORTS_EVERY_S = 0.1


def gateway_parts(settings: Settings) -> list[str]:
    """The parts of the gateway, the first worker first."""
    return [PART, *(f"{PART}:{number}" for number in range(2, settings.gateway.workers + 1))]


def is_gateway(part: str) -> bool:
    return part.partition(":")[0] == PART


def bus_name(part: str) -> str:
    """What a worker is called on the bus and in the presence of its devices: `gateway-0` is the first."""
    from headrace.gateway.presence import WORKER

    _, _, number = part.partition(":")
    return f"{PART}-{number}" if number else WORKER


async def run_gateway(
    platform: Platform, part: str, ready: Callable[[dict[str, str]], None], until: Callable[..., Awaitable[None]]
) -> None:
    """Serve devices until `until(*work)` returns; it runs what must go on meanwhile. Raises NotFound for a worker that
    `[gateway] workers` does not allow, Unavailable when the first worker does not start."""
    from headrace.devices.queries import DeviceDirectory

    if part not in gateway_parts(platform.settings):
        raise NotFound(f"no part {part!r}", hint=f"[gateway] workers is {platform.settings.gateway.workers}")
    _allow_descriptors()
    await platform.policies.ensure()
    directory = DeviceDirectory(platform.docs, clock=platform.clock)
    await directory.open()
    gateway = make_gateway(platform, part, directory, await _known_ports(platform, part))
    async with contextlib.AsyncExitStack() as running:
        addresses = addresses_of(platform, await gateway.start())
        running.push_async_callback(gateway.stop)
        if part == PART and platform.settings.broker.enabled:
            addresses |= await running.enter_async_context(_broker(platform, directory))
        ready(addresses)
        await until(directory.run())


def make_gateway(platform: Platform, part: str, directory: DeviceDirectory, ports: Listening | None) -> Gateway:
    from headrace.core.identity import EventIds
    from headrace.gateway.bus import Bus
    from headrace.gateway.server import Gateway

    return Gateway(
        platform.settings.gateway,
        log=platform.log,
        docs=platform.docs,
        directory=directory,
        authority=platform.server_certificate,
        clock=platform.clock,
        metrics=platform.metrics,
        ids=EventIds(os.urandom(16)),
        streams=device_streams(platform.settings),
        ports=ports,
        random_bytes=os.urandom,
        bus=Bus(platform.project.state_folder("run"), bus_name(part)),
        shared=platform.settings.gateway.workers > 1,
        routing=platform.routing,
        limits=platform.settings.limits,
        provisioning=platform.settings.provisioning,
    )


def addresses_of(platform: Platform, listening: Listening) -> dict[str, str]:
    """What the run file says of a worker; `living_ports` reads it back."""
    found = {}
    if listening.mqtt_port >= 0:
        found["mqtt"] = f"mqtts://{platform.hostname}:{listening.mqtt_port}"
    if listening.https_port >= 0:
        found["https"] = f"https://{platform.hostname}:{listening.https_port}"
    if listening.plain_port >= 0:
        found["mqtt-plain"] = f"mqtt://127.0.0.1:{listening.plain_port}"
    return found | {"ca": str(platform.authority.ca_path)}


async def _known_ports(platform: Platform, part: str) -> Listening | None:
    """What other workers listen on; None: this is the first of all and decides. Raises Unavailable."""
    if platform.settings.gateway.workers == 1:
        return None
    for _ in range(int(PORTS_TIMEOUT_S / PORTS_EVERY_S)):
        found = living_ports(platform.project, but=part)
        if found is not None or part == PART:
            return found
        await platform.clock.sleep(PORTS_EVERY_S)
    raise Unavailable(
        f"{part} waited {PORTS_TIMEOUT_S:g} s for the first worker, which decides the ports",
        hint="start `headrace serve gateway`, or all with `headrace up`",
        code="gateway.no_first_worker",
    )


def living_ports(project: Project, *, but: str = "") -> Listening | None:
    """The ports of any worker that is ready, `but` apart."""
    from headrace.gateway.server import Listening

    for state in runstate.read_all(project):
        if is_gateway(state.part) and state.part != but and state.state == "ready":
            ports = (state.addresses.get(name, ":-1") for name in ("mqtt", "https", "mqtt-plain"))
            return Listening(*(int(address.rpartition(":")[2]) for address in ports))
    return None


@asynccontextmanager
async def _broker(platform: Platform, directory: DeviceDirectory) -> AsyncIterator[dict[str, str]]:
    """The broker while it runs; its addresses."""
    broker = make_broker(platform, directory)
    await broker.start()
    try:
        host = platform.settings.broker.host
        found = {}
        if broker.port >= 0:
            found["broker"] = f"mqtt://{host}:{broker.port}"
        if broker.tls_port >= 0:
            found["broker-tls"] = f"mqtts://{host}:{broker.tls_port}"
        yield found
    finally:
        await broker.stop()


def make_broker(platform: Platform, directory: DeviceDirectory) -> Broker:
    from headrace.core.identity import EventIds
    from headrace.gateway.broker.server import Broker

    def registered(device: str) -> bool:
        found = directory.get(device)
        return found is not None and found.enabled

    return Broker(
        platform.settings.broker,
        events=platform.log,
        folder=platform.project.state_folder("broker"),
        clock=platform.clock,
        rng=random.Random(os.urandom(16)),
        metrics=platform.metrics,
        ids=EventIds(os.urandom(16)),
        entropy=os.urandom(16),
        streams=device_streams(platform.settings),
        registered=registered,
        base=platform.project.folder,
    )


def _allow_descriptors() -> None:
    """Each connection is an open file: raise the soft limit to the hard one."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
