"""`headrace blueprint`: the scenarios there are, and each one's own proof that it works."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from headrace.blueprints.spec import Expectation
from headrace.cli.init import blueprint, blueprints
from headrace.cli.session import JsonOption, err, out, print_json, run
from headrace.core.errors import UserError

blueprint_verbs = typer.Typer(help="Blueprints: runnable scenarios to start from.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(blueprint_verbs, name="blueprint")


@blueprint_verbs.command("list")
def list_blueprints(as_json: JsonOption = False) -> None:
    """The blueprints that `headrace init DIR --blueprint NAME` can start from.

    Example: headrace blueprint list
    """
    rows = [
        {"name": spec.name, "title": spec.title, "simulates": spec.simulate is not None, "expects": bool(spec.expect)}
        for spec in sorted(blueprints().values(), key=lambda spec: spec.name)
    ]
    if as_json:
        print_json(rows)
        return
    table = Table(box=None, pad_edge=False)
    for column in ("name", "title", "simulates", "expects"):
        table.add_column(column)
    for row in rows:
        table.add_row(
            str(row["name"]), str(row["title"]), *("yes" if row[name] else "" for name in ("simulates", "expects"))
        )
    out.print(table)


@blueprint_verbs.command("expect")
def expect(
    name: Annotated[str, typer.Argument(metavar="BLUEPRINT", help="Whose check to run, e.g. factory.")],
    seed: Annotated[list[int] | None, typer.Option(help="Which plant; give it several times for several.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a blueprint's whole chain in this process on a simulated plant, and judge its alerts by what really happened.

    Needs no project and starts nothing. Exits 1 when a figure is below what the blueprint asks of itself.

    Example: headrace blueprint expect factory --seed 7 --seed 8
    """
    spec = blueprint(name)
    if spec.expect is None:
        raise UserError(f"blueprint {name!r} expects nothing", hint="`headrace blueprint list` shows which do")
    found: list[Expectation] = []
    for number in seed or [1]:
        with err.status(f"seed {number}: half an hour of plant time"):
            found.append(run(spec.expect(number)))
    if as_json:
        print_json({"met": all(one.met for one in found), "runs": [_plain(one) for one in found]})
    else:
        for one in found:
            print_expectation(one)
    if not all(one.met for one in found):
        raise typer.Exit(1)


def print_expectation(one: Expectation) -> None:
    """A small table a seed."""
    out.print(
        f"seed {one.seed}: {one.devices} devices, {one.plant_s / 60:.0f} min of plant time, {one.events:,} events, "
        f"{one.set_aside:,} set aside"
    )
    table = Table(box=None, pad_edge=False)
    for column in ("alert", "looks for", "real", "found", "recall", "alerts", "right", "precision"):
        table.add_column(column, justify="left" if column in ("alert", "looks for") else "right", no_wrap=True)
    for figure in one.figures:
        counts = [f"{count:,}" for count in (figure.happened, figure.found, figure.raised, figure.right)]
        recall = _share(figure.recall, figure.recall_min)
        precision = _share(figure.precision, figure.precision_min)
        table.add_row(figure.rule, figure.about, *counts[:2], recall, *counts[2:], precision)
    out.print(table)
    for figure in one.figures:
        if figure.note:
            out.print(f"  {figure.rule}: {figure.note}", markup=False)


def _share(value: float, least: float) -> str:
    return f"{value:.2f}" if value >= least else f"[bold red]{value:.2f}[/] < {least:.2f}"


def _plain(one: Expectation) -> dict[str, Any]:
    figures = [
        {**figure._asdict(), "precision": figure.precision, "recall": figure.recall, "met": figure.met}
        for figure in one.figures
    ]
    return {**one._asdict(), "met": one.met, "figures": figures}
