"""What the provisioning doors have alike, MQTT and HTTP: who may register, how, and what errors are told.

A device is attested again with each registration, so an enrolment that was disabled meanwhile counts at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

import orjson
import structlog

from headrace.core.clock import Clock
from headrace.core.errors import HeadraceError, NotFound, Unavailable, UserError
from headrace.devices.attestation import AttestationRefused, Attested, Attestor
from headrace.devices.certificates import ClientCertificate
from headrace.devices.provisioning import ProvisioningService, Registered
from headrace.devices.provisioning_identity import ServiceIdentities
from headrace.gateway.limits import RateLimit
from headrace.gateway.provisioning_shapes import FAILED, THROTTLED, UNAUTHORIZED, error_json, kind_of
from headrace.gateway.refusals import Refusals
from headrace.gateway.rest.errors import Denied, Kind, told
from headrace.wire.iothub.provisioning import RegistrationName, fold

RETRY_AFTER_S = 3  # as DPS tells it
ANSWER_TIMEOUT_S = 25.0  # SDKs wait thirty seconds
THROTTLE_S = 1.0
STRANGER = "no such enrolment, or not its key or certificate"
STRANGE = frozenset({"token", "not_enrolled", "disabled"})
"""Refusals that a stranger cannot tell apart, so that nobody can probe for names."""
T = TypeVar("T")

log = structlog.get_logger()


class Visitor(NamedTuple):
    """Who asks, with what was shown."""

    name: RegistrationName
    token: str | None
    shown: ClientCertificate | None
    address: str


class Refusal(NamedTuple):
    """How an error is told: the kind with its status, a body, and when to try again."""

    kind: Kind
    body: dict[str, Any]
    retry_after_s: int | None


class ProvisioningDesk:
    """`random_bytes(n)` makes tracking ids; `at_once`: a registration is answered with its end, not with an operation."""

    def __init__(
        self,
        *,
        identities: ServiceIdentities,
        attestor: Attestor,
        service: ProvisioningService,
        refusals: Refusals,
        limit: RateLimit,
        clock: Clock,
        random_bytes: Callable[[int], bytes],
        at_once: bool = False,
    ) -> None:
        self._identities = identities
        self._attestor = attestor
        self._service = service
        self._refusals = refusals
        self._limit = limit
        self._clock = clock
        self._random_bytes = random_bytes
        self.at_once = at_once

    async def attest(self, visitor: Visitor) -> Attested:
        """Raises AttestationRefused, Unavailable."""
        return await _in_time(self._attest(visitor))

    async def register(self, visitor: Visitor, body: bytes) -> Registered:
        """`body` is the request's JSON, or empty. Raises AttestationRefused, Denied, UserError, Unavailable."""
        payload = _payload(body, visitor.name.registration_id)
        if self._limit.wait_s > THROTTLE_S:
            raise Denied(THROTTLED, "more registrations a second than this service allows", hint="try again later")
        self._limit.take(1)
        attested = await self.attest(visitor)
        return await _in_time(self._service.register(attested, payload=payload, address=visitor.address))

    async def status(self, visitor: Visitor, operation: str) -> Registered:
        """How an operation ended. Raises AttestationRefused, NotFound, Unavailable."""
        await self.attest(visitor)
        found = await _in_time(self._service.queries.find(visitor.name.registration_id))
        if found is None or found.registration.operation != operation:
            raise NotFound("there is no such operation", hint="register again", code="registration.operation")
        return found

    async def state(self, visitor: Visitor) -> Registered:
        """A device's own registration. Raises AttestationRefused, NotFound, Unavailable."""
        await self.attest(visitor)
        return await _in_time(self._service.queries.get(visitor.name.registration_id))

    def refusal(self, exc: Exception, visitor: Visitor) -> Refusal:
        """Count an error, and say it as a device may hear it."""
        kind, text = FAILED, "the service failed; its log says why"
        if isinstance(exc, HeadraceError):
            kind, text = kind_of(exc), told(exc)
            if isinstance(exc, AttestationRefused) and exc.reason in STRANGE:
                text = STRANGER
                kind = UNAUTHORIZED if exc.reason == "token" else kind
        else:
            log.error("provisioning.failed", error=type(exc).__name__, exc_info=exc)
        self.note(exc, visitor)
        retry = RETRY_AFTER_S if kind.status == 429 or kind.status >= 500 else None
        return Refusal(kind, error_json(kind, text, tracking=self._random_bytes(16), now=self._clock.now()), retry)

    def note(self, exc: Exception, visitor: Visitor) -> None:
        """Count what was refused, by reason."""
        other = "request" if isinstance(exc, HeadraceError) else "failed"
        reason = exc.reason if isinstance(exc, AttestationRefused) else other
        detail = exc.message if isinstance(exc, HeadraceError) else type(exc).__name__
        device = visitor.name.registration_id[:128]
        self._refusals.note(f"provisioning_{reason}", detail=detail, device=device, address=visitor.address)

    async def _attest(self, visitor: Visitor) -> Attested:
        scope = (await self._identities.ensure()).id_scope
        return await self._attestor.attest(visitor.name, scope=scope, token=visitor.token, shown=visitor.shown)


async def _in_time(work: Awaitable[T]) -> T:
    """Raises Unavailable where it takes too long."""
    try:
        return await asyncio.wait_for(work, ANSWER_TIMEOUT_S)
    except TimeoutError as exc:
        raise Unavailable("the registration takes too long", hint="try again", code="provisioning.timeout") from exc


def _payload(body: bytes, id: str) -> Any:
    """What a device sends along. Raises UserError."""
    if not body.strip():
        return None
    try:
        asked = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise UserError(f"the body is not JSON: {exc}", hint="send JSON", code="provisioning.body") from exc
    if not isinstance(asked, dict):
        raise UserError("the body is no JSON object", hint='send {"registrationId": …}', code="provisioning.body")
    said = asked.get("registrationId")
    if said is not None and (not isinstance(said, str) or fold(said) != fold(id)):
        raise UserError("registrationId is another", hint="name yourself", code="provisioning.body")
    return asked.get("payload")
