"""Shared projections: SELECTs of one filter bank that write rows of equal names to one output make them in one go.

Only expressions that never fail are shared, as they are computed on rows that another filter let through as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from headrace.sql import tree, values
from headrace.sql.evaluate import Eval, Frame
from headrace.sql.operators.shared_projection import SharedColumn, SharedProjection
from headrace.sql.plan import Plan, SelectNode
from headrace.sql.rewrite import Rewrite, Rewritten
from headrace.sql.traits import computed, expressions, meaning, never_fails, stays_the_same
from headrace.sql.values import Constant

_LEAST = 2  # SELECTs that make it worth its while
Member = tuple[int, SelectNode, int]
"""Node, what it is, and its statement's place in the script."""


def _share(plan: Plan) -> Rewritten:
    notes: list[str] = []
    nodes = list(plan.nodes)
    for at, node in enumerate(plan.nodes):
        found: list[SharedProjection] = []
        for (output, names), members in _groups(plan, node.bank_members).items():
            if len(members) >= _LEAST:
                found.append(_projection(output, names, members))
                notes.append(f"{node.label}: {len(members)} SELECTs into {output}")
        if found:
            nodes[at] = dataclasses.replace(node, projections=tuple(found))
    return Rewritten(plan.with_nodes(nodes), notes)


def _groups(plan: Plan, members: Sequence[int]) -> dict[tuple[str, tuple[str, ...]], list[Member]]:
    """Members by output and column names, each group in the order of the script."""
    written = {at: (number, name) for number, (name, at) in enumerate(plan.statements)}
    groups: dict[tuple[str, tuple[str, ...]], list[Member]] = {}
    for at in members:
        node = plan.nodes[at]
        if at in written and isinstance(node, SelectNode) and not plan.readers(at) and _fits(node):
            number, output = written[at]
            groups.setdefault((output, tuple(name for name, _, _ in _items(node))), []).append((at, node, number))
    return {key: sorted(found, key=lambda member: member[2]) for key, found in groups.items()}


def _fits(node: SelectNode) -> bool:
    select = node.select
    if select.grouped or select.where is not None or select.having is not None or select.pushed or select.analytics:
        return False
    return all(
        not isinstance(item.of, tree.Star)
        and never_fails(item.of)
        and stays_the_same(item.of)
        and not any(map(computed, expressions(item.of)))
        for item in node.tree.items
    )


def _items(node: SelectNode) -> Iterator[tuple[str, tree.Node, Eval]]:
    """Name, text and meaning of each column, the left one of equal names."""
    seen: set[str] = set()
    for item, column in zip(node.tree.items, node.select.columns, strict=True):
        if column.name not in seen:
            seen.add(column.name)
            assert column.of is not None
            yield column.name, item.of, column.of


def _projection(output: str, names: Sequence[str], members: list[Member]) -> SharedProjection:
    columns: list[SharedColumn] = []
    for position, name in enumerate(names):
        exprs: list[Eval] = []
        known: dict[object, int] = {}
        which: list[int] = []
        constants: list[object] = []
        for _, node, _ in members:
            _, text, of = list(_items(node))[position]
            constant = _constant(text, of)
            constants.append(None if constant is None else constant.value)
            if constant is not None:
                which.append(-1)
                continue
            number = known.setdefault(meaning(node.scope, text), len(exprs))
            if number == len(exprs):
                exprs.append(of)
            which.append(number)
        given = values.from_values(constants) if -1 in which else values.Column(0)
        columns.append(SharedColumn(name, exprs, np.array(which, np.int64), given))
    return SharedProjection(
        output,
        np.array([node.line_of_bank for _, node, _ in members], np.int64),
        tuple(at for at, _, _ in members),
        np.array([number for _, _, number in members], np.int64),
        columns,
    )


def _constant(text: tree.Node, of: Eval) -> Constant | None:
    if any(isinstance(part, tree.Name | tree.Call) for part in expressions(text)):
        return None
    found = of(Frame(np.zeros(1, np.int64), []))
    return found if isinstance(found, Constant) else None


SHARE_PROJECTIONS = Rewrite(
    "share_projections", "SELECTs with shared filters into one output make their rows together.", 50, plan=_share
)
