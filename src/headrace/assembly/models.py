"""The project's models: trained, listed, served to SQL."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.assembly.platform import Platform
from headrace.core.config import ModelConfig, Project, Settings
from headrace.core.errors import NotFound, UserError, nearest

# Imported where they are used: a part loads what it runs and no more, which is most of its start and of its memory.
if TYPE_CHECKING:
    import pyarrow as pa

    from headrace.blueprints.spec import Blueprint
    from headrace.ml.scoring import ServedModel
    from headrace.sql.functions.user import UserFunction


def served_models(platform: Platform) -> dict[str, ServedModel]:
    """The project's models by the name SQL calls them, each following its alias."""
    from headrace.ml.scoring import ServedModel

    models = platform.settings.models
    return {
        name: ServedModel(platform.registry, _registered(name, config), config.alias) for name, config in models.items()
    }


def user_functions(models: Mapping[str, ServedModel]) -> dict[str, UserFunction]:
    from headrace.sql.functions.user import UserFunction

    return {f"udf.{name}": UserFunction(f"udf.{name}", model.score) for name, model in models.items()}


def untrained(project: Project) -> list[str]:
    """Models of the project that have no version yet."""
    registry = Platform(project).registry
    models = project.settings.models
    return [name for name, config in models.items() if not registry.version_at(_registered(name, config), config.alias)]


def load_reference(folder: Path, path: str) -> pa.Table:
    """A CSV, JSON lines or Parquet file of the project as a table. Raises NotFound, UserError."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    from headrace.sql.reference import json_table

    file = folder / path
    readers: dict[str, Callable[[Path], pa.Table]] = {
        ".csv": pyarrow.csv.read_csv,
        ".json": lambda file: json_table(file.read_bytes()),
        ".jsonl": lambda file: json_table(file.read_bytes()),
        ".parquet": pyarrow.parquet.read_table,
    }
    reader = readers.get(file.suffix)
    if reader is None:
        raise UserError(f"reference file {path!r} is none of {', '.join(readers)}", hint="convert it to one of them")
    try:
        return reader(file)
    except FileNotFoundError as exc:
        raise NotFound(f"no reference file {file}", hint="check the path in headrace.toml") from exc
    except pa.ArrowInvalid as exc:
        raise UserError(f"{file}: {exc}", hint="fix the file", code="reference.invalid") from exc


def train_model(project: Project, name: str) -> dict[str, Any]:
    """Train the project's model NAME and register it as its alias. Returns version and metrics."""
    from headrace.ml.training import train

    models = project.settings.models
    if name not in models:
        raise NotFound(
            f"no model {name!r} in headrace.toml", hint=nearest(name, models) or "add a [models.NAME] section"
        )
    config = models[name]
    trained = train(
        _training_table(project, name, config),
        features=config.features,
        target=config.target,
        task=config.task,
        algorithm=config.algorithm,
        seed=1,
        group=config.group,
    )
    version = Platform(project).registry.register(_registered(name, config), trained, alias=config.alias)
    return {"model": name, "version": version, "metrics": trained.metrics}


def list_models(project: Project) -> list[dict[str, Any]]:
    registry = Platform(project).registry
    rows = []
    for name, config in project.settings.models.items():
        registered = _registered(name, config)
        rows.append(
            {
                "name": name,
                "champion": registry.version_at(registered, config.alias) or None,
                "versions": len(registry.versions(registered)),
                "call": f"udf.{name}({', '.join(config.features)})",
            }
        )
    return rows


def _training_table(project: Project, name: str, config: ModelConfig) -> pa.Table:
    if config.training == "blueprint":
        spec = blueprint_of(project.settings)
        if spec is None or spec.training is None:
            raise UserError(
                f"model {name!r}: the project's blueprint has no training data", hint="set `training` to a file"
            )
        return spec.training(name)
    return load_reference(project.folder, config.training)


def _registered(name: str, config: ModelConfig) -> str:
    return config.model or name


def blueprint_of(settings: Settings) -> Blueprint | None:
    from headrace.blueprints.spec import Blueprint
    from headrace.core.plugins import collect

    known = {spec.name: spec for spec in collect("headrace.blueprints", Blueprint)}
    return known.get(settings.project.blueprint)
