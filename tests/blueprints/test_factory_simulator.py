import json
import tomllib
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace.blueprints.factory.feed import FactoryFeed
from headrace.blueprints.factory.simulator import FIELDS, Factory, Readings
from headrace.blueprints.factory.training import training_table
from headrace.blueprints.spec import Blueprint
from headrace.core.clock import TICKS_PER_S, from_iso
from headrace.core.config import parse
from headrace.core.errors import UserError
from headrace.core.plugins import collect
from headrace.warehouse.tables import METADATA_COLUMNS

START = 17_356_896_000_000_000
QUIET = {"spike_every_s": 0.0, "drift_every_s": 0.0}


def grid(plant: Factory, readings: Readings, name: str) -> Any:
    """One column as an array (ticks, machines)."""
    values = readings.rul_s if name == "rul_s" else readings.rows.column(name).to_numpy(zero_copy_only=False)
    return values.reshape(-1, len(plant.machines))


@pytest.fixture(scope="module")
def hour() -> tuple[Factory, Readings]:
    plant = Factory(3, machines=40)
    return plant, plant.step(3600)


@pytest.fixture(scope="module")
def quiet_hour() -> tuple[Factory, Readings]:
    plant = Factory(3, machines=40, **QUIET)
    return plant, plant.step(3600)


@pytest.mark.parametrize("steps", [(1, 59, 1, 239, 600), (450, 450)])
def test_a_seed_is_one_plant_whatever_the_steps(steps: tuple[int, ...]) -> None:
    whole, pieces = Factory(5, machines=20), Factory(5, machines=20)
    expected = whole.step(900)
    got = [pieces.step(count) for count in steps]
    assert pa.Table.from_batches([one.rows for one in got]).combine_chunks() == pa.Table.from_batches([expected.rows])
    assert np.array_equal(np.concatenate([one.rul_s for one in got]), expected.rul_s)
    assert pieces.truth() == whole.truth()


def test_another_seed_is_another_plant() -> None:
    assert Factory(1).step(1).rows != Factory(2).step(1).rows


def test_rows_come_by_time_and_then_machine() -> None:
    plant = Factory(1, factories=5, machines_per_factory=3, tick_s=0.5)
    rows = plant.step(4).rows
    assert [machine.id for machine in plant.machines[4:7]] == ["fac5-cnc-001", "fac1-cnc-002", "fac2-cnc-002"]
    assert rows.column("machineId").to_pylist() == [machine.id for machine in plant.machines] * 4
    assert rows.column("time").to_pylist()[::15] == [START + n * TICKS_PER_S // 2 for n in range(4)]
    assert [from_iso(text) for text in rows.column("ts").to_pylist()] == rows.column("time").to_pylist()
    assert plant.now == START + 2 * TICKS_PER_S
    assert "rul_s" not in rows.schema.names


def test_what_is_put_in_is_the_truth_and_nothing_else(
    hour: tuple[Factory, Readings], quiet_hour: tuple[Factory, Readings]
) -> None:
    """The same plant without incidents differs by exactly the sizes that the truth tells."""
    plant, index = hour[0], {machine.id: number for number, machine in enumerate(hour[0].machines)}
    change = {field: grid(plant, hour[1], field) - grid(plant, quiet_hour[1], field) for field in FIELDS}
    put_in = [incident for incident in plant.truth() if incident.kind != "failure"]
    assert {incident.kind for incident in put_in} == {"spike", "dip", "drift"}
    for incident in put_in:
        begin, end = (int(np.ceil((time - START) / TICKS_PER_S)) for time in (incident.start, incident.end))
        part = change[incident.field][begin:end, index[incident.machine]]
        peak = part[np.argmax(np.abs(part))]
        if incident.kind == "drift" and end > 3600:
            assert 0 < peak <= incident.size + 0.02
        else:
            assert peak == pytest.approx(incident.size, abs=0.02)
        if incident.kind != "drift":
            assert 1 <= end - begin <= 3
            assert np.allclose(part, incident.size, atol=0.02)
        part[:] = 0.0
    assert all(np.all(rest == 0.0) for rest in change.values())


def test_incidents_of_a_machine_do_not_overlap(hour: tuple[Factory, Readings]) -> None:
    for machine in hour[0].machines:
        own = [incident for incident in hour[0].truth() if incident.machine == machine.id]
        assert all(one.end <= other.start for one, other in pairwise(own))


def test_a_tool_wears_fails_and_is_replaced(quiet_hour: tuple[Factory, Readings]) -> None:
    plant, readings = quiet_hour
    rul, rpm, cycle, wear = (grid(plant, readings, name) for name in ("rul_s", "rpm", "cycle", "wear"))
    fails = (rul[1:] == 0) & (rul[:-1] > 0)
    starts = (rul[1:] > 0) & (rul[:-1] == 0)
    assert fails.sum() > 40
    running = (rul[1:] > 0) & (rul[:-1] > 0)
    assert np.allclose((rul[:-1] - rul[1:])[running], 1.0)
    assert np.array_equal(np.diff(cycle, axis=0) == 1, starts)
    assert np.all(wear[1:][starts] < 1.0)
    ticks, machines = np.nonzero(fails[:-15])
    assert np.all(rpm[ticks + 12, machines] < 100)
    assert np.all(rpm[ticks, machines] > 7000)


def test_failures_in_the_truth_are_the_times_without_remaining_life(quiet_hour: tuple[Factory, Readings]) -> None:
    plant, readings = quiet_hour
    rul = grid(plant, readings, "rul_s")
    index = {machine.id: number for number, machine in enumerate(plant.machines)}
    down = np.zeros_like(rul, dtype=bool)
    for incident in plant.truth():
        assert incident.kind == "failure"
        begin, end = (int(np.ceil((time - START) / TICKS_PER_S)) for time in (incident.start, incident.end))
        down[begin:end, index[incident.machine]] = True
    assert np.array_equal(down, rul == 0)


def test_an_undisturbed_machine_never_runs_hot_and_a_drift_always_does(
    hour: tuple[Factory, Readings], quiet_hour: tuple[Factory, Readings]
) -> None:
    """Ten-second means against 82 degrees, the rule that the blueprint's alert uses."""

    def means(pair: tuple[Factory, Readings]) -> Any:
        return grid(pair[0], pair[1], "temperature").reshape(360, 10, -1).mean(axis=1)

    assert means(quiet_hour).max() < 80
    hot, index = means(hour) > 82, {machine.id: number for number, machine in enumerate(hour[0].machines)}
    for incident in hour[0].truth():
        first, last = ((time - START) // (10 * TICKS_PER_S) for time in (incident.start, incident.end))
        if incident.kind == "drift" and last < 360:
            assert hot[first : last + 1, index[incident.machine]].sum() >= 4
            hot[first : last + 1, index[incident.machine]] = False
    drifting = {incident.machine for incident in hour[0].truth() if incident.kind == "drift"}
    assert not hot[:, [number for id, number in index.items() if id not in drifting]].any()


def test_a_new_field_appears_when_told_to() -> None:
    plant = Factory(1, machines=3, new_field_after_s=5)
    assert "humidity" not in plant.step(5).rows.schema.names
    later = Factory(1, machines=3, new_field_after_s=5).step(7).rows.column("humidity")
    assert later.to_pylist()[:15] == [None] * 15
    assert all(20 < value < 70 for value in later.to_pylist()[15:])
    assert plant.step(2).rows.column("humidity").null_count == 0
    assert "humidity" not in Factory(1, machines=3).step(300).rows.schema.names


def test_remaining_life_can_be_learnt_from_another_seeds_history() -> None:
    names = ["temperature", "vibration", "pressure", "rpm", "load"]
    train, unseen = training_table(101, 1.0), training_table(202, 0.5)

    def design(table: pa.Table) -> Any:
        plain = np.stack([np.asarray(table[name]) for name in names], axis=1)
        scaled = (plain - [60, 2.5, 5.8, 9700, 57]) / [7, 1.5, 1, 2500, 10]
        pairs = [scaled[:, i] * scaled[:, j] for i in range(5) for j in range(i, 5)]
        return np.column_stack([np.ones(len(plain)), scaled, *pairs])

    weights = np.linalg.lstsq(design(train), np.asarray(train["rul_s"]), rcond=None)[0]
    truth = np.asarray(unseen["rul_s"])
    error = design(unseen) @ weights - truth
    assert 1 - error.var() / truth.var() > 0.6


def test_the_training_table_has_targets_that_agree() -> None:
    table = training_table(9, 0.2, machines=10, cap_s=300, within_s=60)
    rul, soon = np.asarray(table["rul_s"]), np.asarray(table["fails_within"])
    assert table.num_rows == 720
    assert rul.max() == 300
    assert rul.min() >= 0
    assert np.array_equal(soon == 1, rul <= 60)
    assert 0 < soon.sum() < len(soon)
    assert table.equals(training_table(9, 0.2, machines=10, cap_s=300, within_s=60))


def test_metadata_names_every_factory_and_machine() -> None:
    plant = Factory(1, factories=5, machines_per_factory=4)
    tables = plant.metadata()
    assert tables["factory"]["location"].to_pylist()[:2] == ["Lyon, France", "Monterrey, Mexico"]
    assert set(tables["machine"]["factory"].to_pylist()) == set(tables["factory"]["id"].to_pylist())
    assert tables["machine"]["id"].to_pylist() == [machine.id for machine in plant.machines]
    for name, columns in METADATA_COLUMNS.items():
        assert set(columns) <= set(tables[name].schema.names)
        assert len(set(tables[name]["id"].to_pylist())) == tables[name].num_rows


def test_the_blueprint_is_found_and_makes_its_plant() -> None:
    (spec,) = [found for found in collect("headrace.blueprints", Blueprint) if found.name == "factory"]
    assert spec.simulate is not None
    assert spec.training is not None
    assert spec.metadata is not None
    first, again = (spec.simulate(4, 12, START, 2.0) for _ in range(2))
    assert len(first.devices) == len(first.sites) == 12
    assert first.step() == again.step()
    assert json.loads(first.step()[0])["ts"] == "2025-01-01T00:00:02.0000000Z"
    settings = parse(tomllib.loads(spec.files()["headrace.toml"]))
    for name, model in settings.models.items():
        assert {*model.features, model.target} <= set(spec.training(name).schema.names)
    assert set(spec.metadata()) == set(METADATA_COLUMNS)


def test_the_feed_sends_one_body_a_machine_and_never_the_truth() -> None:
    feed = FactoryFeed(Factory(1, machines=7, new_field_after_s=1))
    bodies = [json.loads(body) for body in feed.step()]
    assert [body["machineId"] for body in bodies] == feed.devices
    assert [body["factory"] for body in bodies] == feed.sites
    assert set(bodies[0]) == {"machineId", "factory", "ts", *FIELDS, "wear", "cycle"}
    assert "humidity" in json.loads(feed.step()[0])


def test_impossible_plants_are_refused() -> None:
    for wrong in ({"factories": 0}, {"tick_s": 0.0}, {"life_s": 10.0}):
        with pytest.raises(UserError):
            Factory(1, **wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError):
        Factory(1).step(0)


def test_slow_senders_see_the_same_physics() -> None:
    """A reading every five seconds: tools still live about as long, and every block crosses at most one tool change."""
    plant = Factory(4, machines=30, tick_s=5.0)
    readings = plant.step(1440)
    fails = [incident for incident in plant.truth() if incident.kind == "failure"]
    lives = 30 * 7200 / len(fails)
    assert 700 < lives < 1250
    rul = grid(plant, readings, "rul_s")
    assert np.allclose((rul[:-1] - rul[1:])[(rul[1:] > 0) & (rul[:-1] > 0) & (rul[1:] < rul[:-1])], 5.0)
