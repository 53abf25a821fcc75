"""Mathematical functions. ABS, CEILING, FLOOR, SIGN and ROUND keep the type of their argument."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import numpy as np

from headrace.sql.convert import finite, integer, number, whole
from headrace.sql.errors import Fault
from headrace.sql.spec import Scalar
from headrace.sql.values import BIGINT, FLOAT


def _abs(value: Any) -> Any:
    value = number(value)
    return whole(abs(value)) if isinstance(value, int) else abs(value)


def _ceiling(value: Any) -> Any:
    value = number(value)
    return value if isinstance(value, int) else float(np.ceil(value))


def _floor(value: Any) -> Any:
    value = number(value)
    return value if isinstance(value, int) else float(np.floor(value))


def _sign(value: Any) -> Any:
    value = number(value)
    sign = (value > 0) - (value < 0)
    return sign if isinstance(value, int) else float(sign)


def _round(value: Any, digits: Any = 0) -> Any:
    """Halves away from zero, in decimal: what a person sees is what is rounded."""
    value, digits = number(value), integer(digits)
    if isinstance(value, float) and not math.isfinite(value):
        raise Fault(f"{value} cannot be rounded")
    if digits > 340 or (isinstance(value, int) and digits >= 0):
        return value
    if digits < -340:
        return type(value)(0)
    step = Decimal(1).scaleb(-digits)
    exact = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    rounded = (exact / step).to_integral_value(rounding=ROUND_HALF_UP) * step
    return float(rounded) if isinstance(value, float) else whole(int(rounded))


def _power(base: Any, exponent: Any) -> Any:
    base, exponent = number(base), number(exponent)
    try:
        if isinstance(base, int):
            if isinstance(exponent, int) and exponent >= 0:
                if abs(base) > 1 and exponent > 64:
                    raise Fault(f"POWER({base}, {exponent}) does not fit a bigint", "overflow")
                return whole(base**exponent)
            return whole(math.trunc(float(base) ** exponent))
        found = base**exponent
    except (OverflowError, ZeroDivisionError) as exc:
        raise Fault(f"POWER({base}, {exponent}) has no result", "overflow") from exc
    if isinstance(found, complex):
        raise Fault(f"POWER({base}, {exponent}) is not a real number")
    return finite(found)


def _sqrt(value: Any) -> float:
    value = number(value)
    if value < 0:
        raise Fault(f"SQRT of a negative number ({value})")
    return math.sqrt(value)


def _square(value: Any) -> float:
    return finite(float(number(value)) ** 2 if abs(number(value)) < 1e150 else math.inf)


def _exp(value: Any) -> float:
    try:
        return math.exp(number(value))
    except OverflowError as exc:
        raise Fault(f"EXP({value}) does not fit a float", "overflow") from exc


def _guarded(kernel: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def run(value: Any) -> Any:
        found = kernel(np.asarray(value, np.float64))
        return found, ~np.isfinite(found)

    return run


_SAME = (BIGINT, lambda value: value)
ABS = Scalar("abs", 1, 1, _abs, {(BIGINT,): (BIGINT, lambda v: (np.abs(v), v < -(1 << 62))), (FLOAT,): (FLOAT, np.abs)})
CEILING = Scalar("ceiling", 1, 1, _ceiling, {(BIGINT,): _SAME, (FLOAT,): (FLOAT, np.ceil)})
FLOOR = Scalar("floor", 1, 1, _floor, {(BIGINT,): _SAME, (FLOAT,): (FLOAT, np.floor)})
SIGN = Scalar("sign", 1, 1, _sign, {(BIGINT,): (BIGINT, np.sign), (FLOAT,): (FLOAT, np.sign)})
ROUND = Scalar("round", 1, 2, _round, doc="ROUND(x, n): halves away from zero; negative n rounds left of the point.")
POWER = Scalar("power", 2, 2, _power)
SQRT = Scalar("sqrt", 1, 1, _sqrt, {(BIGINT,): (FLOAT, _guarded(np.sqrt)), (FLOAT,): (FLOAT, _guarded(np.sqrt))})
SQUARE = Scalar(
    "square", 1, 1, _square, {(BIGINT,): (FLOAT, _guarded(np.square)), (FLOAT,): (FLOAT, _guarded(np.square))}
)
EXP = Scalar("exp", 1, 1, _exp)
