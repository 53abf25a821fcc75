"""Enrolments: who may become a device, one by one or as a group, and what it becomes.

Documents of the collections `enrolments` and `enrolment_groups`, under the id in lower case: ids that differ in case only are
one enrolment. Keys are in the documents; they never appear in a repr, a log line or an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import msgspec
import structlog
from cryptography.hazmat.primitives.serialization import Encoding

from headrace.core.clock import Clock
from headrace.core.errors import Conflict, NotFound, UserError
from headrace.devices.certificates import load
from headrace.devices.rules import KEY_BYTES, check_id, check_key, check_thumbprint, make_key
from headrace.devices.twin_rules import Json, check_size, checked
from headrace.docstore.contract import ABSENT, ANY, DocStore
from headrace.wire.iothub.provisioning import check_registration_id, fold

Kind = Literal["individual", "group"]
Allocation = Literal["hashed", "geoLatency", "static"]
COLLECTIONS: dict[Kind, str] = {"individual": "enrolments", "group": "enrolment_groups"}
GROUPS_MAX = 200  # 100 with keys and 100 with certificates, as DPS
PAGE = 1000
HUBS_MAX = 50
CERTIFICATE_CHARS_MAX = 65_536

log = structlog.get_logger()


class Attestation(msgspec.Struct, frozen=True, kw_only=True):
    """What a device must prove. Keys are base64, certificates PEM, thumbprints hex of SHA-1 or SHA-256 in upper case.

    `certificates` are a device's own (individual enrolments); `signing` are authorities that issue devices' certificates, and
    `authorities` name registered and verified ones (certificates.py).
    """

    type: Literal["symmetricKey", "x509"] = "symmetricKey"
    primary_key: str = ""
    secondary_key: str = ""
    certificates: tuple[str, ...] = ()
    thumbprints: tuple[str, ...] = ()
    signing: tuple[str, ...] = ()
    authorities: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, str]:
        return self.primary_key, self.secondary_key

    def __repr__(self) -> str:
        return f"Attestation(type={self.type!r}, ***)"

    def __rich_repr__(self) -> Any:
        yield "type", self.type


class Enrolment(msgspec.Struct, frozen=True, kw_only=True):
    """One enrolment. `id` is a registration id, or a group's; empty `allocation` is the service's, no `hubs` are all linked."""

    id: str
    attestation: Attestation = Attestation()
    enabled: bool = True
    device_id: str = ""  # individual only; empty: the registration id
    allocation: Allocation | Literal[""] = ""
    hubs: tuple[str, ...] = ()
    update_hub: bool = True  # whether a registration may move to another hub
    migrate: bool = True  # whether its twin moves along; else it starts from `tags` and `desired` again
    tags: Json = {}
    desired: Json = {}
    iot_edge: bool = False
    site: str = ""
    entity_id: str = ""
    payload: Any = None  # handed back to the device
    information: Any = None  # IoT Hub's optionalDeviceInformation
    created: int = 0  # ticks
    updated: int = 0  # ticks


class Enrolled(NamedTuple):
    """An enrolment as it stands."""

    enrolment: Enrolment
    etag: str
    kind: Kind

    @property
    def label(self) -> str:
        return f"{'group' if self.kind == 'group' else 'enrolment'} {self.enrolment.id!r}"


class EnrolmentQueries:
    """Reads straight from the documents. All calls may raise Unavailable."""

    def __init__(self, docs: DocStore) -> None:
        self._docs = docs

    async def find(self, kind: Kind, id: str) -> Enrolled | None:
        found = await self._docs.get(COLLECTIONS[kind], fold(id))
        return None if found is None else Enrolled(from_body(found.body), found.etag, kind)

    async def get(self, kind: Kind, id: str) -> Enrolled:
        """Raises NotFound (`enrolment.not_found`)."""
        found = await self.find(kind, id)
        if found is None:
            raise _missing(kind, id)
        return found

    async def list(self, kind: Kind, *, after: str = "", limit: int = PAGE) -> list[Enrolled]:
        """By id, after id `after`."""
        found = await self._docs.query(COLLECTIONS[kind], after=fold(after), limit=limit)
        return [Enrolled(from_body(document.body), document.etag, kind) for document in found]


class EnrolmentCommands:
    """Create, change and delete enrolments. `random_bytes(n)` makes keys."""

    def __init__(self, docs: DocStore, clock: Clock, random_bytes: Callable[[int], bytes]) -> None:
        self._docs = docs
        self._clock = clock
        self._random_bytes = random_bytes
        self._queries = EnrolmentQueries(docs)

    async def put(self, kind: Kind, wanted: Enrolment, *, if_match: str = ABSENT) -> Enrolled:
        """Create (`if_match` ABSENT), or change what exists (an etag, or ANY). Keys left out are made, or stay.

        Raises Conflict (`enrolment.exists`, `enrolment.etag`), NotFound, UserError for what breaks the rules.
        """
        check_registration_id(wanted.id)
        there = await self._queries.find(kind, wanted.id)
        if if_match == ABSENT and there is not None:
            raise _exists(there)
        if if_match != ABSENT and there is None:
            raise _missing(kind, wanted.id)
        if there is None and kind == "group" and await self._docs.count(COLLECTIONS[kind]) >= GROUPS_MAX:
            raise UserError(
                f"there are {GROUPS_MAX} enrolment groups", hint="delete one first", code="enrolment.too_many"
            )
        now = self._clock.now()
        made = msgspec.structs.replace(
            self._checked(kind, wanted, None if there is None else there.enrolment.attestation),
            created=now if there is None else there.enrolment.created,
            updated=now,
        )
        expected = there.etag if there is not None and if_match == ANY else if_match
        try:
            document = await self._docs.put(COLLECTIONS[kind], fold(made.id), _to_body(made), if_match=expected)
        except Conflict as exc:
            raise (_stale(kind, made.id) if there is not None else _exists(Enrolled(made, "", kind))) from exc
        log.info("enrolment.written", kind=kind, enrolment=made.id, enabled=made.enabled)
        return Enrolled(made, document.etag, kind)

    async def set_enabled(self, kind: Kind, id: str, enabled: bool) -> Enrolled:
        """Raises NotFound, Conflict when somebody changes it meanwhile."""
        there = await self._queries.get(kind, id)
        changed = msgspec.structs.replace(there.enrolment, enabled=enabled)
        return await self.put(kind, changed, if_match=there.etag)

    async def delete(self, kind: Kind, id: str, *, if_match: str | None = None) -> None:
        """Devices that were made through it stay. Raises NotFound, Conflict (`enrolment.etag`)."""
        try:
            there = await self._docs.delete(COLLECTIONS[kind], fold(id), if_match=if_match)
        except Conflict as exc:
            raise (_missing(kind, id) if await self._queries.find(kind, id) is None else _stale(kind, id)) from exc
        if not there:
            raise _missing(kind, id)
        log.info("enrolment.deleted", kind=kind, enrolment=id)

    def _checked(self, kind: Kind, wanted: Enrolment, old: Attestation | None) -> Enrolment:
        if kind == "group" and wanted.device_id:
            raise UserError("a group has no deviceId", hint="leave it out", code="enrolment.device_id")
        if len(wanted.hubs) > HUBS_MAX:
            raise UserError(f"{len(wanted.hubs)} hubs", hint=f"name at most {HUBS_MAX}", code="enrolment.hubs")
        if wanted.allocation == "static" and len(wanted.hubs) != 1:
            raise UserError(
                f"static allocation with {len(wanted.hubs)} hubs", hint="name exactly one", code="enrolment.hubs"
            )
        if wanted.device_id:
            check_id(wanted.device_id)
        if wanted.entity_id:
            check_id(wanted.entity_id, kind="entity")
        check_size(checked(wanted.tags, "tags"), "tags")
        check_size(checked(wanted.desired, "desired"), "desired")
        return msgspec.structs.replace(wanted, attestation=self._attestation(kind, wanted.attestation, old))

    def _key(self, given: str) -> str:
        return check_key(given) if given else make_key(self._random_bytes(KEY_BYTES))

    def _attestation(self, kind: Kind, given: Attestation, old: Attestation | None) -> Attestation:
        kept = old if old is not None and old.type == given.type else Attestation(type=given.type)
        if given.type == "symmetricKey":
            return Attestation(
                primary_key=self._key(given.primary_key or kept.primary_key),
                secondary_key=self._key(given.secondary_key or kept.secondary_key),
            )
        if not (given.certificates or given.thumbprints or given.signing or given.authorities):
            given = kept
        if kind == "group" and (given.certificates or given.thumbprints):
            raise UserError(
                "a group is known by who issues its devices' certificates",
                hint="give signingCertificates or caReferences",
                code="enrolment.attestation",
            )
        if not (given.certificates or given.thumbprints or given.signing or given.authorities):
            raise UserError(
                "an X.509 enrolment without a certificate",
                hint="give clientCertificates, thumbprints, signingCertificates or caReferences",
                code="enrolment.attestation",
            )
        return Attestation(
            type="x509",
            certificates=tuple(_pem(text) for text in given.certificates),
            thumbprints=tuple(check_thumbprint(text) for text in given.thumbprints),
            signing=tuple(_pem(text) for text in given.signing),
            authorities=given.authorities,
        )


def from_body(body: dict[str, Any]) -> Enrolment:
    return msgspec.convert(body, Enrolment)


def _to_body(enrolment: Enrolment) -> dict[str, Any]:
    body: dict[str, Any] = msgspec.to_builtins(enrolment)
    return body


def _pem(text: str) -> str:
    """A certificate as PEM. Raises certificates.CertificateRefused, UserError."""
    if len(text) > CERTIFICATE_CHARS_MAX:
        raise UserError("a certificate that is too long", hint="give one certificate", code="enrolment.certificate")
    return load(text.encode()).public_bytes(Encoding.PEM).decode()


def _missing(kind: Kind, id: str) -> NotFound:
    word = "enrolment" if kind == "individual" else "enrolment group"
    return NotFound(f"there is no {word} {id[:128]!r}", hint="see the list of them", code="enrolment.not_found")


def _exists(there: Enrolled) -> Conflict:
    return Conflict(
        f"{there.label} exists", hint="delete it first, or change it with If-Match", code="enrolment.exists"
    )


def _stale(kind: Kind, id: str) -> Conflict:
    return Conflict(f"{kind} {id[:128]!r} has another etag by now", hint="read it again", code="enrolment.etag")
