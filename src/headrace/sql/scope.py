"""What names mean in one SELECT: its sources, and what each of them is asked for.

A source either has known columns (a step without `*`, reference data) or finds its fields at run time. `wants` gathers
the fields that expressions use, so that a payload is decoded for these alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NoReturn

from headrace.core.errors import nearest
from headrace.sql import values
from headrace.sql.decode import VIRTUAL, get_field
from headrace.sql.dialect import Token
from headrace.sql.errors import SqlError
from headrace.sql.evaluate import Eval, Frame
from headrace.sql.rows import ABSENT, either
from headrace.sql.tree import Name, Node, key
from headrace.sql.values import RECORD, Column


def fail(at: Token, message: str, *, hint: str = "", code: str = "sql.meaning") -> NoReturn:
    raise SqlError(message, line=at.line, column=at.column, text=at.text, hint=hint, code=code)


def unsupported(at: Token, what: str) -> NoReturn:
    fail(at, f"{what} is not supported yet", code="sql.unsupported")


@dataclass
class ScopeSource:
    """One source of FROM. `columns` is None where fields are only known at run time."""

    alias: str
    columns: list[str] | None
    wants: set[str] = field(default_factory=set)
    whole: bool = False  # somebody needs the event as a record

    def has(self, name: str) -> bool:
        lowered = name.lower()
        return self.columns is not None and any(column.lower() == lowered for column in self.columns)


class Scope:
    def __init__(self, sources: list[ScopeSource]) -> None:
        self.sources = sources

    def named(self, alias: str) -> int | None:
        """The position of the source with this alias."""
        lowered = alias.lower()
        return next((at for at, source in enumerate(self.sources) if source.alias.lower() == lowered), None)

    def resolve(self, name: Name) -> tuple[int | None, tuple[str, ...]]:
        """(source, path). An empty path is the whole event; source None means that several may have the name."""
        parts = name.parts
        if len(parts) == 1 and any(source.has(parts[0]) for source in self.sources):
            at = next(at for at, source in enumerate(self.sources) if source.has(parts[0]))
            return at, parts
        found = self.named(parts[0])
        if found is not None:
            source = self.sources[found]
            if source.columns is not None and len(parts) > 1 and not source.has(parts[1]):
                self._unknown(name, parts[1], source.columns, source.alias)
            return found, parts[1:]
        if len(self.sources) == 1:
            source = self.sources[0]
            if source.columns is not None and parts[0].lower() not in VIRTUAL and not source.has(parts[0]):
                self._unknown(name, parts[0], source.columns, source.alias)
            return 0, parts
        dynamic = [at for at, source in enumerate(self.sources) if source.columns is None]
        owner = next((at for at, source in enumerate(self.sources) if source.has(parts[0])), None)
        if owner is not None or len(dynamic) == 1:
            return owner if owner is not None else dynamic[0], parts
        if not dynamic:
            self._unknown(name, parts[0], [column for source in self.sources for column in source.columns or ()], "")
        return None, parts

    @staticmethod
    def _unknown(name: Name, part: str, known: list[str], alias: str) -> NoReturn:
        hint = nearest(part, known) or "known here: " + ", ".join(list(dict.fromkeys(known))[:12])
        fail(
            name.at, f"there is no column {part!r}" + (f" in {alias!r}" if alias else ""), hint=hint, code="sql.column"
        )

    def canon(self, node: Node) -> object:
        """`tree.key` with names resolved, so that `r.a` and `a` are the same column."""
        return _canon(self, key(node))

    def read(self, name: Name) -> Eval:
        """How to get the values of a name."""
        at, path = self.resolve(name)
        if at is None:
            for source in self.sources:
                source.wants.add(path[0])
            return paths(_any_source(path[0]), path[1:])
        source = self.sources[at]
        if not path:
            source.whole = True
            return _whole(at)
        source.wants.add(path[0])
        return paths(_one_source(at, path[0]), path[1:])


def _canon(scope: Scope, found: object) -> object:
    if not isinstance(found, tuple):
        return found
    if len(found) == 2 and found[0] == "Name":
        parts = found[1]
        at = scope.named(parts[0]) if len(parts) > 1 else None
        if at is not None:
            return ("Name", at, parts[1:])
        return ("Name", 0 if len(scope.sources) == 1 else None, parts)
    return tuple(_canon(scope, part) for part in found)


def _whole(at: int) -> Eval:
    """Events as records; null where an outer join found none."""

    def read(frame: Frame) -> Column:
        rows = frame.sources[at]
        return rows.as_record().where(rows.times != ABSENT)

    return read


def _one_source(at: int, name: str) -> Eval:
    return lambda frame: frame.sources[at].column(name)


def _any_source(name: str) -> Eval:
    def read(frame: Frame) -> Column:
        found = frame.sources[0].column(name)
        for source in frame.sources[1:]:
            found = either(found, source.column(name))
        return found

    return read


def paths(read: Eval, path: tuple[str, ...]) -> Eval:
    """The field of a field of what `read` gives."""
    for name in path:
        read = field_of(read, name)
    return read


def field_of(of: Eval, name: str) -> Eval:
    """The field of a record by name; null where the value is no record."""

    def read(frame: Frame) -> Column:
        column = of(frame)
        if isinstance(column, values.Struct):
            return column.field(name)
        if RECORD not in column.kinds():
            return Column(frame.rows)
        return values.from_values([get_field(record, name) for record in column.to_list()])

    return read
