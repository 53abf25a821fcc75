"""Shaping: what a device sends above its limit waits, in order, and is acknowledged later; none of it is refused or dropped.

What waits is bounded for each connection: above that the connection is not read, and the device's own send window fills.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from headrace.core.clock import Clock
from headrace.gateway.ingress import Piece
from headrace.gateway.limits import Limits

WAITING_ROWS_MAX = 1000
WAITING_BYTES_MAX = 1_048_576
HOLD = "throttled"


class Shaper:
    """The telemetry of one connection. `release` hands a piece on, `spawn` owns the task that does it in time; `hold` and
    `go_on` stop and resume reading."""

    def __init__(
        self,
        limits: Limits,
        device: str,
        clock: Clock,
        *,
        release: Callable[[Piece], None],
        hold: Callable[[str], None],
        go_on: Callable[[str], None],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._limits = limits
        self._device = device
        self._clock = clock
        self._release = release
        self._hold = hold
        self._go_on = go_on
        self._spawn = spawn
        self._waiting: deque[tuple[float, Piece]] = deque()  # when each is paid for, monotonic seconds
        self._rows = self._bytes = 0
        self._running = False

    @property
    def waiting_rows(self) -> int:
        return self._rows

    def add(self, piece: Piece) -> None:
        """Take a piece; on at once when the limit allows it and nothing waits."""
        rows = len(piece.frames)
        step = self._limits.step(rows, piece.size_bytes)
        if step >= rows:
            self._add(piece)
        else:
            each_bytes = piece.size_bytes // rows
            for at in range(0, rows, step):
                frames = piece.frames[at : at + step]
                self._add(piece._replace(frames=frames, size_bytes=each_bytes * len(frames)))
        if self._rows >= WAITING_ROWS_MAX or self._bytes >= WAITING_BYTES_MAX:
            self._hold(HOLD)

    def flush(self) -> None:
        """The connection is gone: hand on what waits. It is paid for by whoever connects next as this device."""
        while self._waiting:
            self._next()

    def _add(self, piece: Piece) -> None:
        wait_s = self._limits.charge(self._device, len(piece.frames), piece.size_bytes)
        if wait_s <= 0 and not self._waiting:
            self._release(piece)
            return
        self._waiting.append((self._clock.monotonic() + wait_s, piece))
        self._rows += len(piece.frames)
        self._bytes += piece.size_bytes
        if not self._running:
            self._running = True
            self._spawn(self._run())

    async def _run(self) -> None:
        try:
            while self._waiting:
                wait_s = self._waiting[0][0] - self._clock.monotonic()
                if wait_s > 0:
                    await self._clock.sleep(wait_s)
                while self._waiting and self._waiting[0][0] <= self._clock.monotonic() + 1e-6:
                    self._next()
                if self._rows <= WAITING_ROWS_MAX // 2 and self._bytes <= WAITING_BYTES_MAX // 2:
                    self._go_on(HOLD)
        finally:
            self._running = False

    def _next(self) -> None:
        _, piece = self._waiting.popleft()
        self._rows -= len(piece.frames)
        self._bytes -= piece.size_bytes
        self._release(piece)
