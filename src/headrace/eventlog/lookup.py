"""Finding stored batches in a stream's file: the head, and binary searches over sequence numbers.

Sequence numbers have no holes, and stamps and offsets only rise with them, so one search answers every question of the
form "the first batch that ...": by offset, by position, by time. About 20 reads of one short row each for a million batches.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from typing import NamedTuple

from headrace.eventlog.codec import unpack
from headrace.eventlog.contract import Positions


class Head(NamedTuple):
    """What a stream knows about itself. Tuples have one number a partition."""

    seq: int
    enqueued: int
    next: Positions
    received: Positions
    duplicates: Positions


class Place(NamedTuple):
    """A stored batch without its rows."""

    seq: int
    enqueued: int
    starts: Positions
    counts: Positions

    @property
    def ends(self) -> Positions:
        return tuple(map(int.__add__, self.starts, self.counts))


def head(connection: sqlite3.Connection) -> Head:
    seq, enqueued, *numbers = connection.execute(
        "SELECT seq, enqueued, next, received, duplicates FROM head"
    ).fetchone()
    return Head(seq, enqueued, *map(unpack, numbers))


def oldest(connection: sqlite3.Connection) -> Place | None:
    """The first batch kept."""
    row = connection.execute(f"{_PLACE} ORDER BY seq LIMIT 1").fetchone()
    return _placed(row) if row else None


def place(connection: sqlite3.Connection, seq: int) -> Place:
    return _placed(connection.execute(f"{_PLACE} WHERE seq = ?", (seq,)).fetchone())


def places(connection: sqlite3.Connection, seq: int) -> Iterator[tuple[Place, None]]:
    """The batches from `seq` on, their rows to be asked for with `data`."""
    found = connection.execute(f"{_PLACE} WHERE seq >= ? ORDER BY seq", (seq,))
    return ((_placed(row), None) for row in found)


def stored(connection: sqlite3.Connection, seq: int) -> Iterator[tuple[Place, bytes]]:
    """The batches from `seq` on, each with its rows as they are stored."""
    found = connection.execute(
        "SELECT seq, enqueued, starts, counts, data FROM batches WHERE seq >= ? ORDER BY seq", (seq,)
    )
    return ((_placed(row[:4]), row[4]) for row in found)


def data(connection: sqlite3.Connection, seq: int) -> bytes:
    """The rows of a batch as they are stored."""
    found: bytes = connection.execute("SELECT data FROM batches WHERE seq = ?", (seq,)).fetchone()[0]
    return found


def first(connection: sqlite3.Connection, last: int, condition: Callable[[Place], bool]) -> Place | None:
    """The first batch up to sequence number `last` for which a condition holds that, once true, stays true."""
    found = oldest(connection)
    if found is None or condition(found):
        return found
    low, high, found = found.seq + 1, last, None  # the answer is in low..high, or there is none
    while low <= high:
        middle = place(connection, (low + high) // 2)
        if condition(middle):
            found, high = middle, middle.seq - 1
        else:
            low = middle.seq + 1
    return found


def past(positions: Positions) -> Callable[[Place], bool]:
    """Whether a batch holds a row at or after `positions`, or an earlier one does."""
    return lambda place: any(map(int.__gt__, place.ends, positions))


def reaching(positions: Positions) -> Callable[[Place], bool]:
    """Whether nothing before `positions` comes after a batch."""
    return lambda place: all(map(int.__ge__, place.ends, positions))


_PLACE = "SELECT seq, enqueued, starts, counts FROM batches"


def _placed(row: tuple[int, int, bytes, bytes]) -> Place:
    return Place(row[0], row[1], unpack(row[2]), unpack(row[3]))
