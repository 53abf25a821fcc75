"""Devices and modules as IoT Hub's JSON, both ways."""

from __future__ import annotations

from typing import Any, get_args

import msgspec

from headrace.core.clock import YEAR_ONE, to_iso
from headrace.devices.hub_view import View
from headrace.devices.model import Asked, Authentication, Credentials, Draft, ModuleDraft, Status
from headrace.gateway.rest.errors import INVALID, Denied

AUTHENTICATIONS: dict[str, Authentication] = {name.lower(): name for name in get_args(Authentication)}


class _Json(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Unknown fields mean nothing: clients send back what they read."""


class Keys(_Json, frozen=True):
    primary_key: str | None = None
    secondary_key: str | None = None

    def __repr__(self) -> str:
        return "Keys(***)"


class Thumbprints(_Json, frozen=True):
    primary_thumbprint: str | None = None
    secondary_thumbprint: str | None = None


class Authenticating(_Json, frozen=True):
    type: str | None = None
    symmetric_key: Keys | None = None
    x509_thumbprint: Thumbprints | None = None


class Capabilities(_Json, frozen=True):
    iot_edge: bool | None = None


class DeviceJson(_Json, frozen=True):
    device_id: str | None = None
    status: str | None = None
    status_reason: str | None = None
    authentication: Authenticating | None = None
    capabilities: Capabilities | None = None
    device_scope: str | None = None
    parent_scopes: tuple[str, ...] | None = None
    site: str | None = None  # ours, as entity_id: which site it stands at, what its events are about
    entity_id: str | None = None

    def draft(self, id: str) -> Draft:
        """Raises Denied (400)."""
        _same("deviceId", self.device_id, id)
        return Draft(
            id=id,
            status=status_of(self.status),
            status_reason=self.status_reason or "",
            iot_edge=None if self.capabilities is None else self.capabilities.iot_edge,
            scope=self.device_scope,
            parents=self.parent_scopes,
            site=self.site or "",
            entity_id=self.entity_id or "",
            **_asked(self.authentication),
        )


class ModuleJson(_Json, frozen=True):
    device_id: str | None = None
    module_id: str | None = None
    managed_by: str | None = None
    authentication: Authenticating | None = None

    def draft(self, device: str, id: str) -> ModuleDraft:
        """Raises Denied (400)."""
        _same("deviceId", self.device_id, device)
        _same("moduleId", self.module_id, id)
        return ModuleDraft(device=device, id=id, managed_by=self.managed_by or "", **_asked(self.authentication))


class Imported(DeviceJson, frozen=True):
    """One entry of a bulk request."""

    id: str = ""
    module_id: str | None = None
    managed_by: str | None = None
    e_tag: str | None = None
    import_mode: str | None = None
    twin_e_tag: str | None = None
    tags: Any = None
    properties: Any = None

    def module_draft(self, module: str) -> ModuleDraft:
        return ModuleDraft(device=self.id, id=module, managed_by=self.managed_by or "", **_asked(self.authentication))

    @property
    def twin(self) -> dict[str, Any]:
        """What of the twin the entry sets."""
        given: dict[str, Any] = {} if self.tags is None else {"tags": self.tags}
        return given if self.properties is None else {**given, "properties": self.properties}


def device_json(view: View) -> dict[str, Any]:
    """A device as the registry shows it, keys included."""
    device, connection = view.device, view.connection
    found: dict[str, Any] = {
        "deviceId": device.id,
        "generationId": device.generation_id,
        "etag": view.etag,
        "connectionState": "Connected" if connection.connected else "Disconnected",
        "status": device.status,
        "statusReason": device.status_reason or None,
        "connectionStateUpdatedTime": to_iso(connection.since),
        "statusUpdatedTime": to_iso(device.status_updated or YEAR_ONE),
        "lastActivityTime": to_iso(connection.last_activity),
        "cloudToDeviceMessageCount": view.waiting,
        "authentication": _authentication(device),
        "capabilities": {"iotEdge": device.iot_edge},
    }
    if device.scope:
        found["deviceScope"] = device.scope
    if device.parents:
        found["parentScopes"] = list(device.parents)
    return found


def module_json(view: View) -> dict[str, Any]:
    module, connection = view.module, view.connection
    assert module is not None
    return {
        "deviceId": module.device,
        "moduleId": module.id,
        "managedBy": module.managed_by or None,
        "generationId": module.generation_id,
        "etag": view.etag,
        "connectionState": "Connected" if connection.connected else "Disconnected",
        "connectionStateUpdatedTime": to_iso(connection.since),
        "lastActivityTime": to_iso(connection.last_activity),
        "cloudToDeviceMessageCount": 0,
        "authentication": _authentication(module),
    }


def status_of(text: str | None) -> Status:
    """Enabled unless said otherwise. Raises Denied (400)."""
    match (text or "enabled").lower():
        case "enabled":
            return "enabled"
        case "disabled":
            return "disabled"
        case _:
            raise Denied(INVALID, f"status is {str(text)[:40]!r}", hint="use enabled or disabled")


def _authentication(of: Credentials) -> dict[str, Any]:
    return {
        "symmetricKey": {"primaryKey": of.primary_key or None, "secondaryKey": of.secondary_key or None},
        "x509Thumbprint": {
            "primaryThumbprint": of.primary_thumbprint or None,
            "secondaryThumbprint": of.secondary_thumbprint or None,
        },
        "type": of.authentication,
    }


def _asked(given: Authenticating | None) -> dict[str, Any]:
    """The fields of Asked; without a type, what is given says which it is."""
    if given is None:
        return {}
    keys, prints = given.symmetric_key or Keys(), given.x509_thumbprint or Thumbprints()
    kind: Authentication | None = None
    if given.type is not None:
        kind = AUTHENTICATIONS.get(given.type.lower())
        if kind is None:
            raise Denied(
                INVALID, f"authentication type {given.type[:40]!r}", hint=f"use {', '.join(AUTHENTICATIONS.values())}"
            )
    elif prints.primary_thumbprint or prints.secondary_thumbprint:
        kind = "selfSigned"
    elif keys.primary_key or keys.secondary_key:
        kind = "sas"
    asked = Asked(
        authentication=kind,
        primary_key=keys.primary_key or "",
        secondary_key=keys.secondary_key or "",
        primary_thumbprint=prints.primary_thumbprint or "",
        secondary_thumbprint=prints.secondary_thumbprint or "",
    )
    return {name: getattr(asked, name) for name in asked.__struct_fields__}


def _same(name: str, said: str | None, id: str) -> None:
    if said not in (None, id):
        raise Denied(INVALID, f"{name} {str(said)[:128]!r} differs from {id[:128]!r} of the path", hint="make them one")
