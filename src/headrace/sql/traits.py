"""What can be said about an expression from its text alone: what it reads, whether it may fail, when two are the same."""

from __future__ import annotations

from headrace.sql import tree
from headrace.sql.bind import scalars
from headrace.sql.bind_calls import ANALYTIC, aggregates
from headrace.sql.scope import Scope

_COMPARISONS = ("and", "or", "=", "<>", "<", "<=", ">", ">=")
_SAFE_CALLS = ("coalesce", "system.timestamp")
"""Calls that never fail where their arguments do not."""


def conjuncts(node: tree.Node) -> list[tree.Node]:
    """The parts of a chain of ANDs, from left to right."""
    if isinstance(node, tree.Binary) and node.op == "and":
        return [*conjuncts(node.left), *conjuncts(node.right)]
    return [node]


def together(parts: list[tree.Node]) -> tree.Node:
    """A chain of ANDs."""
    whole = parts[0]
    for part in parts[1:]:
        whole = tree.Binary(part.at, "and", whole, part)
    return whole


def operands(node: tree.Node) -> list[tree.Node]:
    """The expressions below. A date part (`day` in DATEADD) is a word, no expression."""
    found = tree.children(node)
    spec = scalars().get(node.name) if isinstance(node, tree.Call) else None
    return found[1:] if spec is not None and spec.part else found


def expressions(node: tree.Node) -> list[tree.Node]:
    """The node and every expression below it, outer first."""
    found = [node]
    for part in operands(node):
        found += expressions(part)
    return found


def computed(node: tree.Node) -> bool:
    """Whether an operator computes it beforehand: an analytic function or an aggregate."""
    if not isinstance(node, tree.Call):
        return False
    return node.name in ANALYTIC or node.name in aggregates() or node.name.startswith("uda.") or node.over is not None


def stays_the_same(node: tree.Node) -> bool:
    """Whether equal arguments give equal results: user functions may look at more than their arguments."""
    return not any(isinstance(part, tree.Call) and part.name.startswith(("udf.", "uda.")) for part in expressions(node))


def never_fails(node: tree.Node) -> bool:
    """Whether no value of any field can make it fault. True only where that is certain."""
    match node:
        case tree.Literal() | tree.Name():
            return True
        case tree.Field(of=of):
            return never_fails(of)
        case tree.Unary(op="not", of=of):
            return never_fails(of)
        case tree.Unary(op="-", of=tree.Literal(value=value)):
            return isinstance(value, int | float)
        case tree.Binary(op=op):
            return op in _COMPARISONS and all(map(never_fails, operands(node)))
        case tree.IsNull() | tree.Between() | tree.In() | tree.Case():
            return all(map(never_fails, operands(node)))
        case tree.Cast(trying=True, of=of):
            return never_fails(of)
        case tree.Call(name=name):
            return name in _SAFE_CALLS and not computed(node) and all(map(never_fails, operands(node)))
    return False


def meaning(scope: Scope, node: tree.Node) -> object:
    """Equal for expressions that give equal columns over the same rows, in whatever SELECT they stand.

    Names count with their case, as exact spelling decides which field is read. Sources count by position.
    """
    if isinstance(node, tree.Name):
        at, path = scope.resolve(node)
        return ("name", at, path)
    if isinstance(node, tree.Literal):
        return ("literal", type(node.value).__name__, repr(node.value))
    below = operands(node)
    head: tuple[object, ...] = (type(node).__name__,)
    match node:
        case tree.Binary(op=op) | tree.Unary(op=op):
            head += (op,)
        case tree.Call(name=name, args=args):
            head += (name, len(args))
            if len(below) < len(tree.children(node)):
                head += (tree.key(args[0]),)
        case tree.Cast(type=type_, trying=trying):
            head += (type_, trying)
        case tree.Field(name=name):
            head += (name,)
        case tree.Between(negated=negated) | tree.In(negated=negated) | tree.Like(negated=negated):
            head += (negated,)
        case tree.IsNull(negated=negated):
            head += (negated,)
        case tree.Case(operand=operand, otherwise=otherwise):
            head += (operand is not None, otherwise is not None)
    return (*head, *(meaning(scope, part) for part in below))


def reads(node: tree.Node, scope: Scope) -> set[int | None]:
    """The sources that an expression reads; None stands for a name that several may have."""
    return {scope.resolve(part)[0] for part in expressions(node) if isinstance(part, tree.Name)}
