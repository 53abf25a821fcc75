"""`headrace test` and `headrace sql check|format` as people and build servers use them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as Xml

import provided
import pytest
import yaml
from typer.testing import CliRunner

from headrace import cli
from headrace.cli import sql as sql_verbs
from headrace.cli import test as test_verb
from headrace.sql import cases
from headrace.sql.case_compare import Comparison, difference
from headrace.sql.cases import Cut
from headrace.sql.dialect import tokenize
from headrace.sql.errors import SqlError
from headrace.sql.format import format_script

SHARED = provided.CASES
OWN = Path(__file__).parent.parent / "sql" / "cases"
CASES = {path.stem: cases.load(path) for path in [*sorted(SHARED.glob("*.yaml")), *sorted(OWN.glob("*.yaml"))]}

sql_verbs.register(cli.app)
test_verb.register(cli.app)

ROWS = [{"ts": f"2025-01-01T00:00:0{second}Z", "id": "ab"[second % 2], "v": second} for second in range(1, 6)]


def write_case(folder: Path, name: str, **keys: object) -> Path:
    case = {
        "name": name,
        "query": "SELECT id, v FROM i TIMESTAMP BY ts WHERE v > 3",
        "inputs": {"i": {"timestamp": "ts", "rows": ROWS}},
        **keys,
    }
    if "expect_error" not in keys:
        case.setdefault("expect", {"output": [{"id": "a", "v": 4}, {"id": "b", "v": 5}]})
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(case))
    return path


def with_function(source: str) -> dict[str, object]:
    return {"query": "SELECT udf.f(v) AS w FROM i TIMESTAMP BY ts", "functions": {"udf.f": {"python": source}}}


def headrace(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from headrace.cli import main; main()", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_case_that_crashes_hangs_or_cannot_be_read_fails_and_the_rest_go_on(tmp_path: Path) -> None:
    write_case(tmp_path, "a-good")
    write_case(tmp_path, "b-dies", **with_function("lambda v: __import__('os')._exit(3)"))
    write_case(tmp_path, "c-hangs", **with_function("lambda v: [None for _ in iter(int, 1)]"))
    write_case(tmp_path, "d-exits", **with_function("lambda v: __import__('sys').exit(0)"))
    write_case(tmp_path, "e-wrong", expect={"output": [{"id": "a", "v": 4}, {"id": "b", "v": 6}]})
    write_case(tmp_path, "f-other-error", expect_error="no such words", query="SELECT nothing(v) AS n FROM i")
    write_case(tmp_path, "g-error", expect_error="(?i)unknown|no function", query="SELECT nothing(v) AS n FROM i")
    write_case(
        tmp_path, "h-prints", **with_function("lambda v: print('99 passed, 0 failed')"), expect={"output": [{}] * 5}
    )
    (tmp_path / "i-broken.yaml").write_text("query: [")
    done = headrace(
        "test", tmp_path, "--timeout", "3", "--junit", tmp_path / "out/j.xml", "--json", tmp_path / "out/r.json"
    )
    assert done.stdout.splitlines()[-1] == "3 passed, 6 failed", done.stdout + done.stderr
    assert done.returncode == 1
    report = json.loads((tmp_path / "out/r.json").read_bytes())
    kinds = {case["name"]: case["kind"] for case in report["cases"]}
    assert kinds == {
        "a-good": "",
        "b-dies": "crashed",
        "c-hangs": "timed_out",
        "d-exits": "crashed",
        "e-wrong": "rows",
        "f-other-error": "wrong_error",
        "g-error": "",
        "h-prints": "",
        "i-broken": "unreadable",
    }
    assert (report["passed"], report["failed"]) == (3, 6)
    assert "exit code 3" in report["cases"][1]["problem"]
    assert "differs first in v: expected 6, got 5" in done.stdout
    suite = Xml.parse(tmp_path / "out/j.xml").getroot()
    found = {case.get("name"): [child.tag for child in case] for case in suite.iter("testcase")}
    assert found["a-good"] == []
    assert found["e-wrong"] == ["failure"]
    assert found["c-hangs"] == ["error"]


def test_all_passed_exits_0_and_nothing_to_run_exits_2(tmp_path: Path) -> None:
    write_case(tmp_path, "one")
    runner = CliRunner()
    done = runner.invoke(cli.app, ["test", str(tmp_path), "--kill-every", "2", "--batch-size", "2", "-j", "1"])
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "1 passed, 0 failed")
    assert runner.invoke(cli.app, ["test", str(tmp_path / "nowhere")]).exit_code == 2
    (tmp_path / "empty").mkdir()
    assert runner.invoke(cli.app, ["test", str(tmp_path / "empty")]).exit_code == 2
    assert runner.invoke(cli.app, ["test"]).exit_code == 2


def test_coverage_says_which_select_gave_nothing_and_which_filter_let_nothing_through(tmp_path: Path) -> None:
    query = """WITH hot AS (
        SELECT id, v FROM i TIMESTAMP BY ts WHERE v > 1
    )
    SELECT id INTO few FROM hot
    WHERE v > 90
    SELECT id, v INTO many FROM hot"""
    write_case(tmp_path, "dry", query=query, expect={"few": []})
    verdict = cases.run_file(tmp_path / "dry.yaml", Cut(1, 1))
    assert verdict.passed, verdict.problem
    seen = {(one.line, one.what): (one.rows_in, one.rows_out) for one in verdict.covered}
    assert seen == {
        (2, "step hot"): (5, 4),
        (2, "WHERE (v > 1)"): (5, 4),
        (4, "SELECT INTO few"): (4, 0),
        (5, "WHERE (v > 90)"): (4, 0),
        (6, "SELECT INTO many"): (4, 4),
    }
    assert verdict.notes == ["output many gave rows and is not in expect"]


def test_coverage_says_which_stream_join_found_nothing(tmp_path: Path) -> None:
    query = """SELECT a.id FROM i a TIMESTAMP BY ts
    JOIN i b TIMESTAMP BY ts ON DATEDIFF(second, a, b) = 0 AND a.id = b.nothing"""
    write_case(tmp_path, "lonely", query=query, expect={"output": []})
    verdict = cases.run_file(tmp_path / "lonely.yaml", Cut())
    assert verdict.passed, verdict.problem
    (join,) = (one for one in verdict.covered if one.kind == "join")
    assert (join.line, join.what, join.rows_out) == (2, "join with b", 0)
    assert join.rows_in > 0


def test_a_case_key_that_is_misspelled_is_named(tmp_path: Path) -> None:
    verdict = cases.run_file(write_case(tmp_path, "typo", toleranse=0.1), Cut())
    assert verdict.kind == "unreadable"
    assert "tolerance" in verdict.problem


def test_a_case_may_name_its_query_by_file_and_define_functions(tmp_path: Path) -> None:
    (tmp_path / "q.asaql").write_bytes(b"\xef\xbb\xbfSELECT udf.f(v) AS w\r\nFROM i TIMESTAMP BY ts WHERE v = 2")
    source = "def half(x):\n    return x / 2\n\ndef f(x):\n    return half(x) + 1\n"
    keys: dict[str, object] = {**with_function(source), "query": None, "query_file": "q.asaql"}
    verdict = cases.run_file(write_case(tmp_path, "by-file", **keys, expect={"output": [{"w": 2.0}]}), Cut())
    assert verdict.passed, verdict.problem


def test_reference_rows_may_lack_columns_that_others_have() -> None:
    table = cases.reference_table("r", {"rows": [{"id": "a"}, {"id": "b", "limit": 3}]})
    assert table.to_pylist() == [{"id": "a", "limit": None}, {"id": "b", "limit": 3}]


def test_the_diff_names_missing_unexpected_and_the_first_differing_column() -> None:
    got = [{"id": "a", "n": 1, "m": 1.0}, {"id": "b", "n": 2, "m": 3.0}]
    want = [{"id": "a", "n": 1, "m": 1.0}, {"id": "b", "n": 2, "m": 2.0}, {"id": "c", "n": 9, "m": 9.0}]
    text = difference("out", got, want, Comparison())
    assert text.splitlines() == [
        "output out: 2 missing, 1 unexpected (got 2, expected 3)",
        '  - {"id": "b", "n": 2, "m": 2.0}',
        '  + {"id": "b", "n": 2, "m": 3.0}',
        "      differs first in m: expected 2.0, got 3.0",
        '  - {"id": "c", "n": 9, "m": 9.0}',
    ]
    assert difference("out", got, got[::-1], Comparison()) == ""
    assert "order" in difference("out", got, got[::-1], Comparison(ordered=True))
    assert difference("out", [{"n": 5, "x": None}], [{"n": 5.0}], Comparison()) == ""
    assert "(text, not bigint)" not in difference("out", [{"n": "5"}], [{"n": "6"}], Comparison())
    assert difference("out", got, [{"n": 1}, {"n": 2}], Comparison(subset=True)) == ""
    assert difference("out", [{"n": 1}, {"n": 1}], [{"n": 1}], Comparison()) != ""


# -- headrace sql format


def plan_or_code(case: cases.Case) -> str:
    """What EXPLAIN says, or the code of the error."""
    try:
        return case.plan().explain()
    except SqlError as exc:
        return exc.code


@pytest.mark.parametrize("name", CASES)
def test_a_laid_out_query_has_the_same_plan_and_stays_as_it_is(name: str) -> None:
    case = CASES[name]
    if name.startswith("err-") and plan_or_code(case) == "sql.syntax":
        with contextlib.suppress(SqlError):  # what cannot be parsed need not be laid out
            format_script(case.query)
        return
    found = format_script(case.query)
    assert format_script(found) == found
    assert plan_or_code(dataclasses.replace(case, query=found)) == plan_or_code(case)


def test_comments_and_line_breaks_anywhere_are_kept_and_laying_out_again_changes_nothing() -> None:
    seed = random.SystemRandom().randrange(1 << 30)
    rng = random.Random(seed)
    gaps = ("\n", "\n\n", " -- c\n", "\n-- own\n", " /* b */ ", "\n/* x\n y */\n", "\n\n-- a\n\n-- b\n", "\t")
    for name in rng.sample(sorted(CASES), min(30, len(CASES))):
        query, text, last = CASES[name].query, "", 0
        try:
            format_script(query)
        except SqlError:
            continue
        for token in tokenize(query):
            text += query[last : token.start] + (rng.choice(gaps) if rng.random() < 0.2 else "")
            text, last = text + query[token.start : token.end], token.end
        found = format_script(text)
        assert format_script(found) == found, f"seed {seed}, {name}"
        for comment in ("-- own", "/* b */", "/* x\n y */"):
            assert found.count(comment) == text.count(comment), f"seed {seed}, {name}"


def test_a_script_is_laid_out_clause_by_clause() -> None:
    script = (
        "-- why\nwith hot as (select a.id, temp_c from telemetry a timestamp by ts -- all\n where temp_c>-5 and x in (1,2))\n"
        "select id,case when temp_c>3 then 'hot' else 'cold' end as [how it is],count(*) as n, avg(temp_c) as mean_temp_c "
        "into out from hot group by id,tumblingwindow(second,10) having count(*)>1"
    )
    assert (
        format_script(script)
        == """-- why
WITH hot AS (
    SELECT a.id, temp_c
    FROM telemetry a TIMESTAMP BY ts -- all
    WHERE temp_c > -5 AND x IN (1, 2)
)

SELECT
    id,
    CASE WHEN temp_c > 3 THEN 'hot' ELSE 'cold' END AS [how it is],
    count(*) AS n,
    avg(temp_c) AS mean_temp_c
INTO out
FROM hot
GROUP BY id, tumblingwindow(second, 10)
HAVING count(*) > 1
"""
    )


def test_write_keeps_the_byte_order_mark_and_line_ends_and_check_then_passes(tmp_path: Path) -> None:
    file = tmp_path / "a.asaql"
    file.write_bytes(b"\xef\xbb\xbfselect a\r\ninto o from i -- x\r\n")
    runner = CliRunner()
    assert runner.invoke(cli.app, ["sql", "format", str(file), "--check"]).exit_code == 1
    assert runner.invoke(cli.app, ["sql", "format", str(file), "--write"]).exit_code == 0
    assert file.read_bytes() == b"\xef\xbb\xbfSELECT a\r\nINTO o\r\nFROM i -- x\r\n"
    assert runner.invoke(cli.app, ["sql", "format", str(file), "--check"]).exit_code == 0


# -- headrace sql check


def test_check_points_at_the_offending_text_whatever_the_encoding(tmp_path: Path) -> None:
    script = "SELECT\r\n\ta, wrongly(b) AS c\r\nINTO o FROM i\r\n"
    file = tmp_path / "a.asaql"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        file.write_bytes(script.encode(encoding))
        done = CliRunner().invoke(cli.app, ["sql", "check", str(file)])
        assert done.exit_code == 1
        lines = done.stderr.splitlines()
        assert f"{file}:2:5: " in lines[0]
        assert lines[-2:] == ["    2 | \ta, wrongly(b) AS c", "      | \t   ^^^^^^^"]


def test_check_takes_reference_inputs_from_the_option_or_the_inputs_folder(tmp_path: Path) -> None:
    file = tmp_path / "a.asaql"
    file.write_text("SELECT i.a INTO o FROM i JOIN r ON i.a = r.a")
    runner = CliRunner()
    assert runner.invoke(cli.app, ["sql", "check", str(file)]).exit_code == 1
    done = runner.invoke(cli.app, ["sql", "check", str(file), "--reference", "r"])
    assert done.exit_code == 0, done.output
    assert "would run; reads i; writes o" in done.stdout
    (tmp_path / "Inputs").mkdir()
    (tmp_path / "Inputs" / "r.json").write_text('{"Name": "r", "Type": "Reference data"}')
    assert runner.invoke(cli.app, ["sql", "check", str(file)]).exit_code == 0
