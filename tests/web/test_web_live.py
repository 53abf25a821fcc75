"""History then live: no gap, no double point, bounded memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pyarrow as pa
import pytest
from plant import LogHistory, until

from headrace.core.clock import SystemClock
from headrace.core.errors import NotFound
from headrace.core.observe.metrics import Metrics
from headrace.core.schema import event_batch
from headrace.eventlog.memory import MemoryEventLog
from headrace.history.query import HistoryQuery
from headrace.lake.delta import DeltaLake
from headrace.web import tokens
from headrace.web.fleet import Fleet
from headrace.web.live import LiveHub
from headrace.web.queries.live import messages
from headrace.web.watcher import Watcher


class Writer:
    """Writes numbered events of some devices to a stream."""

    def __init__(self, log: MemoryEventLog, stream: str = "telemetry") -> None:
        self.log = log
        self.stream = stream
        self.next = 0

    async def write(self, count: int, devices: Iterable[str] = ("a", "b", "c")) -> None:
        for _ in range(count):
            names = list(devices)
            self.next += 1
            bodies = [orjson.dumps({"n": self.next, "device": name}) for name in names]
            ids = [f"{self.stream}-{self.next}-{name}" for name in names]
            await self.log.append(self.stream, event_batch({"_event_id": ids, "_device": names, "_body": bodies}))


def hub_over(log: MemoryEventLog, **options: Any) -> LiveHub:
    options = {"linger_s": 0.0, "rows_per_s_max": 1_000_000, "watcher_rows_max": 1_000_000, **options}
    return LiveHub(
        log,
        Fleet(),
        clock=SystemClock(),
        metrics=Metrics(),
        fleet_stream="telemetry",
        known=["scored", "anomalies"],
        **options,
    )


def parse(chunk: bytes) -> tuple[str, dict[str, Any], str]:
    """Event, data and id of one message."""
    lines = dict(line.split(": ", 1) for line in chunk.decode().strip().splitlines())
    return lines["event"], msgspec.json.decode(lines["data"]), lines.get("id", "")


class Browser:
    """Reads a live feed and keeps the numbers of each stream."""

    def __init__(self, feed: AsyncIterator[bytes]) -> None:
        self.feed = feed
        self.numbers: dict[str, list[int]] = {}
        self.token = ""
        self.events: list[str] = []
        self.thinned = 0

    async def read_until(self, last: int, stream: str = "telemetry") -> None:
        async with asyncio.timeout(10):
            while self.numbers.get(stream, [0])[-1] < last:
                await self.read_one()

    async def read_event(self, name: str) -> None:
        async with asyncio.timeout(10):
            while name not in self.events:
                await self.read_one()

    async def read_one(self) -> None:
        event, data, token = parse(await anext(self.feed))
        self.events.append(event)
        self.token = token or self.token
        if event == "points":
            self.numbers.setdefault(data["stream"], []).extend(int(number) for number in data["fields"]["n"])
        if event == "thinned":
            self.thinned += data["rows"]


async def test_history_then_live_has_no_gap_and_no_double_point_while_events_arrive() -> None:
    log = MemoryEventLog(SystemClock())
    writer = Writer(log)
    await writer.write(50)
    hub = hub_over(log)
    async with hub.running(), asyncio.TaskGroup() as group:
        writing = group.create_task(_write_on(writer, 300))
        history = LogHistory(log, asyncio.get_running_loop())
        for _ in range(20):
            await writer.write(1)
            table, positions = await asyncio.to_thread(history.range, "telemetry", 0, 1 << 62, None, "b", 1_000_000)
            await asyncio.sleep(0)
            browser = Browser(messages(hub, "b", ["telemetry"], {"telemetry": positions}))
            browser.numbers["telemetry"] = [int(number) for number in table.column("n").to_pylist()]
            until = writer.next + 5
            await writer.write(5)
            await browser.read_until(until)
            assert browser.numbers["telemetry"] == list(range(1, browser.numbers["telemetry"][-1] + 1))
            await browser.feed.aclose()  # type: ignore[attr-defined]
        writing.cancel()


async def test_the_lakes_history_query_and_live_fit_together(tmp_path: Path) -> None:
    log, clock = MemoryEventLog(SystemClock()), SystemClock()
    writer = Writer(log)
    await writer.write(20)
    history = HistoryQuery(DeltaLake(tmp_path, clock), log, clock)
    hub = hub_over(log)
    async with hub.running():
        for _ in range(3):
            asking = asyncio.create_task(
                asyncio.to_thread(history.range, "telemetry", 0, clock.now(), None, "b", 1_000_000)
            )
            while not asking.done():
                await writer.write(1)
                await asyncio.sleep(0)
            table, positions = await asking
            browser = Browser(messages(hub, "b", ["telemetry"], {"telemetry": positions}))
            browser.numbers["telemetry"] = [int(number) for number in table.column("n").to_pylist()]
            await writer.write(5)
            await browser.read_until(writer.next)
            assert browser.numbers["telemetry"] == list(range(1, writer.next + 1))
            await browser.feed.aclose()  # type: ignore[attr-defined]


async def _write_on(writer: Writer, count: int) -> None:
    for _ in range(count):
        await writer.write(1)
        await asyncio.sleep(0)


async def test_a_browser_that_reconnects_with_its_last_id_misses_nothing() -> None:
    log = MemoryEventLog(SystemClock())
    writer = Writer(log)
    hub = hub_over(log)
    async with hub.running():
        browser = Browser(messages(hub, "a", ["telemetry"], {"telemetry": ()}))
        await writer.write(7)
        await browser.read_until(7)
        await browser.feed.aclose()  # type: ignore[attr-defined]
        await writer.write(5)
        again = Browser(messages(hub, "a", ["telemetry"], tokens.decode(browser.token)))
        await writer.write(3)
        await again.read_until(15)
        assert again.numbers["telemetry"] == list(range(8, 16))


async def test_a_token_ahead_of_the_feed_gives_no_point_twice() -> None:
    log = MemoryEventLog(SystemClock())
    writer = Writer(log)
    hub = hub_over(log, linger_s=0.2)  # the feed lags behind what history has read already
    async with hub.running():
        browser = Browser(messages(hub, "a", ["telemetry"], {"telemetry": ()}))
        await writer.write(1)
        await browser.read_until(1)
        await writer.write(5)
        _, ahead = await log.bounds("telemetry")
        late = Browser(messages(hub, "a", ["telemetry"], {"telemetry": ahead}))
        await late.read_event("following")
        await writer.write(2)
        await late.read_until(8)
        assert late.numbers["telemetry"] == [7, 8]


async def test_a_stream_that_appears_later_is_seen_from_its_first_event() -> None:
    log = MemoryEventLog(SystemClock())
    hub = hub_over(log)
    async with hub.running():
        browser = Browser(messages(hub, "a", ["telemetry", "anomalies"], {}))
        await browser.read_event("following")
        assert "anomalies" not in await log.streams()  # watching does not make it
        await Writer(log, "anomalies").write(3)
        await browser.read_until(3, "anomalies")
        assert browser.numbers["anomalies"] == [1, 2, 3]


async def test_a_stream_that_nobody_knows_is_refused_with_the_nearest_name() -> None:
    hub = hub_over(MemoryEventLog(SystemClock()))
    async with hub.running():
        with pytest.raises(NotFound, match="did you mean 'telemetry'"):
            await hub.check(["telemetri"])


async def test_a_place_too_far_back_asks_for_history_again() -> None:
    log = MemoryEventLog(SystemClock())
    hub = hub_over(log, catch_up_rows_max=100)
    async with hub.running():
        await Writer(log).write(200)
        first = Browser(messages(hub, "a", ["telemetry"], {}))
        await first.read_event("following")
        browser = Browser(messages(hub, "a", ["telemetry"], {"telemetry": (0, 0, 0, 0)}))
        await until(lambda: hub_position(hub) == 600)
        await browser.read_one()
        assert browser.events == ["reset"]


def hub_position(hub: LiveHub) -> int:
    return sum(hub._feeds["telemetry"][0].positions)


async def test_a_slow_browser_costs_bounded_memory_and_is_told() -> None:
    log = MemoryEventLog(SystemClock())
    hub = hub_over(log, watcher_rows_max=100)
    writer = Writer(log)
    async with hub.running():
        browser = Browser(messages(hub, "a", ["telemetry"], {}))
        await browser.read_event("following")
        await writer.write(1500, ["a"])  # while nobody reads
        await until(lambda: hub_position(hub) == 1500)
        assert hub._feeds["telemetry"][0].watchers[0].buffered_rows <= 100
        await browser.read_until(1500)  # the newest point is among what is left
        numbers = browser.numbers["telemetry"]
        assert numbers == sorted(set(numbers))
        assert browser.thinned + len(numbers) == 1500


async def test_a_busy_machine_is_thinned_to_the_rate_but_its_anomalies_are_not() -> None:
    watcher = Watcher(
        "a",
        {"telemetry": (0,), "anomalies": (0,)},
        clock=SystemClock(),
        rows_max=10_000,
        rows_per_s_max=200,
        unthinned=["anomalies"],
    )
    rows = pa.table({"_entity_id": ["a"] * 1000, "n": list(range(1000))})
    watcher.offer("telemetry", rows)
    watcher.offer("anomalies", rows)
    taken = dict(await watcher.take(1.0))
    assert taken["telemetry"].num_rows == 200
    assert taken["telemetry"].column("n").to_pylist()[-1] == 999
    assert taken["anomalies"].num_rows == 1000
    assert watcher.take_thinned() == 800


async def test_closing_the_hub_ends_every_stream() -> None:
    hub = hub_over(MemoryEventLog(SystemClock()))
    async with hub.running():
        browser = Browser(messages(hub, "a", ["telemetry"], {}))
        await browser.read_event("following")
        reading = asyncio.create_task(anext(browser.feed))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        hub.close()
        async with asyncio.timeout(2):
            while True:
                try:
                    await reading
                except StopAsyncIteration:
                    break
                reading = asyncio.create_task(anext(browser.feed))  # type: ignore[arg-type]
