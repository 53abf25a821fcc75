"""Incidents as documents: what the console lists, and acknowledging one.

The alert service writes collection `incidents`, people's acknowledgements go to `incident_acks`: each has one writer, so
neither can undo the other's work. Reading joins them.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from headrace.alerts.model import Incident
from headrace.core.clock import Clock
from headrace.core.errors import NotFound, UserError, nearest
from headrace.docstore.contract import DocStore

INCIDENTS = "incidents"
ACKNOWLEDGEMENTS = "incident_acks"
_SEARCHED = ("active", "telling")
_WHERE: dict[str, dict[str, Any]] = {
    "": {},
    "all": {},
    "active": {"active": True},
    "open": {"active": True},
    "acknowledged": {"active": True},
    "resolved": {"active": False},
}


class IncidentStore:
    """Commands and queries on incidents. Every process may have one."""

    def __init__(self, docs: DocStore, clock: Clock) -> None:
        self._docs, self._clock = docs, clock

    async def get(self, id: str) -> Incident:
        """Raises NotFound."""
        found = await self._docs.get(INCIDENTS, id)
        if found is None:
            raise NotFound(
                f"there is no incident {id!r}", hint="`headrace alert list` shows them", code="alerts.incident"
            )
        return (await self._joined([found.body]))[0]

    async def list(
        self, *, state: str | None = "", key: str = "", rule: str = "", limit: int = 200
    ) -> Sequence[Incident]:
        """Newest first. `state`: `active` or `open` (acknowledged ones too), `acknowledged`, `resolved`, empty for all."""
        wanted = state or ""
        if wanted not in _WHERE:
            raise UserError(
                f"there is no incident state {wanted!r}",
                hint=nearest(wanted, _WHERE) or "active, acknowledged or resolved",
                code="alerts.state",
            )
        where = _WHERE[wanted] | ({"key": key} if key else {}) | ({"rule": rule} if rule else {})
        if wanted != "acknowledged":
            found = await self._docs.query(INCIDENTS, where=where, limit=limit)
            return await self._joined([document.body for document in found])
        found = await self._docs.query(INCIDENTS, where=where, limit=10_000)
        joined = await self._joined([document.body for document in found])
        return [incident for incident in joined if incident.state == "acknowledged"][:limit]

    async def open(self, *, limit: int = 200) -> Sequence[Incident]:
        """Those not resolved, newest first."""
        return await self.list(state="active", limit=limit)

    async def history(self, key: str, *, limit: int = 200) -> Sequence[Incident]:
        """All of one machine's, newest first."""
        return await self.list(key=key, limit=limit)

    async def acknowledge(self, id: str, by: str, note: str = "") -> Incident:
        """A person has seen it; it stays acknowledged until it resolves. The last word counts. Raises NotFound."""
        if not by.strip():
            raise UserError("an acknowledgement needs a name", hint="say who: by=...", code="alerts.by")
        await self.get(id)
        body = {"at": self._clock.now(), "by": by.strip()[:200], "note": note[:2000]}
        await self._docs.put(ACKNOWLEDGEMENTS, id, body)
        return await self.get(id)

    async def write(self, incidents: Iterable[Incident]) -> None:
        """For the alert service only: insert or replace, in one transaction, durable when it returns."""
        await self._docs.put_many(INCIDENTS, {incident.id: body_of(incident) for incident in incidents})

    async def waiting(self) -> Sequence[Incident]:
        """Incidents that somebody has not been told of yet (or of whose end)."""
        found = await self._docs.query(INCIDENTS, where={"telling": True}, limit=10_000)
        return await self._joined([document.body for document in found])

    async def told(self, id: str, notice: str, outcome: str) -> None:
        """For the alert service only: note how telling people went."""
        found = await self._docs.get(INCIDENTS, id)
        if found is not None:
            incident = incident_of(found.body)
            incident.notified[notice] = outcome
            await self.write([incident])

    async def _joined(self, bodies: Sequence[Mapping[str, Any]]) -> builtins.list[Incident]:
        joined = [incident_of(body) for body in bodies]
        said = await self._acknowledgements(sorted(incident.id for incident in joined))
        for incident in joined:
            if (by := said.get(incident.id)) is not None:
                incident.acknowledged, incident.acknowledged_by = int(by["at"]), str(by["by"])
                incident.note = str(by.get("note", ""))
                if incident.state == "open":
                    incident.state = "acknowledged"
        return joined

    async def _acknowledgements(self, ids: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        """Those of incidents `ids` (ascending), read as one range."""
        found: dict[str, Mapping[str, Any]] = {}
        after = ids[0][:-1] if ids else ""
        while ids:
            page = await self._docs.query(ACKNOWLEDGEMENTS, after=after, limit=1000)
            found |= {document.id: document.body for document in page}
            if len(page) < 1000 or page[-1].id >= ids[-1]:
                break
            after = page[-1].id
        return found


def incident_of(body: Mapping[str, Any]) -> Incident:
    """From a document, without what people said."""
    return msgspec.convert({name: value for name, value in body.items() if name not in _SEARCHED}, Incident)


def body_of(incident: Incident) -> dict[str, Any]:
    """The document: the incident, and two fields to search by."""
    body = incident.as_json()
    for name in ("acknowledged", "acknowledged_by", "note"):
        del body[name]
    if body["state"] == "acknowledged":
        body["state"] = "open"
    return {**body, "active": incident.state != "resolved", "telling": bool(untold(incident))}


def untold(incident: Incident) -> builtins.list[str]:
    """Which notices are still due: `channel:open`, and `channel:resolved` once it is over."""
    steps = ("open", "resolved") if incident.state == "resolved" else ("open",)
    return [
        f"{channel}:{step}"
        for channel in incident.channels
        for step in steps
        if f"{channel}:{step}" not in incident.notified
    ]
