"""Rows on their way through a plan: timestamps, named columns, and what `*` brought along undecoded.

A row's columns are `items` in the order of SELECT: a named column, or a *spread* (all fields of something that is not
known before run time: a payload, a record column, the rows of a step). Looking a name up goes from left to right, since
the left one of two equal names wins; the exact spelling is preferred to one that differs in case.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from headrace.sql import values
from headrace.sql.decode import Payload, get_field
from headrace.sql.values import RECORD, Column, Ints

ABSENT = -(1 << 63)
"""The time of a row that an outer join did not find."""


class Spread(Protocol):
    """Fields by name, of as many rows as there are."""

    def column(self, name: str) -> Column: ...

    def records(self) -> list[dict[str, Any]]: ...

    def take(self, at: Ints) -> Any: ...


class Named(NamedTuple):
    name: str
    column: Column


class Records:
    """A spread over records held as dicts (or None)."""

    def __init__(self, found: list[Any]) -> None:
        self.found = found

    @property
    def rows(self) -> int:
        return len(self.found)

    def column(self, name: str) -> Column:
        return values.from_values([get_field(record, name) for record in self.found])

    def records(self) -> list[dict[str, Any]]:
        return [record if type(record) is dict else {} for record in self.found]

    def take(self, at: Ints) -> Records:
        return Records([self.found[row] if row >= 0 else None for row in at.tolist()])


class Rows:
    """`rows` rows. `origin` are the events they were made from one to one, where that is known (for setting aside)."""

    __slots__ = ("_names", "items", "origin", "rows", "times")

    def __init__(self, times: Ints, items: Sequence[Named | Spread], origin: Payload | None = None) -> None:
        self.times = times
        self.rows = len(times)
        self.items = tuple(items)
        self.origin = origin
        self._names: dict[str, Column] = {}

    @property
    def names(self) -> list[str] | None:
        """The column names, or None where a spread makes them vary."""
        return [item.name for item in self.items if isinstance(item, Named)] if self.known else None

    @property
    def known(self) -> bool:
        return all(isinstance(item, Named) for item in self.items)

    def column(self, name: str) -> Column:
        found = self._names.get(name)
        if found is None:
            found = self._names[name] = self._find(name)
        return found

    def _find(self, name: str) -> Column:
        found: Column | None = None
        for item in self.items:
            if isinstance(item, Named):
                if item.name == name:
                    return item.column if found is None else either(found, item.column)
            else:
                column = item.column(name)
                found = column if found is None else either(found, column)
        lowered = name.lower()
        for item in self.items:
            if isinstance(item, Named) and item.name.lower() == lowered:
                return item.column if found is None else either(found, item.column)
        return Column(self.rows) if found is None else found

    def has(self, name: str) -> bool:
        """Whether a named column has this name, ignoring case."""
        lowered = name.lower()
        return any(isinstance(item, Named) and item.name.lower() == lowered for item in self.items)

    def records(self) -> list[dict[str, Any]]:
        """Each row as a record, columns in order, the left one of equal names."""
        if len(self.items) == 1 and not isinstance(self.items[0], Named):
            return self.items[0].records()
        rest = self.items
        if rest and not isinstance(rest[0], Named):
            out, rest = [dict(record) for record in rest[0].records()], rest[1:]
        else:
            out = [{} for _ in range(self.rows)]
        for item in rest:
            if isinstance(item, Named):
                for record, value in zip(out, item.column.to_list(), strict=True):
                    record.setdefault(item.name, value)
            else:
                for record, extra in zip(out, item.records(), strict=True):
                    for key, value in extra.items():
                        record.setdefault(key, value)
        return out

    def as_record(self) -> Column:
        return values.of(RECORD, values.typed(RECORD, self.records()))

    def take(self, at: Ints) -> Rows:
        """Rows by position; -1 gives a row of nulls, whose time is ABSENT."""
        times = np.where(at < 0, ABSENT, self.times[at]) if self.rows else np.full(len(at), ABSENT)
        items: list[Named | Spread] = []
        nulls = bool((at < 0).any())
        for item in self.items:
            if isinstance(item, Named):
                items.append(Named(item.name, item.column.take(at) if self.rows else Column(len(at))))
            else:
                items.append(Records(item.records()).take(at) if nulls else item.take(at))
        return Rows(times, items, self.origin.take(at) if self.origin is not None and not nulls else None)

    def settle(self) -> Rows:
        """Hold on to nothing but these rows."""
        origin = self.origin.settle() if self.origin is not None else None
        items: list[Named | Spread] = []
        for item in self.items:
            if isinstance(item, Payload):
                items.append(origin if item is self.origin and origin is not None else item.settle())
            else:
                items.append(item)
        return Rows(self.times, items, origin)

    @staticmethod
    def concat(pieces: Sequence[Rows]) -> Rows:
        if len(pieces) == 1:
            return pieces[0]
        times = np.concatenate([piece.times for piece in pieces])
        origins = [piece.origin for piece in pieces]
        origin = Payload.concat([one for one in origins if one is not None]) if None not in origins else None
        shapes = {tuple(_shape(item) for item in piece.items) for piece in pieces}
        if len(shapes) > 1:
            return Rows(times, [Records([record for piece in pieces for record in piece.records()])], origin)
        items: list[Named | Spread] = []
        for column in zip(*(piece.items for piece in pieces), strict=True):
            items.append(_concat_items(column))
        return Rows(times, items, origin)


class Joined(Rows):
    """Rows that several sources stand behind, side by side: what a join hands to the SELECT around it."""

    __slots__ = ("sources",)

    def __init__(self, times: Ints, sources: Sequence[Rows]) -> None:
        super().__init__(times, [])
        self.sources = list(sources)

    def pick(self, at: Ints) -> Joined:
        return Joined(self.times[at], [source.take(at) for source in self.sources])

    def settled(self) -> Joined:
        return Joined(self.times, [source.settle() for source in self.sources])

    @staticmethod
    def join(pieces: Sequence[Joined]) -> Joined:
        """One after the other."""
        times = np.concatenate([piece.times for piece in pieces])
        return Joined(
            times, [Rows.concat(list(same)) for same in zip(*(piece.sources for piece in pieces), strict=True)]
        )


def _shape(item: Named | Spread) -> str:
    if isinstance(item, Named):
        return f"={item.name}"
    return "payload" if isinstance(item, Payload) else "records"


def _concat_items(items: Sequence[Any]) -> Named | Spread:
    first = items[0]
    if isinstance(first, Named):
        return Named(first.name, values.concat([item.column for item in items]))
    if all(isinstance(item, Payload) for item in items):
        return Payload.concat(items)
    return Records([record for item in items for record in item.records()])


def either(first: Column, second: Column) -> Column:
    """The first column, the second where the first is null."""
    present = first.valid()
    if present.all():
        return first
    return values.merge(first.rows, [(present, first), (~present, second)])
