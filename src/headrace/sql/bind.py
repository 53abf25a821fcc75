"""Binding: from a syntax tree to functions over frames. Unknown names and misplaced calls are found here.

One binder serves one SELECT. Below a window it works in two places: `row` expressions see events, `group` expressions see
only grouping keys and aggregates. Analytic calls and aggregates are pulled out and computed by operators; the expression
then reads their result from the frame.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, NoReturn

import numpy as np
import pyarrow.compute as pc

from headrace.core.errors import nearest
from headrace.core.plugins import collect
from headrace.sql import tree, values
from headrace.sql.aggregate import Aggregate
from headrace.sql.calls import metadata, user_call
from headrace.sql.compare import compare
from headrace.sql.convert import text as as_text
from headrace.sql.evaluate import Eval, Frame, apply, bits, truth
from headrace.sql.functions.conversion import cast_to
from headrace.sql.functions.text import like_pattern
from headrace.sql.functions.user import UserFunction, as_aggregate, as_scalar
from headrace.sql.rows import ABSENT
from headrace.sql.scope import Scope, fail, field_of
from headrace.sql.spec import Scalar
from headrace.sql.units import PARTS, TICKS
from headrace.sql.values import DATETIME, TEXT, Column, Constant

ANALYTIC = ("lag", "last", "isfirst", "anomalydetection_spikeanddip", "anomalydetection_changepoint")
OVER_AGGREGATES = ("count", "sum", "avg", "min", "max", "collect", "topone", "collecttop")


@cache
def scalars() -> dict[str, Scalar]:
    return {spec.name: spec for spec in collect("headrace.sql.functions", Scalar)}


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


class Binder:
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
        self.aliases: dict[str, tree.Node] = {}  # select aliases that HAVING may use
        self.window_ids = False

    def bind(self, node: tree.Node) -> Eval:
        """The expression as a function of a frame."""
        if self.place == "group" and not isinstance(node, tree.Literal):
            index = self.group_keys.get(self.scope.canon(node))
            if index is not None:
                return lambda frame: frame.extra[index]
        method: Callable[[Any], Eval] = getattr(self, "_" + type(node).__name__.lower())
        return method(node)

    # -- leaves

    def _literal(self, node: tree.Literal) -> Eval:
        value = node.value
        return lambda frame: Constant(frame.rows, value)

    def _name(self, node: tree.Name) -> Eval:
        if self.place == "group":
            alias = self.aliases.get(node.parts[0].lower()) if len(node.parts) == 1 else None
            if alias is not None:
                return self.bind(alias)
            fail(
                node.at,
                f"column {'.'.join(node.parts)!r} is neither a grouping key nor aggregated",
                hint="add it to GROUP BY, or put it into an aggregate",
                code="sql.ungrouped",
            )
        return self.scope.read(node)

    def _field(self, node: tree.Field) -> Eval:
        if isinstance(node.of, tree.Call) and node.of.name == "system.window":
            return self._window_id(node)
        return field_of(self.bind(node.of), node.name)

    def _window_id(self, node: tree.Field) -> Eval:
        if node.name.lower() != "id":
            fail(node.at, f"System.Window() has no {node.name!r}", hint="System.Window().Id")
        if self.place != "group" or not self.window_ids:
            fail(node.at, "System.Window() is allowed only in the SELECT of a GROUP BY with a window")
        return lambda frame: frame.extra[-1]

    def _star(self, node: tree.Star) -> Eval:
        fail(node.at, "* is allowed only as an item of SELECT and as the argument of an aggregate")

    # -- operators

    def _unary(self, node: tree.Unary) -> Eval:
        of = self.bind(node.of)
        if node.op == "not":
            return lambda frame: bits(~truth(of(frame)))
        if node.op == "+":
            return of
        spec = scalars()["negate" if node.op == "-" else node.op]
        return lambda frame: apply(frame, spec, [of(frame)])

    def _binary(self, node: tree.Binary) -> Eval:
        left, right, op = self.bind(node.left), self.bind(node.right), node.op
        if op in ("and", "or"):
            return _logic(op, left, right)
        if op in ("=", "<>", "<", "<=", ">", ">="):
            return lambda frame: compare(frame, op, left(frame), right(frame))
        spec = scalars()[op]
        return lambda frame: apply(frame, spec, [left(frame), right(frame)])

    def _isnull(self, node: tree.IsNull) -> Eval:
        of, negated = self.bind(node.of), node.negated

        def test(frame: Frame) -> Column:
            valid = of(frame).valid()
            return bits(valid if negated else ~valid)

        return test

    def _between(self, node: tree.Between) -> Eval:
        of, low, high, negated = self.bind(node.of), self.bind(node.low), self.bind(node.high), node.negated

        def test(frame: Frame) -> Column:
            column, lowest, highest = of(frame), low(frame), high(frame)
            inside = truth(compare(frame, ">=", column, lowest)) & truth(compare(frame, "<=", column, highest))
            if negated:
                inside = ~inside & column.valid() & lowest.valid() & highest.valid()
            return bits(inside)

        return test

    def _in(self, node: tree.In) -> Eval:
        of, items, negated = self.bind(node.of), [self.bind(item) for item in node.items], node.negated

        def test(frame: Frame) -> Column:
            column = of(frame)
            found = np.zeros(frame.rows, np.bool_)
            for item in items:
                found |= truth(compare(frame, "=", column, item(frame)))
            return bits(~found & column.valid() if negated else found)

        return test

    def _like(self, node: tree.Like) -> Eval:
        of, pattern, negated = self.bind(node.of), self.bind(node.pattern), node.negated
        if not isinstance(node.pattern, tree.Literal):
            self.per_row.add("LIKE")

        def call(value: Any, wanted: Any) -> bool:
            return (like_pattern(as_text(wanted)).fullmatch(as_text(value)) is not None) != negated

        def kernel(data: Any, wanted: Any) -> Any:
            if not isinstance(wanted, str) or isinstance(data, str):
                rows = len(wanted) if isinstance(data, str) else len(data)
                return np.zeros(rows, np.bool_), np.ones(rows, np.bool_)
            match = like_pattern(wanted).fullmatch
            encoded = data.dictionary_encode()
            holds = np.array(
                [text is not None and (match(text) is not None) != negated for text in encoded.dictionary.to_pylist()]
            )
            at = np.asarray(pc.fill_null(encoded.indices, -1))
            return holds[at] if len(holds) else np.zeros(len(at), np.bool_)

        spec = Scalar("like", 2, 2, call, {(TEXT, TEXT): (values.BIT, kernel)})
        return lambda frame: bits(truth(apply(frame, spec, [of(frame), pattern(frame)])))

    def _case(self, node: tree.Case) -> Eval:
        tests: list[Eval] = []
        for test, _ in node.whens:
            if node.operand is None:
                tests.append(self.bind(test))
            else:
                tests.append(_equals(self.bind(node.operand), self.bind(test)))
        results = [self.bind(result) for _, result in node.whens]
        results.append(self.bind(node.otherwise) if node.otherwise else lambda frame: Constant(frame.rows, None))
        return _choose(tests, results)

    def _cast(self, node: tree.Cast) -> Eval:
        of, spec, trying = self.bind(node.of), cast_to(node.type), node.trying

        def run(frame: Frame) -> Column:
            column = of(frame)
            since = len(frame.faults)
            found = apply(frame, spec, [column])
            if trying:
                del frame.faults[since:]
            return found

        return run

    # -- calls

    def _call(self, node: tree.Call) -> Eval:
        name = node.name
        if name == "system.timestamp":
            return lambda frame: values.of(DATETIME, frame.times)
        if name == "system.window":
            fail(node.at, "System.Window() is read as System.Window().Id, in the SELECT of a GROUP BY")
        if name in ANALYTIC:
            return self._analytic(node)
        if name in aggregates() or (name.startswith("uda.") and self._is_aggregate(name)):
            return self._aggregate(node)
        if node.over is not None:
            fail(node.at, f"{node.at.text} takes no OVER")
        if node.distinct:
            fail(node.at, f"DISTINCT is only for COUNT, not for {node.at.text}")
        if name == "coalesce":
            return self._coalesce(node)
        if name == "getmetadatapropertyvalue":
            return metadata(self.scope, node)
        if name.startswith(("udf.", "uda.")):
            return self._user(node)
        return self._scalar(node)

    def _scalar(self, node: tree.Call) -> Eval:
        spec = scalars().get(node.name)
        if spec is None or not spec.name[0].isalpha() or spec.name == "negate":
            self._unknown(node)
        self._count(node, spec.least, spec.most)
        given = list(node.args)
        args: list[Eval] = []
        if spec.part:
            first = given.pop(0)
            part = first.parts[0].lower() if isinstance(first, tree.Name) and len(first.parts) == 1 else ""
            if part not in PARTS:
                fail(
                    first.at,
                    f"{first.at.text!r} is not a date part",
                    hint=nearest(first.at.text, PARTS) or "year, day, …",
                )
            args.append(lambda frame: Constant(frame.rows, part))
        args += [self._instant(arg) if spec.name == "datediff" else self.bind(arg) for arg in given]
        if not spec.kernels:
            self.per_row.add(spec.name.upper())
        return lambda frame: apply(frame, spec, [arg(frame) for arg in args])

    def _instant(self, node: tree.Node) -> Eval:
        """An argument of DATEDIFF: the name of a source means its event's timestamp."""
        if self.place == "group" or not isinstance(node, tree.Name):
            return self.bind(node)
        at, path = self.scope.resolve(node)
        if at is None or path:
            return self.bind(node)
        index = at

        def read(frame: Frame) -> Column:
            times = frame.sources[index].times
            return values.of(DATETIME, times, times != ABSENT)

        return read

    def _unknown(self, node: tree.Call) -> NoReturn:
        known = [*scalars(), *aggregates(), *ANALYTIC, *self.functions, "coalesce", "getmetadatapropertyvalue"]
        prefix, _, rest = node.name.rpartition(".")
        if prefix and rest in known:
            fail(
                node.at,
                f"unknown function {node.name!r}: built-in functions take no prefix",
                hint=f"write {rest.upper()}(…)",
                code="sql.function",
            )
        fail(
            node.at,
            f"unknown function {node.name!r}",
            hint=nearest(node.name, known) or "user functions are called as udf.name(…)",
            code="sql.function",
        )

    def _user(self, node: tree.Call) -> Eval:
        function = self.functions.get(node.name)
        if function is None:
            known = sorted(self.functions)
            hint = nearest(node.name, known) or ("known here: " + ", ".join(known) if known else "none is registered")
            fail(node.at, f"unknown function {node.name!r}", hint=hint, code="sql.function")
        if self.place == "analytic":
            fail(node.at, "user functions are not allowed inside analytic functions")
        if function.kind in ("aggregate", "accumulator"):
            fail(node.at, f"{node.name!r} is an aggregate", hint="user aggregates are called as uda.name(x)")
        args = [self.bind(arg) for arg in node.args]
        if function.kind == "row":
            self.per_row.add(node.name)
            spec = as_scalar(function, len(args))
            return lambda frame: apply(frame, spec, [arg(frame) for arg in args])
        return user_call(function, args)

    def _is_aggregate(self, name: str) -> bool:
        function = self.functions.get(name)
        return function is not None and function.kind in ("aggregate", "accumulator")

    def _coalesce(self, node: tree.Call) -> Eval:
        self._count(node, 1, -1)
        args = [self.bind(arg) for arg in node.args]
        tests: list[Eval] = []
        for arg in args[:-1]:
            tests.append(lambda frame, arg=arg: bits(arg(frame).valid()))  # type: ignore[misc]
        return _choose(tests, args)

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
            if not whole:
                args.append(spec.argument(arg, self.bind(arg)))
        if not args and spec.record:
            args.append(self._whole())
        order: list[bool] = []
        if spec.ordered:
            if node.over is None or not node.over.order:
                fail(node.at, f"{node.at.text} needs OVER (ORDER BY …)")
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
        return number * TICKS[name]


def _equals(left: Eval, right: Eval) -> Eval:
    return lambda frame: compare(frame, "=", left(frame), right(frame))


def _logic(op: str, left: Eval, right: Eval) -> Eval:
    """AND and OR. A fault on the right does not count where the left side decides."""

    def run(frame: Frame) -> Column:
        first = truth(left(frame))
        since = len(frame.faults)
        second = truth(right(frame))
        frame.keep_faults(since, first if op == "and" else ~first)
        return bits(first & second if op == "and" else first | second)

    return run


def _choose(tests: list[Eval], results: list[Eval]) -> Eval:
    """The result of the first test that holds, the last result where none does."""

    def run(frame: Frame) -> Column:
        open_ = np.ones(frame.rows, np.bool_)
        pieces: list[tuple[Any, Column]] = []
        for test, result in zip([*tests, None], results, strict=True):
            since = len(frame.faults)
            chosen = open_ if test is None else truth(test(frame)) & open_
            frame.keep_faults(since, open_)
            since = len(frame.faults)
            pieces.append((chosen, result(frame)))
            frame.keep_faults(since, chosen)
            open_ = open_ & ~chosen
        return values.merge(frame.rows, pieces)

    return run
