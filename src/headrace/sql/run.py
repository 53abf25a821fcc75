"""Running a plan: events go in by input, rows come out by output, state goes out and in as bytes.

Everything is a function of the events and ticks given, in their order: no clock, no I/O, no threads. Rows of a call are
returned in the order of the script's statements, one piece per output; `merge` says in which order its rows stand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from headrace.core.clock import TICKS_PER_S
from headrace.core.errors import NotFound, UserError, nearest
from headrace.core.flow import MIN_WATERMARK, Watermark
from headrace.core.schema import EventBatch
from headrace.sql.declared import check, typed, typed_table
from headrace.sql.decode import Payload
from headrace.sql.evaluate import Frame, Memo
from headrace.sql.keys import Key, group
from headrace.sql.lane import AnyOperator, Lane, held, lowest
from headrace.sql.merge import Piece, merged, side_by_side
from headrace.sql.missed import windows_of
from headrace.sql.operators.match import MatchOperator
from headrace.sql.operators.select import Counts, SelectOperator, Stages, as_frame, filtered
from headrace.sql.operators.stream_join import StreamJoinOperator
from headrace.sql.operators.timeline import Dropped, Policies, Timeline
from headrace.sql.operators.union import UnionOperator
from headrace.sql.output import OutputRows, Results, SetAsideRows
from headrace.sql.plan import FromNode, InputNode, JoinNode, MatchNode, Plan, PlanNode, SelectNode, UnionNode
from headrace.sql.rows import Joined, Rows
from headrace.sql.set_aside import SetAside
from headrace.sql.state import hashable, pack, thawed, unpack
from headrace.sql.stats import OperatorStats, RunStats, delay_s, told
from headrace.sql.values import Bools, Ints

__all__ = ["Decoded", "OutputRows", "Policies", "Results", "Run", "SetAsideRows"]
_VERSION = 4
_HELD = (StreamJoinOperator, MatchOperator)
"""Operators whose results may be older than the mark of their sources: they say how far they are."""
_BUFFERS = (UnionOperator, StreamJoinOperator, MatchOperator)
"""Operators that take rows by port and answer in `advance` alone."""


class Decoded(NamedTuple):
    """Events of one input and what `Run.decode` made of them: the rows that cannot be read, and what is wrong with each."""

    input: str
    events: EventBatch
    payload: Payload
    bad: Ints
    details: list[str]


def _plain(key: Key) -> list[Any]:
    """A key as values of the language."""
    return [thawed(part) for part in key]


def _hashed(key: Sequence[Any]) -> Key:
    return tuple(hashable(part) for part in key)


def _leaves(plan: Plan) -> set[int]:
    """SELECTs that need no turn of their own: without state, without readers, tested by a filter bank."""
    return {
        at
        for at, node in enumerate(plan.nodes)
        if isinstance(node, SelectNode)
        and node.bank_at is not None
        and not node.select.grouped
        and not plan.readers(at)
    }


class Run:
    """One running instance of a plan."""

    def __init__(
        self,
        plan: Plan,
        *,
        references: Mapping[str, pa.Table] | None = None,
        policies: Policies | None = None,
        on_error: Literal["stop", "set_aside"] = "stop",
        timer: Callable[[], float] | None = None,
    ) -> None:
        """`references` has a table for each of `plan.references`; with `on_error="stop"` a failing row raises RowError.

        `timer` gives seconds, for `stats` alone: a CPU timer, say. Without one nothing is timed.
        """
        tables = dict(references or {})
        missing = [name for name in plan.references if name not in tables]
        if missing:
            raise NotFound(
                f"no reference data for {', '.join(missing)}", hint="name a file for it in the job's settings"
            )
        self.plan = plan
        self._aside = SetAside(on_error)
        self._windows = windows_of(plan)  # by input node
        self.decoders = {name: plan.decoder(name) for name in plan.inputs}
        self._misfits: dict[str, tuple[int, int]] = {}  # reference data: rows, and those of them that do not fit
        for name in plan.references:
            rows = tables[name].num_rows
            if name.lower() in plan.tables:
                tables[name] = typed_table(tables[name], plan.tables[name.lower()])
            self._misfits[name] = rows, rows - tables[name].num_rows
        self._tables = tables
        self._policies = policies or Policies()
        self._timer = timer
        self.busy_s = [0.0] * len(plan.nodes)
        self.counts = [Counts() for _ in plan.nodes]
        self._state_bytes = [0] * len(plan.nodes)
        self._latest = MIN_WATERMARK  # of all arrivals
        self._leaves = _leaves(plan)
        self._order = [at for at in range(len(plan.nodes)) if at not in self._leaves]
        self._held_back = {
            at: [member for member in node.bank_members if member not in self._leaves]
            for at, node in enumerate(plan.nodes)
        }
        projections = {at: node.projections for at, node in enumerate(plan.nodes) if node.projections}
        self._shared = {member for some in projections.values() for one in some for member in one.members}
        self._shared_rows = {
            at: [np.zeros(len(one.members), np.int64) for one in some] for at, some in projections.items()
        }
        self._use(self._lane())
        self.lanes: dict[Key, Lane] = {}  # TIMESTAMP BY … OVER: one per key, each with all operators
        self._lanes_touched: set[Key] = set()  # since the last snapshot; others at most saw time go by
        self._advanced: dict[str, int] = {}  # by input: up to where all lanes were told that nothing came
        self._swept = MIN_WATERMARK
        self.snapshots = 0  # the number of the last snapshot
        self._known_snapshot: int | None = None  # the one that operators know their changes since
        self.rows_in = [0] * len(plan.nodes)
        self.rows_out = [0] * len(plan.nodes)
        self._statements: dict[int, list[tuple[int, str]]] = {}
        for number, (name, at) in enumerate(plan.statements):
            self._statements.setdefault(at, []).append((number, name))
        names = [name for name, _ in plan.statements]
        bases = {name: plan.keeps_step(at) for name, at in plan.statements if names.count(name) > 1}
        self._in_step = {name: base for name, base in bases.items() if base is not None}

    # -- lanes

    def _lane(self) -> Lane:
        """Fresh operators on a fresh timeline."""
        operators: list[AnyOperator] = []
        for at, node in enumerate(self.plan.nodes):
            if isinstance(node, InputNode):
                operators.append(Timeline(node.timestamp, self._policies, self.decoders[node.input]))
            elif isinstance(node, SelectNode):
                operators.append(SelectOperator(node.select, self._tables, self._aside.on_faults, self.counts[at]))
            elif isinstance(node, JoinNode):
                operators.append(StreamJoinOperator(node.join, self._aside.on_faults))
            elif isinstance(node, MatchNode):
                operators.append(MatchOperator(node.match, self._aside.on_faults))
            elif isinstance(node, FromNode):
                operators.append(Stages(node.stages, self._tables, self._aside.on_faults))
            else:
                operators.append(UnionOperator(len(node.sources)))
        return Lane(operators, [MIN_WATERMARK] * len(self.plan.nodes))

    def _use(self, lane: Lane) -> None:
        self.operators, self.marks = lane

    def _each_lane(self, step: Callable[[], Results]) -> Results:
        """A step of all lanes: the only one, or one per key in order of appearance."""
        if not self.plan.substreams:
            return step()
        found: list[Results] = []
        for key, lane in list(self.lanes.items()):
            self._use(lane)
            before = lane.held()
            results = step()
            if results.rows or results.set_aside or before != lane.held():
                self._lanes_touched.add(key)
            found.append(results)
        return side_by_side(found)

    def _process_lanes(self, input: str, payload: Payload) -> Results:
        """Split a batch by OVER key; each key's lane sees its own events only."""
        work: dict[Key, dict[int, Payload]] = {}
        for at, _ in self._timelines(input):
            node = self.plan.nodes[at]
            assert isinstance(node, InputNode)
            self.rows_in[at] += payload.rows
            fitting = self._fitting(at, payload)
            if fitting.rows == 0:
                continue
            arrivals = fitting.arrivals()
            frame = Frame(arrivals, [Rows(arrivals, [fitting], fitting)])
            codes, keys = group([part(frame) for part in node.over], frame.rows)
            order = np.argsort(codes, kind="stable")
            bounds = np.searchsorted(codes[order], np.arange(len(keys) + 1))
            for code, key in enumerate(keys):
                some = order[bounds[code] : bounds[code + 1]]
                if None in key:
                    details = ["a key of TIMESTAMP BY … OVER is null"] * len(some)
                    self._aside.refuse(fitting, [Dropped(some, "bad_timestamp_key", details)], ())
                else:
                    work.setdefault(key, {})[at] = fitting.take(some)
        found: list[Results] = []
        for key, parts in work.items():
            lane = self.lanes.get(key)
            if lane is None:
                lane = self.lanes[key] = self._lane()
            self._use(lane)
            self._lanes_touched.add(key)
            found.append(self._run_lane(parts))
        if payload.rows:
            found.append(self._sweep(input, int(payload.arrivals().max())))
        found.append(Results([], self._aside.taken()))
        return side_by_side(found)

    def _run_lane(self, parts: dict[int, Payload]) -> Results:
        fresh: dict[int, Rows] = {}
        for at, part in parts.items():
            timeline = self.operators[at]
            assert isinstance(timeline, Timeline)
            rows, dropped = timeline.process(part)
            self._aside.refuse(part, dropped, self._windows[at])
            if rows is not None:
                fresh[at] = self._declared(at, rows)
        return self._flow(fresh)

    def _sweep(self, input: str, arrival: int) -> Results:
        """Once a second of arrivals: quiet keys move on as lateness allows, and those without state are forgotten."""
        late = int(self._policies.late_arrival_s * TICKS_PER_S)
        if late < 0 or arrival - self._swept < TICKS_PER_S:
            return Results([], [])
        self._swept = arrival
        found = self.advance(input, arrival - 1)
        if len(self.plan.inputs) == 1:
            level = arrival - late
            for key in [key for key, lane in self.lanes.items() if not lane.held() and lane.level() <= level]:
                del self.lanes[key]
                self._lanes_touched.add(key)
        return found

    # -- events

    def decode(self, input: str, batch: EventBatch) -> Decoded:
        """Events as `process` takes them, decoded ahead. Touches no state: another thread may do it, in any order."""
        input = self._known(input)
        return Decoded(input, batch, *Payload.split(batch, self.decoders[input]))

    def process(self, input: str, batch: EventBatch | Decoded) -> Results:
        """Events of one input (LOG_SCHEMA), in merged order, each later than all before. Raises RowError, DataError."""
        input = self._aside.input = self._known(input)
        if not isinstance(batch, Decoded):
            batch = self.decode(input, batch)
        assert batch.input == input, "decoded for another input"
        payload = batch.payload
        if len(batch.bad):
            events = batch.events.take(pa.array(batch.bad))
            self._aside.add(events, "undecodable", batch.details)
        if payload.rows:
            self._latest = max(self._latest, int(payload.arrivals().max()))
        if self.plan.substreams:
            return self._process_lanes(input, payload)
        fresh: dict[int, Rows] = {}
        for at, timeline in self._timelines(input):
            self.rows_in[at] += payload.rows
            fitting = self._fitting(at, payload)
            rows, dropped = timeline.process(fitting)
            self._aside.refuse(fitting, dropped, self._windows[at])
            if rows is not None:
                fresh[at] = self._declared(at, rows)
        return self._flow(fresh)

    def advance(self, input: str, arrival: int) -> Results:
        """No further event of `input` arrived up to `arrival` (ticks)."""
        name = self._aside.input = self._known(input)
        self._latest = max(self._latest, arrival)
        self._advanced[name] = max(arrival, self._advanced.get(name, arrival))
        return self._each_lane(lambda: self._advance(name, arrival))

    def _advance(self, input: str, arrival: int) -> Results:
        fresh = {
            at: self._declared(at, rows)
            for at, timeline in self._timelines(input)
            if (rows := timeline.advance(arrival)) is not None
        }
        return self._flow(fresh)

    def finish(self) -> Results:
        """The inputs are at their end: everything still open closes and reports."""
        return self._each_lane(self._finish)

    def _finish(self) -> Results:
        fresh: dict[int, Rows] = {}
        for input in self.plan.inputs:
            self._aside.input = input
            for at, timeline in self._timelines(input):
                rows = timeline.finish()
                if rows is not None:
                    fresh[at] = self._declared(at, rows)
        return self._flow(fresh)

    def _known(self, input: str) -> str:
        """The input of this name as the plan spells it; names ignore case."""
        if input in self.decoders:
            return input
        found = next((name for name in self.plan.inputs if name.lower() == input.lower()), None)
        if found is None:
            raise NotFound(f"the script has no input {input!r}", hint=nearest(input, self.plan.inputs))
        return found

    def _timelines(self, input: str) -> list[tuple[int, Timeline]]:
        return [
            (at, operator)
            for at, (node, operator) in enumerate(zip(self.plan.nodes, self.operators, strict=True))
            if isinstance(node, InputNode) and node.input == input and isinstance(operator, Timeline)
        ]

    def _fitting(self, at: int, payload: Payload) -> Payload:
        """The rows that fit CREATE TABLE; the others are set aside."""
        node = self.plan.nodes[at]
        assert isinstance(node, InputNode)
        if not node.declared or payload.rows == 0:
            return payload
        bad, details = check(payload, node.declared)
        if not len(bad):
            return payload
        self._aside.add(payload.take(bad).events(), "type_mismatch", details)
        return payload.take(np.setdiff1d(np.arange(payload.rows), bad))

    def _declared(self, at: int, rows: Rows) -> Rows:
        node = self.plan.nodes[at]
        assert isinstance(node, InputNode)
        return typed(rows, node.declared) if node.declared else rows

    def _flow(self, fresh: dict[int, Rows]) -> Results:
        """Push rows and watermarks through the graph once, sources first."""
        found: list[Piece] = []
        memos: dict[int, Memo] = {}
        holds: dict[int, Bools | None] = {}
        timer = self._timer
        for at in self._order:
            node, operator = self.plan.nodes[at], self.operators[at]
            began = timer() if timer else 0.0
            if isinstance(operator, Timeline):
                self.marks[at] = operator.mark
            else:
                mark = min(self.marks[source] for source in node.sources)
                pieces = self._step(operator, node, at, fresh, mark, memos, holds)
                self.marks[at] = max(self.marks[at], operator.mark if isinstance(operator, _HELD) else mark)
                if pieces:
                    fresh[at] = Rows.concat(pieces)
            if timer:
                self.busy_s[at] += timer() - began
            rows = fresh.get(at)
            if rows is None:
                continue
            self.rows_out[at] += rows.rows
            found += [Piece(number, name, rows) for number, name in self._statements.get(at, ())]
            if node.shared:
                memos[at] = Memo(node.shared)
            if node.bank is not None:
                self._banked(at, node, rows, memos.get(at), holds, found)
        inputs = {name: fresh[base].origin if base in fresh else None for name, base in self._in_step.items()}
        return Results(merged(found, inputs), self._aside.taken())

    def _banked(
        self,
        at: int,
        node: PlanNode,
        rows: Rows,
        memo: Memo | None,
        holds: dict[int, Bools | None],
        found: list[Piece],
    ) -> None:
        """Test the filters of a node's readers together; leaves among them do their work at once."""
        assert node.bank is not None
        table, lines = node.bank.evaluate(rows)
        holds.update(dict.fromkeys(self._held_back[at]))
        timer = self._timer
        if node.projections and len(lines):
            began = timer() if timer else 0.0
            for number, projection in enumerate(node.projections):
                made = projection.project(rows, memo, table)
                if made is not None:
                    data, places, statements, counts = made
                    self._shared_rows[at][number] += counts
                    found.append(Piece(statements, projection.output, data, places))
            if timer:
                self.busy_s[at] += timer() - began
        for line in lines.tolist():
            member = node.bank_members[line]
            if member in self._shared:
                continue
            if member not in self._leaves:
                holds[member] = table[line]
                continue
            began = timer() if timer else 0.0
            operator = self.operators[member]
            assert isinstance(operator, SelectOperator)
            out = operator.process(rows, memo, table[line])
            if timer:
                self.busy_s[member] += timer() - began
            if out is not None:
                self.rows_out[member] += out.rows
                found += [Piece(number, name, out) for number, name in self._statements[member]]

    def _step(
        self,
        operator: Any,
        node: PlanNode,
        at: int,
        fresh: dict[int, Rows],
        mark: Watermark,
        memos: dict[int, Memo],
        holds: dict[int, Bools | None],
    ) -> list[Rows]:
        pieces: list[Rows | None] = []
        for port, source in enumerate(node.sources):
            rows = fresh.get(source)
            if rows is None:
                continue
            self.rows_in[at] += rows.rows
            if isinstance(node, JoinNode) and port in node.filters:
                rows = self._first_filtered(node, port, rows)
            if isinstance(operator, _BUFFERS):
                if rows.rows:
                    operator.process(rows, port)
            elif isinstance(operator, Stages):
                pieces.append(operator.joined(rows))
            elif isinstance(node, SelectNode) and node.bank_at is not None:
                if holds[at] is not None:
                    pieces.append(operator.process(rows, memos.get(source), holds[at]))
            else:
                pieces.append(operator.process(rows, memos.get(source)))
        if isinstance(operator, Stages):
            return [rows for rows in pieces if rows is not None]
        if mark > self.marks[at] or isinstance(operator, _BUFFERS):
            pieces.append(operator.advance(mark))
        return [rows for rows in pieces if rows is not None]

    def _first_filtered(self, node: JoinNode, port: int, rows: Rows) -> Rows:
        """The rows of a side that WHERE can let through; the frame has the side's sources where expressions look for them."""
        frame = as_frame(rows)
        if port == 1:
            frame.sources = [Rows(rows.times, []) for _ in node.join.reach] + frame.sources
        count = len(frame.sources)
        found = filtered(frame, node.filters[port], self._aside.on_faults)
        if found is frame:
            return rows
        return Joined(found.times, found.sources) if port == 0 and count > 1 else found.sources[-1]

    # -- state

    def snapshot(self, since: int | None = None) -> bytes:
        """The whole state, time policies included; or what changed since the last snapshot, whose number `since` is.

        `snapshots` is the number of the one just made. `restore` takes a whole one and the deltas after it.
        """
        assert since is None or since == self._known_snapshot, "changes are known since the last snapshot only"
        self._settle_counts()
        whole = since is None
        if whole:
            self._state_bytes = [0] * len(self.plan.nodes)
        keys = [key for key in self.lanes if whole or key in self._lanes_touched]
        lanes = [[_plain(key), self.lanes[key].marks, self._sized(self.lanes[key].states(None), whole)] for key in keys]
        self.snapshots += 1
        found: dict[str, Any] = {
            "version": _VERSION,
            "number": self.snapshots,
            "since": since,
            "marks": self.marks,
            "derived": self._aside.derived,
            "rows": [self.rows_in, self.rows_out],
            "counts": [[one.where_in, one.where_out, one.having_in, one.having_out] for one in self.counts],
            "latest": self._latest,
            "states": []
            if self.plan.substreams
            else self._sized(Lane(self.operators, self.marks).states(since), whole),
            "lanes": lanes,
            "lanes_gone": [_plain(key) for key in self._lanes_touched if key not in self.lanes],
            "advanced": self._advanced,
            "swept": self._swept,
        }
        if whole:
            found |= {"text": self.plan.text, "shape": self.plan.shape}
        self._known_snapshot = self.snapshots
        self._lanes_touched = set()
        return pack(found)

    def _sized(self, states: list[list[bytes]], whole: bool) -> list[list[bytes]]:
        if whole:
            for at, parts in enumerate(states):
                self._state_bytes[at] += sum(map(len, parts))
        return states

    def restore(self, state: bytes, deltas: Sequence[bytes] = ()) -> None:
        """Continue where the last of `deltas` stood, which build on the whole snapshot `state` and on each other.

        Raises UserError where the state belongs to another script, or where a part is missing.
        """
        try:
            parts = [unpack(part) for part in (state, *deltas)]
            found, last = parts[0], parts[-1]
            fits = (
                found["version"] == _VERSION and found["text"] == self.plan.text and found["shape"] == self.plan.shape
            )
            chain = [found["since"], *(part["since"] for part in parts[1:])]
            numbers = [None, *(part["number"] for part in parts[:-1])]
        except (msgspec.MsgspecError, ValueError, KeyError, TypeError) as exc:
            raise UserError("this is no state of a run", hint="start afresh", code="sql.state") from exc
        if not fits:
            raise UserError(
                "the state belongs to another script or version", hint="start the job afresh", code="sql.state"
            )
        if chain != numbers:
            raise UserError("a part of the state is missing", hint="start the job afresh", code="sql.state")
        self._advanced = dict(last["advanced"])
        self._restore_lanes(parts)
        if not self.plan.substreams:
            self.marks = list(last["marks"])
            states = [list(zip(*same, strict=True)) for same in zip(*(part["states"] for part in parts), strict=True)]
            Lane(self.operators, self.marks).load(states)
        self._aside.derived, self._swept = last["derived"], last["swept"]
        self._latest = last["latest"]
        self.rows_in, self.rows_out = (list(counts) for counts in last["rows"])
        for counts, saved in zip(self.counts, last["counts"], strict=True):
            counts.where_in, counts.where_out, counts.having_in, counts.having_out = saved
        self.snapshots, self._known_snapshot = last["number"], None

    def _restore_lanes(self, parts: Sequence[Any]) -> None:
        """Each key's lane as it was written last. Those that the last delta left out only saw time go by since."""
        newest: dict[Key, tuple[int, Any]] = {}
        for number, part in enumerate(parts):
            for gone in part["lanes_gone"]:
                newest.pop(_hashed(gone), None)
            for key, *lane in part["lanes"]:
                newest[_hashed(key)] = number, lane
        self.lanes = {}
        for key, (number, (marks, states)) in newest.items():
            lane = self.lanes[key] = Lane(self._lane().operators, list(marks))
            lane.load([[(table,) for table in tables] for tables in states])
            if number < len(parts) - 1:
                self._use(lane)
                for input, arrival in self._advanced.items():
                    self._aside.input = input
                    self._advance(input, arrival)
        self._lanes_touched = set()

    def _settle_shared(self) -> None:
        """Rows of shared projections are counted in arrays, member by member."""
        for at, counted in self._shared_rows.items():
            for projection, rows in zip(self.plan.nodes[at].projections, counted, strict=True):
                for member, made in zip(projection.members, rows.tolist(), strict=True):
                    self.rows_out[member] += made
                    counts = self.counts[member]
                    counts.where_out += made
                    counts.having_in += made
                    counts.having_out += made
                rows[:] = 0

    def _settle_counts(self) -> None:
        """Readers of a filter bank see every row of its node, but are only called for those that pass."""
        self._settle_shared()
        for at, node in enumerate(self.plan.nodes):
            if isinstance(node, SelectNode) and node.bank_at is not None:
                if at in self._leaves:
                    self.rows_in[at] = self.rows_out[node.bank_at]
                self.counts[at].where_in = self.rows_in[at]

    def stats(self) -> RunStats:
        """Rows, state, watermarks and time per operator. Cheap enough for once a second, not for once a batch."""
        self._settle_counts()
        lanes = list(self.lanes.values()) if self.plan.substreams else [Lane(self.operators, self.marks)]
        marks: dict[str, int | None] = {}
        for input in self.plan.inputs:
            at_input = [at for at, _ in self._timelines(input)]
            marks[input] = told(lowest(lanes, at_input))
        return {
            "operators": [self._operator_stats(at, lanes) for at in range(len(self.plan.nodes))],
            "watermarks": marks,
            "decoders": {name: decoder.kind for name, decoder in self.decoders.items()},
            "references": {name: {"rows": rows, "misfits": bad} for name, (rows, bad) in self._misfits.items()},
            "substreams": len(self.lanes),
        }

    def _output(self, at: int) -> str | None:
        """Where a node's rows are written to, with those of other statements or without."""
        nodes = [at, *(reader for reader in self.plan.readers(at) if isinstance(self.plan.nodes[reader], UnionNode))]
        return next((name for one in nodes for _, name in self._statements.get(one, ())), None)

    def _operator_stats(self, at: int, lanes: list[Lane]) -> OperatorStats:
        node, counts = self.plan.nodes[at], self.counts[at]
        source = node.bank_at if at in self._leaves and isinstance(node, SelectNode) else None
        mark = min((lane.marks[at if source is None else source] for lane in lanes), default=MIN_WATERMARK)
        return {
            "operator": f"{at} {node.label}",
            "kind": type(node).__name__.removesuffix("Node").lower(),
            "output": self._output(at),
            "rows_in": self.rows_in[at],
            "rows_out": self.rows_out[at],
            "filter_in": counts.where_in,
            "filter_out": counts.where_out,
            "having_in": counts.having_in,
            "having_out": counts.having_out,
            "state_rows": sum(held(lane.operators[at]) for lane in lanes),
            "state_bytes": self._state_bytes[at],
            "watermark": told(mark),
            "watermark_delay_s": delay_s(mark, self._latest),
            "busy_s": self.busy_s[at],
        }
