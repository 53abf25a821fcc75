"""The compiled decoder and the plain one, side by side: everything that a reader of their columns could see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest

from headrace.sql import native
from headrace.sql.decoder import Decoder, Fields
from headrace.sql.values import Column

needs_library = pytest.mark.skipif(native.library() is None, reason="the compiled parser was not built (no C compiler)")


def _shown(column: Column) -> Any:
    """Values with their types (repr tells 1 from 1.0 and 0.0 from -0.0), and how they are kept."""
    parts = [(part.kind, None if part.mask is None else part.mask.tolist()) for part in column.parts]
    return [repr(value) for value in column.to_list()], parts


def shown(fields: Fields) -> dict[str, Any]:
    return {
        "rows": fields.rows,
        "bad": fields.bad,
        "columns": {name: _shown(column) for name, column in fields.columns.items()},
        "absent": {name: mask.tolist() for name, mask in fields.absent.items()},
    }


def both(bodies: Sequence[bytes], names: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the compiled decoder and the plain one read."""
    array = pa.array(bodies, pa.binary())
    return shown(Decoder(names).read(array)), shown(Decoder(names, compiled=False).read(array))
