"""Units of time, durations and the grid that windows stand on."""

from __future__ import annotations

from headrace.core.clock import TICKS_PER_MS, TICKS_PER_S, TICKS_PER_US, YEAR_ONE

_NAMES = {
    "year": "year yy yyyy",
    "quarter": "quarter qq q",
    "month": "month mm m",
    "dayofyear": "dayofyear dy y",
    "day": "day dd d",
    "week": "week wk ww",
    "weekday": "weekday dw w",
    "hour": "hour hh",
    "minute": "minute mi n",
    "second": "second ss s",
    "millisecond": "millisecond ms",
    "microsecond": "microsecond mcs",
}
PARTS = {short: name for name, shorts in _NAMES.items() for short in shorts.split()}
"""Every spelling of a date part, lower case, with its full name."""
TICKS = {
    "day": 86_400 * TICKS_PER_S,
    "hour": 3600 * TICKS_PER_S,
    "minute": 60 * TICKS_PER_S,
    "second": TICKS_PER_S,
    "millisecond": TICKS_PER_MS,
    "microsecond": TICKS_PER_US,
}
"""Lengths of the units that windows and durations may use."""
DURATION_MAX = 7 * TICKS["day"]
ORIGIN = YEAR_ONE
