"""`headrace blueprint`: what it prints and how it exits."""

from __future__ import annotations

import dataclasses
import json

import pytest
import typer
from typer.testing import CliRunner

from headrace.blueprints.factory import FACTORY
from headrace.blueprints.spec import Expectation, Figure
from headrace.cli import blueprint as verbs
from headrace.core.errors import UserError

GOOD = Figure("hot", "fires", 10, 10, 10, 10, 0.9, 0.9)


@pytest.fixture
def app() -> typer.Typer:
    made = typer.Typer()
    verbs.register(made)
    return made


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """What a blueprint is found to do, without the half minute that finding out takes."""
    given = [GOOD]

    async def expect(seed: int) -> Expectation:
        return Expectation(seed, 5, 60.0, 300, 0, tuple(given))

    monkeypatch.setattr(verbs, "blueprint", lambda name: dataclasses.replace(FACTORY, expect=expect))
    return given


def test_figures_are_printed_and_a_met_expectation_exits_0(app: typer.Typer, figures: list[Figure]) -> None:
    done = CliRunner().invoke(app, ["blueprint", "expect", "factory", "--seed", "7", "--seed", "8"])
    assert done.exit_code == 0
    assert "seed 7: 5 devices, 1 min of plant time, 300 events, 0 set aside" in done.stdout
    assert "seed 8" in done.stdout
    assert "fires" in done.stdout


def test_a_figure_below_what_is_asked_exits_1_and_is_named(app: typer.Typer, figures: list[Figure]) -> None:
    figures.append(GOOD._replace(rule="cold", found=5))
    done = CliRunner().invoke(app, ["blueprint", "expect", "factory"])
    assert done.exit_code == 1
    assert "0.50 < 0.90" in done.stdout


def test_programs_get_the_same_as_json(app: typer.Typer, figures: list[Figure]) -> None:
    figures.append(GOOD._replace(rule="wild", right=1))
    done = CliRunner().invoke(app, ["blueprint", "expect", "factory", "--json"])
    told = json.loads(done.stdout)
    assert done.exit_code == 1
    assert told["met"] is False
    assert [(one["rule"], one["precision"], one["met"]) for one in told["runs"][0]["figures"]] == [
        ("hot", 1.0, True),
        ("wild", 0.1, False),
    ]


def test_nothing_found_out_is_nothing_shown() -> None:
    assert not GOOD._replace(happened=0, found=0).met
    assert not GOOD._replace(raised=0, right=0).met
    assert not Expectation(1, 5, 60.0, 300, 1, (GOOD,)).met


def test_a_blueprint_that_expects_nothing_says_so(app: typer.Typer) -> None:
    done = CliRunner().invoke(app, ["blueprint", "expect", "starter"])
    assert isinstance(done.exception, UserError)
    assert "starter" in done.exception.message


def test_the_list_names_every_blueprint(app: typer.Typer) -> None:
    done = CliRunner().invoke(app, ["blueprint", "list", "--json"])
    told = {row["name"]: row for row in json.loads(done.stdout)}
    assert told["factory"]["expects"] is True
    assert told["starter"]["simulates"] is False
