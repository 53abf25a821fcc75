"""`headrace init`: make a project folder from a blueprint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headrace.blueprints.spec import Blueprint
from headrace.cli.session import out
from headrace.core.config import FILE_NAME
from headrace.core.errors import Conflict, NotFound, nearest
from headrace.core.plugins import collect


def register(app: typer.Typer) -> None:
    app.command()(init)


def blueprints() -> dict[str, Blueprint]:
    return {spec.name: spec for spec in collect("headrace.blueprints", Blueprint)}


def blueprint(name: str) -> Blueprint:
    """The blueprint of that name. Raises NotFound with the nearest known one."""
    known = blueprints()
    if name not in known:
        raise NotFound(f"no blueprint {name!r}", hint=nearest(name, known) or f"there are: {', '.join(sorted(known))}")
    return known[name]


def make_project(folder: Path, name: str) -> None:
    """Write the files of blueprint `name` into `folder`. Raises Conflict where a project is there already."""
    spec = blueprint(name)
    if (folder / FILE_NAME).exists():
        raise Conflict(f"{folder / FILE_NAME} exists", hint="choose another folder; nothing was changed")
    for path, text in spec.files().items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to make (or fill).")],
    blueprint: Annotated[str, typer.Option(help="What to start from.")] = "starter",
) -> None:
    """Make a project: headrace.toml, SQL jobs, reference data.

    Example: headrace init plant --blueprint factory
    """
    make_project(folder, blueprint)
    out.print(f"made {folder} from blueprint {blueprint}", markup=False)
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and ".headrace" not in path.parts):
        out.print(f"  {path}", markup=False)
    out.print(f"next: headrace up {folder}", markup=False)
