"""A console beside a real hub: one gateway on free loopback ports, registry and log in memory, both over the same documents."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from litestar import Litestar
from plant import Incidents, LogHistory, ledger, status

from headrace.core.clock import SystemClock
from headrace.core.config import GatewayConfig, ProjectConfig, Settings, WebConfig
from headrace.core.errors import Unavailable
from headrace.core.identity import EventIds
from headrace.core.observe.metrics import Metrics
from headrace.devices.authority import DevelopmentAuthority
from headrace.devices.commands import DeviceCommands
from headrace.devices.policies import PolicyStore
from headrace.devices.queries import DeviceDirectory, DeviceQueries
from headrace.docstore.memory import MemoryDocStore
from headrace.eventlog.memory import MemoryEventLog
from headrace.gateway.server import Gateway, Listening
from headrace.web.app import create_app
from headrace.web.hub import HubAddress
from headrace.web.services import WebServices

HOST = "127.0.0.1"


class HubStage(NamedTuple):
    app: Litestar
    client: httpx.AsyncClient
    docs: MemoryDocStore
    ports: Listening
    asleep: list[bool]  # not empty: the hub is said to be down

    async def key(self, id: str) -> str:
        return (await DeviceQueries(self.docs).get(id)).primary_key

    async def post(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        return await self.client.post(f"/api/hub{path}", json=body)


@asynccontextmanager
async def hub_stage(folder: Path, *devices: str, web: WebConfig | None = None) -> AsyncIterator[HubStage]:
    clock = SystemClock()
    docs, log = MemoryDocStore(clock), MemoryEventLog(clock)
    policies = {policy.name: policy for policy in await PolicyStore(docs, clock, os.urandom).ensure()}
    for device in devices:
        await DeviceCommands(docs, clock, os.urandom).create(device, site="north")
    directory = DeviceDirectory(docs, clock=clock)
    await directory.open()
    authority = DevelopmentAuthority(folder, clock)
    gateway = Gateway(
        GatewayConfig(mqtt_port=0, https_port=0, plain_mqtt_port=0),
        log=log,
        docs=docs,
        directory=directory,
        authority=authority,
        clock=clock,
        metrics=Metrics(),
        ids=EventIds(b"test"),
    )
    ports = await gateway.start()
    following = asyncio.create_task(directory.run())
    tls, asleep = authority.client_context(), list[bool]()
    keys = {name: (name, policies[name].primary_key) for name in ("service", "registryReadWrite")}

    async def hub() -> HubAddress:
        if asleep:
            raise Unavailable("the hub does not run", hint="start it", code="hub.down")
        return HubAddress(HOST, HOST, ports.https_port, tls, keys)

    async def facts() -> Mapping[str, Any]:
        return {"running": not asleep, "host": HOST, "mqttPort": ports.mqtt_port, "httpsPort": ports.https_port}

    app = create_app(
        WebServices(
            log=log,
            docs=docs,
            clock=clock,
            settings=Settings(project=ProjectConfig(name="plant"), web=web or WebConfig(port=0)),
            history=LogHistory(log, asyncio.get_running_loop()),
            status=status,
            ledger_report=ledger,
            incidents=Incidents(),
            hub=hub,
            hub_facts=facts,
        ),
        linger_s=0.0,
        tick_s=0.05,
    )
    transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=20) as client:
            yield HubStage(app, client, docs, ports, asleep)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await app.state.hub_api.close()
        await gateway.stop()
