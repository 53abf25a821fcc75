"""Devices and modules as the platform knows them: who they are, what they belong to, and what they prove themselves with.

A device is one document in the collection `devices`, a module one in `modules` under the id `{device}/{module}`. Keys never
appear in a repr, a log line or an error. Tags and properties belong to the twin (twins.py), not here.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import msgspec

COLLECTION = "devices"
MODULES = "modules"

Status = Literal["enabled", "disabled"]
Authentication = Literal["sas", "selfSigned", "certificateAuthority", "none"]
"""What an identity connects with, by IoT Hub's names: a key, a certificate known by its thumbprint, one of a known CA."""


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """What devices and modules have alike. Keys are base64 text; thumbprints hex of SHA-1 or SHA-256, upper case."""

    authentication: Authentication = "sas"
    primary_key: str = ""
    secondary_key: str = ""
    primary_thumbprint: str = ""
    secondary_thumbprint: str = ""
    generation_id: str  # changes when an identity is deleted and created again under the same id
    created: int  # ticks
    updated: int = 0  # ticks of the last change; 0: never changed


class Device(Credentials, frozen=True, kw_only=True):
    """One device. `entity_id` is what its events are about."""

    id: str
    status: Status = "enabled"
    status_reason: str = ""
    status_updated: int = 0  # ticks; 0: as created
    entity_id: str
    site: str = ""
    iot_edge: bool = False
    scope: str = ""  # IoT Hub's deviceScope
    parents: tuple[str, ...] = ()  # IoT Hub's parentScopes

    @property
    def enabled(self) -> bool:
        return self.status == "enabled"

    def __repr__(self) -> str:
        return f"Device(id={self.id!r}, status={self.status!r}, entity_id={self.entity_id!r}, site={self.site!r}, keys=***)"

    def __rich_repr__(self) -> Any:
        """What rich (and its tracebacks) may show."""
        yield "id", self.id
        yield "status", self.status
        yield "keys", "***"


class Module(Credentials, frozen=True, kw_only=True):
    """A part of a device with an identity, keys and a twin of its own. It is enabled while its device is."""

    device: str
    id: str
    managed_by: str = ""

    @property
    def client_id(self) -> str:
        return f"{self.device}/{self.id}"

    def __repr__(self) -> str:
        return f"Module(device={self.device!r}, id={self.id!r}, keys=***)"

    def __rich_repr__(self) -> Any:
        yield "device", self.device
        yield "id", self.id
        yield "keys", "***"


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody asks for of credentials. None and empty: made when an identity is created, kept when it is changed."""

    authentication: Authentication | None = None
    primary_key: str = ""
    secondary_key: str = ""
    primary_thumbprint: str = ""
    secondary_thumbprint: str = ""


class Draft(Asked, frozen=True, kw_only=True):
    """A device that somebody asks for. Keys left empty are made; `entity_id` left empty is the device's id."""

    id: str
    status: Status = "enabled"
    status_reason: str = ""
    entity_id: str = ""
    site: str = ""
    iot_edge: bool | None = None
    scope: str | None = None
    parents: tuple[str, ...] | None = None

    def __repr__(self) -> str:
        return f"Draft(id={self.id!r}, status={self.status!r}, keys=***)"


class ModuleDraft(Asked, frozen=True, kw_only=True):
    """A module that somebody asks for, as a draft of a device."""

    device: str
    id: str
    managed_by: str = ""

    def __repr__(self) -> str:
        return f"ModuleDraft(device={self.device!r}, id={self.id!r}, keys=***)"


class Registered(NamedTuple):
    """A device as it stands in the registry."""

    device: Device
    etag: str


class RegisteredModule(NamedTuple):
    module: Module
    etag: str


def to_body(device: Device) -> dict[str, Any]:
    """The document's body; the id is the document's own."""
    body: dict[str, Any] = msgspec.to_builtins(device)
    del body["id"]
    return body


def from_body(id: str, body: dict[str, Any]) -> Device:
    return msgspec.convert({**body, "id": id}, Device)


def module_body(module: Module) -> dict[str, Any]:
    """The document's body; device and id are in the document's id."""
    body: dict[str, Any] = msgspec.to_builtins(module)
    del body["id"], body["device"]
    return body


def module_from_body(client_id: str, body: dict[str, Any]) -> Module:
    device, _, id = client_id.partition("/")
    return msgspec.convert({**body, "device": device, "id": id}, Module)
