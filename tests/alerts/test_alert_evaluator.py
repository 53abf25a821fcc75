"""When incidents open, hold and resolve."""

import random

import pytest

from headrace.alerts.evaluator import Evaluator, RuleState, Seen
from headrace.alerts.model import Rule, incident_id, titled
from headrace.core.clock import TICKS_PER_S

S = TICKS_PER_S


def rule(for_s=0, clear_s=60):
    return Rule(
        name="hot",
        stream="s",
        when="",
        title="{machineId} at {t} {nothing}",
        for_ticks=int(for_s * S),
        clear_ticks=int(clear_s * S),
    )


def hit(second, t=95.0, key="m1"):
    return Seen(int(second * S), key, True, {"machineId": key, "t": t}, key, "north")


def miss(second, key="m1"):
    return Seen(int(second * S), key, False, {"machineId": key, "t": 20.0}, key, "north")


def kinds(changes):
    return [change.kind for change in changes]


def test_a_match_opens_and_later_ones_hold():
    evaluator = Evaluator(rule())
    (opened,) = evaluator.observe([hit(0)])
    assert (opened.kind, opened.incident.title, opened.incident.opened) == ("opened", "m1 at 95", 0)
    assert kinds(evaluator.observe([hit(1, 99.0), miss(2), hit(3, 91.0)])) == ["held"]
    incident = evaluator.active["m1"]
    assert (incident.events, incident.peak["t"], incident.fields["t"], incident.last_seen) == (3, 99.0, 91.0, 3 * S)


def test_it_resolves_only_after_the_condition_was_absent_for_the_whole_clear_time():
    evaluator = Evaluator(rule(clear_s=60))
    evaluator.observe([hit(0), hit(10)])
    assert evaluator.advance(70 * S) == []
    (resolved,) = evaluator.advance(70 * S + 1)
    assert (resolved.kind, resolved.incident.state, resolved.incident.resolved) == ("resolved", "resolved", 70 * S)
    assert evaluator.advance(200 * S) == []
    assert not evaluator.active


def test_flapping_within_the_clear_time_stays_one_incident():
    evaluator = Evaluator(rule(clear_s=60))
    changes = evaluator.observe([event for n in range(10) for event in (hit(50 * n), miss(50 * n + 1))])
    assert kinds(changes) == ["opened"]
    assert evaluator.active["m1"].events == 10


def test_a_match_after_the_clear_time_is_a_new_incident_in_the_same_batch_too():
    evaluator = Evaluator(rule(clear_s=60))
    changes = evaluator.observe([hit(0), hit(61)])
    assert kinds(changes) == ["opened", "resolved", "opened"]
    assert changes[0].incident.id != changes[2].incident.id


def test_for_waits_until_the_condition_has_held_and_a_miss_starts_over():
    evaluator = Evaluator(rule(for_s=10))
    assert evaluator.observe([hit(0), hit(9), miss(9.5), hit(10), hit(19.9)]) == []
    assert evaluator.watched == {"m1"}
    (opened,) = evaluator.observe([hit(20)])
    assert (opened.incident.opened, opened.incident.events) == (20 * S, 3)


def test_a_slow_device_can_fulfil_for_though_its_events_are_further_apart_than_clear():
    evaluator = Evaluator(rule(for_s=300, clear_s=60))
    assert kinds(evaluator.observe([hit(0), hit(120), hit(240), hit(360)])) == ["opened"]


def test_a_streak_that_nobody_continues_is_forgotten():
    evaluator = Evaluator(rule(for_s=10, clear_s=60))
    evaluator.observe([hit(0)])
    evaluator.advance(61 * S)
    assert evaluator.watched == frozenset()


def test_keys_have_incidents_of_their_own():
    evaluator = Evaluator(rule())
    assert kinds(evaluator.observe([hit(0, key="a"), hit(0, key="b")])) == ["opened", "opened"]
    assert sorted(evaluator.active) == ["a", "b"]


@pytest.mark.parametrize("seed", range(8))
def test_cuts_and_restarts_change_nothing(seed):
    rng = random.Random(seed)
    second, events = 0.0, []
    for _ in range(200):
        second += rng.choice([0, 1, 5, 30, 70])
        events.append(rng.choice([hit, hit, miss])(second, key=rng.choice("abc")))
    one = Evaluator(rule(for_s=5, clear_s=40))
    whole = one.observe(events) + one.advance(int(second + 1000) * S)
    pieces, state, start = [], RuleState(), 0
    while start < len(events):
        end = start + rng.choice([1, 3, 20])
        evaluator = Evaluator(rule(for_s=5, clear_s=40), state)
        pieces += evaluator.observe(events[start:end]) + evaluator.advance(events[min(end, len(events)) - 1].time)
        state, start = evaluator.snapshot(), end
    pieces += Evaluator(rule(for_s=5, clear_s=40), state).advance(int(second + 1000) * S)

    def lasting(changes):
        return sorted(
            (i.id, i.key, i.opened, i.resolved, i.events, i.peak["t"]) for kind, i in changes if kind == "resolved"
        )

    assert lasting(pieces) == lasting(whole), f"seed {seed}"
    assert len(lasting(whole)) > 5


def test_titles_never_raise():
    fields = {"a": 1.23456789, "b": None, "c": {"d": 1}}
    assert titled("{a} {b}{missing} {c} {}", fields, rule="r", key="k") == "1.23  {'d': 1}"
    assert titled("{a:>10} {broken", fields, rule="r", key="k") == "{broken"
    assert titled("", fields, rule="r", key="k") == "r: k"


def test_ids_are_stable_and_newest_first():
    ids = [incident_id("r", "k", second * S) for second in (1, 2, 1_000_000_000, 4_000_000_000)]
    assert ids == sorted(ids, reverse=True)
    assert ids[0] == incident_id("r", "k", S)
    assert ids[0] != incident_id("r", "l", S)


def test_numbers_in_titles_have_as_many_digits_as_people_read() -> None:
    fields = {"s": 85.0194, "t": 84.3149, "rpm": 11873.62, "p": 5.27e-07, "n": 1234567, "load": -123.456}
    told = titled("{s} s, {t} °C, {rpm}, {p}, {n}, {load}", fields, rule="r", key="k")
    assert told == "85 s, 84.3 °C, 11874, 5.27e-07, 1234567, -123"
