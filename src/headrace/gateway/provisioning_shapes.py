"""Enrolments, registrations and errors as the provisioning service's JSON, both ways.

Keys are shown only to who asks for them by name (the attestation mechanism) or has just written them.
"""

from __future__ import annotations

import base64
import binascii
import textwrap
import uuid
from collections.abc import Mapping
from typing import Any, get_args

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from headrace.core.clock import from_datetime, to_iso
from headrace.core.errors import Conflict, HeadraceError, NotFound, Unavailable
from headrace.devices.attestation import AttestationRefused
from headrace.devices.certificates import load, thumbprints
from headrace.devices.enrolments import Allocation, Attestation, Enrolled, Enrolment, Kind
from headrace.devices.provisioning import Registered
from headrace.gateway.rest.errors import Denied
from headrace.gateway.rest.errors import Kind as ErrorKind

ID_FIELDS: dict[Kind, str] = {"individual": "registrationId", "group": "enrollmentGroupId"}
BAD, UNAUTHORIZED = ErrorKind(400, "BadRequest", 400004), ErrorKind(401, "Unauthorized", 401002)
DISABLED, NOT_FOUND = ErrorKind(403, "Forbidden", 403002), ErrorKind(404, "NotFound", 404204)
NO_METHOD, CONFLICT = ErrorKind(405, "MethodNotAllowed", 405000), ErrorKind(409, "Conflict", 409202)
STALE, THROTTLED = ErrorKind(412, "PreconditionFailed", 412001), ErrorKind(429, "TooManyRequests", 429001)
FAILED, UNAVAILABLE = ErrorKind(500, "InternalError", 500001), ErrorKind(503, "ServiceUnavailable", 503001)
ALLOCATIONS: dict[str, Allocation] = {name.lower(): name for name in get_args(Allocation)}


class _Json(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Unknown fields mean nothing: clients send back what they read."""


class _Keys(_Json, frozen=True):
    primary_key: str | None = None
    secondary_key: str | None = None

    def __repr__(self) -> str:
        return "_Keys(***)"


class _Certificate(_Json, frozen=True):
    certificate: str | None = None


class _Pair(_Json, frozen=True):
    primary: _Certificate | None = None
    secondary: _Certificate | None = None

    @property
    def pems(self) -> tuple[str, ...]:
        given = [one.certificate for one in (self.primary, self.secondary) if one is not None and one.certificate]
        return tuple(_as_pem(text) for text in given)


class _Names(_Json, frozen=True):
    primary: str | None = None
    secondary: str | None = None

    @property
    def given(self) -> tuple[str, ...]:
        return tuple(name for name in (self.primary, self.secondary) if name)


class _X509(_Json, frozen=True):
    client_certificates: _Pair | None = None
    signing_certificates: _Pair | None = None
    ca_references: _Names | None = None
    thumbprints: _Names | None = None  # ours: a certificate that is known by its thumbprint alone


class _Attestation(_Json, frozen=True):
    type: str | None = None
    symmetric_key: _Keys | None = None
    x509: _X509 | None = None


class _Properties(_Json, frozen=True):
    desired: dict[str, Any] | None = None


class _Twin(_Json, frozen=True):
    tags: dict[str, Any] | None = None
    properties: _Properties | None = None


class _Capabilities(_Json, frozen=True):
    iot_edge: bool | None = None


class _Reprovision(_Json, frozen=True):
    update_hub_assignment: bool = True
    migrate_device_data: bool = True


class EnrolmentJson(_Json, frozen=True):
    """An individual enrolment or a group. `site`, `entityId` and `payload` are ours."""

    registration_id: str | None = None
    enrollment_group_id: str | None = None
    device_id: str | None = None
    attestation: _Attestation | None = None
    capabilities: _Capabilities | None = None
    iot_hub_host_name: str | None = None
    iot_hubs: tuple[str, ...] | None = None
    initial_twin: _Twin | None = None
    etag: str | None = None
    provisioning_status: str | None = None
    reprovision_policy: _Reprovision | None = None
    allocation_policy: str | None = None
    optional_device_information: Any = None
    site: str | None = None
    entity_id: str | None = None
    payload: Any = None

    def named(self, kind: Kind) -> str:
        return (self.enrollment_group_id if kind == "group" else self.registration_id) or ""

    def enrolment(self, kind: Kind, id: str) -> Enrolment:
        """Raises Denied (400)."""
        said = self.named(kind)
        if said and said.lower() != id.lower():
            raise Denied(BAD, f"{ID_FIELDS[kind]} {said[:128]!r} differs from {id[:128]!r}", hint="make them one")
        status = (self.provisioning_status or "enabled").lower()
        if status not in ("enabled", "disabled"):
            raise Denied(BAD, f"provisioningStatus is {status[:40]!r}", hint="use enabled or disabled")
        twin = self.initial_twin or _Twin()
        desired = (twin.properties.desired if twin.properties is not None else None) or {}
        moving = self.reprovision_policy or _Reprovision()
        host = (self.iot_hub_host_name,) if self.iot_hub_host_name else ()
        return Enrolment(
            id=said or id,
            attestation=_attestation(self.attestation or _Attestation()),
            enabled=status == "enabled",
            device_id=self.device_id or "",
            allocation=_allocation(self.allocation_policy),
            hubs=self.iot_hubs or host,
            update_hub=moving.update_hub_assignment,
            migrate=moving.migrate_device_data,
            tags=_plain(twin.tags or {}),
            desired=_plain(desired),
            iot_edge=bool(self.capabilities is not None and self.capabilities.iot_edge),
            site=self.site or "",
            entity_id=self.entity_id or "",
            payload=self.payload,
            information=self.optional_device_information,
        )


def enrolment_json(found: Enrolled, *, keys: bool, registration: Registered | None = None) -> dict[str, Any]:
    """As the service API shows it; `keys` as they are, or null."""
    enrolment = found.enrolment
    shown: dict[str, Any] = {
        ID_FIELDS[found.kind]: enrolment.id,
        "attestation": attestation_json(enrolment.attestation, keys=keys),
        "capabilities": {"iotEdge": enrolment.iot_edge},
        "etag": f'"{found.etag}"',
        "provisioningStatus": "enabled" if enrolment.enabled else "disabled",
        "reprovisionPolicy": {
            "updateHubAssignment": enrolment.update_hub,
            "migrateDeviceData": enrolment.migrate,
        },
        "createdDateTimeUtc": to_iso(enrolment.created),
        "lastUpdatedDateTimeUtc": to_iso(enrolment.updated),
        "initialTwin": {"tags": enrolment.tags, "properties": {"desired": enrolment.desired}},
    }
    if enrolment.allocation:
        shown["allocationPolicy"] = enrolment.allocation
    if enrolment.hubs:
        shown["iotHubs"] = list(enrolment.hubs)
    if len(enrolment.hubs) == 1:
        shown["iotHubHostName"] = enrolment.hubs[0]
    told = {"deviceId": enrolment.device_id, "site": enrolment.site, "entityId": enrolment.entity_id}
    shown |= {name: value for name, value in told.items() if value}
    more = {"payload": enrolment.payload, "optionalDeviceInformation": enrolment.information}
    shown |= {name: value for name, value in more.items() if value is not None}
    if registration is not None:
        shown["registrationState"] = registration_json(registration)
    return shown


def attestation_json(attestation: Attestation, *, keys: bool) -> dict[str, Any]:
    if attestation.type == "symmetricKey":
        primary, secondary = attestation.keys if keys else (None, None)
        return {"type": "symmetricKey", "symmetricKey": {"primaryKey": primary, "secondaryKey": secondary}}
    shown: dict[str, Any] = {}
    for name, pems in (("clientCertificates", attestation.certificates), ("signingCertificates", attestation.signing)):
        if pems:
            shown[name] = _pair([{"info": _certificate_info(pem)} for pem in pems])
    for name, texts in (("caReferences", attestation.authorities), ("thumbprints", attestation.thumbprints)):
        if texts:
            shown[name] = _pair(texts)
    return {"type": "x509", "x509": shown}


def registration_json(found: Registered) -> dict[str, Any]:
    """The state of a registration, as devices and services read it."""
    registration = found.registration
    shown: dict[str, Any] = {
        "registrationId": registration.id,
        "createdDateTimeUtc": to_iso(registration.created),
        "assignedHub": registration.hub,
        "deviceId": registration.device_id,
        "status": "assigned",
        "substatus": registration.substatus,
        "lastUpdatedDateTimeUtc": to_iso(registration.updated),
        "etag": found.etag,
    }
    if registration.kind == "group":
        shown["enrollmentGroupId"] = registration.enrolment
    if registration.payload is not None:
        shown["payload"] = registration.payload
    if registration.thumbprint:
        shown["x509"] = {"certificateInfo": {"sha256Thumbprint": registration.thumbprint}}
    return shown


def operation_json(found: Registered, *, done: bool) -> dict[str, Any]:
    """The answer to a device that registers: its operation, and with `done` how it ended."""
    operation = found.registration.operation
    if not done:
        return {"operationId": operation, "status": "assigning"}
    return {"operationId": operation, "status": "assigned", "registrationState": registration_json(found)}


def kind_of(error: HeadraceError) -> ErrorKind:
    """What kind of error of the provisioning service's ours is."""
    if isinstance(error, Denied):
        return error.kind
    if isinstance(error, AttestationRefused):
        return {"not_enrolled": NOT_FOUND, "scope": NOT_FOUND, "disabled": DISABLED, "id": BAD}.get(
            error.reason, UNAUTHORIZED
        )
    if isinstance(error, Unavailable):
        return UNAVAILABLE
    if isinstance(error, Conflict):
        return CONFLICT if error.code.endswith(".exists") else STALE
    return NOT_FOUND if isinstance(error, NotFound) else BAD


def error_json(kind: ErrorKind, text: str, *, tracking: bytes, now: int) -> dict[str, Any]:
    """The body of a refusal; `tracking` is 16 random bytes, `now` ticks."""
    return {
        "errorCode": kind.number,
        "trackingId": str(uuid.UUID(bytes=tracking, version=4)),
        "message": text,
        "timestampUtc": to_iso(now),
    }


def _attestation(given: _Attestation) -> Attestation:
    """Raises Denied (400)."""
    type = (given.type or ("x509" if given.x509 is not None else "symmetricKey")).lower()
    keys, certificates = given.symmetric_key or _Keys(), given.x509 or _X509()
    if type == "symmetrickey":
        return Attestation(primary_key=keys.primary_key or "", secondary_key=keys.secondary_key or "")
    if type == "x509":
        return Attestation(
            type="x509",
            certificates=(certificates.client_certificates or _Pair()).pems,
            signing=(certificates.signing_certificates or _Pair()).pems,
            authorities=(certificates.ca_references or _Names()).given,
            thumbprints=(certificates.thumbprints or _Names()).given,
        )
    raise Denied(BAD, f"attestation type {type[:40]!r}", hint="use symmetricKey or x509")


def _allocation(text: str | None) -> Any:
    if not text:
        return ""
    if text.lower() not in ALLOCATIONS:
        raise Denied(BAD, f"allocationPolicy {text[:40]!r}", hint=f"use {', '.join(ALLOCATIONS.values())}")
    return ALLOCATIONS[text.lower()]


def _plain(section: Mapping[str, Any]) -> dict[str, Any]:
    """Without what clients send back from a twin that they read."""
    return {name: value for name, value in section.items() if not name.startswith("$")}


def _as_pem(text: str) -> str:
    """PEM, or the base64 of DER or of PEM, as PEM. Raises Denied (400)."""
    if "-----BEGIN" in text:
        return text
    try:
        raw = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as exc:
        raise Denied(BAD, "a certificate that is neither PEM nor base64", hint="give it as PEM") from exc
    if b"-----BEGIN" in raw:
        return raw.decode("ascii", "replace")
    body = "\n".join(textwrap.wrap(base64.b64encode(raw).decode(), 64))
    return f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n"


def _pair(things: Any) -> dict[str, Any]:
    return dict(zip(("primary", "secondary"), things, strict=False))


def _certificate_info(pem: str) -> dict[str, Any]:
    certificate: x509.Certificate = load(pem.encode())
    sha1, sha256 = thumbprints(certificate.public_bytes(Encoding.DER))
    return {
        "subjectName": certificate.subject.rfc4514_string(),
        "sha1Thumbprint": sha1,
        "sha256Thumbprint": sha256,
        "issuerName": certificate.issuer.rfc4514_string(),
        "notBeforeUtc": to_iso(from_datetime(certificate.not_valid_before_utc)),
        "notAfterUtc": to_iso(from_datetime(certificate.not_valid_after_utc)),
        "serialNumber": f"{certificate.serial_number:X}",
        "version": 3,
    }
