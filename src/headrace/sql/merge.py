"""What the statements of a script gave in one call, joined by output, in an order that the events alone decide.

Statements into one output either keep step with one input (their rows follow its rows, those of one row the order of the
statements) or were joined by a UNION before. So results do not depend on where batches were cut, and nothing waits here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from headrace.sql.decode import Payload
from headrace.sql.output import OutputRows, Results
from headrace.sql.rows import Rows
from headrace.sql.values import Ints


class Piece(NamedTuple):
    """Rows of statements. `number` is the statement's place in the script, for each row where they differ."""

    number: int | Ints
    output: str
    data: Rows
    places: Ints | None = None  # which row of the input each was made from, where that is known already


def merged(pieces: Sequence[Piece], inputs: Mapping[str, Payload | None]) -> list[OutputRows]:
    """One piece per output. `inputs` has the rows of the input with which the statements of an output keep step."""
    by_output: dict[str, list[Piece]] = {}
    for piece in sorted(pieces, key=_first) if len(pieces) > 1 else pieces:
        by_output.setdefault(piece.output, []).append(piece)
    found: list[OutputRows] = []
    for name, same in by_output.items():
        rows = same[0].data
        if len(same) > 1:
            rows = Rows.concat([piece.data for piece in same])
            rows = rows.take(_order(same, inputs[name]))
        found.append(OutputRows(name, rows.times, rows))
    return found


def _first(piece: Piece) -> int:
    return piece.number if isinstance(piece.number, int) else int(piece.number.min())


def _order(pieces: Sequence[Piece], of: Payload | None) -> Ints:
    """By row of the input, then by statement."""
    places: list[Ints] = []
    for piece in pieces:
        if piece.places is not None:
            places.append(piece.places)
        else:
            assert of is not None
            assert piece.data.origin is not None
            places.append(piece.data.origin.places(of))
    numbers = [np.broadcast_to(np.asarray(piece.number), piece.data.rows) for piece in pieces]
    return np.lexsort((np.concatenate(numbers), np.concatenate(places)))


def side_by_side(found: Sequence[Results]) -> Results:
    """The results of timelines of their own (TIMESTAMP BY … OVER) as one: each output's rows in time order."""
    by_output: dict[str, list[Rows]] = {}
    for results in found:
        for rows in results.rows:
            by_output.setdefault(rows.output, []).append(rows.data)
    merged: list[OutputRows] = []
    for name, pieces in by_output.items():
        together = Rows.concat(pieces)
        if len(pieces) > 1:
            together = together.take(np.argsort(together.times, kind="stable"))
        merged.append(OutputRows(name, together.times, together))
    return Results(merged, [aside for results in found for aside in results.set_aside])
