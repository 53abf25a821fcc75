"""The fleet now, one entity of it, its alerts, and how its numbers are labelled."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import MediaType, Response, get
from litestar.datastructures import State
from litestar.params import FromPath, FromQuery

from headrace.core.errors import NotFound
from headrace.docstore.contract import Document
from headrace.web.alerts import Alert, alert_of
from headrace.web.status import stream_roles

LABELS_MAX = 5000


@get("/api/fleet", summary="The fleet now", tags=["fleet"])
async def fleet(state: State) -> Response[bytes]:
    """Columns over slots: `names` gives slot, id and site; `rows` what changes; `spark` the last minute of the first field."""
    return Response(state.room.snapshot(), media_type=MediaType.JSON)


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """One entity: what is known of it now. `seen` is ms since 1970, 0 for never; `registered` the device that reports on it."""

    id: str
    site: str
    state: str
    seen: float
    rate: float
    values: dict[str, float]
    alerts: list[Alert]
    streams: dict[str, str | None]
    registered: dict[str, Any] | None = None


@get("/api/devices/{entity:path}", summary="One entity now", tags=["fleet"])
async def device(state: State, entity: FromPath[str]) -> Device:
    """Raises NotFound for an entity that neither the fleet nor the registry has."""
    name = entity.removeprefix("/")
    services = state.services
    known = state.fleet.entity(name, services.clock.now())
    registered = await services.docs.query("devices", where={"entity_id": name}, limit=1)
    if known is None and not registered:
        raise NotFound(f"no device or machine {name!r} has been heard of", hint="GET /api/fleet lists those that have")
    incidents = await services.incidents.list(key=name, limit=50)
    return Device(
        **(known or {"id": name, "site": "", "state": "quiet", "seen": 0.0, "rate": 0.0, "values": {}}),
        alerts=[alert_of(incident) for incident in incidents],
        streams=stream_roles(services.settings, await services.log.streams()),
        registered=_public(registered[0]) if registered else None,
    )


_PUBLIC = ("status", "site")


def _public(device: Document) -> dict[str, Any]:
    """Of a device's record only what is meant for eyes; keys never leave the store."""
    return {"id": device.id, **{name: device.body[name] for name in _PUBLIC if name in device.body}}


class Alerts(msgspec.Struct, frozen=True):
    alerts: list[Alert]


@get("/api/alerts", summary="Alerts, newest first", tags=["alerts"])
async def alerts(
    state: State, only: FromQuery[str] = "", entity: FromQuery[str] = "", limit: FromQuery[int] = 200
) -> Alerts:
    """`only`: `open`, `resolved`, or empty for all."""
    found = await state.services.incidents.list(state=only, key=entity, limit=min(max(limit, 1), 1000))
    return Alerts([alert_of(incident) for incident in found])


class Labels(msgspec.Struct, frozen=True):
    """What to write beside numbers and sites: `fields` {unit, label, digits} by field, `sites` {title, place} by site."""

    fields: dict[str, dict[str, Any]]
    sites: dict[str, dict[str, Any]]


@get("/api/labels", summary="Units and titles", tags=["fleet"])
async def labels(state: State) -> Labels:
    docs = state.services.docs
    fields = await docs.query("fields", limit=LABELS_MAX)
    sites = await docs.query("sites", limit=LABELS_MAX)
    return Labels({doc.id: doc.body for doc in fields}, {doc.id: doc.body for doc in sites})
