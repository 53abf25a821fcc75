"""What a function family exports: one spec value per function, collected by `core.plugins`.

The scalar form is the meaning of a function; kernels only make it fast. A kernel gets whole arrays of the kinds it is
registered for (a constant argument comes as one Python value) and may hand single rows back to the scalar form by
returning a mask of rows it is not sure of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from headrace.sql.values import Column

Kernel = Callable[..., Any]
"""(data, ...) -> data, or (data, unsure) where `unsure` marks rows for the scalar form. See `Scalar.kernels`."""


class Scalar(NamedTuple):
    """A scalar function: `call` on Python values (int, float, bool, str, Moment, dict, list), raising Fault.

    `kernels` maps argument kinds to (result kind, kernel). With `nulls`, `call` sees nulls as None; else any null argument
    gives null. With `part`, the first argument is a date part (a name), handed over as text. `whole`, where given, is asked
    first with the argument columns: a column of the results, or None when the rows have to be looked at.
    """

    name: str
    least: int
    most: int  # -1: any number
    call: Callable[..., Any]
    kernels: Mapping[tuple[int, ...], tuple[int, Kernel]] = {}
    nulls: bool = False
    part: bool = False
    whole: Callable[[Sequence[Column]], Column | None] | None = None
    doc: str = ""
