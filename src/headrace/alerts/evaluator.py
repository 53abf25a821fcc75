"""From matching events to incidents: when one opens, holds and resolves. Pure: no clock, no I/O.

Time is the log's (`_enqueued`), and an absence counts only once time has passed it, so the same events give the same
incidents whatever the batches, also after a restart from a snapshot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from headrace.alerts.model import FIELDS_MAX, Incident, Rule, incident_id, titled

Kind = Literal["opened", "held", "resolved"]


class Seen(NamedTuple):
    """One event of a key that is of interest: it matched, or the key's streak is running."""

    time: int
    key: str
    matched: bool
    fields: Mapping[str, Any]
    device: str = ""
    site: str = ""


class Change(NamedTuple):
    kind: Kind
    incident: Incident


class Streak(msgspec.Struct):
    """Matches of a key that have not lasted `for_ticks` yet."""

    since: int
    last: int
    events: int


class RuleState(msgspec.Struct):
    """Everything an evaluator remembers."""

    streaks: dict[str, Streak] = {}
    active: dict[str, Incident] = {}


class Evaluator:
    """One rule over all keys. State grows with keys that match now, not with keys there are."""

    def __init__(self, rule: Rule, state: RuleState | None = None) -> None:
        self.rule = rule
        self._streaks = dict(state.streaks) if state else {}
        self._active = dict(state.active) if state else {}

    @property
    def watched(self) -> frozenset[str]:
        """Keys whose next event is of interest even if it does not match: it breaks their streak."""
        return frozenset(self._streaks)

    @property
    def active(self) -> Mapping[str, Incident]:
        return self._active

    def snapshot(self) -> RuleState:
        """Shares no mutable part with the evaluator."""
        state = RuleState(self._streaks, self._active)
        return msgspec.convert(msgspec.to_builtins(state), RuleState)

    def observe(self, events: Sequence[Seen]) -> list[Change]:
        """Events in the order of their times. Returns what changed, one `held` at most an incident."""
        changes: list[Change] = []
        held: dict[str, Incident] = {}
        for event in events:
            incident = self._active.get(event.key)
            if incident and self._over(incident, event.time):
                changes.append(self._resolve(incident))
                incident = None
            if not event.matched:
                self._streaks.pop(event.key, None)
            elif incident:
                self._hold(incident, event, 1)
                held[incident.id] = incident
            elif opened := self._match(event):
                changes.append(Change("opened", opened))
        new = {change.incident.id for change in changes}
        return changes + [Change("held", incident) for id, incident in held.items() if id not in new]

    def advance(self, now: int) -> list[Change]:
        """All events up to `now` (ticks) have been observed: resolve what has been absent for long enough."""
        over = [incident for incident in self._active.values() if self._over(incident, now)]
        patience = self._patience()
        self._streaks = {key: streak for key, streak in self._streaks.items() if now <= streak.last + patience}
        return [self._resolve(incident) for incident in over]

    def _match(self, event: Seen) -> Incident | None:
        streak = self._streaks.get(event.key)
        if streak is None or event.time > streak.last + self._patience():
            streak = self._streaks[event.key] = Streak(event.time, event.time, 0)
        streak.last = event.time
        streak.events += 1
        if event.time - streak.since < self.rule.for_ticks:
            return None
        del self._streaks[event.key]
        rule = self.rule
        incident = Incident(
            id=incident_id(rule.name, event.key, event.time),
            rule=rule.name,
            stream=rule.stream,
            key=event.key,
            severity=rule.severity,
            title=titled(rule.title, event.fields, rule=rule.name, key=event.key),
            opened=event.time,
            last_seen=event.time,
            channels=rule.channels,
        )
        self._hold(incident, event, streak.events)
        self._active[event.key] = incident
        return incident

    def _hold(self, incident: Incident, event: Seen, events: int) -> None:
        incident.last_seen = event.time
        incident.events += events
        incident.device, incident.site = event.device, event.site
        incident.fields = dict(list(event.fields.items())[:FIELDS_MAX])
        for name, value in incident.fields.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                incident.peak[name] = max(float(value), incident.peak.get(name, float("-inf")))

    def _resolve(self, incident: Incident) -> Change:
        del self._active[incident.key]
        incident.state = "resolved"
        incident.resolved = incident.last_seen + self.rule.clear_ticks
        return Change("resolved", incident)

    def _over(self, incident: Incident, now: int) -> bool:
        return now > incident.last_seen + self.rule.clear_ticks

    def _patience(self) -> int:
        """How far apart two matches may lie within one streak: a slow device needs more than `clear_ticks`."""
        return max(self.rule.clear_ticks, self.rule.for_ticks)
