"""What people do to enrolments from the console: calls of the provisioning service's own API."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from litestar import delete, post, put
from litestar.datastructures import State
from litestar.params import FromPath, JSONBody

from headrace.core.errors import UserError
from headrace.devices.enrolments import Kind
from headrace.web.hub import path_of
from headrace.web.queries.enrolments import WORDS, kind_of
from headrace.web.rights import owner_only


class NewEnrolment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Keys left empty are made. `certificate` is PEM: a device's own for one device, its issuer's for a group."""

    id: str
    attestation: Literal["symmetricKey", "x509"] = "symmetricKey"
    primary_key: str = ""
    certificate: str = ""
    device_id: str = ""
    site: str = ""
    iot_edge: bool = False
    tags: dict[str, Any] = {}
    desired: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"NewEnrolment(id={self.id!r}, keys=***)"


class Enabled(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    enabled: bool


@post("/api/hub/enrolments/{kind:str}", status_code=201, summary="Enrol", tags=["enrolments"], guards=[owner_only])
async def create_enrolment(state: State, kind: FromPath[str], data: JSONBody[NewEnrolment]) -> dict[str, str]:
    """Raises Conflict where there is one of that id, UserError for what breaks the rules."""
    which = kind_of(kind)
    if not data.id.strip():
        raise UserError("an id is missing", hint="give it a name", code="enrolment.id")
    body = {
        "enrollmentGroupId" if which == "group" else "registrationId": data.id,
        "attestation": _attestation(which, data),
        "capabilities": {"iotEdge": data.iot_edge},
        "initialTwin": {"tags": data.tags, "properties": {"desired": data.desired}},
        "deviceId": data.device_id or None,
        "site": data.site or None,
    }
    await state.hub_api.call("PUT", path_of(WORDS[which], data.id), body, policy="provisioning")
    return {"id": data.id}


@put(
    "/api/hub/enrolments/{kind:str}/{id:str}/status",
    summary="Enable or disable an enrolment",
    tags=["enrolments"],
    guards=[owner_only],
)
async def enable_enrolment(
    state: State, kind: FromPath[str], id: FromPath[str], data: JSONBody[Enabled]
) -> dict[str, bool]:
    """Devices that registered by it stay. Raises NotFound; Conflict when somebody changes it meanwhile."""
    path = path_of(WORDS[kind_of(kind)], id)
    there = (await state.hub_api.call("GET", path, policy="provisioning")).body
    body = {**there, "provisioningStatus": "enabled" if data.enabled else "disabled"}
    await state.hub_api.call("PUT", path, body, policy="provisioning", if_match=str(there["etag"]).strip('"'))
    return {"enabled": data.enabled}


@delete(
    "/api/hub/enrolments/{kind:str}/{id:str}",
    status_code=200,
    summary="Delete an enrolment",
    tags=["enrolments"],
    guards=[owner_only],
)
async def delete_enrolment(state: State, kind: FromPath[str], id: FromPath[str]) -> dict[str, str]:
    """Nobody registers by it any more; devices that did stay."""
    await state.hub_api.call("DELETE", path_of(WORDS[kind_of(kind)], id), policy="provisioning")
    return {"deleted": id}


def _attestation(kind: Kind, data: NewEnrolment) -> dict[str, Any]:
    if data.attestation == "symmetricKey":
        return {"type": "symmetricKey", "symmetricKey": {"primaryKey": data.primary_key or None}}
    field = "signingCertificates" if kind == "group" else "clientCertificates"
    return {"type": "x509", "x509": {field: {"primary": {"certificate": data.certificate}}}}
