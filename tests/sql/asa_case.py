"""Runs one case file (the conformance format: query, inputs, expected rows) through the engine, and compares rows."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from headrace.core.clock import from_iso, to_iso
from headrace.core.errors import HeadraceError, UserError
from headrace.core.schema import LOG_SCHEMA, EventBatch
from headrace.sql.compile import compile_script
from headrace.sql.functions.user import UserFunction
from headrace.sql.moments import Moment
from headrace.sql.plan import Plan
from headrace.sql.run import Policies, Results, Run

START = from_iso("2025-01-01T00:00:00Z")


@dataclass
class Event:
    input: str
    arrival: int
    row: dict[str, Any]
    meta: dict[str, Any]


def load(path: Path) -> dict[str, Any]:
    # YAML's own date type would turn text into something else
    loader = type("Loader", (yaml.SafeLoader,), {})
    loader.yaml_implicit_resolvers = {
        key: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:timestamp"]
        for key, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    return yaml.load(path.read_text(), loader)


def events(case: dict[str, Any]) -> list[Event]:
    """All inputs' events, merged by arrival."""
    found: list[Event] = []
    for name, spec in case["inputs"].items():
        last = START
        for row in spec["rows"]:
            given = row.get(spec.get("arrival") or "", row.get(spec.get("timestamp") or "")) if spec else None
            with contextlib.suppress(UserError):
                last = from_iso(given) if isinstance(given, str) else last
            payload = {key: value for key, value in row.items() if not key.startswith("_")}
            found.append(Event(name, last, payload, row.get("_meta", {})))
    return sorted(found, key=lambda event: event.arrival)


def batch(found: Sequence[Event], first: int) -> EventBatch:
    columns: dict[str, list[Any]] = {
        "_event_id": [event.meta.get("EventId", f"e{first + index}") for index, event in enumerate(found)],
        "_entity_id": ["d"] * len(found),
        "_type": ["telemetry"] * len(found),
        "_device": ["d"] * len(found),
        "_enqueued": [event.arrival for event in found],
        "_properties": [json.dumps(event.meta) for event in found],
        "_body": [json.dumps(event.row).encode() for event in found],
        "_partition": [0] * len(found),
        "_offset": list(range(first, first + len(found))),
    }
    arrays = [
        pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(len(found), field.type)
        for field in LOG_SCHEMA
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=LOG_SCHEMA)


def user_functions(case: dict[str, Any]) -> dict[str, UserFunction]:
    found: dict[str, UserFunction] = {}
    for name, sources in case.get("functions", {}).items():
        scope: dict[str, Any] = {}
        exec(f"found = {sources['python']}", scope)
        plain = scope["found"]

        def call(args: list[pa.Array], plain: Any = plain) -> pa.Array:
            return pa.array([plain(*row) for row in zip(*(arg.to_pylist() for arg in args), strict=True)])

        found[name] = UserFunction(name, call)
    return found


def compiled(case: dict[str, Any]) -> Plan:
    return compile_script(case["query"], functions=user_functions(case), references=list(case.get("reference", {})))


def start(case: dict[str, Any], plan: Plan) -> Run:
    references = {name: pa.Table.from_pylist(spec["rows"]) for name, spec in case.get("reference", {}).items()}
    policies = Policies(**(case.get("policies") or {"late_arrival_s": -1, "out_of_order_s": 0, "action": "adjust"}))
    return Run(plan, references=references, policies=policies, on_error=case.get("on_error", "stop"))


def run(case: dict[str, Any], *, batch_size: int | None = None, kill: bool = False) -> dict[str, list[dict[str, Any]]]:
    """Rows by output. With `kill`, after every batch a new Run takes over from a snapshot."""
    plan = compiled(case)
    running = start(case, plan)
    out: dict[str, list[dict[str, Any]]] = {name: [] for name in plan.outputs}
    found = events(case)
    at = 0
    while at < len(found):
        stop = at
        while stop < len(found) and found[stop].input == found[at].input and (not batch_size or stop - at < batch_size):
            stop += 1
        if found[at].input in plan.inputs:
            gather(running.process(found[at].input, batch(found[at:stop], at)), out)
        for other in plan.inputs:
            if other != found[at].input and stop < len(found):
                gather(running.advance(other, found[stop].arrival - 1), out)
        if kill:
            state = running.snapshot()
            running = start(case, plan)
            running.restore(state)
        at = stop
    gather(running.finish(), out)
    return out


def gather(results: Results, out: dict[str, list[dict[str, Any]]]) -> None:
    for rows in results.rows:
        listed = rows.to_pylist()
        bodies = [json.loads(body) for body in rows.bodies()]
        assert [written(row) for row in listed] == bodies, "bodies() and to_pylist() must agree"
        out[rows.output] += listed


def written(value: Any) -> Any:
    if isinstance(value, Moment):
        return to_iso(value.ticks)
    if isinstance(value, dict):
        return {key: written(part) for key, part in value.items()}
    return [written(part) for part in value] if isinstance(value, list) else value


def same(got: Any, want: Any, *, tolerance: float, unordered: bool) -> bool:
    """Whether a value is the expected one, as the conformance README says."""
    if isinstance(got, Moment):
        return isinstance(want, str) and from_iso(want) == got.ticks
    if isinstance(got, bool | int | float) and isinstance(want, bool | int | float):
        return abs(got - want) <= tolerance * max(1, abs(got), abs(want))
    if isinstance(got, dict) and isinstance(want, dict):
        names = got.keys() | want.keys()
        return all(same(got.get(n), want.get(n), tolerance=tolerance, unordered=unordered) for n in names)
    if isinstance(got, list) and isinstance(want, list):
        if unordered:
            return matching(got, want, tolerance=tolerance, unordered=unordered)
        return len(got) == len(want) and all(
            same(one, other, tolerance=tolerance, unordered=unordered) for one, other in zip(got, want, strict=True)
        )
    return type(got) is type(want) and bool(got == want)


def matching(got: list[Any], want: list[Any], *, tolerance: float, unordered: bool) -> bool:
    left = list(want)
    for value in got:
        at = next((i for i, o in enumerate(left) if same(value, o, tolerance=tolerance, unordered=unordered)), None)
        if at is None:
            return False
        del left[at]
    return not left


def check(case: dict[str, Any], got: dict[str, list[dict[str, Any]]]) -> None:
    """Assert that the outputs are the expected ones."""
    options: dict[str, Any] = {
        "tolerance": case.get("tolerance", 1e-9),
        "unordered": case.get("unordered_arrays", False),
    }
    for name, want in case["expect"].items():
        rows = next((found for output, found in got.items() if output.lower() == name.lower()), None)
        assert rows is not None, f"no output {name}"
        if case.get("compare") == "subset":
            rows = [{key: row.get(key) for key in (want[0] if want else row)} for row in rows]
        good = (
            same(rows, want, **{**options, "unordered": False})
            if case.get("ordered")
            else matching(rows, want, **options)
        )
        assert good, f"{name}:\n got  {[written(row) for row in rows]}\n want {want}"


def expect_error(case: dict[str, Any]) -> None:
    """Assert that the job fails, compiled or run, with the message the case asks for."""
    with pytest.raises(HeadraceError, match=case["expect_error"]):
        run(case)
