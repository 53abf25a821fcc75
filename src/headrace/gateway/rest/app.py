"""The service API as an ASGI application: finds the handler, admits the caller, tells errors.

Who may call is decided by path and method before any body is read: services by a right of their shared policy, devices by
their own token or certificate.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import msgspec
import structlog

from headrace.core.clock import Clock, to_iso
from headrace.core.errors import HeadraceError
from headrace.devices.policies import Right
from headrace.gateway.admission import STALE, Admission, Refused
from headrace.gateway.limits import Limits, Operation
from headrace.gateway.refusals import Refusals
from headrace.gateway.rest.errors import (
    FAILED,
    INVALID,
    NO_METHOD,
    NO_PATH,
    THROTTLED,
    UNAUTHORIZED,
    Denied,
    Kind,
    kind_of,
    told,
)
from headrace.gateway.rest.exchange import Answer, Receive, Request, Scope, Send
from headrace.gateway.rest.identities import Identities
from headrace.gateway.rest.messages import Messages
from headrace.gateway.rest.query import Queries
from headrace.gateway.rest.services import HubServices
from headrace.gateway.rest.twins import Twins
from headrace.wire.iothub.topics import Identity

RETRY_AFTER = {429: "1", 503: "5"}
STRANGER = "no such policy or identity, or not its key"

log = structlog.get_logger()

Handler = Callable[..., Awaitable[Answer]]


class Route(NamedTuple):
    """`{}` in the path is an id. `right` None: the device of the first id itself."""

    method: str
    path: str
    right: Right | None
    handler: Handler


def routes(services: HubServices) -> list[Route]:
    """Every path of the service API. A literal path comes before one with an id in its place."""
    identities, twins, messages = Identities(services), Twins(services), Messages(services)
    found = [
        Route("POST", "devices/query", "ServiceConnect", Queries(services).run),
        Route("GET", "statistics/devices", "RegistryRead", identities.count_devices),
        Route("GET", "statistics/service", "ServiceConnect", identities.count_connected),
        Route("GET", "devices", "RegistryRead", identities.list_devices),
        Route("POST", "devices", "RegistryWrite", identities.bulk),
        Route("PUT", "devices/{}", "RegistryWrite", identities.put_device),
        Route("GET", "devices/{}", "RegistryRead", identities.get_device),
        Route("DELETE", "devices/{}", "RegistryWrite", identities.delete_device),
        Route("GET", "devices/{}/modules", "RegistryRead", identities.list_modules),
        Route("PUT", "devices/{}/modules/{}", "RegistryWrite", identities.put_module),
        Route("GET", "devices/{}/modules/{}", "RegistryRead", identities.get_module),
        Route("DELETE", "devices/{}/modules/{}", "RegistryWrite", identities.delete_module),
        Route("DELETE", "devices/{}/commands", "ServiceConnect", messages.purge),
        Route("POST", "devices/{}/messages/devicebound", "ServiceConnect", messages.send),
        Route("GET", "devices/{}/messages/devicebound", None, messages.receive),
        Route("DELETE", "devices/{}/messages/devicebound/{}", None, messages.complete),
        Route("POST", "devices/{}/messages/devicebound/{}/abandon", None, messages.abandon),
    ]
    for path in ("twins/{}", "twins/{}/modules/{}"):
        found += [
            Route("GET", path, "ServiceConnect", twins.get),
            Route("PATCH", path, "ServiceConnect", twins.patch),
            Route("PUT", path, "ServiceConnect", twins.put),
            Route("POST", f"{path}/methods", "ServiceConnect", twins.invoke),
        ]
    return found


class RestDoor:
    """An ASGI application. `random_bytes(n)` makes the tracking ids that errors carry."""

    def __init__(
        self,
        services: HubServices,
        *,
        admission: Admission,
        refusals: Refusals,
        clock: Clock,
        random_bytes: Callable[[int], bytes],
        limits: Limits | None = None,
    ) -> None:
        self._limits = limits
        self._admission = admission
        self._refusals = refusals
        self._clock = clock
        self._random_bytes = random_bytes
        self._routes = [(route.path.split("/"), route) for route in routes(services)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        method_call = request.segments[-1].lower() == "methods"
        try:
            answer = await self._answer(request)
        except RecursionError:
            answer = self._failed(INVALID, "the body is nested too deeply", as_json=method_call)
        except HeadraceError as exc:
            answer = self._failed(kind_of(exc), told(exc), as_json=method_call)
            if isinstance(exc, Denied) and exc.kind is NO_METHOD:
                answer = answer._replace(headers={**answer.headers, "allow": exc.hint})
            if isinstance(exc, Denied) and exc.retry_after:
                answer = answer._replace(headers={**answer.headers, "retry-after": exc.retry_after})
        except Exception:
            log.exception("rest.failed", method=request.method[:20], path=request.path[:200])
            answer = self._failed(FAILED, "the hub failed; its log says why", as_json=method_call)
        await answer.send(send)

    async def _answer(self, request: Request) -> Answer:
        route, ids = self._route(request)
        await self._admit(request, route, ids)
        operation = _operation(route)
        if operation is not None and self._limits is not None:
            over = self._limits.ask(operation, ids[0] if ids else "")
            if over is not None:
                hint, after = f"retry after {over.retry_after} s", over.retry_after
                raise Denied(THROTTLED, str(over), hint=hint, code="rest.throttled", retry_after=after)
        return await route.handler(request, *ids)

    def _route(self, request: Request) -> tuple[Route, list[str]]:
        """The route of a request with the ids in its path. Raises Denied (404, 405)."""
        others: list[str] = []
        for parts, route in self._routes:
            ids = _matched(parts, request.segments)
            if ids is None:
                continue
            if route.method == request.method:
                return route, ids
            others.append(route.method)
        if others:
            raise Denied(NO_METHOD, f"{request.method[:20]} is not possible here", hint=", ".join(others))
        raise Denied(NO_PATH, f"there is nothing at /{request.path[:200]}", hint="see the service API's paths")

    async def _admit(self, request: Request, route: Route, ids: list[str]) -> None:
        """Raises Denied (401)."""
        try:
            self._check(request, route, ids)
            return
        except Refused as exc:
            if exc.reason not in STALE:
                raise self._denied(request, exc) from exc
        await self._admission.learn()
        try:
            self._check(request, route, ids)
        except Refused as exc:
            raise self._denied(request, exc) from exc

    def _check(self, request: Request, route: Route, ids: list[str]) -> None:
        text = request.headers.get("authorization", "")
        if route.right is not None:
            self._admission.service(text, request.path, route.right)
        elif request.shown is not None and not text:
            self._admission.certificate(Identity(ids[0]), request.shown)
        else:
            self._admission.token(Identity(ids[0]), text)

    def _denied(self, request: Request, exc: Refused) -> Denied:
        self._refusals.note(exc.reason, detail=exc.message, address=request.address)
        return Denied(UNAUTHORIZED, STRANGER if exc.reason in STALE else exc.message, code=exc.code)

    def _failed(self, kind: Kind, text: str, *, as_json: bool) -> Answer:
        """An error as IoT Hub tells it; direct methods have a shape of their own."""
        tracking, now = str(uuid.UUID(bytes=self._random_bytes(16), version=4)), to_iso(self._clock.now())
        if as_json:
            said = {"errorCode": kind.number, "trackingId": tracking, "message": text, "timestampUtc": now}
            body = {"Message": msgspec.json.encode(said).decode(), "ExceptionMessage": ""}
        else:
            body = {
                "Message": f"ErrorCode:{kind.name};{text}",
                "ExceptionMessage": f"Tracking ID:{tracking}-TimeStamp:{now}",
            }
        headers = {"iothub-errorcode": kind.name}
        if kind.status in RETRY_AFTER:
            headers["retry-after"] = RETRY_AFTER[kind.status]
        return Answer(kind.status, msgspec.json.encode(body), headers)


def _operation(route: Route) -> Operation | None:
    """Which limit a request counts against; None for those of devices, which have their own."""
    if route.right is None:
        return None
    if route.path.endswith("/methods"):
        return "methods"
    if route.path.startswith("twins"):
        return "twin_reads" if route.method == "GET" else "twin_updates"
    if route.path.endswith("/devicebound"):
        return "c2d_sends"
    return "queries" if route.path == "devices/query" else "registry"


def _matched(parts: list[str], segments: list[str]) -> list[str] | None:
    """The ids in a path that is like `parts`; None for another path. Words compare without case, ids are never empty."""
    if len(parts) != len(segments):
        return None
    ids: list[str] = []
    for part, segment in zip(parts, segments, strict=True):
        if part == "{}" and segment:
            ids.append(segment)
        elif part != segment.lower():
            return None
    return ids
