"""Prometheus metrics, on a registry that is handed in, so that tests and parts do not share counters."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """Makes each metric once per process; names get the prefix `headrace_`."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self._made: dict[str, Counter | Gauge | Histogram] = {}

    def counter(self, name: str, about: str, labels: tuple[str, ...] = ()) -> Counter:
        made = self._made.get(name) or Counter(f"headrace_{name}", about, labels, registry=self.registry)
        assert isinstance(made, Counter)
        self._made[name] = made
        return made

    def gauge(self, name: str, about: str, labels: tuple[str, ...] = ()) -> Gauge:
        made = self._made.get(name) or Gauge(f"headrace_{name}", about, labels, registry=self.registry)
        assert isinstance(made, Gauge)
        self._made[name] = made
        return made

    def histogram(self, name: str, about: str, labels: tuple[str, ...] = ()) -> Histogram:
        made = self._made.get(name) or Histogram(
            f"headrace_{name}", about, labels, registry=self.registry, buckets=SECONDS
        )
        assert isinstance(made, Histogram)
        self._made[name] = made
        return made

    def expose(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self.registry)
