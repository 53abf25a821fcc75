"""`headrace ledger`: does every stage's sum balance?"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

import typer
from rich.table import Table

from headrace import assembly
from headrace.cli.session import JsonOption, ProjectOption, out, print_json, run
from headrace.core.config import load_project

NUMBERS = ("rows_in", "rows_out", "gap", "pending")


def register(app: typer.Typer) -> None:
    app.command()(ledger)


def ledger(
    project: ProjectOption = None,
    as_json: JsonOption = False,
    wait: Annotated[float, typer.Option(help="Seconds to wait for the stages to catch up with the log first.")] = 0.0,
    partitions: Annotated[bool, typer.Option("--partitions", help="A line per partition instead of sums.")] = False,
) -> None:
    """What came in, what went out and what was set aside, per stage; sinks are counted again. Exits 1 on a gap.

    Example: headrace ledger --wait 10
    """

    async def work() -> dict[str, Any]:
        loaded = load_project(project)
        platform = assembly.Platform(loaded)
        async with assembly.database(loaded):
            try:
                return await platform.ledger_report(wait_s=wait)
            finally:
                await platform.close()

    report = run(work())
    if as_json:
        print_json(report)
    else:
        _print(report["stages"] if partitions else _sums(report["stages"]))
        out.print("[green]balanced[/]" if report["balanced"] else "[bold red]NOT balanced[/]")
    if not report["balanced"]:
        raise typer.Exit(1)


def _sums(stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a stage and stream. Gaps are summed by size, so that one partition's loss never hides another's excess."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for stage in stages:
        empty: dict[str, Any] = dict.fromkeys(NUMBERS, 0) | {"set_aside": Counter()}
        row = found.setdefault((stage["stage"], stage["stream"]), {**stage, **empty, "partition": "all"})
        for name in NUMBERS:
            row[name] += abs(stage[name]) if name == "gap" else stage[name]
        row["set_aside"].update(stage["set_aside"])
    return list(found.values())


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("stage", "stream", "part.", "in", "out", "set aside", "gap", "pending"):
        table.add_column(
            column, justify="left" if column in ("stage", "stream", "set aside") else "right", no_wrap=True
        )
    for row in rows:
        aside = ", ".join(f"{reason} {count:,}" for reason, count in row["set_aside"].items())
        numbers = {name: f"{row[name]:,}" for name in NUMBERS}
        table.add_row(
            row["stage"],
            row["stream"],
            str(row["partition"]),
            numbers["rows_in"],
            numbers["rows_out"],
            aside,
            numbers["gap"],
            numbers["pending"],
        )
    out.print(table)
