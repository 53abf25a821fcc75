"""The fleet's state: cheap to keep, bounded, and true to who was heard when."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson
import pytest
from plant import Incidents

from headrace.core.clock import TICKS_PER_S, ManualClock
from headrace.core.schema import EventBatch, event_batch
from headrace.web.fleet import Fleet
from headrace.web.fleet_room import BEHIND_MAX, FleetRoom

START = ManualClock().now()


def events(names: list[str], at_s: float, site: str = "s1", **values: float) -> EventBatch:
    """One event of each name, enqueued `at_s` seconds after START."""
    return event_batch(
        {
            "_event_id": [f"{name}{at_s}" for name in names],
            "_device": names,
            "_site": [site] * len(names),
            "_enqueued": [START + int(at_s * TICKS_PER_S)] * len(names),
            "_body": [orjson.dumps({"temperature": at_s, **values}) for _ in names],
        }
    )


def at(seconds: float) -> int:
    return START + int(seconds * TICKS_PER_S)


def shown(fleet: Fleet, name: str, seconds: float) -> dict[str, Any]:
    found = fleet.entity(name, at(seconds))
    assert found is not None
    return found


def test_rate_is_counted_from_when_events_were_received_not_from_when_they_were_read() -> None:
    fleet = Fleet()
    for second in range(60):  # a minute of history, read in one go
        fleet.observe(events(["a", "b", "b"], second))
    fleet.tick(at(59))
    assert shown(fleet, "a", 59)["rate"] == pytest.approx(1.0, rel=0.05)
    assert shown(fleet, "b", 59)["rate"] == pytest.approx(2.0, rel=0.05)
    assert fleet.totals(at(60))["events_per_s"] == 3.0


def test_a_machine_is_quiet_after_five_of_its_usual_intervals() -> None:
    fleet = Fleet()
    for second in range(0, 120, 10):
        fleet.observe(events(["slow"], second))
        fleet.tick(at(second))
    for second in range(100, 110):
        fleet.observe(events(["fast"], second))
    fleet.tick(at(110))
    assert [shown(fleet, name, 110)["state"] for name in ("slow", "fast")] == ["ok", "ok"]
    fleet.tick(at(130))
    assert [shown(fleet, name, 130)["state"] for name in ("slow", "fast")] == ["ok", "quiet"]
    fleet.tick(at(200))
    assert shown(fleet, "slow", 200)["state"] == "quiet"


def test_an_open_alert_outranks_silence_and_its_end_gives_the_old_state_back() -> None:
    fleet = Fleet()
    fleet.observe(events(["a"], 0))
    fleet.set_incidents({"a": "critical"})
    fleet.tick(at(500))
    assert shown(fleet, "a", 500)["state"] == "critical"
    fleet.set_incidents({})
    fleet.tick(at(501))
    assert shown(fleet, "a", 501)["state"] == "quiet"


def test_the_newest_values_are_shown_and_a_field_that_an_event_lacks_keeps_its_last() -> None:
    fleet = Fleet()
    fleet.observe(events(["a"], 1, humidity=40.0))
    fleet.observe(events(["a"], 2))
    fleet.tick(at(2))
    fleet.observe(events(["a"], 3, humidity=41.0))
    fleet.tick(at(3))
    fleet.observe(events(["a"], 4))
    fleet.tick(at(4))
    assert shown(fleet, "a", 4)["values"] == {"temperature": 4.0, "humidity": 41.0}


def test_at_most_so_many_events_are_parsed_in_a_tick_and_all_take_their_turn() -> None:
    fleet = Fleet(parse_max=10)
    names = [f"m{number:02d}" for number in range(25)]
    for second in range(3):
        fleet.observe(events(names, second))
        fleet.tick(at(second))
        assert (fleet.parsed[:25] == at(second)).sum() == 10
    assert (fleet.parsed[:25] > 0).all()


def test_machines_beyond_the_limit_are_counted_and_cost_no_memory() -> None:
    fleet = Fleet(entities_max=10)
    fleet.observe(events([f"m{number}" for number in range(30)], 1))
    fleet.tick(at(2))
    totals = fleet.totals(at(2))
    assert (totals["devices"], totals["unlisted"]) == (10, 20)
    assert totals["per_second"].sum() == 30


def test_a_thousand_machines_more_than_expected_fit() -> None:
    fleet = Fleet()
    names = [f"m{number}" for number in range(3000)]
    fleet.observe(events(names, 1))
    fleet.tick(at(1))
    assert shown(fleet, "m2999", 1)["values"] == {} or fleet.parsed[2999] > 0
    assert fleet.totals(at(2))["devices"] == 3000
    assert len(msgspec.json.decode(fleet.snapshot(at(2), limit=2000))["names"]) == 2000


def test_an_alerting_machine_beyond_the_list_is_listed() -> None:
    fleet = Fleet()
    fleet.observe(events([f"m{number}" for number in range(50)], 1))
    fleet.set_incidents({"m42": "warning"})
    fleet.tick(at(1))
    names = [name for _, name, _ in msgspec.json.decode(fleet.snapshot(at(2), limit=10))["names"]]
    assert names == [*(f"m{number}" for number in range(10)), "m42"]


def test_a_delta_names_only_what_is_new_and_holds_only_what_changed() -> None:
    fleet = Fleet()
    fleet.observe(events(["a", "b"], 1))
    fleet.delta(fleet.tick(at(1)), at(1), limit=100)
    fleet.observe(events(["b", "c"], 2))
    delta = msgspec.json.decode(fleet.delta(fleet.tick(at(2)), at(2), limit=100))
    assert [name for _, name, _ in delta["names"]] == ["c"]
    assert delta["rows"]["slot"] == [1, 2]
    assert delta["rows"]["fields"]["temperature"] == [2.0, 2.0]


def test_broken_payloads_neither_stop_nor_blank_the_fleet() -> None:
    fleet = Fleet()
    fleet.observe(events(["a"], 1))
    fleet.tick(at(1))
    bad = event_batch(
        {"_event_id": ["x"], "_device": ["a"], "_enqueued": [at(2)], "_site": ["s1"], "_body": [b"\xff{nonsense"]}
    )
    fleet.observe(bad)
    fleet.tick(at(2))
    assert shown(fleet, "a", 2)["values"] == {"temperature": 1.0}


async def test_a_viewer_that_falls_behind_gets_a_snapshot_instead_of_a_queue() -> None:
    clock = ManualClock()
    fleet = Fleet()
    room = FleetRoom(fleet, Incidents(), clock=clock)
    feed = room.messages()
    assert (await anext(feed)).startswith(b"event: snapshot")
    assert (await anext(feed)).startswith(b"event: alerts")
    for second in range(3 * BEHIND_MAX):
        fleet.observe(events(["a"], second))
        await room.tick()
    viewer = room._viewers[0]
    assert len(viewer.queue) <= BEHIND_MAX
    assert (await anext(feed)).startswith(b"event: snapshot")
    await feed.aclose()  # type: ignore[attr-defined]
    assert room._viewers == []
