"""Who was throttled: which limit, how often, for how long and since when, kept for the operator.

Bounded: of a flood of names only those throttled last are kept. Documents of the collection `throttled`, one for each worker,
limit and device, written behind once in a while and not with every message that waits.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any
from urllib.parse import quote

import msgspec

from headrace.core.clock import Clock
from headrace.core.observe.metrics import Metrics
from headrace.docstore.contract import DocStore
from headrace.gateway.writer import DocumentWriter

COLLECTION = "throttled"
KEPT_MAX = 1000
WRITE_EVERY_S = 1.0
PAGE = 1000


class Throttling(msgspec.Struct, kw_only=True):
    """One device (empty: the hub as a whole) at one limit. Times are ticks."""

    device: str
    limit: str
    worker: str
    count: int = 0  # messages or operations that waited or were refused
    waited_s: float = 0.0  # the longest wait
    since: int
    last: int


class Throttled:
    """What one process has held back. Without a `writer` it is only counted."""

    def __init__(
        self, metrics: Metrics, clock: Clock, *, writer: DocumentWriter | None = None, worker: str = "gateway-0"
    ) -> None:
        self._clock = clock
        self._writer = writer
        self._worker = worker
        self._kept: OrderedDict[tuple[str, str], Throttling] = OrderedDict()
        self._changed: set[tuple[str, str]] = set()
        self._count = metrics.counter("gateway_throttled_total", "Messages and operations held back", ("limit",))

    def note(self, device: str, limit: str, count: int, wait_s: float) -> None:
        self._count.labels(limit).inc(count)
        now, key = self._clock.now(), (device[:257], limit)
        kept = self._kept.get(key)
        if kept is None:
            kept = self._kept[key] = Throttling(device=key[0], limit=limit, worker=self._worker, since=now, last=now)
            if len(self._kept) > KEPT_MAX:
                oldest, _ = self._kept.popitem(last=False)
                self._changed.discard(oldest)
                if self._writer is not None:
                    self._writer.delete(COLLECTION, self._id(oldest))
        else:
            self._kept.move_to_end(key)
        kept.count += count
        kept.waited_s = max(kept.waited_s, round(wait_s, 3))
        kept.last = now
        self._changed.add(key)

    async def run(self) -> None:
        """Write what changed, until cancelled."""
        while True:
            await self._clock.sleep(WRITE_EVERY_S)
            self.write()

    def write(self) -> None:
        changed, self._changed = self._changed, set()
        if self._writer is not None:
            for key in changed:
                self._writer.put(COLLECTION, self._id(key), msgspec.to_builtins(self._kept[key]))

    async def open(self, docs: DocStore) -> None:
        """Go on from what an earlier process of our name has counted. Raises Unavailable."""
        found = await docs.query(COLLECTION, prefix=f"{self._worker}|", limit=KEPT_MAX)
        for kept in sorted((msgspec.convert(each.body, Throttling) for each in found), key=lambda each: each.last):
            self._kept[kept.device, kept.limit] = kept

    def _id(self, key: tuple[str, str]) -> str:
        return f"{self._worker}|{key[1]}|{quote(key[0], safe='')}"


async def throttled(docs: DocStore, *, device: str | None = None) -> list[dict[str, Any]]:
    """All that were held back, of all workers, the last one first: {device, limit, count, waited_s, since, last}."""
    sums: dict[tuple[str, str], Throttling] = {}
    where = {} if device is None else {"device": device}
    after = ""
    while page := await docs.query(COLLECTION, where=where, after=after, limit=PAGE):
        after = page[-1].id
        for document in page:
            each = msgspec.convert(document.body, Throttling)
            known = sums.setdefault((each.device, each.limit), each)
            if known is not each:
                known.count += each.count
                known.waited_s = max(known.waited_s, each.waited_s)
                known.since, known.last = min(known.since, each.since), max(known.last, each.last)
    ordered = sorted(sums.values(), key=lambda each: -each.last)
    return [{name: value for name, value in msgspec.to_builtins(each).items() if name != "worker"} for each in ordered]
