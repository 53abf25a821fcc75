"""What ON says about time: the DATEDIFF conditions between a joined stream and the ones before it."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

from headrace.sql import tree
from headrace.sql.operators.stream_join import Bound
from headrace.sql.scope import Scope, fail
from headrace.sql.units import DURATION_MAX, PARTS, TICKS

_MIRROR = {"=": "=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_SIGNS = {"-": -1, "+": 1}
_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}
_Limits = tuple[int | None, int | None]


def time_bound(part: tree.Node, scope: Scope, position: int) -> Bound | None:
    """The bound that a condition of ON puts on source `position`, or None if it is another condition."""
    call, limits = _limits(part)
    if call is None or limits is None or len(call.args) != 3:
        return None
    sources = [_source(arg, scope) for arg in call.args[1:]]
    if None in sources or sources[0] == sources[1] or position not in sources:
        return None
    unit = call.args[0]
    name = PARTS.get(unit.parts[-1].lower(), "") if isinstance(unit, tree.Name) else ""
    if name not in TICKS:
        fail(unit.at, f"{unit.at.text!r} cannot bound the time of a JOIN", hint="day, hour, minute, second, …")
    low, high = limits
    for limit in (low, high):
        if limit is not None and abs(limit) * TICKS[name] > DURATION_MAX:
            fail(part.at, f"{limit} {name}s is longer than 7 days", hint="at most 7 days", code="sql.join")
    first, second = sources
    if second == position:
        assert first is not None
        return Bound(first, TICKS[name], low, high)
    assert second is not None
    return Bound(second, TICKS[name], None if high is None else -high, None if low is None else -low)


def _source(node: tree.Node, scope: Scope) -> int | None:
    if not isinstance(node, tree.Name) or len(node.parts) != 1:
        return None
    at, path = scope.resolve(node)
    return None if path else at


def _limits(part: tree.Node) -> tuple[tree.Call | None, _Limits | None]:
    if isinstance(part, tree.Between) and not part.negated:
        low, high = _constant(part.low), _constant(part.high)
        limits = None if low is None or high is None else (math.ceil(low), math.floor(high))
        return _datediff(part.of), limits
    if not isinstance(part, tree.Binary) or part.op not in _MIRROR:
        return None, None
    op, call, number = part.op, _datediff(part.left), _constant(part.right)
    if call is None:
        op, call, number = _MIRROR[op], _datediff(part.right), _constant(part.left)
    if number is None:
        return call, None
    above, below = math.ceil(number), math.floor(number)  # the whole numbers around it; equal where it is whole
    one_sided: dict[str, _Limits] = {
        "=": (above, below),
        "<": (None, above - 1),
        "<=": (None, below),
        ">": (below + 1, None),
        ">=": (above, None),
    }
    return call, one_sided[op]


def _datediff(node: tree.Node) -> tree.Call | None:
    return node if isinstance(node, tree.Call) and node.name == "datediff" else None


def _constant(node: tree.Node) -> int | float | None:
    """The value of a number, or of a sum, difference or product of numbers."""
    if isinstance(node, tree.Literal):
        return node.value if type(node.value) in (int, float) else None
    if isinstance(node, tree.Unary) and node.op in _SIGNS:
        of = _constant(node.of)
        return None if of is None else _SIGNS[node.op] * of
    if isinstance(node, tree.Binary) and node.op in _ARITHMETIC:
        left, right = _constant(node.left), _constant(node.right)
        return None if left is None or right is None else _ARITHMETIC[node.op](left, right)
    return None
