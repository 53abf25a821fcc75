"""The hubs that provisioning makes devices on: this one, and others by their service API.

Another hub is reached with a connection string of a policy of its own that may write its registry and its twins
(`iothubowner`); it may be a Headrace or an IoT Hub.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from typing import Any
from urllib.parse import quote

import httpx
import msgspec

from headrace.core.clock import TICKS_PER_S, Clock
from headrace.core.errors import Conflict, NotFound, Unavailable, UserError
from headrace.devices.commands import DeviceCommands
from headrace.devices.model import Device, Draft
from headrace.devices.queries import DeviceQueries
from headrace.devices.twin_rules import Json
from headrace.devices.twins import TwinService
from headrace.wire.iothub import sas
from headrace.wire.iothub.topics import API_VERSION, Identity

TIMEOUT_S = 8.0  # each call; a device waits thirty seconds for all of them
TOKEN_TTL_S = 600
TRIES_MAX = 5
_COMPARED = ("primary_key", "secondary_key", "primary_thumbprint", "secondary_thumbprint")
_STRING = re.compile(r"HostName=(?P<host>[^;]+);SharedAccessKeyName=(?P<policy>[^;]+);SharedAccessKey=(?P<key>[^;]+)")


class LocalHub:
    """This project's own registry."""

    def __init__(self, commands: DeviceCommands, queries: DeviceQueries, twins: TwinService) -> None:
        self._commands = commands
        self._queries = queries
        self._twins = twins

    async def put(self, draft: Draft) -> bool:
        for _ in range(TRIES_MAX):
            found = await self._queries.registered(draft.id)
            try:
                if found is None:
                    await self._commands.register(draft)
                    return True
                device = found.device
                if _differs(device, draft):
                    kept = {"status": device.status, "status_reason": device.status_reason}
                    await self._commands.replace(msgspec.structs.replace(draft, **kept), if_match=found.etag)
                return False
            except (Conflict, NotFound):
                continue  # somebody made, changed or deleted it since we looked
        raise Unavailable(f"device {draft.id!r} is being changed by others", hint="try again")

    async def twin(self, device: str) -> Json | None:
        if await self._queries.find(device) is None:
            return None
        twin = await self._twins.get(Identity(device))
        return {"tags": twin.tags, "properties": {"desired": twin.desired.values}}

    async def set_twin(self, device: str, twin: Json, *, whole: bool) -> None:
        change = self._twins.replace if whole else self._twins.update
        await change(Identity(device), twin)

    async def remove(self, device: str) -> None:
        try:
            await self._commands.delete(device)
        except NotFound:
            return


class RemoteHub:
    """Another hub, by its connection string. `ca_file` (PEM) is whom to trust besides the system's authorities."""

    def __init__(
        self,
        connection_string: str,
        clock: Clock,
        *,
        ca_file: str = "",
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        match = _STRING.fullmatch(connection_string.strip().rstrip(";"))
        if match is None:
            raise UserError(
                "the connection string of a linked hub cannot be read",
                hint="it reads HostName=…;SharedAccessKeyName=…;SharedAccessKey=…",
                code="provisioning.connection_string",
            )
        self._host, self._policy, self._key = match["host"], match["policy"], match["key"]
        self._clock = clock
        self._ca_file = ca_file
        self._transport = transport
        self._client: httpx.AsyncClient | None = None

    def __repr__(self) -> str:
        return f"RemoteHub(host={self._host!r}, key=***)"

    async def put(self, draft: Draft) -> bool:
        path = f"/devices/{quote(draft.id, safe='')}"
        body = _device_json(draft)
        for _ in range(TRIES_MAX):
            found = await self._call("GET", path, missing=True)
            if found is None:
                if await self._call("PUT", path, body, taken=True) is not None:
                    return True
                continue  # somebody made it since we looked
            kept = {"status": found.get("status", "enabled"), "statusReason": found.get("statusReason")}
            await self._call("PUT", path, {**body, **kept}, if_match="*")
            return False
        raise Unavailable(f"device {draft.id!r} is being changed by others on {self._host}", hint="try again")

    async def twin(self, device: str) -> Json | None:
        found = await self._call("GET", f"/twins/{quote(device, safe='')}", missing=True)
        if found is None:
            return None
        desired = {name: value for name, value in found["properties"]["desired"].items() if not name.startswith("$")}
        return {"tags": found.get("tags", {}), "properties": {"desired": desired}}

    async def set_twin(self, device: str, twin: Json, *, whole: bool) -> None:
        await self._call("PUT" if whole else "PATCH", f"/twins/{quote(device, safe='')}", twin, if_match="*")

    async def remove(self, device: str) -> None:
        await self._call("DELETE", f"/devices/{quote(device, safe='')}", if_match="*", missing=True)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def _call(
        self, verb: str, path: str, body: Any = None, *, if_match: str = "", missing: bool = False, taken: bool = False
    ) -> Any:
        """The answer's JSON, or None where 404 (`missing`) or 409 (`taken`) is no surprise. Raises Unavailable."""
        if self._client is None:
            self._client = await asyncio.to_thread(self._opened)
        expires_s = self._clock.now() // TICKS_PER_S + TOKEN_TTL_S
        headers = {"authorization": sas.build(self._host, self._key, expires_s=expires_s, policy=self._policy)}
        if if_match:
            headers["if-match"] = f'"{if_match}"' if if_match != "*" else '"*"'
        try:
            answer = await self._client.request(verb, path, json=body, headers=headers)
        except httpx.HTTPError as exc:
            raise Unavailable(
                f"hub {self._host} does not answer: {type(exc).__name__}", hint="is it up, and its CA known?"
            ) from exc
        if (missing and answer.status_code == 404) or (taken and answer.status_code == 409):
            return None
        if answer.is_error:
            raise Unavailable(
                f"hub {self._host} answers {verb} with {answer.status_code}", hint="check its policy's key and rights"
            )
        return answer.json() if answer.content else {}

    def _opened(self) -> httpx.AsyncClient:
        context = ssl.create_default_context()
        if self._ca_file:
            try:
                context.load_verify_locations(self._ca_file)
            except OSError as exc:
                raise Unavailable(f"the CA file of hub {self._host} cannot be read: {exc}", hint="set ca_file") from exc
        return httpx.AsyncClient(
            base_url=f"https://{self._host}",
            params={"api-version": API_VERSION},
            timeout=TIMEOUT_S,
            verify=context,
            transport=self._transport,
        )


def _differs(device: Device, draft: Draft) -> bool:
    """Whether the registry has to hear of it."""
    told = {name: getattr(draft, name) for name in ("entity_id", "site") if getattr(draft, name)}
    return (
        device.authentication != draft.authentication
        or any(getattr(device, name) != getattr(draft, name) for name in _COMPARED)
        or any(getattr(device, name) != value for name, value in told.items())
        or (draft.iot_edge is not None and device.iot_edge != draft.iot_edge)
    )


def _device_json(draft: Draft) -> Json:
    return {
        "deviceId": draft.id,
        "status": draft.status,
        "capabilities": {"iotEdge": bool(draft.iot_edge)},
        "authentication": {
            "type": draft.authentication,
            "symmetricKey": {"primaryKey": draft.primary_key or None, "secondaryKey": draft.secondary_key or None},
            "x509Thumbprint": {
                "primaryThumbprint": draft.primary_thumbprint or None,
                "secondaryThumbprint": draft.secondary_thumbprint or None,
            },
        },
    }
