"""What readers at the end of a stream were last told: how far time has come, and that there is nothing.

Positions do not move when a tick comes, so they cannot say whether their holder has heard of it. Without this memory a
reader at the end of a stream would either spin (told the same tick on every call) or hear of a tick one wait late.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from headrace.eventlog.contract import Positions, Slice

KEPT = 256
LOOK_S = 5.0
"""However still a stream is, its file is looked at this often: wake-ups may be lost where a folder is shared oddly."""


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


class Idle:
    """Empty answers that hold as long as nobody touches their stream, so that an idle reader need not open its file."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, tuple[int, float, Slice]] = OrderedDict()

    def recall(self, asked: Hashable, turn: int, now: float) -> Slice | None:
        """The empty answer to `asked`, if the stream has not been touched since and it is not older than LOOK_S."""
        known = self._kept.get(asked)
        return known[2] if known and known[0] == turn and now - known[1] < LOOK_S else None

    def keep(self, asked: Hashable, turn: int, now: float, piece: Slice) -> None:
        """Remember an empty answer; `turn` was taken before looking, `now` is in monotonic seconds."""
        self._kept[asked] = turn, now, piece
        self._kept.move_to_end(asked)
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
