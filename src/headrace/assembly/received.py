"""What was received from one device, as the log holds it: read from the one partition that the device has in each stream.

The last messages are found from the end backwards, so asking for ten of them reads little however long the stream is. A message
that routes sent to several streams is told once.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

import orjson
import pyarrow.compute as pc

from headrace.assembly.platform import Platform, device_streams
from headrace.core.clock import to_iso
from headrace.core.identity import partition_of
from headrace.devices.model import Device, Module
from headrace.devices.routes import MESSAGES, used_endpoints
from headrace.devices.twins import TwinService
from headrace.eventlog.contract import Trimmed
from headrace.gateway.admission import SAS_METHODS, X509_METHODS
from headrace.gateway.streams import STREAM
from headrace.wire.iothub.properties import stamps
from headrace.wire.iothub.topics import Identity

CHUNK_ROWS = 20_000
POLL_S = 0.1
SEEN_MAX = 100_000


class Stamps(NamedTuple):
    """What the registry adds to an event of an identity."""

    generation: str
    method: str
    model_id: str


class Received:
    """`stream` empty: every stream that messages of devices may be in."""

    def __init__(self, platform: Platform, device: str, *, stream: str = "") -> None:
        settings = platform.settings
        wanted = {STREAM, *device_streams(settings)}
        wanted |= used_endpoints(route for route in settings.routes.values() if route.source == MESSAGES)
        self._platform = platform
        self._device = device
        self._streams = [stream] if stream else sorted(wanted)
        self._next: dict[str, int] = {}
        self._stamps: dict[str | None, Stamps] = {}
        self._seen: dict[str, None] = {}

    async def last(self, count: int | None) -> list[dict[str, Any]]:
        """The last `count` messages (None: all that is kept), oldest first; `more` goes on behind them."""
        rows: list[dict[str, Any]] = []
        there = set(await self._platform.log.streams())
        for stream in self._streams:
            if stream in there:
                rows += await self._last_of(stream, count)
        fresh = self._fresh(rows)
        return [await self._told(row) for row in (fresh if count is None else fresh[-count:] if count else [])]

    async def more(self) -> list[dict[str, Any]]:
        """What came since; empty when nothing did."""
        rows: list[dict[str, Any]] = []
        there = set(await self._platform.log.streams())
        for stream in self._streams:
            if stream in there:
                partition, _, end = await self._bounds(stream)
                at = self._next.get(stream, 0)
                rows += await self._read(stream, partition, at, end)
                self._next[stream] = end
        return [await self._told(row) for row in self._fresh(rows)]

    async def follow(self, until: float) -> AsyncIterator[dict[str, Any]]:
        """What comes, until the monotonic time `until`."""
        clock = self._platform.clock
        while clock.monotonic() < until:
            found = await self.more()
            for each in found:
                yield each
            if not found:
                await clock.sleep(POLL_S)

    async def _last_of(self, stream: str, count: int | None) -> list[dict[str, Any]]:
        """At least the last `count`: whole pieces, so that copies of one message in other streams are found too."""
        partition, earliest, end = await self._bounds(stream)
        self._next[stream] = end
        found: list[dict[str, Any]] = []
        upper = end
        while upper > earliest and (count is None or len(found) < count):
            lower = max(earliest, upper - CHUNK_ROWS)
            found = await self._read(stream, partition, lower, upper) + found
            upper = lower
        return found

    async def _bounds(self, stream: str) -> tuple[int, int, int]:
        """(the device's partition, its earliest offset, its next one)"""
        earliest, ends = await self._platform.log.bounds(stream)
        partition = partition_of(self._device, len(ends))
        return partition, earliest[partition], ends[partition]

    async def _read(self, stream: str, partition: int, at: int, end: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while at < end:
            try:
                batch = await self._platform.log.read(
                    stream, partition, at, rows_max=min(CHUNK_ROWS, end - at), wait_s=0.0
                )
            except Trimmed:  # retention was quicker
                at = max(at + 1, (await self._bounds(stream))[1])
                continue
            if not batch.num_rows:
                break
            at = batch.column("_offset")[batch.num_rows - 1].as_py() + 1
            mine = batch.filter(pc.equal(batch.column("_device"), self._device))
            found += [{**row, "_stream": stream} for row in mine.to_pylist() if row["_offset"] < end]
        return found

    def _fresh(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """What was not told yet, in order; of the copies of a message the one in `telemetry`, where its order is kept."""
        chosen: dict[str, dict[str, Any]] = {}
        for row in rows:
            if row["_event_id"] not in self._seen and (row["_event_id"] not in chosen or row["_stream"] == STREAM):
                chosen[row["_event_id"]] = row
        self._seen |= dict.fromkeys(chosen)
        fresh = sorted(chosen.values(), key=_place)
        while len(self._seen) > SEEN_MAX:
            del self._seen[next(iter(self._seen))]
        return fresh

    async def _told(self, row: dict[str, Any]) -> dict[str, Any]:
        """An event as `headrace hub telemetry --json` prints it; the keys are fixed."""
        told = orjson.loads(row["_properties"]) if row["_properties"] else {}
        enqueued = to_iso(row["_enqueued"])
        known = await self._stamps_of(row["_module"])
        said = stamps(
            row["_device"], row["_module"], generation=known.generation, method=known.method, enqueued=enqueued
        )
        system = told.get("system", {})  # holds no stamp, unless the hub itself has written it
        system = system | said | {name: system[name] for name in ("iothub-message-source",) if name in system}
        if known.model_id:
            system["dt-dataschema"] = known.model_id
        body, encoding = body_of(row["_body"], row["_content_type"])
        return {
            "body": body,
            "bodyEncoding": encoding,
            "properties": told.get("application", {}),
            "systemProperties": system,
            "enqueuedTime": enqueued,
            "deviceId": row["_device"],
            "moduleId": row["_module"],
            "eventId": row["_event_id"],
            "stream": row["_stream"],
            "partition": row["_partition"],
            "offset": row["_offset"],
        }

    async def _stamps_of(self, module: str | None) -> Stamps:
        if module not in self._stamps:
            self._stamps[module] = await self._looked_up(module)
        return self._stamps[module]

    async def _looked_up(self, module: str | None) -> Stamps:
        queries = self._platform.device_queries
        registered = await queries.registered(self._device)
        subject: Device | Module | None = None if registered is None else registered.device
        if module is not None:
            part = await queries.module(self._device, module)
            subject = None if part is None else part.module
        if subject is None:
            return Stamps("", SAS_METHODS["device" if module is None else "module"], "")
        methods = SAS_METHODS if subject.authentication == "sas" else X509_METHODS
        twins = TwinService(self._platform.docs, self._platform.clock, random_bytes=bytes)
        twin = await twins.get(Identity(self._device, module))
        return Stamps(subject.generation_id, methods["device" if module is None else "module"], twin.model_id)


def body_of(data: bytes, content_type: str | None) -> tuple[Any, str]:
    """(a body as JSON can hold it, how: `json`, `text` or `base64`). JSON is tried unless it is said to be something else."""
    kind = (content_type or "").partition(";")[0].strip().lower()
    if not kind or "json" in kind:
        try:
            return orjson.loads(data), "json"
        except orjson.JSONDecodeError:
            pass
    try:
        return data.decode(), "text"
    except UnicodeDecodeError:
        return base64.b64encode(data).decode(), "base64"


def _place(row: dict[str, Any]) -> tuple[int, int, int]:
    return row["_enqueued"], row["_partition"], row["_offset"]
