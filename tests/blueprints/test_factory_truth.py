import math

from headrace.blueprints.factory.truth import Detection, Incident, score
from headrace.core.clock import TICKS_PER_S

KINDS = {"anomaly": ("spike", "dip")}


def at(seconds: float) -> int:
    return int(seconds * TICKS_PER_S)


def spike(start: float, *, machine: str = "m1", field: str = "temperature") -> Incident:
    return Incident(machine, "spike", at(start), at(start + 1), field, 15.0)


def seen(start: float, *, machine: str = "m1", field: str = "temperature", end: float | None = None) -> Detection:
    return Detection(machine, "anomaly", at(start), at(start if end is None else end), field)


def test_a_find_in_time_counts_for_both() -> None:
    result = score([seen(101)], [spike(100)], kinds=KINDS)["anomaly"]
    assert (result.recall, result.precision) == (1.0, 1.0)


def test_another_machine_field_or_time_is_no_find() -> None:
    wrong = [seen(100, machine="m2"), seen(100, field="pressure"), seen(90), seen(140)]
    result = score(wrong, [spike(100)], kinds=KINDS)["anomaly"]
    assert (result.found, result.correct, result.detections) == (0, 0, 4)
    assert (result.recall, result.precision) == (0.0, 0.0)


def test_the_tolerance_is_what_was_given() -> None:
    late = [seen(111.5)]
    assert score(late, [spike(100)], kinds=KINDS, after_s=10)["anomaly"].found == 0
    assert score(late, [spike(100)], kinds=KINDS, after_s=11)["anomaly"].found == 1
    assert score([seen(95)], [spike(100)], kinds=KINDS, before_s=4)["anomaly"].found == 0
    assert score([seen(95, end=97)], [spike(100)], kinds=KINDS, before_s=4)["anomaly"].found == 1


def test_many_detections_of_one_incident_are_right_but_one_find() -> None:
    result = score([seen(100), seen(101), seen(102)], [spike(100), spike(500)], kinds=KINDS)["anomaly"]
    assert (result.found, result.incidents, result.correct, result.detections) == (1, 2, 3, 3)


def test_a_detection_without_a_field_matches_any() -> None:
    assert score([seen(100, field="")], [spike(100)], kinds=KINDS)["anomaly"].found == 1


def test_an_excused_kind_makes_no_false_alarm_and_needs_no_find() -> None:
    failure = Incident("m1", "failure", at(100), at(140), "", 0.0)
    plain = score([seen(120)], [failure], kinds=KINDS)["anomaly"]
    excused = score([seen(120)], [failure], kinds=KINDS, excused={"anomaly": ("failure",)})["anomaly"]
    assert (plain.correct, excused.correct) == (0, 1)
    assert (plain.incidents, excused.incidents) == (0, 0)
    assert math.isnan(excused.recall)


def test_a_prediction_may_come_before_what_it_predicts() -> None:
    failure = Incident("m1", "failure", at(1000), at(1040), "", 0.0)
    told = [Detection("m1", "maintenance", at(900), at(950))]
    kinds = {"maintenance": ("failure",)}
    assert score(told, [failure], kinds=kinds, before_s=180)["maintenance"].recall == 1.0
    assert score(told, [failure], kinds=kinds)["maintenance"].recall == 0.0


def test_only_the_time_looked_at_counts() -> None:
    truth = [spike(10), spike(100), spike(1000)]
    result = score([seen(10), seen(100)], truth, kinds=KINDS, since=at(50), until=at(500))["anomaly"]
    assert (result.incidents, result.found, result.detections) == (1, 1, 1)


def test_what_comes_too_soon_to_be_foreseen_need_not_be_found() -> None:
    truth = [spike(100), spike(300)]
    result = score([], truth, kinds=KINDS, since=at(50), lead_s=180)["anomaly"]
    assert result.incidents == 1
