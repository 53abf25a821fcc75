"""Somebody takes an alert on."""

from __future__ import annotations

import msgspec
from litestar import post
from litestar.datastructures import State
from litestar.params import FromPath, JSONBody

from headrace.web.alerts import Alert, alert_of


class Acknowledgement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who takes the alert on, and what they want to say about it."""

    by: str = "console"
    note: str = ""

    def __post_init__(self) -> None:
        if not 0 < len(self.by) <= 100 or len(self.note) > 1000:
            raise ValueError("`by` takes 1 to 100 characters, `note` at most 1,000")


@post("/api/alerts/{alert_id:str}/acknowledge", status_code=200, summary="Acknowledge an alert", tags=["alerts"])
async def acknowledge(state: State, alert_id: FromPath[str], data: JSONBody[Acknowledgement]) -> Alert:
    alert = alert_of(await state.services.incidents.acknowledge(alert_id, data.by, data.note))
    await state.room.refresh_alerts()
    return alert
