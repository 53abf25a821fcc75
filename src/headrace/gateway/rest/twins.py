"""`/twins/...`: twins of devices and modules, and direct methods on them."""

from __future__ import annotations

from typing import Any

from headrace.gateway.methods import RESPONSE_TIMEOUT_S
from headrace.gateway.rest.errors import INVALID, Denied
from headrace.gateway.rest.exchange import Answer, Request, answer_json
from headrace.gateway.rest.services import HubServices
from headrace.wire.iothub.topics import Identity


class Twins:
    def __init__(self, services: HubServices) -> None:
        self._services = services

    async def get(self, request: Request, device: str, module: str | None = None) -> Answer:
        twin = (await self._services.view(device, module)).json
        return answer_json(twin, headers={"etag": f'"{twin["etag"]}"'})

    async def patch(self, request: Request, device: str, module: str | None = None) -> Answer:
        """Merge tags and desired."""
        await self._services.view(device, module)
        await self._services.twins.update(Identity(device, module), await request.json(), if_match=request.if_match)
        return await self.get(request, device, module)

    async def put(self, request: Request, device: str, module: str | None = None) -> Answer:
        """Set tags and desired as a whole."""
        await self._services.view(device, module)
        await self._services.twins.replace(Identity(device, module), await request.json(), if_match=request.if_match)
        return await self.get(request, device, module)

    async def invoke(self, request: Request, device: str, module: str | None = None) -> Answer:
        """Ask a method of it, and wait for its answer."""
        asked = await request.json()
        if not isinstance(asked, dict) or not isinstance(asked.get("methodName"), str):
            raise Denied(INVALID, "methodName is missing", hint='send {"methodName": "reboot", "payload": null}')
        await self._services.view(device, module)
        status, payload = await self._services.methods.invoke(
            Identity(device, module),
            asked["methodName"],
            asked.get("payload"),
            response_timeout_s=_seconds(asked, "responseTimeoutInSeconds", RESPONSE_TIMEOUT_S),
            connect_timeout_s=_seconds(asked, "connectTimeoutInSeconds", 0.0),
        )
        return answer_json({"status": status, "payload": payload})


def _seconds(asked: dict[str, Any], name: str, default: float) -> float:
    """A number, or a text that holds one (the az CLI sends texts). Raises Denied (400)."""
    given = asked.get(name)
    if given is None:
        return default
    if isinstance(given, str) and given.strip().isdigit() and len(given) < 10:
        return float(given)
    if isinstance(given, int | float) and not isinstance(given, bool):
        return float(given)
    raise Denied(INVALID, f"{name} is {str(given)[:40]!r}", hint="give a number of seconds")
