"""Filter push-down: WHERE is tested as early as its meaning allows.

Below joins with reference data, below joins of streams (so that less is held), and inside a step that only one SELECT reads.
Parts of a WHERE are taken from the left up to the first that could fault, and only where what they overtake cannot fault
either: so no event is set aside, or spared, that was not before. Nothing crosses a window or an analytic function.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from headrace.sql import tree
from headrace.sql.evaluate import Eval
from headrace.sql.join_bounds import time_bound
from headrace.sql.plan import JoinNode, Plan, PlanNode, SelectNode
from headrace.sql.rewrite import Rewrite, RewritingBinder, Rewritten
from headrace.sql.show import show
from headrace.sql.traits import conjuncts, expressions, never_fails, reads, together

Traced = Callable[[tree.Name], tree.Node | None]


def _push(plan: Plan) -> Rewritten:
    notes: list[str] = []
    nodes = list(plan.nodes)
    for at, node in enumerate(nodes):
        if not isinstance(node, SelectNode) or node.tree.where is None or node.select.analytics:
            continue
        if node.select.joins:
            _before_reference_joins(plan, at, nodes, notes)
        elif isinstance(nodes[node.sources[0]], JoinNode):
            _below_stream_join(plan, at, nodes, notes)
        elif isinstance(nodes[node.sources[0]], SelectNode) and node.reads_plainly():
            _into_step(plan, at, nodes, notes)
    return Rewritten(plan.with_nodes(nodes), notes)


def _certain(where: tree.Node) -> list[tree.Node]:
    """The leading parts that cannot fault."""
    parts: list[tree.Node] = []
    for part in conjuncts(where):
        if not never_fails(part):
            break
        parts.append(part)
    return parts


def _without(plan: Plan, node: SelectNode, moved: list[tree.Node]) -> SelectNode:
    """The SELECT without the parts of WHERE that are tested elsewhere."""
    assert node.tree.where is not None
    rest = [part for part in conjuncts(node.tree.where) if not any(part is one for one in moved)]
    where = _bound(plan, node, rest) if rest else None
    return dataclasses.replace(node, select=dataclasses.replace(node.select, where=where), moved=[*node.moved, *moved])


def _bound(plan: Plan, node: SelectNode, parts: list[tree.Node]) -> Eval:
    return RewritingBinder(node.scope, plan.functions, plan.notes).bind(together(parts))


def _shown(parts: list[tree.Node]) -> str:
    return " AND ".join(map(show, parts))


def _before_reference_joins(plan: Plan, at: int, nodes: list[PlanNode], notes: list[str]) -> None:
    node = nodes[at]
    assert isinstance(node, SelectNode)
    assert node.tree.where is not None
    if any(isinstance(join, tree.Apply) for join in node.tree.joins):
        return
    if not all(_on_never_fails(node, join) for join in node.tree.joins if isinstance(join, tree.Join)):
        return
    moved = [part for part in _certain(node.tree.where) if reads(part, node.scope) <= set(node.origins)]
    if not moved:
        return
    node = _without(plan, node, moved)
    nodes[at] = dataclasses.replace(node, select=dataclasses.replace(node.select, early=_bound(plan, node, moved)))
    notes.append(f"{_shown(moved)} before the join with reference data")


def _on_never_fails(node: SelectNode, join: tree.Join) -> bool:
    position = node.scope.named(join.source.alias)
    if position is None:
        return False
    return all(
        never_fails(part) or (position in node.origins and time_bound(part, node.scope, position) is not None)
        for part in conjuncts(join.on)
    )


def _below_stream_join(plan: Plan, at: int, nodes: list[PlanNode], notes: list[str]) -> None:
    node = nodes[at]
    assert isinstance(node, SelectNode)
    assert node.tree.where is not None
    join = nodes[node.sources[0]]
    assert isinstance(join, JoinNode)
    if len(node.origins) != 2 or join.sources != list(node.origins.values()) or len(node.tree.joins) != 1:
        return
    (on,) = node.tree.joins
    if not isinstance(on, tree.Join) or not _on_never_fails(node, on):
        return
    parts = [part for part in _certain(node.tree.where) if not _asks_for_time(part)]
    ports: dict[int, list[tree.Node]] = {}
    for port, position in enumerate(node.origins):
        if port == 0 or not on.left:  # rows that LEFT JOIN does not find must not come from a filter
            ports[port] = [part for part in parts if reads(part, node.scope) == {position}]
    filters = {port: _bound(plan, node, found) for port, found in ports.items() if found}
    if not filters:
        return
    moved = [part for found in ports.values() for part in found]
    nodes[at] = _without(plan, node, moved)
    texts = {port: _shown(found) for port, found in ports.items() if found}
    nodes[node.sources[0]] = dataclasses.replace(join, filters=filters, filter_texts=texts)
    notes.append(f"{_shown(moved)} below {join.label}")


def _asks_for_time(part: tree.Node) -> bool:
    """A joined row's time is not that of its sides."""
    return any(isinstance(one, tree.Call) and one.name == "system.timestamp" for one in expressions(part))


def _into_step(plan: Plan, at: int, nodes: list[PlanNode], notes: list[str]) -> None:
    node = nodes[at]
    assert isinstance(node, SelectNode)
    assert node.tree.where is not None
    below = node.sources[0]
    step = nodes[below]
    assert isinstance(step, SelectNode)
    if plan.readers(below) != [at] or any(found == below for _, found in plan.statements):
        return
    if step.select.grouped or step.select.analytics or step.select.having is not None:
        return
    if not all(isinstance(item.of, tree.Star) or never_fails(item.of) for item in step.tree.items):
        return
    moved: list[tree.Node] = []
    inside: list[tree.Node] = []
    for part in _certain(node.tree.where):
        found = _in_terms_of(part, node, step)
        if found is not None and never_fails(found):
            moved.append(part)
            inside.append(found)
    if not moved:
        return
    nodes[at] = _without(plan, node, moved)
    pushed = [*step.select.pushed, _bound(plan, step, inside)]
    nodes[below] = dataclasses.replace(step, select=dataclasses.replace(step.select, pushed=pushed))
    notes.append(f"{_shown(moved)} into {step.label}")


def _in_terms_of(part: tree.Node, node: SelectNode, step: SelectNode) -> tree.Node | None:
    """The same condition over the step's sources; None where one of its names cannot be traced."""

    def traced(name: tree.Name) -> tree.Node | None:
        at, path = node.scope.resolve(name)
        if at != 0 or not path:
            return None
        items = step.tree.items
        if len(items) == 1 and isinstance(items[0].of, tree.Star) and not items[0].of.parts:
            plain = len(step.scope.sources) == 1 and step.scope.named(path[0]) is None
            return tree.Name(name.at, path) if plain else None
        if any(isinstance(item.of, tree.Star) for item in items):
            return None
        same = [item for item in items if item.alias.lower() == path[0].lower()]
        if len(same) != 1 or same[0].alias != path[0]:
            return None
        found = same[0].of
        for field in path[1:]:
            found = tree.Field(name.at, found, field)
        return found

    return _replaced(part, traced)


def _replaced(node: tree.Node, traced: Traced) -> tree.Node | None:
    if isinstance(node, tree.Name):
        return traced(node)
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(node):
        if field.name != "at":
            value = _replaced_value(getattr(node, field.name), traced)
            if value is _LOST:
                return None
            changes[field.name] = value
    return dataclasses.replace(node, **changes)


_LOST = object()


def _replaced_value(value: object, traced: Traced) -> object:
    if isinstance(value, tree.Node):
        found = _replaced(value, traced)
        return _LOST if found is None else found
    if type(value) is tuple:
        parts = [_replaced_value(part, traced) for part in value]
        return _LOST if _LOST in parts else tuple(parts)
    return value


PUSH_FILTERS = Rewrite("push_filters", "WHERE is tested as early as its meaning allows.", 10, plan=_push)
