"""Registered models as functions over Arrow columns: what SQL calls as `udf.NAME(...)`.

A row with an empty or non-finite feature has an empty score, whatever the algorithm could make of it: an answer given
without the evidence would look like any other.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from headrace.core.errors import UserError
from headrace.ml.features import arguments
from headrace.ml.registry import LoadedModel, ModelRegistry

Scorer = Callable[[list[pa.Array]], pa.Array]


class ServedModel:
    """The model behind an alias, now and after the alias moved. `refresh` may run in another thread than `score`."""

    def __init__(self, registry: ModelRegistry, name: str, alias: str = "champion") -> None:
        self._registry, self._name, self._alias = registry, name, alias
        self.loaded: LoadedModel = registry.load(name, alias)

    def refresh(self) -> bool:
        """Reload if the alias points at another version; True if it did. Blocking: 0.2 ms when nothing changed.

        When the new version takes other features it raises UserError and keeps serving the old one.
        """
        if self._registry.version_at(self._name, self._alias) in (0, self.loaded.version):
            return False  # an alias that was taken away leaves the model that is in use
        found = self._registry.load(self._name, self._alias)
        if found.features != self.loaded.features:
            raise UserError(
                f"model {self._name!r} version {found.version} takes {', '.join(found.features)}; "
                f"version {self.loaded.version}, in use, takes {', '.join(self.loaded.features)}",
                hint="restart the jobs that call it, after changing their calls",
                code="ml.features_changed",
            )
        self.loaded = found
        return True

    def score(self, columns: list[pa.Array]) -> pa.Array:
        """One column a feature, in the order of `features`, equal lengths; a float64 column of scores."""
        return as_function(self.loaded)(columns)


def as_function(model: LoadedModel) -> Scorer:
    """The model over Arrow columns: one a feature, in order; gives float64, null where a feature is null or NaN.

    The function raises UserError when called with another number of columns.
    """

    def score(columns: list[pa.Array]) -> pa.Array:
        if len(columns) != len(model.features):
            raise UserError(
                f"model {model.name!r} takes {len(model.features)} arguments, {len(columns)} given",
                hint=f"in this order: {', '.join(model.features)}",
                code="ml.arguments",
            )
        x = arguments(columns, model.features)
        usable = np.isfinite(x).all(axis=1)
        if usable.all():
            return pa.array(model.predict(x), pa.float64())
        scores = np.zeros(len(x))
        scores[usable] = model.predict(x[usable])
        return pa.array(scores, pa.float64(), mask=~usable)

    return score
