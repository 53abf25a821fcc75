"""The optional libraries behind models: imported when first needed, so that a plain install runs without them."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from headrace.core.config import silence_mlflow
from headrace.core.errors import Unavailable


def load(module: str) -> Any:
    """The module; Unavailable that names the extra when it (or what it needs) is not installed."""
    if module.split(".")[0] == "mlflow":
        silence_mlflow()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside libraries are not news to our users
            return importlib.import_module(module)
    except ModuleNotFoundError as exc:
        raise Unavailable(
            f"models need the Python package {exc.name!r}, which is not installed",
            hint="install the extra: pip install 'headrace[ml]'",
            code="ml.extra_missing",
        ) from exc
