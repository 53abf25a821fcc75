"""CROSS and OUTER APPLY: an event becomes one row per element of an array or per property of a record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from headrace.sql import values
from headrace.sql.convert import type_name
from headrace.sql.evaluate import Eval, Frame, RowFault
from headrace.sql.rows import Named, Rows
from headrace.sql.values import BIGINT, Column

COLUMNS = {
    "getarrayelements": ("ArrayIndex", "ArrayValue"),
    "getrecordproperties": ("PropertyName", "PropertyValue"),
}
"""The columns that each table function gives."""


@dataclass(frozen=True)
class ApplyStage:
    """Adds a source to a frame. `outer` keeps an event without elements once, with nulls."""

    function: str
    outer: bool
    of: Eval

    def process(self, frame: Frame) -> Frame:
        arrays = self.function == "getarrayelements"
        at: list[int] = []
        first: list[Any] = []
        second: list[Any] = []
        faults: list[tuple[int, RowFault]] = []
        for row, value in enumerate(self.of(frame).to_list()):
            pairs: Any = ()
            if arrays and type(value) is list:
                pairs = enumerate(value)
            elif not arrays and type(value) is dict:
                pairs = value.items()
            elif value is not None:
                wanted = "GetArrayElements needs an array" if arrays else "GetRecordProperties needs a record"
                faults.append((len(at), RowFault(row, "bad_argument", f"{wanted}, not {type_name(value)}")))
            before = len(at)
            for name, part in pairs:
                at.append(row)
                first.append(name)
                second.append(part)
            if len(at) == before and (self.outer or (faults and faults[-1][1].row == row)):
                at.append(row)  # a fault's row leaves as set aside
                first.append(None)
                second.append(None)
        rows = np.array(at, np.int64)
        made = frame.take(rows)
        names = COLUMNS[self.function]
        kind = values.from_values(first) if first else Column(0)
        if arrays and not first:
            kind = values.of(BIGINT, np.zeros(0, np.int64))
        columns = [Named(names[0], kind), Named(names[1], values.from_values(second))]
        made.sources.append(Rows(made.times, columns))
        first_at: dict[int, int] = {}
        for index, row in enumerate(at):
            first_at.setdefault(row, index)
        made.faults = [fault._replace(row=index) for index, fault in faults]
        made.faults += [fault._replace(row=first_at[fault.row]) for fault in frame.faults if fault.row in first_at]
        return made
