"""MATCH_RECOGNIZE, bound: the pattern as a small program, conditions and measures over values of matched events.

`Var.field` and `First|Last|Min|Max(Var.field)` become *leaves*: columns of a frame that the operator fills from the events
matched so far. A condition that looks at its own event alone is a plain filter, computed once per batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from headrace.core.errors import nearest
from headrace.sql import tree
from headrace.sql.bind import Binder, scalars
from headrace.sql.evaluate import Eval
from headrace.sql.functions.user import UserFunction
from headrace.sql.operators.match import Leaf, MatchPlan
from headrace.sql.scope import Scope, ScopeSource, fail

_PICKS = ("first", "last", "min", "max")


def bind_match(match: tree.Match, scope: Scope, functions: Mapping[str, UserFunction]) -> MatchPlan:
    """What the operator needs. Raises SqlError."""
    return _MatchBinder(match, scope, functions).bind()


class _MatchBinder:
    def __init__(self, match: tree.Match, scope: Scope, functions: Mapping[str, UserFunction]) -> None:
        self.match = match
        self.functions = functions
        self.outer = Binder(scope, functions)
        self.variables: list[str] = []
        self.program: list[tuple[Any, ...]] = []
        self.fields: list[Eval] = []
        self.field_at: dict[tuple[str, ...], int] = {}

    def bind(self) -> MatchPlan:
        match = self.match
        self._emit(match.pattern)
        self.program.append(("match",))
        order = [name.lower() for name, _ in match.define]
        for name, node in match.define:
            if self._variable(name) is None:
                fail(node.at, f"DEFINE has {name!r}, which is no variable of the pattern", hint=self._known())
            if order.count(name.lower()) > 1:
                fail(node.at, f"variable {name!r} is defined twice")
        conditions: list[tuple[list[Leaf], Eval] | None] = [None] * len(self.variables)
        for at, (name, node) in enumerate(match.define):
            own = self._variable(name)
            assert own is not None
            conditions[own] = self._part(node, own, hidden=set(order[at + 1 :]))
        measures = [(item.alias, *self._part(item.of, None, hidden=set())) for item in match.measures]
        named = {name.lower() for name, _, _ in measures}
        partition = [self.outer.bind(node) for node in match.partition]
        columns = [
            node.parts[-1] if isinstance(node, tree.Name) and node.parts[-1].lower() not in named else ""
            for node in match.partition
        ]
        if self.outer.analytics:
            fail(match.at, "analytic functions are not allowed in MATCH_RECOGNIZE", hint="use a step of WITH")
        return MatchPlan(
            match.limit.ticks, self.variables, self.program, self.fields, conditions, measures, partition, columns
        )

    def _known(self) -> str:
        return "known: " + ", ".join(self.variables)

    def _variable(self, name: str) -> int | None:
        lowered = [known.lower() for known in self.variables]
        return lowered.index(name.lower()) if name.lower() in lowered else None

    # -- the pattern

    def _emit(self, pattern: tuple[Any, ...]) -> None:
        """Instructions of a backtracking machine: var i, split first second (first is tried first), jump, match."""
        match pattern:
            case ("var", str(name)):
                if self._variable(name) is None:
                    self.variables.append(name)
                self.program.append(("var", self._variable(name)))
            case ("seq", parts):
                for part in parts:
                    self._emit(part)
            case ("alt", parts):
                self._alternatives(parts)
            case ("rep", op, inner):
                if op != "?" and _nullable(inner):
                    fail(self.match.at, f"the pattern repeats ({op}) a part that may match nothing")
                self._repeat(op, inner)

    def _alternatives(self, parts: tuple[Any, ...]) -> None:
        jumps: list[int] = []
        for part in parts[:-1]:
            split = len(self.program)
            self.program.append(())
            self._emit(part)
            jumps.append(len(self.program))
            self.program.append(())
            self.program[split] = ("split", split + 1, len(self.program))
        self._emit(parts[-1])
        for jump in jumps:
            self.program[jump] = ("jump", len(self.program))

    def _repeat(self, op: str, inner: tuple[Any, ...]) -> None:
        start = len(self.program)
        if op == "+":
            self._emit(inner)
            self.program.append(("split", start, len(self.program) + 1))
            return
        self.program.append(())
        self._emit(inner)
        if op == "*":
            self.program.append(("jump", start))
        self.program[start] = ("split", start + 1, len(self.program))

    # -- conditions and measures

    def _part(self, node: tree.Node, own: int | None, *, hidden: set[str]) -> tuple[list[Leaf], Eval]:
        leaves: list[Leaf] = []
        names: dict[Leaf, str] = {}

        def leaf(pick: str, variable: int, path: tuple[str, ...]) -> str:
            found = Leaf(pick, variable, self._field(path) if path else -1)
            if found not in names:
                names[found] = f"${len(leaves)}"
                leaves.append(found)
            return names[found]

        rewritten = self._rewrite(node, own, hidden, leaf)
        binder = Binder(Scope([ScopeSource("match", list(names.values()))]), self.functions)
        bound = binder.bind(rewritten)
        if binder.analytics:
            fail(node.at, "analytic functions are not allowed in MATCH_RECOGNIZE", hint="use a step of WITH")
        return leaves, bound

    def _field(self, path: tuple[str, ...]) -> int:
        if path not in self.field_at:
            self.field_at[path] = len(self.fields)
            self.fields.append(self.outer.bind(tree.Name(self.match.at, path)))
        return self.field_at[path]

    def _rewrite(self, node: tree.Node, own: int | None, hidden: set[str], leaf: Callable[..., str]) -> tree.Node:
        if isinstance(node, tree.Name):
            return tree.Name(node.at, (self._leaf(node, "last", hidden, leaf),))
        if isinstance(node, tree.Call) and node.name in _PICKS and node.over is None:
            if len(node.args) != 1 or not isinstance(node.args[0], tree.Name):
                fail(node.at, f"{node.at.text} takes one plain field of a variable", hint=f"{node.at.text}(A.value)")
            return tree.Name(node.at, (self._leaf(node.args[0], node.name, hidden, leaf),))
        if isinstance(node, tree.Call) and node.name == "classifier":
            if own is not None or node.args:
                fail(node.at, "Classifier() stands in MEASURES, without arguments")
            return tree.Name(node.at, (leaf("classifier", -1, ()),))
        spec = scalars().get(node.name) if isinstance(node, tree.Call) else None
        changed: dict[str, Any] = {}
        for part in dataclasses.fields(node):
            value = getattr(node, part.name)
            if part.name == "at":
                continue
            if part.name == "args" and spec is not None and spec.part and value:
                changed["args"] = (value[0], *self._each(value[1:], own, hidden, leaf))
            else:
                changed[part.name] = self._each(value, own, hidden, leaf)
        return dataclasses.replace(node, **changed)

    def _each(self, value: Any, own: int | None, hidden: set[str], leaf: Callable[..., str]) -> Any:
        if isinstance(value, tree.Node):
            return self._rewrite(value, own, hidden, leaf)
        if type(value) is tuple:
            return tuple(self._each(part, own, hidden, leaf) for part in value)
        return value

    def _leaf(self, name: tree.Name, pick: str, hidden: set[str], leaf: Callable[..., str]) -> str:
        variable = self._variable(name.parts[0])
        if variable is None or len(name.parts) < 2:
            hint = nearest(name.parts[0], self.variables) or self._known()
            fail(name.at, f"{'.'.join(name.parts)!r} is no field of a pattern variable", hint=hint)
        if name.parts[0].lower() in hidden:
            fail(
                name.at,
                f"variable {name.parts[0]!r} is defined later in DEFINE",
                hint="a definition may use itself and variables defined before it",
            )
        return leaf(pick, variable, name.parts[1:])


def _nullable(pattern: tuple[Any, ...]) -> bool:
    match pattern:
        case ("seq", parts):
            return all(map(_nullable, parts))
        case ("alt", parts):
            return any(map(_nullable, parts))
        case ("rep", op, inner):
            return op != "+" or _nullable(inner)
    return False
