"""A plain, one-value-at-a-time reading of the rules that the vectorised detectors must agree with."""

import math
from dataclasses import dataclass, field


@dataclass
class Reference:
    """SQL specification section 10, one key, one event a call, math.erf."""

    history: int
    duration: int
    confidence: float
    mode: str
    past: list[tuple[int, float]] = field(default_factory=list)
    last: tuple[int, float] | None = None
    observed: int = 0

    def push(self, time: int, value: float) -> tuple[int, float]:
        if self.last is not None:
            spacing = self.duration / self.history
            missing = math.ceil((time - self.last[0]) / spacing - 1.5)
            for n in range(1, min(max(missing, 0), self.history) + 1):
                self.past.append((self.last[0] + n * self.duration // self.history, self.last[1]))
        self.past = [(t, v) for t, v in self.past if time - t < self.duration][-self.history :]
        if not self.past:
            self.observed = time
        p = self.tail(value)
        p = {"spikes": p, "dips": 1 - p, "spikesanddips": min(p, 1 - p)}[self.mode]
        p = min(max(p, 1e-8), 1 - 1e-8)
        count = len(self.past)
        ready = count + 1 >= self.history or (time - self.observed >= self.duration and count >= 1)
        self.past.append((time, value))
        self.last = (time, value)
        return int(ready and p <= max(1 - self.confidence / 100, 1e-8)), p

    def tail(self, value: float) -> float:
        n = len(self.past)
        if n == 0:
            return 0.5
        values = [v for _, v in self.past]
        mean = math.fsum(values) / n
        width = 1.0 if n == 1 else math.sqrt(math.fsum((v - mean) ** 2 for v in values) / n)
        width = max(width, 1e-6 / math.sqrt(2))
        return 0.5 - math.fsum(math.erf((value - v) / (width * math.sqrt(2))) for v in values) / (2 * n)
