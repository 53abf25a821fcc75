"""From a script's text to a Plan: names are resolved, rules of the language checked, rewrites applied.

Nothing is guessed here: what the language has but this engine does not do yet is refused with code `sql.unsupported`. A
mistake does not end the check: what can be understood without it is looked at too, so that one run names all mistakes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from headrace.sql import tree
from headrace.sql.compile_select import SelectCompiler
from headrace.sql.errors import SqlError
from headrace.sql.functions.user import UserFunction
from headrace.sql.match_plan import bind_match
from headrace.sql.plan import InputNode, MatchNode, Plan, PlanNode, SelectNode, UnionNode, in_step
from headrace.sql.recover import parse_all
from headrace.sql.rewrite import Notes, RewritingBinder, apply_rewrites, chosen
from headrace.sql.scope import Scope, ScopeSource, fail
from headrace.sql.script_rules import check_rules
from headrace.sql.show import show, show_pattern

ERRORS_MAX = 50


def compile_script(
    text: str,
    *,
    functions: Mapping[str, UserFunction] | None = None,
    references: Collection[str] = (),
    rewrites: Collection[str] | None = None,
) -> Plan:
    """Compile a script. `references` are the names in it that mean reference data; `rewrites` is None for all.

    Raises SqlError, which has further errors of the script in `others`.
    """
    compiler = Compiler(text, dict(functions or {}), list(references), Notes(chosen(rewrites)))
    plan = compiler.compile()
    if compiler.errors:
        first, *others = compiler.errors
        others.sort(key=lambda error: (error.line, error.column))
        first.others = tuple(others[: ERRORS_MAX - 1])
        raise first
    return apply_rewrites(plan, chosen(rewrites), compiler.notes)


class Compiler:
    """Makes the nodes of a plan, without any plan rewrite. `errors` gathers what is wrong, the first one first."""

    def __init__(self, text: str, functions: dict[str, UserFunction], references: list[str], notes: Notes) -> None:
        self.text = text
        self.functions = functions
        self.references = references
        self.notes = notes
        self.errors: list[SqlError] = []
        self.used_references: list[str] = []
        self.nodes: list[PlanNode] = []
        self.steps: dict[str, int] = {}  # lower-case step name -> node
        self.inputs: dict[tuple[str, object], int] = {}
        self.spelled: dict[str, str] = {}  # lower-case input and output names -> their first spelling
        self.substreams = False
        self.tables: dict[str, tuple[tuple[str, str], ...]] = {}  # lower-case name -> declared columns

    @contextmanager
    def tried(self) -> Iterator[None]:
        """Go on after an error, and remember it."""
        try:
            yield
        except SqlError as error:
            self.errors.append(error)

    def compile(self) -> Plan:
        script, errors = parse_all(self.text)
        self.errors += errors
        for table in script.tables:
            with self.tried():
                if table.name.lower() in self.tables:
                    fail(table.at, f"there are two CREATE TABLE for {table.name!r}")
                self.tables[table.name.lower()] = table.columns
        for step in script.steps:
            with self.tried():
                if self.reference(step.name):
                    fail(step.at, f"{step.name!r} is reference data and a step", hint="rename the step")
            at = self.query(step.query)
            self.nodes[at].label = f"step {step.name}"
            self.steps[step.name.lower()] = at
        statements = self._one_order([self._statement(query) for query in script.queries])
        with self.tried():
            check_rules(script, self.references)
        return Plan(
            self.text,
            self.nodes,
            statements,
            self.used_references,
            script,
            self.tables,
            self.functions,
            self.notes,
        )

    def _statement(self, query: tree.Query) -> tuple[str, int]:
        named: dict[str, str] = {}
        for select in query.selects:
            if select.into:
                named.setdefault(select.into.lower(), select.into)
        with self.tried():
            if len(named) > 1:
                fail(
                    query.at, f"the SELECTs of one UNION write to several outputs: {', '.join(sorted(named.values()))}"
                )
        name = next(iter(named.values()), "output")
        return self.spelled.setdefault(f"into {name.lower()}", name), self.query(query)

    def _one_order(self, statements: list[tuple[str, int]]) -> list[tuple[str, int]]:
        """Statements that write to one output as one stream, whose order depends on the events alone.

        Those that answer each row of one input at once stay apart: their rows follow the rows of that input. All others
        are joined by a UNION, which holds rows until no statement can bring an earlier one.
        """
        groups: dict[str, list[int]] = {}
        for name, at in statements:
            groups.setdefault(name, []).append(at)
        found: list[tuple[str, int]] = []
        for name, at in statements:
            same = groups[name]
            steps = {in_step(self.nodes, one) for one in same}
            if len(same) == 1 or (len(steps) == 1 and None not in steps):
                found.append((name, at))
            elif at == same[0]:
                known = [self.nodes[one].columns for one in same]
                columns = known[0] if all(one == known[0] for one in known) else None
                found.append((name, self.add(UnionNode(f"all into {name}", list(same), columns))))
        return found

    def reference(self, name: str) -> str | None:
        """Reference data by this name."""
        return next((known for known in self.references if known.lower() == name.lower()), None)

    # -- queries

    def query(self, query: tree.Query) -> int:
        """The node of a query."""
        branches = [self._select(select) for select in query.selects]
        if len(branches) == 1:
            return branches[0]
        first = self.nodes[branches[0]].columns
        for branch, select in zip(branches[1:], query.selects[1:], strict=True):
            columns = self.nodes[branch].columns
            with self.tried():
                if first is not None and columns is not None and first != columns:
                    fail(
                        select.at,
                        f"UNION joins columns ({', '.join(first)}) and ({', '.join(columns)})",
                        hint="name them alike and in the same order",
                    )
        known = [self.nodes[branch].columns for branch in branches]
        return self.add(UnionNode("union", branches, first if None not in known else None))

    def _select(self, select: tree.Select) -> int:
        """The node of one SELECT; where its FROM makes no sense, one whose columns are unknown."""
        before = len(self.errors)
        with self.tried():
            return SelectCompiler(self, select).compile()
        return self.add(SelectNode(f"broken, {len(self.errors) - before} errors", []))

    def add(self, node: PlanNode) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1

    # -- sources

    def source(self, source: tree.Source) -> int:
        """The node of what stands in FROM or JOIN."""
        at = self._plain_source(source)
        if source.match is None:
            return at
        inner = ScopeSource(source.matched, self.nodes[at].columns)
        plan = bind_match(source.match, Scope([inner]), self.functions)
        label = f"match {show_pattern(source.match.pattern)}"
        return self.add(MatchNode(label, [at], plan.columns(), asks=[(at, inner)], match=plan))

    def _plain_source(self, source: tree.Source) -> int:
        if source.query is not None:
            self.no_timestamp(source, "a derived table")
            return self.query(source.query)
        found = self.steps.get(source.name.lower())
        if found is not None:
            self.no_timestamp(source, "a step")
            return found
        if self.reference(source.name):
            fail(
                source.at,
                f"{source.name!r} is reference data and cannot stand in FROM",
                hint="reference data stands on the right side of a JOIN",
            )
        return self._input(source)

    @staticmethod
    def no_timestamp(source: tree.Source, what: str) -> None:
        if source.timestamp is not None:
            fail(source.timestamp.at, f"TIMESTAMP BY is not allowed on {what}", hint="put it on the input")

    def _input(self, source: tree.Source) -> int:
        if self.inputs and bool(source.over) != self.substreams:
            fail(source.at, "one input has TIMESTAMP BY … OVER and another has not", hint="give OVER to all or to none")
        self.substreams = bool(source.over)
        name = self.spelled.setdefault(f"from {source.name.lower()}", source.name)
        found = (name, tree.key((source.timestamp, source.over)) if source.timestamp else None)
        if found not in self.inputs:
            self.inputs[found] = self._new_input(source, name)
        return self.inputs[found]

    def _new_input(self, source: tree.Source, name: str) -> int:
        declared = self.tables.get(name.lower(), ())
        node = InputNode(f"input {name}", input=name, declared=declared, whole=True)
        if declared:
            node.columns = [column for column, _ in declared]
        asked = ScopeSource(source.alias, node.columns, wants=set(node.columns or ()))
        if source.timestamp is not None:
            with self.tried():
                self._timestamp(source, source.timestamp, node, asked)
        at = self.add(node)
        node.asks.append((at, asked))
        return at

    def _timestamp(self, source: tree.Source, timestamp: tree.Node, node: InputNode, asked: ScopeSource) -> None:
        for part in tree.walk(timestamp):
            if isinstance(part, tree.Call) and part.name == "system.timestamp":
                fail(part.at, "System.Timestamp() is not allowed in TIMESTAMP BY", hint="use a field of the payload")
        binder = RewritingBinder(Scope([asked]), self.functions, self.notes)
        node.timestamp = binder.bind(timestamp)
        node.timestamp_text = show(timestamp)
        if source.over:
            node.over = [binder.bind(part) for part in source.over]
            node.timestamp_text += " over " + ", ".join(map(show, source.over))
        if binder.analytics:
            fail(timestamp.at, "analytic functions are not allowed in TIMESTAMP BY")
