"""The blueprint's own end-to-end check: script, trained model and rules on plants that nobody has seen."""

from __future__ import annotations

import pytest

from headrace.alerts.model import Incident as Alert
from headrace.blueprints.factory import FACTORY
from headrace.blueprints.factory.expect import ASKS, START, arrivals, judged
from headrace.blueprints.factory.simulator import Factory
from headrace.blueprints.factory.truth import Incident
from headrace.blueprints.spec import Figure
from headrace.cli.blueprint import print_expectation
from headrace.core.clock import TICKS_PER_S

HOUR = {"since": START, "until": START + 3600 * TICKS_PER_S}


def at(seconds: float) -> int:
    return START + int(seconds * TICKS_PER_S)


def alert(rule: str, machine: str, opened: float, last_seen: float, field: str = "") -> Alert:
    return Alert(
        id=f"{rule}-{machine}-{opened}",
        rule=rule,
        stream="s",
        key=machine,
        severity="warning",
        title="",
        opened=at(opened),
        last_seen=at(last_seen),
        fields={"field": field} if field else {},
    )


def figure(rule: str, alerts: list[Alert], truth: list[Incident]) -> Figure:
    return next(one for one in judged(alerts, truth, **HOUR) if one.rule == rule)


@pytest.mark.parametrize("seed", [9001, 9002, 9003])
async def test_alerts_are_right_and_miss_little_on_a_plant_nobody_has_seen(
    seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert FACTORY.expect is not None
    found = await FACTORY.expect(seed)
    with capsys.disabled():
        print()
        print_expectation(found)
    assert {one.rule for one in found.figures} == set(ASKS)
    assert found.set_aside == 0
    for one in found.figures:
        assert one.happened >= 5, f"{one.rule}: too little happened to show anything"
        assert one.precision >= one.precision_min >= 0.9, one
        assert one.recall >= one.recall_min >= 0.8, one
    assert found.met


def test_a_warning_after_the_failure_has_begun_is_too_late() -> None:
    failure = Incident("m1", "failure", at(1000), at(1040), "", 0.0)
    in_time = figure("maintenance", [alert("maintenance", "m1", 920, 1030)], [failure])
    late = figure("maintenance", [alert("maintenance", "m1", 1010, 1030)], [failure])
    assert (in_time.found, in_time.right, in_time.note) == (1, 1, "warned 80 s before, nine in ten at least 80 s")
    assert (late.found, late.right) == (0, 0)


def test_a_warning_far_too_early_is_a_false_alarm() -> None:
    failure = Incident("m1", "failure", at(1000), at(1040), "", 0.0)
    early = figure("maintenance", [alert("maintenance", "m1", 500, 700)], [failure])
    assert (early.found, early.raised, early.right) == (0, 1, 0)


def test_a_jump_while_a_tool_breaks_is_no_find_of_a_spike() -> None:
    truth = [Incident("m1", "failure", at(1000), at(1040), "", 0.0)]
    assert figure("anomaly", [alert("anomaly", "m1", 1001, 1001, "pressure")], truth).right == 0


def test_silence_and_alarms_at_random_do_not_meet_what_is_asked() -> None:
    plant = Factory(5, machines=20, start_ticks=START)
    plant.step(3600)
    truth = plant.truth()
    assert not any(one.met for one in judged([], truth, **HOUR))
    machines = [machine.id for machine in plant.machines]
    noise = [
        alert(rule, machines[number % 20], 37.0 * number % 3500, 37.0 * number % 3500 + 20, "temperature")
        for rule in ASKS
        for number in range(300)
    ]
    assert not any(one.met for one in judged(noise, truth, **HOUR))


def test_readings_arrive_by_moment_with_an_id_each() -> None:
    plant = Factory(3, machines=4, start_ticks=START)
    found = arrivals(plant, 2) + arrivals(plant, 1)
    assert [time - START for time, _ in found] == [2_000_000, 12_000_000, 22_000_000]
    ids = [id for _, batch in found for id in batch.column("_event_id").to_pylist()]
    assert len(ids) == len(set(ids)) == 12
    assert found[0][1].column("_device").to_pylist() == [machine.id for machine in plant.machines]
