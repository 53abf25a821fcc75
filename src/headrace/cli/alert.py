"""`headrace alert`: open incidents, and acknowledging one."""

from __future__ import annotations

import getpass
from typing import Annotated

import typer
from rich.table import Table

from headrace import assembly
from headrace.cli.session import JsonOption, ProjectOption, out, print_json, run
from headrace.core.clock import to_iso
from headrace.core.config import load_project

alerts = typer.Typer(help="Alerts: what needs a person.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(alerts, name="alert")


@alerts.command("list")
def list_alerts(
    project: ProjectOption = None,
    all_states: Annotated[bool, typer.Option("--all", help="Resolved ones too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Incidents, newest first.

    Example: headrace alert list --all
    """

    async def work() -> None:
        platform = assembly.Platform(load_project(project))
        try:
            found = await platform.incidents.list(state=None if all_states else "active")
        finally:
            await platform.close()
        if as_json:
            print_json([incident.as_json() for incident in found])
            return
        table = Table(box=None, pad_edge=False)
        for column in ("opened", "severity", "state", "title", "id"):
            table.add_column(column)
        for incident in found:
            table.add_row(to_iso(incident.opened)[:19], incident.severity, incident.state, incident.title, incident.id)
        out.print(table)

    run(work())


@alerts.command("acknowledge")
def acknowledge(
    id: Annotated[str, typer.Argument(metavar="ID", help="As `headrace alert list` shows it.")],
    project: ProjectOption = None,
    by: Annotated[str, typer.Option(help="Who. Default: the user of this shell.")] = "",
    note: Annotated[str, typer.Option(help="What you saw or did.")] = "",
) -> None:
    """Say that a person has seen an incident.

    Example: headrace alert acknowledge ID --note "bearing ordered"
    """

    async def work() -> None:
        platform = assembly.Platform(load_project(project))
        try:
            await platform.incidents.acknowledge(id, by=by or getpass.getuser(), note=note)
        finally:
            await platform.close()
        out.print(f"acknowledged {id}", markup=False)

    run(work())
