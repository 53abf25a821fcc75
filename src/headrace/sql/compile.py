"""From a script's text to a Plan: names are resolved, rules of the language checked, fields to decode gathered.

Nothing is guessed here: what the language has but this engine does not do yet is refused with code `sql.unsupported`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from headrace.core.errors import nearest
from headrace.sql import tree
from headrace.sql.bind import Binder
from headrace.sql.evaluate import Eval
from headrace.sql.functions.user import UserFunction
from headrace.sql.join_bounds import time_bound
from headrace.sql.match_plan import bind_match
from headrace.sql.operators.apply import COLUMNS, ApplyStage
from headrace.sql.operators.reference_join import ReferenceJoin
from headrace.sql.operators.select import SelectColumn, SelectPlan
from headrace.sql.operators.stream_join import Bound, StreamJoin, reach_after
from headrace.sql.plan import FromNode, InputNode, JoinNode, MatchNode, Plan, PlanNode, SelectNode, UnionNode
from headrace.sql.scope import Scope, ScopeSource, fail, unsupported
from headrace.sql.script import parse_script
from headrace.sql.show import show, show_pattern


def compile_script(
    text: str, *, functions: Mapping[str, UserFunction] | None = None, references: Collection[str] = ()
) -> Plan:
    """Compile a script. `references` are the names in it that mean reference data. Raises SqlError."""
    return _Compiler(text, dict(functions or {}), list(references)).compile()


class _Compiler:
    def __init__(self, text: str, functions: dict[str, UserFunction], references: list[str]) -> None:
        self.text = text
        self.functions = functions
        self.references = references
        self.used_references: list[str] = []
        self.nodes: list[PlanNode] = []
        self.steps: dict[str, int] = {}  # lower-case step name -> node
        self.inputs: dict[tuple[str, object], int] = {}
        self.substreams = False
        self.tables: dict[str, tuple[tuple[str, str], ...]] = {}  # lower-case name -> declared columns

    def compile(self) -> Plan:
        script = parse_script(self.text)
        for table in script.tables:
            if table.name.lower() in self.tables:
                fail(table.at, f"there are two CREATE TABLE for {table.name!r}")
            self.tables[table.name.lower()] = table.columns
        for step in script.steps:
            if self._reference(step.name):
                fail(step.at, f"{step.name!r} is reference data and a step", hint="rename the step")
            at = self._query(step.query)
            self.nodes[at].label = f"step {step.name}"
            self.steps[step.name.lower()] = at
        statements: list[tuple[str, int]] = []
        for query in script.queries:
            statements += self._statement(query)
        self._spread_wants(statements)
        plan = Plan(self.text, self.nodes, statements, self.used_references, script)
        plan.tables = self.tables
        return plan

    def _statement(self, query: tree.Query) -> list[tuple[str, int]]:
        outputs = {select.into or "" for select in query.selects}
        named = sorted(outputs - {""})
        if len(named) > 1:
            fail(query.at, f"the SELECTs of one UNION write to several outputs: {', '.join(named)}")
        return [(named[0] if named else "output", self._query(query))]

    def _reference(self, name: str) -> str | None:
        return next((known for known in self.references if known.lower() == name.lower()), None)

    # -- queries

    def _query(self, query: tree.Query) -> int:
        branches = [self._select(select) for select in query.selects]
        if len(branches) == 1:
            return branches[0]
        first = self.nodes[branches[0]].columns
        for branch, select in zip(branches[1:], query.selects[1:], strict=True):
            columns = self.nodes[branch].columns
            if first is not None and columns is not None and first != columns:
                fail(
                    select.at,
                    f"UNION joins columns ({', '.join(first)}) and ({', '.join(columns)})",
                    hint="name them alike and in the same order",
                )
        known = [self.nodes[branch].columns for branch in branches]
        return self._add(UnionNode("union", branches, first if None not in known else None))

    def _add(self, node: PlanNode) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1

    def _source(self, source: tree.Source) -> int:
        at = self._plain_source(source)
        if source.match is None:
            return at
        inner = ScopeSource(source.matched, self.nodes[at].columns)
        plan = bind_match(source.match, Scope([inner]), self.functions)
        self.nodes[at].wants |= inner.wants
        self.nodes[at].whole |= inner.whole
        return self._add(MatchNode(f"match {show_pattern(source.match.pattern)}", [at], plan.columns(), match=plan))

    def _plain_source(self, source: tree.Source) -> int:
        if source.query is not None:
            self._no_timestamp(source, "a derived table")
            return self._query(source.query)
        found = self.steps.get(source.name.lower())
        if found is not None:
            self._no_timestamp(source, "a step")
            return found
        if self._reference(source.name):
            fail(
                source.at,
                f"{source.name!r} is reference data and cannot stand in FROM",
                hint="reference data stands on the right side of a JOIN",
            )
        return self._input(source)

    @staticmethod
    def _no_timestamp(source: tree.Source, what: str) -> None:
        if source.timestamp is not None:
            fail(source.timestamp.at, f"TIMESTAMP BY is not allowed on {what}", hint="put it on the input")

    def _input(self, source: tree.Source) -> int:
        if self.inputs and bool(source.over) != self.substreams:
            fail(source.at, "one input has TIMESTAMP BY … OVER and another has not", hint="give OVER to all or to none")
        self.substreams = bool(source.over)
        found = (source.name, tree.key((source.timestamp, source.over)) if source.timestamp else None)
        if found in self.inputs:
            return self.inputs[found]
        declared = self.tables.get(source.name.lower(), ())
        node = InputNode(f"input {source.name}", input=source.name, declared=declared)
        if declared:
            node.columns = [name for name, _ in declared]
            node.wants |= set(node.columns)
        if source.timestamp is not None:
            for part in tree.walk(source.timestamp):
                if isinstance(part, tree.Call) and part.name == "system.timestamp":
                    fail(
                        part.at, "System.Timestamp() is not allowed in TIMESTAMP BY", hint="use a field of the payload"
                    )
            scope = Scope([ScopeSource(source.alias, node.columns)])
            binder = Binder(scope, self.functions)
            node.timestamp = binder.bind(source.timestamp)
            node.timestamp_text = show(source.timestamp)
            if source.over:
                node.over = [binder.bind(part) for part in source.over]
                node.timestamp_text += " over " + ", ".join(map(show, source.over))
            if binder.analytics:
                fail(source.timestamp.at, "analytic functions are not allowed in TIMESTAMP BY")
            node.wants |= scope.sources[0].wants
            node.whole |= scope.sources[0].whole
        self.inputs[found] = self._add(node)
        return self.inputs[found]

    # -- one SELECT

    def _select(self, select: tree.Select) -> int:
        source = self._source(select.source)
        scope = Scope([ScopeSource(select.source.alias, self.nodes[source].columns)])
        plan = SelectPlan()
        lines: list[str] = []
        origins = {0: source}
        self.reach = [0]
        for join in select.joins:
            source = self._joined(join, source, scope, plan, lines, origins)
        binder = Binder(scope, self.functions)
        self._check_star(select)
        self._bind_rows(select, binder, plan)
        plan.analytics = binder.analytics
        plan.aggregates = binder.aggregates
        node = SelectNode("select", [source], select=plan, origins=origins)
        node.columns = self._columns(select, scope, plan)
        node.lines = _describe(select, plan, binder, lines)
        for at in origins:
            node.expression_wants[at] = scope.sources[at].wants
            if scope.sources[at].whole:
                node.expression_whole.add(at)
        return self._add(node)

    def _joined(
        self,
        join: tree.Join | tree.Apply,
        source: int,
        scope: Scope,
        plan: SelectPlan,
        lines: list[str],
        origins: dict[int, int],
    ) -> int:
        """One JOIN or APPLY; the node that the next one reads."""
        if isinstance(join, tree.Apply):
            self._apply(join, scope, plan, lines)
            return source
        if scope.named(join.source.alias) is not None:
            fail(join.source.at, f"two sources are called {join.source.alias!r}", hint="give one an alias")
        known = join.source.query is None and join.source.name.lower() not in self.steps
        table = self._reference(join.source.name) if known else None
        if table is not None:
            self._join(join, table, scope, plan, lines)
            return source
        return self._stream_join(join, source, scope, plan, lines, origins)

    def _apply(self, join: tree.Apply, scope: Scope, plan: SelectPlan, lines: list[str]) -> None:
        if scope.named(join.alias) is not None:
            fail(join.at, f"two sources are called {join.alias!r}", hint="give one another alias")
        binder = Binder(scope, self.functions)
        plan.joins.append(ApplyStage(join.function, join.outer, binder.bind(join.of)))
        if binder.analytics:
            fail(join.of.at, "analytic functions are not allowed in APPLY", hint="compute it in a step of WITH")
        scope.sources.append(ScopeSource(join.alias, list(COLUMNS[join.function])))
        self.reach.append(0)
        lines.append(f"{'outer' if join.outer else 'cross'} apply {join.function}({show(join.of)}) as {join.alias}")

    def _stream_join(
        self, join: tree.Join, source: int, scope: Scope, plan: SelectPlan, lines: list[str], origins: dict[int, int]
    ) -> int:
        right = self._source(join.source)
        scope.sources.append(ScopeSource(join.source.alias, self.nodes[right].columns))
        position = len(scope.sources) - 1
        bounds: list[Bound] = []
        others: list[tree.Node] = []
        for part in _conjuncts(join.on):
            bound = time_bound(part, scope, position)
            if bound is not None and bound.source in origins:
                bounds.append(bound)
            else:
                others.append(part)
        if not any(bound.low is not None and bound.high is not None for bound in bounds):
            bounds = _closed(bounds)
        if not any(bound.low is not None and bound.high is not None for bound in bounds):
            hint = nearest(join.source.name, self.references) or "add DATEDIFF(second, a, b) BETWEEN 0 AND 5, say"
            fail(join.at, f"the JOIN with {join.source.alias!r} has no time bound", hint=hint, code="sql.join")
        left_keys, right_keys, residual = self._on(others, scope, position, join)
        if plan.joins:
            source = self._add(FromNode("reference join, apply", [source], stages=plan.joins))
            plan.joins = []
        made = StreamJoin(join.left, bounds, list(self.reach), left_keys, right_keys, residual)
        self.reach = reach_after(self.reach, bounds)
        origins[position] = right
        how = "left " if join.left else ""
        lines.append(f"{how}join stream {join.source.alias}: {show(join.on)}")
        return self._add(JoinNode(f"{how}join with {join.source.alias}", [source, right], join=made))

    def _on(
        self, parts: list[tree.Node], scope: Scope, position: int, join: tree.Join
    ) -> tuple[list[Eval], list[Eval], Eval | None]:
        """Equal keys of both sides, and the rest of ON."""
        left: list[Eval] = []
        right: list[Eval] = []
        rest: list[tree.Node] = []
        binder = Binder(scope, self.functions)
        for part in parts:
            sides = _equality(part, scope, position)
            if sides is None:
                rest.append(part)
            else:
                left.append(binder.bind(sides[0]))
                right.append(binder.bind(sides[1]))
        residual = binder.bind(_together(rest)) if rest else None
        if binder.analytics:
            unsupported(join.at, "an analytic function in ON")
        return left, right, residual

    @staticmethod
    def _check_star(select: tree.Select) -> None:
        for item in select.items:
            if isinstance(item.of, tree.Star):
                if select.grouped:
                    fail(item.at, "SELECT * is not allowed with GROUP BY", hint="name keys and aggregates")
                if not item.of.parts and any(isinstance(join, tree.Join) for join in select.joins):
                    fail(item.at, "SELECT * is not allowed with JOIN", hint="name the columns, or write source.*")

    def _bind_rows(self, select: tree.Select, binder: Binder, plan: SelectPlan) -> None:
        if select.where is not None:
            plan.where = binder.bind(select.where)
        plan.partitions = [[binder.bind(part) for part in window.partition] for window in select.windows]
        for key in select.group:
            found = binder.scope.canon(key)
            if found not in binder.group_keys:
                plan.keys.append(binder.bind(key))
                binder.group_keys[found] = len(plan.keys) - 1
        plan.windows = select.windows
        if select.grouped:
            binder.place = "group"
            binder.window_ids = True
            self._refuse_plain_analytics(select, binder)
        for item in select.items:
            every = isinstance(item.of, tree.Star) and not item.of.parts
            for at in range(1 if not every else len(binder.scope.sources)):
                plan.columns.append(SelectColumn("*", None, source=at) if every else self._item(item, binder))
        if select.having is not None:
            binder.aliases = {
                item.alias.lower(): item.of for item in select.items if not isinstance(item.of, tree.Star)
            }
            plan.having = binder.bind(select.having)

    @staticmethod
    def _refuse_plain_analytics(select: tree.Select, binder: Binder) -> None:
        """System.Timestamp() beside a window is a key, but in SELECT it is the window's end."""
        stamp = ("Call", "system.timestamp", (), False, None)
        index = binder.group_keys.pop(stamp, None)
        if index is not None:  # keep the key's place, under a name that no expression has
            binder.group_keys[("key", index)] = index

    def _item(self, item: tree.Item, binder: Binder) -> SelectColumn:
        if not isinstance(item.of, tree.Star):
            return SelectColumn(item.alias, binder.bind(item.of))
        star = item.of
        at = binder.scope.named(star.parts[0]) if len(star.parts) == 1 else None
        if at is not None:
            return SelectColumn("*", None, source=at)
        return SelectColumn("*", None, spread=binder.bind(tree.Name(star.at, star.parts)))

    @staticmethod
    def _columns(select: tree.Select, scope: Scope, plan: SelectPlan) -> list[str] | None:
        names: list[str] = []
        for column in plan.columns:
            if column.of is not None:
                names.append(column.name)
                continue
            known = scope.sources[column.source].columns if column.spread is None else None
            if known is None:
                return None
            names += known
        return list(dict.fromkeys(names))

    # -- JOIN with reference data

    def _join(self, join: tree.Join, table: str, scope: Scope, plan: SelectPlan, lines: list[str]) -> None:
        self._no_timestamp(join.source, "reference data")
        scope.sources.append(ScopeSource(join.source.alias, None))
        self.reach.append(0)
        stream_keys, table_keys, residual = self._on(_conjuncts(join.on), scope, len(scope.sources) - 1, join)
        plan.joins.append(ReferenceJoin(table, join.left, stream_keys, table_keys, residual))
        if table not in self.used_references:
            self.used_references.append(table)
        how = "by key" if stream_keys else "every pair"
        lines.append(f"{'left ' if join.left else ''}join reference {table} ({how}): {show(join.on)}")

    # -- which fields to decode

    def _spread_wants(self, statements: list[tuple[str, int]]) -> None:
        """From the outputs back to the inputs: what is asked of a node, it asks of its sources."""
        for _, at in statements:
            self.nodes[at].whole = True
        for node in reversed(self.nodes):
            if isinstance(node, UnionNode):
                for at in node.sources:
                    self.nodes[at].wants |= node.wants
                    self.nodes[at].whole |= node.whole
            elif isinstance(node, SelectNode):
                self._pass_on(node)

    def _pass_on(self, node: SelectNode) -> None:
        explicit = {column.name for column in node.select.columns if column.of is not None}
        for position, at in node.origins.items():
            source = self.nodes[at]
            source.wants |= node.expression_wants[position]
            source.whole |= position in node.expression_whole
            if any(
                column.of is None and column.source == position and column.spread is None
                for column in node.select.columns
            ):
                source.wants |= node.wants - explicit
                source.whole |= node.whole


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


def _conjuncts(node: tree.Node) -> list[tree.Node]:
    if isinstance(node, tree.Binary) and node.op == "and":
        return [*_conjuncts(node.left), *_conjuncts(node.right)]
    return [node]


def _together(parts: list[tree.Node]) -> tree.Node:
    whole = parts[0]
    for part in parts[1:]:
        whole = tree.Binary(part.at, "and", whole, part)
    return whole


def _equality(node: tree.Node, scope: Scope, position: int) -> tuple[tree.Node, tree.Node] | None:
    """(stream side, table side) of an equality whose sides each read one of them only."""
    if not isinstance(node, tree.Binary) or node.op != "=":
        return None
    left, right = _reads(node.left, scope), _reads(node.right, scope)
    if right == {position} and position not in left and None not in left:
        return node.left, node.right
    if left == {position} and position not in right and None not in right:
        return node.right, node.left
    return None


def _reads(node: tree.Node, scope: Scope) -> set[int | None]:
    return {scope.resolve(part)[0] for part in tree.walk(node) if isinstance(part, tree.Name)}


def _describe(select: tree.Select, plan: SelectPlan, binder: Binder, joins: list[str]) -> list[str]:
    """The stages of a SELECT, last one first, as EXPLAIN prints them."""
    lines = ["project " + ", ".join(_described(item) for item in select.items)]
    if select.having is not None:
        lines.append("having " + show(select.having))
    if plan.windows:
        windows = ", ".join(show(window) for window in plan.windows)
        keys = ", ".join(show(key) for key in select.group)
        lines.append(f"group by {windows}" + (f", keys {keys}" if keys else ""))
        for call in plan.aggregates:
            lines[-1] += f"; {show(call.call)}"
    if select.where is not None:
        lines.append("filter " + show(select.where))
    if plan.analytics:
        lines.append("analytic " + ", ".join(show(call.call) for call in plan.analytics))
    lines += reversed(joins)
    if binder.per_row:
        lines[0] += f"   [per row: {', '.join(sorted(binder.per_row))}]"
    return lines


def _described(item: tree.Item) -> str:
    text = show(item.of)
    return text if isinstance(item.of, tree.Star) or text == item.alias else f"{text} as {item.alias}"
