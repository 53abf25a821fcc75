"""What the gateway turned away: counted by reason, logged without flooding.

Each reason may write a few lines in a while; the next line that may be written says how many were kept back.
"""

from __future__ import annotations

import structlog

from headrace.core.clock import Clock
from headrace.core.observe.metrics import Metrics

LINES_MAX = 10
WINDOW_S = 10.0

log = structlog.get_logger()


class Refusals:
    def __init__(self, metrics: Metrics, clock: Clock) -> None:
        self._counter = metrics.counter("gateway_refused_total", "Refused by the gateway, by reason", ("reason",))
        self._clock = clock
        self._windows: dict[str, tuple[float, int]] = {}  # reason: when its window began, lines wanted since

    def note(self, reason: str, *, detail: str = "", device: str = "", address: str = "") -> None:
        """Count one refusal. `detail` must hold no payload and no secret."""
        self._counter.labels(reason).inc()
        now = self._clock.monotonic()
        began, wanted = self._windows.get(reason, (now, 0))
        kept_back = 0
        if now - began >= WINDOW_S:
            kept_back, began, wanted = max(0, wanted - LINES_MAX), now, 0
        self._windows[reason] = (began, wanted + 1)
        if wanted < LINES_MAX:
            more = {"kept_back": kept_back} if kept_back else {}
            log.warning("gateway.refused", reason=reason, detail=detail, device=device, address=address, **more)
