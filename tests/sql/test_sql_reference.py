"""Reference data keeps the type of each value, as events do."""

from __future__ import annotations

from typing import Any

import pytest
from sql_events import log_events

from headrace.core.errors import UserError
from headrace.sql.compile import compile_script
from headrace.sql.reference import json_table
from headrace.sql.run import Run

MIXED = b"""[
  {"k": 1, "v": "text", "r": {"a": 1}}, {"k": 2, "v": 7, "when": "2025-01-01T00:00:00Z"},
  {"k": "2", "v": 2.5}, {"k": 3.5, "v": [1, "b"]}, {"k": 4, "v": 9007199254740993}, {"k": 5, "v": 1.5}, {"k": null, "v": 8}
]"""


def looked_up(table: bytes, keys: list[Any], script: str) -> list[dict[str, Any]]:
    run = Run(compile_script(script, references=["ref"]), references={"ref": json_table(table)})
    (out,) = run.process("r", log_events([{"k": key} for key in keys])).rows
    return out.to_pylist()


def test_each_value_of_a_json_file_has_its_own_type() -> None:
    script = "SELECT r.k, ref.v, ref.r.a AS a, ref.[when] AS w INTO o FROM r LEFT JOIN ref ON r.k = ref.k"
    found = looked_up(MIXED, [1, 2, "2", 3.5, 4, None], script)
    assert [(row["v"], type(row["v"])) for row in found] == [
        ("text", str),
        (7, int),
        (2.5, float),
        ([1, "b"], list),
        ((1 << 53) + 1, int),
        (None, type(None)),
    ]
    assert found[0]["a"] == 1
    assert found[1]["w"] == "2025-01-01T00:00:00Z"  # text, as in an event: no value turns into a datetime by its looks


def test_objects_may_stand_one_a_line() -> None:
    script = "SELECT ref.v INTO o FROM r JOIN ref ON r.k = ref.k"
    assert looked_up(b'{"k": 1, "v": 1}\n\n{"k": 2, "v": 2.0}\n', [2, 1], script) == [{"v": 2.0}, {"v": 1}]


def test_a_declared_table_leaves_out_rows_that_do_not_fit() -> None:
    script = "CREATE TABLE ref (k bigint, v bigint)\nSELECT ref.v INTO o FROM r LEFT JOIN ref ON r.k = ref.k"
    run = Run(compile_script(script, references=["ref"]), references={"ref": json_table(MIXED)})
    assert run.stats()["references"]["ref"]["misfits"] > 0


@pytest.mark.parametrize("text", [b"", b"[1]", b"{", b'[{"k": 1}', b"7", b'{"k": 1} 2'])
def test_a_file_that_is_no_list_of_objects_is_refused(text: bytes) -> None:
    if not text:
        assert json_table(text).num_rows == 0
        return
    with pytest.raises(UserError, match="no list of JSON objects"):
        json_table(text)
