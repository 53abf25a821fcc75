"""The HTTPS door: `POST /devices/{id}/messages/events` with a shared access signature; 204 once the event is durable.

System properties come as `iothub-messageid`, `iothub-correlationid`, … headers, application properties as `iothub-app-{name}`.
Every refusal is JSON: {"code", "message", "hint"}.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote

import orjson

from headrace.core.clock import Clock
from headrace.core.errors import HeadraceError
from headrace.devices.certificates import ClientCertificate
from headrace.gateway.admission import STALE, Admission, Admitted, Refused
from headrace.gateway.ingress import Ingress, Origin, Piece, Reject
from headrace.gateway.limits import Limits, Over
from headrace.gateway.refusals import Refusals
from headrace.gateway.streams import NOT_ALLOWED
from headrace.gateway.tls import certificate_of
from headrace.wire.iothub.properties import STREAM_PROPERTY, Properties, encode_bag
from headrace.wire.iothub.topics import Identity

STORE_TIMEOUT_S = 15.0
BODY_TIMEOUT_S = 30.0
THROTTLE_S = 1.0
RETRY_AFTER = {429: "1", 503: "5"}
SYSTEM_HEADERS = {
    "iothub-messageid": "message-id",
    "iothub-correlationid": "correlation-id",
    "iothub-userid": "user-id",
    "iothub-contenttype": "content-type",
    "iothub-contentencoding": "content-encoding",
    "iothub-expiry": "absolute-expiry-time",
    "iothub-to": "to",
}
APPLICATION_PREFIX = "iothub-app-"

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Denied(HeadraceError):
    """An answer other than 204. `reason` is counted."""

    def __init__(self, status: int, reason: str, message: str, hint: str, *, retry_after: str = "") -> None:
        super().__init__(message, hint=hint, code=f"gateway.{reason}")
        self.status = status
        self.retry_after = retry_after or RETRY_AFTER.get(status, "")
        self.reason = reason


class _Waiting:
    """The Sender of one request."""

    def __init__(self) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def stored(self, packet_ids: list[bytes]) -> None:
        if not self.done.done():
            self.done.set_result(None)


class HttpDoor:
    """An ASGI application."""

    def __init__(
        self,
        *,
        admission: Admission,
        ingress: Ingress,
        refusals: Refusals,
        limits: Limits,
        clock: Clock,
        message_bytes_max: int,
    ) -> None:
        self._admission = admission
        self._ingress = ingress
        self._refusals = refusals
        self._limits = limits
        self._clock = clock
        self._bytes_max = message_bytes_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"  # lifespan and WebSocket are switched off where the server is made
        device = ""
        try:
            device = _device_of(scope)
            await self._take(Identity(device), scope, receive)
        except Denied as exc:
            address = str((scope.get("client") or ("",))[0])
            self._refusals.note(exc.reason, detail=exc.message, device=device, address=address, hint=exc.hint)
            await _answer(
                send, exc.status, {"code": exc.code, "message": exc.message, "hint": exc.hint}, exc.retry_after
            )
        else:
            await _answer(send, 204, None)

    async def _take(self, identity: Identity, scope: Scope, receive: Receive) -> None:
        headers = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        admitted = await self._admit(identity, dict(headers).get("authorization", ""), shown_in(scope))
        limited_s = self._limits.telemetry.per_s
        limited = self._ingress.full or self._ingress.limited_s > THROTTLE_S
        if limited and limited_s and not self._ingress.trouble:  # the log would take more, the limit does not
            raise self._throttled(Over("messages_per_s", limited_s, self._ingress.limited_s))
        if self._ingress.full or self._ingress.trouble:
            raise Denied(503, "unavailable", "the event log takes no events at the moment", "send it again later")
        if over := self._limits.telemetry_over(identity.device, patience_s=THROTTLE_S):
            raise self._throttled(over)
        origin = Origin.of(identity, admitted.device)
        properties = _properties(headers)
        try:
            body = await asyncio.wait_for(self._body(receive, origin, properties.size_bytes), BODY_TIMEOUT_S)
        except TimeoutError as exc:
            raise Denied(400, "body_timeout", "the body did not come in time", "send it at once") from exc
        stream = properties.application.get(STREAM_PROPERTY) or ""
        if problem := self._ingress.streams.problem(stream):
            self._ingress.set_aside(Reject(origin, NOT_ALLOWED, problem, body))
            raise Denied(400, NOT_ALLOWED, problem, self._ingress.streams.hint(stream))
        topic = origin.prefix + encode_bag(properties.system, properties.application)
        sender = _Waiting()
        if (wait_s := self._limits.charge(identity.device, 1, len(topic) + len(body))) > 0:
            await self._clock.sleep(wait_s)
        self._ingress.add(Piece(origin, [(0x32, topic, b"\0\1", body)], len(topic) + len(body), sender))
        try:
            await asyncio.wait_for(sender.done, STORE_TIMEOUT_S)
        except TimeoutError as exc:
            raise Denied(
                503, "unavailable", "the event is not durable yet", "send it again with the same iothub-messageid"
            ) from exc

    @staticmethod
    def _throttled(over: Over) -> Denied:
        hint = f"send it again in {over.retry_after} s"
        return Denied(429, "throttled", str(over), hint, retry_after=over.retry_after)

    async def _admit(self, identity: Identity, authorization: str, shown: ClientCertificate | None) -> Admitted:
        def check() -> Admitted:
            if shown is not None and not authorization:
                return self._admission.certificate(identity, shown)
            return self._admission.token(identity, authorization)

        try:
            return check()
        except Refused as exc:
            if exc.reason not in STALE:
                raise Denied(401, exc.reason, *_outside(exc)) from exc
        await self._admission.learn()
        try:
            return check()
        except Refused as exc:
            raise Denied(401, exc.reason, *_outside(exc)) from exc

    async def _body(self, receive: Receive, origin: Origin, properties_bytes: int) -> bytes:
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Denied(400, "incomplete", "the connection ended inside the body", "send it again")
            body += message.get("body", b"")
            size = len(body) + properties_bytes
            if size > self._bytes_max:
                said = f"a message of {size:,} bytes or more is above the limit of {self._bytes_max:,}"
                self._ingress.set_aside(Reject(origin, "too_large", said, bytes(body)))
                raise Denied(413, "too_large", said, "send smaller messages")
            if not message.get("more_body", False):
                return bytes(body)


def _outside(exc: Refused) -> tuple[str, str]:
    """What a stranger is told: the same for an unknown device as for a wrong key."""
    if exc.reason in STALE:
        return "no such device, or not its key", "check device id and key; the device must be enabled"
    return exc.message, exc.hint


def shown_in(scope: Scope) -> ClientCertificate | None:
    """The client's certificate, where the server keeps a request's transport (https.py)."""
    transport = scope.get("state", {}).get("transport")
    return None if transport is None else certificate_of(transport)


def _device_of(scope: Scope) -> str:
    parts = str(scope["raw_path"].decode("latin-1")).partition("?")[0].split("/")
    if len(parts) != 5 or parts[1] != "devices" or parts[3:] != ["messages", "events"] or not parts[2]:
        raise Denied(404, "path", "there is nothing here", "POST /devices/{id}/messages/events")
    if scope["method"] != "POST":
        raise Denied(405, "method", f"{scope['method'][:20]} is not possible here", "use POST")
    return unquote(parts[2])


def _properties(headers: list[tuple[str, str]]) -> Properties:
    found = Properties({}, {})
    for name, value in headers:
        if name in SYSTEM_HEADERS:
            found.system[SYSTEM_HEADERS[name]] = value
        elif name.startswith(APPLICATION_PREFIX):
            if name == APPLICATION_PREFIX:
                raise Denied(400, "header", "an application property without a name", "iothub-app-{name}: value")
            found.application[name.removeprefix(APPLICATION_PREFIX)] = value
        elif name == "content-type":
            found.system.setdefault("content-type", value)
    return found


async def _answer(send: Send, status: int, body: dict[str, str] | None, retry_after: str = "") -> None:
    data = b"" if body is None else orjson.dumps(body)
    headers = [(b"content-type", b"application/json")] if body else []
    headers += [(b"content-length", str(len(data)).encode())] if body else []
    if retry_after:
        headers.append((b"retry-after", retry_after.encode()))
    if status == 405:
        headers.append((b"allow", b"POST"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})
