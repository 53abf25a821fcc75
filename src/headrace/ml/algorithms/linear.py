"""Ridge and logistic regression on standardised features: the baseline that others must beat. Fastest to score."""

from __future__ import annotations

from typing import Any

from headrace.ml.algorithm import Algorithm, Task
from headrace.ml.extra import load


def _build(task: Task, seed: int) -> Any:
    linear, preprocessing, pipeline = (load(f"sklearn.{n}") for n in ("linear_model", "preprocessing", "pipeline"))
    if task == "classification":
        last = linear.LogisticRegression(class_weight="balanced", max_iter=1000, random_state=seed)
    else:
        last = linear.Ridge(alpha=1.0, random_state=seed)
    return pipeline.make_pipeline(preprocessing.StandardScaler(), last)


LINEAR = Algorithm("linear", "a weighted sum of the features", takes_nulls=False, build=_build)
