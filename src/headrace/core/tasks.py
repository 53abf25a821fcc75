"""Stopping without leaving work half done."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def finish(work: Coroutine[Any, Any, T], *, grace_s: float = 10.0) -> T:
    """Await `work`; when cancelled meanwhile, still give it `grace_s` to end by itself, then cancel it too."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task}, timeout=grace_s)
        if not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=grace_s)
        elif not task.cancelled():
            task.exception()  # seen: there is nobody left to tell while stopping
        raise
