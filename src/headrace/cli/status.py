"""`headrace status`: what runs, where, how far behind, and what it uses."""

from __future__ import annotations

from typing import Any

import typer
from rich.table import Table

from headrace import assembly
from headrace.cli.session import JsonOption, ProjectOption, out, print_json, run
from headrace.core.config import Project, load_project


def register(app: typer.Typer) -> None:
    app.command()(status)


def status(project: ProjectOption = None, as_json: JsonOption = False) -> None:
    """Parts with their state, addresses, lag, CPU and memory. Exits 1 when something that should run does not.

    Example: headrace status --json
    """
    found = run(_gather(load_project(project)))
    if as_json:
        print_json(found)
    else:
        _print(found)
    if not found["healthy"]:
        raise typer.Exit(1)


async def _gather(project: Project) -> dict[str, Any]:
    platform = assembly.Platform(project)
    try:
        return await assembly.Status(platform).report()
    finally:
        await platform.close()


def _print(found: dict[str, Any]) -> None:
    out.print(f"[bold]{found['project']}[/] in {found['folder']}")
    table = Table(box=None, pad_edge=False)
    for column in ("part", "state", "pid", "CPU s", "MB", "address"):
        table.add_column(column, justify="right" if column in ("pid", "CPU s", "MB") else "left")
    for part in found["parts"]:
        shown = "  ".join(text for name, text in part["addresses"].items() if name != "metrics")
        numbers = [str(part.get(name) or "") for name in ("pid", "cpu_s", "memory_mb")]
        table.add_row(part["part"], part["state"], *numbers, shown or part["problem"])
    out.print(table)
    for work in found["work"]:
        problem = f"  {work['error']}" if work.get("error") else ""
        out.print(
            f"  {work.get('part', '')}:{work.get('name', '')}  {work.get('state', '')}  lag {work.get('lag', 0)}{problem}",
            markup=False,
        )
