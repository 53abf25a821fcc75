"""The functions of IoT Hub's query and routing languages, as name -> (fewest, most arguments, function).

A function given what it does not take answers UNDEFINED, never an error: one odd message or twin must not stop a query.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

ARGUMENTS_MAX = 100
TEXT_CHARS_MAX = 1_000_000


class _Undefined:
    """The value of what is not there. There is one."""

    def __repr__(self) -> str:
        return "undefined"

    def __bool__(self) -> bool:
        return False


UNDEFINED: Final = _Undefined()

Function = Callable[..., Any]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _calculating(work: Callable[..., float]) -> Function:
    """`work` over numbers only; no result where there is no finite one."""

    def function(*values: Any) -> Any:
        if not all(_number(value) for value in values):
            return UNDEFINED
        try:
            result = work(*values)
            return result if math.isfinite(result) else UNDEFINED
        except (OverflowError, ValueError, ZeroDivisionError):
            return UNDEFINED

    return function


def _reading(work: Callable[..., Any]) -> Function:
    """`work` over texts only."""

    def function(*values: Any) -> Any:
        return work(*values) if all(isinstance(value, str) for value in values) else UNDEFINED

    return function


def _as_number(value: Any) -> Any:
    if _number(value):
        return value
    if not isinstance(value, str) or len(value) > 400:
        return UNDEFINED
    try:
        number = float(value)
    except ValueError:
        return UNDEFINED
    if not math.isfinite(number) or "_" in value:
        return UNDEFINED
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def _substring(text: Any, start: Any, length: Any = None) -> Any:
    """From place `start` (0 is the first character)."""
    if not isinstance(text, str) or not _number(start) or not (length is None or _number(length)) or start < 0:
        return UNDEFINED
    first = int(min(start, len(text)))
    return text[first:] if length is None else text[first : first + max(0, int(min(length, len(text))))]


def _concat(*texts: Any) -> Any:
    if not all(isinstance(text, str) for text in texts) or sum(map(len, texts)) > TEXT_CHARS_MAX:
        return UNDEFINED
    return "".join(texts)


FUNCTIONS: dict[str, tuple[int, int, Function]] = {
    "abs": (1, 1, _calculating(abs)),
    "exp": (1, 1, _calculating(math.exp)),
    "power": (2, 2, _calculating(math.pow)),
    "square": (1, 1, _calculating(lambda number: float(number) * number if abs(number) > 2**31 else number * number)),
    "ceiling": (1, 1, _calculating(math.ceil)),
    "floor": (1, 1, _calculating(math.floor)),
    "sign": (1, 1, _calculating(lambda number: (number > 0) - (number < 0))),
    "sqrt": (1, 1, _calculating(math.sqrt)),
    "as_number": (1, 1, _as_number),
    "is_array": (1, 1, lambda value: isinstance(value, list)),
    "is_bool": (1, 1, lambda value: isinstance(value, bool)),
    "is_defined": (1, 1, lambda value: value is not UNDEFINED),
    "is_null": (1, 1, lambda value: value is None),
    "is_number": (1, 1, _number),
    "is_object": (1, 1, lambda value: isinstance(value, dict)),
    "is_primitive": (1, 1, lambda value: value is None or isinstance(value, str | int | float)),
    "is_string": (1, 1, lambda value: isinstance(value, str)),
    "concat": (1, ARGUMENTS_MAX, _concat),
    "length": (1, 1, _reading(len)),
    "lower": (1, 1, _reading(str.lower)),
    "upper": (1, 1, _reading(str.upper)),
    "substring": (2, 3, _substring),
    "index_of": (2, 2, _reading(lambda text, part: text.find(part))),
    "starts_with": (2, 2, _reading(lambda text, part: text.startswith(part))),
    "ends_with": (2, 2, _reading(lambda text, part: text.endswith(part))),
    "contains": (2, 2, _reading(lambda text, part: part in text)),
}


def walked(value: Any, parts: tuple[str | int, ...]) -> Any:
    """What stands at `parts` below a JSON value, or UNDEFINED."""
    for part in parts:
        if isinstance(part, str):
            if not isinstance(value, dict) or part not in value:
                return UNDEFINED
        elif not isinstance(value, list) or not 0 <= part < len(value):
            return UNDEFINED
        value = value[part]
    return value
