"""`headrace sql`: check and explain stream SQL files without running anything."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headrace import assembly
from headrace.cli.session import ProjectOption, explain, out
from headrace.core.config import load_project
from headrace.core.errors import NotFound, UserError

sql = typer.Typer(help="Stream SQL: check a script, see its plan.", no_args_is_help=True)

ScriptFile = Annotated[Path, typer.Argument(metavar="FILE", help="A .asaql file.")]


def register(app: typer.Typer) -> None:
    app.add_typer(sql, name="sql")


@sql.command("check")
def check(file: ScriptFile, project: ProjectOption = None) -> None:
    """Say what is wrong with a script and where, or that it would run. Exits 1 when it would not.

    Example: headrace sql check sql/machines.asaql
    """
    try:
        plan = assembly.compile_file(_read(file), _project(project, file))
    except UserError as exc:
        out.print(f"{file}: ", end="", markup=False)
        explain(exc)
        raise typer.Exit(1) from exc
    out.print(f"{file}: would run; reads {', '.join(plan.inputs)}; writes {', '.join(plan.outputs)}", markup=False)


@sql.command("explain")
def explain_plan(file: ScriptFile, project: ProjectOption = None) -> None:
    """Print the plan of a script.

    Example: headrace sql explain sql/machines.asaql
    """
    print(assembly.compile_file(_read(file), _project(project, file)).explain())


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as exc:
        raise NotFound(f"cannot read {file}: {exc.strerror}", hint="give the path of a .asaql file") from exc


def _project(given: str | None, file: Path) -> assembly.ScriptContext:
    """What a script may call and join: the project's, where there is one."""
    try:
        return assembly.script_context(load_project(given), file)
    except NotFound:
        if given:
            raise
        return assembly.ScriptContext()
