"""The factory's own end-to-end check: its alerts against what the simulator knows really happened.

A plant of an unseen seed feeds the project's own script, a really trained model and the project's own rules. The model
has learnt from another plant, so neither it nor the thresholds know these machines.
"""

from __future__ import annotations

import asyncio
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from headrace.alerts.model import Incident as Alert
from headrace.blueprints.factory.rehearsal import Arrivals, Rehearsal
from headrace.blueprints.factory.simulator import Factory
from headrace.blueprints.factory.training import HOURS, SEED, training_table
from headrace.blueprints.factory.truth import AFTER_S, BEFORE_S, Detection, Incident, Kind, Score, score
from headrace.blueprints.spec import Expectation, Figure, packaged_files
from headrace.connectors.file_formats import json_objects
from headrace.core.clock import TICKS_PER_MS, TICKS_PER_S
from headrace.core.config import ModelConfig, parse
from headrace.core.schema import event_batch
from headrace.ml.registry import LoadedModel
from headrace.ml.scoring import as_function
from headrace.ml.training import Trained, train
from headrace.sql.functions.user import UserFunction

MACHINES = 40
PLANT_S = 1500
PORTION_S = 10  # of plant time that arrives between two looks of the jobs: a ten-second window's own grain
DELAY_TICKS = 200 * TICKS_PER_MS  # from a reading to its arrival
START = 17_356_896_000_000_000  # 2025-01-01T00:00:00Z
LEARNING_S = 150.0  # detectors need 120 readings first
HORIZON_S = 180.0  # how early a warning of a failure still counts as one of that failure
UNDER_WAY_S = 180.0  # at the end, what began is not judged yet


class Ask(NamedTuple):
    """What a rule is there to find, how its alerts are matched, and the least that is asked of it.

    `excused` makes an alert right without being what was looked for: a bearing that heats up is a jump at first.
    """

    about: str
    kinds: tuple[Kind, ...]
    precision_min: float
    recall_min: float
    excused: tuple[Kind, ...] = ()
    before_s: float = BEFORE_S
    after_s: float = AFTER_S
    in_time: bool = False  # only an alert before the incident begins finds it


ASKS: Mapping[str, Ask] = {
    "maintenance": Ask("tools that fail", ("failure",), 0.9, 0.9, before_s=HORIZON_S, after_s=0.0, in_time=True),
    "anomaly": Ask("spikes and dips", ("spike", "dip"), 0.92, 0.86, excused=("drift",)),
    "overheating": Ask("bearings that heat", ("drift",), 0.9, 0.9),
}
"""Seeds 21 to 26 had precision from 0.98, 0.97 and 1.00 up, recall from 0.97, 0.93 and 1.00 up. What is missed among spikes
is mostly the second of two within the detector's memory of two minutes: the first has taught it that such values occur."""


async def expect(seed: int, *, machines: int = MACHINES, plant_s: int = PLANT_S) -> Expectation:
    """Run a plant of `seed` for `plant_s` seconds of its own time, and judge. One alert is one incident of a rule."""
    files = packaged_files("headrace.blueprints.factory")
    settings = parse(tomllib.loads(files["headrace.toml"]))
    functions = {
        f"udf.{name}": await asyncio.to_thread(trained_function, name, config)
        for name, config in settings.models.items()
    }
    plant = Factory(seed, machines=machines, start_ticks=START)
    with tempfile.TemporaryDirectory() as folder:
        chain = Rehearsal(files, settings, functions=functions, folder=Path(folder), start=START)
        await chain.open()
        try:
            for first in range(0, plant_s, PORTION_S):
                await chain.feed("telemetry", arrivals(plant, min(PORTION_S, plant_s - first)))
            alerts = await chain.incidents()
        finally:
            await chain.close()
    until = START + int((plant_s - UNDER_WAY_S) * TICKS_PER_S)
    figures = judged(alerts, plant.truth(), since=START + int(LEARNING_S * TICKS_PER_S), until=until)
    return Expectation(seed, machines, plant_s, machines * plant_s, chain.set_aside(), figures)


def arrivals(plant: Factory, seconds: int) -> Arrivals:
    """The next readings as they would come in: those of one moment together."""
    rows = plant.step(seconds).rows
    times = rows.column("time").to_pylist()
    rows = rows.drop_columns(["time"])
    bodies = json_objects(rows.schema.names, rows.columns)
    ids = rows.column("machineId").to_pylist()
    size = len(plant.machines)
    return [
        (
            times[at] + DELAY_TICKS,
            event_batch(
                {
                    "_event_id": [f"h{times[at]}-{number}" for number in range(size)],
                    "_device": ids[at : at + size],
                    "_body": bodies[at : at + size],
                }
            ),
        )
        for at in range(0, len(bodies), size)
    ]


def judged(alerts: Sequence[Alert], truth: Sequence[Incident], *, since: int, until: int) -> tuple[Figure, ...]:
    """A figure for each rule of ASKS: alerts and incidents between `since` and `until` (ticks)."""
    figures = []
    for rule, ask in ASKS.items():
        own = [_detection(alert) for alert in alerts if alert.rule == rule]
        happened = [one._replace(end=one.start) if ask.in_time and one.kind in ask.kinds else one for one in truth]
        result: Score = score(
            own,
            happened,
            kinds={rule: ask.kinds},
            excused={rule: ask.excused},
            before_s=ask.before_s,
            after_s=ask.after_s,
            since=since,
            until=until,
            lead_s=ask.before_s if ask.in_time else 0.0,
        )[rule]
        note = _leads(own, [one for one in happened if since <= one.start <= until]) if ask.in_time else ""
        figures.append(
            Figure(
                rule,
                ask.about,
                result.incidents,
                result.found,
                result.detections,
                result.correct,
                ask.precision_min,
                ask.recall_min,
                note,
            )
        )
    return tuple(figures)


def _detection(alert: Alert) -> Detection:
    return Detection(alert.key, alert.rule, alert.opened, alert.last_seen, str(alert.fields.get("field", "")))


def _leads(warnings: Sequence[Detection], failures: Sequence[Incident]) -> str:
    """How long before its failure a warning came: the median, and what nine in ten have at least."""
    leads = [
        (failure.start - min(opened)) / TICKS_PER_S
        for failure in failures
        if failure.kind == "failure"
        and (
            opened := [
                one.start
                for one in warnings
                if one.machine == failure.machine
                and failure.start - HORIZON_S * TICKS_PER_S <= one.end
                and one.start <= failure.start
            ]
        )
    ]
    if not leads:
        return ""
    return f"warned {np.median(leads):.0f} s before, nine in ten at least {np.quantile(leads, 0.1):.0f} s"


@lru_cache(maxsize=4)
def trained_function(name: str, config: ModelConfig) -> UserFunction:
    """The model of the project's settings, trained here and now on the blueprint's history. Takes seconds, once."""
    made: Trained = train(
        training_table(SEED, HOURS),
        features=config.features,
        target=config.target,
        task=config.task,
        algorithm=config.algorithm,
        seed=1,
        group=config.group,
    )
    return UserFunction(f"udf.{name}", as_function(LoadedModel(name, 1, made.signature, made.model)))
