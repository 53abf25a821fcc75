"""Expressions as text, for EXPLAIN and messages: names as written, functions in capitals, strings quoted."""

from __future__ import annotations

import re
from typing import Any

from headrace.sql import tree
from headrace.sql.units import TICKS

_PLAIN = re.compile(r"[A-Za-z_]\w*")


def show(node: tree.Node) -> str:
    """One line of SQL for an expression or a window."""
    match node:
        case tree.Literal(value=value):
            return (
                "NULL"
                if value is None
                else "'" + value.replace("'", "''") + "'"
                if isinstance(value, str)
                else repr(value)
            )
        case tree.Name(parts=parts):
            return ".".join(part if _PLAIN.fullmatch(part) else f"[{part}]" for part in parts)
        case tree.Star(parts=parts):
            return ".".join([*parts, "*"])
        case tree.Field(of=of, name=name):
            return f"({show(of)}).{name}" if not isinstance(of, tree.Call) else f"{show(of)}.{name}"
        case tree.Unary(op=op, of=of):
            return f"NOT {show(of)}" if op == "not" else f"{op}{show(of)}"
        case tree.Binary(op=op, left=left, right=right):
            return f"({show(left)} {op.upper()} {show(right)})"
        case tree.IsNull(of=of, negated=negated):
            return f"{show(of)} IS {'NOT ' if negated else ''}NULL"
        case tree.Between(of=of, low=low, high=high, negated=negated):
            return f"{show(of)} {'NOT ' if negated else ''}BETWEEN {show(low)} AND {show(high)}"
        case tree.In(of=of, items=items, negated=negated):
            return f"{show(of)} {'NOT ' if negated else ''}IN ({', '.join(map(show, items))})"
        case tree.Like(of=of, pattern=pattern, negated=negated):
            return f"{show(of)} {'NOT ' if negated else ''}LIKE {show(pattern)}"
        case tree.Cast(of=of, type=kind, trying=trying):
            return f"{'TRY_' if trying else ''}CAST({show(of)} AS {kind})"
        case _:
            return _show_more(node)


def _show_more(node: tree.Node) -> str:
    match node:
        case tree.Case(operand=operand, whens=whens, otherwise=otherwise):
            head = f" {show(operand)}" if operand else ""
            body = "".join(f" WHEN {show(test)} THEN {show(result)}" for test, result in whens)
            return f"CASE{head}{body}{f' ELSE {show(otherwise)}' if otherwise else ''} END"
        case tree.Call(at=at, name=name, args=args, distinct=distinct, over=over):
            written = at.text if "." not in name else name
            text = f"{written}({'DISTINCT ' if distinct else ''}{', '.join(map(show, args))})"
            return text if over is None else f"{text} OVER ({_over(over)})"
        case tree.Window():
            return _window(node)
        case _:
            return node.at.text


def _over(over: tree.Over) -> str:
    parts: list[str] = []
    if over.partition:
        parts.append("PARTITION BY " + ", ".join(map(show, over.partition)))
    if over.order:
        parts.append(
            "ORDER BY " + ", ".join(show(item.of) + (" DESC" if item.descending else "") for item in over.order)
        )
    if over.limit:
        parts.append(f"within {over.limit.text}")
    if over.when:
        parts.append("WHEN " + show(over.when))
    return " ".join(parts)


def _window(window: tree.Window) -> str:
    text = window.kind
    if window.size:
        text += f" {length(window.size)}"
    if window.kind == "hopping":
        text += f" every {length(window.hop)}"
    if window.offset:
        text += f" offset {length(window.offset)}"
    return text if window.id is None else f"{window.id!r} {text}"


def show_pattern(pattern: tuple[Any, ...]) -> str:
    """A pattern of MATCH_RECOGNIZE."""
    match pattern:
        case ("seq", parts):
            return " ".join(map(show_pattern, parts))
        case ("alt", parts):
            return "(" + " | ".join(map(show_pattern, parts)) + ")"
        case ("rep", op, ("var", name)):
            return f"{name}{op}"
        case ("rep", op, inner):
            return f"({show_pattern(inner)}){op}"
    return str(pattern[1])


def length(ticks: int) -> str:
    """`10 seconds`, in the largest unit that divides it."""
    for unit, size in TICKS.items():
        if ticks % size == 0:
            return f"{ticks // size} {unit}" + ("" if ticks == size else "s")
    return f"{ticks} ticks"
