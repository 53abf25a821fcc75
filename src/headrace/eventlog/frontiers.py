"""What readers at a position were last told about time.

Positions do not move when a tick comes, so they cannot say whether their holder has heard of it. Without this memory a
reader at the end of a stream would either spin (told the same tick on every call) or hear of a tick one wait late.
"""

from __future__ import annotations

from collections import OrderedDict

from headrace.eventlog.contract import Positions, Slice

KEPT = 256


class Frontiers:
    """The frontier last returned with each of the latest positions. Forgetting one costs its reader one empty slice."""

    def __init__(self) -> None:
        self._told: OrderedDict[tuple[str, Positions], int] = OrderedDict()

    def known(self, stream: str, positions: Positions) -> int:
        """Ticks; 0 when nobody was told."""
        return self._told.get((stream, positions), 0)

    def told(self, stream: str, piece: Slice) -> Slice:
        """Remember a slice that is about to be returned."""
        key = (stream, piece.positions)
        self._told[key] = max(piece.frontier, self._told.get(key, 0))
        self._told.move_to_end(key)
        if len(self._told) > KEPT:
            self._told.popitem(last=False)
        return piece
