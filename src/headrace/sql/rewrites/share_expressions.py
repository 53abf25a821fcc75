"""Shared work: what several SELECTs compute over the same rows is computed once a batch.

An expression is shared where two readers of a node evaluate it on all rows of that node: in filters, in arguments of analytic
functions, and in keys, arguments and columns of SELECTs without a filter. SELECTs with the same filter share the filtered rows
and what they compute over those. User functions are never shared: they may depend on more than their arguments.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator

from headrace.sql import tree
from headrace.sql.evaluate import Eval, Kept
from headrace.sql.plan import Plan, PlanNode, SelectNode
from headrace.sql.rewrite import Rewrite, RewritingBinder, Rewritten
from headrace.sql.show import show
from headrace.sql.traits import computed, expressions, meaning, stays_the_same

_LEAVES = (tree.Literal, tree.Name, tree.Star)


def shareable(node: tree.Node) -> bool:
    return (
        not isinstance(node, _LEAVES)
        and stays_the_same(node)
        and not any(computed(part) or isinstance(part, tree.Star) for part in expressions(node))
    )


def _keep(binder: RewritingBinder, node: tree.Node, bound: Eval) -> Eval | None:
    if binder.place == "group" or not shareable(node):
        return None
    return Kept(binder.notes.number(meaning(binder.scope, node)), bound)


def _share(plan: Plan) -> Rewritten:
    notes: list[str] = []
    nodes = list(plan.nodes)
    for at, node in enumerate(plan.nodes):
        counts: Counter[int] = Counter()
        texts: dict[int, str] = {}
        for reader in _readers(plan, at):
            mine = dict(_evaluated(plan, reader))
            counts.update(mine.keys())
            texts |= mine
        wanted = {number for number, readers in counts.items() if readers > 1}
        _number_groups(plan, at, nodes)
        if wanted:
            nodes[at] = dataclasses.replace(nodes[at], shared=frozenset(wanted))
            shown = sorted(texts[number] for number in wanted)
            notes.append(f"{node.label}: {', '.join(shown[:8])}" + (f" and {len(shown) - 8} more" * (len(shown) > 8)))
    return Rewritten(plan.with_nodes(nodes), notes)


def _readers(plan: Plan, at: int) -> list[SelectNode]:
    return [
        node for node in plan.nodes if isinstance(node, SelectNode) and node.sources == [at] and node.reads_plainly()
    ]


def _number_groups(plan: Plan, at: int, nodes: list[PlanNode]) -> None:
    """SELECTs with the same keys get the same number, so that rows they share are grouped once."""
    for position, node in enumerate(nodes):
        if not isinstance(node, SelectNode) or node.sources != [at] or not node.reads_plainly() or not node.tree.group:
            continue
        if node.select.grouped and all(map(stays_the_same, node.tree.group)) and not node.select.analytics:
            keys = tuple(meaning(node.scope, key) for key in node.tree.group)
            select = dataclasses.replace(node.select, group_number=plan.notes.number(("group", keys)))
            nodes[position] = dataclasses.replace(node, select=select)


def _evaluated(plan: Plan, node: SelectNode) -> Iterator[tuple[int, str]]:
    """Numbers and texts of what a SELECT evaluates on all rows of its source, or on all that its filter lets through."""
    select = node.tree
    roots: list[tree.Node] = [call.call for call in node.select.analytics]
    roots += [select.where] if select.where is not None else []
    roots += list(select.group)
    roots += [call.call for call in node.select.aggregates]
    if not node.select.grouped:
        roots += [item.of for item in select.items]
    for root in roots:
        for part in expressions(root):
            if shareable(part):
                yield plan.notes.number(meaning(node.scope, part)), show(part)


SHARE_EXPRESSIONS = Rewrite(
    "share_expressions", "What several SELECTs compute over the same rows is computed once.", 40, _keep, _share
)
