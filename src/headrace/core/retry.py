"""Retries with growing, jittered delays and a bound."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from headrace.core.clock import Clock
from headrace.core.errors import Unavailable

T = TypeVar("T")


async def retry(
    call: Callable[[], Awaitable[T]],
    *,
    clock: Clock,
    rng: random.Random,
    tries_max: int = 8,
    delay_s: float = 0.05,
    delay_max_s: float = 5.0,
    on_retry: Callable[[int, Unavailable], None] | None = None,
) -> T:
    """Await `call` until it answers; on `Unavailable` wait (delay doubling, full jitter) and try again, `tries_max` times."""
    for attempt in range(1, tries_max):
        try:
            return await call()
        except Unavailable as exc:
            if on_retry is not None:
                on_retry(attempt, exc)
            await clock.sleep(rng.uniform(0.5, 1.0) * min(delay_max_s, delay_s * 2 ** min(attempt - 1, 60)))
    return await call()
