"""Clock, identity, retry, metrics and health."""

import asyncio
import random
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.clock import TICKS_PER_S, YEAR_ONE, ManualClock, from_datetime, from_iso, to_datetime, to_iso
from headrace.core.errors import Unavailable, UserError, nearest
from headrace.core.identity import EventIds, derived_event_id, message_event_id, partition_of
from headrace.core.observe.health import Health
from headrace.core.observe.metrics import Metrics
from headrace.core.retry import retry


@given(st.integers(YEAR_ONE, 253_402_300_799 * TICKS_PER_S))
def test_iso_text_and_ticks_are_the_same_instant(ticks: int) -> None:
    assert from_iso(to_iso(ticks)) == ticks


def test_an_offset_is_turned_into_utc() -> None:
    assert to_iso(from_iso("2025-01-01T00:00:00.1234567+02:00")) == "2024-12-31T22:00:00.1234567Z"


def test_datetimes_survive_to_the_microsecond() -> None:
    moment = datetime(2026, 11, 22, 13, 0, 0, 123456, tzinfo=UTC)
    assert to_datetime(from_datetime(moment)) == moment


def test_text_that_is_no_time_says_how_to_write_one() -> None:
    with pytest.raises(UserError, match="2025-01-31"):
        from_iso("yesterday")


async def test_a_sleeper_wakes_when_the_manual_clock_passes_it() -> None:
    clock = ManualClock()
    woken: list[str] = []

    async def sleeper(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append(name)

    tasks = [asyncio.create_task(sleeper("late", 20)), asyncio.create_task(sleeper("early", 5))]
    await asyncio.sleep(0)
    clock.advance(10)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert woken == ["early"]
    clock.advance(10)
    await asyncio.gather(*tasks)
    assert woken == ["early", "late"]


def test_a_resent_message_keeps_its_event_id_and_others_never_share_one() -> None:
    assert message_event_id("a", None, "1") == message_event_id("a", None, "1")
    assert message_event_id("a", None, "1") != message_event_id("a", "1", "")
    ids = EventIds(b"seed")
    assert ids.take() != ids.take()
    assert derived_event_id("job", 1, 2) == derived_event_id("job", 1, 2) != derived_event_id("job", 2, 1)


def test_a_device_always_lands_in_the_same_partition() -> None:
    assert [partition_of(f"dev-{i}", 4) for i in range(8)] == [partition_of(f"dev-{i}", 4) for i in range(8)]
    assert {partition_of(f"dev-{i}", 4) for i in range(100)} == {0, 1, 2, 3}


async def test_retry_waits_for_what_is_unavailable_and_gives_up_at_its_bound() -> None:
    clock = ManualClock()
    calls = 0

    async def flaky() -> int:
        nonlocal calls
        calls += 1
        clock.advance(100)
        raise Unavailable("not now")

    async def pump() -> None:
        while True:
            clock.advance(10)
            await asyncio.sleep(0)

    pumping = asyncio.create_task(pump())
    with pytest.raises(Unavailable):
        await retry(flaky, clock=clock, rng=random.Random(1), tries_max=4)
    pumping.cancel()
    assert calls == 4


def test_a_health_check_that_raises_is_a_problem_not_a_crash() -> None:
    health = Health()
    health.register("good", lambda: "")
    health.register("bad", lambda: str(1 // 0))
    assert list(health.problems()) == ["bad"]


def test_a_metric_asked_for_twice_is_one_metric() -> None:
    metrics = Metrics()
    metrics.counter("things", "Things", ("kind",)).labels("a").inc()
    metrics.counter("things", "Things", ("kind",)).labels("a").inc()
    assert b'headrace_things_total{kind="a"} 2.0' in metrics.expose()


def test_the_nearest_name_is_offered_only_when_it_is_near() -> None:
    assert "telemetry" in nearest("telemetri", ["telemetry", "scored"])
    assert nearest("zzz", ["telemetry"]) == ""
