"""One thread for the numeric libraries while a model computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from headrace.ml.extra import load


@contextmanager
def one_thread() -> Iterator[None]:
    """OpenMP and BLAS compute on the calling thread only, and scikit-learn does not re-check its arguments."""
    with (
        load("sklearn").config_context(assume_finite=True, skip_parameter_validation=True),
        _controller().limit(limits=1),
    ):
        yield


@cache
def _controller() -> Any:
    """Found once: looking for loaded libraries takes milliseconds. scikit-learn's own must be loaded before."""
    load("sklearn.ensemble")
    return load("threadpoolctl").ThreadpoolController()
