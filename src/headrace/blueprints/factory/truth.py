"""What really happened in the simulated plant, and how well detections found it.

The rule of a match: same machine, same field where both name one, a kind that the detection may stand for, and the two spans
touch once the truth's is widened by `before_s` and `after_s`. Several detections of one incident are all right and count
as one find. So recall is found incidents / incidents, and precision is detections that match something / detections.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from headrace.core.clock import TICKS_PER_S

Kind = Literal["spike", "dip", "drift", "failure"]

BEFORE_S = 5.0
AFTER_S = 30.0
"""A ten-second window closes up to ten seconds after an event, and rules may ask a condition to hold for twenty."""


class Incident(NamedTuple):
    """One thing that happened: from `start` until before `end` (ticks). `size` is in the field's unit, negative for a dip;
    a failure has no field, and ends when the machine is repaired."""

    machine: str
    kind: Kind
    start: int
    end: int
    field: str
    size: float


class Detection(NamedTuple):
    """What somebody noticed. `kind` is any name that the `kinds` table of `score` explains; `field` may be empty."""

    machine: str
    kind: str
    start: int
    end: int
    field: str = ""


class Score(NamedTuple):
    """How one kind of detection did against the incidents it stands for."""

    incidents: int
    found: int
    detections: int
    correct: int

    @property
    def recall(self) -> float:
        """NaN when nothing happened."""
        return self.found / self.incidents if self.incidents else float("nan")

    @property
    def precision(self) -> float:
        """NaN when nothing was detected."""
        return self.correct / self.detections if self.detections else float("nan")


def score(
    detections: Iterable[Detection],
    incidents: Sequence[Incident],
    *,
    kinds: Mapping[str, Collection[Kind]],
    excused: Mapping[str, Collection[Kind]] | None = None,
    before_s: float = BEFORE_S,
    after_s: float = AFTER_S,
    since: int = 0,
    until: int = (1 << 63) - 1,
    lead_s: float = 0.0,
) -> dict[str, Score]:
    """A Score for each kind of detection in `kinds`, which says what incidents it is there to find.

    `excused` kinds of incident make a detection right without being asked for: a failure stops the pump, so a dip seen
    then is no false alarm. Only incidents that lie wholly between `since` and `until` must be found, and only
    detections that begin between them are counted: detectors learn at first, and the last incidents are still under way.
    What must be foreseen needs time to be: an incident less than `lead_s` after `since` need not be found either.
    """
    due_from = since + int(lead_s * TICKS_PER_S)
    by_machine: dict[str, list[Incident]] = {}
    for incident in incidents:
        by_machine.setdefault(incident.machine, []).append(incident)
    given = [one for one in detections if since <= one.start <= until]
    scores = {}
    for kind, wanted in kinds.items():
        right = {*wanted, *(excused or {}).get(kind, ())}
        own = [one for one in given if one.kind == kind]
        matches = [
            [
                incident
                for incident in by_machine.get(one.machine, ())
                if incident.kind in right and _touch(one, incident, before_s, after_s)
            ]
            for one in own
        ]
        due = {one for one in incidents if one.kind in wanted and due_from <= one.start and one.end <= until}
        found = due & {incident for match in matches for incident in match}
        scores[kind] = Score(len(due), len(found), len(own), sum(map(bool, matches)))
    return scores


def _touch(detection: Detection, incident: Incident, before_s: float, after_s: float) -> bool:
    if detection.field and incident.field and detection.field != incident.field:
        return False
    begin = incident.start - int(before_s * TICKS_PER_S)
    return detection.start <= incident.end + int(after_s * TICKS_PER_S) and detection.end >= begin
