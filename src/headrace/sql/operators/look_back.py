"""What all analytic calls share: a column of results per frame, and which earlier rows count for which later ones."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from headrace.core.flow import Watermark
from headrace.sql.bind import AnalyticCall
from headrace.sql.evaluate import Frame, truth
from headrace.sql.keys import Keys, group
from headrace.sql.values import Bools, Column, Ints


class Analytic:
    """One analytic call: a column of results for a frame, in row order."""

    def process(self, frame: Frame) -> Column:
        raise NotImplementedError

    def advance(self, mark: Watermark) -> None:
        """Forget what can never be looked at again."""

    def rows(self) -> int:
        """How many keys have state."""
        raise NotImplementedError

    def snapshot(self, since: int | None = None) -> pa.Table:
        """Everything, or what changed since the snapshot before, whose number `since` is (see `changes`)."""
        raise NotImplementedError

    def restore(self, table: pa.Table) -> None:
        raise NotImplementedError


def candidates(call: AnalyticCall, frame: Frame) -> Bools:
    """The rows that satisfy WHEN."""
    return np.ones(frame.rows, np.bool_) if call.when is None else truth(call.when(frame))


def groups(call: AnalyticCall, frame: Frame) -> tuple[Ints, Keys]:
    """The PARTITION BY key of each row."""
    return group([part(frame) for part in call.partition], frame.rows)
