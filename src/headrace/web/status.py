"""Which stream plays which part on the pages."""

from __future__ import annotations

from collections.abc import Collection

from headrace.core.config import Settings


def known_streams(settings: Settings) -> frozenset[str]:
    """Streams that the settings name: they may be watched before their first event."""
    web = settings.web
    outputs = {stream for job in settings.jobs.values() for stream in job.outputs.values()}
    inputs = {stream for job in settings.jobs.values() for stream in job.inputs.values()}
    roles = {web.telemetry, web.anomalies, web.scored, web.aggregates}
    return frozenset({*roles, *outputs, *inputs, *settings.streams, "set_aside", "alerts"} - {""})


def stream_roles(settings: Settings, present: Collection[str]) -> dict[str, str | None]:
    """By role (telemetry, anomalies, scored, aggregates) the stream's name, or None where it has no events yet."""
    web = settings.web
    roles = {
        "telemetry": web.telemetry,
        "anomalies": web.anomalies,
        "scored": web.scored,
        "aggregates": web.aggregates,
    }
    return {role: name if name in present else None for role, name in roles.items()}
