"""One SELECT, compiled: its sources and joins become nodes, its expressions are bound, its columns named.

Every part is tried by itself, so that a mistake in one item of SELECT does not hide one in WHERE.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.core.errors import nearest
from headrace.sql import tree
from headrace.sql.bind import Binder
from headrace.sql.evaluate import Eval
from headrace.sql.join_bounds import time_bound
from headrace.sql.operators.apply import COLUMNS, ApplyStage
from headrace.sql.operators.reference_join import ReferenceJoin
from headrace.sql.operators.select import SelectColumn, SelectPlan
from headrace.sql.operators.stream_join import Bound, StreamJoin, reach_after
from headrace.sql.plan import FromNode, JoinNode, SelectNode
from headrace.sql.rewrite import RewritingBinder
from headrace.sql.scope import Scope, ScopeSource, fail
from headrace.sql.show import show
from headrace.sql.traits import conjuncts, reads, together
from headrace.sql.values import Column

if TYPE_CHECKING:
    from headrace.sql.compile import Compiler


class SelectCompiler:
    """`compile` adds the nodes to the script's compiler and returns the last one's position."""

    def __init__(self, script: Compiler, select: tree.Select) -> None:
        self.script = script
        self.select = select
        self.source = script.source(select.source)
        self.scope = Scope([ScopeSource(select.source.alias, script.nodes[self.source].columns)])
        self.plan = SelectPlan()
        self.joins: list[str] = []
        self.origins = {0: self.source}
        self.reach = [0]

    def compile(self) -> int:
        for join in self.select.joins:
            sources = len(self.scope.sources)
            with self.script.tried():
                self._joined(join)
            if len(self.scope.sources) == sources:  # so that its columns are not unknown on top of that
                alias = join.alias if isinstance(join, tree.Apply) else join.source.alias
                self.scope.sources.append(ScopeSource(alias, None))
                self.reach.append(0)
        binder = self._binder()
        with self.script.tried():
            self._check_star()
        self._bind_rows(binder)
        self.plan.analytics = binder.analytics
        self.plan.aggregates = binder.aggregates
        node = SelectNode(
            "select",
            [self.source],
            select=self.plan,
            tree=self.select,
            scope=self.scope,
            joins=self.joins,
            origins=self.origins,
        )
        node.columns = self._columns()
        node.asks = [(at, self.scope.sources[position]) for position, at in self.origins.items()]
        return self.script.add(node)

    def _binder(self) -> Binder:
        return RewritingBinder(self.scope, self.script.functions, self.script.notes)

    # -- joins

    def _joined(self, join: tree.Join | tree.Apply) -> None:
        if isinstance(join, tree.Apply):
            self._apply(join)
            return
        if self.scope.named(join.source.alias) is not None:
            fail(join.source.at, f"two sources are called {join.source.alias!r}", hint="give one an alias")
        known = join.source.query is None and join.source.name.lower() not in self.script.steps
        table = self.script.reference(join.source.name) if known else None
        if table is not None:
            self._reference_join(join, table)
        else:
            self._stream_join(join)

    def _apply(self, join: tree.Apply) -> None:
        if self.scope.named(join.alias) is not None:
            fail(join.at, f"two sources are called {join.alias!r}", hint="give one another alias")
        binder = self._binder()
        stage = ApplyStage(join.function, join.outer, binder.bind(join.of))
        if binder.analytics:
            fail(join.of.at, "analytic functions are not allowed in APPLY", hint="compute it in a step of WITH")
        self.plan.joins.append(stage)
        self.scope.sources.append(ScopeSource(join.alias, list(COLUMNS[join.function])))
        self.reach.append(0)
        how = "outer" if join.outer else "cross"
        self.joins.append(f"{how} apply {join.function}({show(join.of)}) as {join.alias}")

    def _reference_join(self, join: tree.Join, table: str) -> None:
        self.script.no_timestamp(join.source, "reference data")
        self.scope.sources.append(ScopeSource(join.source.alias, None))
        self.reach.append(0)
        stream_keys, table_keys, residual = self._on(conjuncts(join.on), len(self.scope.sources) - 1)
        self.plan.joins.append(ReferenceJoin(table, join.left, stream_keys, table_keys, residual))
        if table not in self.script.used_references:
            self.script.used_references.append(table)
        how = "by key" if stream_keys else "every pair"
        self.joins.append(f"{'left ' if join.left else ''}join reference {table} ({how}): {show(join.on)}")

    def _stream_join(self, join: tree.Join) -> None:
        script = self.script
        right = script.source(join.source)
        self.scope.sources.append(ScopeSource(join.source.alias, script.nodes[right].columns))
        position = len(self.scope.sources) - 1
        reach = list(self.reach)
        self.reach.append(0)
        bounds: list[Bound] = []
        others: list[tree.Node] = []
        for part in conjuncts(join.on):
            bound = time_bound(part, self.scope, position)
            if bound is not None and bound.source in self.origins:
                bounds.append(bound)
            else:
                others.append(part)
        if not any(bound.low is not None and bound.high is not None for bound in bounds):
            bounds = _closed(bounds)
        if not any(bound.low is not None and bound.high is not None for bound in bounds):
            hint = nearest(join.source.name, script.references) or "add DATEDIFF(second, a, b) BETWEEN 0 AND 5, say"
            fail(join.at, f"the JOIN with {join.source.alias!r} has no time bound", hint=hint, code="sql.join")
        left_keys, right_keys, residual = self._on(others, position)
        if self.plan.joins:
            self.source = script.add(FromNode("reference join, apply", [self.source], stages=self.plan.joins))
            self.plan.joins = []
        made = StreamJoin(join.left, bounds, reach, left_keys, right_keys, residual)
        self.reach = reach_after(reach, bounds)
        self.origins[position] = right
        how = "left " if join.left else ""
        self.joins.append(f"{how}join stream {join.source.alias}: {show(join.on)}")
        self.source = script.add(JoinNode(f"{how}join with {join.source.alias}", [self.source, right], join=made))

    def _on(self, parts: list[tree.Node], position: int) -> tuple[list[Eval], list[Eval], Eval | None]:
        """Equal keys of both sides, and the rest of ON."""
        left: list[Eval] = []
        right: list[Eval] = []
        rest: list[tree.Node] = []
        binder = self._binder()
        for part in parts:
            sides = _equality(part, self.scope, position)
            if sides is None:
                rest.append(part)
            else:
                left.append(binder.bind(sides[0]))
                right.append(binder.bind(sides[1]))
        residual = binder.bind(together(rest)) if rest else None
        if binder.analytics:
            call = binder.analytics[0].call
            fail(call.at, f"{call.at.text} is not allowed in ON", hint="compute it in a step of WITH and join that")
        return left, right, residual

    # -- WHERE, GROUP BY, SELECT, HAVING

    def _check_star(self) -> None:
        for item in self.select.items:
            if isinstance(item.of, tree.Star):
                if self.select.grouped:
                    fail(item.at, "SELECT * is not allowed with GROUP BY", hint="name keys and aggregates")
                if not item.of.parts and any(isinstance(join, tree.Join) for join in self.select.joins):
                    fail(item.at, "SELECT * is not allowed with JOIN", hint="name the columns, or write source.*")

    def _tried(self, binder: Binder, node: tree.Node) -> Eval:
        """A bound expression; nulls where it has a mistake."""
        place = binder.place
        with self.script.tried():
            return binder.bind(node)
        binder.place = place
        return lambda frame: Column(frame.rows)

    def _tried_parts(self, binder: Binder, where: tree.Node) -> Eval:
        """A bound condition. Where it has a mistake, each part of it is looked at by itself."""
        parts = conjuncts(where)
        errors = self.script.errors
        before = len(errors)
        bound = self._tried(binder, where)
        if len(errors) > before and len(parts) > 1:
            del errors[before:]
            for part in parts:
                self._tried(binder, part)
        return bound

    def _bind_rows(self, binder: Binder) -> None:
        select, plan = self.select, self.plan
        if select.where is not None:
            plan.where = self._tried_parts(binder, select.where)
        plan.partitions = [[self._tried(binder, part) for part in window.partition] for window in select.windows]
        for key in select.group:
            found = binder.scope.canon(key)
            if found not in binder.group_keys:
                plan.keys.append(self._tried(binder, key))
                binder.group_keys[found] = len(plan.keys) - 1
        plan.windows = select.windows
        if select.grouped:
            binder.place = "group"
            binder.window_ids = True
            _refuse_plain_analytics(binder)
        for item in select.items:
            every = isinstance(item.of, tree.Star) and not item.of.parts
            for at in range(1 if not every else len(self.scope.sources)):
                plan.columns.append(SelectColumn("*", None, source=at) if every else self._item(item, binder))
        if select.having is not None:
            binder.aliases = {
                item.alias.lower(): item.of for item in select.items if not isinstance(item.of, tree.Star)
            }
            plan.having = self._tried(binder, select.having)

    def _item(self, item: tree.Item, binder: Binder) -> SelectColumn:
        if not isinstance(item.of, tree.Star):
            return SelectColumn(item.alias, self._tried(binder, item.of))
        star = item.of
        at = self.scope.named(star.parts[0]) if len(star.parts) == 1 else None
        if at is not None:
            return SelectColumn("*", None, source=at)
        return SelectColumn("*", None, spread=self._tried(binder, tree.Name(star.at, star.parts)))

    def _columns(self) -> list[str] | None:
        names: list[str] = []
        for column in self.plan.columns:
            if column.of is not None:
                names.append(column.name)
                continue
            known = self.scope.sources[column.source].columns if column.spread is None else None
            if known is None:
                return None
            names += known
        return list(dict.fromkeys(names))


def _refuse_plain_analytics(binder: Binder) -> None:
    """System.Timestamp() beside a window is a key, but in SELECT it is the window's end."""
    stamp = ("Call", "system.timestamp", (), False, None)
    index = binder.group_keys.pop(stamp, None)
    if index is not None:  # keep the key's place, under a name that no expression has
        binder.group_keys[("key", index)] = index


def _closed(bounds: list[Bound]) -> list[Bound]:
    """Bounds of one source and unit taken together: two one-sided conditions make a two-sided one."""
    found: dict[tuple[int, int], Bound] = {}
    for bound in bounds:
        old = found.get((bound.source, bound.unit), Bound(bound.source, bound.unit, None, None))
        lows = [low for low in (old.low, bound.low) if low is not None]
        highs = [high for high in (old.high, bound.high) if high is not None]
        found[bound.source, bound.unit] = Bound(
            bound.source, bound.unit, max(lows, default=None), min(highs, default=None)
        )
    return list(found.values())


def _equality(node: tree.Node, scope: Scope, position: int) -> tuple[tree.Node, tree.Node] | None:
    """(stream side, table side) of an equality whose sides each read one of them only."""
    if not isinstance(node, tree.Binary) or node.op != "=":
        return None
    left, right = reads(node.left, scope), reads(node.right, scope)
    if right == {position} and position not in left and None not in left:
        return node.left, node.right
    if left == {position} and position not in right and None not in right:
        return node.right, node.left
    return None
