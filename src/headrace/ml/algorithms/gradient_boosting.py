"""Histogram gradient boosting: the default. Takes empty values and any scale, trains in seconds."""

from __future__ import annotations

from typing import Any

from headrace.ml.algorithm import Algorithm, Task
from headrace.ml.extra import load


def _build(task: Task, seed: int) -> Any:
    ensemble = load("sklearn.ensemble")
    options = {"learning_rate": 0.08, "max_iter": 150, "min_samples_leaf": 20, "random_state": seed}
    if task == "classification":
        return ensemble.HistGradientBoostingClassifier(**options)
    return ensemble.HistGradientBoostingRegressor(**options)


GRADIENT_BOOSTING = Algorithm("gradient_boosting", "trees that correct each other", takes_nulls=True, build=_build)
