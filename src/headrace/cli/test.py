"""`headrace test`: stream SQL tests from files, without a running platform."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, NoReturn

import msgspec
import typer

from headrace.cli.session import explain, out
from headrace.core.clock import SystemClock
from headrace.core.errors import NotFound, Unavailable, UserError
from headrace.sql.case_pool import run_cases
from headrace.sql.case_report import CaseResult, coverage, coverage_lines, junit, summary

ENDINGS = (".yaml", ".yml")


def register(app: typer.Typer) -> None:
    app.command("test")(run_tests)


def run_tests(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Case files, or folders of them.")],
    junit_file: Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write JUnit XML here.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all results here.")] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Cut the events into batches of N rows. Default: uncut.")
    ] = None,
    kill_every: Annotated[
        int,
        typer.Option(
            "--kill-every", min=0, help="Kill and restore the job after every N batches (of 1 row, unless given)."
        ),
    ] = 0,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds that one case may take.")] = 10.0,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help="Worker processes. Default: one per core.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Name only the cases that fail.")] = False,
) -> None:
    """Run stream SQL tests: a query, input rows and the rows that must come out, one YAML file each.

    Exits 0 when all pass, 1 when one fails, 2 when there is nothing to run. The last line is `N passed, N failed`.
    Python functions in a case are executed: run only cases that you trust.

    Example: headrace test tests/sql --junit results.xml
    """
    try:
        files = case_files(paths)
        for report in filter(None, (junit_file, json_file)):
            _writable(report)
    except UserError as exc:
        _leave(exc)
    results: list[CaseResult] = []
    try:
        for result in run_cases(
            files,
            batch_size=batch_size,
            kill_every=kill_every,
            jobs=jobs or os.cpu_count() or 1,
            timeout_s=timeout_s,
            clock=SystemClock(),
        ):
            results.append(result)
            _say(result, quiet=quiet)
    except Unavailable as exc:
        _leave(exc)
    queries = coverage(results)
    if junit_file:
        junit_file.write_bytes(junit(results))
    if json_file:
        everything = {
            "passed": sum(result.passed for result in results),
            "failed": sum(not result.passed for result in results),
            "cases": results,
            "coverage": queries,
        }
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(everything)) + b"\n")
    print()
    for line in coverage_lines(queries):
        print(line)
    print(summary(results), flush=True)
    raise typer.Exit(0 if all(result.passed for result in results) else 1)


def case_files(paths: list[Path]) -> list[Path]:
    """The case files that paths name, folders searched through, each once. Raises NotFound."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix in ENDINGS and file.is_file())
            if not inside:
                raise NotFound(f"no case in {path}", hint="cases are .yaml files with query, inputs and expect")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise NotFound(f"there is no file or folder {path}", hint="give a case file or a folder of cases")
    return list({file.resolve(): file for file in found}.values())


def _writable(report: Path) -> None:
    """Make the folder of a report, so that no run ends in a report that cannot be written."""
    try:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.touch()
    except OSError as exc:
        raise UserError(f"cannot write {report}: {exc.strerror}", hint="give a path that can be written") from exc


def _leave(exc: UserError | Unavailable) -> NoReturn:
    explain(exc)
    raise typer.Exit(2) from exc


def _say(result: CaseResult, *, quiet: bool) -> None:
    """One line for a case; below it what is wrong."""
    if result.passed and quiet:
        return
    verdict = "[green]ok  [/]" if result.passed else "[bold red]FAIL[/]"
    out.print(f"{verdict} ", end="")
    out.print(f"{result.name}  {result.elapsed_s * 1000:.0f} ms", markup=False)
    if not result.passed:
        out.print(f"     {result.file}: {result.kind}", markup=False)
        for line in result.problem.split("\n"):
            out.print(f"     {line}", markup=False, style=_colour(line))
    for note in result.notes:
        out.print(f"     note: {note}", markup=False)


def _colour(line: str) -> str:
    return {"- ": "green", "+ ": "red"}.get(line.lstrip()[:2], "")
