"""`headrace model`: train, list."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from headrace import assembly
from headrace.cli.session import JsonOption, ProjectOption, out, print_json
from headrace.core.config import load_project

models = typer.Typer(
    help="Models: trained from tables, registered, called from SQL as udf.NAME(...).", no_args_is_help=True
)


def register(app: typer.Typer) -> None:
    app.add_typer(models, name="model")


@models.command("train")
def train(
    name: Annotated[str, typer.Argument(help="A [models.NAME] of headrace.toml.")],
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a model of the project and register it as the champion; running jobs take it up.

    Example: headrace model train rul
    """
    result = assembly.train_model(load_project(project), name)
    if as_json:
        print_json(result)
    else:
        metrics = ", ".join(f"{metric} {value:.4g}" for metric, value in result["metrics"].items())
        out.print(f"{name} version {result['version']}: {metrics}", markup=False)


@models.command("list")
def list_models(project: ProjectOption = None, as_json: JsonOption = False) -> None:
    """Models of the project with their versions.

    Example: headrace model list
    """
    rows = assembly.list_models(load_project(project))
    if as_json:
        print_json(rows)
        return
    table = Table(box=None, pad_edge=False)
    for column in ("model", "champion", "versions", "called as"):
        table.add_column(column)
    for row in rows:
        table.add_row(row["name"], str(row["champion"] or "none yet"), str(row["versions"]), row["call"])
    out.print(table)
