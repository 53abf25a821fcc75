"""Limits of a hub: how fast its devices and services may go, and what becomes of those who go faster.

Telemetry is shaped: what came is taken, and its acknowledgement waits until it is paid for. Everything else is asked for: it is
let through or refused at once, with the limit's name and the seconds after which it will be let through.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

from headrace.core.clock import Clock
from headrace.core.config import LimitsConfig
from headrace.gateway.limits_throttled import Throttled

MESSAGE_OVERHEAD_BYTES = 65_536 + 16
"""What a PUBLISH may hold beside its body: a topic with percent-encoded properties, and its headers."""
BURST_S = 1.0
STEP_S = 0.25
BUCKETS_MAX = 50_000
"""Devices above this are looked through for those that have paid; who is in debt is never forgotten."""

Operation: TypeAlias = Literal[
    "messages", "bytes", "connects", "twin_reads", "twin_updates", "methods", "c2d_sends", "registry", "queries"
]
OPERATIONS: tuple[Operation, ...] = (
    "messages",
    "bytes",
    "connects",
    "twin_reads",
    "twin_updates",
    "methods",
    "c2d_sends",
    "registry",
    "queries",
)
TELEMETRY: tuple[Operation, Operation] = ("messages", "bytes")
HUB = ""
"""Who is throttled when the hub as a whole is at its limit."""


class RateLimit:
    """At most `per_s` events and `bytes_per_s` bytes a second on average, bursts of one second; 0 is no limit.

    Events are never dropped for it: the caller waits, PUBACKs are withheld, and the devices slow down. `on_wait` is told the
    name of the limit, how many events must wait, and for how many seconds.
    """

    def __init__(
        self,
        per_s: float,
        clock: Clock,
        *,
        bytes_per_s: float = 0.0,
        on_wait: Callable[[str, int, float], None] | None = None,
    ) -> None:
        self.per_s = per_s
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._on_wait = on_wait
        self._free_at = self._bytes_free_at = clock.monotonic() - BURST_S  # when all that was taken is paid for

    def take(self, events: int, size_bytes: int = 0) -> float:
        """Count events and bytes; returns how many seconds to wait before going on."""
        if not (self.per_s or self._bytes_per_s):
            return 0.0
        now = self._clock.monotonic()
        if self.per_s:
            self._free_at = max(self._free_at, now - BURST_S) + events / self.per_s
        if self._bytes_per_s:
            self._bytes_free_at = max(self._bytes_free_at, now - BURST_S) + size_bytes / self._bytes_per_s
        wait_s = max(0.0, self._free_at - now, self._bytes_free_at - now)
        if wait_s and self._on_wait is not None:
            self._on_wait("messages_per_s" if self._free_at >= self._bytes_free_at else "bytes_per_s", events, wait_s)
        return wait_s

    @property
    def wait_s(self) -> float:
        """How long the next event would have to wait."""
        if not (self.per_s or self._bytes_per_s):
            return 0.0
        return max(0.0, max(self._free_at, self._bytes_free_at) - self._clock.monotonic())


class Over(NamedTuple):
    """What stands in the way: the key of [limits], its value, and after how long to try again."""

    limit: str
    per_s: float
    retry_s: float

    def __str__(self) -> str:
        whose = "this device" if self.limit.startswith("device_") else "this hub"
        return (
            f"{whose} may not have more {self.limit.removeprefix('device_')}: [limits] {self.limit} is {self.per_s:g}"
        )

    @property
    def retry_after(self) -> str:
        """For the header of that name: whole seconds, one at least."""
        return str(max(1, math.ceil(self.retry_s)))


class Limits:
    """What one gateway process allows. Costs one dictionary look-up where a limit is set, nothing where none is."""

    def __init__(
        self, config: LimitsConfig, clock: Clock, throttled: Throttled, *, messages_per_s: float = 0.0
    ) -> None:
        self._clock = clock
        self.throttled = throttled
        self._paid: dict[tuple[str, str], float] = {}  # (limit, device): when all that was taken is paid for
        self._sweep_at = BUCKETS_MAX
        self._hub: dict[Operation, float] = {name: getattr(config, f"{name}_per_s") for name in OPERATIONS}
        self._device: dict[Operation, float] = {
            name: getattr(config, f"device_{name}_per_s", 0.0) for name in OPERATIONS
        }
        self.shapes = bool(self._device["messages"] or self._device["bytes"])
        """Whether the telemetry of single devices is limited."""
        self.telemetry = RateLimit(
            config.messages_per_s or messages_per_s,
            clock,
            bytes_per_s=config.bytes_per_s,
            on_wait=lambda limit, events, wait_s: throttled.note(HUB, limit, events, wait_s),
        )

    def ask(self, operation: Operation, device: str) -> Over | None:
        """Take one operation, for the device and for the hub; None: it may go on. What is refused is counted and costs nothing."""
        mine, all_ = self._device[operation], self._hub[operation]
        if not mine and not all_:
            return None
        now = self._clock.monotonic()
        asked = [(f"device_{operation}_per_s", device, mine)] if mine and device else []
        asked += [(f"{operation}_per_s", HUB, all_)] if all_ else []
        for limit, whose, per_s in asked:
            if (wait_s := self._wait_s(limit, whose, per_s, now)) > 0:
                self.throttled.note(device or HUB, limit, 1, wait_s)
                return Over(limit, per_s, wait_s)
        for limit, whose, per_s in asked:
            self._take(limit, whose, 1, per_s, now)
        return None

    def charge(self, device: str, messages: int, size_bytes: int) -> float:
        """Count telemetry that came; for how many seconds it has to wait."""
        if not self.shapes:
            return 0.0
        now, waits = self._clock.monotonic(), [(0.0, "")]
        for operation, amount in zip(TELEMETRY, (messages, size_bytes), strict=True):
            if per_s := self._device[operation]:
                limit = f"device_{operation}_per_s"
                waits.append((self._take(limit, device, amount, per_s, now), limit))
        wait_s, limit = max(waits)
        if wait_s > 0:
            self.throttled.note(device, limit, messages, wait_s)
        return max(0.0, wait_s)

    def step(self, messages: int, size_bytes: int) -> int:
        """How many messages like these the limits of a device allow in STEP_S: what is acknowledged together."""
        steps = [messages]
        if per_s := self._device["messages"]:
            steps.append(int(per_s * STEP_S))
        if per_s := self._device["bytes"]:
            steps.append(int(per_s * STEP_S * messages / max(1, size_bytes)))
        return max(1, min(steps))

    def telemetry_over(self, device: str, *, patience_s: float) -> Over | None:
        """What would keep a message of the device waiting longer than `patience_s`; for doors that rather refuse it."""
        if self.telemetry.wait_s > patience_s:
            return Over("messages_per_s", self.telemetry.per_s, self.telemetry.wait_s)
        now = self._clock.monotonic()
        for operation in TELEMETRY:
            limit, per_s = f"device_{operation}_per_s", self._device[operation]
            if per_s and (wait_s := self._paid.get((limit, device), now) - now) > patience_s:
                self.throttled.note(device, limit, 1, wait_s)
                return Over(limit, per_s, wait_s)
        return None

    def _wait_s(self, limit: str, device: str, per_s: float, now: float) -> float:
        """Until when one more would have to wait."""
        burst_s = max(BURST_S, 1 / per_s)
        paid = max(self._paid.get((limit, device), -math.inf), now - burst_s)
        wait_s = paid + 1 / per_s - now
        return wait_s if wait_s > 1e-9 else 0.0

    def _take(self, limit: str, device: str, amount: float, per_s: float, now: float) -> float:
        burst_s = max(BURST_S, 1 / per_s)
        paid = self._paid[limit, device] = (
            max(self._paid.get((limit, device), -math.inf), now - burst_s) + amount / per_s
        )
        if len(self._paid) > self._sweep_at:
            self._paid = {key: at for key, at in self._paid.items() if at > now - 10 * BURST_S}
            self._sweep_at = max(BUCKETS_MAX, 2 * len(self._paid))
        return paid - now
