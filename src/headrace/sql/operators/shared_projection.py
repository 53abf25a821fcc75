"""The projections of many filters over the same rows as one: every (row, filter) that holds becomes a row of one table.

A hundred rules that hit once each cost as many gathers as the output has columns, not a hundred times as many. Rows come in
the order of the events, then of the statements.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from headrace.sql import values
from headrace.sql.evaluate import Eval, Frame, Memo
from headrace.sql.rows import Named, Rows
from headrace.sql.values import Bools, Column, Ints


class SharedColumn(NamedTuple):
    """A column of the output. `which` says for each member which of `exprs` gives it, or -1: its line of `constants`."""

    name: str
    exprs: list[Eval]
    which: Ints
    constants: Column

    def gather(self, frame: Frame, places: Ints, members: Ints) -> Column:
        """The value of each pair of row and member."""
        if not self.exprs:
            return self.constants.take(members)
        if len(self.exprs) == 1 and not self.constants.rows:
            return self.exprs[0](frame).take(places)
        used = self.which[members]
        pieces: list[Column] = []
        starts = np.zeros(len(self.exprs) + 1, np.int64)  # the last one is that of the constants: -1 finds it
        start = 0
        for number in np.unique(used).tolist():
            piece = self.exprs[number](frame) if number >= 0 else self.constants
            starts[number] = start
            start += piece.rows
            pieces.append(values.plain(piece))
        return values.concat(pieces).take(starts[used] + np.where(used >= 0, places, members))


class SharedProjection(NamedTuple):
    """Members are lines of a filter bank that write rows of equal names to one output, in the order of the script."""

    output: str
    lines: Ints
    members: tuple[int, ...]  # their nodes
    numbers: Ints  # their statements' places in the script
    columns: Sequence[SharedColumn]

    def project(self, rows: Rows, memo: Memo | None, table: Bools) -> tuple[Rows, Ints, Ints, Ints] | None:
        """Rows, the row of the input that each was made from, its statement, and how many rows each member gave."""
        holds = table[self.lines]
        places, members = np.nonzero(holds.T)
        if not len(places):
            return None
        frame = Frame(rows.times, [rows], memo=memo)
        items = [Named(column.name, column.gather(frame, places, members)) for column in self.columns]
        assert not frame.faults, "only expressions that cannot fail are shared"
        return Rows(rows.times[places], items), places, self.numbers[members], holds.sum(axis=1)
