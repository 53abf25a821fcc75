"""Finding out what a file's columns are: which names the device, which tells the time, and what the time's numbers mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import date, datetime
from typing import Any

import msgspec

from headrace.core.clock import TICKS_PER_S, from_datetime, from_iso
from headrace.core.errors import UserError, nearest

ID_LENGTH_MAX = 128
RELATIVE_START = 17_356_896_000_000_000  # 2025-01-01T00:00:00Z

_DEVICE_NAMES = (
    *("deviceid", "device", "iothubconnectiondeviceid", "devid", "unit", "unitid", "unitnumber"),
    *("machineid", "machine", "sensorid", "sensor", "moteid", "mote", "stationid", "station"),
    *("assetid", "asset", "equipmentid", "equipment", "entityid", "nodeid", "node", "patientid", "record", "tag"),
)
_TIME_NAMES = (
    *("ts", "timestamp", "datetime", "time", "eventtime", "createdat", "sampledat", "recordedat"),
    *("date", "charttime", "times", "ts_s", "ts_ms", "cycle", "step"),
)
_UNSAFE = re.compile(r"[^A-Za-z0-9\-:._@=,()]")


def find_column(columns: Sequence[str], given: str | None, *, what: str, names: Sequence[str]) -> str:
    """The column asked for, or else the one whose name is first in `names`; empty when there is none.

    Raises UserError with the nearest column when `given` does not exist. Case, blanks and signs do not count in a search.
    """
    if given:
        if given in columns:
            return given
        hint = nearest(given, columns) or f"the columns are {', '.join(columns[:20])}"
        raise UserError(f"there is no {what} column {given!r}", hint=hint, code="file.column")
    plain = {re.sub(r"\[.*?\]|[^a-z0-9]", "", column.lower()): column for column in reversed(columns)}
    return next((plain[name] for name in names if name in plain), "")


def find_device(columns: Sequence[str], given: str | None) -> str:
    return find_column(columns, given, what="device", names=_DEVICE_NAMES)


def find_time(columns: Sequence[str], given: str | None) -> str:
    return find_column(columns, given, what="time", names=_TIME_NAMES)


def device_ids(raw: Iterable[str]) -> dict[str, str]:
    """A legal device id for each text, close to it and safe in an MQTT topic; two texts never get the same id.

    >>> device_ids(["valve1/0", "0e:9c"])
    {'valve1/0': 'valve1-0', '0e:9c': '0e:9c'}
    """
    texts = sorted(set(raw))
    taken = {text for text in texts if _safe(text) == text}
    found: dict[str, str] = {}
    for text in texts:
        id = _safe(text)
        number = 2
        while id != text and id in taken:
            id = f"{_safe(text)[: ID_LENGTH_MAX - 8]}-{number}"
            number += 1
        taken.add(id)
        found[text] = id
    return found


def _safe(text: str) -> str:
    return _UNSAFE.sub("-", text.strip())[:ID_LENGTH_MAX] or "-"


class TimeUnit(msgspec.Struct, frozen=True):
    """What a time column's numbers are: `per_s` of them make a second, counted from `origin` (ticks)."""

    per_s: int = 1
    origin: int = 0

    def ticks(self, value: Any) -> int | None:
        """The value's time, None where it tells none."""
        if isinstance(value, bool) or value is None:
            return None
        if isinstance(value, str):
            return _from_text(value, self)
        if isinstance(value, datetime):
            return from_datetime(value)
        if isinstance(value, date):
            return from_datetime(datetime(value.year, value.month, value.day))
        if isinstance(value, int):
            return self.origin + value * TICKS_PER_S // self.per_s
        if isinstance(value, float) and value == value and abs(value) < 1e30:
            whole = int(value // self.per_s)  # apart from the rest: a float has 53 bits, today in ticks needs 54
            return self.origin + whole * TICKS_PER_S + round((value - whole * self.per_s) * TICKS_PER_S / self.per_s)
        return None


def time_unit(largest: float, *, start: int) -> TimeUnit:
    """The unit of a column by its largest number: below 1e8 (1973 in Unix time) it is a count of seconds after `start`,
    as a test bench's `cycle` or a monitor's `t_s` is; above that Unix seconds, milliseconds, microseconds, nanoseconds."""
    if largest < 1e8:
        return TimeUnit(1, start)
    for per_s, bound in ((1, 1e11), (1000, 1e14), (1_000_000, 1e17)):
        if largest < bound:
            return TimeUnit(per_s)
    return TimeUnit(1_000_000_000)


def _from_text(text: str, unit: TimeUnit) -> int | None:
    try:
        return from_iso(text)
    except UserError:
        pass
    try:
        return unit.ticks(float(text))
    except ValueError:
        return None
