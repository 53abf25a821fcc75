"""Rules and incidents: what people are told about, once each."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from headrace.core.clock import TICKS_PER_MS, TICKS_PER_S
from headrace.core.config import AlertConfig

State = Literal["open", "acknowledged", "resolved"]
Severity = Literal["info", "warning", "critical"]
FIELDS_MAX = 64  # fields of an event that an incident keeps
_LAST_MS = (1 << 44) - 1  # the year 2527


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """[alerts.NAME], with times in ticks."""

    name: str
    stream: str
    when: str
    key: str = "_entity_id"
    severity: Severity = "warning"
    title: str = ""
    for_ticks: int = 0
    clear_ticks: int = 0
    channels: tuple[str, ...] = ()


class Incident(msgspec.Struct, kw_only=True):
    """One time that a rule held for one key. Times are ticks; 0 where it has not come to that.

    `fields` are those of the latest matching event, `peak` the largest value of each number over all of them.
    `notified` says per `channel:open` and `channel:resolved` how telling people went: `sent`, or what failed.
    """

    id: str
    rule: str
    stream: str
    key: str
    severity: Severity
    title: str
    state: State = "open"
    opened: int
    last_seen: int
    resolved: int = 0
    events: int = 0
    fields: dict[str, Any] = {}
    peak: dict[str, float] = {}
    device: str = ""
    site: str = ""
    channels: tuple[str, ...] = ()
    notified: dict[str, str] = {}
    acknowledged: int = 0
    acknowledged_by: str = ""
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        made: dict[str, Any] = msgspec.to_builtins(self)
        return made


def rule_of(name: str, config: AlertConfig) -> Rule:
    return Rule(
        name=name,
        stream=config.stream,
        when=config.when,
        key=config.key,
        severity=config.severity,
        title=config.title,
        for_ticks=int(config.for_s * TICKS_PER_S),
        clear_ticks=int(config.clear_s * TICKS_PER_S),
        channels=config.channels,
    )


def incident_id(rule: str, key: str, opened: int) -> str:
    """The same for the same incident however often it is computed; ascending ids are newest first."""
    mark = hashlib.blake2b(f"{rule}\0{key}\0{opened}".encode(), digest_size=4).hexdigest()
    return f"{_LAST_MS - opened // TICKS_PER_MS:011x}-{mark}"


def titled(template: str, fields: Mapping[str, Any], *, rule: str, key: str) -> str:
    """`{machineId} runs hot` with the event's values; what the event lacks is left empty. Without a template: rule and key."""
    if not template:
        return f"{rule}: {key}"
    return re.sub(r"\{([^{}]*)\}", lambda found: _text(fields.get(found[1].strip())), template).strip()


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):  # three digits are what people read; a large number keeps its whole part
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)[:200]
