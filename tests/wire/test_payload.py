"""The JSON bodies of a batch as columns."""

import json
import random
from typing import Any

import pyarrow as pa
import pytest

from headrace.core.clock import from_iso
from headrace.core.schema import EventBatch, event_batch
from headrace.wire.payload import SYSTEM_COLUMNS, field_names, flatten


def batch(*bodies: bytes | dict[str, Any]) -> EventBatch:
    raw = [body if isinstance(body, bytes) else json.dumps(body).encode() for body in bodies]
    rows = len(raw)
    return event_batch(
        {
            "_event_id": [f"e{row}" for row in range(rows)],
            "_device": ["pump-1"] * rows,
            "_enqueued": [from_iso("2025-01-31T08:00:00.1234567Z")] * rows,
            "_body": raw,
        }
    )


def payload(table: pa.Table) -> dict[str, list[Any]]:
    return {name: table[name].to_pylist() for name in table.column_names if name not in SYSTEM_COLUMNS}


def rescued(table: pa.Table) -> list[Any]:
    return [None if text is None else json.loads(text) for text in table["_rescued"].to_pylist()]


def test_numbers_texts_and_booleans_become_typed_columns() -> None:
    table = flatten(batch({"t": 1, "ok": True, "s": "a"}, {"t": 2.5, "ok": False, "s": "b"}))
    assert payload(table) == {"t": [1.0, 2.5], "ok": [True, False], "s": ["a", "b"]}
    assert table.schema.field("t").type == pa.float64()
    assert table["_rescued"].null_count == table["_error"].null_count == 2


def test_system_columns_stay_and_time_is_enqueued_in_microseconds() -> None:
    table = flatten(batch({"t": 1}))
    assert table["_event_id"].to_pylist() == ["e0"]
    assert table["_enqueued"].to_pylist() == [from_iso("2025-01-31T08:00:00.1234567Z")]
    assert table["_time"][0].as_py().isoformat() == "2025-01-31T08:00:00.123456+00:00"
    assert table["_body"].to_pylist() == ['{"t": 1}']


def test_an_iso_time_in_a_payload_stays_text() -> None:
    assert payload(flatten(batch({"ts": "2025-01-31T08:00:00Z"}))) == {"ts": ["2025-01-31T08:00:00Z"]}


def test_nested_objects_are_paths_and_arrays_are_json_text() -> None:
    table = flatten(batch({"data": {"temp": 1, "pos": {"x": 2}}, "list": [1, {"a": "ä"}]}))
    assert payload(table) == {"data.temp": [1.0], "data.pos.x": [2.0], "list": ['[1,{"a":"ä"}]']}


def test_objects_below_the_depth_bound_are_json_text() -> None:
    assert payload(flatten(batch({"a": {"b": {"c": 1}}}), depth_max=2)) == {"a.b": ['{"c":1}']}


def test_a_field_that_only_some_rows_have_is_null_in_the_others() -> None:
    assert payload(flatten(batch({"a": 1}, {"b": "x"}, {"a": None}))) == {
        "a": [1.0, None, None],
        "b": [None, "x", None],
    }


def test_the_majority_gives_a_column_its_type_and_the_rest_is_rescued() -> None:
    table = flatten(batch({"t": "warm"}, {"t": 1}, {"t": 2}, {"t": True}))
    assert payload(table) == {"t": [None, 1.0, 2.0, None]}
    assert rescued(table) == [{"t": "warm"}, None, None, {"t": True}]


def test_the_first_type_wins_a_tie() -> None:
    assert payload(flatten(batch({"t": "warm"}, {"t": 1}))) == {"t": ["warm", None]}


def test_a_known_type_wins_over_the_batch() -> None:
    table = flatten(batch({"t": "1", "u": 1}, {"t": "2"}), schema={"t": pa.float64()})
    assert payload(table) == {"t": [None, None], "u": [1.0, None]}
    assert table.schema.field("t").type == pa.float64()
    assert rescued(table) == [{"t": "1"}, {"t": "2"}]


def test_a_scalar_and_an_object_at_one_path_are_both_kept() -> None:
    assert payload(flatten(batch({"a": 1}, {"a": {"b": 2}}))) == {"a.b": [None, 2.0], "a": [1.0, None]}


@pytest.mark.parametrize("integer", [2**53 + 1, -(2**53) - 1, 2**63 + 1, 2**64 + 1, -(2**70) - 1])
def test_an_integer_that_float64_cannot_hold_is_rescued_with_all_its_digits(integer: int) -> None:
    table = flatten(batch({"n": 1.5, "m": 2}, {"n": integer, "m": 1}))
    assert payload(table) == {"n": [1.5, None], "m": [2.0, 1.0]}
    assert rescued(table) == [None, {"n": integer}]


def test_a_number_beyond_float64_altogether_makes_its_body_an_error_that_is_kept() -> None:
    table = flatten(batch(b'{"n": 1e400, "m": 1}'))
    assert payload(table) == {}
    assert "infinity" in table["_error"][0].as_py()
    assert table["_body"].to_pylist() == ['{"n": 1e400, "m": 1}']


@pytest.mark.parametrize("integer", [2**53, 2**60, 2**64, -(2**80)])
def test_a_big_integer_that_float64_holds_exactly_stays_in_its_column(integer: int) -> None:
    table = flatten(batch({"n": integer}))
    assert payload(table) == {"n": [float(integer)]}
    assert rescued(table) == [None]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "empty body"),
        (b"{", "not JSON"),
        (b'{"a":1},{"a":2}', "not JSON"),
        (b'{"a": NaN}', "not JSON"),
        (b"[1]", "an array"),
        (b"7", "a number"),
        (b'"x"', "a string"),
        (b"null", "null"),
        (b"[" * 5000, "not JSON"),
    ],
)
def test_a_body_that_is_no_object_keeps_its_row_and_says_why(body: bytes, reason: str) -> None:
    table = flatten(batch({"a": 1}, body, {"a": 3}))
    assert payload(table) == {"a": [1.0, None, 3.0]}
    assert reason in table["_error"][1].as_py()
    assert table["_error"].null_count == 2
    assert table["_body"][1].as_py() == body.decode()


def test_a_body_that_is_not_utf8_is_base64_and_marked() -> None:
    table = flatten(batch(b"\xff\x00\x01", {"a": 1}))
    assert table["_body"].to_pylist() == ["/wAB", '{"a": 1}']
    assert table["_body_encoding"].to_pylist() == ["base64", None]
    assert table["_error"][0].as_py().startswith("not JSON")


def test_a_byte_order_mark_is_no_error() -> None:
    assert payload(flatten(batch(b'\xef\xbb\xbf{"a": 1}'))) == {"a": [1.0]}


def test_payload_fields_named_like_system_columns_are_rescued() -> None:
    table = flatten(batch({"_device": "evil", "_OFFSET": 3, "_date": "x", "a": 1}))
    assert payload(table) == {"a": [1.0]}
    assert table["_device"].to_pylist() == ["pump-1"]
    assert rescued(table) == [{"_device": "evil", "_OFFSET": 3, "_date": "x"}]


def test_spellings_that_differ_in_case_share_a_column() -> None:
    table = flatten(batch({"Temp": 1}, {"temp": 2}, {"TEMP": 3, "Temp": 4}), schema={"temp": pa.float64()})
    assert payload(table) == {"temp": [1.0, 2.0, 4.0]}
    assert rescued(table) == [None, None, {"TEMP": 3}]


def test_a_dotted_name_and_a_nested_field_at_one_path_do_not_overwrite_each_other() -> None:
    table = flatten(batch({"a.b": 1, "a": {"b": 2}}, {"a": {"b": 3}}))
    assert payload(table) == {"a.b": [1.0, 3.0]}
    assert rescued(table) == [{"a.b": 2}, None]


def test_fields_beyond_the_bound_are_rescued() -> None:
    table = flatten(batch({"a": 1, "b": 2, "c": 3}), fields_max=2)
    assert payload(table) == {"a": [1.0], "b": [2.0]}
    assert rescued(table) == [{"c": 3}]


def test_a_nameless_field_is_rescued() -> None:
    assert rescued(flatten(batch({"": 1}))) == [{"": 1}]


def test_an_empty_batch_has_the_columns_and_no_rows() -> None:
    table = flatten(batch())
    assert table.num_rows == 0
    assert {"_event_id", "_time", "_rescued", "_error", "_body"} <= set(table.column_names)


def test_field_names_are_the_paths_that_hold_a_value() -> None:
    assert field_names(batch({"b": 1, "n": None}, {"a": {"x": True}})) == ["b", "a.x"]


def _random_value(rng: random.Random, depth: int) -> Any:
    kinds = ["int", "big", "float", "text", "bool", "null", "list"] + (["dict"] if depth < 3 else [])
    match rng.choice(kinds):
        case "int":
            return rng.randint(-100, 100)
        case "big":
            return rng.randint(2**52, 2**66)
        case "float":
            return rng.uniform(-1e6, 1e6)
        case "text":
            return "".join(rng.choices('aé"\\\n\u0000{}', k=4))
        case "bool":
            return rng.random() < 0.5
        case "list":
            return [_random_value(rng, depth + 1) for _ in range(2)]
        case "dict":
            return {rng.choice("xyzXY"): _random_value(rng, depth + 1) for _ in range(3)}
    return None


def _leaves(value: Any, path: str = "") -> int:
    """How many values a document holds that must end up somewhere."""
    if isinstance(value, dict):
        return sum(_leaves(inner) for inner in value.values())
    return 0 if value is None else 1


@pytest.mark.parametrize("seed", range(20))
def test_every_value_is_in_its_column_or_rescued_and_none_is_invented(seed: int) -> None:
    rng = random.Random(seed)
    documents = [{rng.choice("abcdA"): _random_value(rng, 1) for _ in range(4)} for _ in range(30)]
    table = flatten(batch(*documents))
    for row, document in enumerate(documents):
        in_columns = sum(table[name][row].is_valid for name in table.column_names if name not in SYSTEM_COLUMNS)
        text = table["_rescued"][row].as_py()
        in_rescued = len(json.loads(text)) if text else 0
        assert in_columns + in_rescued == _leaves(document), f"seed {seed} row {row}: {document}"
