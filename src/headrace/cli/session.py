"""What every command shares: the --project option, printing, running a coroutine, and errors as people read them."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Coroutine
from typing import Annotated, Any, NoReturn, TypeVar

import typer
import uvloop
from rich.console import Console

from headrace.core.errors import HeadraceError

T = TypeVar("T")
PIPE_WIDTH = 200
"""Columns of a table that goes to a file or another program, where nothing should be cut to a terminal's width."""

out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PIPE_WIDTH)
err = Console(stderr=True, highlight=False, soft_wrap=True)

ProjectOption = Annotated[
    str | None,
    typer.Option(
        "--project", "-p", help="Project folder. Default: $HEADRACE_PROJECT, else this folder or one above it."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text for people.")]


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end on uvloop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, default=str))


def explain(exc: HeadraceError) -> None:
    """An error on stderr: what happened, what to do, and the code to look up."""
    err.print(f"[bold red]error[/] [dim]{exc.code}[/]: ", end="")
    err.print(exc.message, markup=False)
    if exc.hint:
        err.print("  [bold]try[/]: ", end="")
        err.print(exc.hint, markup=False)


def fail(exc: HeadraceError) -> NoReturn:
    explain(exc)
    sys.exit(1)
