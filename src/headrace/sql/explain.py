"""How a plan explains itself: stages from the output inwards, the state each keeps, what runs per row, what was rewritten.

`per row` marks calls that always run once per value in Python; `per row unless` those whose fast form is for some types only,
so that a field of mixed types sends its other values through the slow one.
"""

from __future__ import annotations

from headrace.sql import tree
from headrace.sql.bind import scalars
from headrace.sql.bind_calls import aggregates
from headrace.sql.functions.conversion import cast_to
from headrace.sql.plan import FromNode, InputNode, JoinNode, MatchNode, Plan, PlanNode, SelectNode, UnionNode
from headrace.sql.show import length, show
from headrace.sql.spec import Scalar
from headrace.sql.traits import conjuncts, expressions, together
from headrace.sql.values import KIND_NAMES


def explain_plan(plan: Plan) -> str:
    """The plan as an indented tree, one per statement. A step that was shown before is only named."""
    lines: list[str] = []
    shown: set[int] = set()
    for name, at in plan.statements:
        lines.append(f"output {name}")
        _explain(plan, at, 1, shown, lines)
    if plan.rewrites:
        lines.append("rewrites")
        lines += [f"  {name}: {note}" for name, notes in plan.rewrites.items() for note in notes]
    return "\n".join(lines) + "\n"


def _explain(plan: Plan, at: int, depth: int, shown: set[int], lines: list[str]) -> None:
    node = plan.nodes[at]
    pad = "  " * depth
    if at in shown:
        lines.append(f"{pad}{node.label} (shared, see above)")
        return
    shown.add(at)
    for line in node_lines(plan, node):
        lines.append(pad + line)
        pad += "  "
        depth += 1
    for source in node.sources:
        _explain(plan, source, depth, shown, lines)


def node_lines(plan: Plan, node: PlanNode) -> list[str]:
    """A node's stages, the last one first."""
    if isinstance(node, InputNode):
        fields = "all fields" if node.whole else ", ".join(sorted(node.wants)) or "no field"
        kept = "; keeps events until the watermark reaches them" if node.timestamp is not None else ""
        own = ", a timeline per key" if node.over else ""
        return [f"input {node.input} by {node.timestamp_text or 'arrival time'}: decode {fields}{own}{kept}"]
    if isinstance(node, SelectNode):
        return _select_lines(plan, node)
    state = ""
    if isinstance(node, JoinNode):
        state = "; keeps rows of both sides while a partner may come"
        sides = ("left", "right")
        state += "".join(f"; filters its {sides[port]} side first: {text}" for port, text in node.filter_texts.items())
    elif isinstance(node, MatchNode):
        state = "; keeps each key's events for as long as a match may take"
    elif isinstance(node, UnionNode):
        state = "; keeps rows until the slowest branch has passed them"
    elif isinstance(node, FromNode):
        state = "; keeps nothing"
    return [node.label + state]


def _select_lines(plan: Plan, node: SelectNode) -> list[str]:
    select, bound = node.tree, node.select
    lines = ["project " + ", ".join(map(_described, select.items)) + _marks(plan, [item.of for item in select.items])]
    if select.having is not None:
        lines.append("having " + show(select.having) + _marks(plan, [select.having]))
    if bound.windows:
        windows = ", ".join(map(show, bound.windows))
        keys = ", ".join(map(show, select.group))
        text = f"group by {windows}" + (f", keys {keys}" if keys else "")
        text += "".join(f"; {show(call.call)}" for call in bound.aggregates)
        args = [part for call in bound.aggregates for part in call.call.args]
        lines.append(text + f"; keeps {_kept_by(node)}" + _marks(plan, [*select.group, *args]))
    lines += [f"filter {show(part)}, for the SELECT above" for part in _pushed_here(plan, node)]
    lines += _filter_lines(plan, node)
    if bound.analytics:
        calls = [call.call for call in bound.analytics]
        spans = ", ".join(dict.fromkeys(length(call.limit) for call in bound.analytics))
        text = "analytic " + ", ".join(map(show, calls)) + f"; keeps what each key needs of the last {spans}"
        lines.append(text + _marks(plan, list(calls)))
    lines += reversed(node.joins)
    if bound.early is not None:
        lines.append(f"filter {' AND '.join(map(show, node.moved))}, before the joins")
    return lines


def _filter_lines(plan: Plan, node: SelectNode) -> list[str]:
    """What is left of WHERE here."""
    parts = conjuncts(node.tree.where) if node.tree.where is not None else []
    rest = [part for part in parts if not any(part is one for one in node.moved)]
    if not rest:
        return []
    text = "filter " + show(together(rest))
    if node.bank_at is not None:
        others = len(plan.nodes[node.bank_at].bank_members) - 1
        text += (
            f"; tested with the filter{'s' if others > 1 else ''} of {others} other SELECT{'s' if others > 1 else ''}"
        )
    return [text + _marks(plan, rest)]


def _pushed_here(plan: Plan, node: SelectNode) -> list[tree.Node]:
    if not node.select.pushed:
        return []
    readers = [
        one for one in plan.nodes if isinstance(one, SelectNode) and one.sources and plan.nodes[one.sources[0]] is node
    ]
    return [part for one in readers for part in one.moved]


def _kept_by(node: SelectNode) -> str:
    kinds = {window.kind for window in node.select.windows}
    if kinds & {"sliding", "session"}:
        return "each key's rows of one window"
    return "one set of sums per key and open pane"


def _described(item: tree.Item) -> str:
    text = show(item.of)
    return text if isinstance(item.of, tree.Star) or text == item.alias else f"{text} as {item.alias}"


def _marks(plan: Plan, nodes: list[tree.Node]) -> str:
    """What of these expressions runs once per row: always, or for values of some types."""
    always: dict[str, None] = {}
    mixed: dict[str, None] = {}
    for node in nodes:
        for part in expressions(node):
            _mark(plan, part, always, mixed)
    text = f"   [per row: {', '.join(sorted(always))}]" if always else ""
    return text + (f"   [per row unless {'; unless '.join(sorted(mixed))}]" if mixed else "")


def _mark(plan: Plan, node: tree.Node, always: dict[str, None], mixed: dict[str, None]) -> None:
    name = ""
    match node:
        case tree.Call(name=called):
            name = called
        case tree.Binary(op=op):
            name = op
        case tree.Unary(op="-", of=of) if not isinstance(of, tree.Literal):
            name = "negate"
        case tree.Cast(type=type_):
            _mark_spec(cast_to(type_), "CAST", always, mixed)
        case tree.Like(pattern=pattern) if not isinstance(pattern, tree.Literal):
            always["LIKE"] = None
    if name.startswith(("udf.", "uda.")):
        function = plan.functions.get(name)
        if function is not None and function.kind != "arrow":
            always[name] = None
        return
    spec = scalars().get(name)
    if spec is not None and not (isinstance(node, tree.Call) and node.over is not None):
        _mark_spec(spec, _shown(name), always, mixed)
    aggregate = aggregates().get(name)
    if aggregate is not None and aggregate.per_row:
        always[_shown(name)] = None


def _mark_spec(spec: Scalar, name: str, always: dict[str, None], mixed: dict[str, None]) -> None:
    if not spec.kernels or spec.nulls:
        always[name] = None
    elif len(spec.kernels) < len(KIND_NAMES) ** len(next(iter(spec.kernels))):
        kinds = sorted({kind for signature in spec.kernels for kind in signature})
        mixed[f"{', '.join(KIND_NAMES[kind] for kind in kinds)}: {name}"] = None


def _shown(name: str) -> str:
    return name.upper() if name[:1].isalpha() else name
