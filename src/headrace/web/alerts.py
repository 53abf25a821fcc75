"""Alerts as the console shows them, whatever type the alerts service hands out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from headrace.core.clock import TICKS_PER_MS

RANK = {"info": 0, "warning": 1, "critical": 2}


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """One incident. Times are ms since 1970 (UTC), null where it has not come to that."""

    id: str
    rule: str
    entity: str
    severity: str
    state: str
    title: str
    opened: float | None = None
    last_seen: float | None = None
    resolved: float | None = None
    acknowledged_by: str = ""
    note: str = ""
    events: int = 0
    fields: dict[str, Any] = {}


def alert_of(incident: Any) -> Alert:
    """From an incident with times in ticks; absent or empty ones are null."""
    raw: dict[str, Any] = msgspec.to_builtins(incident)
    fields = raw.get("fields")
    return Alert(
        id=str(raw["id"]),
        rule=str(raw.get("rule", "")),
        entity=str(raw.get("key", "")),
        severity=str(raw.get("severity", "warning")),
        state=str(raw.get("state", "open")),
        title=str(raw.get("title") or raw.get("rule", "")),
        opened=_ms(raw.get("opened")),
        last_seen=_ms(raw.get("last_seen")),
        resolved=_ms(raw.get("resolved")),
        acknowledged_by=str(raw.get("acknowledged_by") or ""),
        note=str(raw.get("note") or ""),
        events=int(raw.get("events") or 0),
        fields=fields if isinstance(fields, dict) else {},
    )


def worst_by_entity(alerts: Iterable[Alert]) -> dict[str, str]:
    """The highest severity among the open alerts of each entity."""
    worst: dict[str, str] = {}
    for alert in alerts:
        if alert.state == "resolved":
            continue
        if RANK.get(alert.severity, 0) >= RANK.get(worst.get(alert.entity, "info"), 0):
            worst[alert.entity] = alert.severity
    return worst


def _ms(ticks: Any) -> float | None:
    return ticks / TICKS_PER_MS if isinstance(ticks, int) and ticks > 0 else None
