"""Date and time functions, on ticks of 100 ns. Weeks begin on Sunday; week 1 holds 1 January."""

from __future__ import annotations

import calendar
from datetime import datetime
from typing import Any

import numpy as np

from headrace.core.clock import TICKS_PER_MS, TICKS_PER_S, TICKS_PER_US, from_datetime, to_datetime
from headrace.sql.convert import integer, moment
from headrace.sql.errors import Fault
from headrace.sql.moments import Moment, parse_moment
from headrace.sql.spec import Kernel, Scalar
from headrace.sql.units import PARTS, TICKS
from headrace.sql.values import BIGINT, DATETIME, TEXT

_DAY = TICKS["day"]
_MONTHS = {"year": 12, "quarter": 3, "month": 1}
_WEEK_SHIFT = 4  # 1970-01-01 was a Thursday: days + 4 counts from a Sunday


def _calendar(ticks: int) -> datetime:
    try:
        return to_datetime(ticks)
    except OverflowError as exc:
        raise Fault("the datetime is outside the years 1 to 9999", "overflow") from exc


def _dateadd(part: str, count: Any, value: Any) -> Moment:
    part, steps, ticks = PARTS[part], integer(count), moment(value)
    if part in _MONTHS:
        return Moment(_add_months(ticks, steps * _MONTHS[part]))
    length = TICKS.get(part, 7 * _DAY if part == "week" else _DAY)
    found = ticks + steps * length
    _calendar(found)
    return Moment(found)


def _add_months(ticks: int, months: int) -> int:
    start = _calendar(ticks)
    total = start.year * 12 + start.month - 1 + months
    year, month = divmod(total, 12)
    if not 1 <= year <= 9999:
        raise Fault("the datetime is outside the years 1 to 9999", "overflow")
    day = min(start.day, calendar.monthrange(year, month + 1)[1])
    midnight = from_datetime(datetime(year, month + 1, day))
    return midnight + ticks % _DAY


def boundary(part: str, ticks: int) -> int:
    """The number of the unit that an instant lies in: two instants differ by the boundaries between them."""
    if part in _MONTHS:
        date = _calendar(ticks)
        return (date.year * 12 + date.month - 1) // _MONTHS[part]
    if part == "week":
        return (ticks // _DAY + _WEEK_SHIFT) // 7
    return ticks // TICKS.get(part, _DAY)


def _datediff(part: str, start: Any, end: Any) -> int:
    name = PARTS[part]
    return boundary(name, moment(end)) - boundary(name, moment(start))


def _fixed(part: str) -> int:
    return TICKS.get(PARTS[part], 0)


def _datepart(part: str, value: Any) -> int:
    name, ticks = PARTS[part], moment(value)
    date = _calendar(ticks)
    rest = ticks % TICKS_PER_S
    january = date.replace(month=1, day=1)
    found = {
        "year": date.year,
        "quarter": (date.month + 2) // 3,
        "month": date.month,
        "dayofyear": date.timetuple().tm_yday,
        "day": date.day,
        "week": (date.timetuple().tm_yday + (january.weekday() + 1) % 7 - 1) // 7 + 1,
        "weekday": (date.weekday() + 1) % 7 + 1,
        "hour": date.hour,
        "minute": date.minute,
        "second": date.second,
        "millisecond": rest // TICKS_PER_MS,
        "microsecond": rest // TICKS_PER_US,
    }
    return found[name]


def _datename(part: str, value: Any) -> str:
    name, date = PARTS[part], _calendar(moment(value))
    if name == "month":
        return calendar.month_name[date.month]
    if name == "weekday":
        return calendar.day_name[date.weekday()]
    return str(_datepart(part, value))


def _datetimefromparts(*parts: Any) -> Moment:
    year, month, day, hour, minute, second, millisecond = (integer(part) for part in parts)
    try:
        base = from_datetime(datetime(year, month, day, hour, minute, second))
    except (ValueError, OverflowError) as exc:
        raise Fault(f"{year}-{month}-{day} {hour}:{minute}:{second} is no datetime") from exc
    if not 0 <= millisecond <= 999:
        raise Fault(f"{millisecond} milliseconds is not within 0 to 999")
    return Moment(base + millisecond * TICKS_PER_MS)


def _diff_kernel(part: Any, start: Any, end: Any) -> Any:
    length = _fixed(part) if isinstance(part, str) else 0
    shape = np.shape(start) or np.shape(end)
    if not length:
        return np.zeros(shape, np.int64), np.ones(shape, np.bool_)
    return end // length - start // length


def _add_kernel(part: Any, count: Any, value: Any) -> Any:
    length = _fixed(part) if isinstance(part, str) else 0
    shape = np.shape(count) or np.shape(value)
    if not length:
        return np.zeros(shape, np.int64), np.ones(shape, np.bool_)
    found = value + count * length
    limit = (1 << 61) // length
    return found, (np.abs(found) > 2_500_000_000_000_000_00) | (np.abs(count) > limit) | np.zeros(shape, np.bool_)


def _from_text(kernel: Kernel) -> Kernel:
    """For a constant ISO text as last argument, as in DATEADD(ms, x, '1970-01-01')."""

    def run(part: Any, count: Any, value: Any) -> Any:
        ticks = parse_moment(value) if isinstance(value, str) else None
        if ticks is None:
            shape = np.shape(count)
            return np.zeros(shape or len(value), np.int64), np.ones(shape or len(value), np.bool_)
        return kernel(part, count, ticks)

    return run


DATEADD = Scalar(
    "dateadd",
    3,
    3,
    _dateadd,
    {
        (TEXT, BIGINT, DATETIME): (DATETIME, _add_kernel),
        (TEXT, BIGINT, TEXT): (DATETIME, _from_text(_add_kernel)),
    },
    part=True,
)
DATEDIFF = Scalar(
    "datediff",
    3,
    3,
    _datediff,
    {(TEXT, DATETIME, DATETIME): (BIGINT, _diff_kernel)},
    part=True,
    doc="Unit boundaries crossed from the first to the second datetime.",
)
DATEPART = Scalar("datepart", 2, 2, _datepart, part=True)
DATENAME = Scalar("datename", 2, 2, _datename, part=True)
DAY = Scalar("day", 1, 1, lambda value: _datepart("day", value))
MONTH = Scalar("month", 1, 1, lambda value: _datepart("month", value))
YEAR = Scalar("year", 1, 1, lambda value: _datepart("year", value))
DATETIMEFROMPARTS = Scalar("datetimefromparts", 7, 7, _datetimefromparts)
