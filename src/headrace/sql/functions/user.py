"""Functions from outside: Python code or a registered model, called in batches as `udf.name(...)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pyarrow as pa


class UserFunction(NamedTuple):
    """`udf.rul` is called as `udf.rul(a, b)`. `call` gets one Arrow array per argument, all of equal length (nulls
    allowed; whole numbers as int64, others as float64, records as struct), and returns one of that length.
    """

    name: str
    call: Callable[[list[pa.Array]], pa.Array]
