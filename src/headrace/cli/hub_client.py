"""The service's side of our own hub: its REST API over HTTPS, with a shared access policy's token, as any service calls it.

So the command line changes a twin or invokes a method the way other people's programs do, wherever the device is connected.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import httpx

from headrace import assembly
from headrace.assembly.hub_info import hub_info
from headrace.core.clock import TICKS_PER_S
from headrace.core.config import Project
from headrace.core.errors import Conflict, HeadraceError, NotFound, Unavailable, UserError
from headrace.wire.iothub import sas

API_VERSION = "2021-04-12"
TOKEN_S = 600
TIMEOUT_S = 30.0
METHOD_MARGIN_S = 15.0
SERVICE = "service"
"""The policy that may connect as a service, and neither read nor write the registry."""


class HubClient:
    """Raises what the hub answers: NotFound, Conflict, UserError, Unavailable; their code is `hub.` and IoT Hub's error name."""

    def __init__(self, http: httpx.AsyncClient, token: str) -> None:
        self._http = http
        self._token = token

    async def call(
        self,
        method: str,
        path: str,
        value: Any = None,
        *,
        headers: dict[str, str] | None = None,
        content: bytes | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> httpx.Response:
        more: dict[str, Any] = {"content": content} if content is not None else {}
        if value is not None:
            more["json"] = value
        try:
            answer = await self._http.request(
                method,
                path,
                params={"api-version": API_VERSION},
                headers={"authorization": self._token, **(headers or {})},
                timeout=timeout_s,
                **more,
            )
        except httpx.HTTPError as exc:
            raise Unavailable(
                f"the hub at {self._http.base_url} does not answer: {type(exc).__name__}",
                hint="start it with `headrace up --detach`",
                code="hub.unreachable",
            ) from exc
        if answer.is_success:
            return answer
        raise error_of(answer)

    async def twin(self, path: str) -> dict[str, Any]:
        found: dict[str, Any] = (await self.call("GET", f"/twins/{path}")).json()
        return found

    async def change_twin(
        self, path: str, patch: dict[str, Any], *, replace: bool = False, etag: str = "*"
    ) -> dict[str, Any]:
        headers = {"if-match": etag if etag == "*" else f'"{etag}"'}
        answer = await self.call("PUT" if replace else "PATCH", f"/twins/{path}", patch, headers=headers)
        changed: dict[str, Any] = answer.json()
        return changed

    async def invoke(
        self, path: str, name: str, payload: Any, *, response_timeout_s: int, connect_timeout_s: int
    ) -> dict[str, Any]:
        """{status, payload} as the device answered."""
        asked = {
            "methodName": name,
            "payload": payload,
            "responseTimeoutInSeconds": response_timeout_s,
            "connectTimeoutInSeconds": connect_timeout_s,
        }
        timeout_s = response_timeout_s + connect_timeout_s + METHOD_MARGIN_S
        answered: dict[str, Any] = (
            await self.call("POST", f"/twins/{path}/methods", asked, timeout_s=timeout_s)
        ).json()
        return answered

    async def send(self, device: str, body: bytes, headers: dict[str, str]) -> str:
        """A cloud-to-device message; its id."""
        path = f"/devices/{quoted(device)}/messages/devicebound"
        answer = await self.call("POST", path, content=body, headers=headers)
        return answer.headers["iothub-messageid"]


def quoted(device: str, module: str | None = None) -> str:
    """An identity in a path."""
    own = quote(device, safe="")
    return own if module is None else f"{own}/modules/{quote(module, safe='')}"


def error_of(answer: httpx.Response) -> HeadraceError:
    """What the hub said, in our words."""
    try:
        text = str(answer.json().get("Message", ""))
        if text.startswith("{"):  # of methods
            text = str(json.loads(text).get("message", text))
    except ValueError:
        text = answer.text[:300]
    name = answer.headers.get("iothub-errorcode", "")
    message = text.removeprefix(f"ErrorCode:{name};") or f"HTTP {answer.status_code}"
    code = f"hub.{name or answer.status_code}"
    if answer.status_code == 429 or answer.status_code >= 500:
        after = answer.headers.get("retry-after", "")
        return Unavailable(message, hint=f"try again in {after} s" if after else "", code=code)
    if answer.status_code == 404:
        return (Unavailable if "NotOnline" in name else NotFound)(message, code=code)
    return (Conflict if answer.status_code in (409, 412) else UserError)(message, code=code)


@contextlib.asynccontextmanager
async def hub_client(project: Project, *, policy: str = SERVICE) -> AsyncIterator[HubClient]:
    """A client of the project's running hub, with the rights of `policy`: that of services may do all that HubClient has
    names for. Raises Unavailable when the hub is not up."""
    platform = assembly.Platform(project)
    try:
        info = await hub_info(platform)
        if not info["running"] or info["httpsPort"] is None:
            raise Unavailable(
                "this project's hub is not up", hint="start it with `headrace up --detach`", code="hub.down"
            )
        key = info["policies"][policy]["primaryKey"]
        token = sas.build(info["host"], key, expires_s=platform.clock.now() // TICKS_PER_S + TOKEN_S, policy=policy)
        base = f"https://{info['host']}:{info['httpsPort']}"
        async with httpx.AsyncClient(base_url=base, verify=platform.client_tls, trust_env=False) as http:
            yield HubClient(http, token)
    finally:
        await platform.close()
