"""`headrace ledger`: does every stage's sum balance?"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from headrace import assembly
from headrace.cli.session import JsonOption, ProjectOption, out, print_json, run
from headrace.core.config import load_project


def register(app: typer.Typer) -> None:
    app.command()(ledger)


def ledger(
    project: ProjectOption = None,
    as_json: JsonOption = False,
    wait: Annotated[float, typer.Option(help="Seconds to wait for the stages to catch up with the log first.")] = 0.0,
) -> None:
    """What came in, what went out and what was set aside, per stage; sinks are counted again. Exits 1 on a gap.

    Example: headrace ledger --wait 10
    """

    async def work() -> bool:
        platform = assembly.Platform(load_project(project))
        try:
            report = await platform.ledger_report(wait_s=wait)
        finally:
            await platform.close()
        if as_json:
            print_json(report)
            return bool(report["balanced"])
        table = Table(box=None, pad_edge=False)
        for column in ("stage", "stream", "part.", "in", "out", "set aside", "gap", "pending"):
            table.add_column(column, justify="left" if column in ("stage", "stream", "set aside") else "right")
        for stage in report["stages"]:
            aside = ", ".join(f"{reason} {rows:,}" for reason, rows in stage["set_aside"].items())
            numbers = [f"{stage[name]:,}" for name in ("rows_in", "rows_out")]
            table.add_row(
                stage["stage"],
                stage["stream"],
                str(stage["partition"]),
                *numbers,
                aside,
                f"{stage['gap']:,}",
                f"{stage['pending']:,}",
            )
        out.print(table)
        out.print("[green]balanced[/]" if report["balanced"] else "[bold red]NOT balanced[/]")
        return bool(report["balanced"])

    if not run(work()):
        raise typer.Exit(1)
