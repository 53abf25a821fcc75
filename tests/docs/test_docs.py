"""What the documents say is true: commands exist with the options shown, settings are those of the source, links lead somewhere."""

import importlib
import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from headrace.cli import MODULES
from headrace.core.config import parse
from headrace.core.plugins import collect

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMAND = re.compile(r"^\s*(headrace [a-z].*?)(?:\s+#.*)?$", re.MULTILINE)


def command_line() -> Any:
    """The whole command tree, in typer's own copy of click. The program itself loads only the verb that was typed."""
    app = typer.Typer()
    for module in dict.fromkeys(MODULES.values()):
        importlib.import_module(f"headrace.cli.{module}").register(app)
    return typer.main.get_command(app)


def shown_commands() -> list[str]:
    found: list[str] = []
    for path in PAGES:
        for block in re.findall(r"```\n(.*?)```", path.read_text(), re.DOTALL):
            found += [match.strip() for match in COMMAND.findall(block)]
    return sorted(set(found))


def helped_commands() -> list[str]:
    """The examples in every command's own help."""
    found: list[str] = []

    def walk(command: Any) -> None:
        match = re.search(r"Example: (headrace .*)", command.help or "")
        if match:
            found.append(match[1].strip())
        for inner in getattr(command, "commands", {}).values():
            walk(inner)

    walk(command_line())
    return found


@pytest.mark.parametrize("text", shown_commands() + helped_commands())
def test_a_command_that_is_shown_exists_with_its_options(text: str) -> None:
    words = shlex.split(text)[1:]
    command = command_line()
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    assert not hasattr(command, "commands"), f"{text}: {words[:1]} is no command"
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known, text


def test_every_command_has_help_with_an_example() -> None:
    lacking: list[str] = []

    def walk(name: str, command: Any) -> None:
        if hasattr(command, "commands"):
            for word, inner in command.commands.items():
                walk(f"{name} {word}", inner)
        elif "Example: headrace" not in (command.help or ""):
            lacking.append(name)

    walk("headrace", command_line())
    assert lacking == []


def test_the_settings_page_is_made_from_the_source() -> None:
    path = ROOT / "scripts" / "settings_page.py"
    spec = importlib.util.spec_from_file_location("settings_page", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text() == module.page(), "run .venv/bin/python scripts/settings_page.py"


def test_links_between_documents_lead_somewhere() -> None:
    broken = [
        f"{path.name}: {target}"
        for path in PAGES
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text())
        if not (path.parent / target).exists()
    ]
    assert broken == []


def test_every_blueprint_has_settings_that_parse() -> None:
    import tomllib

    from headrace.blueprints.spec import Blueprint

    for spec in collect("headrace.blueprints", Blueprint):
        files = spec.files()
        settings = parse(tomllib.loads(files["headrace.toml"]))
        assert all(job.query in files for job in settings.jobs.values()), spec.name
