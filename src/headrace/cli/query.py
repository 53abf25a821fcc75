"""`headrace query`: SQL over history, lake and recent rows together."""

from __future__ import annotations

import asyncio
import sys
from enum import StrEnum
from typing import Annotated

import typer

from headrace import assembly
from headrace.cli.session import ProjectOption, run
from headrace.core.config import load_project
from headrace.history.format import render


class Format(StrEnum):
    table = "table"
    json = "json"
    csv = "csv"
    arrow = "arrow"


def register(app: typer.Typer) -> None:
    app.command()(query)


def query(
    sql: Annotated[
        str, typer.Argument(metavar="SQL", help="A SELECT. Every stream is a table: lake and recent rows as one.")
    ],
    project: ProjectOption = None,
    format: Annotated[Format, typer.Option(help="How to print the rows.")] = Format.table,
) -> None:
    """Ask about the past, up to a moment ago.

    Example: headrace query "SELECT _device, count(*) FROM telemetry GROUP BY 1"
    """

    async def work() -> None:
        platform = assembly.Platform(load_project(project))
        try:
            rows = await asyncio.to_thread(platform.history.run, sql)
            sys.stdout.buffer.write(render(rows, format.value))
            sys.stdout.flush()
        finally:
            await platform.close()

    run(work())
