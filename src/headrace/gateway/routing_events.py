"""What the hub tells of its devices: changes of twins, life-cycle and connections, as events in the streams that routes name.

Shapes and property names are those of IoT Hub's own events. They are written soon after what they tell of, not with it: a hub
that is killed in between loses them, and while the log is unavailable EVENTS_MAX of them wait. The life-cycle is told by the
first of several workers, everything else by the one where it happened.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, NamedTuple

import msgspec
import structlog

from headrace.core.clock import Clock, to_iso
from headrace.core.errors import Unavailable
from headrace.core.identity import EventIds
from headrace.core.observe.metrics import Metrics
from headrace.core.schema import EventBatch, event_batch
from headrace.devices.model import Device, Module
from headrace.devices.routes import Routing, Source, Subject
from headrace.devices.twins import Kind, Twin, document
from headrace.eventlog.contract import EventLog
from headrace.gateway.presence import Arrival
from headrace.wire.iothub.topics import Identity

EVENTS_MAX = 20_000
BATCH_MAX = 2000
LINGER_S = 0.02
RETRY_S = 1.0
FLUSH_TRIES = 3
LIFE: Source = "DeviceLifecycleEvents"
SCHEMAS: dict[Source, str] = {
    "TwinChangeEvents": "twinChangeNotification",
    "DeviceLifecycleEvents": "deviceLifecycleNotification",
    "DeviceConnectionStateEvents": "deviceConnectionStateNotification",
}

log = structlog.get_logger()


class _Event(NamedTuple):
    endpoints: tuple[str, ...]
    identity: Identity
    kind: str
    properties: str
    body: bytes


class HubEvents:
    """Callbacks for twins, presence and directory; `run` writes what they were told. `first` is whether this worker tells of
    the life-cycle."""

    def __init__(
        self,
        routing: Routing,
        events: EventLog,
        *,
        clock: Clock,
        ids: EventIds,
        metrics: Metrics,
        hub_name: str,
        first: bool = True,
    ) -> None:
        self._routing = routing
        self._events = events
        self._clock = clock
        self._ids = ids
        self._hub_name = hub_name
        self._first = first
        self._waiting: deque[_Event] = deque()
        self._some = asyncio.Event()
        self._sequence = 0
        self._producer = f"hub-events-{ids.take()}-{clock.now():x}"
        self._epoch = 0
        self._dropped = metrics.counter("gateway_hub_events_dropped_total", "Events of the hub's own beyond the bound")

    # told by others

    def twin_changed(self, identity: Identity, kind: Kind, change: dict[str, Any], twin: Twin) -> None:
        self._tell("TwinChangeEvents", identity, kind, {"version": twin.version, **change}, twin)

    def arrived(self, arrival: Arrival) -> None:
        self._sequence += 1
        body = {"sequenceNumber": f"{arrival.at:024X}{self._sequence:024X}"}
        kind = "deviceConnected" if arrival.connected else "deviceDisconnected"
        if arrival.identity.module is not None:
            kind = kind.replace("device", "module")
        self._tell("DeviceConnectionStateEvents", arrival.identity, kind, body)

    def device_changed(self, id: str, device: Device | None) -> None:
        if not self._routing.of(LIFE):  # of 50,000 imported devices nobody wants documents
            return
        if device is None:
            self._life(Identity(id), "deleteDeviceIdentity", {"deviceId": id})
        elif not device.updated:  # never changed: it is new
            self._life(Identity(id), "createDeviceIdentity", document(Twin(), device))

    def module_changed(self, client_id: str, module: Module | None) -> None:
        device, _, id = client_id.partition("/")
        if module is None:
            self._life(Identity(device, id), "deleteModuleIdentity", {"deviceId": device, "moduleId": id})
        elif not module.updated:
            body = {"deviceId": device, "moduleId": id, "etag": Twin().etag, "version": 1}
            self._life(Identity(device, id), "createModuleIdentity", body)

    # the task

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._some.wait()
            await self._clock.sleep(LINGER_S)
            self._some.clear()
            while self._waiting:
                try:
                    await self._write()
                except Unavailable as exc:
                    log.warning("hub_events.delayed", waiting=len(self._waiting), code=exc.code)
                    await self._clock.sleep(RETRY_S)

    async def flush(self) -> None:
        """Write what waits, now; given up after a few tries."""
        for _ in range(FLUSH_TRIES):
            try:
                while self._waiting:
                    await self._write()
            except Unavailable as exc:
                log.warning("hub_events.delayed", waiting=len(self._waiting), code=exc.code)
            else:
                return

    # inside

    def _life(self, identity: Identity, kind: str, body: dict[str, Any]) -> None:
        if self._first:
            self._tell(LIFE, identity, kind, body)

    def _tell(
        self, source: Source, identity: Identity, kind: str, body: dict[str, Any], twin: Twin | None = None
    ) -> None:
        if not self._routing.of(source):
            return
        system = {
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "iothub-message-source": source[0].lower() + source[1:],
        }
        application = {
            "hubName": self._hub_name,
            "deviceId": identity.device,
            "operationTimestamp": to_iso(self._clock.now()),
            "iothub-message-schema": SCHEMAS[source],
            "opType": kind,
        }
        if identity.module is not None:
            application["moduleId"] = identity.module
        data = msgspec.json.encode(body)
        seen = {**system, "iothub-connection-device-id": identity.device}
        endpoints = self._routing.endpoints(source, Subject(seen, application, data, twin))
        if not endpoints:
            return
        if len(self._waiting) >= EVENTS_MAX:
            self._dropped.inc()
            return
        text = msgspec.json.encode({"system": system, "application": application}).decode()
        self._waiting.append(_Event(tuple(endpoints), identity, kind, text, data))
        self._some.set()

    async def _write(self) -> None:
        """Append the oldest; they leave the queue once they are in every stream. Raises Unavailable."""
        taken = [self._waiting[index] for index in range(min(BATCH_MAX, len(self._waiting)))]
        for stream in sorted({endpoint for event in taken for endpoint in event.endpoints}):
            self._epoch += 1
            mine = [event for event in taken if stream in event.endpoints]
            await self._events.append(stream, self._batch(mine), producer=self._producer, epoch=self._epoch)
        for _ in taken:
            self._waiting.popleft()

    def _batch(self, events: list[_Event]) -> EventBatch:
        return event_batch(
            {
                "_event_id": [self._ids.take() for _ in events],
                "_device": [event.identity.device for event in events],
                "_module": [event.identity.module for event in events],
                "_type": [event.kind for event in events],
                "_content_type": ["application/json"] * len(events),
                "_properties": [event.properties for event in events],
                "_body": [event.body for event in events],
            }
        )
