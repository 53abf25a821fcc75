"""Column pruning: an input decodes the fields that somebody reads, and no others.

From the outputs back to the inputs: what is asked of a node's `*`, the node asks of its source. Without this rewrite whole
payloads are decoded.
"""

from __future__ import annotations

import dataclasses

from headrace.sql.plan import InputNode, Plan, PlanNode, SelectNode, UnionNode
from headrace.sql.rewrite import Rewrite, Rewritten


def _prune(plan: Plan) -> Rewritten:
    nodes = [dataclasses.replace(node, wants=set(node.wants), whole=False) for node in plan.nodes]
    for _, at in plan.statements:
        nodes[at].whole = True
    for node in reversed(nodes):
        for at, asked in node.asks:
            nodes[at].wants |= asked.wants
            nodes[at].whole |= asked.whole
        if isinstance(node, UnionNode):
            for at in node.sources:
                nodes[at].wants |= node.wants
                nodes[at].whole |= node.whole
        elif isinstance(node, SelectNode):
            _pass_on(node, nodes)
    notes = [f"{node.label}: {decoded(node)}" for node in nodes if isinstance(node, InputNode) and not node.whole]
    return Rewritten(plan.with_nodes(nodes), notes)


def _pass_on(node: SelectNode, nodes: list[PlanNode]) -> None:
    explicit = {column.name for column in node.select.columns if column.of is not None}
    for position, at in node.origins.items():
        if any(
            column.of is None and column.source == position and column.spread is None for column in node.select.columns
        ):
            nodes[at].wants |= node.wants - explicit
            nodes[at].whole |= node.whole


def decoded(node: PlanNode) -> str:
    """The fields that are read of an input."""
    return "all fields" if node.whole else ", ".join(sorted(node.wants)) or "no field"


PRUNE_COLUMNS = Rewrite("prune_columns", "An input decodes the fields that somebody reads.", 90, plan=_prune)
