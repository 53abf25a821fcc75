"""Scripts that nobody would write: whatever comes in, errors are ours, and laying a script out changes nothing it says."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import provided
import pytest

from headrace.core.errors import HeadraceError
from headrace.sql import cases
from headrace.sql.case_report import CaseResult
from headrace.sql.cases import Case, CaseError, Cut
from headrace.sql.compile import compile_script
from headrace.sql.dialect import tokenize
from headrace.sql.format import format_script
from headrace.sql.script import parse_script
from headrace.sql.tree import key

OWN = sorted((Path(__file__).parent / "cases").glob("*.yaml"))
FILES = [*sorted(provided.CASES.glob("*.yaml")), *OWN]
_WORDS = r"""
SELECT FROM WHERE GROUP BY HAVING INTO UNION ALL JOIN LEFT OUTER INNER ON CROSS APPLY WITH AS AND OR NOT CASE WHEN THEN ELSE END
IS NULL IN LIKE BETWEEN OVER PARTITION ORDER LIMIT DURATION TIMESTAMP CREATE TABLE MATCH_RECOGNIZE ( ) ( ) , , . ; * + - / % = <>
< > ! & | ^ ~ ? [ ] 'x' "y" [z] 1 2.5 1e3 1e999 second a b v System.Timestamp() COUNT(*) TumblingWindow(second,5) LAG(v) udf.f(v)
-- /* */ ž é @ # $ : { }
"""
WORDS = _WORDS.split()
VALUES: list[Any] = [
    None,
    1,
    -3,
    2.5,
    "x",
    "",
    "7",
    "2025-01-01T00:00:03Z",
    True,
    {"a": 1},
    {},
    [1, "x"],
    [],
    2**63 - 1,
]


@cache
def known() -> list[Case]:
    return [cases.load(path) for path in FILES]


def pieces(text: str) -> list[str]:
    return [text[token.start : token.end] for token in tokenize(text)[:-1]]


def shaken(rng: random.Random, text: str) -> str:
    """A script with a few tokens lost, doubled, swapped or taken from another one."""
    parts = pieces(text)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(parts)) if parts else 0
        match rng.randrange(5):
            case 0:
                del parts[at : at + 1]
            case 1:
                parts[at : at + 1] = [rng.choice(WORDS)]
            case 2:
                parts.insert(at, rng.choice(WORDS))
            case 3 if parts:
                other = rng.randrange(len(parts))
                parts[at], parts[other] = parts[other], parts[at]
            case _:
                more = pieces(rng.choice(known()).query)
                start = rng.randrange(len(more))
                parts[at:at] = more[start : start + rng.randint(1, 6)]
    return rng.choice([" ", "\n"]).join(parts)


@pytest.mark.parametrize("seed", range(4))
def test_any_script_compiles_or_fails_with_an_error_of_ours(seed: int) -> None:
    rng = random.Random(seed)
    codes: set[str] = set()
    for _ in range(80):
        case = rng.choice(known())
        text = shaken(rng, case.query) if rng.random() < 0.7 else " ".join(rng.choices(WORDS, k=rng.randint(1, 40)))
        try:
            compile_script(text, functions=case.functions(), references=list(case.keys.get("reference") or {}))
        except HeadraceError as exc:
            codes.add(exc.code)
    assert "sql.syntax" in codes
    assert all(code.startswith("sql.") for code in codes), codes


@pytest.mark.parametrize("seed", range(4))
def test_laying_out_a_script_changes_nothing_it_says(seed: int) -> None:
    rng = random.Random(1000 + seed)
    laid_out = 0
    for _ in range(80):
        text = rng.choice(known()).query
        text = shaken(rng, text) if rng.random() < 0.5 else text
        try:
            tree = parse_script(text)
        except HeadraceError:
            continue
        found = format_script(text)
        assert key(parse_script(found)) == key(tree), text
        assert format_script(found) == found, text
        laid_out += 1
    assert laid_out > 25


@pytest.mark.parametrize("seed", range(4))
def test_any_values_give_rows_or_an_error_of_ours_however_they_are_cut(seed: int) -> None:
    rng = random.Random(2000 + seed)
    for _ in range(15):
        case = rng.choice(known())
        inputs = {
            name: {**spec, "rows": [other_values(rng, row) for row in spec.get("rows", [])]}
            for name, spec in (case.keys.get("inputs") or {}).items()
        }
        keys = {**case.keys, "inputs": inputs, "on_error": rng.choice(["stop", "set_aside"])}
        shaken_case = cases.from_keys(keys, Path("shaken.yaml"))
        try:
            straight = cases.execute(shaken_case, Cut())[2]
        except HeadraceError:
            continue
        cut = cases.execute(shaken_case, Cut(1, 1))[2]
        assert {name: sorted(map(repr, rows)) for name, rows in cut.items()} == {
            name: sorted(map(repr, rows)) for name, rows in straight.items()
        }, f"{case.name}: {inputs}"


def other_values(rng: random.Random, row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: rng.choice(VALUES) if not name.startswith("_") and rng.random() < 0.2 else value
        for name, value in row.items()
    }


@pytest.mark.parametrize("seed", range(4))
def test_a_case_with_any_values_is_judged_or_refused(seed: int) -> None:
    rng = random.Random(3000 + seed)
    for _ in range(40):
        keys = dict(rng.choice(known()).keys)
        for name in rng.sample([*keys, *cases.KEYS], 2):
            if name not in ("query", "functions"):
                keys[name] = rng.choice([*VALUES, [{"a": 1}], {"output": 1}, {"output": [1]}, {"r": {"rows": 1}}, "("])
        try:
            case = cases.from_keys(keys, Path("odd.yaml"))
            cases.judge(case, Cut(), CaseResult(name="odd", file="odd.yaml"))
        except (CaseError, HeadraceError):
            continue


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("compare", "subsett", "compare cannot be 'subsett'"),
        ("on_error", "set_asid", "on_error cannot be"),
        ("tolerance", "tiny", "tolerance must be a number"),
        ("ordered", "yes please", "ordered must be true or false"),
        ("policies", {"actoin": "drop"}, "actoin"),
        ("policies", {"late_arrival_s": "soon"}, "late_arrival_s"),
        ("expect", {"output": [1]}, "list of rows"),
        ("inputs", {"i": {"rows": [{"_meta": 5}]}}, "_meta of row 1"),
    ],
)
def test_a_key_with_a_value_of_no_meaning_is_refused(key: str, value: Any, said: str) -> None:
    keys = {"query": "SELECT v FROM i", "expect": {"output": []}, key: value}
    with pytest.raises(CaseError, match=said):
        cases.from_keys(keys, Path("odd.yaml"))


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(CaseError, match="regular expression"):
        cases.from_keys({"query": "SELECT v FROM i", "expect_error": "("}, Path("odd.yaml"))


def test_a_tolerance_that_yaml_reads_as_text_counts() -> None:
    keys = {"query": "SELECT v FROM i", "expect": {"output": []}, "tolerance": "1e-6"}
    assert cases.from_keys(keys, Path("fine.yaml")).keys["tolerance"] == "1e-6"
