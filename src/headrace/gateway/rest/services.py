"""What the service API works with: the hub's services, handed over by the gateway."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from headrace.core.errors import NotFound
from headrace.devices.commands import DeviceCommands
from headrace.devices.hub_query import HubQueries
from headrace.devices.hub_view import View, Views
from headrace.devices.mailbox import Mailbox
from headrace.devices.queries import DeviceQueries
from headrace.devices.twins import TwinService
from headrace.wire.iothub.topics import Identity


class Invoke(Protocol):
    """gateway.methods.Methods, as far as it is asked here."""

    async def invoke(
        self, identity: Identity, name: str, payload: Any, *, response_timeout_s: float, connect_timeout_s: float
    ) -> tuple[int, Any]: ...


class HubServices(NamedTuple):
    commands: DeviceCommands
    queries: DeviceQueries
    views: Views
    hub_queries: HubQueries
    twins: TwinService
    mailbox: Mailbox
    methods: Invoke

    async def view(self, device: str, module: str | None = None) -> View:
        """Raises NotFound (`device.not_found`, `module.not_found`)."""
        found = await self.queries.registered(device)
        if found is None:
            raise NotFound(f"there is no device {device[:128]!r}", hint="create it first", code="device.not_found")
        if module is None:
            return await self.views.one(found.device, etag=found.etag)
        part = await self.queries.module(device, module)
        if part is None:
            raise NotFound(
                f"device {device[:128]!r} has no module {module[:128]!r}", hint="create it", code="module.not_found"
            )
        return await self.views.one(found.device, part.module, etag=part.etag)
