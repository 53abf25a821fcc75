"""`headrace sql`: check, explain and lay out stream SQL files without running anything."""

from __future__ import annotations

import codecs
import dataclasses
import difflib
import json
from pathlib import Path
from typing import Annotated

import typer

from headrace import assembly
from headrace.cli.session import ProjectOption, err, explain, fail
from headrace.core.config import load_project
from headrace.core.errors import NotFound, UserError
from headrace.sql.errors import SqlError

sql = typer.Typer(help="Stream SQL: check a script, see its plan, lay it out.", no_args_is_help=True)

ScriptFile = Annotated[Path, typer.Argument(metavar="FILE", help="A .asaql file.")]
References = Annotated[
    list[str] | None, typer.Option("--reference", help="An input that is reference data. May be given again.")
]


def register(app: typer.Typer) -> None:
    app.add_typer(sql, name="sql")


@sql.command("check")
def check(file: ScriptFile, project: ProjectOption = None, reference: References = None) -> None:
    """Say all that is wrong with a script and where, or that it would run. Exits 1 when it would not.

    Reference data is what the project's jobs name, what --reference names, and what a Stream Analytics project says in
    its Inputs folder beside the script.

    Example: headrace sql check sql/machines.asaql
    """
    text = _read(file)
    try:
        plan = assembly.compile_file(text, _context(project, file, reference))
    except SqlError as exc:
        found = sorted([exc, *exc.others], key=lambda error: (error.line, error.column))
        for error in found:
            _point(file, text, error)
        if len(found) > 1:
            err.print(f"{file}: would not run: {len(found)} errors", markup=False)
        raise typer.Exit(1) from exc
    except UserError as exc:
        err.print(f"{file}: ", end="", markup=False)
        explain(exc)
        raise typer.Exit(1) from exc
    print(f"{file}: would run; reads {', '.join(plan.inputs)}; writes {', '.join(plan.outputs)}")


@sql.command("explain")
def explain_plan(file: ScriptFile, project: ProjectOption = None, reference: References = None) -> None:
    """Print the plan of a script.

    Example: headrace sql explain sql/machines.asaql
    """
    text = _read(file)
    try:
        print(assembly.compile_file(text, _context(project, file, reference)).explain())
    except SqlError as exc:
        _point(file, text, exc)
        raise typer.Exit(1) from exc


@sql.command("format")
def format_file(
    file: ScriptFile,
    check_only: Annotated[
        bool, typer.Option("--check", help="Print what would change; exit 1 if anything would.")
    ] = False,
    write: Annotated[bool, typer.Option("--write", help="Change the file instead of printing the script.")] = False,
) -> None:
    """Lay out a script: keywords in capitals, one clause a line, comments kept. What it does stays the same.

    Example: headrace sql format sql/machines.asaql --write
    """
    from headrace.sql.format import format_script

    if check_only and write:
        raise typer.BadParameter("give --check or --write, not both")
    text = _read(file)
    try:
        found = format_script(text)
    except SqlError as exc:
        _point(file, text, exc)
        raise typer.Exit(1) from exc
    if check_only:
        if found != text:
            changes = difflib.unified_diff(text.splitlines(), found.splitlines(), str(file), "laid out", lineterm="")
            print("\n".join(changes))
            raise typer.Exit(1)
    elif not write:
        print(found, end="")
    elif found != text:
        _write(file, found)


def _point(file: Path, text: str, exc: SqlError) -> None:
    """The error on stderr, with the line it is in and a mark under the offending text."""
    lines = text.split("\n")
    err.print(f"{file}:{exc.line}:{exc.column}: ", end="", markup=False)
    explain(exc)
    if exc.code == "sql.join":
        err.print("   [bold]or[/]: give --reference NAME, if it is reference data")
    if 1 <= exc.line <= len(lines):
        line = lines[exc.line - 1]
        before = "".join("\t" if char == "\t" else " " for char in line[: exc.column - 1])
        width = len(exc.text.split("\n")[0])
        marks = "^" * max(1, min(width, len(line) - len(before)))
        number = f"{exc.line:>5} | "
        typer.echo(f"{number}{line}\n{' ' * (len(number) - 2)}| {before}{marks}", err=True)


def _read(file: Path) -> str:
    """A script as text: UTF-8 or UTF-16 with or without a byte order mark, any line ends. Raises UserError."""
    try:
        raw = file.read_bytes()
    except OSError as exc:
        raise NotFound(f"cannot read {file}: {exc.strerror}", hint="give the path of a .asaql file") from exc
    utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = raw.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as exc:
        line = raw.count(b"\n", 0, exc.start) + 1
        raise UserError(
            f"{file}: line {line}: byte 0x{raw[exc.start]:02x} is not {exc.encoding} text",
            hint="save the script as UTF-8",
            code="sql.encoding",
        ) from exc
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _write(file: Path, text: str) -> None:
    """Put a text in the place of a file's, in its encoding and with its line ends."""
    raw = file.read_bytes()
    if b"\r\n" in raw.replace(b"\0", b""):
        text = text.replace("\n", "\r\n")
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    else:
        encoding = "utf-8-sig" if raw.startswith(codecs.BOM_UTF8) else "utf-8"
    try:
        file.write_bytes(text.encode(encoding))
    except OSError as exc:
        fail(UserError(f"cannot write {file}: {exc.strerror}", hint="check its permissions"))


def _context(given: str | None, file: Path, references: list[str] | None) -> assembly.ScriptContext:
    """What a script may call and join: the project's, where there is one, and what the command and its folder say."""
    try:
        context = assembly.script_context(load_project(given), file)
    except NotFound:
        if given:
            raise
        context = assembly.ScriptContext()
    more = {*context.references, *(references or []), *_inputs_folder(file)}
    return dataclasses.replace(context, references=tuple(sorted(more)))


def _inputs_folder(file: Path) -> set[str]:
    """Reference inputs of a Stream Analytics project: one JSON file per input in the folder Inputs beside its script."""
    found: set[str] = set()
    for path in sorted(file.parent.glob("[Ii]nputs/*.json")):
        try:
            spec = json.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError):
            continue  # its input is then a stream, and a join without a time bound says where
        if isinstance(spec, dict) and "reference" in str(spec.get("Type", spec.get("InputType", ""))).lower():
            found.add(str(spec.get("InputAlias") or spec.get("Name") or path.stem.removeprefix("Local_")))
    return found
