"""Scripts: CREATE TABLE, WITH, SELECT … INTO … FROM … JOIN … WHERE … GROUP BY … HAVING, UNION.

Statements need no separator, so a query ends where no clause of it can follow.
"""

from __future__ import annotations

from typing import Any, NoReturn

from headrace.core.errors import nearest
from headrace.sql.dialect import Token
from headrace.sql.parser import DEPTH_MAX, RESERVED, ExpressionParser
from headrace.sql.tree import (
    Apply,
    Call,
    Cast,
    Duration,
    Field,
    Item,
    Join,
    Literal,
    Match,
    Name,
    Node,
    Query,
    Script,
    Select,
    Source,
    Star,
    Step,
    Table,
    Window,
)

_WINDOWS = {
    "tumblingwindow": "tumbling",
    "tumbling": "tumbling",
    "hoppingwindow": "hopping",
    "hopping": "hopping",
    "slidingwindow": "sliding",
    "sliding": "sliding",
    "sessionwindow": "session",
    "session": "session",
}


def parse_script(text: str) -> Script:
    """The syntax tree of a script. Raises SqlError with line and column."""
    parser = _ScriptParser(text)
    try:
        return parser.script()
    except RecursionError:
        parser.fail("this is nested too deep", hint="use steps of WITH")


def parse_expression(text: str) -> Node:
    """The syntax tree of one expression, with nothing after it."""
    parser = _ScriptParser(text)
    try:
        node = parser.expression()
    except RecursionError:
        parser.fail("this is nested too deep")
    if parser.current.kind != "end":
        parser.fail(f"expected the end of the expression, found {parser.current.text!r}")
    return node


class _ScriptParser(ExpressionParser):
    queries = 0  # how deep the one being read is nested

    def script(self) -> Script:
        start = self.current
        tables: list[Table] = []
        steps: list[Step] = []
        queries: list[Query] = []
        while self.current.kind != "end":
            if self.take_mark(";"):
                continue
            if self.is_word("create"):
                tables.append(self._table())
            elif self.is_word("with"):
                if steps:
                    self.fail("a script has at most one WITH", hint="put all steps into the first WITH")
                steps = self._steps()
            elif self.is_word("select") or self.is_mark("("):
                queries.append(self._query(outermost=True))
            else:
                self.fail(
                    f"expected SELECT, WITH or CREATE TABLE, found {self.current.text!r}",
                    hint="a statement begins with SELECT",
                )
        if not queries:
            self.fail("the script has no SELECT statement", hint="write SELECT … INTO output FROM input")
        return Script(start, tuple(tables), tuple(steps), tuple(queries))

    def _table(self) -> Table:
        at = self.advance()
        self.expect_word("table", "after CREATE")
        name = self.name("a table name").text
        self.expect_mark("(", "after the table name")
        columns: list[tuple[str, str]] = []
        while not columns or self.take_mark(","):
            column = self.name("a column name")
            if any(known.lower() == column.text.lower() for known, _ in columns):
                self.fail(f"there are two columns named {column.text!r}", column)
            columns.append((column.text, self.type_name()))
        self.expect_mark(")", "after the columns")
        return Table(at, name, tuple(columns))

    def _steps(self) -> list[Step]:
        self.advance()
        steps: list[Step] = []
        while not steps or self.take_mark(","):
            at = self.name("a step name")
            if any(step.name.lower() == at.text.lower() for step in steps):
                self.fail(f"there are two steps named {at.text!r}", at)
            self.expect_word("as", "after the step name")
            self.expect_mark("(", "after AS")
            query = self._query(outermost=False)
            self.expect_mark(")", f"at the end of step {at.text}")
            steps.append(Step(at, at.text, query))
        return steps

    def _query(self, *, outermost: bool) -> Query:
        at = self.current
        self.queries += 1
        if self.queries > 30:
            self.fail("queries are nested more than 30 deep", hint="use steps of WITH")
        selects: list[Select] = []
        while not selects or self.take_word("union"):
            if selects:
                self.take_word("all")
            if self.take_mark("("):
                selects += self._query(outermost=outermost).selects
                self.expect_mark(")", "after the query")
            else:
                selects.append(self._select(outermost=outermost))
        self.queries -= 1
        return Query(at, tuple(selects))

    def _select(self, *, outermost: bool) -> Select:
        at = self.expect_word("select", "at the start of a query")
        if (
            self.is_word("distinct", "top")
            and not self.is_mark(",", ".", steps=1)
            and not self.is_word("from", steps=1)
        ):
            self.fail(
                f"SELECT {self.current.text.upper()} does not exist in this language", hint="GROUP BY the columns"
            )
        items: list[Item] = []
        while not items or self.take_mark(","):
            items.append(self._item(len(items)))
        into: str | None = None
        if self.is_word("into"):
            if not outermost:
                self.fail("INTO is not allowed inside a step or a derived table", hint="write INTO in the last SELECT")
            self.advance()
            into = self.name("an output name").text
        if not self.is_word("from"):
            self.fail(f"expected FROM, found {self.current.text!r}", hint="every SELECT reads FROM an input or a step")
        self.advance()
        source = self._source()
        joins = self._joins()
        where = self.expression() if self.take_word("where") else None
        group, windows, grouped = self._group() if self.is_word("group") else ((), (), False)
        having = self.expression() if self.take_word("having") else None
        return Select(at, tuple(items), into, source, joins, where, group, windows, grouped, having)

    def _item(self, index: int) -> Item:
        at = self.current
        if at.kind in ("word", "name") and self.is_mark("=", steps=1) and at.text.lower() not in RESERVED:
            self.at += 2
            return Item(at, self.expression(), at.text)
        of = self.expression()
        if self.take_word("as"):
            if self.current.kind == "text":
                return Item(at, of, self.advance().text)
            if self.current.kind in ("word", "name"):
                return Item(at, of, self.advance().text)
            self.fail(f"expected a name after AS, found {self.current.text!r}")
        token = self.current
        if token.kind == "name" or (token.kind == "word" and token.text.lower() not in RESERVED):
            return Item(at, of, self.advance().text)
        return Item(at, of, _natural_name(of, index))

    # -- FROM

    def _source(self) -> Source:
        at = self.current
        name, query = "", None
        if self.take_mark("("):
            query = self._query(outermost=False)
            self.expect_mark(")", "after the derived table")
        else:
            name = self.name("an input or step name").text
        alias, timestamp = "", None
        over: tuple[Node, ...] = ()
        partition: tuple[Node, ...] = ()
        match: Match | None = None
        matched, partitions = "", 0
        while True:
            if self.is_word("timestamp") and self.is_word("by", steps=1):
                if timestamp is not None:
                    self.fail("TIMESTAMP BY stands twice")
                self.at += 2
                timestamp = self.expression()
                if self.take_word("over"):
                    over = self.expressions()
            elif self.is_word("partition") and self.is_word("by", steps=1):
                self.at += 2
                partition = self.expressions()
                if self.take_word("into"):
                    partitions = self._count()
            elif self.is_word("match_recognize"):
                if match is not None:
                    self.fail("MATCH_RECOGNIZE stands twice")
                match, matched, alias = self._match(), alias, ""
            elif not alias and self._alias_follows():
                self.take_word("as")
                alias = self.name("an alias").text
            else:
                matched = matched or name
                return Source(at, name, query, alias or name, timestamp, over, partition, match, matched, partitions)

    # -- MATCH_RECOGNIZE

    def _match(self) -> Match:
        at = self.advance()
        self.expect_mark("(", "after MATCH_RECOGNIZE")
        limit: Duration | None = None
        partition: tuple[Node, ...] = ()
        while self.is_word("limit", "partition"):
            if self.take_word("limit"):
                limit = self.duration()
            else:
                self.advance()
                self.expect_word("by", "after PARTITION")
                partition = self.expressions()
        if limit is None:
            self.fail("MATCH_RECOGNIZE needs LIMIT DURATION(unit, n)", at, hint="say how long a match may take")
        self.expect_word("measures", "in MATCH_RECOGNIZE")
        measures: list[Item] = []
        while not measures or self.take_mark(","):
            start, of = self.current, self.expression()
            self.expect_word("as", "after a measure")
            measures.append(Item(start, of, self.name("a name after AS").text))
        for word in ("after", "match", "skip", "to", "next", "row"):
            self.expect_word(word, "in AFTER MATCH SKIP TO NEXT ROW")
        self.expect_word("pattern", "after AFTER MATCH SKIP TO NEXT ROW")
        self.expect_mark("(", "after PATTERN")
        pattern = self._pattern()
        self.expect_mark(")", "at the end of the pattern")
        define: list[tuple[str, Node]] = []
        if self.take_word("define"):
            while not define or self.take_mark(","):
                name = self.name("a pattern variable").text
                self.expect_word("as", "after the variable")
                define.append((name, self.expression()))
        self.expect_mark(")", "at the end of MATCH_RECOGNIZE")
        return Match(at, limit, partition, tuple(measures), pattern, tuple(define))

    def _pattern(self) -> tuple[Any, ...]:
        """Alternatives of sequences of repeated parts."""
        self.depth += 1
        if self.depth > DEPTH_MAX:
            self.fail(f"a pattern is nested more than {DEPTH_MAX} deep")
        choices: list[tuple[Any, ...]] = []
        while not choices or self.take_mark("|"):
            parts: list[tuple[Any, ...]] = []
            while self.current.kind in ("word", "name") or self.is_mark("(", "."):
                parts.append(self._pattern_part())
            if not parts:
                self.fail(f"expected a pattern variable, found {self.current.text!r}")
            choices.append(("seq", tuple(parts)) if len(parts) > 1 else parts[0])
        self.depth -= 1
        return ("alt", tuple(choices)) if len(choices) > 1 else choices[0]

    def _pattern_part(self) -> tuple[Any, ...]:
        if self.take_mark("("):
            part = self._pattern()
            self.expect_mark(")", "in the pattern")
        else:
            part = ("var", self.advance().text)
        if self.is_mark("*", "+", "?") or (self.current.text == "?" and self.current.kind != "end"):
            part = ("rep", self.advance().text, part)
        return part

    def _alias_follows(self) -> bool:
        if self.is_word("as"):
            return True
        token = self.current
        if token.kind == "name":
            return True
        stop = RESERVED | {"left", "outer"}
        return token.kind == "word" and token.text.lower() not in stop

    def _count(self) -> int:
        token = self.advance()
        if token.kind != "number" or not token.text.isdigit() or not 1 <= int(token.text[:9]) <= 1024:
            self.fail("INTO needs a positive number of partitions, at most 1024", token)
        return int(token.text)

    def _joins(self) -> tuple[Join | Apply, ...]:
        joins: list[Join | Apply] = []
        while True:
            at = self.current
            if self.is_word("cross", "outer") and self.is_word("apply", steps=1):
                joins.append(self._apply())
            elif self.is_word("join") or (self.is_word("inner", "left") and self.is_word("join", "outer", steps=1)):
                left = self.is_word("left")
                while not self.take_word("join"):
                    self.advance()
                source = self._source()
                if not self.is_word("on"):
                    self.fail(f"expected ON after the joined source, found {self.current.text!r}")
                self.advance()
                joins.append(Join(at, source, left, self.expression()))
            elif self.is_word("full", "right") and self.is_word("join", "outer", steps=1):
                self.fail(f"{at.text.upper()} JOIN does not exist in this language", hint="use INNER or LEFT JOIN")
            elif self.is_word("cross") and self.is_word("join", steps=1):
                self.fail("CROSS JOIN does not exist in this language", hint="write JOIN … ON")
            elif self.is_mark(","):
                self.fail("sources cannot be listed with commas", hint="write JOIN … ON")
            else:
                return tuple(joins)

    def _apply(self) -> Apply:
        at = self.advance()
        self.advance()
        call = self.expression()
        if not isinstance(call, Call) or call.name not in ("getarrayelements", "getrecordproperties"):
            self.fail("APPLY needs GetArrayElements(...) or GetRecordProperties(...)", call.at)
        if len(call.args) != 1:
            self.fail(f"{call.at.text} takes one argument", call.at)
        self.take_word("as")
        return Apply(at, at.text.lower() == "outer", call.name, call.args[0], self.name("an alias after APPLY").text)

    # -- GROUP BY

    def _group(self) -> tuple[tuple[Node, ...], tuple[Window, ...], bool]:
        at = self.advance()
        self.expect_word("by", "after GROUP")
        keys: list[Node] = []
        windows: list[Window] = []
        stamps: list[Node] = []
        first: Token | None = None
        for node in self.expressions():
            if isinstance(node, Call) and (node.name in _WINDOWS or node.name == "windows"):
                if first:
                    self.fail("GROUP BY has two windows", node.at, hint="use Windows(…) to group by several")
                first = node.at
                windows = self._windows(node) if node.name == "windows" else [self._window(node)]
            elif isinstance(node, Call) and node.name == "system.timestamp":
                stamps.append(node)
            else:
                keys.append(node)
        if not windows and stamps:
            windows = [Window(stamps[0].at, "snapshot")]
        else:
            keys += stamps  # beside a window, System.Timestamp() is a key like any other
        if not windows:
            self._no_window(at, keys)
        return tuple(keys), tuple(windows), True

    def _no_window(self, at: Token, keys: list[Node]) -> NoReturn:
        """Say so, at a key whose name is nearly that of a window if there is one."""
        for key in keys:
            if isinstance(key, Call) and (hint := nearest(key.name, [*_WINDOWS, "windows"])):
                self.fail(f"GROUP BY needs a window, and {key.at.text!r} is none", key.at, hint=hint)
        self.fail("GROUP BY needs a window", at, hint="add TumblingWindow(second, 10), say, or System.Timestamp()")

    def _windows(self, call: Call) -> list[Window]:
        windows: list[Window] = []
        for arg in call.args:
            if isinstance(arg, Call) and arg.name == "window":
                id_arg = arg.args[0] if len(arg.args) == 2 else None
                if not isinstance(id_arg, Literal) or not isinstance(id_arg.value, str):
                    self.fail(
                        "Window needs an id and a window, as in Window('short', TumblingWindow(second, 10))", arg.at
                    )
                windows.append(self._window(arg.args[1], id_arg.value))
            else:
                windows.append(self._window(arg))
        ids = [window.id for window in windows]
        if not windows:
            self.fail("Windows() needs at least one window", call.at)
        if any(id is None for id in ids) != all(id is None for id in ids):
            self.fail("either all windows have an id or none", call.at)
        named = [id.lower() for id in ids if id is not None]
        if len(set(named)) != len(named):
            self.fail("two windows have the same id", call.at)
        return windows

    def _window(self, node: Node, id: str | None = None) -> Window:
        if isinstance(node, Call) and node.name == "system.timestamp":
            return Window(node.at, "snapshot", id=id)
        if not isinstance(node, Call) or node.name not in _WINDOWS:
            self.fail("expected a window", node.at, hint="TumblingWindow(second, 10), for example")
        kind = _WINDOWS[node.name]
        lengths = self._lengths(node, kind)
        size = lengths.get("duration", lengths.get("timeout", 0))
        hop = lengths.get("hop", lengths.get("maxduration", size))
        if kind == "hopping" and "hop" not in lengths:
            self.fail("a hopping window needs a hop", node.at, hint="HoppingWindow(second, 10, 5)")
        if kind == "session" and "maxduration" not in lengths:
            self.fail("a session window needs a maximum duration", node.at, hint="SessionWindow(second, 5, 60)")
        if node.over and kind != "session":
            self.fail(f"{node.at.text} takes no OVER", node.over.at, hint="add the key to GROUP BY")
        partition = node.over.partition if node.over else ()
        return Window(node.at, kind, size, hop, lengths.get("offset", 0), partition, id)

    _FORMS = {  # noqa: RUF012
        "tumbling": ("duration", "offset"),
        "hopping": ("duration", "hop", "offset"),
        "sliding": ("duration",),
        "session": ("timeout", "maxduration"),
    }

    def _lengths(self, call: Call, kind: str) -> dict[str, int]:
        """The lengths of both forms: `(unit, n, …)` and `(Duration(unit, n), Hop(unit, n), …)`."""
        form = self._FORMS[kind]
        named = all(isinstance(arg, Call) and arg.name in form for arg in call.args)
        lengths: dict[str, int] = {}
        if call.args and named:
            for arg in call.args:
                assert isinstance(arg, Call)
                if arg.name in lengths:
                    self.fail(f"{arg.at.text} stands twice", arg.at)
                lengths[arg.name] = self.length(arg.args, arg.at, signed=arg.name == "offset").ticks
            if form[0] not in lengths:
                self.fail(f"{call.at.text} needs {form[0].title()}(unit, n)", call.at)
            return lengths
        if len(call.args) < 2 or len(call.args) > len(form) + 2:
            self.fail(f"{call.at.text} takes a unit and {' and '.join(form)}", call.at)
        unit, numbers = call.args[0], call.args[1:]
        for what, number in zip(form, numbers, strict=False):
            if isinstance(number, Call) and number.name == what:
                lengths[what] = self.length(number.args, number.at, signed=what == "offset").ticks
            else:
                lengths[what] = self.length((unit, number), number.at, signed=what == "offset").ticks
        if len(numbers) > len(form):
            self.fail(f"{call.at.text} takes at most {len(form)} lengths", call.at)
        return lengths


def _natural_name(of: Node, index: int) -> str:
    """What an unaliased column is called."""
    if isinstance(of, Name):
        return of.parts[-1]
    if isinstance(of, Field):
        return of.name
    if isinstance(of, Call):
        return of.name.rsplit(".", 1)[-1]
    if isinstance(of, Cast):
        return "try_cast" if of.trying else "cast"
    if isinstance(of, Star):
        return "*"
    return f"Column{index + 1}"
