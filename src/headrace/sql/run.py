"""Running a plan: events go in by input, rows come out by output, state goes out and in as bytes.

Everything is a function of the events and ticks given, in their order: no clock, no I/O, no threads. Rows of a call are
returned in the order of the script's statements.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa

from headrace.core.errors import NotFound, UserError, nearest
from headrace.core.flow import MAX_WATERMARK, MIN_WATERMARK, Watermark
from headrace.core.identity import derived_event_id
from headrace.core.schema import JSON_TYPE, LOG_SCHEMA, EventBatch
from headrace.sql.declared import check, typed, typed_table
from headrace.sql.decode import Payload
from headrace.sql.errors import RowError
from headrace.sql.evaluate import Frame
from headrace.sql.operators.match import MatchOperator
from headrace.sql.operators.select import SelectOperator, Stages
from headrace.sql.operators.stream_join import StreamJoinOperator
from headrace.sql.operators.timeline import Dropped, Policies, Timeline
from headrace.sql.operators.union import UnionOperator
from headrace.sql.output import OutputRows, Results, SetAsideRows
from headrace.sql.plan import FromNode, InputNode, JoinNode, MatchNode, Plan, SelectNode
from headrace.sql.rows import Named, Rows
from headrace.sql.state import bytes_table, pack, table_bytes, unpack

__all__ = ["OutputRows", "Policies", "Results", "Run", "SetAsideRows"]
_VERSION = 1
_HELD = (StreamJoinOperator, MatchOperator)
"""Operators whose results may be older than the mark of their sources: they say how far they are."""
_BUFFERS = (UnionOperator, StreamJoinOperator, MatchOperator)
"""Operators that take rows by port and answer in `advance` alone."""


class Run:
    """One running instance of a plan."""

    def __init__(
        self,
        plan: Plan,
        *,
        references: Mapping[str, pa.Table] | None = None,
        policies: Policies | None = None,
        on_error: Literal["stop", "set_aside"] = "stop",
    ) -> None:
        """`references` has a table for each of `plan.references`; with `on_error="stop"` a failing row raises RowError."""
        tables = dict(references or {})
        missing = [name for name in plan.references if name not in tables]
        if missing:
            raise NotFound(
                f"no reference data for {', '.join(missing)}", hint="name a file for it in the job's settings"
            )
        self.plan = plan
        self.on_error = on_error
        self.decoders = {name: plan.decoder(name) for name in plan.inputs}
        for name in plan.references:
            if name.lower() in plan.tables:
                tables[name] = typed_table(tables[name], plan.tables[name.lower()])
        self.operators: list[
            Timeline | SelectOperator | UnionOperator | StreamJoinOperator | MatchOperator | Stages
        ] = []
        for node in plan.nodes:
            if isinstance(node, InputNode):
                self.operators.append(Timeline(node.timestamp, policies or Policies(), self.decoders[node.input]))
            elif isinstance(node, SelectNode):
                self.operators.append(SelectOperator(node.select, tables, self._on_faults))
            elif isinstance(node, JoinNode):
                self.operators.append(StreamJoinOperator(node.join, self._on_faults))
            elif isinstance(node, MatchNode):
                self.operators.append(MatchOperator(node.match, self._on_faults))
            elif isinstance(node, FromNode):
                self.operators.append(Stages(node.stages, tables, self._on_faults))
            else:
                self.operators.append(UnionOperator(len(node.sources)))
        self.marks: list[Watermark] = [MIN_WATERMARK] * len(plan.nodes)
        self.rows_in = [0] * len(plan.nodes)
        self.rows_out = [0] * len(plan.nodes)
        self._input = ""
        self._aside: list[SetAsideRows] = []
        self._derived = 0
        statements: dict[int, list[str]] = {}
        for name, at in plan.statements:
            statements.setdefault(at, []).append(name)
        self._statements = statements

    # -- events

    def process(self, input: str, batch: EventBatch) -> Results:
        """Events of one input (LOG_SCHEMA), in merged order, each later than all before. Raises RowError, DataError."""
        self._check(input)
        self._input = input
        payload, bad, details = Payload.split(batch, self.decoders[input])
        if len(bad):
            self._aside.append(SetAsideRows(input, batch.take(pa.array(bad)), "undecodable", details))
        fresh: dict[int, Rows] = {}
        for at, timeline in self._timelines(input):
            self.rows_in[at] += payload.rows
            fitting = self._fitting(at, payload)
            rows, dropped = timeline.process(fitting)
            self._refuse(fitting, dropped)
            if rows is not None:
                fresh[at] = self._declared(at, rows)
        return self._flow(fresh)

    def advance(self, input: str, arrival: int) -> Results:
        """No further event of `input` arrived up to `arrival` (ticks)."""
        self._check(input)
        self._input = input
        fresh = {
            at: self._declared(at, rows)
            for at, timeline in self._timelines(input)
            if (rows := timeline.advance(arrival)) is not None
        }
        return self._flow(fresh)

    def finish(self) -> Results:
        """The inputs are at their end: everything still open closes and reports."""
        fresh: dict[int, Rows] = {}
        for input in self.plan.inputs:
            self._input = input
            for at, timeline in self._timelines(input):
                rows = timeline.finish()
                if rows is not None:
                    fresh[at] = self._declared(at, rows)
        return self._flow(fresh)

    def _check(self, input: str) -> None:
        if input not in self.decoders:
            raise NotFound(f"the script has no input {input!r}", hint=nearest(input, self.plan.inputs))

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
        self._aside.append(SetAsideRows(self._input, payload.take(bad).events(), "type_mismatch", details))
        return payload.take(np.setdiff1d(np.arange(payload.rows), bad))

    def _declared(self, at: int, rows: Rows) -> Rows:
        node = self.plan.nodes[at]
        assert isinstance(node, InputNode)
        return typed(rows, node.declared) if node.declared else rows

    def _refuse(self, payload: Payload, dropped: list[Dropped]) -> None:
        for one in dropped:
            self._aside.append(SetAsideRows(self._input, payload.take(one.at).events(), one.reason, one.details))

    def _flow(self, fresh: dict[int, Rows]) -> Results:
        """Push rows and watermarks through the graph once, sources first."""
        found: list[OutputRows] = []
        for at, (node, operator) in enumerate(zip(self.plan.nodes, self.operators, strict=True)):
            if isinstance(operator, Timeline):
                self.marks[at] = operator.mark
            else:
                mark = min(self.marks[source] for source in node.sources)
                pieces = self._step(operator, node, at, fresh, mark)
                self.marks[at] = max(self.marks[at], operator.mark if isinstance(operator, _HELD) else mark)
                if pieces:
                    fresh[at] = Rows.concat(pieces)
            rows = fresh.get(at)
            if rows is not None:
                self.rows_out[at] += rows.rows
                found += [OutputRows(name, rows.times, rows) for name in self._statements.get(at, ())]
        aside, self._aside = self._aside, []
        return Results(found, aside)

    def _step(self, operator: Any, node: Any, at: int, fresh: dict[int, Rows], mark: Watermark) -> list[Rows]:
        pieces: list[Rows | None] = []
        for port, source in enumerate(node.sources):
            rows = fresh.get(source)
            if rows is not None:
                self.rows_in[at] += rows.rows
                if isinstance(operator, _BUFFERS):
                    operator.process(rows, port)
                elif isinstance(operator, Stages):
                    pieces.append(operator.joined(rows))
                else:
                    pieces.append(operator.process(rows))
        if isinstance(operator, Stages):
            return [rows for rows in pieces if rows is not None]
        if mark > self.marks[at] or isinstance(operator, _BUFFERS):
            pieces.append(operator.advance(mark))
        return [rows for rows in pieces if rows is not None]

    # -- faults

    def _on_faults(self, frame: Frame) -> Frame:
        first = frame.faults[0]
        origin = frame.sources[0].origin if frame.sources else None
        if self.on_error == "stop":
            where = ""
            if origin is not None:
                where = " in event " + str(origin.take(np.array([first.row])).events().column("_event_id")[0].as_py())
            raise RowError(
                f"{first.detail}{where}",
                hint="correct the query (TRY_CAST gives null), or set on_error to set_aside",
                code="sql." + first.reason,
            )
        rows = sorted({fault.row for fault in frame.faults})
        details = {fault.row: fault for fault in reversed(frame.faults)}
        for reason in dict.fromkeys(details[row].reason for row in rows):
            mine = [row for row in rows if details[row].reason == reason]
            at = np.array(mine, np.int64)
            events = origin.take(at).events() if origin is not None else self._derived_events(frame.take(at))
            self._aside.append(SetAsideRows(self._input, events, reason, [details[row].detail for row in mine]))
        keep = np.ones(frame.rows, np.bool_)
        keep[rows] = False
        return frame.take(np.flatnonzero(keep))

    def _derived_events(self, frame: Frame) -> EventBatch:
        """Rows that no single event stands behind (a window's, say), as events that carry the row."""
        if frame.sources:
            rows = Rows(frame.times, frame.sources[0].items)
        else:
            rows = Rows(frame.times, [Named(f"column{at}", column) for at, column in enumerate(frame.extra)])
        bodies = OutputRows("", frame.times, rows).bodies()
        ids = [derived_event_id("sql", self._derived, index) for index in range(frame.rows)]
        self._derived += 1
        columns: dict[str, list[Any]] = {
            "_event_id": ids,
            "_entity_id": [""] * frame.rows,
            "_type": ["derived"] * frame.rows,
            "_device": [""] * frame.rows,
            "_enqueued": frame.times.tolist(),
            "_content_type": [JSON_TYPE] * frame.rows,
            "_body": bodies,
            "_partition": [0] * frame.rows,
            "_offset": [-1] * frame.rows,
        }
        arrays = [
            pa.array(columns[one.name], one.type) if one.name in columns else pa.nulls(frame.rows, one.type)
            for one in LOG_SCHEMA
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=LOG_SCHEMA)

    # -- state

    def snapshot(self) -> bytes:
        """The whole state, time policies included."""
        states: list[Any] = []
        for operator in self.operators:
            if isinstance(operator, SelectOperator):
                states.append(operator.snapshot())
            elif isinstance(operator, Stages):
                states.append([])
            else:
                states.append([table_bytes(operator.snapshot())])
        return pack(
            {
                "version": _VERSION,
                "text": self.plan.text,
                "marks": self.marks,
                "derived": self._derived,
                "rows": [self.rows_in, self.rows_out],
                "states": states,
            }
        )

    def restore(self, state: bytes) -> None:
        """Continue where `snapshot` stood. Raises UserError where the state belongs to another script."""
        try:
            found = unpack(state)
            version, text = found["version"], found["text"]
        except (msgspec.MsgspecError, ValueError, KeyError, TypeError) as exc:
            raise UserError("this is no state of a run", hint="start afresh", code="sql.state") from exc
        if version != _VERSION or text != self.plan.text:
            raise UserError(
                "the state belongs to another script or version", hint="start the job afresh", code="sql.state"
            )
        self.marks = list(found["marks"])
        self._derived = found["derived"]
        self.rows_in, self.rows_out = (list(counts) for counts in found["rows"])
        for operator, parts in zip(self.operators, found["states"], strict=True):
            if isinstance(operator, SelectOperator):
                operator.restore(parts)
            elif not isinstance(operator, Stages):
                operator.restore(bytes_table(parts[0]))

    def stats(self) -> dict[str, Any]:
        """Rows in, rows out and state rows per operator, and the watermark (ticks, None before the first) per input."""
        operators: list[dict[str, Any]] = []
        for at, (node, operator) in enumerate(zip(self.plan.nodes, self.operators, strict=True)):
            if isinstance(operator, SelectOperator):
                held = operator.state_rows()
            elif isinstance(operator, Stages):
                held = 0
            else:
                held = operator.waiting_rows() if isinstance(operator, Timeline) else operator.rows()
            operators.append(
                {
                    "operator": f"{at} {node.label}",
                    "rows_in": self.rows_in[at],
                    "rows_out": self.rows_out[at],
                    "state_rows": held,
                }
            )
        marks: dict[str, int | None] = {}
        for input in self.plan.inputs:
            lowest = min(timeline.mark for _, timeline in self._timelines(input))
            marks[input] = lowest if MIN_WATERMARK < lowest < MAX_WATERMARK else None
        return {"operators": operators, "watermarks": marks}
