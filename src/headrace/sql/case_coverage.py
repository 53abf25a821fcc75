"""Which SELECTs of a query gave rows, and which of its filters let any through.

SELECTs are counted by the run itself. Filters are counted by a wrapper around the bound condition, so that the engine has
no counter on its hot path; counts survive a kill because the wrapper belongs to the case, not to the run.
"""

from __future__ import annotations

from headrace.sql import tree
from headrace.sql.case_report import Covered
from headrace.sql.evaluate import Eval, Frame, truth
from headrace.sql.operators.select import SelectPlan
from headrace.sql.plan import Plan, PlanNode, SelectNode
from headrace.sql.run import Run
from headrace.sql.show import show
from headrace.sql.values import Column

FILTERS = ("where", "having")


class Coverage:
    """Counts over all runs of one case. `watch` every plan before it runs, `covered` the last run in the end."""

    def __init__(self) -> None:
        self.filters: dict[tuple[int, str], list[int]] = {}  # (node, clause) -> rows seen, rows kept

    def watch(self, plan: Plan) -> None:
        for at, node in enumerate(plan.nodes):
            if isinstance(node, SelectNode):
                self._watch(at, node.select)

    def _watch(self, at: int, select: SelectPlan) -> None:
        for clause in FILTERS:
            condition = getattr(select, clause)
            if condition is not None:
                counts = self.filters.setdefault((at, clause), [0, 0])
                setattr(select, clause, _counted(condition, counts))

    def covered(self, plan: Plan, run: Run) -> list[Covered]:
        """In the order of the plan: steps first, then statements."""
        places = _places(plan)
        outputs = {at: name for name, at in plan.statements}
        found: list[Covered] = []
        for at, node in enumerate(plan.nodes):
            if not isinstance(node, SelectNode):
                continue
            select = places.get(at)
            line = select.at.line if select else 0
            found.append(Covered(line, _what(node, outputs.get(at)), "select", run.rows_in[at], run.rows_out[at]))
            for clause in FILTERS:
                if (at, clause) in self.filters:
                    seen, kept = self.filters[at, clause]
                    condition = getattr(select, clause, None)
                    text = f"{clause.upper()} {_short(show(condition))}" if condition is not None else clause.upper()
                    found.append(Covered(condition.at.line if condition else line, text, "filter", seen, kept))
        return found


def _counted(condition: Eval, counts: list[int]) -> Eval:
    def evaluate(frame: Frame) -> Column:
        column = condition(frame)
        counts[0] += frame.rows
        counts[1] += int(truth(column).sum())
        return column

    return evaluate


def _what(node: PlanNode, output: str | None) -> str:
    if node.label.startswith("step "):
        return node.label
    return f"SELECT INTO {output}" if output else "SELECT"


def _short(text: str, width_max: int = 60) -> str:
    return text if len(text) <= width_max else text[: width_max - 1] + "…"


def _places(plan: Plan) -> dict[int, tree.Select]:
    """The SELECT that a node was made from. The compiler makes a node after those it reads from; where that order does
    not fit the script any more, nothing is said about places rather than something wrong."""
    script = plan.script
    selects = [one for step in script.steps for one in _selects(step.query)]
    selects += [one for query in script.queries for one in _selects(query)]
    nodes = [(at, node) for at, node in enumerate(plan.nodes) if isinstance(node, SelectNode)]
    if len(nodes) != len(selects):
        return {}
    if any(len(node.select.columns) != len(one.items) for (_, node), one in zip(nodes, selects, strict=True)):
        return {}
    return {at: one for (at, _), one in zip(nodes, selects, strict=True)}


def _selects(query: tree.Query) -> list[tree.Select]:
    found: list[tree.Select] = []
    for select in query.selects:
        sources = [select.source, *(join.source for join in select.joins if isinstance(join, tree.Join))]
        found += [inner for source in sources if source.query is not None for inner in _selects(source.query)]
        found.append(select)
    return found
