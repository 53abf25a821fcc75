"""What people said about incidents, as events of stream `alerts`.

The epoch of each event is its change's sequence number, so one that was appended before a crash is not appended again.
"""

from __future__ import annotations

import msgspec
import structlog

from headrace.alerts.incidents import ACKNOWLEDGEMENTS, IncidentStore
from headrace.alerts.watch import announce, announcement
from headrace.core.errors import NotFound
from headrace.docstore.contract import Change, DocStore
from headrace.eventlog.contract import EventLog

log = structlog.get_logger()
CURSORS = "alert_cursors"
_PRODUCER = "alerts-acknowledgements"


class Acknowledgements:
    """Follows the change feed of acknowledgements. Run one."""

    def __init__(self, log: EventLog, docs: DocStore, store: IncidentStore) -> None:
        self._log, self._docs, self._store = log, docs, store
        self._since = -1

    async def run(self) -> None:
        while True:
            await self.step(wait_s=5.0)

    async def step(self, *, wait_s: float) -> int:
        """Announce what was said since the last step; returns how many."""
        if self._since < 0:
            found = await self._docs.get(CURSORS, ACKNOWLEDGEMENTS)
            self._since = int(found.body["sequence"]) if found else 0
        changes = await self._docs.changes(ACKNOWLEDGEMENTS, self._since, limit=100, wait_s=wait_s)
        for change in changes:
            await self._say(change)
        if changes:
            self._since = changes[-1].sequence
            await self._docs.put(CURSORS, ACKNOWLEDGEMENTS, {"sequence": self._since})
        return len(changes)

    async def _say(self, change: Change) -> None:
        if change.body is None:
            return
        try:
            incident = await self._store.get(change.id)
        except NotFound:
            return
        said = msgspec.structs.replace(
            incident,
            acknowledged=int(change.body["at"]),
            acknowledged_by=str(change.body["by"]),
            note=str(change.body.get("note", "")),
        )
        row = announcement(said, "acknowledged", mark=f"acknowledged:{change.sequence}")
        await announce(self._log, [row], producer=_PRODUCER, epoch=change.sequence)
        log.info("incident.changed", step="acknowledged", rule=incident.rule, incident=incident.id)
