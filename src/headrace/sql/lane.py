"""A lane: the operators of one timeline, how far each of them is, and their state as bytes.

A script without TIMESTAMP BY … OVER has one lane; with it there is one per key, each with all operators of the plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from headrace.core.flow import MIN_WATERMARK, Watermark
from headrace.sql.changes import folded
from headrace.sql.operators.match import MatchOperator
from headrace.sql.operators.select import SelectOperator, Stages
from headrace.sql.operators.stream_join import StreamJoinOperator
from headrace.sql.operators.timeline import Timeline
from headrace.sql.operators.union import UnionOperator
from headrace.sql.state import bytes_table, table_bytes

AnyOperator = Timeline | SelectOperator | UnionOperator | StreamJoinOperator | MatchOperator | Stages


class Lane(NamedTuple):
    """Operators by position in the plan, and their watermarks."""

    operators: list[AnyOperator]
    marks: list[Watermark]

    def held(self) -> int:
        """Rows, groups and keys that its operators remember."""
        return sum(map(held, self.operators))

    def level(self) -> Watermark:
        return max(operator.level for operator in self.operators if isinstance(operator, Timeline))

    def states(self, since: int | None) -> list[list[bytes]]:
        """The state of each operator as tables: whole, or what changed since a snapshot."""
        found: list[list[bytes]] = []
        for operator in self.operators:
            if isinstance(operator, SelectOperator):
                found.append([table_bytes(table) for table in operator.snapshot(since)])
            elif isinstance(operator, Stages):
                found.append([])
            else:
                found.append([table_bytes(operator.snapshot(since))])
        return found

    def load(self, states: Sequence[Sequence[Sequence[bytes]]]) -> None:
        """Give each operator its tables: each as the snapshots that make it, the whole one first."""
        for operator, parts in zip(self.operators, states, strict=True):
            tables = [folded([bytes_table(data) for data in same]) for same in parts]
            if isinstance(operator, SelectOperator):
                operator.restore(tables)
            elif not isinstance(operator, Stages):
                operator.restore(tables[0])


def held(operator: AnyOperator) -> int:
    """Rows, groups or keys that an operator remembers."""
    if isinstance(operator, SelectOperator):
        return operator.state_rows()
    if isinstance(operator, Stages):
        return 0
    return operator.waiting_rows() if isinstance(operator, Timeline) else operator.rows()


def lowest(lanes: Sequence[Lane], at: Sequence[int]) -> Watermark:
    """The lowest watermark of the timelines at these positions."""
    timelines = [lane.operators[one] for lane in lanes for one in at]
    return min((one.mark for one in timelines if isinstance(one, Timeline)), default=MIN_WATERMARK)
