"""Arithmetic and bit operators. Two bigints give a bigint (`/` cuts, `%` keeps the dividend's sign); any float a float.

Overflow and division by zero are faults; the kernels hand rows that come near either to the scalar form.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.sql.convert import finite, number, type_name, whole
from headrace.sql.errors import Fault
from headrace.sql.spec import Kernel, Scalar
from headrace.sql.values import BIGINT, BIT, FLOAT, TEXT

_SAFE_SUM = 1 << 61
_SAFE_PRODUCT = 3_000_000_000  # the square still fits 63 bits


def _calculate(name: str, bigints: Callable[[int, int], int], floats: Callable[[float, float], float]) -> Any:
    def call(left: Any, right: Any) -> Any:
        left, right = number(left), number(right)
        if isinstance(left, int) and isinstance(right, int):
            return whole(bigints(left, right))
        try:
            return finite(floats(left, right))
        except (ValueError, OverflowError, ZeroDivisionError) as exc:
            raise Fault(f"{left} {name} {right} has no result", "overflow") from exc

    return call


def _plus(left: Any, right: Any) -> Any:
    if isinstance(left, str) and isinstance(right, str):
        return left + right
    return _add(left, right)


def _divide_bigints(left: int, right: int) -> int:
    if right == 0:
        raise Fault(f"division of {left} by zero", "division_by_zero")
    found = abs(left) // abs(right)
    return found if (left < 0) == (right < 0) else -found


def _divide_floats(left: float, right: float) -> float:
    if right == 0:
        raise Fault(f"division of {left} by zero", "division_by_zero")
    return left / right


def _rest_bigints(left: int, right: int) -> int:
    return left - right * _divide_bigints(left, right)


def _rest_floats(left: float, right: float) -> float:
    if right == 0:
        raise Fault(f"division of {left} by zero", "division_by_zero")
    return math.fmod(left, right)


_add = _calculate("+", operator.add, operator.add)


def _wide(*values: Any, limit: int) -> Any:
    """Rows where an operand is so large that the result might not fit."""
    mask: Any = False
    for value in values:
        mask = mask | (value > limit) | (value < -limit)
    return mask


def _exact(kernel: Kernel, limit: int) -> Kernel:
    def run(left: Any, right: Any) -> Any:
        unsure = _wide(left, right, limit=limit)
        return kernel(left, right), (
            unsure if np.ndim(unsure) else np.broadcast_to(unsure, np.shape(left) or np.shape(right))
        )

    return run


def _loose(kernel: Kernel) -> Kernel:
    def run(left: Any, right: Any) -> Any:
        found = kernel(left, right)
        return found, ~np.isfinite(found)

    return run


def _quotient(left: Any, right: Any) -> Any:
    safe = np.where(right == 0, 1, right)
    found = np.abs(left) // np.abs(safe)
    unsure = (right == 0) | _wide(left, right, limit=1 << 62) | np.zeros(np.shape(found), np.bool_)
    return np.where((left < 0) == (safe < 0), found, -found), unsure


def _rest(left: Any, right: Any) -> Any:
    safe = np.where(right == 0, 1, right)
    found = np.fmod(left, safe)
    return found, (right == 0) | _wide(left, right, limit=1 << 62) | np.zeros(np.shape(found), np.bool_)


def _numeric(exact: Kernel, floats: Kernel) -> dict[tuple[int, ...], tuple[int, Kernel]]:
    mixed = {(FLOAT, FLOAT), (FLOAT, BIGINT), (BIGINT, FLOAT)}
    return {(BIGINT, BIGINT): (BIGINT, exact), **dict.fromkeys(mixed, (FLOAT, floats))}


def _join(left: Any, right: Any) -> Any:
    left = pa.scalar(left, pa.string()) if isinstance(left, str) else left
    right = pa.scalar(right, pa.string()) if isinstance(right, str) else right
    return pc.binary_join_element_wise(left, right, pa.scalar("", pa.string()))


def _zero_safe(kernel: Kernel) -> Kernel:
    def run(left: Any, right: Any) -> Any:
        found = kernel(left, right)
        return found, ~np.isfinite(found) | (right == 0)

    return run


def _bitwise(name: str, call: Callable[[Any, Any], Any]) -> Any:
    def run(left: Any, right: Any) -> Any:
        if isinstance(left, bool) and isinstance(right, bool):
            return call(left, right)
        for value in (left, right):
            if type(value) not in (int, bool):
                raise Fault(f"{name} needs bigint or bit, not {type_name(value)}")
        return call(int(left), int(right))

    return run


def _bits(kernel: Kernel) -> dict[tuple[int, ...], tuple[int, Kernel]]:
    return {(BIGINT, BIGINT): (BIGINT, kernel), (BIT, BIT): (BIT, kernel)}


def _negate(value: Any) -> Any:
    value = number(value)
    return whole(-value) if isinstance(value, int) else -value


def _invert(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if type(value) is not int:
        raise Fault(f"~ needs bigint or bit, not {type_name(value)}")
    return ~value


PLUS = Scalar(
    "+",
    2,
    2,
    _plus,
    {
        **_numeric(_exact(lambda left, right: left + right, _SAFE_SUM), _loose(lambda left, right: left + right)),
        (TEXT, TEXT): (TEXT, _join),
    },
    doc="Sum of numbers; two texts are joined.",
)
MINUS = Scalar(
    "-",
    2,
    2,
    _calculate("-", operator.sub, operator.sub),
    _numeric(_exact(lambda left, right: left - right, _SAFE_SUM), _loose(lambda left, right: left - right)),
)
TIMES = Scalar(
    "*",
    2,
    2,
    _calculate("*", operator.mul, operator.mul),
    _numeric(_exact(lambda left, right: left * right, _SAFE_PRODUCT), _loose(lambda left, right: left * right)),
)
DIVIDE = Scalar(
    "/",
    2,
    2,
    _calculate("/", _divide_bigints, _divide_floats),
    _numeric(_quotient, _zero_safe(lambda left, right: np.true_divide(left, right))),
    doc="Quotient; of two bigints it is cut towards zero.",
)
MODULO = Scalar(
    "%",
    2,
    2,
    _calculate("%", _rest_bigints, _rest_floats),
    _numeric(_rest, _zero_safe(lambda left, right: np.fmod(left, right))),
)
AND = Scalar("&", 2, 2, _bitwise("&", operator.and_), _bits(np.bitwise_and))
OR = Scalar("|", 2, 2, _bitwise("|", operator.or_), _bits(np.bitwise_or))
XOR = Scalar("^", 2, 2, _bitwise("^", operator.xor), _bits(np.bitwise_xor))
NEGATE = Scalar(
    "negate",
    1,
    1,
    _negate,
    {(BIGINT,): (BIGINT, lambda value: (-value, value < -_SAFE_SUM)), (FLOAT,): (FLOAT, np.negative)},
)
INVERT = Scalar("~", 1, 1, _invert, {(BIGINT,): (BIGINT, np.invert), (BIT,): (BIT, np.logical_not)})
