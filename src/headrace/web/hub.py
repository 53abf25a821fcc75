"""The hub's own service API, as the console calls it: over HTTPS, with the keys of its shared policies.

The console changes devices through nothing else, so it can do exactly what any other client of the API can, and every rule,
limit and log line of the hub counts for it too.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias
from urllib.parse import quote

import httpx
import msgspec

from headrace.core.clock import TICKS_PER_S, Clock
from headrace.core.errors import Conflict, HeadraceError, NotFound, Unavailable, UserError
from headrace.wire.iothub import sas

TOKEN_S = 300
TIMEOUT_S = 30.0
CONNECTIONS_MAX = 20
PREFIX = "ErrorCode:"

Policy: TypeAlias = Literal["service", "registryReadWrite", "provisioning"]
"""Whose key signs a call: the least that opens it. `provisioning` is the provisioning service's own policy."""


class HubAddress(NamedTuple):
    """Where the hub is now. `host` is its name in tokens and certificates, `dial` the address that is dialled."""

    host: str
    dial: str
    port: int
    tls: ssl.SSLContext
    policies: Mapping[str, tuple[str, str]]  # Policy: the policy's name, its key

    def __repr__(self) -> str:
        return f"HubAddress(host={self.host!r}, port={self.port}, policies=***)"


Where: TypeAlias = Callable[[], Awaitable[HubAddress]]
"""Asked before each call: ports change when the hub restarts. Raises Unavailable while it does not run."""


class HubAnswer(NamedTuple):
    status: int
    body: Any  # decoded JSON, None without a body
    headers: Mapping[str, str]


class Hub:
    """Calls of the service API. All may raise what `refusal` says, and Unavailable."""

    def __init__(self, where: Where, clock: Clock, *, timeout_s: float = TIMEOUT_S) -> None:
        self._where = where
        self._clock = clock
        self._timeout_s = timeout_s
        self._client: httpx.AsyncClient | None = None
        self._tls: ssl.SSLContext | None = None

    async def address(self) -> HubAddress:
        return await self._where()

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        policy: Policy,
        if_match: str = "",
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> HubAnswer:
        """`path` begins with a slash and is encoded; `body` is made JSON unless it is bytes already."""
        at = await self._where()
        name, key = at.policies[policy]
        token = sas.build(at.host, key, expires_s=self._clock.now() // TICKS_PER_S + TOKEN_S, policy=name)
        sent = {"authorization": token, "host": f"{at.host}:{at.port}", **(headers or {})}
        if if_match:
            sent["if-match"] = if_match if if_match == "*" else f'"{if_match}"'
        content = body if isinstance(body, bytes | None) else msgspec.json.encode(body)
        if content is not None:
            sent.setdefault("content-type", "application/json")
        try:
            async with asyncio.timeout(timeout_s or self._timeout_s):
                answer = await self._of(at).request(
                    method,
                    f"https://{at.dial}:{at.port}{path}",
                    content=content,
                    headers=sent,
                    extensions={"sni_hostname": at.host},
                )
        except (httpx.HTTPError, TimeoutError) as exc:
            raise Unavailable(
                f"the hub at {at.host}:{at.port} does not answer",
                hint="see whether part `gateway` runs",
                code="hub.unreachable",
            ) from exc
        found = _json(answer.content)
        if answer.status_code >= 400:
            raise refusal(answer.status_code, found)
        return HubAnswer(answer.status_code, found, answer.headers)

    def _of(self, at: HubAddress) -> httpx.AsyncClient:
        if self._client is None or self._tls is not at.tls:
            limits = httpx.Limits(max_connections=CONNECTIONS_MAX, keepalive_expiry=20)
            self._client = httpx.AsyncClient(
                verify=at.tls, trust_env=False, limits=limits, timeout=httpx.Timeout(None, connect=5.0)
            )
            self._tls = at.tls
        return self._client


def path_of(*parts: str) -> str:
    """`/devices/{id}/...` with each part encoded."""
    return "".join(f"/{quote(part, safe='')}" for part in parts)


def refusal(status: int, body: Any) -> HeadraceError:
    """An error of the service API as one of ours: NotFound for 404, Conflict for 409 and 412, Unavailable for what may
    pass (429, 5xx), else UserError. Its code is `hub.` with IoT Hub's name of it."""
    name, text = _said(body)
    message, code = text or f"the hub answered {status}", f"hub.{name or status}"
    if status == 404:
        return NotFound(message, code=code)
    if status in (409, 412):
        return Conflict(message, code=code)
    return (Unavailable if status == 429 or status >= 500 else UserError)(message, code=code)


def _said(body: Any) -> tuple[str, str]:
    """(name, text) of an error's body: `ErrorCode:Name;text`, the JSON text of methods, or the provisioning service's."""
    if not isinstance(body, dict):
        return "", ""
    text = str(body.get("Message") or body.get("message") or "")
    if text.startswith(PREFIX):
        name, _, text = text.removeprefix(PREFIX).partition(";")
        return name, text
    inner = _json(text.encode())
    found = inner if isinstance(inner, dict) else body
    return str(found.get("errorCode", "")), str(found.get("message") or text)


def _json(content: bytes) -> Any:
    try:
        return msgspec.json.decode(content) if content else None
    except msgspec.DecodeError:
        return None
