"""The provisioning service over HTTPS: `/enrollments`, `/enrollmentGroups` and `/registrations` for services, and
`/{idScope}/registrations/{id}/...` for devices.

Services come with a token of the policy `provisioningserviceowner`, devices with their own or with a certificate. Paths that
are neither go on to the hub's own service API.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple
from urllib.parse import unquote

import msgspec
import structlog

from headrace.core.clock import TICKS_PER_S, Clock
from headrace.core.errors import HeadraceError
from headrace.devices.provisioning_identity import ServiceIdentities
from headrace.gateway.https import Asgi
from headrace.gateway.provisioning_desk import RETRY_AFTER_S, ProvisioningDesk, Visitor
from headrace.gateway.provisioning_enrolments import Enrolments
from headrace.gateway.provisioning_shapes import (
    FAILED,
    NO_METHOD,
    NOT_FOUND,
    UNAUTHORIZED,
    error_json,
    kind_of,
    operation_json,
    registration_json,
)
from headrace.gateway.refusals import Refusals
from headrace.gateway.rest.errors import Denied, Kind, told
from headrace.gateway.rest.exchange import Answer, Receive, Request, Scope, Send, answer_json
from headrace.wire.iothub import sas
from headrace.wire.iothub.provisioning import RegistrationName

SERVICE_WORDS = frozenset({"enrollments", "enrollmentgroups", "registrations"})
DEVICE_WORD = "registrations"

log = structlog.get_logger()


class _Route(NamedTuple):
    method: str
    path: tuple[str, ...]  # `{}` is an id
    handler: Callable[..., Awaitable[Answer]]


class ProvisioningRest:
    """An ASGI application. `hosts` are the service's names in tokens; `rest` answers what is not provisioning's."""

    def __init__(
        self,
        enrolments: Enrolments,
        desk: ProvisioningDesk,
        *,
        identities: ServiceIdentities,
        hosts: frozenset[str],
        rest: Asgi,
        refusals: Refusals,
        clock: Clock,
        random_bytes: Callable[[int], bytes],
        leeway_s: float,
    ) -> None:
        self._desk = desk
        self._identities = identities
        self._hosts = hosts
        self._rest = rest
        self._refusals = refusals
        self._clock = clock
        self._random_bytes = random_bytes
        self._leeway_s = leeway_s
        self._service = _service_routes(enrolments)
        self._device = [
            _Route("PUT", ("{}", DEVICE_WORD, "{}", "register"), self._register),
            _Route("GET", ("{}", DEVICE_WORD, "{}", "operations", "{}"), self._operation),
            _Route("POST", ("{}", DEVICE_WORD, "{}"), self._state),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        words = [unquote(word).lower() for word in scope["path"].strip("/").split("/")]
        for_device = len(words) > 1 and words[1] == DEVICE_WORD and words[0] not in SERVICE_WORDS
        if not for_device and words[0] not in SERVICE_WORDS:
            await self._rest(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            answer = await (self._for_device(request) if for_device else self._for_service(request))
        except RecursionError:
            answer = self._failed(kind_of(Denied(FAILED, "")), "the body is nested too deeply")
        except HeadraceError as exc:
            answer = self._failed(kind_of(exc), told(exc))
        except Exception:
            log.exception("rest.failed", method=request.method[:20], path=request.path[:200])
            answer = self._failed(FAILED, "the service failed; its log says why")
        await answer.send(send)

    async def _for_service(self, request: Request) -> Answer:
        route, ids = _found(self._service, request)
        await self._admit(request)
        return await route.handler(request, *ids)

    async def _admit(self, request: Request) -> None:
        """Raises Denied (401)."""
        identity = await self._identities.ensure()
        try:
            token = sas.parse(request.headers.get("authorization", ""))
            if token.policy != identity.policy:
                raise Denied(UNAUTHORIZED, "no such policy", hint=f"use {identity.policy}")
            sas.verify(
                token,
                keys=identity.keys,
                hosts=self._hosts | {identity.id_scope.lower()},
                path=request.path,
                now_s=self._clock.now() / TICKS_PER_S,
                leeway_s=self._leeway_s,
            )
        except (sas.TokenRefused, Denied) as exc:
            self._refusals.note("provisioning_service", detail=exc.message, address=request.address)
            raise Denied(UNAUTHORIZED, exc.message, hint=exc.hint) from exc

    async def _for_device(self, request: Request) -> Answer:
        route, (scope, id, *more) = _found(self._device, request)
        token = request.headers.get("authorization") or None
        visitor = Visitor(RegistrationName(scope, id), token, None if token else request.shown, request.address)
        try:
            return await route.handler(request, visitor, *more)
        except Exception as exc:
            refusal = self._desk.refusal(exc, visitor)
            headers = {} if refusal.retry_after_s is None else {"retry-after": str(refusal.retry_after_s)}
            return Answer(refusal.kind.status, msgspec.json.encode(refusal.body), headers)

    async def _register(self, request: Request, visitor: Visitor) -> Answer:
        found = await self._desk.register(visitor, await request.body())
        if self._desk.at_once:
            return answer_json(operation_json(found, done=True))
        return answer_json(operation_json(found, done=False), status=202, headers={"retry-after": str(RETRY_AFTER_S)})

    async def _operation(self, request: Request, visitor: Visitor, operation: str) -> Answer:
        return answer_json(operation_json(await self._desk.status(visitor, operation), done=True))

    async def _state(self, request: Request, visitor: Visitor) -> Answer:
        return answer_json(registration_json(await self._desk.state(visitor)))

    def _failed(self, kind: Kind, text: str) -> Answer:
        body = error_json(kind, text, tracking=self._random_bytes(16), now=self._clock.now())
        return Answer(kind.status, msgspec.json.encode(body))


def _service_routes(enrolments: Enrolments) -> list[_Route]:
    """A literal path comes before one with an id in its place."""
    found: list[_Route] = []
    for word, part in (("enrollments", enrolments.of("individual")), ("enrollmentgroups", enrolments.of("group"))):
        found += [
            _Route("POST", (word, "query"), part.query),
            _Route("POST", (word,), part.bulk),
            _Route("PUT", (word, "{}"), part.put),
            _Route("GET", (word, "{}"), part.get),
            _Route("DELETE", (word, "{}"), part.delete),
            _Route("POST", (word, "{}", "attestationmechanism"), part.attestation),
        ]
    return [
        *found,
        _Route("GET", ("registrations", "{}"), enrolments.registration),
        _Route("DELETE", ("registrations", "{}"), enrolments.forget),
        _Route("POST", ("registrations", "{}", "query"), enrolments.registrations),
    ]


def _found(routes: list[_Route], request: Request) -> tuple[_Route, list[str]]:
    """The route of a request with the ids in its path. Raises NotFound, Denied (405)."""
    others: list[str] = []
    for route in routes:
        ids = _matched(route.path, request.segments)
        if ids is not None:
            if route.method == request.method:
                return route, ids
            others.append(route.method)
    if others:
        raise Denied(NO_METHOD, f"{request.method[:20]} is not possible here", hint=", ".join(others))
    raise Denied(NOT_FOUND, f"there is nothing at /{request.path[:200]}", hint="see the service API's paths")


def _matched(path: tuple[str, ...], segments: list[str]) -> list[str] | None:
    if len(path) != len(segments):
        return None
    ids: list[str] = []
    for part, segment in zip(path, segments, strict=True):
        if part == "{}" and segment:
            ids.append(segment)
        elif part != segment.lower():
            return None
    return ids
