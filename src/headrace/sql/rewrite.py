"""Rewrites: what makes a plan cheaper without changing one row, one fault or one event set aside.

Each is one file in `sql/rewrites/` with a `Rewrite` at module level. An expression rewrite sees every expression as it is
bound; a plan rewrite gets the whole plan and returns another. All can be switched off, which is how tests prove that they
change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from headrace.core.errors import UserError, nearest
from headrace.core.plugins import collect
from headrace.sql import tree
from headrace.sql.bind import Binder
from headrace.sql.evaluate import Eval
from headrace.sql.functions.user import UserFunction
from headrace.sql.scope import Scope

if TYPE_CHECKING:
    from headrace.sql.plan import Plan


class Rewritten(NamedTuple):
    """A plan, and where it differs from the one before, as EXPLAIN says it."""

    plan: Plan
    notes: list[str]


class Rewrite(NamedTuple):
    """`expression(binder, node, bound)` gives the expression to use in place of `bound`, and None to leave it alone.

    `order`: plan rewrites with a lower one go first.
    """

    name: str
    doc: str
    order: int = 0
    expression: Callable[[RewritingBinder, tree.Node, Eval], Eval | None] | None = None
    plan: Callable[[Plan], Rewritten] | None = None


@cache
def _all() -> tuple[Rewrite, ...]:
    return tuple(sorted(collect("headrace.sql.rewrites", Rewrite), key=lambda one: (one.order, one.name)))


def names() -> list[str]:
    """Every rewrite there is, in the order in which they are applied."""
    return [one.name for one in _all()]


def chosen(wanted: Collection[str] | None) -> tuple[Rewrite, ...]:
    """The rewrites of these names, all for None. Raises UserError for a name that is none."""
    if wanted is None:
        return _all()
    for name in wanted:
        if name not in names():
            raise UserError(f"there is no rewrite {name!r}", hint=nearest(name, names()), code="sql.rewrite")
    return tuple(one for one in _all() if one.name in wanted)


class Notes:
    """What expression rewrites did while a script was bound, and numbers for expressions that mean the same."""

    def __init__(self, rewrites: tuple[Rewrite, ...] = ()) -> None:
        self.expressions = tuple(one for one in rewrites if one.expression is not None)
        self.found: dict[str, list[str]] = {}
        self.numbers: dict[object, int] = {}

    def add(self, name: str, text: str) -> None:
        notes = self.found.setdefault(name, [])
        if text not in notes:
            notes.append(text)

    def number(self, key: object) -> int:
        """The same number for equal keys."""
        return self.numbers.setdefault(key, len(self.numbers))


class RewritingBinder(Binder):
    """A binder that lets the expression rewrites look at everything it binds, inner expressions first."""

    def __init__(self, scope: Scope, functions: Mapping[str, UserFunction], notes: Notes) -> None:
        super().__init__(scope, functions)
        self.notes = notes

    def bind(self, node: tree.Node) -> Eval:
        bound = super().bind(node)
        for one in self.notes.expressions:
            assert one.expression is not None
            bound = one.expression(self, node, bound) or bound
        return bound


def apply_rewrites(plan: Plan, rewrites: tuple[Rewrite, ...], notes: Notes) -> Plan:
    """The plan after all plan rewrites; `plan.rewrites` says what each of them did."""
    applied: dict[str, list[str]] = {}
    for one in rewrites:
        if one.plan is not None:
            plan, found = one.plan(plan)
        else:
            found = notes.found.get(one.name, [])
        if found:
            applied[one.name] = found
    plan.rewrites = applied
    return plan
