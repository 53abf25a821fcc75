"""Ending tasks for sure.

Until Python 3.12 `asyncio.wait_for` swallows a cancellation that arrives in the moment its inner task ends, so one `cancel()` is
not enough for a loop that uses it, here or in a library below.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

AGAIN_S = 0.5


async def end(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks until all have ended; what they raise is dropped."""
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        done, left = await asyncio.wait(left, timeout=AGAIN_S)
        for task in done:
            if not task.cancelled():
                task.exception()
