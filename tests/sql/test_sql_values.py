"""Kernels against the scalar forms, decoding, and output."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sql_events import at, log_events

from headrace.core.clock import from_iso, to_iso
from headrace.sql import values
from headrace.sql.bind import scalars
from headrace.sql.compare import compare, compare_values
from headrace.sql.compile import compile_script
from headrace.sql.decode import Decoder, Payload
from headrace.sql.evaluate import Frame, apply, truth
from headrace.sql.functions.conversion import cast_to
from headrace.sql.moments import Moment, moments_text, parse_moment, parse_moments
from headrace.sql.run import Run

TIMES = st.integers(-600_000_000_000_000_000, 2_400_000_000_000_000_000)
NUMBERS = st.one_of(
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.integers(-5, 5),
    st.floats(allow_nan=False, allow_infinity=False),
)
TEXTS = st.one_of(st.text(max_size=6), st.sampled_from(["12", "-3.5", "1e3", "2025-01-01T00:00:00Z", "true", " 7 "]))
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    NUMBERS,
    TEXTS,
    TIMES.map(Moment),
    st.dictionaries(st.sampled_from(["a", "b"]), st.integers(0, 3), max_size=2),
    st.lists(st.integers(0, 3), max_size=3),
)


def frame(rows: int) -> Frame:
    return Frame(np.zeros(rows, np.int64), [])


def alone(spec: Any, *args: Any) -> Any:
    """The scalar form, as the one judge: (value, None) or (None, reason)."""
    from headrace.sql.errors import Fault

    if None in args:
        return None, None
    try:
        return spec.call(*args), None
    except Fault as fault:
        return None, fault.reason


def exactly(value: Any) -> tuple[type, str]:
    return type(value), repr(value)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_kernel_says_what_the_scalar_form_says(data: st.DataObject) -> None:
    with_kernels = sorted(name for name, spec in scalars().items() if spec.kernels and not spec.part)
    spec = scalars()[data.draw(st.sampled_from(with_kernels))]
    arity = len(next(iter(spec.kernels)))
    rows = data.draw(st.lists(st.tuples(*[VALUES] * arity), min_size=1, max_size=8))
    seen = frame(len(rows))
    found = apply(seen, spec, [values.from_values(list(column)) for column in zip(*rows, strict=True)]).to_list()
    faults = {fault.row: fault.reason for fault in seen.faults}
    for row, args in enumerate(rows):
        value, reason = alone(spec, *args)
        assert exactly(found[row]) == exactly(value), (spec.name, args)
        assert faults.get(row) == reason, (spec.name, args)


@settings(max_examples=150, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=8), st.sampled_from(["bigint", "float", "nvarchar", "bit", "datetime"]))
def test_a_cast_of_a_column_is_the_cast_of_its_values(column: list[Any], kind: str) -> None:
    spec = cast_to(kind)
    seen = frame(len(column))
    found = apply(seen, spec, [values.from_values(column)]).to_list()
    expected = [alone(spec, value) for value in column]
    assert [exactly(value) for value in found] == [exactly(value) for value, _ in expected]
    assert {fault.row for fault in seen.faults} == {row for row, (_, reason) in enumerate(expected) if reason}


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=8),
    st.sampled_from(["=", "<>", "<", "<=", ">", ">="]),
    st.booleans(),
)
def test_comparing_columns_is_comparing_values(rows: list[tuple[Any, Any]], op: str, constant: bool) -> None:
    left = [one for one, _ in rows]
    right = [rows[0][1]] * len(rows) if constant else [other for _, other in rows]
    column = values.Constant(len(rows), right[0]) if constant else values.from_values(right)
    found = truth(compare(frame(len(rows)), op, values.from_values(left), column))
    assert found.tolist() == [compare_values(op, one, other) for one, other in zip(left, right, strict=True)]


@settings(max_examples=100, deadline=None)
@given(st.lists(VALUES, max_size=8), st.lists(VALUES, max_size=8), st.data())
def test_a_column_is_its_list(first: list[Any], second: list[Any], data: st.DataObject) -> None:
    together = values.concat([values.from_values(first), values.from_values(second)])
    whole = first + second
    assert [exactly(value) for value in together.to_list()] == [exactly(value) for value in whole]
    picks = data.draw(st.lists(st.integers(-1, len(whole) - 1), max_size=6)) if whole else []
    taken = together.take(np.array(picks, np.int64)).to_list()
    assert [exactly(value) for value in taken] == [exactly(whole[row] if row >= 0 else None) for row in picks]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.one_of(TIMES.map(to_iso), TEXTS, st.none()), min_size=1, max_size=8),
    st.sampled_from(["Z", "", "+02:30", "-00:01"]),
)
def test_times_are_read_at_once_as_they_are_read_alone(texts: list[str | None], zone: str) -> None:
    texts = [text if text is None else text.replace("Z", zone) for text in texts]
    ticks, good = parse_moments(pa.array(texts, pa.string()))
    alone_ticks = [None if text is None else parse_moment(text) for text in texts]
    assert [tick if fits else None for tick, fits in zip(ticks.tolist(), good.tolist(), strict=True)] == alone_ticks


@pytest.mark.parametrize(
    "text",
    [
        "2025-02-29T00:00:00Z",
        "2025-13-01T00:00:00Z",
        "2025-01-01T24:00:01Z",
        "2025-01-01T00:00:0xZ",
        "20250101",
        "noon",
    ],
)
def test_odd_times_are_judged_alike(text: str) -> None:
    ticks, good = parse_moments(pa.array([text]))
    assert (ticks.tolist()[0] if good[0] else None) == parse_moment(text)


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(1 << 63), (1 << 63) - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=5),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=6,
)
BODIES = st.one_of(
    st.dictionaries(st.sampled_from(["v", "V", "k", "é", 'a"b', "x y"]), JSON, max_size=4).map(
        lambda d: json.dumps(d).encode()
    ),
    st.dictionaries(st.sampled_from(["v", "k"]), JSON, max_size=2).map(lambda d: json.dumps(d, indent=1).encode()),
    st.binary(max_size=12),
    st.sampled_from(
        [
            b"",
            b" ",
            b"\n",
            b"[]",
            b"1",
            b'{"v":1',
            b'{"v":1}\n{"v":2}',
            b'{"v":1e400}',
            b'{"v":NaN}',
            b'{"k":"\xff"}',
            b'{"v":99999999999999999999}',
        ]
    ),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(BODIES, min_size=1, max_size=6))
def test_decoding_together_is_decoding_one_by_one(bodies: list[bytes]) -> None:
    names = ["v", "k", 'a"b', "É"]
    payload, bad, _ = Payload.split(log_events(bodies), Decoder(names))
    good = [row for row in range(len(bodies)) if row not in set(bad.tolist())]
    for position, row in enumerate(good):
        single, wrong, _ = Payload.split(log_events([bodies[row]]), Decoder(names))
        whole, refused, _ = Payload.split(log_events([bodies[row]]), Decoder([], whole=True))
        assert not len(wrong)
        for name in names:
            value = payload.column(name).to_list()[position]
            assert exactly(value) == exactly(single.column(name).to_list()[0])
            if not len(refused):
                assert exactly(value) == exactly(whole.column(name).to_list()[0])


def test_fields_match_exactly_first_and_then_ignoring_case() -> None:
    run = Run(compile_script("SELECT V AS v FROM r"))
    found = run.process("r", log_events([{"v": 1}, {"V": 2, "v": 3}, {"x": 4}, {"VV": 5}])).rows[0]
    assert found.column("v") == [1, 2, None, None]


def test_bodies_are_json_of_the_rows() -> None:
    run = Run(compile_script('SELECT a, b AS [odd "name"], System.Timestamp() AS t FROM r'))
    found = run.process(
        "r", log_events([{"a": 'quo"te', "b": 20.0}, {"a": [1, {"x": None}], "b": 20}], arrivals=[at(1), at(2)])
    ).rows[0]
    assert found.bodies() == [
        b'{"a":"quo\\"te","odd \\"name\\"":20.0,"t":"2025-01-01T00:00:01.0000000Z"}',
        b'{"a":[1,{"x":null}],"odd \\"name\\"":20,"t":"2025-01-01T00:00:02.0000000Z"}',
    ]
    assert found.rows == 2
    assert found.times.tolist() == [at(1), at(2)]


@pytest.mark.parametrize("rows", [0, 1, 15, 17, 400])
def test_times_of_a_column_are_written_as_the_clock_writes_each(rows: int) -> None:
    rng = np.random.default_rng(rows)
    first, last = from_iso("0001-01-01T00:00:00Z"), from_iso("9999-12-31T23:59:59.9999999Z")
    for ticks in (
        rng.integers(first, last, rows),
        np.repeat(rng.integers(0, 10**16, rows), 3),
        np.arange(rows) * 10**6 - 7,
    ):
        assert moments_text(ticks) == [to_iso(value) for value in ticks.tolist()]
