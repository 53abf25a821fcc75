"""The device registry as the console reads it: lists, IoT Hub queries, and one device with all that the hub knows of it.

Reads go to the documents. Keys are in no answer but that of `/keys`, which only a console on this machine gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from litestar import Response, get
from litestar.datastructures import State
from litestar.params import FromPath, FromQuery, QueryParameter

from headrace.core.clock import TICKS_PER_MS
from headrace.core.errors import NotFound
from headrace.devices.connection_string import build
from headrace.devices.hub_query import HubQueries
from headrace.devices.hub_view import PRESENCE, View, Views
from headrace.devices.mailbox import PENDING_MAX
from headrace.devices.model import Credentials
from headrace.devices.queries import DeviceQueries
from headrace.web import registry
from headrace.web.hub import path_of
from headrace.web.qr import qr_image
from headrace.web.raw_messages import RawMessage, last_messages
from headrace.web.rights import owner_only

NO_STORE = {"Cache-Control": "no-store"}
ROWS_MAX = 500


@get("/api/hub", summary="Whether the hub runs, and how clients reach it", tags=["hub"])
async def hub(state: State) -> dict[str, Any]:
    """Without keys. `mayChange`: whether this console changes devices and shows keys."""
    return {**await state.services.hub_facts(), "mayChange": state.may_change}


@get("/api/hub/devices", summary="Registered devices", tags=["hub"])
async def devices(
    state: State,
    text: FromQuery[str] = "",
    connected: FromQuery[str] = "",
    status: FromQuery[str] = "",
    authentication: FromQuery[str] = "",
    site: FromQuery[str | None] = None,
    sort: FromQuery[str] = "id",
    descending: FromQuery[bool] = False,
    offset: FromQuery[int] = 0,
    limit: FromQuery[int] = 50,
) -> registry.Page:
    """A page. `text` is looked for in id, entity and site; `connected` is `yes`, `no` or `never`."""
    asked = registry.wanted(
        text=text[:200],
        connected=connected,
        status=status,
        authentication=authentication,
        site=site,
        sort=sort,
        descending=descending,
        offset=max(offset, 0),
        limit=min(max(limit, 1), ROWS_MAX),
    )
    page: registry.Page = await state.registry.page(asked)
    return page


class QueryPage(msgspec.Struct, frozen=True, kw_only=True):
    """`lines` are the devices of whole rows, as in the list; `rows` those of a query that names columns."""

    lines: list[registry.Line]
    rows: list[dict[str, Any]]
    continuation: str


@get("/api/hub/query", summary="A query in IoT Hub's language", tags=["hub"])
async def query(
    state: State,
    q: Annotated[str, QueryParameter(description="SELECT * FROM devices WHERE ...")],
    continuation: FromQuery[str] = "",
    limit: FromQuery[int] = 50,
) -> QueryPage:
    """Reads the registry until a page is full: a condition that few devices meet costs about a second per 50,000."""
    found = await HubQueries(state.services.docs).run(
        q, rows_max=min(max(limit, 1), ROWS_MAX), continuation=continuation
    )
    whole = found.item_type == "Twin" and all("moduleId" not in row for row in found.rows)
    lines = await state.registry.lines([row["deviceId"] for row in found.rows]) if whole else []
    return QueryPage(lines=lines, rows=[] if whole else found.rows, continuation=found.continuation)


@get("/api/hub/devices/{id:str}", summary="One device: registry, twin, connection, modules", tags=["hub"])
async def device(state: State, id: FromPath[str]) -> dict[str, Any]:
    """Times are ms since 1970, 0 for never; `twin` is as the service API tells it. Raises NotFound."""
    docs = state.services.docs
    queries, views = DeviceQueries(docs), Views(docs)
    found = await queries.registered(id)
    if found is None:
        await queries.get(id)  # says what is near
        raise NotFound(f"there is no device {id!r}", code="device.not_found")
    view = await views.one(found.device, etag=found.etag)
    modules = [
        await views.one(found.device, each.module, etag=each.etag) for each in await queries.modules(id, limit=100)
    ]
    return {
        **_identity(found.device),
        "id": id,
        "etag": found.etag,
        "status": found.device.status,
        "statusReason": found.device.status_reason,
        "entity": found.device.entity_id,
        "site": found.device.site,
        "iotEdge": found.device.iot_edge,
        "connection": await _connection(state, id),
        "why": await state.services.why(id),
        "waiting": view.waiting,
        "waitingMax": PENDING_MAX,
        "twin": view.json,
        "modules": [_module(each) for each in modules],
        "mayChange": state.may_change,
    }


@get("/api/hub/devices/{id:str}/messages", summary="What a device sent last, as it came", tags=["hub"])
async def messages(
    state: State, id: FromPath[str], stream: FromQuery[str] = "", limit: FromQuery[int] = 20
) -> list[RawMessage]:
    """Newest first, of `telemetry` unless another stream is named; looks back a bounded way."""
    services = state.services
    return await last_messages(
        services.log, stream or services.settings.web.telemetry, id, limit=min(max(limit, 1), 200)
    )


@get("/api/hub/devices/{id:str}/modules/{module:str}/twin", summary="A module's twin", tags=["hub"])
async def module_twin(state: State, id: FromPath[str], module: FromPath[str]) -> dict[str, Any]:
    """Raises NotFound."""
    queries = DeviceQueries(state.services.docs)
    owner, found = await queries.get(id), await queries.module(id, module)
    if found is None:
        raise NotFound(f"device {id!r} has no module {module!r}", code="module.not_found")
    return dict((await Views(state.services.docs).one(owner, found.module, etag=found.etag)).json)


class Keys(msgspec.Struct, frozen=True, kw_only=True):
    """Of a device or module. `qr` is the connection string as a data: URI of an SVG."""

    primary_key: str
    secondary_key: str
    connection_string: str
    secondary_connection_string: str
    qr: str

    def __repr__(self) -> str:
        return "Keys(***)"


@get("/api/hub/devices/{id:str}/keys", summary="Keys and connection strings", tags=["hub"], guards=[owner_only])
async def keys(state: State, id: FromPath[str], module: FromQuery[str] = "") -> Response[Keys]:
    """Asked of the service API, as any client would. Raises NotFound."""
    path = path_of("devices", id, *(("modules", module) if module else ()))
    body: Mapping[str, Any] = (await state.hub_api.call("GET", path, policy="registryReadWrite")).body
    given = (body.get("authentication") or {}).get("symmetricKey") or {}
    host = (await state.hub_api.address()).host
    texts = [_string(host, id, module, given.get(name) or "") for name in ("primaryKey", "secondaryKey")]
    return Response(
        Keys(
            primary_key=given.get("primaryKey") or "",
            secondary_key=given.get("secondaryKey") or "",
            connection_string=texts[0],
            secondary_connection_string=texts[1],
            qr=qr_image(texts[0]),
        ),
        headers=NO_STORE,
    )


def _string(host: str, device: str, module: str, key: str) -> str:
    if key:
        return build(host, device, key, module_id=module)
    return f"HostName={host};DeviceId={device}{f';ModuleId={module}' if module else ''};x509=true"


def _identity(of: Credentials) -> dict[str, Any]:
    """What may be seen of credentials: their kind and thumbprints, no key."""
    return {
        "authentication": of.authentication,
        "thumbprints": [text for text in (of.primary_thumbprint, of.secondary_thumbprint) if text],
        "created": of.created / TICKS_PER_MS,
        "updated": of.updated / TICKS_PER_MS,
    }


def _module(view: View) -> dict[str, Any]:
    module, connection = view.module, view.connection
    assert module is not None
    return {
        **_identity(module),
        "id": module.id,
        "etag": view.etag,
        "managedBy": module.managed_by,
        "connected": connection.connected,
        "since": max(connection.since, 0) / TICKS_PER_MS,
    }


async def _connection(state: State, id: str) -> dict[str, Any]:
    """What presence says of a device, its history newest first."""
    found = await state.services.docs.get(PRESENCE, id)
    body: Mapping[str, Any] = {} if found is None else found.body
    history = [
        {"at": at / TICKS_PER_MS, "connected": bool(connected), "reason": reason, "address": address}
        for at, connected, reason, address in reversed(body.get("history") or ())
    ]
    return {
        "connected": bool(body.get("connected")),
        "since": (body.get("since") or 0) / TICKS_PER_MS,
        "seen": (body.get("last_activity") or 0) / TICKS_PER_MS,
        "reason": body.get("reason") or "",
        "address": body.get("address") or "",
        "worker": body.get("worker") or "",
        "history": history,
    }
