"""Conversions between single values: CAST, text of a value, and the implicit ones that functions make."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from headrace.sql.errors import Fault
from headrace.sql.moments import Moment, parse_moment
from headrace.sql.values import INT_MAX, INT_MIN, KIND_NAMES, kind_of

_INTEGER = re.compile(r"\s*[+-]?\d+\s*", re.ASCII)
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)


def type_name(value: Any) -> str:
    return KIND_NAMES[kind_of(value)]


def shown(value: Any) -> str:
    """A value in an error message: short, and only its type where it is a record or array."""
    return repr(value)[:60] if isinstance(value, int | float | str | bool) else str(value)[:60]


def cast(value: Any, kind: str) -> Any:
    """CAST of a non-null value. Raises Fault where it cannot be converted."""
    found: Any = _CASTS[kind](value)
    if found is None:
        raise Fault(
            f"CAST of {shown(value)} ({type_name(value)}) to {kind} failed: it cannot be converted", "cast_failed"
        )
    return found


def to_bigint(value: Any) -> int | None:
    if type(value) is int:
        return value
    if type(value) is bool:
        return int(value)
    if type(value) is float and math.isfinite(value):
        return in_range(math.trunc(value))
    if type(value) is str and _INTEGER.fullmatch(value) and len(value) < 40:
        return in_range(int(value))
    return None


def in_range(value: int) -> int | None:
    return value if INT_MIN <= value <= INT_MAX else None


def to_float(value: Any) -> float | None:
    if type(value) in (int, float, bool):
        return float(value)
    if type(value) is str and _NUMBER.fullmatch(value):
        found = float(value)
        return found if math.isfinite(found) else None
    return None


def to_text(value: Any) -> str | None:
    kind = type(value)
    if kind is str:
        return value  # type: ignore[no-any-return]
    if kind is bool:
        return "1" if value else "0"
    if kind is int:
        return str(value)
    if kind is float:
        return float_text(value)
    return str(value) if kind is Moment else None


def float_text(value: float) -> str:
    """Shortest form that reads back equal, without a trailing `.0`."""
    text = repr(value)
    return text.removesuffix(".0")


def to_bit(value: Any) -> bool | None:
    if type(value) is bool:
        return value
    if type(value) in (int, float):
        return bool(value != 0)
    if type(value) is str:
        return {"true": True, "1": True, "false": False, "0": False}.get(value.strip().lower())
    return None


def to_moment(value: Any) -> Moment | None:
    if type(value) is Moment:
        return value
    if type(value) is str:
        ticks = parse_moment(value)
        return None if ticks is None else Moment(ticks)
    return None


_CASTS: dict[str, Callable[[Any], Any]] = {
    "bigint": to_bigint,
    "float": to_float,
    "nvarchar": to_text,
    "bit": to_bit,
    "datetime": to_moment,
    "record": lambda value: value if type(value) is dict else None,
    "array": lambda value: value if type(value) is list else None,
}


def number(value: Any) -> int | float:
    """A numeric argument: bits count as 0 and 1, text is converted where it is numeric. Raises Fault."""
    kind = type(value)
    if kind is int or kind is float:
        return value  # type: ignore[no-any-return]
    if kind is bool:
        return int(value)
    if kind is str:
        found: int | float | None = to_bigint(value) if _INTEGER.fullmatch(value) else to_float(value)
        if found is not None:
            return found
    raise Fault(f"{shown(value)} ({type_name(value)}) is not a number")


def integer(value: Any) -> int:
    """A whole-number argument; a fraction is cut. Raises Fault."""
    found = number(value)
    if isinstance(found, float) and not math.isfinite(found):
        raise Fault(f"{found} is not a whole number")
    return int(found)


def text(value: Any) -> str:
    """A text argument; numbers and datetimes print as by CAST. Raises Fault."""
    found = to_text(value)
    if found is None:
        raise Fault(f"a {type_name(value)} is not text")
    return found


def moment(value: Any) -> int:
    """A datetime argument, in ticks; ISO 8601 text is converted. Raises Fault."""
    found = to_moment(value)
    if found is None:
        raise Fault(f"{shown(value)} ({type_name(value)}) is not a datetime")
    return found.ticks


def whole(value: int) -> int:
    """Raises Fault where a bigint result overflows."""
    if not INT_MIN <= value <= INT_MAX:
        raise Fault("the result does not fit a bigint", "overflow")
    return value


def finite(value: float) -> float:
    if not math.isfinite(value):
        raise Fault("the result does not fit a float", "overflow")
    return value


def fits(value: Any) -> bool:
    """Whether every integer in a value fits a bigint."""
    kind = type(value)
    if kind is int:
        return bool(INT_MIN <= value <= INT_MAX)
    if kind is dict:
        return all(fits(part) for part in value.values())
    return all(fits(part) for part in value) if kind is list else True
