"""Registering devices: from a proven enrolment to a device of a hub, and the record of it.

A registration is a document of the collection `registrations`, under its id in lower case. It is written last, so one that
was interrupted is done again, and every step of it may be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import msgspec
import structlog

from headrace.core.clock import Clock
from headrace.core.errors import Conflict, NotFound, Unavailable
from headrace.devices.attestation import Attested
from headrace.devices.enrolments import Allocation, Enrolment
from headrace.devices.model import Draft
from headrace.devices.provisioning_allocation import Asking, LinkedHub, candidates, choose
from headrace.devices.turns import Turns
from headrace.devices.twin_rules import Json
from headrace.docstore.contract import ABSENT, DocStore
from headrace.wire.iothub.provisioning import fold

COLLECTION = "registrations"
TRIES_MAX = 5
OPERATION_BYTES = 16
SITE_CHARS_MAX = 128
PAGE = 1000

Substatus = Literal["initialAssignment", "deviceDataMigrated", "deviceDataReset"]

log = structlog.get_logger()


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """How a registration ended last. `hub` is the host to connect to; `operation` is what a device asks about it by."""

    id: str
    device_id: str
    hub: str
    substatus: Substatus
    kind: Literal["individual", "group"]
    enrolment: str
    operation: str
    payload: Any = None
    thumbprint: str = ""  # of the certificate it was made with, SHA-256
    created: int  # ticks
    updated: int


class Registered(NamedTuple):
    registration: Registration
    etag: str


class Hub(Protocol):
    """A hub that devices are made on: this one, or another by its service API. All may raise Unavailable."""

    async def put(self, draft: Draft) -> bool:
        """Make the device, or give the one that is there these credentials; True where it was made."""
        ...

    async def twin(self, device: str) -> Json | None:
        """Its tags and desired properties as a twin patch; None where there is no device."""
        ...

    async def set_twin(self, device: str, twin: Json, *, whole: bool) -> None:
        """Merge `{"tags", "properties": {"desired"}}`, or set both as a whole."""
        ...

    async def remove(self, device: str) -> None:
        """Delete the device; nothing happens where there is none."""
        ...


class RegistrationQueries:
    """Reads straight from the documents; all may raise Unavailable."""

    def __init__(self, docs: DocStore) -> None:
        self._docs = docs

    async def find(self, id: str) -> Registered | None:
        found = await self._docs.get(COLLECTION, fold(id))
        return None if found is None else Registered(msgspec.convert(found.body, Registration), found.etag)

    async def get(self, id: str) -> Registered:
        """Raises NotFound."""
        found = await self.find(id)
        if found is None:
            raise _missing(id)
        return found

    async def of_group(self, group: str, *, after: str = "", limit: int = PAGE) -> list[Registered]:
        """The registrations of one group by id, after id `after`."""
        where = {"kind": "group", "enrolment": group}
        found = await self._docs.query(COLLECTION, where=where, after=fold(after), limit=limit)
        return [Registered(msgspec.convert(each.body, Registration), each.etag) for each in found]


class ProvisioningService:
    """`linked` are the hubs, and `hubs` what makes devices on each, by host; one that is not in there gets its devices told
    its host and nothing made on it. `random_bytes(n)` makes operation ids."""

    def __init__(
        self,
        docs: DocStore,
        clock: Clock,
        *,
        linked: Sequence[LinkedHub],
        hubs: Mapping[str, Hub],
        allocation: Allocation,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._docs = docs
        self._clock = clock
        self._linked = linked
        self._hubs = hubs
        self._allocation = allocation
        self._random_bytes = random_bytes
        self._turns = Turns()
        self.queries = RegistrationQueries(docs)

    async def register(self, attested: Attested, *, payload: Any = None, address: str = "") -> Registered:
        """Assign a device to a hub and make it there, or find it where it is. Raises NoHub, UserError, Unavailable."""
        async with self._turns.of(fold(attested.registration_id)):
            for _ in range(TRIES_MAX):
                old = await self.queries.find(attested.registration_id)
                made = await self._assign(attested, old, _site_of(attested.enrolled.enrolment, payload), address)
                expected = ABSENT if old is None else old.etag
                try:
                    document = await self._docs.put(
                        COLLECTION, fold(made.id), msgspec.to_builtins(made), if_match=expected
                    )
                except Conflict:
                    continue  # another process registers it too: go on from what it did
                log.info("registration.assigned", registration=made.id, device=made.device_id, hub=made.hub)
                return Registered(made, document.etag)
        raise Unavailable(f"registration {attested.registration_id!r} is changed by others", hint="try again")

    async def delete(self, id: str, *, if_match: str | None = None) -> None:
        """Forget a registration: the device stays on its hub, and its next registration is its first. Raises NotFound,
        Conflict (`registration.etag`)."""
        try:
            there = await self._docs.delete(COLLECTION, fold(id), if_match=if_match)
        except Conflict as exc:
            if await self.queries.find(id) is None:
                raise _missing(id) from exc
            raise Conflict(
                f"registration {id[:128]!r} has another etag by now", hint="read it again", code="registration.etag"
            ) from exc
        if not there:
            raise _missing(id)
        log.info("registration.deleted", registration=id)

    async def _assign(self, attested: Attested, old: Registered | None, site: str, address: str) -> Registration:
        enrolment, id, now = attested.enrolled.enrolment, attested.registration_id, self._clock.now()
        before = None if old is None else old.registration
        hub = self._hub(enrolment, before, Asking(id, site, address))
        device = enrolment.device_id or (before.device_id if before is not None else id)
        if before is not None and before.device_id != device:
            before = None  # the enrolment names another device by now, whose first registration this is
        return Registration(
            id=id if before is None else before.id,
            device_id=device,
            hub=hub.host,
            substatus=await self._make(attested, hub, before, device, site),
            kind=attested.enrolled.kind,
            enrolment=enrolment.id,
            operation=f"4.{self._random_bytes(OPERATION_BYTES).hex()}",
            payload=enrolment.payload,
            thumbprint=attested.thumbprint,
            created=now if before is None else before.created,
            updated=now,
        )

    def _hub(self, enrolment: Enrolment, before: Registration | None, asking: Asking) -> LinkedHub:
        """The hub it is to be on; the one it is on where it may not move and that is linked still. Raises NoHub."""
        if before is not None and not enrolment.update_hub:
            stays = next((hub for hub in self._linked if hub.host == before.hub), None)
            if stays is not None:
                return stays
        return choose(enrolment.allocation or self._allocation, candidates(self._linked, enrolment.hubs), asking)

    async def _make(
        self, attested: Attested, target: LinkedHub, before: Registration | None, device: str, site: str
    ) -> Substatus:
        """Make or update the device, with its twin as the reprovisioning policy asks."""
        enrolment, hub = attested.enrolled.enrolment, self._hubs.get(target.host)
        moves = before is not None and before.hub != target.host
        source = self._hubs.get(before.hub) if moves and before is not None else None
        kept = await source.twin(device) if source is not None and enrolment.migrate else None
        if hub is not None:
            created = await hub.put(_draft(attested, device, site))
            initial = {"tags": enrolment.tags, "properties": {"desired": enrolment.desired}}
            if moves and enrolment.migrate and kept is not None:
                await hub.set_twin(device, kept, whole=True)
            elif moves and not enrolment.migrate:
                await hub.set_twin(device, initial, whole=True)
            elif (created or before is None) and (first := patch_of(enrolment.tags, enrolment.desired)):
                await hub.set_twin(device, first, whole=False)
        if source is not None:
            await source.remove(device)
        if before is None or not moves:
            return "initialAssignment" if before is None else before.substatus
        return "deviceDataMigrated" if enrolment.migrate else "deviceDataReset"


def patch_of(tags: Json, desired: Json) -> Json:
    """A twin patch that says nothing of what is empty, so that no version moves for nothing."""
    patch: Json = {"tags": tags} if tags else {}
    return {**patch, "properties": {"desired": desired}} if desired else patch


def _draft(attested: Attested, device: str, site: str) -> Draft:
    enrolment = attested.enrolled.enrolment
    primary, secondary = attested.keys or ("", "")
    return Draft(
        id=device,
        authentication="sas" if attested.keys else "selfSigned",
        primary_key=primary,
        secondary_key=secondary,
        primary_thumbprint="" if attested.keys else attested.thumbprint,
        entity_id=enrolment.entity_id,
        site=site,
        iot_edge=enrolment.iot_edge,
    )


def _site_of(enrolment: Enrolment, payload: Any) -> str:
    """The site an enrolment names, else the one in the device's own payload, `{"site": ...}`."""
    said = payload.get("site") if isinstance(payload, dict) else None
    return enrolment.site or (said[:SITE_CHARS_MAX] if isinstance(said, str) else "")


def _missing(id: str) -> NotFound:
    return NotFound(f"there is no registration {id[:128]!r}", hint="has it registered?", code="registration.not_found")
