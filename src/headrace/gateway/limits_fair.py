"""Taking turns: what waits for the hub's limit is taken from each sender in the same measure, and from each in its order.

Without this the limit is shared by who sends most: a device with one message would wait behind all that others have in flight.
What waits is bounded for each sender, by a share that is smaller the more of them wait; above it the sender is not read.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.gateway.ingress import Piece, Sender

SHARE_ROWS_MIN, SHARE_ROWS_MAX = 20, 1000
SHARE_BYTES_MAX = 1_048_576


class _Line:
    """What one sender has waiting."""

    __slots__ = ("pieces", "rows", "size_bytes")

    def __init__(self) -> None:
        self.pieces: deque[Piece] = deque()
        self.rows = self.size_bytes = 0

    def add(self, piece: Piece) -> None:
        self.pieces.append(piece)
        self.rows += len(piece.frames)
        self.size_bytes += piece.size_bytes

    def take(self, rows_max: int) -> list[Piece]:
        """The oldest messages; a piece is cut where it holds more."""
        taken: list[Piece] = []
        left = rows_max
        while self.pieces and left:
            piece = self.pieces.popleft()
            rows = len(piece.frames)
            if rows > left:
                size_bytes = piece.size_bytes * left // rows
                rest = piece._replace(frames=piece.frames[left:], size_bytes=piece.size_bytes - size_bytes)
                piece, rows = piece._replace(frames=piece.frames[:left], size_bytes=size_bytes), left
                self.pieces.appendleft(rest)
            taken.append(piece)
            left -= rows
            self.rows -= rows
            self.size_bytes -= piece.size_bytes
        return taken


class FairQueue:
    """Pieces by sender, in turns. `rows_max` is how many may wait in all; it is divided among those who wait, not enforced."""

    def __init__(self, rows_max: int) -> None:
        self._rows_max = rows_max
        self._lines: dict[Sender | None, _Line] = {}  # in the order of their turns

    def __bool__(self) -> bool:
        return bool(self._lines)

    def append(self, piece: Piece) -> None:
        line = self._lines.get(piece.sender)
        if line is None:
            line = self._lines[piece.sender] = _Line()
        line.add(piece)

    def take(self, rows_max: int) -> list[Piece]:
        """Up to `rows_max` messages, as many of each sender as of any other; who got some goes to the end of the line."""
        taken: list[Piece] = []
        left = rows_max
        while self._lines and left > 0:
            each = max(1, left // len(self._lines))
            for _ in range(min(len(self._lines), left)):
                sender = next(iter(self._lines))
                line = self._lines.pop(sender)
                before = line.rows
                taken += line.take(min(each, left))
                left -= before - line.rows
                if line.pieces:
                    self._lines[sender] = line
                if left <= 0:
                    break
        return taken

    def crowded(self, sender: Sender, share: float = 1.0) -> bool:
        """Whether a sender has more waiting than its share, or that part of it."""
        line = self._lines.get(sender)
        if line is None:
            return False
        rows = min(SHARE_ROWS_MAX, max(SHARE_ROWS_MIN, self._rows_max // len(self._lines)))
        return line.rows > share * rows or line.size_bytes > share * SHARE_BYTES_MAX

    def waits(self, sender: Sender) -> bool:
        return sender in self._lines
