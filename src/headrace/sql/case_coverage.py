"""Which SELECTs of a query gave rows, which of its stream JOINs found any, and which of its filters let any through.

The run counts both for itself, and its counts survive a kill as they are part of the state.
"""

from __future__ import annotations

from headrace.sql import tree
from headrace.sql.case_report import Covered
from headrace.sql.plan import JoinNode, Plan, SelectNode
from headrace.sql.run import Run
from headrace.sql.show import show
from headrace.sql.stats import OperatorStats


def covered(plan: Plan, run: Run) -> list[Covered]:
    """In the order of the plan: steps first, then statements."""
    found: list[Covered] = []
    joins: dict[str, OperatorStats] = {}  # the latest join by its label: its SELECT follows
    for node, stats in zip(plan.nodes, run.stats()["operators"], strict=True):
        if isinstance(node, JoinNode):
            joins[node.label] = stats
        if not isinstance(node, SelectNode):
            continue
        for join in node.tree.joins:
            how = "left " if isinstance(join, tree.Join) and join.left else ""
            label = f"{how}join with {join.source.alias}" if isinstance(join, tree.Join) else ""
            if label in joins:
                counts = joins.pop(label)
                found.append(Covered(join.at.line, label, "join", counts["rows_in"], counts["rows_out"]))
        what = node.label if node.label.startswith("step ") else "SELECT"
        if stats["output"] is not None and what == "SELECT":
            what = f"SELECT INTO {stats['output']}"
        found.append(Covered(node.at.line, what, "select", stats["rows_in"], stats["rows_out"]))
        where, having = node.tree.where, node.tree.having
        if where is not None:
            text = f"WHERE {_short(show(where))}"
            found.append(Covered(where.at.line, text, "filter", stats["filter_in"], stats["filter_out"]))
        if having is not None:
            text = f"HAVING {_short(show(having))}"
            found.append(Covered(having.at.line, text, "filter", stats["having_in"], stats["having_out"]))
    return found


def _short(text: str, width_max: int = 60) -> str:
    return text if len(text) <= width_max else text[: width_max - 1] + "…"
