"""Shared filters: the WHERE clauses of several SELECTs over one node become one filter bank.

What goes into the bank is a leading run of comparisons with constants, joined by AND, OR and NOT. They cannot fault, so the
rest of the WHERE sees the very rows it saw before. SELECTs with equal filters stay out: they share their filtered rows.
"""

from __future__ import annotations

import dataclasses
from collections import Counter

from headrace.sql import tree
from headrace.sql.evaluate import Eval
from headrace.sql.operators.filter_bank import Comparison, FilterBank, Rule
from headrace.sql.plan import Plan, SelectNode
from headrace.sql.rewrite import Rewrite, RewritingBinder, Rewritten
from headrace.sql.traits import computed, conjuncts, expressions, meaning, never_fails, together

_FLIPPED = {"=": "=", "<>": "<>", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_LEAST = 2  # filters that make a bank worth its while


def _share(plan: Plan) -> Rewritten:
    notes: list[str] = []
    nodes = list(plan.nodes)
    for at in range(len(nodes)):
        found = _members(plan, at)
        if len(found) < _LEAST:
            continue
        builder = _Builder()
        members: list[int] = []
        for member, node in found:
            parts = conjuncts(node.tree.where) if node.tree.where is not None else []
            rules, count = builder.prefix(node, parts, plan)
            rest = parts[count:]
            where: Eval | None = None
            if rest:
                where = RewritingBinder(node.scope, plan.functions, plan.notes).bind(together(rest))
            builder.rules.append(("and", rules) if len(rules) > 1 else rules[0])
            nodes[member] = dataclasses.replace(
                node, select=dataclasses.replace(node.select, where=where), line_of_bank=len(members), bank_at=at
            )
            members.append(member)
        bank = FilterBank(builder.operands, builder.comparisons, builder.rules)
        nodes[at] = dataclasses.replace(nodes[at], bank=bank, bank_members=tuple(members))
        notes.append(
            f"{nodes[at].label}: {len(members)} filters, {len(builder.comparisons)} comparisons of "
            f"{len(builder.operands)} expressions"
        )
    return Rewritten(plan.with_nodes(nodes), notes)


def _members(plan: Plan, at: int) -> list[tuple[int, SelectNode]]:
    found = [
        (member, node)
        for member, node in enumerate(plan.nodes)
        if isinstance(node, SelectNode)
        and node.sources == [at]
        and node.reads_plainly()
        and not node.select.analytics
        and not node.moved
        and node.tree.where is not None
    ]
    texts = {member: meaning(node.scope, node.tree.where) for member, node in found if node.tree.where is not None}
    times = Counter(texts.values())
    return [
        (member, node)
        for member, node in found
        if times[texts[member]] == 1 and _Builder().prefix(node, conjuncts(node.tree.where), plan)[1]  # type: ignore[arg-type]
    ]


class _Builder:
    """Gathers operands and comparisons, each once."""

    def __init__(self) -> None:
        self.operands: list[Eval] = []
        self.comparisons: list[Comparison] = []
        self.rules: list[Rule] = []
        self._operand_at: dict[object, int] = {}
        self._comparison_at: dict[object, int] = {}

    def prefix(self, node: SelectNode, parts: list[tree.Node], plan: Plan) -> tuple[list[Rule], int]:
        """The rules of the leading parts that a bank can hold, and how many parts they are."""
        rules: list[Rule] = []
        for part in parts:
            if not _fits(part):
                break
            rules.append(self._rule(node, part, plan))
        return rules, len(rules)

    def _rule(self, node: SelectNode, part: tree.Node, plan: Plan) -> Rule:
        match part:
            case tree.Binary(op="and" | "or" as op, left=left, right=right):
                return op, [self._rule(node, left, plan), self._rule(node, right, plan)]
            case tree.Unary(op="not", of=of):
                return "not", self._rule(node, of, plan)
            case tree.Between(of=of, low=low, high=high):
                return "and", [self._one(node, of, ">=", low, plan), self._one(node, of, "<=", high, plan)]
            case tree.In(of=of, items=items):
                return "or", [self._one(node, of, "=", item, plan) for item in items]
            case tree.IsNull(of=of, negated=negated):
                return self._one(node, of, "not null" if negated else "null", None, plan)
            case tree.Binary(op=op, left=left, right=right):
                if _constant(right) is not None:
                    return self._one(node, left, op, right, plan)
                return self._one(node, right, _FLIPPED[op], left, plan)
        raise AssertionError("checked before")

    def _one(self, node: SelectNode, of: tree.Node, op: str, value: tree.Node | None, plan: Plan) -> Rule:
        key = meaning(node.scope, of)
        operand = self._operand_at.get(key)
        if operand is None:
            operand = self._operand_at[key] = len(self.operands)
            self.operands.append(RewritingBinder(node.scope, plan.functions, plan.notes).bind(of))
        constant = None if value is None else _constant(value)
        found = (operand, op, type(constant), constant)
        at = self._comparison_at.get(found)
        if at is None:
            at = self._comparison_at[found] = len(self.comparisons)
            self.comparisons.append(Comparison(operand, op, constant))
        return "is", at


def _fits(part: tree.Node) -> bool:
    match part:
        case tree.Binary(op="and" | "or", left=left, right=right):
            return _fits(left) and _fits(right)
        case tree.Unary(op="not", of=of):
            return _fits(of)
        case tree.Between(negated=False, of=of, low=low, high=high):
            return _operand(of) and _constant(low) is not None and _constant(high) is not None
        case tree.In(negated=False, of=of, items=items):
            return _operand(of) and all(_constant(item) is not None for item in items)
        case tree.IsNull(of=of):
            return _operand(of)
        case tree.Binary(op=op, left=left, right=right) if op in _FLIPPED:
            return (_operand(left) and _constant(right) is not None) or (
                _operand(right) and _constant(left) is not None
            )
    return False


def _operand(node: tree.Node) -> bool:
    return _constant(node) is None and never_fails(node) and not any(map(computed, expressions(node)))


def _constant(node: tree.Node) -> int | float | str | None:
    """The value of a constant that is no null; None for anything else."""
    if isinstance(node, tree.Unary) and node.op == "-" and isinstance(node.of, tree.Literal):
        return -node.of.value if isinstance(node.of.value, int | float) else None
    value = node.value if isinstance(node, tree.Literal) else None
    return value if isinstance(value, int | float | str) and not isinstance(value, bool) else None


SHARE_FILTERS = Rewrite(
    "share_filters", "The filters of several SELECTs over the same rows are computed together.", 30, plan=_share
)
