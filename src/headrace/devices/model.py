"""A device as the platform knows it: who it is, what it belongs to, and the keys it signs with.

A device is one document in the collection `devices`; its keys never appear in a repr, a log line or an error.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

COLLECTION = "devices"

Status = Literal["enabled", "disabled"]


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """One device. Keys are base64 text of 32 bytes; `created` is in ticks; `entity_id` is what its events are about."""

    id: str
    status: Status = "enabled"
    primary_key: str
    secondary_key: str
    generation_id: str  # changes when a device is deleted and created again under the same id
    entity_id: str
    site: str = ""
    tags: dict[str, Any] = {}
    created: int

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


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """A device that somebody asks for. Keys left empty are made; `entity_id` left empty is the device's id."""

    id: str
    status: Status = "enabled"
    primary_key: str = ""
    secondary_key: str = ""
    entity_id: str = ""
    site: str = ""
    tags: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"Draft(id={self.id!r}, status={self.status!r}, keys=***)"


def to_body(device: Device) -> dict[str, Any]:
    """The document's body; the id is the document's own."""
    body: dict[str, Any] = msgspec.to_builtins(device)
    del body["id"]
    return body


def from_body(id: str, body: dict[str, Any]) -> Device:
    return msgspec.convert({**body, "id": id}, Device)
