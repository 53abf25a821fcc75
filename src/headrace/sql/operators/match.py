"""MATCH_RECOGNIZE: for every event of a partition, the first match that begins there, by greedy backtracking.

An attempt that could still use an event to come waits for it, until the duration has passed; then its outcome no longer
depends on what comes. A match is stamped with its last event, which may be older than the watermark by then, so the result's
own watermark stays before the oldest event that is still being tried. State is a duration's events per partition.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from headrace.core.errors import DataError
from headrace.core.flow import MIN_WATERMARK, Watermark
from headrace.sql import values
from headrace.sql.evaluate import Eval, Frame, truth
from headrace.sql.keys import Key, group
from headrace.sql.rows import Named, Rows
from headrace.sql.state import hashable, pack, table_values, thawed, unpack, value_table
from headrace.sql.values import Column

_STEPS_MAX = 1_000_000
_Chain = tuple[Any, int] | None
"""The variables matched so far, last one first."""


class Leaf(NamedTuple):
    """A value that an expression takes from matched events: first, last, min, max of a variable's field, or classifier."""

    pick: str
    variable: int
    field: int


@dataclass(frozen=True)
class MatchPlan:
    """`conditions` and `measures` read leaf i as column `$i`; `fields` are computed for each event as it comes."""

    limit: int
    variables: list[str]
    program: list[tuple[Any, ...]]
    fields: list[Eval]
    conditions: list[tuple[list[Leaf], Eval] | None]
    measures: list[tuple[str, list[Leaf], Eval]]
    partition: list[Eval]
    partition_names: list[str]  # empty: not shown

    def simple(self, variable: int) -> bool:
        """Whether a variable's condition looks at its own event alone."""
        condition = self.conditions[variable]
        return condition is None or all(leaf.variable == variable and leaf.pick == "last" for leaf in condition[0])

    def columns(self) -> list[str]:
        return [name for name, _, _ in self.measures] + [name for name in self.partition_names if name]


class _Event(NamedTuple):
    time: int
    number: int  # of all events, in order of arrival
    given: list[Any]  # its fields
    holds: list[bool]  # its simple conditions


class _Wait(Exception):
    """An attempt needs an event that has not come."""


class MatchOperator:
    def __init__(self, plan: MatchPlan, on_faults: Callable[[Frame], Frame]) -> None:
        self.plan = plan
        self.on_faults = on_faults
        self.simple = [plan.simple(variable) for variable in range(len(plan.variables))]
        self.memo = all(self.simple)
        self.first = self._first_variables()
        self.events: dict[Key, list[_Event]] = {}  # from the first undecided start on
        self.waiting: dict[Key, int] = {}  # partitions whose first start waits for an event after so many
        self.found: list[tuple[int, int, list[Any]]] = []  # heap: stamp, number of the start, leaves and partition
        self.seen = 0
        self.mark: Watermark = MIN_WATERMARK

    def _first_variables(self) -> list[int] | None:
        """The variables that the first event of a match may be, where that can be told from simple conditions alone."""
        found: list[int] = []
        todo, reached = [0], {0}
        while todo:
            pc = todo.pop()
            code = self.plan.program[pc]
            if code[0] == "match":
                return None
            if code[0] in ("jump", "split"):
                fresh = set(code[1:]) - reached
                reached |= fresh
                todo += fresh
            else:
                found.append(code[1])
        return found if all(self.simple[variable] for variable in found) else None

    def process(self, rows: Rows, port: int) -> None:
        frame = Frame(rows.times, [rows])
        fields = [values.plain(field(frame)) for field in self.plan.fields]
        holds = [self._holds(frame, variable, fields) for variable in range(len(self.plan.variables))]
        codes, keys = group([part(frame) for part in self.plan.partition], frame.rows)
        keep = np.ones(frame.rows, np.bool_)
        if frame.faults:
            keep[[fault.row for fault in frame.faults]] = False
            self.on_faults(frame)
        given = zip(*(field.to_list() for field in fields), strict=True) if fields else iter([()] * frame.rows)
        flags = zip(*(hold.tolist() for hold in holds), strict=True)
        every = zip(frame.times.tolist(), codes.tolist(), given, flags, keep.tolist(), strict=True)
        for at, (time, code, some, hold, kept) in enumerate(every):
            if kept:
                event = _Event(time, self.seen + at, list(some), list(hold))
                self.events.setdefault(keys[code], []).append(event)
        self.seen += frame.rows

    def _holds(self, frame: Frame, variable: int, fields: list[Column]) -> Any:
        condition = self.plan.conditions[variable]
        if condition is None or not self.simple[variable]:
            return np.ones(frame.rows, np.bool_)
        leaves, test = condition
        own = Frame(frame.times, [Rows(frame.times, _named([fields[leaf.field] for leaf in leaves]))])
        holds = truth(test(own))
        frame.faults += own.faults
        return holds

    def advance(self, mark: Watermark) -> Rows | None:
        """Matches that nothing can come before any more."""
        reached = mark
        for key, events in list(self.events.items()):
            if self.waiting.get(key) != len(events) or mark >= events[0].time + self.plan.limit:
                start = self._decide(key, events, mark)
                if start == len(events):
                    del self.events[key]
                    self.waiting.pop(key, None)
                    continue
                del events[:start]
                self.waiting[key] = len(events)
            reached = min(reached, events[0].time - 1)
        self.mark = max(self.mark, reached)
        due: list[tuple[int, int, list[Any]]] = []
        while self.found and self.found[0][0] <= self.mark:
            due.append(heapq.heappop(self.found))
        return self._rows(due) if due else None

    def _decide(self, key: Key, events: list[_Event], mark: Watermark) -> int:
        """Try the starts in order, up to the first that must wait; returns its position."""
        may = self.first
        for start, first in enumerate(events):
            if may is not None and not any(first.holds[variable] for variable in may):
                continue
            try:
                matched = self._attempt(events, start, closed=mark >= first.time + self.plan.limit)
            except _Wait:
                return start
            if matched:
                some = events[start : start + len(matched)]
                leaves = [self._leaf(leaf, some, matched) for _, wanted, _ in self.plan.measures for leaf in wanted]
                stamp = some[-1].time
                heapq.heappush(self.found, (stamp, first.number, [leaves, [thawed(part) for part in key]]))
        return len(events)

    def _attempt(self, events: list[_Event], start: int, *, closed: bool) -> list[int]:
        """The variables of the first match from `start` on; empty for none."""
        program, latest = self.plan.program, events[start].time + self.plan.limit
        stack: list[tuple[int, int, _Chain]] = [(0, start, None)]
        failed: set[tuple[int, int]] = set()
        steps = 0
        while stack:
            pc, position, chain = stack.pop()
            steps += 1
            if steps > _STEPS_MAX:
                raise DataError(
                    f"MATCH_RECOGNIZE took more than {_STEPS_MAX:,} steps for one start",
                    hint="make the pattern more definite, or the duration shorter",
                    code="sql.match_steps",
                )
            if self.memo:
                if (pc, position) in failed:
                    continue
                failed.add((pc, position))
            code = program[pc]
            if code[0] == "match":
                return _unchained(chain)
            if code[0] == "jump":
                stack.append((code[1], position, chain))
            elif code[0] == "split":
                stack += [(code[2], position, chain), (code[1], position, chain)]
            elif position == len(events):
                if not closed:
                    raise _Wait
            elif events[position].time <= latest and self._fits(code[1], events, start, position, chain):
                stack.append((pc + 1, position + 1, (chain, code[1])))
        return []

    def _fits(self, variable: int, events: list[_Event], start: int, position: int, chain: _Chain) -> bool:
        if self.simple[variable]:
            return events[position].holds[variable]
        condition = self.plan.conditions[variable]
        assert condition is not None
        leaves, test = condition
        matched = [*_unchained(chain), variable]
        some = events[start : position + 1]
        columns = [values.from_values([self._leaf(leaf, some, matched)]) for leaf in leaves]
        times = np.array([events[position].time])
        frame = Frame(times, [Rows(times, _named(columns))])
        holds = bool(truth(test(frame))[0])
        if frame.faults:
            self.on_faults(frame)
            return False
        return holds

    def _leaf(self, leaf: Leaf, events: list[_Event], matched: list[int]) -> Any:
        if leaf.pick == "classifier":
            return [self.plan.variables[variable] for variable in matched]
        own = [
            event.given[leaf.field]
            for event, variable in zip(events, matched, strict=True)
            if variable == leaf.variable
        ]
        if leaf.pick in ("min", "max"):
            own = [value for value in own if value is not None]
            try:
                return (min if leaf.pick == "min" else max)(own, default=None)
            except TypeError:
                kinds = sorted({values.KIND_NAMES[values.kind_of(value)] for value in own})
                raise DataError(f"{leaf.pick} of {' and '.join(kinds)} together", code="sql.bad_argument") from None
        return (own[0] if leaf.pick == "first" else own[-1]) if own else None

    def _rows(self, due: list[tuple[int, int, list[Any]]]) -> Rows | None:
        times = np.array([stamp for stamp, _, _ in due], np.int64)
        columns = [
            values.from_values(list(column)) for column in zip(*(leaves for _, _, (leaves, _) in due), strict=True)
        ]
        items: list[Named] = []
        at = 0
        keep = np.ones(len(due), np.bool_)
        for name, leaves, measure in self.plan.measures:
            frame = Frame(times, [Rows(times, _named(columns[at : at + len(leaves)]))])
            at += len(leaves)
            items.append(Named(name, measure(frame)))
            if frame.faults:
                keep[[fault.row for fault in frame.faults]] = False
                self.on_faults(frame)
        for index, name in enumerate(self.plan.partition_names):
            if name:
                items.append(Named(name, values.from_values([keys[index] for _, _, (_, keys) in due])))
        rows = Rows(times, items)
        return rows if keep.all() else rows.take(np.flatnonzero(keep))

    def rows(self) -> int:
        return sum(map(len, self.events.values())) + len(self.found)

    def snapshot(self, since: int | None = None) -> pa.Table:
        """One row per partition: its events; matches not yet reported are in the metadata."""
        keys = [[thawed(part) for part in key] for key in self.events]
        table = value_table(keys, [[list(event) for event in events] for events in self.events.values()])
        return table.replace_schema_metadata(
            {b"match": pack([self.seen, self.mark, [list(one) for one in self.found]])}
        )

    def restore(self, table: pa.Table) -> None:
        self.seen, self.mark, found = unpack(table.schema.metadata[b"match"])
        self.found = [(stamp, number, data) for stamp, number, data in found]
        self.events, self.waiting = {}, {}
        for key, events in table_values(table):
            self.events[tuple(hashable(part) for part in key)] = [_Event(*event) for event in events]


def _named(columns: list[Column]) -> list[Named]:
    return [Named(f"${at}", column) for at, column in enumerate(columns)]


def _unchained(chain: _Chain) -> list[int]:
    found: list[int] = []
    while chain is not None:
        chain, variable = chain
        found.append(variable)
    return found[::-1]
