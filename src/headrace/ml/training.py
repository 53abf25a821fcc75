"""Training: from a table to a model with honest figures.

Figures come from rows the model did not see, and when rows belong to groups (engines, machines) from groups it did not
see: rows of one engine are so alike that a split by row would flatter. The model itself then learns from all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.core.errors import DataError, NotFound, UserError, nearest
from headrace.ml.algorithm import Algorithm, Task, algorithm_named
from headrace.ml.extra import load
from headrace.ml.features import Floats, column_of, group_labels, matrix, numbers
from headrace.ml.threads import one_thread

ROWS_MIN = 20
_HELD_OUT = 0.25


@dataclass(frozen=True)
class Signature:
    """What the model takes and gives: everything needed to call it."""

    features: tuple[str, ...]
    target: str
    task: Task
    algorithm: str
    takes_nulls: bool


@dataclass(frozen=True)
class Trained:
    """A fitted model. `metrics` are of held-out rows; `rows` is what it learned from."""

    model: Any
    metrics: dict[str, float]
    signature: Signature
    rows: int
    seed: int


def train(
    table: pa.Table,
    features: Sequence[str],
    target: str,
    task: Task = "regression",
    algorithm: str = "gradient_boosting",
    seed: int = 0,
    *,
    group: str = "",
) -> Trained:
    """Fit a model that tells `target` from `features`; same table and seed, same model.

    `group` names the column that says which rows belong together. Rows without a target are left out, rows with an empty
    feature too where the algorithm cannot take them. Regression: `rmse`, `mae`, and `rmse_of_mean` (what always saying the
    mean would get). Classification (target 0/1): `auc`, `average_precision`, `f1` at 0.5, `positive_share`.
    Raises NotFound (column), UserError (algorithm, types), DataError (too few rows, one class only).
    """
    if task not in get_args(Task):
        raise UserError(
            f"there is no task {task!r}", hint=nearest(task, get_args(Task)) or "regression or classification"
        )
    if not features:
        raise UserError("no features given", hint="name at least one column", code="ml.features")
    if target in features:
        raise UserError(f"target {target!r} is among the features", hint="leave it out", code="ml.features")
    spec = algorithm_named(algorithm)
    x, y = matrix(table, features), numbers(column_of(table, target).combine_chunks(), target)
    groups = group_labels(table, group) if group else np.arange(len(y))
    usable = np.isfinite(y) if spec.takes_nulls else np.isfinite(y) & np.isfinite(x).all(axis=1)
    x, y, groups = x[usable], y[usable], groups[usable]
    _check(y, task, target)
    unseen = held_out(groups, seed)
    fitted = _fit(spec, task, seed, x[~unseen], y[~unseen])
    metrics = evaluate(y[unseen], predict(fitted, task, x[unseen]), task)
    if task == "regression":
        metrics["rmse_of_mean"] = float(np.sqrt(np.mean((y[unseen] - y[~unseen].mean()) ** 2)))
    metrics["rows_held_out"] = float(unseen.sum())
    signature = Signature(tuple(features), target, task, spec.name, spec.takes_nulls)
    return Trained(_fit(spec, task, seed, x, y), metrics, signature, len(y), seed)


def read_table(path: Path) -> pa.Table:
    """A CSV (also .gz), Parquet or JSON-lines file. Raises NotFound, DataError."""
    if not path.is_file():
        raise NotFound(f"there is no file {path}", hint="give a CSV, Parquet or JSON-lines file")
    names = path.suffixes
    try:
        if ".parquet" in names:
            import pyarrow.parquet as pq

            return pq.read_table(path)
        if ".jsonl" in names or ".ndjson" in names or ".json" in names:
            import pyarrow.json as pj

            return pj.read_json(path)
        import pyarrow.csv as pv

        return pv.read_csv(path)
    except (pa.ArrowInvalid, OSError) as exc:
        raise DataError(f"{path}: {exc}", hint="expected a CSV with a header, Parquet or JSON lines") from exc


def train_from_file(
    path: Path,
    *,
    features: Sequence[str],
    target: str,
    task: Task = "regression",
    algorithm: str = "gradient_boosting",
    seed: int = 0,
    group: str = "",
) -> Trained:
    """`train` on the rows of a file."""
    return train(read_table(path), features, target, task, algorithm, seed, group=group)


def held_out(groups: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.bool_]:
    """Which rows to keep from training: a quarter of the groups, at least one, and never all."""
    names = np.unique(groups)
    if len(names) < 2:
        raise DataError(
            f"all {len(groups)} rows belong to one group",
            hint="at least two groups are needed to say how well the model does on an unseen one",
            code="ml.groups",
        )
    shuffled = np.random.default_rng(seed).permutation(names)
    made: npt.NDArray[np.bool_] = np.isin(groups, shuffled[: max(1, round(_HELD_OUT * len(names)))])
    return made


def predict(model: Any, task: Task, x: Floats) -> Floats:
    """The number (regression) or the chance of class 1 (classification) of each row, on one thread."""
    # On shared cores a second OpenMP thread costs more in waiting than it computes: 9.5 ms a call against 1.3.
    with one_thread():
        made = model.predict_proba(x)[:, 1] if task == "classification" else model.predict(x)
    return np.asarray(made, np.float64)


def evaluate(truth: Floats, told: Floats, task: Task) -> dict[str, float]:
    """Figures of predictions against the truth. AUC and average precision are NaN when only one class occurs."""
    if task == "regression":
        error = told - truth
        return {"rmse": float(np.sqrt(np.mean(error**2))), "mae": float(np.mean(np.abs(error)))}
    metrics = load("sklearn.metrics")
    both = 0 < truth.sum() < len(truth)
    return {
        "auc": float(metrics.roc_auc_score(truth, told)) if both else float("nan"),
        "average_precision": float(metrics.average_precision_score(truth, told)) if both else float("nan"),
        "f1": float(metrics.f1_score(truth, told >= 0.5, zero_division=0.0)),
        "positive_share": float(truth.mean()),
    }


def _fit(spec: Algorithm, task: Task, seed: int, x: Floats, y: Floats) -> Any:
    with one_thread():
        return spec.build(task, seed).fit(x, y)


def _check(y: Floats, task: Task, target: str) -> None:
    if len(y) < ROWS_MIN:
        raise DataError(
            f"{len(y)} usable rows, at least {ROWS_MIN} are needed", hint="collect more history", code="ml.rows"
        )
    if task == "classification" and set(np.unique(y)) != {0.0, 1.0}:
        raise DataError(
            f"target {target!r} of a classification must hold 0 and 1, both; it holds {np.unique(y)[:5].tolist()}",
            hint="use task regression for numbers",
            code="ml.target",
        )
