"""A log and a lake with a projection between them that the test moves by hand."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headrace.core.clock import TICKS_PER_S, ManualClock, SystemClock
from headrace.core.errors import NotFound
from headrace.core.schema import event_batch
from headrace.eventlog.contract import Positions
from headrace.eventlog.memory import MemoryEventLog
from headrace.history.query import HistoryQuery
from headrace.lake.delta import DeltaLake
from headrace.lake.layout import table_of
from headrace.wire.payload import flatten


class Plant:
    """Sends events a second apart, and projects the log to the lake as far as told."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.start = self.clock.now()
        self.log = MemoryEventLog(self.clock, partitions=2)
        self.lake = DeltaLake(folder, SystemClock())
        self._projected: dict[str, Positions] = {}
        self._sent = 0

    @property
    def history(self) -> HistoryQuery:
        """Made anew: the running loop is the log's."""
        return HistoryQuery(self.lake, self.log, SystemClock())

    def at(self, second: float) -> int:
        return self.start + int(second * TICKS_PER_S)

    async def send(
        self, *bodies: Mapping[str, Any] | bytes, stream: str = "telemetry", devices: Sequence[str] = ()
    ) -> None:
        for index, body in enumerate(bodies):
            device = devices[index] if devices else f"pump-{self._sent % 3}"
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            batch = event_batch({"_event_id": [f"e{self._sent}"], "_device": [device], "_body": [raw]})
            await self.log.append(stream, batch)
            self._sent += 1
            self.clock.advance(1)

    async def project(self, stream: str = "telemetry", *, epoch: int = -1) -> None:
        """Bring the lake up to where the log is now, as the lake's projection does."""
        table, producer = table_of(stream), f"lake:{stream}"
        piece = await self.log.read_merged(stream, self._projected.get(stream, ()), rows_max=10**6, wait_s=0)
        try:
            known = self.lake.schema(table)
        except NotFound:
            known = None
        self.lake.append(
            table,
            flatten(piece.batch, schema=known),
            producer=producer,
            epoch=self.lake.last_epoch(table, producer) + 1,
            properties={"positions": json.dumps(piece.positions)},
        )
        self._projected[stream] = piece.positions
