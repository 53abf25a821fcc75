"""Time. The only module that asks the operating system for it.

Inside the platform time is int64 ticks of 100 ns since 1970-01-01T00:00:00Z (Stream Analytics' resolution, Unix origin).
"""

from __future__ import annotations

import asyncio
import heapq
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

from headrace.core.errors import UserError

TICKS_PER_S = 10_000_000
TICKS_PER_MS = 10_000
TICKS_PER_US = 10
YEAR_ONE = -621_355_968_000_000_000
"""0001-01-01T00:00:00Z in ticks: the origin that windows align to."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Clock(Protocol):
    """What a component may ask about time. Taken as an argument, so that tests own it."""

    def now(self) -> int:
        """UTC in ticks."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back."""
        ...

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> int:
        return time.time_ns() // 100

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class ManualClock:
    """A clock that moves when told to: an hour of plant time in a second of test time."""

    def __init__(self, start: int = 17_356_896_000_000_000) -> None:  # 2025-01-01T00:00:00Z
        self._start = start
        self._now = start
        self._sleepers: list[tuple[int, int, asyncio.Future[None]]] = []
        self._count = 0

    def now(self) -> int:
        return self._now

    def monotonic(self) -> float:
        return (self._now - self._start) / TICKS_PER_S

    async def sleep(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._count += 1
        heapq.heappush(self._sleepers, (self._now + int(seconds * TICKS_PER_S), self._count, future))
        await future

    def set(self, ticks: int) -> None:
        """Move to `ticks` and wake whoever slept until then."""
        self._now = max(self._now, ticks)
        while self._sleepers and self._sleepers[0][0] <= self._now:
            future = heapq.heappop(self._sleepers)[2]
            if not future.done():
                future.set_result(None)

    def advance(self, seconds: float) -> None:
        self.set(self._now + int(seconds * TICKS_PER_S))


def from_datetime(moment: datetime) -> int:
    """Ticks of an aware datetime (a naive one counts as UTC)."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    delta = moment - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * TICKS_PER_S + delta.microseconds * TICKS_PER_US


def to_datetime(ticks: int) -> datetime:
    """An aware UTC datetime; the seventh decimal is cut."""
    return _EPOCH + timedelta(microseconds=ticks // TICKS_PER_US)


def to_iso(ticks: int) -> str:
    """ISO 8601 with seven decimals and Z, as Stream Analytics prints it."""
    seconds, rest = divmod(ticks, TICKS_PER_S)
    return f"{(_EPOCH + timedelta(seconds=seconds)).isoformat()[:19]}.{rest:07d}Z"


def from_iso(text: str) -> int:
    """Ticks of ISO 8601 text, up to seven decimals, with or without an offset (none counts as UTC)."""
    head, dot, tail = text.strip().partition(".")
    try:
        if not dot:
            return from_datetime(datetime.fromisoformat(head))
        digits = len(tail) - len(tail.lstrip("0123456789"))
        fraction, zone = tail[:digits], tail[digits:]
        return from_datetime(datetime.fromisoformat(head + zone)) + int(fraction[:7].ljust(7, "0"))
    except ValueError as exc:
        raise UserError(f"{text!r} is not an ISO 8601 time", hint="write 2025-01-31T08:00:00Z") from exc
