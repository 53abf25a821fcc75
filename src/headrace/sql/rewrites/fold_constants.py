"""Constant folding: an expression without a field is computed once, when the script is compiled.

What would fault is left alone, since a fault belongs to an event. Records and arrays are left alone too: they would be shared.
"""

from __future__ import annotations

import numpy as np

from headrace.sql import tree
from headrace.sql.evaluate import Eval, Frame
from headrace.sql.moments import Moment
from headrace.sql.rewrite import Rewrite, RewritingBinder
from headrace.sql.show import show
from headrace.sql.traits import computed, expressions
from headrace.sql.values import Constant

_LEAVES = (tree.Literal, tree.Name, tree.Star, tree.Field)


def _fold(binder: RewritingBinder, node: tree.Node, bound: Eval) -> Eval | None:
    if isinstance(node, _LEAVES) or not all(map(_constant, expressions(node))):
        return None
    frame = Frame(np.zeros(1, np.int64), [])
    found = bound(frame)
    value = found.to_list()[0]
    if frame.faults or not (value is None or isinstance(value, bool | int | float | str | Moment)):
        return None
    if not (isinstance(node, tree.Unary) and isinstance(node.of, tree.Literal)):
        binder.notes.add("fold_constants", f"{show(node)} is {value!s}")
    return lambda frame: Constant(frame.rows, value)


def _constant(node: tree.Node) -> bool:
    if isinstance(node, tree.Call):
        return not computed(node) and not node.name.startswith(("udf.", "system.", "getmetadata"))
    return not isinstance(node, tree.Name | tree.Star | tree.Field)


FOLD_CONSTANTS = Rewrite("fold_constants", "Expressions without fields are computed once.", expression=_fold)
