"""Random forest: robust with little data; slower to score than boosting (10 ms a call and up)."""

from __future__ import annotations

from typing import Any

from headrace.ml.algorithm import Algorithm, Task
from headrace.ml.extra import load


def _build(task: Task, seed: int) -> Any:
    ensemble = load("sklearn.ensemble")
    options = {"n_estimators": 60, "min_samples_leaf": 3, "max_features": 0.5, "random_state": seed, "n_jobs": 1}
    if task == "classification":
        return ensemble.RandomForestClassifier(**options)
    return ensemble.RandomForestRegressor(**options)


RANDOM_FOREST = Algorithm("random_forest", "the mean of many trees", takes_nulls=True, build=_build)
