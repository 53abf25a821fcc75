"""Fields of whole payloads (`SELECT *` needs them all): looked up once a batch, with the meaning of a look-up in each row."""

from __future__ import annotations

import pytest
from sql_events import log_events

from headrace.jobs.output import output_events
from headrace.sql.compile import compile_script
from headrace.sql.decode import Decoder, Payload
from headrace.sql.run import Policies, Run


def field(bodies: list[object], name: str) -> list[object]:
    payload, bad, _ = Payload.split(log_events(bodies), Decoder([], whole=True))
    assert not len(bad)
    return payload.column(name).to_list()


def test_each_row_finds_a_field_by_its_own_spelling() -> None:
    assert field([{"Heat": 1}, {"heat": 2}, {"HEAT": 3}, {"cold": 4}, {}], "heat") == [1, 2, 3, None, None]


def test_the_exact_spelling_wins_within_a_row() -> None:
    assert field([{"HEAT": 1, "heat": 2}, {"HEAT": 3}], "heat") == [2, 3]


def test_a_field_that_no_row_has_is_null_and_names_of_the_system_still_have_values() -> None:
    assert field([{"a": 1}, {"a": 2}], "b") == [None, None]
    assert field([{"a": 1}, {"PartitionId": 7}], "partitionid") == [0, 7]


@pytest.mark.parametrize("columns", ["*", "a"])
def test_rows_without_a_machine_of_their_own_have_that_of_their_event(columns: str) -> None:
    run = Run(compile_script(f"SELECT {columns} INTO o FROM i"), references={}, policies=Policies())
    results = run.process("i", log_events([{"a": 1}, {"a": 2, "machineId": "m"}, {"a": 3}]))
    found = output_events([*results.rows, *run.finish().rows], producer="p", epoch=1)
    own = "m" if columns == "*" else "dev1"
    assert found.column("_device").to_pylist() == ["dev0", own, "dev2"]
