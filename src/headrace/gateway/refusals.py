"""What the gateway turned away: counted by reason, logged without flooding, and remembered for who asks why.

Each reason may write a few lines in a while; the next line that may be written says how many were kept back. What was refused
last is remembered by the id that was claimed, true or not, and by address where no id was said; a flood of names pushes out the
oldest. Documents of the collection `refusals`.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import structlog

from headrace.core.clock import Clock
from headrace.core.observe.metrics import Metrics
from headrace.docstore.contract import DocStore
from headrace.gateway.writer import DocumentWriter

COLLECTION = "refusals"
LINES_MAX = 10
WINDOW_S = 10.0
KEPT_MAX = 1000
REASONS_MAX = 20
WRITE_EVERY_S = 1.0
ADDRESS_PREFIX = "address|"

log = structlog.get_logger()


class Refusals:
    """Without a `writer` nothing is remembered beyond this process."""

    def __init__(self, metrics: Metrics, clock: Clock, writer: DocumentWriter | None = None) -> None:
        self._counter = metrics.counter("gateway_refused_total", "Refused by the gateway, by reason", ("reason",))
        self._clock = clock
        self._writer = writer
        self._windows: dict[str, tuple[float, int]] = {}  # reason: when its window began, lines wanted since
        self._kept: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._changed: set[str] = set()

    def note(self, reason: str, *, detail: str = "", device: str = "", address: str = "", hint: str = "") -> None:
        """Count one refusal. `detail` and `hint` must hold no payload and no secret."""
        self._counter.labels(reason).inc()
        self._remember(device or (ADDRESS_PREFIX + address if address else ""), reason, detail, hint, address)
        now = self._clock.monotonic()
        began, wanted = self._windows.get(reason, (now, 0))
        kept_back = 0
        if now - began >= WINDOW_S:
            kept_back, began, wanted = max(0, wanted - LINES_MAX), now, 0
        self._windows[reason] = (began, wanted + 1)
        if wanted < LINES_MAX:
            more = {"kept_back": kept_back} if kept_back else {}
            log.warning("gateway.refused", reason=reason, detail=detail, device=device, address=address, **more)

    def last(self, id: str) -> dict[str, Any] | None:
        """{reason, detail, hint, address, at, reasons {reason: {count, first, last, address}}} of an id, times in ticks."""
        return self._kept.get(id)

    async def open(self, docs: DocStore) -> None:
        """Go on from what earlier processes remembered. Raises Unavailable."""
        found = await docs.query(COLLECTION, limit=2 * KEPT_MAX)
        for document in sorted(found, key=lambda each: int(each.body["at"])):
            self._kept[document.id] = dict(document.body)
        while len(self._kept) > KEPT_MAX:
            self._drop_oldest()

    async def run(self) -> None:
        """Write what changed, until cancelled."""
        while True:
            await self._clock.sleep(WRITE_EVERY_S)
            self.write()

    def write(self) -> None:
        changed, self._changed = self._changed, set()
        if self._writer is not None:
            for id in changed:
                self._writer.put(COLLECTION, id, self._kept[id])

    def _remember(self, id: str, reason: str, detail: str, hint: str, address: str) -> None:
        id = id[:257].strip()
        if not id or not id.isprintable():
            return
        now = self._clock.now()
        kept = self._kept.pop(id, None)
        reasons: dict[str, Any] = {} if kept is None else kept["reasons"]
        known = reasons.pop(reason, None) or {"count": 0, "first": now}
        reasons[reason] = {**known, "count": known["count"] + 1, "last": now, "address": address}
        if len(reasons) > REASONS_MAX:
            del reasons[next(iter(reasons))]
        self._kept[id] = {
            "reason": reason,
            "detail": detail[:500],
            "hint": hint[:500],
            "address": address,
            "at": now,
            "reasons": reasons,
        }
        self._changed.add(id)
        if len(self._kept) > KEPT_MAX:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        oldest, _ = self._kept.popitem(last=False)
        self._changed.discard(oldest)
        if self._writer is not None:
            self._writer.delete(COLLECTION, oldest)
