"""What the console is handed by assembly: the stores, and the questions it may ask of the services above them.

Protocols, not classes: the console works against anything that answers these calls.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from headrace.core.clock import Clock
from headrace.core.config import Settings
from headrace.core.errors import Unavailable
from headrace.core.observe.metrics import Metrics
from headrace.docstore.contract import DocStore
from headrace.eventlog.contract import EventLog, Positions
from headrace.web.hub import HubAddress, Where


class History(Protocol):
    """Lake and recent log as one. Both calls block; the console makes them in threads."""

    def run(self, sql: str, *, limit: int | None = None) -> pa.Table:
        """The answer to one read-only statement. Raises UserError for a wrong one."""
        ...

    def range(
        self,
        stream: str,
        since: int,
        until: int,
        fields: Sequence[str] | None,
        entity: str | None,
        points_max: int,
    ) -> tuple[pa.Table, Positions]:
        """Rows with `_enqueued` between `since` and `until` (ticks), thinned to about `points_max` a field so that
        extremes survive, oldest first; and the next log offset per partition after what the answer covers. Raises
        NotFound for a stream that neither log nor lake has."""
        ...


class Incidents(Protocol):
    """Open and past alerts. Items are structs or mappings with at least id, key, severity, state, title and opened."""

    async def list(self, *, state: str = "", key: str = "", limit: int = 200) -> Sequence[Any]:
        """Newest first. `state` is `open` (acknowledged ones too), `resolved` or empty for all."""
        ...

    async def acknowledge(self, id: str, by: str, note: str = "") -> Any:
        """The incident as it is now. Raises NotFound."""
        ...


Report = Callable[[], Awaitable[Mapping[str, Any]]]
Why = Callable[[str], Awaitable[Mapping[str, Any]]]
"""Why a device is or is not connected, in plain words: {state, sentences, advice} as devices.why tells it."""


async def no_facts() -> Mapping[str, Any]:
    return {"running": False}


async def no_words(device: str) -> Mapping[str, Any]:
    return {"state": "", "sentences": [], "advice": []}


async def no_hub() -> HubAddress:
    raise Unavailable("this console knows no hub", hint="start it with `headrace up`", code="hub.unreachable")


@dataclass(frozen=True, kw_only=True)
class WebServices:
    """Everything the console works with.

    `status` answers `{"parts": [{name, state, pid, cpu (percent), memory (bytes), lag (rows), detail}], "work": [{name,
    stream, state, rows, set_aside, lag, error}]}`, all but the names optional; `ledger_report` answers `{"balanced",
    "stages": [{stage, stream, partition, rows_in, rows_out, set_aside, gap, pending, counted}]}`. Documents of collection
    `fields` ({unit, label, digits}) and `sites` ({title, place}), where they exist, tell the pages what to write beside a
    number or a site. `hub` says where the hub's service API is, `hub_facts` what `headrace hub info` tells without its keys.
    """

    log: EventLog
    docs: DocStore
    clock: Clock
    settings: Settings
    history: History
    status: Report
    ledger_report: Report
    incidents: Incidents
    metrics: Metrics = field(default_factory=Metrics)
    hub: Where = no_hub
    hub_facts: Report = no_facts
    why: Why = no_words
