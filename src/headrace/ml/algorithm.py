"""What an algorithm is: a file in `ml/algorithms/` with one of these at module level."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from headrace.core.errors import UserError, nearest
from headrace.core.plugins import collect

Task = Literal["regression", "classification"]


@dataclass(frozen=True)
class Algorithm:
    """`build(task, seed)` gives a scikit-learn estimator; imports happen inside it."""

    name: str
    about: str
    takes_nulls: bool
    build: Callable[[Task, int], Any]


def algorithm_named(name: str) -> Algorithm:
    """The algorithm of that name. Raises UserError that names the nearest."""
    known = {spec.name: spec for spec in collect("headrace.ml.algorithms", Algorithm)}
    if name not in known:
        raise UserError(
            f"there is no algorithm {name!r}",
            hint=nearest(name, known) or f"known: {', '.join(known)}",
            code="ml.algorithm",
        )
    return known[name]
