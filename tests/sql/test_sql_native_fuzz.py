"""Whatever the bytes: the compiled parser and the plain decoder agree, and the parser stays inside the bytes it was given."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from decoders import both, needs_library
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.sql.native.build import SOURCE

NAMES = ["a", "Temp", "temp", "é", "nested"]
KEYS = ["a", "A", "Temp", "temp", "TEMP", "é", "É", "nested", "x", "", "k\n", "\u212a"]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-9, 9),
    st.floats(allow_nan=False),
    st.text(max_size=12),
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=6,
)
PAIRS = st.lists(st.tuples(st.sampled_from(KEYS), VALUES), max_size=6)
QUIET = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """An object written with or without escapes, blanks and repeated keys."""
    ascii_only, blank = draw(st.booleans()), draw(st.sampled_from(["", " ", "\t", "\n"]))
    parts = [
        f"{json.dumps(key, ensure_ascii=ascii_only)}{blank}:{blank}{json.dumps(value, ensure_ascii=ascii_only)}"
        for key, value in draw(PAIRS)
    ]
    return ("{" + f"{blank},{blank}".join(parts) + "}").encode("utf-8", "surrogatepass")


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A body with some bytes changed, added, taken away or cut off."""
    data = bytearray(draw(bodies()))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        how = draw(st.integers(0, 3))
        byte = draw(st.sampled_from(list(b'{}[]",:\\-+.eE019tfnu \n\x00\x1f\x7f\x80\xc3\xed\xff')))
        if how == 0:
            data.insert(at, byte)
        elif how == 1 and at < len(data):
            data[at] = byte
        elif how == 2 and at < len(data):
            del data[at]
        else:
            del data[at:]
    return bytes(data)


NUMBERS = st.from_regex(
    r"-?[0-9]{1,22}(\.[0-9]{1,24})?([eE][+-]?[0-9]{1,4})?", fullmatch=True, alphabet="-+.eE0123456789"
)


@needs_library
@QUIET
@given(st.lists(bodies(), max_size=8))
def test_random_objects_are_read_alike(found: list[bytes]) -> None:
    compiled, plain = both(found, NAMES)
    assert compiled == plain


@needs_library
@QUIET
@given(st.lists(mutated() | bodies(), max_size=6))
def test_damaged_objects_are_read_or_refused_alike(found: list[bytes]) -> None:
    compiled, plain = both(found, NAMES)
    assert compiled == plain


@needs_library
@QUIET
@given(st.lists(st.binary(max_size=30), max_size=6))
def test_arbitrary_bytes_are_refused_alike(found: list[bytes]) -> None:
    compiled, plain = both(found, ["a"])
    assert compiled == plain


@needs_library
@QUIET
@given(st.lists(NUMBERS, min_size=1, max_size=20))
def test_numbers_have_the_same_type_and_the_same_last_bit(numbers: list[str]) -> None:
    compiled, plain = both([b'{"a":%s}' % number.encode() for number in numbers], ["a"])
    assert compiled == plain


HARNESS = r"""
#include <stdio.h>
#include "SOURCE"
/* Each input in a heap block of exactly its size, so that the sanitizer sees a single byte read beyond. */
int main(void)
{
    static const char names[] = "aTemptemp", lowers[] = "atemptemp";
    static const int32_t shapes[] = {1, 1, -1, 1, 4, 4, 2, 1, 4, 4, -1, 0};
    uint32_t size;
    long inputs = 0;
    while (fread(&size, 4, 1, stdin) == 1) {
        uint8_t *data = malloc(size);
        if (size && fread(data, 1, size, stdin) != size)
            return 2;
        int32_t offsets[2] = {0, (int32_t)size};
        uint8_t kinds[3], slow[1], good[1];
        int64_t values[3], counts[3 * KINDS] = {0}, sizes[3] = {0}, ticks[1];
        if (headrace_json_columns(data, offsets, 1, 3, (Bytes)names, (Bytes)lowers, shapes, kinds, values, counts, sizes, slow) < 0)
            return 3;
        for (int at = 0; at < 3; at++) {
            int32_t marks[2];
            uint8_t *out = malloc((size_t)sizes[at]);
            headrace_texts(data, &kinds[at], &values[at], 1, marks, out);
            headrace_moments(out, marks, 1, ticks, good);
            free(out);
        }
        headrace_moments(data, offsets, 1, ticks, good);
        free(data);
        inputs++;
    }
    printf("%ld\n", inputs);
    return 0;
}
"""


def _damaged(rng: random.Random) -> bytes:
    seeds = [
        b'{"a":1,"Temp":"2025-01-01T00:00:00.123Z","temp":[1,{"b":"\\ud83d\\ude00"}],"x":-1.5e10}',
        b'{"temp":"\\u00e9\\n","a":9223372036854775807,"y":{"a":[true,false,null]},"\xc3\xa9":"\xf0\x9f\x98\x80"}',
        b'{ "a" : 0.30000000000000004 , "Temp" : "' + b"x" * 40 + b'" , "z" : [[[[]]]] }',
        b"2025-01-01T00:00:00.1234567+01:30",
        b'{"a":' + b"[" * 200 + b"]" * 200 + b"}",
    ]
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(data) + 1)
        if rng.random() < 0.5:
            data[at : at + rng.randrange(3)] = bytes(
                rng.choices(b'{}[]",:\\u-+.eE09dDzZ \xc3\xf4\x00', k=rng.randrange(3))
            )
        else:
            del data[at:]
    return bytes(data)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc here")
def test_no_byte_outside_a_body_is_touched(tmp_path: Path) -> None:
    """Under the address and undefined behaviour sanitizers, every prefix of some bodies and thousands of damaged ones."""
    (tmp_path / "harness.c").write_text(HARNESS.replace("SOURCE", str(SOURCE)))
    program = tmp_path / "harness"
    command = ["gcc", "-std=c11", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    made = subprocess.run(
        [*command, "-o", program, tmp_path / "harness.c"], capture_output=True, text=True, timeout=120, check=False
    )
    if "cannot find" in made.stderr:
        pytest.skip("this gcc has no sanitizers")
    assert made.returncode == 0, made.stderr
    rng = random.Random(11)
    inputs = [_damaged(rng) for _ in range(20_000)]
    for whole in inputs[:40]:
        inputs += [whole[:cut] for cut in range(len(whole))]
    stream = b"".join(len(one).to_bytes(4, "little") + one for one in inputs)
    ran = subprocess.run([program], input=stream, capture_output=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr.decode()[-2000:]
    assert int(ran.stdout) == len(inputs)
