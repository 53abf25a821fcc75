"""The command line: what people type. One file per verb; this one only gathers them."""

from __future__ import annotations

import importlib
import sys

import typer

import headrace
from headrace.cli.session import fail, out
from headrace.core.errors import HeadraceError
from headrace.core.observe import logs

MODULES = {
    "demo": "demo",
    "init": "init",
    "up": "up",
    "down": "up",
    "status": "status",
    "serve": "serve",
    "device": "device",
    "enrolment": "enrolment",
    "hub": "hub",
    "broker": "broker",
    "simulate": "simulate",
    "replay": "replay",
    "query": "query",
    "sql": "sql",
    "test": "test",
    "model": "model",
    "blueprint": "blueprint",
    "alert": "alert",
    "ledger": "ledger",
    "bench": "bench",
}
"""Verb -> the module that has it. Only the one that was typed is imported: `headrace status` loads no stream engine."""

app = typer.Typer(
    name="headrace",
    help="Real-time IoT data, end to end: devices, durable log, stream SQL, lake, models, alerts, console.\n\n"
    "Begin with: headrace demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.callback(invoke_without_command=True)
def version(show: bool = typer.Option(False, "--version", help="Print the version and leave.")) -> None:
    if show:
        out.print(f"headrace {headrace.__version__}")
        raise typer.Exit


def main() -> None:
    """The `headrace` command: exits 0 on success, 2 on wrong use, 1 on failure."""
    verb = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    for module in dict.fromkeys([MODULES[verb]] if verb in MODULES else MODULES.values()):
        importlib.import_module(f"headrace.cli.{module}").register(app)
    logs.setup("cli", level="warning")
    try:
        app()
    except HeadraceError as exc:
        fail(exc)
    except KeyboardInterrupt:
        sys.exit(130)
