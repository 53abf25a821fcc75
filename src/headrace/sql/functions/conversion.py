"""GetType, NULLIF, and the kernels behind CAST."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.sql.compare import equal_values
from headrace.sql.convert import cast, type_name
from headrace.sql.moments import moments_text, parse_moments
from headrace.sql.spec import Kernel, Scalar
from headrace.sql.values import ARRAY, BIGINT, BIT, DATETIME, FLOAT, RECORD, TEXT

GETTYPE = Scalar("gettype", 1, 1, type_name, doc="The type of the value: 'bigint', 'float', 'nvarchar(max)', …")
NULLIF = Scalar(
    "nullif",
    2,
    2,
    lambda left, right: None if equal_values(left, right) else left,
    nulls=True,
    doc="Null if both are equal.",
)

_KINDS = {"bigint": BIGINT, "float": FLOAT, "nvarchar": TEXT, "bit": BIT, "datetime": DATETIME}


def _float_to_bigint(data: Any) -> Any:
    unsure = ~(np.abs(data) < 9e18)
    return np.where(unsure, 0.0, data).astype(np.int64), unsure


def _text_to_moment(data: Any) -> Any:
    ticks, good = parse_moments(data)
    return ticks, ~good


def _text_to_float(data: Any) -> Any:
    """Plain decimal texts at once; anything unusual (and what is no number) by the scalar form."""
    usual = pc.fill_null(pc.match_substring_regex(data, r"^[+-]?[0-9]+(\.[0-9]+)?$"), False)
    numbers = pc.cast(pc.replace_substring_regex(pc.if_else(usual, data, "0"), r"^\+", ""), pa.float64())
    return np.asarray(numbers), ~np.asarray(usual)


def _same(data: Any) -> Any:
    return data


_KERNELS: dict[str, dict[tuple[int, ...], tuple[int, Kernel]]] = {
    "bigint": {
        (BIGINT,): (BIGINT, _same),
        (BIT,): (BIGINT, lambda data: data.astype(np.int64)),
        (FLOAT,): (BIGINT, _float_to_bigint),
    },
    "float": {
        (FLOAT,): (FLOAT, _same),
        (BIGINT,): (FLOAT, lambda data: data.astype(np.float64)),
        (BIT,): (FLOAT, lambda data: data.astype(np.float64)),
        (TEXT,): (FLOAT, _text_to_float),
    },
    "nvarchar": {
        (TEXT,): (TEXT, _same),
        (BIGINT,): (TEXT, lambda data: pc.cast(pa.array(data), pa.string())),
        (DATETIME,): (TEXT, lambda data: pa.array(moments_text(data), pa.string())),
    },
    "bit": {
        (BIT,): (BIT, _same),
        (BIGINT,): (BIT, lambda data: data != 0),
        (FLOAT,): (BIT, lambda data: data != 0),
    },
    "datetime": {(DATETIME,): (DATETIME, _same), (TEXT,): (DATETIME, _text_to_moment)},
    "record": {(RECORD,): (RECORD, _same)},
    "array": {(ARRAY,): (ARRAY, _same)},
}


def cast_to(kind: str) -> Scalar:
    """CAST to one type, as a function of one argument."""
    call: Callable[[Any], Any] = lambda value: cast(value, kind)  # noqa: E731
    return Scalar(f"cast as {kind}", 1, 1, call, _KERNELS[kind])
