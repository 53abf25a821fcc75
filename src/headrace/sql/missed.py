"""Which windows a refused event would have counted in: told with the event, so that a report can be corrected later.

Tumbling and hopping windows lie where they lie; sessions and sliding windows are made by the events that come, so a refused
one has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headrace.core.clock import to_iso
from headrace.sql.plan import InputNode, Plan, SelectNode, in_step
from headrace.sql.tree import Window
from headrace.sql.units import ORIGIN
from headrace.sql.values import Ints

_WINDOWS_MAX = 100


def windows_of(plan: Plan) -> dict[int, list[Window]]:
    """By input node: the windows of the statements that group its rows one by one, each kind once, in their order."""
    found: dict[int, list[Window]] = {at: [] for at, node in enumerate(plan.nodes) if isinstance(node, InputNode)}
    for node in plan.nodes:
        if not isinstance(node, SelectNode) or len(node.sources) != 1:
            continue
        at = in_step(plan.nodes, node.sources[0])
        for window in node.select.windows if at is not None else ():
            same = [(one.kind, one.size, one.hop, one.offset) for one in found[at]]  # type: ignore[index]
            if (
                window.kind in ("tumbling", "hopping")
                and (window.kind, window.size, window.hop, window.offset) not in same
            ):
                found[at].append(window)  # type: ignore[index]
    return found


def spans(windows: Sequence[Window], time: int) -> list[tuple[int, int]]:
    """(start, end) of each window that holds `time`; the end belongs to a window, the start does not. At most 100."""
    found: list[tuple[int, int]] = []
    for window in windows:
        hop = window.hop if window.kind == "hopping" else window.size
        origin = ORIGIN + window.offset
        end = origin - (origin - time) // hop * hop
        while end - window.size < time and len(found) < _WINDOWS_MAX:
            found.append((end - window.size, end))
            end += hop
    return found


def about(times: Ints, windows: Sequence[Window]) -> list[dict[str, Any]]:
    """For each refused event its time and, where there are any, its windows; ISO 8601 text."""
    found: list[dict[str, Any]] = []
    for time in times.tolist():
        one: dict[str, Any] = {"time": to_iso(time)}
        if missed := spans(windows, time):
            one["window"] = [{"start": to_iso(start), "end": to_iso(end)} for start, end in missed]
        found.append(one)
    return found
