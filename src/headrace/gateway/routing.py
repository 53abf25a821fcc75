"""Message routing in the gateway: one batch of messages becomes one batch for each stream that some of them go to.

Only messages that ask for no stream by themselves are routed. A message that goes to three streams is three events with one id,
each durable before the device hears of it. Without routes none of this runs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from headrace.core.clock import Clock, to_iso
from headrace.core.observe.metrics import Metrics
from headrace.core.schema import EventBatch
from headrace.devices.routes import MESSAGES, Enrichment, Routing, Source, Subject
from headrace.devices.twins import Kind, Twin, TwinService
from headrace.gateway.streams import HUB_STREAMS, PLATFORM_STREAMS
from headrace.wire.iothub.topics import Identity

TWINS_MAX = 20_000
TWIN_AGE_S = 5.0
"""How old a twin may be that another process has changed; what this one changes counts at once."""


def endpoint_problem(source: Source, endpoint: str) -> str:
    """Why a source may not lead to a stream; empty when it may."""
    if not (1 <= len(endpoint) <= 100) or not endpoint.replace("_", "").replace("-", "").isalnum():
        return f"endpoint {endpoint[:100]!r} is no stream name: letters, digits, - and _"
    if endpoint in PLATFORM_STREAMS:
        return f"endpoint {endpoint!r} is written by Headrace itself"
    if source == MESSAGES and endpoint in HUB_STREAMS:
        return f"endpoint {endpoint!r} is for what the hub tells of its devices"
    return ""


class KnownTwins:
    """The twins that conditions look at, as fresh as they need to be. Raises Unavailable when they cannot be read."""

    def __init__(self, twins: TwinService, clock: Clock) -> None:
        self._twins = twins
        self._clock = clock
        self._kept: OrderedDict[str, tuple[float, Twin]] = OrderedDict()
        twins.on_change.append(self._changed)

    async def fetch(self, identities: Iterable[Identity]) -> None:
        """Read those that are not known, or not lately."""
        limit = self._clock.monotonic() - TWIN_AGE_S
        for identity in identities:
            known = self._kept.get(identity.client_id)
            if known is None or known[0] < limit:
                self._keep(identity.client_id, await self._twins.get(identity))

    def get(self, client_id: str) -> Twin | None:
        known = self._kept.get(client_id)
        return None if known is None else known[1]

    def _changed(self, identity: Identity, kind: Kind, change: dict[str, Any], twin: Twin) -> None:
        if identity.client_id in self._kept:
            self._keep(identity.client_id, twin)

    def _keep(self, client_id: str, twin: Twin) -> None:
        self._kept[client_id] = (self._clock.monotonic(), twin)
        self._kept.move_to_end(client_id)
        if len(self._kept) > TWINS_MAX:
            self._kept.popitem(last=False)


class Router:
    """Sends a batch of device messages where the routes say. `bytes_max` bounds a message together with its enrichments."""

    def __init__(
        self, routing: Routing, *, clock: Clock, metrics: Metrics, twins: TwinService, bytes_max: int = 262_144
    ) -> None:
        self._routing = routing
        self._clock = clock
        self._bytes_max = bytes_max
        self.twins = KnownTwins(twins, clock) if routing.needs_twin(MESSAGES) else None
        self._enriching = {name: routing.enriching(name) for name in (*routing.streams, *routing.fallback)}
        self._routed = metrics.counter("gateway_routed_total", "Messages sent to an endpoint", ("endpoint",))
        self._unrouted = metrics.counter("gateway_unrouted_total", "Messages that fitted no route and had no fallback")
        self._too_large = metrics.counter("gateway_enriched_too_large_total", "Messages too large once enriched")

    @property
    def active(self) -> bool:
        """Whether messages need routing at all."""
        return self._routing.concerns(MESSAGES)

    def split(self, batch: EventBatch) -> list[tuple[str, EventBatch]]:
        """A batch per endpoint, rows in order; rows that go nowhere are counted and in none of them."""
        subjects = self._subjects(batch)
        rows: dict[str, list[int]] = {}
        for index, subject in enumerate(subjects):
            endpoints = self._routing.endpoints(MESSAGES, subject)
            for endpoint in endpoints:
                rows.setdefault(endpoint, []).append(index)
            if not endpoints:
                self._unrouted.inc()
        parts: list[tuple[str, EventBatch]] = []
        for endpoint, mine in rows.items():
            whole = len(mine) == batch.num_rows
            part = batch if whole else batch.take(pa.array(mine))
            if enrichments := self._enriching.get(endpoint):
                part = self._enriched(part, [subjects[index] for index in mine], enrichments)
            self._routed.labels(endpoint).inc(part.num_rows)
            if part.num_rows:
                parts.append((endpoint, part))
        return parts

    def _subjects(self, batch: EventBatch) -> list[Subject]:
        enqueued = to_iso(self._clock.now())
        known: dict[str | None, tuple[dict[str, Any], dict[str, Any]]] = {None: ({}, {})}
        found: list[Subject] = []
        columns = (batch.column(name).to_pylist() for name in ("_device", "_module", "_properties", "_body"))
        for device, module, text, body in zip(*columns, strict=True):
            properties = known.get(text)
            if properties is None:
                told = orjson.loads(text)
                properties = known[text] = (told["system"], told["application"])
            system = {
                **properties[0],
                "iothub-connection-device-id": device,
                "iothub-enqueuedtime": enqueued,
            }
            if module is not None:
                system["iothub-connection-module-id"] = module
            twin = None if self.twins is None else self.twins.get(Identity(device, module).client_id)
            found.append(Subject(system, properties[1], body, twin))
        return found

    def _enriched(self, batch: EventBatch, subjects: list[Subject], enrichments: list[Enrichment]) -> EventBatch:
        texts: list[str] = []
        keep: list[int] = []
        sizes = pc.binary_length(batch.column("_body")).to_pylist()
        for index, (text, subject) in enumerate(zip(batch.column("_properties").to_pylist(), subjects, strict=True)):
            told = orjson.loads(text) if text else {"system": {}, "application": {}}
            told["application"] |= {each.key: each.value(subject) for each in enrichments}
            made = orjson.dumps(told)
            texts.append(made.decode())
            if len(made) + sizes[index] <= self._bytes_max or _size(told, sizes[index]) <= self._bytes_max:
                keep.append(index)
        at = batch.schema.get_field_index("_properties")
        made_batch = batch.set_column(at, batch.schema.field(at), pa.array(texts, pa.string()))
        if len(keep) < batch.num_rows:
            self._too_large.inc(batch.num_rows - len(keep))
            return made_batch.take(pa.array(keep, pa.int64()))
        return made_batch


def _size(told: dict[str, dict[str, str | None]], body_bytes: int) -> int:
    """A message's size as IoT Hub counts it."""
    system = sum(len((value or "").encode()) for value in told["system"].values())
    application = sum(len(f"{name}{value or ''}".encode()) for name, value in told["application"].items())
    return body_bytes + system + application
