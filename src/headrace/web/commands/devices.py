"""What people do to devices from the console. Every command is a call of the hub's own service API.

A refusal of the hub comes back in its own words; an etag that is out of date is a 409.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Annotated, Any, Literal

import msgspec
from litestar import delete, post, put
from litestar.datastructures import State
from litestar.params import FromPath, FromQuery, JSONBody

from headrace.core.clock import to_datetime
from headrace.core.errors import UserError
from headrace.devices.rules import KEY_BYTES, make_key
from headrace.web.hub import Hub, path_of
from headrace.web.rights import owner_only

METHOD_MARGIN_S = 10.0  # above what the hub itself waits
PROPERTIES_MAX = 100

Seconds = Annotated[int, msgspec.Meta(ge=0, le=300)]


class _Asked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    pass


class NewDevice(_Asked, frozen=True):
    """A device to create. Keys left empty are made by the hub."""

    id: str
    authentication: Literal["sas", "selfSigned", "certificateAuthority"] = "sas"
    primary_key: str = ""
    secondary_key: str = ""
    primary_thumbprint: str = ""
    secondary_thumbprint: str = ""
    site: str = ""
    entity: str = ""
    enabled: bool = True
    iot_edge: bool = False

    def __repr__(self) -> str:
        return f"NewDevice(id={self.id!r}, keys=***)"


class NewModule(_Asked, frozen=True):
    id: str
    managed_by: str = ""


class NewStatus(_Asked, frozen=True):
    enabled: bool
    reason: str = ""
    etag: str = "*"


class NewTwin(_Asked, frozen=True):
    """Tags and desired as a whole. `etag` is that of the twin they were made from; `*` overwrites what others did."""

    tags: dict[str, Any]
    desired: dict[str, Any]
    etag: str


class Rotation(_Asked, frozen=True):
    which: Literal["primary", "secondary"]


class Call(_Asked, frozen=True):
    """A direct method. Timeouts in seconds: to answer (5 to 300), and for the device to connect (0 to 300)."""

    name: str
    payload: Any = None
    response_timeout_s: Annotated[int, msgspec.Meta(ge=5, le=300)] = 30
    connect_timeout_s: Seconds = 0


class Sending(_Asked, frozen=True):
    """A message to a device. `expiry_s` 0 is the hub's usual hour."""

    body: str
    properties: dict[str, str] = {}
    ack: Literal["none", "positive", "negative", "full"] = "none"
    expiry_s: Annotated[int, msgspec.Meta(ge=0, le=172_800)] = 0
    message_id: str = ""
    correlation_id: str = ""
    content_type: str = ""


@post("/api/hub/devices", status_code=201, summary="Create a device", tags=["hub"], guards=[owner_only])
async def create_device(state: State, data: JSONBody[NewDevice]) -> dict[str, str]:
    """Raises Conflict where there is one of that id."""
    body: dict[str, Any] = {
        "deviceId": data.id,
        "status": "enabled" if data.enabled else "disabled",
        "authentication": {"type": data.authentication},
        "capabilities": {"iotEdge": data.iot_edge},
        "site": data.site,
        "entityId": data.entity,
    }
    if data.authentication == "sas":
        body["authentication"]["symmetricKey"] = {
            "primaryKey": data.primary_key or None,
            "secondaryKey": data.secondary_key or None,
        }
    elif data.authentication == "selfSigned":
        body["authentication"]["x509Thumbprint"] = {
            "primaryThumbprint": data.primary_thumbprint or None,
            "secondaryThumbprint": data.secondary_thumbprint or None,
        }
    await _hub(state).call("PUT", path_of("devices", _id(data.id)), body, policy="registryReadWrite")
    return {"id": data.id}


@put("/api/hub/devices/{id:str}/status", summary="Enable or disable", tags=["hub"], guards=[owner_only])
async def set_status(state: State, id: FromPath[str], data: JSONBody[NewStatus]) -> dict[str, str]:
    """A device that is disabled loses the connection it has. Raises Conflict for another etag."""
    status = "enabled" if data.enabled else "disabled"
    body = {"deviceId": id, "status": status, "statusReason": data.reason}
    await _hub(state).call("PUT", path_of("devices", id), body, policy="registryReadWrite", if_match=data.etag)
    return {"status": status}


@post("/api/hub/devices/{id:str}/rotate", status_code=200, summary="A new key", tags=["hub"], guards=[owner_only])
async def rotate_key(state: State, id: FromPath[str], data: JSONBody[Rotation]) -> dict[str, str]:
    """The old one opens no new connection. Raises NotFound; UserError for a device without keys."""
    hub, path = _hub(state), path_of("devices", id)
    there = (await hub.call("GET", path, policy="registryReadWrite")).body
    kind = there["authentication"]["type"]
    if kind != "sas":
        raise UserError(
            f"{id!r} proves itself by {kind}, it has no key", hint="show its certificate", code="device.key"
        )
    body = {
        "deviceId": id,
        "status": there["status"],
        "statusReason": there["statusReason"],
        "authentication": {"type": "sas", "symmetricKey": {f"{data.which}Key": make_key(os.urandom(KEY_BYTES))}},
    }
    await hub.call("PUT", path, body, policy="registryReadWrite", if_match=there["etag"])
    return {"rotated": data.which}


@delete("/api/hub/devices/{id:str}", status_code=200, summary="Delete a device", tags=["hub"], guards=[owner_only])
async def delete_device(state: State, id: FromPath[str]) -> dict[str, str]:
    """With its modules, twins and waiting messages; what it sent stays in history."""
    await _hub(state).call("DELETE", path_of("devices", id), policy="registryReadWrite", if_match="*")
    return {"deleted": id}


@put("/api/hub/devices/{id:str}/twin", summary="Set tags and desired", tags=["hub"], guards=[owner_only])
async def set_twin(
    state: State, id: FromPath[str], data: JSONBody[NewTwin], module: FromQuery[str] = ""
) -> dict[str, Any]:
    """The twin after it. Raises Conflict when somebody changed it since `etag`."""
    body = {"tags": data.tags, "properties": {"desired": data.desired}}
    path = path_of("twins", id, *_module(module))
    return dict((await _hub(state).call("PUT", path, body, policy="service", if_match=data.etag)).body)


@post(
    "/api/hub/devices/{id:str}/methods", status_code=200, summary="Invoke a method", tags=["hub"], guards=[owner_only]
)
async def invoke_method(
    state: State, id: FromPath[str], data: JSONBody[Call], module: FromQuery[str] = ""
) -> dict[str, Any]:
    """{status, payload} as the device answers. Raises NotFound when it is not connected, Unavailable when it is silent."""
    body = {
        "methodName": data.name,
        "payload": data.payload,
        "responseTimeoutInSeconds": data.response_timeout_s,
        "connectTimeoutInSeconds": data.connect_timeout_s,
    }
    path = path_of("twins", id, *_module(module), "methods")
    limit_s = data.response_timeout_s + data.connect_timeout_s + METHOD_MARGIN_S
    return dict((await _hub(state).call("POST", path, body, policy="service", timeout_s=limit_s)).body)


@post("/api/hub/devices/{id:str}/mail", status_code=200, summary="Send a message", tags=["hub"], guards=[owner_only])
async def send_message(state: State, id: FromPath[str], data: JSONBody[Sending]) -> dict[str, str]:
    """Durable when it is answered, with its message id. Raises UserError when the device's queue is full."""
    headers: dict[str, str] = {"iothub-ack": data.ack}
    given = {
        "iothub-messageid": data.message_id,
        "iothub-correlationid": data.correlation_id,
        "iothub-contenttype": data.content_type,
    }
    headers |= {name: value for name, value in given.items() if value}
    if data.expiry_s:
        until = to_datetime(state.services.clock.now()) + timedelta(seconds=data.expiry_s)
        headers["iothub-expiry"] = until.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    if len(data.properties) > PROPERTIES_MAX:
        raise UserError(f"{len(data.properties)} properties", hint=f"send at most {PROPERTIES_MAX}", code="web.header")
    headers |= {f"iothub-app-{name}": value for name, value in data.properties.items()}
    for name, value in headers.items():
        _check_header(name, value)
    headers["content-type"] = data.content_type or "application/octet-stream"
    path = path_of("devices", id, "messages", "devicebound")
    answer = await _hub(state).call("POST", path, data.body.encode(), policy="service", headers=headers)
    return {"messageId": answer.headers.get("iothub-messageid", "")}


@delete("/api/hub/devices/{id:str}/mail", status_code=200, summary="Empty its queue", tags=["hub"], guards=[owner_only])
async def purge_messages(state: State, id: FromPath[str]) -> dict[str, int]:
    """How many messages were thrown away."""
    found = (await _hub(state).call("DELETE", path_of("devices", id, "commands"), policy="service")).body
    return {"purged": int(found["totalMessagesPurged"])}


@post("/api/hub/devices/{id:str}/modules", status_code=201, summary="Add a module", tags=["hub"], guards=[owner_only])
async def create_module(state: State, id: FromPath[str], data: JSONBody[NewModule]) -> dict[str, str]:
    body = {"deviceId": id, "moduleId": data.id, "managedBy": data.managed_by, "authentication": {"type": "sas"}}
    path = path_of("devices", id, "modules", _id(data.id))
    await _hub(state).call("PUT", path, body, policy="registryReadWrite")
    return {"id": data.id}


@delete(
    "/api/hub/devices/{id:str}/modules/{module:str}",
    status_code=200,
    summary="Remove a module",
    tags=["hub"],
    guards=[owner_only],
)
async def delete_module(state: State, id: FromPath[str], module: FromPath[str]) -> dict[str, str]:
    path = path_of("devices", id, "modules", module)
    await _hub(state).call("DELETE", path, policy="registryReadWrite", if_match="*")
    return {"deleted": module}


def _hub(state: State) -> Hub:
    hub: Hub = state.hub_api
    return hub


def _module(id: str) -> tuple[str, ...]:
    return ("modules", id) if id else ()


def _id(text: str) -> str:
    """Raises UserError for an empty id, which would be another path."""
    if not text.strip():
        raise UserError("an id is missing", hint="give it a name", code="device.id")
    return text


_HEADER = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


def _check_header(name: str, value: str) -> None:
    """Names and values travel as HTTP headers. Raises UserError."""
    bare = name.removeprefix("iothub-app-")
    if not bare or set(name) - _HEADER:
        raise UserError(
            f"property name {bare[:60]!r} cannot be sent", hint="use letters, digits, - and _", code="web.header"
        )
    if not (value.isascii() and value.isprintable()):
        raise UserError(
            f"the value of {bare[:60]!r} has characters that cannot be sent",
            hint="use plain ASCII on one line, or put it in the body",
            code="web.header",
        )
