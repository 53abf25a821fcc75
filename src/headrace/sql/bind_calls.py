"""Aggregates and analytic calls of a SELECT: what is pulled out of an expression for an operator to compute.

The expression keeps a reader of the frame's `extra` columns instead. Equal calls (same text, names resolved) share one
computation, so a HAVING that repeats an aggregate of SELECT costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from headrace.core.plugins import collect
from headrace.sql import tree, values
from headrace.sql.aggregate import Aggregate
from headrace.sql.evaluate import Eval, Frame
from headrace.sql.functions.user import UserFunction, as_aggregate
from headrace.sql.scope import Scope, fail
from headrace.sql.units import DURATION_MAX, PARTS, TICKS
from headrace.sql.values import DATETIME, Column

ANALYTIC = ("lag", "last", "isfirst", "anomalydetection_spikeanddip", "anomalydetection_changepoint")
OVER_AGGREGATES = ("count", "sum", "avg", "min", "max", "collect", "topone", "collecttop")


@cache
def aggregates() -> dict[str, Aggregate]:
    return {spec.name: spec for spec in collect("headrace.sql.functions", Aggregate)}


@dataclass
class AggregateCall:
    """An aggregate of a SELECT: what to compute and its bound arguments (events as record for `Collect()`)."""

    spec: Aggregate
    call: tree.Call
    args: list[Eval]
    order: list[bool]  # descending?, one per ORDER BY item, whose values are the last arguments
    constants: list[Any] = field(default_factory=list)


@dataclass
class AnalyticCall:
    """An analytic call of a SELECT, with its bound parts."""

    call: tree.Call
    name: str
    args: list[Eval]
    constants: list[Any]
    partition: list[Eval]
    when: Eval | None
    limit: int  # ticks; for ISFIRST the length of the interval
    aggregate: AggregateCall | None = None  # what an aggregate with OVER computes


class CallBinder:
    """What the binder of one SELECT has gathered so far. `bind` of an argument is the expression binder's."""

    def __init__(self, scope: Scope, functions: Mapping[str, UserFunction]) -> None:
        self.scope = scope
        self.functions = {name.lower(): function for name, function in functions.items()}
        self.place: Literal["row", "group", "analytic", "aggregate"] = "row"
        self.group_keys: dict[object, int] = {}
        self.aggregates: list[AggregateCall] = []
        self._aggregate_at: dict[object, int] = {}
        self.analytics: list[AnalyticCall] = []
        self._analytic_at: dict[object, int] = {}
        self.per_row: set[str] = set()  # calls without a kernel, for EXPLAIN

    def bind(self, node: tree.Node) -> Eval:
        raise NotImplementedError

    def _count(self, node: tree.Call, least: int, most: int) -> None:
        given = len(node.args)
        if given < least or (most >= 0 and given > most):
            wanted = str(least) if least == most else f"at least {least}" if most < 0 else f"{least} to {most}"
            fail(node.at, f"{node.at.text} takes {wanted} arguments, not {given}", code="sql.arguments")

    # -- aggregates

    def _aggregate(self, node: tree.Call) -> Eval:
        if node.over is not None and node.distinct:
            fail(node.at, "DISTINCT is not allowed with OVER")
        if node.over is not None and node.over.limit is not None:
            if node.name not in OVER_AGGREGATES:
                fail(node.at, f"{node.at.text} takes no OVER (… LIMIT DURATION …)", hint="known: SUM, AVG, COUNT, …")
            return self._analytic(node)
        if self.place != "group":
            where = "inside another aggregate" if self.place == "aggregate" else "here"
            fail(
                node.at,
                f"the aggregate {node.at.text} is not allowed {where}",
                hint="aggregates stand in SELECT and HAVING of a GROUP BY with a window",
            )
        found = self.scope.canon(node)
        index = self._aggregate_at.get(found)
        if index is None:
            index = self._aggregate_at[found] = len(self.aggregates)
            self.aggregates.append(self._new_aggregate(node))
        shift = len(self.group_keys) + index
        return lambda frame: frame.extra[shift]

    def _new_aggregate(self, node: tree.Call) -> AggregateCall:
        if node.name.startswith("uda."):
            return self._user_aggregate(node)
        spec = aggregates()["count distinct" if node.distinct and node.name == "count" else node.name]
        if node.distinct and node.name != "count":
            fail(node.at, f"DISTINCT is only for COUNT, not for {node.at.text}")
        constants: list[Any] = []
        given = list(node.args)
        if spec.constants:
            constants = [self._constant(arg) for arg in given[: spec.constants]]
            given = given[spec.constants :]
            spec.check(node.at, constants)
        self._count(node, spec.least, spec.most)
        outer, self.place = self.place, "aggregate" if self.place == "group" else self.place
        args: list[Eval] = []
        for arg in given:
            whole = isinstance(arg, tree.Star) or (
                isinstance(arg, tree.Name) and not self.scope.resolve(arg)[1] and spec.name == "count"
            )
            if isinstance(arg, tree.Star) and (arg.parts or not (spec.record or spec.name == "count")):
                fail(arg.at, f"{node.at.text} of * does not exist", hint="name a column")
            if not whole:
                args.append(spec.argument(arg, self.bind(arg)))
        if not args and spec.record:
            args.append(self._whole())
        order: list[bool] = []
        if spec.ordered:
            if node.over is None or not node.over.order:
                fail(node.at, f"{node.at.text} needs OVER (ORDER BY …)")
            if node.over.partition and node.over.limit is None:
                fail(node.over.at, f"{node.at.text} takes no PARTITION BY here", hint="add the key to GROUP BY")
            for item in node.over.order:
                args.append(spec.ordering(item.of, self.bind(item.of)))
                order.append(item.descending)
        elif node.over is not None and (node.over.limit is None or node.over.order):
            fail(node.at, f"{node.at.text} takes no OVER without LIMIT DURATION, and no ORDER BY")
        self.place = outer
        if spec.per_row:
            self.per_row.add(node.at.text.upper())
        return AggregateCall(spec, node, args, order, constants)

    def _user_aggregate(self, node: tree.Call) -> AggregateCall:
        if node.over is not None or node.distinct:
            fail(node.at, f"{node.name} takes neither OVER nor DISTINCT")
        self._count(node, 1, 1)
        arg = node.args[0]
        self.place = "aggregate"
        value = self._whole() if isinstance(arg, tree.Star) else self.bind(arg)
        self.place = "group"
        self.per_row.add(node.name)
        times: Eval = lambda frame: values.of(DATETIME, frame.times)  # noqa: E731
        return AggregateCall(as_aggregate(self.functions[node.name]), node, [value, times], [])

    def _whole(self) -> Eval:
        """The event as a record: the first source's, or all sources' fields together."""
        for source in self.scope.sources:
            source.whole = True

        def read(frame: Frame) -> Column:
            if len(frame.sources) == 1:
                return frame.sources[0].as_record()
            records: list[dict[str, Any]] = [{} for _ in range(frame.rows)]
            for rows in frame.sources:
                for record, extra in zip(records, rows.records(), strict=True):
                    for name, value in extra.items():
                        record.setdefault(name, value)
            return values.of(values.RECORD, values.typed(values.RECORD, records))

        return read

    def _constant(self, node: tree.Node) -> Any:
        if isinstance(node, tree.Unary) and node.op == "-" and isinstance(node.of, tree.Literal):
            return -node.of.value
        if not isinstance(node, tree.Literal):
            fail(node.at, "this argument must be a constant")
        return node.value

    # -- analytic functions

    def _analytic(self, node: tree.Call) -> Eval:
        if self.place == "analytic":
            fail(node.at, "analytic functions cannot be nested", hint="compute the inner one in a step of WITH")
        found = self.scope.canon(node)
        index = self._analytic_at.get(found)
        if index is None:
            if self.place in ("group", "aggregate"):
                outer, self.place = self.place, "row"
                index = self._add_analytic(node, found)
                self.place = outer
            else:
                index = self._add_analytic(node, found)
        if self.place == "group":
            fail(
                node.at, f"{node.at.text} must be a grouping key here", hint="add it to GROUP BY, or use a step of WITH"
            )
        at = index
        return lambda frame: frame.extra[at]

    def _add_analytic(self, node: tree.Call, found: object) -> int:
        outer, self.place = self.place, "analytic"
        self.analytics.append(self._new_analytic(node))
        self.place = outer
        index = self._analytic_at[found] = len(self.analytics) - 1
        return index

    def _new_analytic(self, node: tree.Call) -> AnalyticCall:
        over = node.over
        constants: list[Any] = []
        given = list(node.args)
        if node.name == "isfirst":
            if over is not None and over.limit is not None:
                fail(over.limit.at, "ISFIRST takes no LIMIT DURATION", hint="its interval is ISFIRST(unit, n)")
            limit = self._interval(node)
            given = []
        else:
            if over is None or over.limit is None:
                fail(
                    node.at,
                    f"{node.at.text} needs OVER (… LIMIT DURATION(unit, n))",
                    hint="say how far back it may look",
                )
            limit = over.limit.ticks
        found = self._new_aggregate(node) if node.name in OVER_AGGREGATES else None
        if found is None and over is not None and over.order:
            fail(over.at, f"{node.at.text} takes no ORDER BY")
        if node.name == "lag":
            self._count(node, 1, 3)
            constants = [1]
            if len(given) > 1:
                constants = [self._constant(given.pop(1))]
            if not isinstance(constants[0], int) or constants[0] < 1:
                fail(node.at, f"the offset of LAG must be a whole number from 1 on, not {constants[0]!r}")
        elif node.name == "last":
            self._count(node, 1, 2)
            constants = [0]
        elif node.name == "anomalydetection_spikeanddip":
            self._count(node, 4, 4)
            constants = self._spike_constants(node)
            given = given[:1]
        elif node.name == "anomalydetection_changepoint":
            self._count(node, 3, 3)
            constants = self._history_constants(node)
            given = given[:1]
        if found is not None:
            given = []
        args: list[Eval] = [self._whole() if isinstance(arg, tree.Star) else self.bind(arg) for arg in given]
        partition = [self.bind(part) for part in over.partition] if over else []
        when = self.bind(over.when) if over and over.when else None
        return AnalyticCall(node, node.name, args, constants, partition, when, limit, found)

    def _history_constants(self, node: tree.Call) -> list[Any]:
        confidence, history = (self._constant(arg) for arg in node.args[1:3])
        if isinstance(node.args[0], tree.Star):
            fail(node.args[0].at, "* is not allowed here", hint="name one numeric column")
        if not isinstance(confidence, int | float) or not 1 <= confidence <= 100:
            fail(node.args[1].at, f"the confidence must be within 1 to 100, not {confidence!r}")
        if not isinstance(history, int) or history < 1:
            fail(node.args[2].at, f"the history size must be a positive whole number, not {history!r}")
        return [float(confidence), history]

    def _spike_constants(self, node: tree.Call) -> list[Any]:
        constants, mode = self._history_constants(node), self._constant(node.args[3])
        if not isinstance(mode, str) or mode.lower() not in ("spikes", "dips", "spikesanddips"):
            fail(node.args[3].at, f"the mode must be 'spikes', 'dips' or 'spikesanddips', not {mode!r}")
        return [*constants, mode.lower()]

    def _interval(self, node: tree.Call) -> int:
        self._count(node, 2, 2)
        unit, count = node.args
        name = PARTS.get(unit.parts[0].lower(), "") if isinstance(unit, tree.Name) else ""
        if name not in TICKS:
            fail(unit.at, f"{unit.at.text!r} is not a unit of duration", hint="day, hour, minute, second, …")
        number = self._constant(count)
        if not isinstance(number, int) or number < 1:
            fail(count.at, f"the length must be a positive whole number, not {number!r}")
        if number * TICKS[name] > DURATION_MAX:
            fail(count.at, f"{number} {name}s is longer than 7 days", hint="at most 7 days")
        return number * TICKS[name]
