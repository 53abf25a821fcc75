"""The compiled parser reads what the plain decoder reads: values, types, nulls, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from decoders import both, needs_library
from sql_events import log_events

from headrace.sql import native
from headrace.sql.decode import Decoder, Payload
from headrace.sql.moments import parse_moment, parse_moments
from headrace.sql.native import build as built

BODIES = [
    *(b'{"a":%s}' % value for value in (
        b"0", b"-0", b"-0.0", b"0.0", b"1", b"1.0", b"1e2", b"1E+2", b"1e-2", b"0e5", b"-0e5", b"0e400", b"1e400", b"-1e400",
        b"2e308", b"1e308", b"1e-400", b"5e-324", b"9223372036854775807", b"9223372036854775808", b"-9223372036854775808",
        b"-9223372036854775809", b"18446744073709551616", b"123456789012345678901234567890", b"0.1", b"65.12345678901234",
        b"0.30000000000000004", b"9007199254740993.0", b"9007199254740993", b"123456789012345678901234567890.5",
        b"0.000000000000000000000000000000001", b"1.7976931348623157e308", b"100000000000000000000000.0", b"01", b"1.", b".5",
        b"1.e1", b"-", b"+1", b"1e", b"1e+", b"00", b"-01", b"0x1", b"NaN", b"Infinity", b"nul", b"nullx", b"null", b"true",
        b"false", b"tru", b'"x"', b'""', b'"\\n\\t\\"\\\\\\/\\b\\f\\r"', b'"\\u00e9"', b'"\\u20ac"', b'"\\ud83d\\ude00"',
        b'"\\ud800"', b'"\\udc00"', b'"\\ud800\\u0041"', b'"\\u12"', b'"\\u12zz"', b'"\\q"', b'"\\u0000"', b'"a\tb"',
        b'"a\x7fb"', b'"\x00"', b'"\xff"', b'"\xc3\xa9"', b'"\xc0\x80"', b'"\xed\xa0\x80"', b'"\xf0\x9f\x98\x80"',
        b'"\xf4\x90\x80\x80"', b'"\xe2\x82"', b'"', b"[]", b"{}", b"[1,2.5,null]", b'{"b":[{"c":1}]}', b"[1,]", b"[,1]",
        b'{"b":1,}', b"{1:1}", b"[18446744073709551616]", b"[1e400]", b"1 ", b" 1", b"1x", b"'1'",
    )),
    *(b'{"x":%s,"a":1}' % value for value in (
        b"1e400", b"18446744073709551616", b"01", b"1.", b'"\\q"', b'"\\ud800"', b'"\xff"', b'"a\tb"', b"[1,]", b"{}", b"[[]]",
        b'{"a":5}', b'"\\""', b"nul", b"[" * 100 + b"]" * 100, b"[" * 500 + b"]" * 500, b"[" * 5000 + b"]" * 5000,
        b'{"a":' * 140 + b"1" + b"}" * 140, b"[" * 40, b"]", b'{"k" : [ 1 , {} ] }', b'{"k":1 "l":2}', b'{"k"}',
    )),
    b"", b" ", b"{}", b"{ }", b"{,}", b"[]", b"1", b"null", b'"a"', b'{"a"', b'{"a":', b'{"a":1', b'{"a":1,}', b'{"a":1}x',
    b'{"a":1}{"a":2}', b'{"a":1}\n', b'\n{"a":1}', b' \t\r\n{ "a" : 1 , "b" : 2 } ', b'\x0b{"a":1}', b'\xef\xbb\xbf{"a":1}',
    b'{"a":1,"a":2}', b'{"a":1,"a":null}', b'{"a":1e400,"a":2}', b'{"a":18446744073709551616,"a":2}', b'{"A":1}',
    b'{"A":1,"a":2}', b'{"a":1,"A":2}', b'{"A":null}', b'{"a":null,"A":2}', b'{"A":1,"A":2}', b'{"\\u0061":5}', b'{"\\q":5}',
    b'{"\xc3\xa9":1}', b'{"\xff":1,"a":2}', b'{"A":[1,{"b":2}]}', b'{"A":1e400}', b'{"B":1,"b":2,"A":3}', b'{"":1,"a":2}',
    b'{"a":1\n,"b":2}', b'{"a":"line\nbreak"}', b'{"A":1e400,"A":7}', b'{"a":{"x":1e400}}', b'{"partitionid":null}',
    b'{"PARTITIONID":null,"partitionid":7}', b'{"partitionid":7,"a":1}', b'{"PartitionId":null}',
]  # fmt: skip
NAMES = [["a"], ["a", "b"], ["A", "a"], ["b", "A"], ["é", "a"], ["", "a"], ["\u212a", "k"], ["PartitionId", "a"], []]


@needs_library
@pytest.mark.parametrize("names", NAMES, ids=str)
def test_each_body_means_the_same_alone(names: list[str]) -> None:
    for body in BODIES:
        compiled, plain = both([body], names)
        assert compiled == plain, body


@needs_library
@pytest.mark.parametrize("names", NAMES, ids=str)
def test_all_bodies_mean_the_same_together(names: list[str]) -> None:
    compiled, plain = both(BODIES, names)
    assert compiled == plain
    assert compiled["rows"] == len(BODIES)


@needs_library
@pytest.mark.parametrize("names", NAMES, ids=str)
def test_bodies_mean_the_same_among_good_ones(names: list[str]) -> None:
    """Few slow rows among many: they are merged instead of the batch being left to the plain decoder."""
    good = [b'{"a":%d,"b":"t%d"}' % (at, at) for at in range(40)]
    for body in BODIES:
        compiled, plain = both([*good, body, *good], names)
        assert compiled == plain, body


def test_refusing_a_body_does_not_depend_on_its_neighbours() -> None:
    alone = {body: bool(both([body], ["a"])[1]["bad"]) for body in BODIES}
    found = both(BODIES, ["a"])[1]["bad"]
    assert [row in found for row in range(len(BODIES))] == [alone[body] for body in BODIES]


def test_two_objects_in_one_body_do_not_make_up_for_an_empty_one() -> None:
    for compiled in (True, False):
        for bodies in ([b'{"a":1}{"a":2}', b""], [b'{"a":', b'1}{"a":2}'], [b'{"a":1,"b":{}', b'}{"a":2}']):
            assert sorted(Decoder(["a"], compiled=compiled).read(pa.array(bodies, pa.binary())).bad) == [0, 1]


@needs_library
def test_a_field_that_changes_type_has_one_part_per_type() -> None:
    found = [1, 2.5, "x", None, True, {"b": 1}, [1], "y", 7]
    bodies = [json.dumps({"a": value}).encode() for value in found] * 20
    column = Decoder(["a"]).read(pa.array(bodies, pa.binary())).columns["a"]
    assert column.to_list() == found * 20
    assert len(column.parts) == 6


@needs_library
def test_doubles_are_rounded_to_the_nearest() -> None:
    rng = np.random.default_rng(5)
    numbers = [*rng.normal(100, 30, 5000).tolist(), *np.exp(rng.uniform(-40, 40, 5000)).tolist()]
    texts = [repr(number) for number in numbers]
    texts += [f"{mantissa}.{fraction:0{size}d}" for mantissa, fraction, size in zip(
        rng.integers(0, 10**9, 5000).tolist(), rng.integers(0, 10**9, 5000).tolist(), rng.integers(9, 11, 5000).tolist(),
        strict=True)]  # fmt: skip
    # ties and their neighbours: n + 1/2 ulp written out
    texts += [f"{2**52 + at}.5" for at in range(50)] + [f"{(2**53 + 2 * at + 1) / 1}" for at in range(50)]
    texts += [f"{2**51 + at}.{part}" for at in range(50) for part in ("25", "75", "125", "375", "24", "26")]
    column = Decoder(["a"]).read(pa.array([b'{"a":%s}' % text.encode() for text in texts], pa.binary())).columns["a"]
    assert column.to_list() == [float(text) for text in texts]


@needs_library
def test_what_a_slice_of_a_batch_holds_is_what_it_reads() -> None:
    bodies = pa.array([b'{"a":%d}' % at for at in range(20)], pa.binary()).slice(7, 5)
    assert Decoder(["a"]).read(bodies).columns["a"].to_list() == [7, 8, 9, 10, 11]


@needs_library
def test_rows_that_cannot_be_read_leave_and_the_others_stay() -> None:
    payload, bad, details = Payload.split(log_events([b'{"a":1}', b"{", b'{"A":3}', b'{"a":1e999}']), Decoder(["a"]))
    assert bad.tolist() == [1, 3]
    assert all(details)
    assert payload.column("a").to_list() == [1, 3]
    assert payload.events().column("_event_id").to_pylist() == ["h0", "h2"]


@needs_library
def test_names_of_the_system_fill_in_where_the_payload_has_none() -> None:
    bodies = [b'{"a":1}', b'{"PartitionId":7}', b'{"partitionid":8}', b'{"PartitionId":null}', b'{"\\u0061":1}']
    for compiled in (True, False):
        payload, _, _ = Payload.split(log_events(bodies), Decoder(["PartitionId"], compiled=compiled))
        assert payload.column("PartitionId").to_list() == [0, 7, 8, None, 0]


@needs_library
def test_times_are_read_as_the_clock_reads_them() -> None:
    texts = [
        "2025-01-01T00:00:00Z", "2025-01-01 00:00:00", "2024-02-29T23:59:59.9999999Z", "2025-02-29T00:00:00Z",
        "2025-01-01T00:00:00.123456789Z", "2025-01-01T00:00:00+01:30", "2025-01-01T00:00:00-23:59", "0001-01-01T00:00:00Z",
        "0000-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "2025-01-01T24:00:00Z", "2025-01-01T00:00:60Z", "2025-13-01T00:00:00Z",
        "2025-01-01t00:00:00z", "2025-01-01T00:00:00.Z", "2025-01-01T00:00:00.5", "2025-01-01T00:00", "2025-01-01", "", "x",
        "2025-01-01T00:00:00+0130", "2025-01-01T00:00:00Zx", "1900-02-29T00:00:00Z", "2000-02-29T00:00:00Z",
        "2025-01-01T00:00:00.1234567890123456Z", "2025-01-01T0a:00:00Z",
    ]  # fmt: skip
    library = native.library()
    assert library is not None
    ticks, good = library.moments(pa.array(texts))
    assert good.sum() == 10
    for text, tick, fits in zip(texts, ticks.tolist(), good.tolist(), strict=True):
        if fits:
            assert tick == parse_moment(text), text
    for some in (texts, [*texts, None], [text for text in texts if len(text) == 20]):
        compiled, plain = (parse_moments(pa.array(some, pa.string()), compiled=how) for how in (True, False))
        assert compiled[0].tolist() == plain[0].tolist()
        assert compiled[1].tolist() == plain[1].tolist()


def test_a_library_of_another_source_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = built.library_path()
    changed = tmp_path / "json_columns.c"
    changed.write_text(built.SOURCE.read_text() + "\n")
    monkeypatch.setattr(built, "SOURCE", changed)
    assert built.library_path() != before


def test_without_a_compiler_building_says_so_and_does_not_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert built.build(tmp_path) == (None, "no C compiler (cc, gcc or clang)")


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")
def test_building_again_replaces_what_belongs_to_an_older_source(tmp_path: Path) -> None:
    old = tmp_path / built.library_path().name.replace(built.library_path().name.split(".")[2], "0" * 16)
    old.write_bytes(b"")
    found, _ = built.build(tmp_path)
    assert found is not None
    assert list(tmp_path.iterdir()) == [found]
    assert native.Library(str(found)).columns(pa.array([b"{}"], pa.binary()), native.Names.of(["a"])).slow_rows == 0


def test_a_source_that_does_not_compile_leaves_the_plain_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "json_columns.c"
    broken.write_text("this is no C")
    monkeypatch.setattr(built, "SOURCE", broken)
    found, why = built.build(tmp_path)
    assert found is None
    assert why
