"""Cases: stream SQL tests as files. A query, the events of its inputs, and the rows that must come out.

A case runs through the very operators that jobs run. User functions in a case are Python source and are executed, so a
case is as trusted as a test module; `case_pool` keeps what it does to one worker process and one time limit.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
import yaml

from headrace.core.clock import from_iso
from headrace.core.errors import HeadraceError, UserError, nearest
from headrace.core.schema import LOG_SCHEMA, EventBatch
from headrace.sql.case_compare import Comparison, Record, difference, plain
from headrace.sql.case_coverage import covered
from headrace.sql.case_report import CaseResult, Kind
from headrace.sql.compile import compile_script
from headrace.sql.functions.user import UserFunction
from headrace.sql.moments import parse_moment
from headrace.sql.plan import Plan
from headrace.sql.reference import rows_table
from headrace.sql.run import Policies, Results, Run

START = from_iso("2025-01-01T00:00:00Z")
KEYS = [
    "name",
    "feature",
    "basis",
    "doc",
    "note",
    "query",
    "query_file",
    "policies",
    "functions",
    "inputs",
    "reference",
    "expect",
    "expect_error",
    "ordered",
    "compare",
    "unordered_arrays",
    "tolerance",
    "on_error",
]
Outputs = dict[str, list[Record]]


class CaseError(UserError):
    """A case file that cannot be run as it stands."""

    code = "sql.case"


class Cut(NamedTuple):
    """How the events are cut: rows per batch (None: as many as there are) and after how many batches a kill comes (0: never)."""

    batch_size: int | None = None
    kill_every: int = 0


@dataclass(frozen=True)
class Event:
    input: str
    arrival: int  # ticks
    row: Record
    meta: Record


@dataclass
class Case:
    """A case as its file says, `keys` by name; events of all inputs merged by arrival."""

    keys: Mapping[str, Any]
    name: str
    query: str
    events: list[Event] = field(default_factory=list)

    def plan(self, rewrites: Collection[str] | None = None) -> Plan:
        """Compile the query, with all rewrites unless told otherwise. Raises SqlError."""
        references = list(self.keys.get("reference") or {})
        return compile_script(self.query, functions=self.functions(), references=references, rewrites=rewrites)

    def functions(self) -> dict[str, UserFunction]:
        return {name: user_function(name, spec) for name, spec in (self.keys.get("functions") or {}).items()}

    def start(self, plan: Plan) -> Run:
        tables = {name: reference_table(name, spec) for name, spec in (self.keys.get("reference") or {}).items()}
        return Run(
            plan, references=tables, policies=policies_of(self.keys), on_error=self.keys.get("on_error") or "stop"
        )


# -- reading


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML whose dates stay text: a date type of its own would turn an event's text into something else."""


_Loader.yaml_implicit_resolvers = {
    key: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:timestamp"]
    for key, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load(path: Path) -> Case:
    """Read a case file. Raises CaseError."""
    try:
        keys = yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)
    except OSError as exc:
        raise CaseError(f"cannot read the case: {exc.strerror}") from exc
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as exc:
        raise CaseError(f"this is no YAML: {exc}", hint="quote texts that hold a colon") from exc
    return from_keys(keys, path)


def from_keys(keys: Any, path: Path) -> Case:
    """The case of a parsed file. A key that looks like a misspelled one is an error; others are notes to the reader."""
    if not isinstance(keys, dict):
        raise CaseError("a case is a mapping of keys", hint="it needs query, inputs and expect or expect_error")
    for key in keys:
        if str(key) not in KEYS and (hint := nearest(str(key), KEYS)):
            raise CaseError(f"a case has no key {key!r}", hint=hint)
    wrong = [key for key in ("inputs", "functions", "reference", "policies", "expect") if _not_mapping(keys.get(key))]
    if wrong:
        raise CaseError(f"{wrong[0]} must be a mapping", hint="as in inputs: {sensors: {rows: [...]}}")
    if ("expect" in keys) == ("expect_error" in keys):
        raise CaseError("a case has either expect or expect_error", hint="expect: {output: []} means no rows")
    _check_values(keys)
    return Case(keys, str(keys.get("name") or path.stem), _query(keys, path), _events(keys.get("inputs") or {}))


_CHOICES = {"compare": ("all", "subset"), "on_error": ("stop", "set_aside")}


def _check_values(keys: Mapping[str, Any]) -> None:
    """Every key that a verdict depends on has a value that means something."""
    for key, known in _CHOICES.items():
        if keys.get(key) is not None and keys[key] not in known:
            raise CaseError(f"{key} cannot be {keys[key]!r}", hint="known: " + ", ".join(known))
    for key in ("ordered", "unordered_arrays"):
        if not isinstance(keys.get(key, False), bool):
            raise CaseError(f"{key} must be true or false, not {keys[key]!r}", hint="leave it out for false")
    tolerance = keys.get("tolerance", 1e-9)
    try:
        fits = 0 <= float(tolerance) < math.inf  # YAML reads 1e-6, without a point, as text
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise CaseError(f"tolerance must be a number from 0 on, not {tolerance!r}", hint="leave it out for 1e-9")
    for name, rows in (keys.get("expect") or {}).items():
        if rows is not None and not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
            raise CaseError(f"expect of output {name} must be a list of rows", hint="[] means no rows")
    try:
        re.compile(str(keys.get("expect_error", "")))
    except re.error as exc:
        raise CaseError(f"expect_error is no regular expression: {exc}", hint="put a backslash before ( and [") from exc
    policies_of(keys)


def policies_of(keys: Mapping[str, Any]) -> Policies:
    """The event ordering settings of a case. Raises CaseError."""
    try:
        return msgspec.convert({"late_arrival_s": -1, **(keys.get("policies") or {})}, _StrictPolicies)
    except msgspec.ValidationError as exc:
        known = "late_arrival_s, out_of_order_s, action: adjust or drop"
        raise CaseError(f"policies: {exc}", hint=f"known: {known}") from exc


class _StrictPolicies(Policies, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Policies as a case writes them: a misspelled one is an error."""


def _not_mapping(value: Any) -> bool:
    return value is not None and not isinstance(value, dict)


def _query(keys: Mapping[str, Any], path: Path) -> str:
    if isinstance(keys.get("query"), str):
        return str(keys["query"])
    if not isinstance(keys.get("query_file"), str):
        raise CaseError("a case needs a query", hint="query: the script, or query_file: its path beside the case")
    file = path.parent / str(keys["query_file"])
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        raise CaseError(f"cannot read query_file {keys['query_file']!r}", hint="its path is from the case") from exc


def _events(inputs: Mapping[str, Any]) -> list[Event]:
    """Events of all inputs, merged by arrival: an event without one arrives at its own time, or with the one before."""
    found: list[Event] = []
    for name, spec in inputs.items():
        last = START
        for row in _rows(f"input {name}", spec):
            given = row.get(spec.get("arrival") or "", row.get(spec.get("timestamp") or ""))
            ticks = parse_moment(given) if isinstance(given, str) else None
            last = last if ticks is None else ticks
            payload = {key: value for key, value in row.items() if not key.startswith("_")}
            found.append(Event(str(name), last, payload, row.get("_meta") or {}))
    return sorted(found, key=lambda event: event.arrival)


def _rows(what: str, spec: Any) -> list[Record]:
    rows = spec.get("rows") if isinstance(spec, dict) else None
    if rows is None:
        rows = []
    if not isinstance(spec, dict) or not isinstance(rows, list):
        raise CaseError(f"{what} needs rows", hint="rows: [{id: a, v: 1}]")
    for index, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not all(isinstance(key, str) for key in row):
            raise CaseError(f"row {index} of {what} is no event", hint="a mapping; quote keys like 'on' and '1'")
        if not isinstance(row.get("_meta") or {}, dict):
            raise CaseError(f"_meta of row {index} of {what} is no record", hint="_meta: {EventId: e-1}")
    return rows


def reference_table(name: str, spec: Any) -> pa.Table:
    """Reference rows as a table; a column that only some rows have is null in the others."""
    try:
        return rows_table(_rows(f"reference {name}", spec))
    except (OverflowError, TypeError, pa.ArrowException) as exc:
        raise CaseError(
            f"reference {name} has a value that is none of the language: {exc}",
            hint="texts, numbers within 64 bits, true, false, null, mappings and lists",
        ) from exc


def user_function(name: str, spec: Any) -> UserFunction:
    """A function of a case from its Python source: an expression (a lambda), or statements whose last `def` it is."""
    source = spec.get("python") if isinstance(spec, dict) else None
    if not isinstance(source, str):
        raise CaseError(f"function {name} has no python source", hint='python: "lambda x: x + 1"')
    return UserFunction(name, _callable(name, source), "aggregate" if name.lower().startswith("uda.") else "row")


def _callable(name: str, source: str) -> Callable[..., Any]:
    scope: dict[str, Any] = {}
    try:
        body = ast.parse(source.strip(), filename=name).body
        if len(body) == 1 and isinstance(body[0], ast.Expr):
            found = eval(compile(ast.Expression(body[0].value), name, "eval"), scope)
        else:
            exec(compile(source, name, "exec"), scope)
            defined = [node.name for node in body if isinstance(node, ast.FunctionDef)]
            found = scope[defined[-1]] if defined else None
    except Exception as exc:
        raise CaseError(f"function {name}: {type(exc).__name__}: {exc}", hint="correct its python source") from exc
    if not callable(found):
        raise CaseError(f"function {name} is no function", hint="a lambda, or statements that end in a def")
    return found  # type: ignore[no-any-return]


# -- running


def run_file(path: Path, cut: Cut) -> CaseResult:
    """Run a case file to its verdict: whatever goes wrong is in the result, nothing is raised."""
    result = CaseResult(name=path.stem, file=str(path))
    try:
        judge(load(path), cut, result)
    except HeadraceError as exc:
        result.kind = "unreadable" if isinstance(exc, CaseError) else "error"
        result.kind = "unsupported" if exc.code == "sql.unsupported" else result.kind
        result.problem = f"{exc.code}: {exc}"
    except BaseException as exc:  # user code may raise anything, SystemExit included: it is this case that failed
        result.kind, result.problem = "crashed", f"{type(exc).__name__}: {exc}"
    result.passed = not result.problem
    return result


def warm_up() -> None:
    """Run a small query, so that what libraries load on first use is not counted as the first case's time."""
    query = "SELECT System.Timestamp() AS t, COUNT(*) AS n FROM i TIMESTAMP BY t GROUP BY TumblingWindow(second, 1)"
    execute(Case({}, "warm-up", query, [Event("i", START, {"t": "2025-01-01T00:00:00Z"}, {})]), Cut())


def judge(case: Case, cut: Cut, result: CaseResult) -> None:
    """Run a case and write what is wrong with it into `result`. Raises what the query or the case raises."""
    result.name, result.feature, result.query = case.name, str(case.keys.get("feature") or ""), case.query
    if "expect_error" in case.keys:
        result.kind, result.problem = _error_verdict(case, cut)
        return
    plan, run, got = execute(case, cut)
    result.covered = covered(plan, run)
    result.problem = "\n".join(problems(case, got))
    result.kind = "rows" if result.problem else ""
    expected = {str(name).lower() for name in case.keys["expect"] or {}}
    unchecked = [name for name, rows in got.items() if rows and name.lower() not in expected]
    result.notes = [f"output {name} gave rows and is not in expect" for name in unchecked]


def problems(case: Case, got: Outputs) -> list[str]:
    """What is wrong with the rows, output by output."""
    keys = case.keys
    how = Comparison(
        float(keys.get("tolerance", 1e-9)),
        bool(keys.get("unordered_arrays", False)),
        keys.get("compare") == "subset",
        bool(keys.get("ordered", False)),
    )
    found: list[str] = []
    for name, want in (keys["expect"] or {}).items():
        rows = next((rows for output, rows in got.items() if output.lower() == str(name).lower()), None)
        if rows is None:
            found.append(f"output {name}: the query has no such output, it writes {', '.join(got)}")
        else:
            found.append(difference(str(name), rows, want or [], how))
    return [text for text in found if text]


def _error_verdict(case: Case, cut: Cut) -> tuple[Kind, str]:
    """Whether the job fails, when compiled or when run, with a message that the case's pattern is found in."""
    pattern = str(case.keys["expect_error"])
    try:
        _, _, got = execute(case, cut)
    except CaseError:
        raise
    except HeadraceError as exc:
        text = str(exc)
        if re.search(pattern, text):
            return "", ""
        if exc.code == "sql.unsupported":
            raise
        return "wrong_error", f"the error is another one: {text}\n  expected to find /{pattern}/"
    rows = ", ".join(f"{len(rows)} rows to {name}" for name, rows in got.items())
    return "no_error", f"the job ran and gave {rows}\n  expected an error with /{pattern}/"


def execute(case: Case, cut: Cut, rewrites: Collection[str] | None = None) -> tuple[Plan, Run, Outputs]:
    """Run a case to the end of its stream; rows by output, in the order in which they came.

    At a kill the query is compiled anew and a fresh Run takes over from a snapshot, as after the death of a process.
    """
    plan, run = _begin(case, rewrites)
    out: Outputs = {name: [] for name in plan.outputs}
    size = cut.batch_size or (1 if cut.kill_every else None)
    at = batches = 0
    while at < len(case.events):
        stop = _stop(case.events, at, size)
        for name in plan.inputs:
            if name.lower() == case.events[at].input.lower():
                _gather(run.process(name, event_batch(case.events[at:stop], at)), out)
            elif stop < len(case.events):
                _gather(run.advance(name, case.events[stop].arrival - 1), out)
        batches += 1
        if cut.kill_every and batches % cut.kill_every == 0:
            state = run.snapshot()
            plan, run = _begin(case, rewrites)
            run.restore(state)
        at = stop
    _gather(run.finish(), out)
    return plan, run, out


def _begin(case: Case, rewrites: Collection[str] | None) -> tuple[Plan, Run]:
    plan = case.plan(rewrites)
    return plan, case.start(plan)


def _stop(events: Sequence[Event], at: int, size: int | None) -> int:
    """Where the batch that begins at `at` ends: one input, at most `size` rows."""
    stop = at
    while stop < len(events) and events[stop].input == events[at].input and (not size or stop - at < size):
        stop += 1
    return stop


def _gather(results: Results, out: Outputs) -> None:
    for rows in results.rows:
        listed = rows.to_pylist()
        if [plain(row) for row in listed] != [json.loads(body) for body in rows.bodies()]:
            raise AssertionError(f"output {rows.output}: the rows and their JSON disagree")
        out[rows.output] += listed


def event_batch(found: Sequence[Event], first: int) -> EventBatch:
    """Events as the log gives them; `first` is the offset of the first one."""
    rows = len(found)
    columns: dict[str, list[Any]] = {
        "_event_id": [str(event.meta.get("EventId", f"e{first + index}")) for index, event in enumerate(found)],
        "_entity_id": ["d"] * rows,
        "_type": ["telemetry"] * rows,
        "_device": ["d"] * rows,
        "_enqueued": [event.arrival for event in found],
        "_properties": [json.dumps(event.meta) for event in found],
        "_body": [json.dumps(event.row).encode() for event in found],
        "_partition": [0] * rows,
        "_offset": list(range(first, first + rows)),
    }
    arrays = [
        pa.array(columns[one.name], one.type) if one.name in columns else pa.nulls(rows, one.type) for one in LOG_SCHEMA
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=LOG_SCHEMA)
