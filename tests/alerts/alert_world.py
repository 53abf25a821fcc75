"""A small world for alert tests: memory stores, a clock by hand, and conditions that need no SQL."""

import re
from collections.abc import Mapping

import msgspec
import numpy as np

from headrace.alerts.channel import Notice
from headrace.alerts.service import AlertService
from headrace.core.clock import ManualClock
from headrace.core.config import AlertConfig, ChannelConfig
from headrace.core.errors import Unavailable, UserError
from headrace.core.observe.metrics import Metrics
from headrace.core.schema import event_batch
from headrace.docstore.memory import MemoryDocStore
from headrace.eventlog.memory import MemoryEventLog


class Above:
    """`field > number`, as the SQL condition answers it."""

    def __init__(self, text: str) -> None:
        found = re.fullmatch(r"(\w+) > ([\d.]+)", text)
        if not found:
            raise UserError(f"line 1, column 1: {text!r} is no condition", code="sql.syntax")
        self.field, self.limit = found[1], float(found[2])

    def evaluate(self, batch):
        bodies = [msgspec.json.decode(body) for body in batch.column("_body").to_pylist()]
        return np.array([body.get(self.field, 0) > self.limit for body in bodies], np.bool_)

    def fields(self, batch, rows):
        bodies = batch.column("_body").to_pylist()
        return [msgspec.json.decode(bodies[row]) for row in rows]


class Recorder:
    """A channel that remembers; the first `failures` sends fail."""

    def __init__(self, failures: int = 0) -> None:
        self.notices: list[Notice] = []
        self.failures = failures
        self.calls = 0

    def send(self, notice: Notice) -> None:
        self.calls += 1
        if self.calls <= self.failures:
            raise Unavailable("no line")
        self.notices.append(notice)


HOT = AlertConfig(stream="s", when="t > 90", title="{machineId} runs hot", clear_s=60.0, severity="critical")


class World:
    """Stores that outlive a service, as files outlive a process."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.log = MemoryEventLog(self.clock, partitions=2)
        self.docs = MemoryDocStore(self.clock)
        self.count = 0

    def service(
        self, rules: Mapping[str, AlertConfig] | None = None, channels: Mapping[str, ChannelConfig] | None = None
    ) -> AlertService:
        return AlertService(
            self.log,
            self.docs,
            self.clock,
            rules={"hot": HOT} if rules is None else rules,
            channels=channels or {},
            metrics=Metrics(),
            compile=Above,
        )

    async def started(self, **given) -> AlertService:
        service = self.service(**given)
        for watch in service.watches:
            await watch.restore()
        return service

    async def send(self, device: str, t: float, *, stream: str = "s", **more) -> None:
        self.count += 1
        body = msgspec.json.encode({"machineId": device, "t": t, **more})
        await self.log.append(
            stream, event_batch({"_event_id": [f"h-{self.count}"], "_device": [device], "_body": [body]})
        )

    async def announced(self) -> list[dict]:
        piece = await self.log.read_merged("alerts", (), rows_max=1000, wait_s=0)
        return [msgspec.json.decode(body) for body in piece.batch.column("_body").to_pylist()]


async def settle(service: AlertService, steps: int = 3) -> None:
    """Let every watch catch up."""
    for _ in range(steps):
        for watch in service.watches:
            await watch.step(wait_s=0)
