"""What running cases gives: one result per case, the coverage of each query, and both as JUnit XML.

Nothing here imports the engine: the command that starts the workers stays small, and results travel between processes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal
from xml.etree import ElementTree as Xml

import msgspec

Kind = Literal["", "rows", "no_error", "wrong_error", "error", "unsupported", "unreadable", "crashed", "timed_out"]
_FAILURES: tuple[Kind, ...] = (
    "rows",
    "no_error",
    "wrong_error",
)  # it ran to a verdict, and that is not the expected one
_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Covered(msgspec.Struct, frozen=True):
    """One SELECT, stream JOIN or filter of a query: how many rows it was given and how many it let out."""

    line: int  # 0 where it is not known
    what: str
    kind: Literal["select", "join", "filter"]
    rows_in: int
    rows_out: int


class CaseResult(msgspec.Struct, kw_only=True):
    """How a case went. `problem` is text for people, several lines long; `kind` a stable word for programs."""

    name: str
    file: str
    feature: str = ""
    passed: bool = False
    kind: Kind = ""
    problem: str = ""
    elapsed_s: float = 0.0
    query: str = ""
    notes: list[str] = []
    covered: list[Covered] = []


class QueryCoverage(msgspec.Struct, frozen=True):
    """What all cases of one query together reached. `file` is the first of them."""

    file: str
    cases: int
    covered: list[Covered]


def coverage(results: Iterable[CaseResult]) -> list[QueryCoverage]:
    """Coverage by query text, rows summed over the cases that run it. Queries that never ran are left out."""
    found: dict[str, QueryCoverage] = {}
    for result in results:
        if not result.covered:
            continue
        so_far = found.get(result.query)
        if so_far is None or len(so_far.covered) != len(result.covered):
            found[result.query] = QueryCoverage(result.file, 1, result.covered)
            continue
        summed = [
            Covered(one.line, one.what, one.kind, one.rows_in + more.rows_in, one.rows_out + more.rows_out)
            for one, more in zip(so_far.covered, result.covered, strict=True)
        ]
        found[result.query] = QueryCoverage(so_far.file, so_far.cases + 1, summed)
    return list(found.values())


def coverage_lines(queries: Sequence[QueryCoverage], *, lines_max: int = 20) -> list[str]:
    """The summary for people: totals, then what no case reached."""
    everything = [one for query in queries for one in query.covered]
    lines: list[str] = []
    for kind, did in (
        ("select", "SELECTs gave rows"),
        ("join", "joins found rows"),
        ("filter", "filters let rows through"),
    ):
        all_of = [one for one in everything if one.kind == kind]
        if all_of:
            lines.append(f"{sum(one.rows_out > 0 for one in all_of)} of {len(all_of)} {did}")
    dry = [
        f"  {query.file}: {f'line {one.line}: ' if one.line else ''}{one.what} {_dry(one)}"
        for query in queries
        for one in query.covered
        if one.rows_out == 0
    ]
    head = "coverage: " + ", ".join(lines) if lines else "coverage: no query ran to its end"
    more = [f"  … and {len(dry) - lines_max} more (--json has all)"] if len(dry) > lines_max else []
    return [head, *dry[:lines_max], *more]


def _dry(one: Covered) -> str:
    if one.rows_in == 0:
        return "was given no row"
    if one.kind == "join":
        return f"joined none of {one.rows_in} rows"
    return f"gave no row of {one.rows_in}" if one.kind == "select" else f"let none of {one.rows_in} rows through"


def summary(results: Sequence[CaseResult]) -> str:
    """`N passed, N failed`: the line that programs read."""
    passed = sum(result.passed for result in results)
    return f"{passed} passed, {len(results) - passed} failed"


def junit(results: Sequence[CaseResult]) -> bytes:
    """JUnit XML, as CI systems read it: wrong rows are failures; what did not come to a comparison is an error."""
    failures = [result for result in results if result.kind in _FAILURES]
    errors = [result for result in results if not result.passed and result.kind not in _FAILURES]
    counts = {
        "tests": str(len(results)),
        "failures": str(len(failures)),
        "errors": str(len(errors)),
        "time": f"{sum(result.elapsed_s for result in results):.3f}",
    }
    root = Xml.Element("testsuites", counts)
    suite = Xml.SubElement(root, "testsuite", {"name": "headrace test", **counts})
    for result in results:
        case = Xml.SubElement(
            suite,
            "testcase",
            {
                "classname": _legal(result.feature or "sql"),
                "name": _legal(result.name),
                "file": _legal(result.file),
                "time": f"{result.elapsed_s:.3f}",
            },
        )
        if not result.passed:
            tag = "failure" if result.kind in _FAILURES else "error"
            text = _legal(result.problem)
            Xml.SubElement(case, tag, {"type": result.kind, "message": text.split("\n")[0]}).text = text
    Xml.indent(root)
    return bytes(Xml.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _legal(text: str) -> str:
    """Text without the characters that XML cannot hold."""
    return _ILLEGAL.sub("\ufffd", text)
