"""The syntax tree: what a script says, before anything is known about its meaning.

Every node carries the token it begins with, so that an error can always say where. `key` is what makes two expressions
the same one (a grouping key and its use in SELECT): positions and the case of names do not count.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from headrace.sql.dialect import Token


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    at: Token


@dataclass(frozen=True, slots=True, eq=False)
class Literal(Node):
    value: Any  # int, float, str or None


@dataclass(frozen=True, slots=True, eq=False)
class Name(Node):
    """A path of names: `a`, `source.a`, `a.b.c`."""

    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Field(Node):
    """A path after an expression in parentheses or a call."""

    of: Node
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Duration(Node):
    """`DURATION(unit, n)` and its like, in ticks."""

    ticks: int
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class OrderItem(Node):
    of: Node
    descending: bool


@dataclass(frozen=True, slots=True, eq=False)
class Over(Node):
    partition: tuple[Node, ...]
    order: tuple[OrderItem, ...]
    limit: Duration | None
    when: Node | None


@dataclass(frozen=True, slots=True, eq=False)
class Call(Node):
    """A function call. `name` is lower case and may hold a dot (`udf.rul`, `system.timestamp`); `*` is a Star argument."""

    name: str
    args: tuple[Node, ...]
    distinct: bool = False
    over: Over | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Star(Node):
    """`*`, `source.*` or `path.*`."""

    parts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Unary(Node):
    op: str  # - + ~ not
    of: Node


@dataclass(frozen=True, slots=True, eq=False)
class Binary(Node):
    op: str  # + - * / % & | ^ and or = <> < <= > >=
    left: Node
    right: Node


@dataclass(frozen=True, slots=True, eq=False)
class IsNull(Node):
    of: Node
    negated: bool


@dataclass(frozen=True, slots=True, eq=False)
class Between(Node):
    of: Node
    low: Node
    high: Node
    negated: bool


@dataclass(frozen=True, slots=True, eq=False)
class In(Node):
    of: Node
    items: tuple[Node, ...]
    negated: bool


@dataclass(frozen=True, slots=True, eq=False)
class Like(Node):
    of: Node
    pattern: Node
    negated: bool


@dataclass(frozen=True, slots=True, eq=False)
class Case(Node):
    operand: Node | None
    whens: tuple[tuple[Node, Node], ...]
    otherwise: Node | None


@dataclass(frozen=True, slots=True, eq=False)
class Cast(Node):
    of: Node
    type: str
    trying: bool


@dataclass(frozen=True, slots=True, eq=False)
class Window(Node):
    """A window of GROUP BY. Lengths in ticks; `id` only inside Windows(Window('id', ...))."""

    kind: str  # tumbling hopping sliding session snapshot
    size: int = 0
    hop: int = 0
    offset: int = 0
    partition: tuple[Node, ...] = ()
    id: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Item(Node):
    """One item of SELECT. `alias` is as written, or the name the rules give."""

    of: Node
    alias: str


@dataclass(frozen=True, slots=True, eq=False)
class Match(Node):
    """MATCH_RECOGNIZE. `pattern` is ("var", name), ("seq" or "alt", parts) or ("rep", one of * + ?, part)."""

    limit: Duration
    partition: tuple[Node, ...]
    measures: tuple[Item, ...]
    pattern: tuple[Any, ...]
    define: tuple[tuple[str, Node], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Source(Node):
    """What stands in FROM or JOIN: an input or step by name, or a derived table."""

    name: str
    query: Query | None
    alias: str
    timestamp: Node | None
    over: tuple[Node, ...]
    partition: tuple[Node, ...]
    match: Match | None = None
    matched: str = ""  # what the events are called inside MATCH_RECOGNIZE and before
    partitions: int = 0  # PARTITION BY … INTO n; 0 where it does not say


@dataclass(frozen=True, slots=True, eq=False)
class Join(Node):
    source: Source
    left: bool
    on: Node


@dataclass(frozen=True, slots=True, eq=False)
class Apply(Node):
    outer: bool
    function: str  # getarrayelements, getrecordproperties
    of: Node
    alias: str


@dataclass(frozen=True, slots=True, eq=False)
class Select(Node):
    items: tuple[Item, ...]
    into: str | None
    source: Source
    joins: tuple[Join | Apply, ...]
    where: Node | None
    group: tuple[Node, ...]
    windows: tuple[Window, ...]
    grouped: bool
    having: Node | None


@dataclass(frozen=True, slots=True, eq=False)
class Query(Node):
    """One SELECT or several joined by UNION."""

    selects: tuple[Select, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Step(Node):
    name: str
    query: Query


@dataclass(frozen=True, slots=True, eq=False)
class Table(Node):
    """CREATE TABLE: the declared payload of an input."""

    name: str
    columns: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Script(Node):
    tables: tuple[Table, ...]
    steps: tuple[Step, ...]
    queries: tuple[Query, ...]


def key(value: Any) -> Any:
    """Equal for expressions that mean the same text: positions and the case of names and functions are left out."""
    if isinstance(value, Name):
        return ("Name", tuple(part.lower() for part in value.parts))
    if isinstance(value, Literal):
        return ("Literal", type(value.value).__name__, value.value)
    if isinstance(value, Node):
        fields = [field.name for field in dataclasses.fields(value) if field.name not in ("at", "text")]
        return (type(value).__name__, *(key(getattr(value, name)) for name in fields))
    if isinstance(value, tuple):
        return tuple(key(part) for part in value)
    return value


def children(node: Node) -> list[Node]:
    """The nodes directly below."""
    found: list[Node] = []

    def gather(value: Any) -> None:
        if isinstance(value, Node):
            found.append(value)
        elif isinstance(value, tuple) and not isinstance(value, Token):
            for part in value:
                gather(part)

    for field in dataclasses.fields(node):
        if field.name != "at":
            gather(getattr(node, field.name))
    return found


def walk(node: Node) -> list[Node]:
    """The node and all below it, outer first."""
    found = [node]
    for child in children(node):
        found += walk(child)
    return found
