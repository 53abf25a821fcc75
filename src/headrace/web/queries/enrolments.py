"""Enrolments as the console reads them: who may register, and who has. Keys only by name, on a console of this machine."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Response, get, post
from litestar.datastructures import State
from litestar.params import FromPath, FromQuery, JSONBody

from headrace.core.clock import TICKS_PER_MS
from headrace.core.errors import UserError
from headrace.devices.enrolments import Enrolled, EnrolmentQueries, Kind
from headrace.devices.provisioning import RegistrationQueries
from headrace.web.hub import path_of
from headrace.web.queries.devices import NO_STORE
from headrace.web.rights import owner_only
from headrace.wire.iothub.provisioning import check_registration_id, derive_key

PAGE = 100
WORDS: dict[Kind, str] = {"individual": "enrollments", "group": "enrollmentGroups"}
"""What the provisioning service's API calls them."""


class EnrolmentLine(msgspec.Struct, frozen=True, kw_only=True):
    """One enrolment, without secrets. Times are ms since 1970."""

    id: str
    enabled: bool
    attestation: str
    device: str
    allocation: str
    hubs: tuple[str, ...]
    site: str
    iot_edge: bool
    tags: dict[str, Any]
    desired: dict[str, Any]
    created: float
    updated: float


class EnrolmentPage(msgspec.Struct, frozen=True, kw_only=True):
    """`more` is the id to go on after, empty at the end."""

    enrolments: list[EnrolmentLine]
    more: str
    id_scope: str


@get("/api/hub/enrolments/{kind:str}", summary="Enrolments, or enrolment groups", tags=["enrolments"])
async def enrolments(state: State, kind: FromPath[str], after: FromQuery[str] = "") -> EnrolmentPage:
    """`kind` is `individual` or `group`; a page of 100 by id."""
    found = await EnrolmentQueries(state.services.docs).list(kind_of(kind), after=after, limit=PAGE + 1)
    facts = await state.services.hub_facts()
    return EnrolmentPage(
        enrolments=[_line(each) for each in found[:PAGE]],
        more=found[PAGE - 1].enrolment.id if len(found) > PAGE else "",
        id_scope=facts.get("idScope") or "",
    )


@get("/api/hub/enrolments/{kind:str}/{id:str}/registrations", summary="Who registered by it", tags=["enrolments"])
async def registrations(
    state: State, kind: FromPath[str], id: FromPath[str], after: FromQuery[str] = ""
) -> list[dict[str, Any]]:
    """Up to 100 by id. Raises NotFound."""
    docs = state.services.docs
    known = (await EnrolmentQueries(docs).get(kind_of(kind), id)).enrolment
    queries = RegistrationQueries(docs)
    if kind == "group":
        found = await queries.of_group(known.id, after=after, limit=PAGE)
    else:
        one = await queries.find(known.id)
        found = [one] if one is not None else []
    return [
        {
            "id": each.registration.id,
            "device": each.registration.device_id,
            "hub": each.registration.hub,
            "how": each.registration.substatus,
            "created": each.registration.created / TICKS_PER_MS,
            "updated": each.registration.updated / TICKS_PER_MS,
        }
        for each in found
    ]


class EnrolmentKeys(msgspec.Struct, frozen=True, kw_only=True):
    primary_key: str
    secondary_key: str

    def __repr__(self) -> str:
        return "EnrolmentKeys(***)"


@get("/api/hub/enrolments/{kind:str}/{id:str}/keys", summary="Its keys", tags=["enrolments"], guards=[owner_only])
async def enrolment_keys(state: State, kind: FromPath[str], id: FromPath[str]) -> Response[EnrolmentKeys]:
    """Raises NotFound; UserError for one that goes by certificate."""
    return Response(await _keys(state, kind_of(kind), id), headers=NO_STORE)


class Derivation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    registration_id: str


@post(
    "/api/hub/enrolments/{kind:str}/{id:str}/derive",
    status_code=200,
    summary="The key of one device of a group",
    tags=["enrolments"],
    guards=[owner_only],
)
async def derive(
    state: State, kind: FromPath[str], id: FromPath[str], data: JSONBody[Derivation]
) -> Response[dict[str, str]]:
    """Derived from the group's primary key; the group's own key stays here. Raises UserError for an id that is none."""
    if kind_of(kind) != "group":
        raise UserError("only groups have derived keys", hint="use the enrolment's own key", code="enrolment.kind")
    registration = check_registration_id(data.registration_id)
    keys = await _keys(state, "group", id)
    facts = await state.services.hub_facts()
    found = {
        "registrationId": registration,
        "key": derive_key(keys.primary_key, registration),
        "idScope": facts.get("idScope") or "",
        "host": facts.get("host") or "",
    }
    return Response(found, headers=NO_STORE)


def kind_of(text: str) -> Kind:
    """Raises UserError."""
    match text:
        case "individual":
            return "individual"
        case "group":
            return "group"
        case _:
            raise UserError(
                f"{text[:40]!r} is no kind of enrolment", hint="use individual or group", code="enrolment.kind"
            )


async def _keys(state: State, kind: Kind, id: str) -> EnrolmentKeys:
    path = path_of(WORDS[kind], id, "attestationmechanism")
    found = (await state.hub_api.call("POST", path, b"", policy="provisioning")).body
    if found["type"] != "symmetricKey":
        raise UserError(f"{id!r} goes by certificate, it has no key", hint="", code="enrolment.no_key")
    given = found["symmetricKey"]
    return EnrolmentKeys(primary_key=given["primaryKey"], secondary_key=given["secondaryKey"])


def _line(found: Enrolled) -> EnrolmentLine:
    enrolment = found.enrolment
    return EnrolmentLine(
        id=enrolment.id,
        enabled=enrolment.enabled,
        attestation=enrolment.attestation.type,
        device=enrolment.device_id,
        allocation=enrolment.allocation,
        hubs=enrolment.hubs,
        site=enrolment.site,
        iot_edge=enrolment.iot_edge,
        tags=enrolment.tags,
        desired=enrolment.desired,
        created=enrolment.created / TICKS_PER_MS,
        updated=enrolment.updated / TICKS_PER_MS,
    )
