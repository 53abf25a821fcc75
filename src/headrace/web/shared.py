"""An expensive report, made once for all who ask at about the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from headrace.core.clock import Clock
from headrace.web.services import Report


class Shared:
    """Answers with a report at most `age_s` old. Whoever asks while one is being made waits for that one."""

    def __init__(self, report: Report, clock: Clock, *, age_s: float) -> None:
        self._report = report
        self._clock = clock
        self._age_s = age_s
        self._made: Mapping[str, Any] | None = None
        self._at = 0.0
        self._making = asyncio.Lock()

    async def get(self) -> Mapping[str, Any]:
        async with self._making:
            if self._made is None or self._clock.monotonic() - self._at >= self._age_s:
                self._made = await self._report()
                self._at = self._clock.monotonic()
            return self._made
