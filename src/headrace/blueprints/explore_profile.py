"""What a recording looks like, from its first rows: its numeric fields, its clock, how often a device reports."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from headrace.connectors.file_columns import TimeUnit
from headrace.connectors.files import FileRows
from headrace.core.clock import TICKS_PER_S, to_iso

PEEK_ROWS = 5000
LABELS = re.compile(r"^(anomaly|change_?point|label|target|class|failure|machine_?failure|rul)$", re.IGNORECASE)


@dataclass(frozen=True)
class Profile:
    """`fields` are paths of members. `time_sql` is what TIMESTAMP BY takes, empty where rows tell no time of their own;
    `spacing_s` is the usual time from one row of a device to its next (without times: unknown, 0)."""

    fields: tuple[tuple[str, ...], ...]
    time_sql: str
    spacing_s: float
    devices: int
    rows: int


@dataclass
class _Seen:
    """One field's numbers so far; `steps` are those from one value to the next."""

    count: int = 0
    distinct: set[float] = field(default_factory=set)
    steps: set[float] = field(default_factory=set)
    last: float | None = None

    def add(self, value: float) -> None:
        self.count += 1
        if len(self.distinct) < 100:
            self.distinct.add(value)
        if self.last is not None and len(self.steps) < 100:
            self.steps.add(value - self.last)
        self.last = value

    @property
    def counts_rows(self) -> bool:
        """Whether it is a running number: whole, and never going back."""
        return all(step.is_integer() and step >= 1 for step in self.steps)

    @property
    def moves(self) -> bool:
        return len(self.distinct) > 3 and not self.counts_rows


def profile(files: Sequence[FileRows], *, fields_max: int) -> Profile:
    """Reads up to PEEK_ROWS rows of each file."""
    seen: dict[tuple[str, ...], _Seen] = {}
    times: dict[str, list[int]] = {}
    time_values: list[Any] = []
    for file in files:
        for device, moment, body in _peek(file):
            document = json.loads(body)
            for path, value in _numbers(document, ()):
                if path[-1:] != (file.device_column,) and path != (file.time_column,) and not LABELS.match(path[-1]):
                    seen.setdefault(path, _Seen()).add(value)
            if moment is not None:
                times.setdefault(device, []).append(moment)
                time_values.append(document.get(file.time_column))
        for one in seen.values():
            one.last = None  # a step from one file to the next is none
    moving = [path for path in seen if seen[path].moves]
    fields = sorted(moving, key=lambda path: -seen[path].count)[:fields_max]
    return Profile(
        fields=tuple(fields),
        time_sql=_time_sql(files, time_values),
        spacing_s=_spacing_s(times),
        devices=len({device for file in files for device in file.devices}),
        rows=sum(file.total for file in files),
    )


def _peek(file: FileRows) -> Iterator[tuple[str, int | None, bytes]]:
    for batch in file.batches(rows_max=PEEK_ROWS):
        yield from zip(batch.devices, batch.times, batch.bodies, strict=True)
        return


def _numbers(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], float]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _numbers(inner, (*path, name))
    elif isinstance(value, int | float) and not isinstance(value, bool) and path:
        yield path, float(value)


def _spacing_s(times: dict[str, list[int]]) -> float:
    steps = [np.diff(np.unique(moments)) for moments in times.values() if len(moments) > 1]
    together = np.concatenate(steps) if steps else np.zeros(0)
    return float(np.median(together)) / TICKS_PER_S if len(together) else 0.0


def _time_sql(files: Sequence[FileRows], values: list[Any]) -> str:
    """The files' time as an expression of the language; empty where they do not share one that it can tell."""
    clocks = {(file.time_column, file.unit) for file in files}
    kinds = {str if isinstance(value, str) else float for value in values}
    if len(clocks) != 1 or len(kinds) != 1:
        return ""
    ((column, unit),) = clocks
    name = quoted((column,))
    if str not in kinds:
        return _from_number(name, unit, whole=all(isinstance(value, int) for value in values))
    return name if not any(_is_number(value) for value in values) else ""


def _from_number(name: str, unit: TimeUnit, *, whole: bool) -> str:
    origin = to_iso(unit.origin)
    if unit.per_s == 1:
        if whole:
            return f"DATEADD(second, {name}, '{origin}')"
        return f"DATEADD(millisecond, CAST({name} * 1000 AS bigint), '{origin}')"
    if unit.per_s == 1000:
        return f"DATEADD(millisecond, CAST({name} AS bigint), '{origin}')"
    divisor = unit.per_s // 1_000_000
    value = name if divisor == 1 else f"{name} / {divisor}"
    return f"DATEADD(microsecond, CAST({value} AS bigint), '{origin}')"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def quoted(path: tuple[str, ...]) -> str:
    """A member's path in the language."""
    return ".".join("[" + part.replace("]", "]]") + "]" for part in path)
