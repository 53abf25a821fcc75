"""Limits: telemetry above them is acknowledged later, the rest is refused with the limit's name; the operator sees who."""

from __future__ import annotations

import asyncio
from typing import Any

from gateway_parts import Parts, publish, rows_of, until
from rest_parts import Service, error_of

from headrace.core.clock import ManualClock
from headrace.core.config import LimitsConfig
from headrace.core.observe.metrics import Metrics
from headrace.docstore.memory import MemoryDocStore
from headrace.gateway.limits import Limits, RateLimit
from headrace.gateway.limits_shaper import WAITING_ROWS_MAX
from headrace.gateway.limits_throttled import KEPT_MAX, Throttled, throttled
from headrace.gateway.refusals import Refusals
from headrace.gateway.writer import DocumentWriter


def limits(clock: ManualClock, **config: float) -> Limits:
    return Limits(LimitsConfig(**config), clock, Throttled(Metrics(), clock))


def test_what_is_within_a_limit_goes_on_and_what_is_above_is_told_when() -> None:
    clock = ManualClock()
    made = limits(clock, device_methods_per_s=2)
    assert [made.ask("methods", "a") for _ in range(2)] == [None, None]
    over = made.ask("methods", "a")
    assert over is not None
    assert (over.limit, over.per_s, round(over.retry_s, 3), over.retry_after) == ("device_methods_per_s", 2, 0.5, "1")
    assert made.ask("methods", "b") is None
    clock.advance(0.5)
    assert made.ask("methods", "a") is None
    assert made.ask("methods", "a") is not None


def test_less_than_one_in_a_second_is_possible() -> None:
    clock = ManualClock()
    made = limits(clock, device_connects_per_s=0.1)
    assert made.ask("connects", "a") is None
    over = made.ask("connects", "a")
    assert over is not None
    assert over.retry_after == "10"
    clock.advance(10)
    assert made.ask("connects", "a") is None


def test_the_hub_is_limited_beside_its_devices() -> None:
    made = limits(ManualClock(), registry_per_s=1)
    assert made.ask("registry", "a") is None
    over = made.ask("registry", "b")
    assert over is not None
    assert str(over) == "this hub may not have more registry_per_s: [limits] registry_per_s is 1"
    assert made.ask("twin_reads", "b") is None


def test_the_hubs_rate_counts_bytes_too_and_says_which_limit_it_was() -> None:
    told: list[Any] = []
    limit = RateLimit(100, ManualClock(), bytes_per_s=1000, on_wait=lambda *what: told.append(what))
    assert limit.take(10, 1000) == 0
    assert limit.take(10, 2000) == 2.0
    assert told == [("bytes_per_s", 10, 2.0)]


async def shaped(parts: Parts, **config: float) -> tuple[Any, Any, asyncio.Task[None]]:
    parts.door.limits = limits(parts.clock, **config)
    connection, wire = parts.connected("a", keep_alive_s=600)
    return connection, wire, asyncio.ensure_future(parts.ingress.run())


async def ended(parts: Parts, work: asyncio.Task[None]) -> None:
    parts.ingress.close()
    await work


def acknowledged(wire: Any) -> int:
    return int(wire.written.count(b"\x40\x02"))


async def test_a_device_above_its_limit_is_acknowledged_later_and_loses_nothing(parts: Parts) -> None:
    connection, wire, work = await shaped(parts, device_messages_per_s=8)
    connection.data_received(b"".join(publish("a", "", b"%d" % number, number) for number in range(1, 41)))
    await until(lambda: acknowledged(wire) == 8)
    for seconds in range(1, 5):
        for _ in range(4):  # it is paid for in quarters of a second
            parts.clock.advance(0.25)
            for _ in range(50):
                await asyncio.sleep(0)
        await until(lambda paid=8 * (seconds + 1): acknowledged(wire) == paid)  # type: ignore[misc]
    await ended(parts, work)
    assert [row["_body"] for row in await rows_of(parts.log)] == [b"%d" % number for number in range(1, 41)]
    assert not connection._holds


async def test_what_waits_is_bounded_and_above_it_the_connection_is_not_read(parts: Parts) -> None:
    connection, wire, work = await shaped(parts, device_messages_per_s=100)
    connection.data_received(b"".join(publish("a", "", b"x", number % 60_000 + 1) for number in range(1200)))
    assert wire.paused
    assert connection._shaper.waiting_rows >= WAITING_ROWS_MAX
    for _ in range(60):
        parts.clock.advance(0.25)
        for _ in range(20):
            await asyncio.sleep(0)
    assert not wire.paused
    await ended(parts, work)
    assert len(await rows_of(parts.log)) == 1200


async def test_one_device_above_its_limit_delays_no_other(parts: Parts) -> None:
    connection, wire, work = await shaped(parts, device_messages_per_s=1)
    other, other_wire = parts.connected("b")
    connection.data_received(b"".join(publish("a", "", b"x", number) for number in range(1, 20)))
    other.data_received(publish("b", "", b"y", 5))
    await until(lambda: acknowledged(other_wire) == 1)
    assert acknowledged(wire) == 1
    connection.connection_lost(None)  # what waits is handed on: bounded, and paid for by its next connection
    await ended(parts, work)
    assert len(await rows_of(parts.log)) == 20


async def test_a_device_that_connects_too_often_is_refused_with_unavailable(parts: Parts) -> None:
    parts.door.limits = limits(parts.clock, device_connects_per_s=1)
    parts.connected("a")
    connection, wire = parts.dial()
    connection.data_received(parts.hello("a"))
    assert wire.written == b"\x20\x02\x00\x03"
    assert parts.refused()["throttled"] == 1


async def test_services_are_told_the_limit_and_when_to_come_again() -> None:
    service = Service()
    await service.open()
    service.door._limits = limits(service.clock, registry_per_s=1, device_methods_per_s=1, queries_per_s=1)
    await service.made("d1")
    refused = await service.call("GET", "/devices/d1")
    assert error_of(refused) == (429, "ThrottlingException")
    assert refused.headers["retry-after"] == "1"
    assert "[limits] registry_per_s is 1" in refused.json()["Message"]
    call = {"methodName": "go", "payload": None}
    assert (await service.call("POST", "/twins/d1/methods", call)).status_code == 200
    assert (await service.call("POST", "/twins/d1/methods", call)).status_code == 429
    assert (await service.call("GET", "/twins/d1")).status_code == 200
    service.clock.advance(1)
    assert (await service.call("GET", "/devices/d1")).status_code == 200
    await service.close()


async def test_the_operator_sees_who_was_held_back_and_a_flood_of_names_is_bounded() -> None:
    clock = ManualClock()
    docs = MemoryDocStore(clock)
    writer = DocumentWriter(docs, clock)
    kept = Throttled(Metrics(), clock, writer=writer)
    for number in range(KEPT_MAX):
        kept.note(f"d{number}", "device_messages_per_s", 1, 0.5)
    clock.advance(5)
    kept.note("d7", "device_messages_per_s", 3, 2.0)
    kept.write()
    await writer.flush()
    kept.note("one-more", "device_messages_per_s", 1, 0.5)
    kept.write()
    await writer.flush()
    first = (await throttled(docs, device="d7"))[0]
    assert (first["count"], first["waited_s"], first["last"] - first["since"]) == (4, 2.0, 50_000_000)
    found = await throttled(docs)
    assert len(found) == KEPT_MAX
    assert "d0" not in {each["device"] for each in found}
    again = Throttled(Metrics(), clock, writer=writer)
    await again.open(docs)
    again.note("d7", "device_messages_per_s", 1, 0.1)
    again.write()
    await writer.flush()
    assert (await throttled(docs, device="d7"))[0]["count"] == 5


async def test_the_last_refusal_of_an_id_is_remembered_and_names_are_bounded(parts: Parts) -> None:
    refusals = parts.door.refusals = Refusals(parts.metrics, parts.clock, parts.writer)
    for _ in range(2):
        connection, _ = parts.dial()
        connection.data_received(parts.hello("a", password=parts.token("a", ttl_s=-7200)))
    for number in range(999):
        refusals.note("unknown_device", device=f"x{number}", address="10.0.0.9")
    refusals.write()
    await parts.writer.flush()
    document = await parts.docs.get("refusals", "a")
    assert document is not None
    assert (document.body["reason"], document.body["reasons"]["token_expired"]["count"]) == ("token_expired", 2)
    assert document.body["detail"] == "the token expired 7200 s ago"
    refusals.note("unknown_device", device="one-more")
    refusals.write()
    await parts.writer.flush()
    assert await parts.docs.get("refusals", "a") is None
    again = Refusals(Metrics(), parts.clock, parts.writer)
    await again.open(parts.docs)
    assert again.last("one-more") is not None


async def test_presence_keeps_the_last_activity_to_the_minute_and_the_last_comings_and_goings(parts: Parts) -> None:
    connection, _ = parts.connected("a")
    work = asyncio.ensure_future(parts.ingress.run())
    parts.clock.advance(50)
    connection.data_received(publish("a"))
    heard = parts.clock.now()
    parts.clock.advance(15)
    parts.door.sweep_once()
    await parts.writer.flush()
    document = await parts.docs.get("presence", "a")
    assert document is not None
    assert (document.body["connected"], document.body["last_activity"]) == (True, heard)
    connection.connection_lost(None)
    await parts.writer.flush()
    document = await parts.docs.get("presence", "a")
    assert document is not None
    steps = [(step[1], step[2]) for step in document.body["history"]]
    assert steps == [(True, ""), (False, "closed_by_device")]
    await ended(parts, work)
