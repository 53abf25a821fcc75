"""Binding: from a syntax tree to functions over frames. Unknown names and misplaced calls are found here.

One binder serves one SELECT. Below a window it works in two places: `row` expressions see events, `group` expressions see
only grouping keys and aggregates. `bind_calls` pulls out the calls that operators compute; the expression then reads their
result from the frame.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NoReturn

import numpy as np
import pyarrow.compute as pc

from headrace.core.errors import nearest
from headrace.core.plugins import collect
from headrace.sql import tree, values
from headrace.sql.bind_calls import ANALYTIC, AggregateCall, AnalyticCall, CallBinder, aggregates
from headrace.sql.calls import metadata, user_call
from headrace.sql.compare import compare
from headrace.sql.convert import text as as_text
from headrace.sql.evaluate import Eval, Frame, apply, bits, truth
from headrace.sql.functions.conversion import cast_to
from headrace.sql.functions.text import like_pattern
from headrace.sql.functions.user import UserFunction, as_scalar
from headrace.sql.rows import ABSENT
from headrace.sql.scope import Scope, fail, field_of, paths
from headrace.sql.spec import Scalar
from headrace.sql.units import PARTS
from headrace.sql.values import DATETIME, TEXT, Column, Constant

__all__ = ["AggregateCall", "AnalyticCall", "Binder", "scalars"]


_ELSEWHERE = {
    "convert": "write CAST(x AS type)",
    "try_convert": "write TRY_CAST(x AS type)",
    "isnull": "write COALESCE(a, b)",
    "ifnull": "write COALESCE(a, b)",
    "nvl": "write COALESCE(a, b)",
    "iif": "write CASE WHEN … THEN … ELSE … END",
    "getdate": "write System.Timestamp()",
    "now": "write System.Timestamp()",
    "stddev": "did you mean 'stdev'?",
    "variance": "did you mean 'var'?",
    "median": "write PERCENTILE_CONT(0.5) OVER (ORDER BY x)",
    "length": "did you mean 'len'?",
    "getarrayelements": "it stands in CROSS APPLY or OUTER APPLY",
    "getrecordproperties": "it stands in CROSS APPLY or OUTER APPLY",
}
"""What other dialects call it."""
_WINDOW_CALLS = {f"{kind}{end}" for kind in ("tumbling", "hopping", "sliding", "session") for end in ("", "window")} | {
    "windows"
}


@cache
def scalars() -> dict[str, Scalar]:
    return {spec.name: spec for spec in collect("headrace.sql.functions", Scalar)}


class Binder(CallBinder):
    def __init__(self, scope: Scope, functions: Mapping[str, UserFunction]) -> None:
        super().__init__(scope, functions)
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
            for cut in range(len(node.parts) - 1, 0, -1):  # a field of a record that is a grouping key
                index = self.group_keys.get(self.scope.canon(tree.Name(node.at, node.parts[:cut])))
                if index is not None:
                    return paths(_extra(index), node.parts[cut:])
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
                hint = nearest(first.at.text, PARTS) or "year, day, …"
                if isinstance(first, tree.Literal) and first.value in PARTS:
                    hint = f"write {first.value} without quotes"
                fail(first.at, f"{first.at.text!r} is not a date part", hint=hint)
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
        if node.name in _WINDOW_CALLS:
            fail(node.at, f"the window {node.at.text} is not allowed here", hint="windows stand in GROUP BY")
        hint = _ELSEWHERE.get(node.name) or nearest(node.name, known) or "user functions are called as udf.name(…)"
        fail(node.at, f"unknown function {node.name!r}", hint=hint, code="sql.function")

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


def _extra(index: int) -> Eval:
    return lambda frame: frame.extra[index]


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
