"""What ON says about time: the DATEDIFF conditions between a joined stream and the ones before it."""

from __future__ import annotations

from headrace.sql import tree
from headrace.sql.operators.stream_join import Bound
from headrace.sql.scope import Scope, fail
from headrace.sql.units import DURATION_MAX, PARTS, TICKS

_MIRROR = {"=": "=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
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
        low, high = _whole(part.low), _whole(part.high)
        return _datediff(part.of), None if low is None or high is None else (low, high)
    if not isinstance(part, tree.Binary) or part.op not in _MIRROR:
        return None, None
    op, call, number = part.op, _datediff(part.left), _whole(part.right)
    if call is None:
        op, call, number = _MIRROR[op], _datediff(part.right), _whole(part.left)
    if number is None:
        return call, None
    limits: dict[str, _Limits] = {
        "=": (number, number),
        "<": (None, number - 1),
        "<=": (None, number),
        ">": (number + 1, None),
        ">=": (number, None),
    }
    return call, limits[op]


def _datediff(node: tree.Node) -> tree.Call | None:
    return node if isinstance(node, tree.Call) and node.name == "datediff" else None


def _whole(node: tree.Node) -> int | None:
    return node.value if isinstance(node, tree.Literal) and type(node.value) is int else None
