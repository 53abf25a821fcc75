"""From connections into the log: nothing lost, nothing acknowledged early, nothing without a bound."""

from __future__ import annotations

import asyncio

from gateway_parts import Parts, publish, rows_of, until

from headrace.gateway.limits import RateLimit


async def finished(parts: Parts, task: asyncio.Task[None]) -> None:
    """Move the clock on until the ingress has stored everything."""
    for _ in range(1000):
        if task.done():
            return
        parts.clock.advance(1)
        await asyncio.sleep(0)
    raise AssertionError("the ingress does not end")


async def test_nothing_is_acknowledged_while_the_log_refuses(parts: Parts) -> None:
    parts.log.refusals = 2
    connection, wire = parts.connected("a")
    connection.data_received(publish("a", number=5))
    parts.ingress.close()
    task = asyncio.create_task(parts.ingress.run())
    await until(lambda: parts.log.appends == 1)
    assert wire.written == b""
    assert parts.ingress.trouble == "eventlog.full: the disk is full"
    await finished(parts, task)
    assert parts.log.appends == 3
    assert wire.written == b"\x40\x02\x00\x05"
    assert parts.ingress.trouble == ""
    assert parts.ingress.pending_rows == 0


async def test_a_batch_whose_answer_got_lost_is_stored_once(parts: Parts) -> None:
    parts.log.lost_answers = 1
    connection, wire = parts.connected("a")
    connection.data_received(publish("a"))
    parts.ingress.close()
    task = asyncio.create_task(parts.ingress.run())
    await finished(parts, task)
    assert parts.log.appends == 2
    assert len(await rows_of(parts.log)) == 1
    assert wire.written == b"\x40\x02\x00\x01"


async def test_messages_of_many_devices_share_one_append(parts: Parts) -> None:
    wires = []
    for id in ("a", "b"):
        connection, wire = parts.connected(id)
        connection.data_received(publish(id, number=1) + publish(id, number=2))
        wires.append(wire)
    await parts.settle()
    assert parts.log.appends == 1
    assert [wire.written for wire in wires] == [b"\x40\x02\x00\x01\x40\x02\x00\x02"] * 2


async def test_the_order_of_a_device_is_kept_over_batches() -> None:
    parts = Parts(batch_rows_max=3)
    connection, _ = parts.connected("a")
    for number in range(1, 11):
        connection.data_received(publish("a", body=str(number).encode(), number=number))
    await parts.settle()
    assert parts.log.appends == 4
    rows = sorted(await rows_of(parts.log), key=lambda row: row["_offset"])
    assert [int(row["_body"]) for row in rows] == list(range(1, 11))


async def test_a_resent_message_is_one_event(parts: Parts) -> None:
    connection, _ = parts.connected("a")
    connection.data_received(publish("a", "$.mid=7", number=1))
    again, wire = parts.connected("a")
    again.data_received(publish("a", "$.mid=7", number=1))
    await parts.settle()
    assert len(await rows_of(parts.log)) == 1
    assert wire.written == b"\x40\x02\x00\x01"


async def test_above_the_bound_the_hub_stops_reading_and_goes_on_when_there_is_room() -> None:
    parts = Parts(pending_bytes_max=3000)
    parts.log.refusals = 1
    loud, loud_wire = parts.connected("a")
    _, other_wire = parts.connected("b")
    for _ in range(4):
        loud.data_received(publish("a", body=b"x" * 900))
    assert parts.ingress.full
    assert loud_wire.paused
    assert other_wire.paused
    late, late_wire = parts.connected("b")
    late.data_received(publish("b"))
    assert late_wire.paused
    parts.clock.advance(600)
    parts.door.sweep_once()
    assert not loud_wire.closed  # its pings could not be heard
    parts.ingress.close()
    task = asyncio.create_task(parts.ingress.run())
    await finished(parts, task)
    assert not loud_wire.paused
    assert not late_wire.paused
    assert len(await rows_of(parts.log)) == 5


async def test_an_unknown_error_of_the_log_loses_nothing(parts: Parts) -> None:
    working = parts.log.append
    failures = [RuntimeError("a bug")]

    async def append(*args: object, **options: object) -> object:
        if failures:
            raise failures.pop()
        return await working(*args, **options)  # type: ignore[arg-type]

    parts.log.append = append  # type: ignore[method-assign, assignment]
    connection, wire = parts.connected("a")
    connection.data_received(publish("a"))
    parts.ingress.close()
    task = asyncio.create_task(parts.ingress.run())
    await finished(parts, task)
    assert wire.written == b"\x40\x02\x00\x01"


async def test_set_aside_messages_are_bounded(parts: Parts) -> None:
    for _ in range(600):
        connection, _ = parts.connected("a")
        connection.data_received(publish("b"))
        connection.connection_lost(None)
    await parts.settle()
    assert len(await rows_of(parts.log, "set_aside")) == 500
    assert parts.refused()["forbidden_topic"] == 600


async def test_events_above_the_rate_wait(parts: Parts) -> None:
    limit = RateLimit(128, parts.clock)
    assert limit.take(128) == 0  # a burst of one second
    assert limit.take(64) == 0.5
    parts.clock.advance(0.5)
    assert limit.wait_s == 0
    assert limit.take(1) == 1 / 128


async def test_no_rate_is_no_limit(parts: Parts) -> None:
    assert RateLimit(0, parts.clock).take(1_000_000) == 0
