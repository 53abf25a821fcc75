"""Limits of a hub: how much may wait, and how fast events may come."""

from __future__ import annotations

from headrace.core.clock import Clock

MESSAGE_OVERHEAD_BYTES = 65_536 + 16
"""What a PUBLISH may hold beside its body: a topic with percent-encoded properties, and its headers."""
BURST_S = 1.0


class RateLimit:
    """At most `per_s` events a second on average, bursts of one second; 0 is no limit.

    Events are never dropped for it: the caller waits, PUBACKs are withheld, and the devices slow down.
    """

    def __init__(self, per_s: int, clock: Clock) -> None:
        self._per_s = per_s
        self._clock = clock
        self._free_at = clock.monotonic() - BURST_S  # when all that was taken is paid for

    def take(self, events: int) -> float:
        """Count `events`; returns how many seconds to wait before going on."""
        if not self._per_s:
            return 0.0
        now = self._clock.monotonic()
        self._free_at = max(self._free_at, now - BURST_S) + events / self._per_s
        return max(0.0, self._free_at - now)

    @property
    def wait_s(self) -> float:
        """How long the next event would have to wait."""
        return max(0.0, self._free_at - self._clock.monotonic()) if self._per_s else 0.0
