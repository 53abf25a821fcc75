"""Trained models under names, versions and aliases: MLflow's registry, straight on SQLite.

Writing goes through MLflow's client, so its tools see every model. Reading goes to its tables (the release is pinned) and
to the model file: importing MLflow costs seconds and 150 MB, which a job that scores should not pay.
"""

from __future__ import annotations

import fcntl
import logging
import pickle
import sqlite3
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlparse

import msgspec
import numpy as np

from headrace.core.errors import DataError, NotFound, Unavailable, nearest
from headrace.ml.extra import load
from headrace.ml.features import Floats
from headrace.ml.training import Signature, Trained, predict

CARD = "headrace.json"  # beside the model file: its signature
_EXPERIMENT = "headrace"


class Version(NamedTuple):
    """One registered version. `aliases` point at it; `created` is ticks."""

    name: str
    version: int
    aliases: tuple[str, ...]
    created: int
    algorithm: str
    metrics: dict[str, float]


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to score."""

    name: str
    version: int
    signature: Signature
    model: Any

    @property
    def features(self) -> tuple[str, ...]:
        return self.signature.features

    def predict(self, x: Floats) -> Floats:
        """Shape (n, features) to (n,): the number, or the chance of class 1. One thread; 1-4 ms a call up to 500 rows."""
        return predict(self.model, self.signature.task, x) if len(x) else np.empty(0)


class ModelRegistry:
    """Models in a folder: `models.db` and `artifacts/`. Several processes may use it. All calls block: use a thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._database = folder / "models.db"
        self._client: Any = None

    def register(self, name: str, trained: Trained, *, alias: str = "champion") -> int:
        """Store a model as the next version of `name` and point `alias` at it; returns the version."""
        with self._writing() as client:
            experiment = client.get_experiment_by_name(_EXPERIMENT)
            found = experiment.experiment_id if experiment else self._make_experiment(client)
            run = client.create_run(found, run_name=name)
            signature = trained.signature
            for key, value in {**asdict(signature), "seed": trained.seed, "rows": trained.rows}.items():
                client.log_param(run.info.run_id, key, str(value)[:6000])
            for key, figure in trained.metrics.items():
                if np.isfinite(figure):
                    client.log_metric(run.info.run_id, key, figure)
            self._store(client, run.info.run_id, trained)
            client.set_terminated(run.info.run_id)
            if not client.search_registered_models(f"name = '{_checked(name)}'"):
                client.create_registered_model(name)
            tags = {"algorithm": signature.algorithm, "metrics": msgspec.json.encode(trained.metrics).decode()}
            source = f"{run.info.artifact_uri}/model"
            version = client.create_model_version(name, source, run.info.run_id, tags=tags)
            client.set_registered_model_alias(name, alias, str(version.version))
            return int(version.version)

    def promote(self, name: str, version: int, *, alias: str = "champion") -> None:
        """Point the alias at another version; who serves it reloads at the next refresh. Raises NotFound."""
        if version not in {found.version for found in self.versions(name)}:
            raise NotFound(f"model {name!r} has no version {version}", hint="`headrace model list` shows them")
        with self._writing() as client:
            client.set_registered_model_alias(name, alias, str(version))

    def names(self) -> list[str]:
        return [row[0] for row in self._rows("SELECT name FROM registered_models ORDER BY name")]

    def versions(self, name: str) -> list[Version]:
        """Newest first; empty when there is no such model."""
        tags: dict[int, dict[str, str]] = {}
        for version, key, value in self._rows(
            "SELECT version, key, value FROM model_version_tags WHERE name = ?", name
        ):
            tags.setdefault(version, {})[key] = value
        aliases: dict[int, list[str]] = {}
        for alias, version in self._rows("SELECT alias, version FROM registered_model_aliases WHERE name = ?", name):
            aliases.setdefault(int(version), []).append(alias)
        return [
            Version(
                name,
                version,
                tuple(sorted(aliases.get(version, ()))),
                created * 10_000,
                tags.get(version, {}).get("algorithm", ""),
                msgspec.json.decode(tags.get(version, {}).get("metrics", "{}"), type=dict[str, float | None]),
            )
            for version, created in self._rows(
                "SELECT version, creation_time FROM model_versions WHERE name = ? ORDER BY version DESC", name
            )
        ]

    def version_at(self, name: str, alias: str = "champion") -> int:
        """The version an alias points at, 0 when there is none; about 0.2 ms, so it can be polled."""
        rows = self._rows("SELECT version FROM registered_model_aliases WHERE name = ? AND alias = ?", name, alias)
        return int(rows[0][0]) if rows else 0

    def load(self, name: str, alias: str = "champion") -> LoadedModel:
        """The model an alias points at. Raises NotFound, DataError (its file is damaged), Unavailable (extra missing)."""
        version = self.version_at(name, alias)
        if not version:
            raise self._unknown(name, alias)
        rows = self._rows(
            "SELECT COALESCE(storage_location, source) FROM model_versions WHERE name = ? AND version = ?",
            name,
            version,
        )
        folder = Path(unquote(urlparse(rows[0][0]).path))
        load("sklearn")
        try:
            signature = msgspec.json.decode((folder / CARD).read_bytes(), type=Signature)
            # Our own file, in the project's state folder: as trusted as the code that wrote it.
            model = pickle.loads((folder / "model.pkl").read_bytes())
        except (OSError, pickle.UnpicklingError, EOFError, msgspec.DecodeError) as exc:
            raise DataError(
                f"model {name!r} version {version} cannot be read from {folder}: {exc}",
                hint="train it again, or promote another version",
                code="ml.model_file",
            ) from exc
        return LoadedModel(name, version, signature, model)

    def _unknown(self, name: str, alias: str) -> NotFound:
        known = self.names()
        hint = f"train it: headrace model train {name}" if name in known or not known else nearest(name, known)
        return NotFound(
            f"no model {name!r} with alias {alias!r} is registered",
            hint=hint or f"registered: {', '.join(known)}",
            code="ml.model",
        )

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        if not self._database.is_file():
            return []
        try:
            with closing(sqlite3.connect(f"file:{self._database}?mode=ro", uri=True, timeout=10.0)) as connection:
                return connection.execute(query, values).fetchall()
        except sqlite3.OperationalError as exc:
            if "no such table" in str(exc):
                return []  # being created right now
            raise Unavailable(f"model registry {self._database}: {exc}", hint="is the disk full?") from exc

    @contextmanager
    def _writing(self) -> Iterator[Any]:
        """MLflow's client, one writer at a time: it creates its tables on first use, which two at once would break."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "lock").open("w") as lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self._client is None:
                tracking = load("mlflow.tracking")
                for noisy in ("mlflow", "mlflow.sklearn", "alembic"):
                    logging.getLogger(noisy).setLevel(logging.ERROR)
                uri = f"sqlite:///{self._database}"
                self._client = tracking.MlflowClient(tracking_uri=uri, registry_uri=uri)
            yield self._client

    def _make_experiment(self, client: Any) -> str:
        made: str = client.create_experiment(
            _EXPERIMENT, artifact_location=(self._folder / "artifacts").resolve().as_uri()
        )
        return made

    def _store(self, client: Any, run: str, trained: Trained) -> None:
        flavour = load("mlflow.sklearn")
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            path = Path(folder) / "model"
            flavour.save_model(
                trained.model, str(path), pip_requirements=["scikit-learn"], serialization_format="cloudpickle"
            )
            (path / CARD).write_bytes(msgspec.json.encode(trained.signature))
            client.log_artifacts(run, str(path), "model")


def _checked(name: str) -> str:
    if not name or not name.replace("_", "").replace("-", "").isalnum():
        raise NotFound(f"{name!r} is no model name", hint="use letters, digits, - and _")
    return name
