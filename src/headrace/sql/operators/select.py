"""One SELECT: joins, analytic functions, WHERE, then either a projection or groups, HAVING and a projection.

The stages pass frames on; only the group stage holds rows back until a watermark. A row whose expression faulted leaves at
the stage where that happened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.core.flow import MIN_WATERMARK, Watermark
from headrace.sql import tree, values
from headrace.sql.aggregate import Failed
from headrace.sql.bind import AggregateCall, AnalyticCall
from headrace.sql.evaluate import Eval, Frame, Kept, Memo, RowFault, truth
from headrace.sql.keys import Key, group
from headrace.sql.operators.analytic import make_analytic
from headrace.sql.operators.apply import ApplyStage
from headrace.sql.operators.reference_join import ReferenceJoin, ReferenceJoinOperator
from headrace.sql.operators.windows import GroupOperator
from headrace.sql.rows import Joined, Named, Records, Rows, Spread
from headrace.sql.values import RECORD, Bools, Ints, Repeat, Struct

Stage = ReferenceJoin | ApplyStage
OnFaults = Callable[[Frame], Frame]
"""Takes a frame with faults and gives back the rows without; stops the job instead where it should."""


@dataclass
class SelectColumn:
    """One item of SELECT, bound. `of` is None for stars: `source` then says whose fields, `spread` which record's."""

    name: str
    of: Eval | None
    source: int = -1
    spread: Eval | None = None


@dataclass
class SelectPlan:
    """A SELECT, bound: everything an operator needs, and nothing that changes while it runs."""

    joins: list[Stage] = field(default_factory=list)
    analytics: list[AnalyticCall] = field(default_factory=list)
    where: Eval | None = None
    keys: list[Eval] = field(default_factory=list)
    windows: Sequence[tree.Window] = ()
    partitions: list[list[Eval]] = field(default_factory=list)  # each window's own PARTITION BY
    aggregates: list[AggregateCall] = field(default_factory=list)
    having: Eval | None = None
    columns: list[SelectColumn] = field(default_factory=list)
    early: Eval | None = None  # a part of WHERE that is tested before the joins
    pushed: list[Eval] = field(default_factory=list)  # filters of the SELECT that reads this one, tested after WHERE
    group_number: int | None = None  # the same for SELECTs that group the same rows by the same keys

    @property
    def grouped(self) -> bool:
        return bool(self.windows)


def kept(frame: Frame, keep: Bools) -> Frame:
    return frame if keep.all() else frame.take(np.flatnonzero(keep))


def filtered(frame: Frame, condition: Eval | None, on_faults: OnFaults) -> Frame:
    """The rows for which a condition holds. A row that faults leaves as set aside, not as filtered."""
    if condition is None or frame.rows == 0:
        return frame
    keep = truth(condition(frame))
    if not frame.faults:
        return kept(frame, keep)
    keep = keep.copy()  # it may be a column's own data
    for fault in frame.faults:
        keep[fault.row] = True
    found = frame.take(np.flatnonzero(keep))
    back = np.cumsum(keep) - 1
    found.faults = [fault._replace(row=int(back[fault.row])) for fault in frame.faults]
    return on_faults(found)


def _find_failed(frame: Frame) -> None:
    """Groups whose aggregate failed become faults of their rows, nulls in its place."""
    for at, column in enumerate(frame.extra):
        if isinstance(column, Struct):  # a detector's results
            continue
        for kind, data, mask in column.parts:
            if kind != RECORD or isinstance(data, Repeat):
                continue
            rows = np.arange(frame.rows) if mask is None else np.flatnonzero(mask)
            wrong = [row for row in rows.tolist() if type(data[row]) is Failed]
            if wrong:
                frame.faults += [RowFault(row, data[row].reason, data[row].detail) for row in wrong]
                sound = np.ones(frame.rows, np.bool_)
                sound[wrong] = False
                frame.extra[at] = frame.extra[at].where(sound)


class Stages:
    """Reference joins and APPLY, one after the other. They hold nothing back and have no state."""

    def __init__(self, stages: Sequence[Stage], references: Mapping[str, pa.Table], on_faults: OnFaults) -> None:
        self.on_faults = on_faults
        self.stages = [
            ReferenceJoinOperator(stage, references[stage.table]) if isinstance(stage, ReferenceJoin) else stage
            for stage in stages
        ]

    def process(self, frame: Frame) -> Frame:
        for stage in self.stages:
            frame = stage.process(frame)
            if frame.faults:
                frame = self.on_faults(frame)
        return frame

    def joined(self, rows: Rows) -> Joined | None:
        """The same as rows, for a join to come."""
        frame = self.process(as_frame(rows))
        return Joined(frame.times, frame.sources) if frame.rows else None


def as_frame(rows: Rows, memo: Memo | None = None) -> Frame:
    """Rows as expressions see them."""
    return Frame(rows.times, rows.sources if isinstance(rows, Joined) else [rows], memo=memo)


@dataclass
class Counts:
    """How many rows reached a SELECT's WHERE and HAVING, and how many these let through."""

    where_in: int = 0
    where_out: int = 0
    having_in: int = 0
    having_out: int = 0


class SelectOperator:
    """`counts` outlive the operator: they belong to whoever runs it."""

    def __init__(
        self,
        plan: SelectPlan,
        references: Mapping[str, pa.Table],
        on_faults: OnFaults,
        counts: Counts | None = None,
    ) -> None:
        self.plan = plan
        self.on_faults = on_faults
        self.counts = counts or Counts()
        self.stages = Stages(plan.joins, references, on_faults)
        self.analytics = [make_analytic(call) for call in plan.analytics]
        self.group = GroupOperator(plan.windows, self._accumulators) if plan.grouped else None
        self.mark: Watermark = MIN_WATERMARK

    def _accumulators(self) -> list[Any]:
        return [call.spec.make(call.order, call.constants) for call in self.plan.aggregates]

    def process(self, rows: Rows, memo: Memo | None = None, holds: Bools | None = None) -> Rows | None:
        """Rows in time order. Groups answer later, in `advance`.

        `memo` keeps what others compute over the same rows too; `holds` says where the part of WHERE holds that a filter
        bank has tested.
        """
        plan = self.plan
        frame = as_frame(rows, memo)
        if holds is not None:
            self.counts.where_in += frame.rows
            frame = kept(frame, holds)
        elif plan.early is not None:
            self.counts.where_in += frame.rows
            frame = self._filter(frame, plan.early)
        if plan.joins and frame.rows:
            frame.memo = None
            frame = self.stages.process(frame)
        if self.analytics:
            frame.extra = [analytic.process(frame) for analytic in self.analytics]
            _find_failed(frame)
            frame = self._checked(frame)
        if holds is None and plan.early is None:
            self.counts.where_in += frame.rows
        frame = self._where(frame)
        self.counts.where_out += frame.rows
        for condition in plan.pushed:
            frame = self._filter(frame, condition)
        if frame.rows == 0:
            return None
        if self.group is not None:
            self._add(frame, self.group)
            return None
        return self._project(self._having(frame))

    def _checked(self, frame: Frame) -> Frame:
        return self.on_faults(frame) if frame.faults else frame

    def _where(self, frame: Frame) -> Frame:
        """Rows that WHERE lets through; SELECTs with the same WHERE over the same rows get the same ones."""
        where, memo = self.plan.where, frame.memo
        if memo is None or frame.extra or not isinstance(where, Kept) or where.number not in memo.wanted:
            return self._filter(frame, where)
        found = memo.filtered.get(where.number)
        if found is None:
            found = self._filter(frame, where)
            if where.number not in memo.columns or memo.columns[where.number][1]:
                return found  # faults are reported by every reader
            if found is not frame:
                found.memo = Memo(memo.wanted)
            memo.filtered[where.number] = found
        return Frame(found.times, found.sources, memo=found.memo)

    def _having(self, frame: Frame) -> Frame:
        self.counts.having_in += frame.rows
        frame = self._filter(frame, self.plan.having)
        self.counts.having_out += frame.rows
        return frame

    def _filter(self, frame: Frame, condition: Eval | None) -> Frame:
        return filtered(frame, condition, self.on_faults)

    def _add(self, frame: Frame, into: GroupOperator) -> None:
        keys, args = self._inputs(frame)
        if frame.faults:
            frame = self.on_faults(frame)
            if frame.rows == 0:
                return
            keys, args = self._inputs(frame)
        codes, groups = self._groups(frame, keys)
        parts = [group([part(frame) for part in some], frame.rows) if some else None for some in self.plan.partitions]
        into.process(frame.times, codes, groups, args, parts)

    def _groups(self, frame: Frame, keys: list[values.Column]) -> tuple[Ints, Sequence[Key]]:
        number, memo = self.plan.group_number, frame.memo
        if memo is None or number is None:
            return group(keys, frame.rows)
        found = memo.groups.get(number)
        if found is None:
            found = memo.groups[number] = group(keys, frame.rows)
        return found

    def _inputs(self, frame: Frame) -> tuple[list[values.Column], list[list[values.Column]]]:
        keys = [key(frame) for key in self.plan.keys]
        return keys, [[arg(frame) for arg in call.args] for call in self.plan.aggregates]

    def advance(self, mark: Watermark) -> Rows | None:
        """Groups of the windows that end at or before `mark`."""
        self.mark = max(self.mark, mark)
        for analytic in self.analytics:
            analytic.advance(mark)
        closed = self.group.advance(mark) if self.group is not None else None
        if closed is None:
            return None
        ends, columns = closed
        frame = Frame(ends, [], columns)
        _find_failed(frame)
        frame = self._having(self._checked(frame))
        return self._project(frame) if frame.rows else None

    def _project(self, frame: Frame) -> Rows | None:
        if frame.rows == 0:
            return None
        found = self._items(frame)
        if frame.faults:
            frame = self.on_faults(frame)
            if frame.rows == 0:
                return None
            found = self._items(frame)
        origin = frame.sources[0].origin if frame.sources else None
        return Rows(frame.times, found, origin)

    def _items(self, frame: Frame) -> list[Named | Spread]:
        items: list[Named | Spread] = []
        names: set[str] = set()
        for column in self.plan.columns:
            if column.of is not None:
                if column.name not in names:
                    items.append(Named(column.name, column.of(frame)))
                    names.add(column.name)
            elif column.spread is not None:
                items.append(Records(column.spread(frame).to_list()))
            else:
                for item in frame.sources[column.source].items:
                    if not isinstance(item, Named):
                        items.append(item)
                    elif item.name not in names:
                        items.append(item)
                        names.add(item.name)
        return items

    def state_rows(self) -> int:
        return (self.group.rows() if self.group else 0) + sum(analytic.rows() for analytic in self.analytics)

    def snapshot(self, since: int | None = None) -> list[pa.Table]:
        """A table for each analytic call and each window: whole, or a delta to the snapshot before."""
        tables = [analytic.snapshot(since) for analytic in self.analytics]
        return [*tables, *(self.group.snapshot(since) if self.group else [])]

    def restore(self, tables: Sequence[pa.Table]) -> None:
        for analytic, table in zip(self.analytics, tables, strict=False):
            analytic.restore(table)
        if self.group is not None:
            self.group.restore(tables[len(self.analytics) :])
